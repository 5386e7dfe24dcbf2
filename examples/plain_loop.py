"""Fine-tune a PyTorch model in a loop of your own: transform it, give its parameters to an optimizer, train."""

import torch
from toy import Classifier, accuracy, data

import laurel_graph as lg


def main(epochs: int = 10) -> tuple[float, float]:
    model = Classifier()
    before = accuracy(model)
    model = lg.transform(model, lg.LaurelConfig(variant="rw+lr", rank=8), torch.zeros(1, 16)).model
    print(lg.trainable_parameters(model))
    assert accuracy(model) == before  # the transformed model computes the same bits

    optimizer = torch.optim.AdamW(lg.parameter_groups(model), lr=1e-2)
    for _ in range(epochs):
        for x, label in torch.utils.data.DataLoader(data(), batch_size=32, shuffle=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), label).backward()
            optimizer.step()

    print(f"accuracy {before:.3f} before, {accuracy(model):.3f} after")
    return before, accuracy(model)


if __name__ == "__main__":
    main()
