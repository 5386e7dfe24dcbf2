"""The same with Lightning: the transformed model is a submodule like any other."""

import lightning
import torch
from torch import Tensor
from toy import Classifier, accuracy, data

import laurel_graph as lg


class Tuning(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        config = lg.LaurelConfig(variant="rw+lr", rank=8)
        self.model = lg.transform(Classifier(), config, torch.zeros(1, 16)).model

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, label = batch
        return torch.nn.functional.cross_entropy(self.model(x), label)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(lg.parameter_groups(self.model), lr=1e-2)


def main(epochs: int = 10) -> tuple[float, float]:
    tuning = Tuning()
    before = accuracy(tuning.model)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(tuning, torch.utils.data.DataLoader(data(), batch_size=32, shuffle=True))
    after = accuracy(tuning.model)
    print(f"accuracy {before:.3f} before, {after:.3f} after")
    return before, after


if __name__ == "__main__":
    main()
