"""Images in folders named after their classes, ``train/cat/1.png``: the samples of a model that takes one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laurel_graph.errors import DataError
from laurel_graph.tools.dependencies import missing
from laurel_graph.tools.failures import told
from laurel_graph.tools.finetuning.data import Data, InputSpec

LABEL = "label"
"""Name of the array of class numbers."""
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_MODES = {1: "L", 3: "RGB"}


def image_files(folder: Path) -> dict[str, list[Path]]:
    """Returns class to its images, both in the order of their names; empty for a folder of something else."""
    found = {
        each.name: sorted(file for file in each.iterdir() if file.suffix.lower() in ENDINGS)
        for each in sorted(folder.iterdir())
        if each.is_dir() and not each.name.startswith(".")
    }
    return found if any(found.values()) else {}


def read_images(folder: Path, inputs: Sequence[InputSpec], known: Sequence[str] | None = None) -> Data:
    """Reads a folder with one folder of images per class; each image is decoded when its turn comes.

    Args:
        folder: the folder.
        inputs: what the model takes: one image, ``(N, C, H, W)`` or ``(N, H, W, C)`` with one channel or three.
        known: the classes in the order of their numbers, where another folder gave them; else the names in order.

    Raises:
        DataError: the model takes no image, an image cannot be read, sizes that the model leaves open differ, a class
            has no images or is none of *known*.
        DependencyError: pillow is missing.
    """
    found = image_files(folder)
    classes = tuple(found if known is None else known)
    if empty := [name for name, files in found.items() if not files]:
        raise DataError(f"{folder}: the class folder {empty[0]!r} holds no image ({', '.join(ENDINGS[:3])}, ...).")
    if strange := [name for name in found if name not in classes]:
        raise DataError(
            f"{folder}: the class {strange[0]!r} is none of those of the training data, {', '.join(classes)}."
        )
    images = [(file, classes.index(name)) for name, files in found.items() for file in files]
    samples = _Images(folder, images, _wanted(folder, inputs))
    data = Data(samples, str(folder))
    data.classes[LABEL] = classes
    data.notes += samples.notes
    return data


class _Wanted:
    """The image that a model takes.

    Attributes:
        name: of the input.
        channels: 1 or 3.
        first: whether the channels come before height and width.
        size: height and width; ``None`` where they are open.
    """

    def __init__(self, name: str, channels: int, first: bool, size: tuple[int | None, int | None]) -> None:
        self.name, self.channels, self.first, self.size = name, channels, first, size


def _wanted(folder: Path, inputs: Sequence[InputSpec]) -> _Wanted:
    listed = ", ".join(f"{spec.name} {spec.shape}" for spec in inputs) or "nothing"
    if len(inputs) == 1 and inputs[0].shape is not None and len(inputs[0].shape) == 4:
        _, *axes = inputs[0].shape
        for first, channels, size in ((True, axes[0], axes[1:]), (False, axes[2], axes[:2])):
            if channels in _MODES and isinstance(channels, int):
                height, width = (dim if isinstance(dim, int) else None for dim in size)
                return _Wanted(inputs[0].name, channels, first, (height, width))
    raise DataError(
        f"{folder}: a folder of images goes with a model that takes one image, (N, C, H, W) or (N, H, W, C) with 1 or "
        f"3 channels; this one takes {listed}. Give arrays (.npz) instead."
    )


class _Images:
    """Images as samples, for :class:`Data`; opened once to see that they can be read, and how large they are."""

    def __init__(self, folder: Path, images: list[tuple[Path, int]], wanted: _Wanted) -> None:
        try:
            from PIL import Image
        except ImportError as error:
            raise missing("a folder of images", "pillow") from error
        self._images, self._wanted, self._open = images, wanted, Image.open
        self._resample = Image.Resampling.BILINEAR
        sizes: dict[tuple[int, int], Path] = {}
        for file, _ in images:
            try:
                with Image.open(file) as image:
                    sizes.setdefault((image.height, image.width), file)
            except Exception as error:  # Pillow and its plugins each raise their own
                raise DataError(f"{file} is no image that can be read ({told(error)}): mend or delete it.") from error
        fixed = wanted.size
        self.notes: list[str] = []
        if None in fixed and len(sizes) > 1:
            (one, file), (other, further) = list(sizes.items())[:2]
            raise DataError(
                f"{folder}: the images differ in size, {file.name} is {one[0]}x{one[1]} and {further.name} "
                f"{other[0]}x{other[1]}, and the model leaves theirs open: make them all one size."
            )
        shape = next(iter(sizes))
        self._size = (fixed[0] or shape[0], fixed[1] or shape[1])
        if others := [size for size in sizes if size != self._size]:
            self.notes.append(
                f"{folder}: images of {others[0][0]}x{others[0][1]} and the like are resized to "
                f"{self._size[0]}x{self._size[1]}, which the model takes (bilinear, the aspect is not kept)."
            )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        file, label = self._images[index]
        wanted = self._wanted
        try:
            with self._open(file) as image:
                pixels = image.convert(_MODES[wanted.channels])
                if (pixels.height, pixels.width) != self._size:
                    pixels = pixels.resize(self._size[::-1], self._resample)
                array: NDArray[np.uint8] = np.asarray(pixels, np.uint8).reshape(*self._size, wanted.channels)
        except Exception as error:  # Pillow and its plugins each raise their own
            raise DataError(f"{file} is no image that can be read ({told(error)}): mend or delete it.") from error
        return {wanted.name: array.transpose(2, 0, 1) if wanted.first else array, LABEL: np.int64(label)}
