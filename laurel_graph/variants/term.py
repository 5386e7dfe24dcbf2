"""What a term of the residual is.

The residual of a site is ``x' = skip + branch``, where skip starts as x and branch as f(x), and each term of the
variant in turn changes them: LR adds (xA)B to the skip, RW multiplies the branch by α and the skip by β. A term that
changes nothing at its start leaves the bits of ``x + f(x)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

Scalar = bool | int | float | str
"""A value of an option."""

Axis = int | str
"""An axis of a tensor: a size, or one of :data:`SYMBOLS`, or one of those plus a number (``"k+2"``)."""

SYMBOLS = {"D": "width", "r": "rank", "k": "previous"}
"""Symbol to the attribute of the site that is its size; an axis ``"C"`` is D where weights are per channel, else none.
"""

Pair = tuple[Any, Any]


class Site(Protocol):
    """What a term may know about a site; see :class:`laurel_graph.config.SiteSpec`."""

    @property
    def width(self) -> int:
        """D."""

    @property
    def rank(self) -> int:
        """r, 0 where no tensor has an axis ``"r"``."""

    @property
    def previous(self) -> int:
        """k, how many earlier activations enter."""

    @property
    def per_channel(self) -> bool:
        """Whether weights are one per channel."""

    @property
    def weights(self) -> str:
        """How α and β are bounded."""

    @property
    def init(self) -> str:
        """How A starts."""

    @property
    def dtype(self) -> str:
        """Element type of the tensors."""


@dataclass(frozen=True)
class Option:
    """One option of a term, ``laurel transform --set NAME=VALUE``.

    Attributes:
        default: its value where none is given; of the type that it has.
        help: one line.
        valid: the values that it may have; empty for all of its type.
    """

    default: Scalar
    help: str = ""
    valid: tuple[Scalar, ...] = ()

    def read(self, name: str, value: object) -> Scalar:
        """Returns *value* in the type of the option; texts, as they come from a command line, are read.

        Raises:
            ConfigError: it is of another type, or none of the valid values.
        """
        kind = type(self.default)
        read: object = value
        if isinstance(value, str) and kind is not str:
            words: dict[str, object] = {"true": True, "false": False} if kind is bool else {}
            try:
                read = words.get(value.lower(), value) if kind is bool else kind(value)
            except ValueError:
                read = value
        if kind is float and type(read) is int:
            read = float(read)
        unfit = type(read) is not kind or (kind is float and read != read) or (kind is str and not str(read).isalnum())
        if unfit or (self.valid and read not in self.valid):
            wanted = f"one of {', '.join(map(str, self.valid))}" if self.valid else _WORDS[kind]
            raise ConfigError(f"option {name} = {value!r} is not valid: expected {wanted}.")
        return read  # type: ignore[return-value]


_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "letters and digits"}


@dataclass(frozen=True)
class Operands:
    """What a term reads: arrays, tensors or names of ONNX values, features on the last axis but for ONNX names.

    Attributes:
        x: the skip as it came in.
        previous: the earlier activations of the stream, nearest first.
        tensors: the term's tensors by name; ``operands["g"]`` is one.
        options: the options of the site.
    """

    x: Any
    previous: Sequence[Any]
    tensors: Mapping[str, Any]
    options: Mapping[str, Scalar] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.tensors[name]


class Term:
    """A term of the residual: subclass it, put :func:`~laurel_graph.variants.register` above the class, and it is in.

    Attributes:
        name: how ``--variant`` calls it: lower-case letters and digits.
        tensors: name to axes of the learned tensors, in the order of the operator's inputs. A file holds them as
            ``laurel.<site>.<name>``.
        options: its options by name; their values are part of the operator's name.
        earlier: how many earlier activations of the stream enter at most; ``None`` for all.
        needs_earlier: at a site without earlier activations the term is left out.
        several_branches: it leaves the branch as it is, so that it fits joins of several branches, x + f + g.
        is_last: it is applied after all other terms.
        has_kernels: the fused operators, folds and plain forms of this package know it; others go without.
    """

    name: ClassVar[str] = ""
    tensors: Mapping[str, tuple[Axis, ...]] = {}
    options: ClassVar[Mapping[str, Option]] = {}
    earlier: ClassVar[int | None] = 0
    needs_earlier: ClassVar[bool] = False
    several_branches: ClassVar[bool] = False
    is_last: ClassVar[bool] = False
    has_kernels: ClassVar[bool] = False

    def start(self, site: Site, shapes: Mapping[str, tuple[int, ...]], draw: np.random.Generator) -> Mapping[str, Any]:
        """Returns where parameters start, for those that do not start at 0.

        Args:
            site: what is known about the site.
            shapes: name to shape of the parameters.
            draw: a source of random numbers of the site's own.
        """
        return {}

    def formula(self, skip: Any, branch: Any, at: Operands) -> Pair:
        """Returns (skip, branch) in NumPy: the one truth that everything else is held against."""
        raise NotImplementedError(f"term {self.name!r} has no formula")

    def forward(self, skip: Any, branch: Any, at: Operands) -> Pair:
        """Returns (skip, branch) in torch, float32 for 16-bit models; by default what :meth:`formula` makes of tensors.

        Overwrite it where the formula calls NumPy functions.
        """
        return self.formula(skip, branch, at)

    def body(self, nodes: Any, skip: str, branch: str, at: Operands) -> Pair:
        """Returns the names of (skip, branch) after adding the ONNX nodes that compute them.

        Args:
            nodes: takes the nodes, one ``add(operator, *inputs, **attributes)`` at a time, for any opset from
                ``nodes.opset`` on. ``times(x, matrix)``, ``low_rank(x, A, B)`` and ``along_features(vector)`` do what
                they say where features lie on axis 1, too; ``scalar(number)`` and ``element(tensor, j)`` are numbers.
            skip: the name of the skip.
            branch: the name of the branch.
            at: names of the operands.
        """
        raise NotImplementedError(f"term {self.name!r} has no function body")

    # What bounded weights and options of ours need, and most terms do not -------------------------------------------

    def form(self, previous_map: str) -> Term:
        """Returns the term for sites whose earlier activations pass that map."""
        return self

    def links(self, wanted: int, available: int) -> int:
        """Returns how many earlier activations enter, of *available* ones; *wanted* is the config's ``previous``."""
        return available if self.earlier is None else min(self.earlier, available)

    def parameters(self, site: Site) -> Mapping[str, tuple[Axis, ...]]:
        """Returns name to axes of what is trained, where that is not :attr:`tensors`."""
        return self.tensors

    def resolve(self, site: Site, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the tensors (arrays) that are not what is trained, out of what is."""
        return {}

    def unresolve(self, site: Site, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the parameters (arrays) that are not what a file holds: the inverse of :meth:`resolve`."""
        return {}

    def resolve_torch(self, site: Site, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """As :meth:`resolve` on torch tensors, with gradients."""
        return {}


def shape_of(axes: Sequence[Axis], site: Site) -> tuple[int, ...]:
    """Returns a tensor's shape at a site."""
    shape: list[int] = []
    for axis in axes:
        if axis == "C":
            shape += [site.width] * site.per_channel
        else:
            shape.append(size_of(axis, {symbol: getattr(site, name) for symbol, name in SYMBOLS.items()}))
    return tuple(shape)


def size_of(axis: Axis, sizes: Mapping[str, int]) -> int:
    """Returns the size of an axis, given those of the symbols.

    Raises:
        KeyError: its symbol has none.
    """
    if isinstance(axis, int):
        return axis
    symbol, _, more = axis.partition("+")
    return sizes[symbol] + int(more or 0)


def symbols_of(term: Term) -> set[str]:
    """Returns the symbols in the axes of a term's tensors."""
    return {axis.partition("+")[0] for axes in term.tensors.values() for axis in axes if isinstance(axis, str)}
