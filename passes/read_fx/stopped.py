"""Where the user's own model stopped while its graph was taken, in words; and torch's log of it, which we tell."""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from laurel_graph.own_code import is_ours

from .prepare import plain_forward, set_mode, unchanged

_SHOWN = 200
"""Characters of a foreign message that one of ours takes over."""


def stopped_at(error: BaseException, model: nn.Module) -> str:
    """Returns ``layer 'path' (Class), file.py:line (code): message``.

    The layer is the innermost one of *model* that was running, unless that is *model* itself; the line is the innermost
    one of the user's own code, or the model's forward where it passes through none.
    """
    message = ((str(error).strip().splitlines() or [""])[0][:_SHOWN]).rstrip(".") or type(error).__name__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_the_users(f.filename)]
    layer = _layer(error, model)
    if frames:
        place = f"{frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})"
        return f"{layer}{place}: {message}"
    code = getattr(inspect.unwrap(type(model).forward), "__code__", None)
    own = code is not None and _is_the_users(code.co_filename)
    place = f"{code.co_filename}:{code.co_firstlineno} (forward): " if own and code is not None else ""
    return f"{layer.removesuffix(', ')}{': ' if layer and not place else ', ' if layer else ''}{place}{message}"


def _is_the_users(filename: str) -> bool:
    return not (is_ours(filename) or filename.startswith((str(Path(torch.__file__).parent), "<")))


def _layer(error: BaseException, model: nn.Module) -> str:
    """Returns ``"layer 'path' (Class), "`` of the innermost layer that was running, or ""."""
    names = {id(vars(module)): (name, type(module).__name__) for name, module in model.named_modules() if name}
    found = ""
    trace = error.__traceback__
    while trace is not None:
        running = trace.tb_frame.f_locals.get("self")
        if isinstance(running, nn.Module) and id(vars(running)) in names:
            name, kind = names[id(vars(running))]
            found = f"layer {name!r} ({kind}), "
        trace = trace.tb_next
    return found


def refused_inputs(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Returns where *model* itself stops on the example inputs; ``None`` where it takes them."""
    try:
        with torch.no_grad(), set_mode(model), unchanged(model), plain_forward(model):
            model(*args, **kwargs)
    except Exception as error:  # the user's code runs here
        return stopped_at(error, model)
    return None


@contextmanager
def without_logged_tracebacks() -> Iterator[None]:
    """Keeps tracebacks that torch logs of errors out of the log: what is raised is told in a sentence."""
    held = logging.Logger.manager.loggerDict
    loggers = [logging.getLogger(name) for name in held if f"{name}.".startswith("torch.")]
    for each in loggers:
        each.addFilter(_has_no_traceback)
    try:
        yield
    finally:
        for each in loggers:
            each.removeFilter(_has_no_traceback)


def _has_no_traceback(record: logging.LogRecord) -> bool:
    return not record.exc_info


@contextmanager
def errors_alone(*names: str) -> Iterator[None]:
    """Keeps what the loggers *names* say below an error out of the log, and those below them that set no level."""
    loggers = [logging.getLogger(name) for name in names]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)
