"""The same with accelerate: one process or many (``accelerate launch examples/accelerate_loop.py``), any device.

With several processes accelerate averages the gradients of the parameters that train, and of those alone.
"""

import torch
from accelerate import Accelerator
from toy import Classifier, accuracy, data

import laurel_graph as lg


def main(epochs: int = 10) -> tuple[float, float]:
    accelerator = Accelerator()
    model = lg.transform(Classifier(), lg.LaurelConfig(variant="rw+lr", rank=8), torch.zeros(1, 16)).model
    before = accuracy(model)
    optimizer = torch.optim.AdamW(lg.parameter_groups(model), lr=1e-2)
    loader = torch.utils.data.DataLoader(data(), batch_size=32, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for _ in range(epochs):
        for x, label in loader:
            optimizer.zero_grad()
            accelerator.backward(torch.nn.functional.cross_entropy(model(x), label))
            optimizer.step()

    tuned = accelerator.unwrap_model(model).cpu()
    after = accuracy(tuned)
    accelerator.print(f"accuracy {before:.3f} before, {after:.3f} after")
    return before, after


if __name__ == "__main__":
    main()
