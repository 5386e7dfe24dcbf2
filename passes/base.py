"""The contract of a pass: what it takes, its options, what holds before and after, what it hands back.

A pass is a frozen dataclass whose fields are its options. :meth:`Pass.run` takes a graph and the :class:`Facts` that
earlier passes left, may change the graph in place, and returns a :class:`PassResult`. :class:`Pipeline` runs passes in
a row and is a pass itself::

    class Fold(Pass, name="fold"):
        ...

    result = Pipeline((Insert(LaurelConfig("rw")), Fold())).run(model)

What one pass finds out and others need (a detection, the types of values, the file that the graph came from) is a
*fact*: one object per type. A fact that describes the graph as it is (its class says ``describes_graph = True``) goes
when a later pass changes the graph, so that nobody reads a stale one.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Final, TypeAlias, TypeVar, cast

from laurel_graph.errors import ConfigError, LaurelError, ModelError, RewriteError
from laurel_graph.foreign_names import foreign_text

from .graphsurgeon import is_graph, wants_graph

Graph: TypeAlias = Any
"""An ``onnx.ModelProto`` or a ``torch.fx.GraphModule``; which of them a pass gets, its ``takes`` says."""

Fact = TypeVar("Fact")

ONNX: Final = "ModelProto"
TORCH: Final = "GraphModule"


def option(default: Any, text: str) -> Any:
    """Returns a dataclass field: an option of a pass, with its description."""
    return field(default=default, metadata={"help": text})


class Facts:
    """What is known besides the graph: at most one object of each type. It never changes; :meth:`plus` makes another.

    Args:
        objects: the facts; of two of one type the last counts.
    """

    def __init__(self, *objects: object) -> None:
        self._by_type = {type(each): each for each in objects}

    def get(self, kind: type[Fact]) -> Fact | None:
        """Returns the fact of that type, or ``None``."""
        return cast("Fact | None", self._by_type.get(kind))

    def plus(self, other: Facts) -> Facts:
        """Returns these facts with those of *other* in place of their like."""
        return Facts(*self, *other)

    def after_a_change(self) -> Facts:
        """Returns the facts that still hold when the graph is another one."""
        return Facts(*(each for each in self if not getattr(type(each), "describes_graph", False)))

    def __iter__(self) -> Iterator[object]:
        return iter(self._by_type.values())

    def __repr__(self) -> str:
        return f"Facts({', '.join(kind.__name__ for kind in self._by_type)})"


NO_FACTS: Final = Facts()


@dataclass(frozen=True)
class SiteChange:
    """What a pass did at one place of the graph.

    Attributes:
        site: the residual connection, or the value where there is no site.
        change: what was done, or ``left alone``.
        reason: why, or why not; "" where that is plain.
    """

    site: str
    change: str
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """What a pass says about its run.

    Attributes:
        counters: word to number.
        sites: what was done where, and what was left alone with the reason.
        notes: sentences for the user.
        detail: the report of the function behind the pass, for programs.
    """

    counters: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    sites: tuple[SiteChange, ...] = ()
    notes: tuple[str, ...] = ()
    detail: Any = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        sites = [{"site": s.site, "change": s.change, "reason": s.reason} for s in self.sites]
        return {"counters": dict(self.counters), "sites": sites, "notes": list(self.notes)}


@dataclass(frozen=True)
class Step:
    """One pass of a pipeline that ran.

    Attributes:
        ran: the pass.
        changed: whether it changed the graph.
        report: what it says.
        facts: what it found out.
    """

    ran: Pass
    changed: bool
    report: Report
    facts: Facts

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {"pass": self.ran.name, "changed": self.changed, **self.report.to_dict()}


@dataclass(frozen=True)
class PassResult:
    """What :meth:`Pass.run` returns.

    Attributes:
        graph: the graph; the one that was given, changed in place, or another one.
        changed: whether anything of it changed.
        report: what was done.
        facts: what the pass found out; of a pipeline, all that holds at its end.
        steps: the passes of a pipeline, in the order in which they ran.
    """

    graph: Any
    changed: bool
    report: Report = field(default_factory=Report)
    facts: Facts = field(default_factory=Facts)
    steps: tuple[Step, ...] = ()

    def found(self, kind: type[Fact]) -> Fact | None:
        """Returns the last fact of that type that any step found, whether it still holds or not."""
        for step in reversed(self.steps):
            if (fact := step.facts.get(kind)) is not None:
                return fact
        return self.facts.get(kind)


@dataclass(frozen=True)
class Pass:
    """Base of every pass. Subclasses are frozen dataclasses; their fields, made by :func:`option`, are the options.

    Class arguments of a subclass: ``name`` (what ``--pass`` calls it), ``takes`` (the kinds of graph, :data:`ONNX`,
    :data:`TORCH` or both), ``requires`` and ``ensures`` (invariants before and after, checked when asked; see
    :mod:`laurel_graph.passes.invariants`), ``last`` (it looks at the file that is written, so that nothing follows),
    ``compares`` (it needs the graph that came in, a :class:`~laurel_graph.passes.facts.Reference`, of which a copy is
    kept for it).
    """

    name: ClassVar[str] = ""
    takes: ClassVar[tuple[str, ...]] = (ONNX,)
    requires: ClassVar[tuple[str, ...]] = ()
    ensures: ClassVar[tuple[str, ...]] = ()
    last: ClassVar[bool] = False
    compares: ClassVar[bool] = False

    def __init_subclass__(
        cls,
        name: str = "",
        takes: Sequence[str] | None = None,
        requires: Sequence[str] | None = None,
        ensures: Sequence[str] | None = None,
        last: bool | None = None,
        compares: bool | None = None,
    ) -> None:
        super().__init_subclass__()
        cls.name = name or cls.__dict__.get("name", "") or cls.__name__
        for key, value in (("takes", takes), ("requires", requires), ("ensures", ensures)):
            if value is not None:
                setattr(cls, key, tuple(value))
        cls.last = cls.last if last is None else last
        cls.compares = cls.compares if compares is None else compares

    def run(self, graph: Graph, facts: Facts = NO_FACTS) -> PassResult:
        """Runs the pass; *graph* may be changed in place.

        Args:
            graph: a graph of one of the kinds in :attr:`takes`.
            facts: what earlier passes found out.

        Raises:
            LaurelError: the pass cannot do what it is for; which one, says the pass.
        """
        raise NotImplementedError(f"{type(self).__name__}.run")

    @property
    def text(self) -> str:
        """What the pass does, in a sentence: the first line of its docstring."""
        return (type(self).__doc__ or "").strip().partition("\n")[0]

    @property
    def is_ours(self) -> bool:
        """Whether the pass comes with this package."""
        return type(self).__module__.startswith("laurel_graph.")

    def options(self) -> dict[str, Any]:
        """Returns option to value."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True)
class FunctionPass(Pass, name="function", requires=("unique-names", "order"), ensures=("unique-names", "order")):
    """A function of the user's own: it takes a ``ModelProto`` and returns another, or ``None`` where it edits in place.

    One whose first parameter is annotated as a ``gs.Graph`` takes and returns that, or ``None``; what graphsurgeon does
    not carry is carried over (:mod:`laurel_graph.passes.graphsurgeon`).

    Attributes:
        function: the function.
        called: what it is called in messages.
    """

    function: Any = None
    called: str = ""

    def __post_init__(self) -> None:
        named = self.called or getattr(self.function, "__name__", "function")
        object.__setattr__(self, "name", named)

    @property
    def text(self) -> str:
        """The first line of the function's docstring."""
        return (getattr(self.function, "__doc__", None) or "").strip().partition("\n")[0]

    @property
    def is_ours(self) -> bool:
        """No function comes with this package."""
        return False

    def run(self, graph: Graph, facts: Facts = NO_FACTS) -> PassResult:
        """Calls the function. One that edits in place counts as having changed something, whatever it did.

        Raises:
            ModelError: it returned something else.
        """
        if wants_graph(self.function):
            after = self._on_graph(graph, facts)
            return PassResult(after, after != graph)
        made = self.function(graph)
        after = graph if made is None else made
        if kind_of(after) != ONNX:
            raise ModelError(
                f"pass {self.name!r} returned {type(made).__name__}: expected a ModelProto, or None after editing the "
                "one that it was given."
            )
        return PassResult(after, after is graph or after != graph)

    def _on_graph(self, model: Graph, facts: Facts) -> Graph:
        from .facts import weights_folder
        from .graphsurgeon.convert import to_graph, to_model

        folder = weights_folder(facts) or ""
        surgeon = to_graph(model, folder)
        made = self.function(surgeon)
        if made is not None and not is_graph(made):
            raise ModelError(
                f"pass {self.name!r} returned {type(made).__name__}: expected a gs.Graph, or None after editing the "
                "one that it was given."
            )
        return to_model(surgeon if made is None else made, model, folder)


def kind_of(graph: object) -> str:
    """Returns :data:`ONNX`, :data:`TORCH`, or the name of the type that is neither; imports neither library."""
    names = [base.__name__ for base in type(graph).__mro__]
    return next((kind for kind in (ONNX, TORCH) if kind in names), type(graph).__name__)


@dataclass(frozen=True)
class Pipeline(Pass, name="pipeline", takes=(ONNX, TORCH)):
    """Passes in a row.

    Attributes:
        passes: the passes, in order.
        check: hold the invariants that passes require and ensure against the graph before and after each.
        trace: a folder that gets the graph before and after each pass as text, the difference, and what was done where.
    """

    passes: tuple[Pass, ...] = ()
    check: bool = False
    trace: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "passes", tuple(self.passes))
        for each in self.passes:
            if not isinstance(each, Pass):
                raise ConfigError(
                    f"a pipeline holds passes, found {each!r}; wrap a function of your own: FunctionPass(function)."
                )
        for each in self.passes[:-1]:
            if each.last:
                raise ConfigError(
                    f"pass {each.name!r} looks at the file as it is written: nothing may follow; put it last."
                )

    def run(self, graph: Graph, facts: Facts = NO_FACTS) -> PassResult:
        """Runs every pass on what the one before it returned; *graph* may be changed in place.

        Raises:
            LaurelError: what a pass raises.
            ConfigError: a pass does not take this kind of graph.
            RewriteError: a pass of the user's own failed, or an invariant does not hold (with ``check``).
        """
        steps: list[Step] = []
        anything = False
        for each in self.passes:
            _check_kind(each, graph)
            result = self._one(each, graph, facts, len(steps))
            facts = (facts.after_a_change() if result.changed else facts).plus(result.facts)
            graph, anything = result.graph, anything or result.changed
            inner = result.steps or (Step(each, result.changed, result.report, result.facts),)
            steps += inner
        return PassResult(graph, anything, _sum_up(steps), facts, tuple(steps))

    def _one(self, each: Pass, graph: Graph, facts: Facts, place: int) -> PassResult:
        from . import invariants, trace
        from .facts import Source

        noted = invariants.note(each, graph) if self.check else {}
        before = trace.as_text(graph) if self.trace is not None else ""
        if isinstance(each, Pipeline):
            each = replace(each, check=each.check or self.check)
        result = each.run(graph, facts) if each.is_ours else _run_foreign(each, graph, facts)
        if self.check:
            invariants.hold(each, result.graph, noted)
        if self.trace is not None:
            source = facts.get(Source)
            trace.write(self.trace, place + 1, each, before, result, () if source is None else (source.path,))
        return result


def _check_kind(each: Pass, graph: object) -> None:
    kind = kind_of(graph)
    if kind not in each.takes:
        hint = " Put the pass 'export' before it." if kind == TORCH and each.takes == (ONNX,) else ""
        raise ConfigError(f"pass {each.name!r} takes a {' or a '.join(each.takes)}, found a {kind}.{hint}")


def _run_foreign(each: Pass, graph: Graph, facts: Facts) -> PassResult:
    """Runs a pass of the user's own: whatever it raises names its line, and what it returns is checked.

    Raises:
        RewriteError: it failed, or returned no result.
        ModelError: it left a graph that is not sound.
    """
    try:
        result = each.run(graph, facts)
    except LaurelError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's own code raises; sys.exit(0) would pass for success
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise RewriteError(
            f"pass {each.name!r} failed with {type(error).__name__}: {foreign_text(error)} "
            f"({place.filename}, line {place.lineno})."
        ) from error
    if not isinstance(result, PassResult):
        raise RewriteError(f"pass {each.name!r} returned {type(result).__name__}; expected a PassResult.")
    if kind_of(result.graph) == ONNX:
        from laurel_graph import soundness

        try:
            soundness.check(result.graph)
        except ModelError as error:
            raise ModelError(f"pass {each.name!r} left a graph that is not sound: {error}") from None
    return result


def _sum_up(steps: Sequence[Step]) -> Report:
    """Returns the reports of all steps as one; a counter is called ``pass.word``."""
    counters = {f"{step.ran.name}.{word}": n for step in steps for word, n in step.report.counters.items()}
    sites = tuple(site for step in steps for site in step.report.sites)
    notes = tuple(dict.fromkeys(note for step in steps for note in step.report.notes))
    return Report(counters, sites, notes)
