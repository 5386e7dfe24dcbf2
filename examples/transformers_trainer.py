"""The same with the transformers Trainer: a BERT classifier (tiny, random weights) that learns which token it sees.

The Trainer wants a module that takes ``labels`` and returns a loss; the transformed graph is its trunk, the head is an
ordinary layer that trains too.
"""

import tempfile

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, Trainer, TrainingArguments

import laurel_graph as lg

CLASSES, LENGTH = 3, 12


class Tuning(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        bert = BertModel(
            BertConfig(vocab_size=50, attn_implementation="eager", **sizes), add_pooling_layer=False
        ).eval()
        example = {"input_ids": torch.ones(2, LENGTH, dtype=torch.long)}
        example["attention_mask"] = torch.ones_like(example["input_ids"])
        batch = {0: torch.export.Dim("batch")}  # exported by hand, so that the batch size stays free
        program = torch.export.export(bert, (), example, dynamic_shapes=dict.fromkeys(example, batch))
        self.trunk = lg.transform(program, lg.LaurelConfig(variant="rw+lr", rank=8)).model
        self.head = nn.Linear(32, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        hidden = self.trunk(input_ids=input_ids, attention_mask=attention_mask)
        hidden = hidden[0] if isinstance(hidden, (tuple, list)) else hidden["last_hidden_state"]
        logits = self.head(hidden.mean(1))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def data(count: int, seed: int) -> list[dict[str, Tensor]]:
    """Returns sentences of random tokens; the class is the first of the tokens 1, 2, 3 that occurs."""
    draw = torch.Generator().manual_seed(seed)
    samples = []
    for _ in range(count):
        tokens = torch.randint(4, 50, (LENGTH,), generator=draw)
        label = int(torch.randint(CLASSES, (), generator=draw))
        tokens[torch.randperm(LENGTH, generator=draw)[:4]] = label + 1
        samples.append({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": torch.tensor(label)})
    return samples


def main(epochs: float = 8) -> tuple[float, float]:
    model = Tuning()
    print(lg.trainable_parameters(model))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=epochs, per_device_train_batch_size=16, learning_rate=1e-2, use_cpu=True,
            report_to=[], save_strategy="no", disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        optimizer = torch.optim.AdamW(lg.parameter_groups(model), lr=arguments.learning_rate)
        trainer = Trainer(
            model, arguments, train_dataset=data(192, 0), eval_dataset=data(96, 1), optimizers=(optimizer, None)
        )
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        after = trainer.evaluate()["eval_loss"]
    print(f"loss {before:.3f} before, {after:.3f} after")
    return before, after


if __name__ == "__main__":
    main()
