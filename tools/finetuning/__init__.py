"""``laurel finetune``: tasks, data, losses, the training loop, checkpoints, sweeps."""
