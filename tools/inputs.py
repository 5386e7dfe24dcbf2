"""Which files a command reads, so that none of them is written."""

from __future__ import annotations

import contextlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .callables import current_folder, is_reference

if TYPE_CHECKING:
    from onnx import ModelProto

    from laurel_graph.outputs.files import Input
    from laurel_graph.tools.finetuning.options import FinetuneOptions


def source_files(text: str) -> tuple[Path, ...]:
    """Returns the files that stand behind *text*: the module of ``package.module:function``, or *text* itself.

    Of a folder all files count.
    """
    if not is_reference(text):
        from laurel_graph.model_folder import folder_files

        return (Path(text), *folder_files(text))
    with contextlib.suppress(ImportError, ValueError), current_folder():
        found = find_spec(text.rpartition(":")[0])
        if found is not None and found.origin is not None:
            return (Path(found.origin),)
    return ()


def data_files(source: str) -> tuple[Path, ...]:
    """Returns the files that :func:`laurel_graph.tools.finetuning.data.read_data` reads for *source*."""
    from laurel_graph.tools.finetuning.data_files import folder_files
    from laurel_graph.tools.finetuning.forms.images import image_files

    path = Path(source)
    if is_reference(source) or not path.is_dir():
        return source_files(source)
    arrays, shards = folder_files(path)
    return (*arrays, *shards, *path.glob("*.arrow"), *(file for files in image_files(path).values() for file in files))


def finetune_files(options: FinetuneOptions, model: ModelProto) -> tuple[Path, ...]:
    """Returns the files that a fine-tuning of *model*, read from ``options.model``, reads."""
    from laurel_graph.model_folder import folder_files, graph_path
    from laurel_graph.outputs.models import model_files

    functions = (text for text in (options.loss, options.metric) if text and is_reference(text))
    return (
        *model_files(graph_path(options.model), model),
        *folder_files(options.model),
        *(() if options.teacher is None else model_files(graph_path(options.teacher))),
        *(file for source in (options.data, options.validation) if source for file in data_files(source)),
        *(file for text in functions for file in source_files(text)),
    )


def check_model_output(output: str | Path, model: str | Path, *read: Input, advice: str = "") -> None:
    """Checks that the file to write of a *model* is called ``.onnx``; what a folder becomes has any name.

    Args:
        output: what is to be written.
        model: what is read, as the command line has it.
        read: further files that are read.
        advice: what else may have been meant.

    Raises:
        OutputError: see :func:`check_ending`.
    """
    from laurel_graph.model_folder import writes_folder

    if not writes_folder(model, output):
        check_ending(output, (".onnx",), "viewers and runtimes", model, *read, advice=advice)


def check_ending(
    output: str | Path, endings: tuple[str, ...], readers: str, model: str | Path, *read: Input, advice: str = ""
) -> None:
    """Checks that a file to write has one of the *endings* by which its *readers* go.

    That it is none of the files that are read comes first, as for :func:`laurel_graph.outputs.check_outputs`.

    Raises:
        OutputError: it has another ending, or cannot be written.
    """
    from laurel_graph.errors import LaurelError, OutputError
    from laurel_graph.model_folder import graph_path
    from laurel_graph.outputs import check_outputs
    from laurel_graph.outputs.models import model_files

    path = Path(output)
    if path.suffix.lower() in endings:
        return
    files = list(source_files(str(model)))
    with contextlib.suppress(LaurelError):  # what cannot be read is told where it is read
        files += model_files(graph_path(model))
    check_outputs(path, inputs=(*files, *read))
    better = path.with_suffix(endings[0]) if path.name else f"out{endings[0]}"
    raise OutputError(
        f"--output {path}: expected a name that ends in {endings[0]}, by which {readers} go, such as {better}.{advice}"
    )
