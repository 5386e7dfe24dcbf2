"""The architectures of a zoo file, and the graphs that exporters make of each.

The file holds ``preamble`` (Python statements) and ``architectures``: name to ``build`` (an expression that gives an
``nn.Module``), ``inputs`` (``args: (...)`` or ``kwargs: dict(...)``), ``joins`` (the truth), ``identity`` and
``projection`` where the split is known, and ``soft``: joins of the form x + f(x) that are no classical residual
connections, so that either answer is right. Each architecture is turned into every kind of graph that its exporters can
make of it. The file is a program, not data: the Python in it is run, so take none from strangers.
"""

from __future__ import annotations

import argparse
import builtins
import importlib
import io
import json
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx

from laurel_graph.errors import DependencyError, ModelError
from laurel_graph.graph_view import GraphView
from laurel_graph.onnx_model.walk import copy_of
from laurel_graph.passes.read_fx.capture import capture
from laurel_graph.passes.read_onnx.view import view_of

from .kinds import optimised, quantised_dynamic, quantised_static, without_shapes

ZOO = Path(__file__).with_name("zoo.json")


@dataclass(frozen=True)
class Entry:
    """One architecture of a zoo file."""

    name: str
    build: str
    inputs: str
    joins: int
    identity: int | None
    projection: int | None
    soft: int
    preamble: str

    @classmethod
    def of(cls, name: str, data: dict[str, Any], preamble: str) -> Entry:
        """Reads one entry of the file's ``architectures``."""
        return cls(
            name, data["build"], data["inputs"], int(data["joins"]), data.get("identity"), data.get("projection"),
            int(data.get("soft") or 0), preamble,
        )  # fmt: skip


def read_zoo(path: str | Path = ZOO) -> list[Entry]:
    """Returns the architectures of a zoo file.

    Raises:
        ModelError: the file is missing or not of this form.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        return [Entry.of(name, item, data["preamble"]) for name, item in data["architectures"].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is not a zoo file: {error}. Expected keys preamble and architectures.") from error


def arguments(program: str, text: str | None) -> argparse.ArgumentParser:
    """Returns the command line that the programs over the zoo have in common; *text* says what *program* does."""
    parser = argparse.ArgumentParser(prog=program, description=(text or "").split("\n")[0])
    parser.add_argument("file", nargs="?", default=str(ZOO), help="zoo file (default: the one of the project)")
    parser.add_argument("--only", default="*", help="names or globs of architectures, separated by commas")
    parser.add_argument("--part", default="1/1", help="N/M: every M-th architecture from the N-th")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser


def chosen_entries(options: argparse.Namespace) -> list[Entry]:
    """Returns the architectures of the file and the part that were asked for.

    Raises:
        ModelError: the file is none of a zoo.
        ValueError: the part is not N/M.
    """
    number, parts = (int(v) for v in options.part.split("/"))
    return read_zoo(options.file)[number - 1 :: parts]


def _names(preamble: str, expressions: str) -> dict[str, Any]:
    """Runs the preamble; of ``from package import *`` only what the expressions mention is imported."""
    stars = re.findall(r"^from (\S+) import \*$", preamble, re.MULTILINE)
    names: dict[str, Any] = {}
    try:
        exec(re.sub(r"^from \S+ import \*$", "", preamble, flags=re.MULTILINE), names)
        for package in stars:
            module = importlib.import_module(package)
            for word in set(re.findall(r"[A-Za-z_]\w*", expressions)) - set(names) - set(dir(builtins)):
                with suppress(AttributeError):
                    names[word] = getattr(module, word)
    except ImportError as error:
        raise DependencyError(f"{error}. The architectures need what the tests do: `make test` installs it.") from error
    return names


def _once(make: Callable[[], Any]) -> Callable[[], Any]:
    """Returns *make* with its result, or its error, kept: a graph that cannot be made is not tried for every kind."""

    @cache
    def outcome() -> tuple[Any, Exception | None]:
        try:
            return make(), None
        except Exception as error:  # the exporters' and the architecture's own code ran
            return None, error

    def get() -> Any:
        value, error = outcome()
        if error is not None:
            raise error
        return value

    return get


class Specimen:
    """One built architecture; makes its graphs on demand and keeps them for the kinds that derive from them."""

    def __init__(self, entry: Entry) -> None:
        import torch

        names = _names(entry.preamble, entry.build + entry.inputs)
        torch.manual_seed(0)
        self.module = eval(entry.build, names).eval()
        form, _, expression = entry.inputs.partition(":")
        given = eval(expression.strip(), names)
        self.args = tuple(given) if form.strip() == "args" else ()
        self.kwargs = dict(given) if form.strip() == "kwargs" else {}
        self.exported = _once(self._exported)
        self.dynamo = _once(self._dynamo)

    def _exported(self) -> Any:
        import torch

        with torch.no_grad():
            return torch.export.export(self.module, self.args, self.kwargs, strict=False)

    def _dynamo(self) -> onnx.ModelProto:
        import torch

        program = torch.onnx.export(self.exported(), dynamo=True, verbose=False)
        if program is None:
            raise ModelError("the exporter returned nothing")
        return program.model_proto  # type: ignore[no-any-return]

    # One method per kind; its name is the kind's.

    def symbolic(self) -> GraphView:
        """torch.fx.symbolic_trace."""
        captured = capture(self.module, self.args, self.kwargs)
        if any("symbolic_trace stopped" in text for text in captured.notes):
            raise ModelError(captured.notes[0])
        return captured.view

    def export(self) -> GraphView:
        """torch.export as it is."""
        return capture(self.exported()).view

    def dynamic(self) -> GraphView:
        """torch.export with symbolic sizes wherever the model allows."""
        import torch
        from torch.utils import _pytree as pytree

        auto = torch.export.Dim.AUTO
        shapes = pytree.tree_map(
            lambda v: dict.fromkeys(range(v.dim()), auto) if isinstance(v, torch.Tensor) else None,
            (self.args, self.kwargs),
        )
        shapes = shapes[1] if not self.args else shapes[0]
        with torch.no_grad():
            program = torch.export.export(
                self.module, self.args, self.kwargs, dynamic_shapes=shapes, strict=False
            )  # fmt: skip
        return capture(program).view

    def decomposed(self) -> GraphView:
        """torch.export after run_decompositions()."""
        return capture(self.exported().run_decompositions()).view

    def onnx(self) -> GraphView:
        """torch.onnx.export(dynamo=True)."""
        return view_of(self.dynamo())

    def noshapes(self) -> GraphView:
        """The same without any shape information."""
        return view_of(without_shapes(self.dynamo()))

    def torchscript(self) -> GraphView:
        """torch.onnx.export(dynamo=False)."""
        import torch

        file: Any = io.BytesIO()  # the old exporter writes to buffers; its annotation says paths alone
        args: Any = (*self.args, self.kwargs) if self.kwargs else self.args
        torch.onnx.export(self.module, args, file, dynamo=False, verbose=False, opset_version=17)
        return view_of(onnx.load_from_string(file.getvalue()))

    def optimised(self) -> GraphView:
        """ONNX Runtime's extended optimisation."""
        with tempfile.TemporaryDirectory() as folder:
            return view_of(optimised(self.dynamo(), Path(folder)))

    def optimised_noshapes(self) -> GraphView:
        """The same without any shape information."""
        with tempfile.TemporaryDirectory() as folder:
            return view_of(without_shapes(optimised(self.dynamo(), Path(folder))))

    def qdq(self) -> GraphView:
        """Static int8 quantisation, QDQ format."""
        with tempfile.TemporaryDirectory() as folder:
            return view_of(quantised_static(self.dynamo(), Path(folder)))

    def int8(self) -> GraphView:
        """Dynamic int8 quantisation."""
        with tempfile.TemporaryDirectory() as folder:
            return view_of(quantised_dynamic(self.dynamo(), Path(folder)))

    def fp16(self) -> GraphView:
        """Converted to float16, with the casts that stay."""
        from onnxruntime.transformers.float16 import convert_float_to_float16

        copy = copy_of(self.dynamo())
        return view_of(convert_float_to_float16(copy, keep_io_types=True, disable_shape_infer=True))


@contextmanager
def silence() -> Iterator[None]:
    """Keeps what exporters and tracers print and warn of from the terminal."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
