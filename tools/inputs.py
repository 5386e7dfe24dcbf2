"""Which files a command reads, so that none of them is written."""

from __future__ import annotations

import contextlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .callables import current_folder, is_reference

if TYPE_CHECKING:
    from onnx import ModelProto

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

    path = Path(source)
    if is_reference(source) or not path.is_dir():
        return source_files(source)
    arrays, shards = folder_files(path)
    return (*arrays, *shards)


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
