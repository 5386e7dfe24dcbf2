"""The training loop of ``laurel finetune``: state, checkpoints, interrupts, processes, progress."""
