"""Transforms, trains and deploys (or imports) one random network and compares every value with the oracle."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from laurel_graph.errors import LaurelError, VerificationError
from laurel_graph.onnx_model.walk import captured_names, copy_of
from laurel_graph.passes.deploy.costs import CostModel
from laurel_graph.passes.deploy.deploy import deploy
from laurel_graph.passes.pipeline import transform
from laurel_graph.tools.robustness.random_networks.files import Imported, deployed_file

from .distances import TOLERANCE, choice_distance, distance
from .generate import Case, draw
from .oracle import values_of
from .runner import Runner, rounded_anew
from .staging import differences, form_differences
from .trained import train

Array = NDArray[Any]

ROUTES = ("memory", "file", "import", "stages", "forms")
"""``deploy`` of a model in memory, ``deploy_file`` with verification, ``import_onnx`` of the trained file;
``stages``: the transformation alone, at once, in stages, in any order and twice; ``forms``: plain nodes and back."""

CLEARLY, DRAWS = 3.0, 15
"""Below so many times of what is allowed, a difference is judged again, with the noise measured so many times more."""

FORMS = ("default", "operator", "widened", "chained", "absorbed")


@dataclass(frozen=True)
class Outcome:
    """What became of one deployment of one network.

    Attributes:
        seed: the network.
        portable: whether the portable form was made.
        verdict: ``right``, ``kept`` (right, with an α or β in plain form), ``refused`` (a LaurelError), ``mistrusted``
            (verification refused a file that is right), ``wrong``, ``crashed`` or ``skipped`` (the trained network
            does not run, or is not finite).
        detail: what was refused, wrong or crashed.
        worst: the largest difference over what was allowed.
    """

    seed: int
    portable: bool
    verdict: str
    detail: str = ""
    worst: float = 0.0


def check(seed: int, kind: str | None = None, route: str = "memory") -> list[Outcome]:
    """Returns the outcomes of the network of *seed*.

    Args:
        seed: any number.
        kind: element type of the network, or ``quantised``; drawn by default.
        route: one of :data:`ROUTES`. Deployment has two outcomes, fused and portable; import has two as well, with
            the results of the sites as outputs and without.
    """
    case = draw(seed, kind)
    if route in _COMPARED:
        return [_compared(case, _COMPARED[route])]
    try:
        trained = transform(case.model, case.config, run=False).model
    except LaurelError as error:
        return [Outcome(seed, False, "refused", _line(error))]
    except Exception as error:
        return [Outcome(seed, False, "crashed", f"transform: {_where(error)}")]
    train(trained, case.rng)
    runs = [*case.feeds, *([{**case.feeds[0], **case.given}] if case.given else [])]
    try:
        runners = [Runner(trained, optimize) for optimize in _levels(case)]
        runners += [] if case.kind == "quantised" else [Runner(rounded_anew(trained, case.rng), False)]
        truths = [_truth(trained, feeds, runners) for feeds in runs]
    except Exception as error:
        return [Outcome(seed, False, "skipped", _where(error))]
    if not all(truth.finite for truth in truths):
        return [Outcome(seed, False, "skipped", "the trained network is not finite")]
    if case.kind in ("float32", "float64") and (name := next((t.doubtful for t in truths if t.doubtful), "")):
        op = next(node.op_type for node in trained.graph.node if name in node.output)
        return [Outcome(seed, False, "skipped", f"ONNX Runtime and the oracle disagree on the trained network: {op}")]
    form = str(case.rng.choice(FORMS))
    costs = None if form == "default" else CostModel.only(form)

    def judged(truths: Sequence[Truth]) -> list[Outcome]:
        network = Trained(case, trained, truths, runs)
        if route == "import":
            return [_imported(network, sites) for sites in (False, True)]
        return [_deployed(network, portable, costs, route == "file") for portable in (False, True)]

    found = judged(truths)
    if case.kind != "quantised" and any(o.verdict == "wrong" and o.worst < CLEARLY for o in found):
        # one draw of the noise says little where a last bit moves all that follows it
        runners += [Runner(rounded_anew(trained, case.rng), False) for _ in range(DRAWS)]
        found = judged([_truth(trained, feeds, runners) for feeds in runs])
    return found


_COMPARED: Mapping[str, Callable[[Case], str]] = {"stages": differences, "forms": form_differences}
"""Route to what holds two ways against each other."""


def _compared(case: Case, compare: Callable[[Case], str]) -> Outcome:
    try:
        found = compare(case)
    except LaurelError as error:
        return Outcome(case.seed, False, "refused", _line(error))
    except Exception as error:
        return Outcome(case.seed, False, "crashed", _where(error))
    return Outcome(case.seed, False, "wrong" if found else "right", found)


@dataclass(frozen=True)
class Truth:
    """The trained network on one sample.

    Attributes:
        values: its values in float64.
        noise: how far ONNX Runtime is from them, optimised, not optimised, and with each weight one unit in the last
            place off, as weights are that were scaled and rounded again.
        finite: whether all that is.
    """

    values: Mapping[str, Array]
    noise: Mapping[str, Array]
    finite: bool

    @property
    def doubtful(self) -> str:
        """The first value on which ONNX Runtime and the oracle are a thousandth of its size apart, or ""."""
        far = (name for name, noise in self.noise.items() if noise.max() > 1e-3 * np.abs(self.values[name]).max())
        return next(far, "")


@dataclass(frozen=True)
class Trained:
    """A trained network and what it computes.

    Attributes:
        case: how it was drawn.
        model: the network.
        truths: what it computes on each of *runs*.
        runs: samples.
    """

    case: Case
    model: onnx.ModelProto
    truths: Sequence[Truth]
    runs: Sequence[Mapping[str, Array]]

    @property
    def external(self) -> bool:
        """Whether its file keeps the weights in another file: every second one does."""
        return self.case.seed % 2 == 1


def _levels(case: Case) -> tuple[bool, ...]:
    """Without and with ONNX Runtime's optimisation, whose integer kernels saturate on some processors."""
    return (False,) if case.kind == "quantised" else (False, True)


def _truth(trained: onnx.ModelProto, feeds: Mapping[str, Array], runners: Sequence[Runner]) -> Truth:
    exact = values_of(trained, feeds)
    noise: dict[str, Array] = {}
    finite = all(np.isfinite(v).all() for v in exact.values() if v.dtype.kind == "f")
    for runner in runners:
        for name, value in runner(feeds).items():
            if name not in exact or exact[name].dtype.kind != "f":
                continue
            error = np.abs(np.asarray(value, np.float64) - exact[name])
            finite = finite and bool(np.isfinite(error).all())
            noise[name] = np.maximum(noise.get(name, 0.0), error)
    return Truth(exact, noise, finite)


def _deployed(network: Trained, portable: bool, costs: CostModel | None, through_file: bool) -> Outcome:
    seed, kind = network.case.seed, network.case.kind
    try:
        if through_file:
            model, report = deployed_file(network.model, portable, costs, network.external)
        else:
            model = copy_of(network.model)
            report = deploy(model, portable=portable, costs=costs)
    except VerificationError as error:
        right = _deployed(network, portable, costs, False).verdict in ("right", "kept")
        return Outcome(seed, portable, "mistrusted" if right else "refused", _line(error))
    except LaurelError as error:
        return Outcome(seed, portable, "refused", _line(error))
    except Exception as error:
        return Outcome(seed, portable, "crashed", _where(error))
    altered = {name for form in report.forms for name in form.altered}
    outcome = _judged(network, portable, lambda: [Runner(model, level) for level in _levels(network.case)],
                      report.fold.scales, altered, kind)  # fmt: skip
    kept = any("kept" in (site.alpha, site.beta) for site in report.fold.sites)
    return replace(outcome, verdict="kept") if kept and outcome.verdict == "right" else outcome


def _imported(network: Trained, sites: bool) -> Outcome:
    """The trained file as a torch module. It takes no weights as inputs, and computes 16-bit files in float32."""
    case = network.case
    shown = replace(network, runs=network.runs[: len(case.feeds)])
    try:
        module = Imported(network.model, sites, network.external)
    except LaurelError as error:
        return Outcome(case.seed, False, "refused", _line(error))
    except Exception as error:
        return Outcome(case.seed, False, "crashed", _where(error))
    return _judged(shown, False, lambda: [module], {}, set(), case.kind)


def _judged(
    network: Trained,
    portable: bool,
    runners: Callable[[], Sequence[Callable[[Mapping[str, Array]], Mapping[str, Array]]]],
    scales: Mapping[str, Array],
    altered: set[str],
    kind: str,
) -> Outcome:
    """Runs what was made of the network on all samples and compares every value that both have."""
    seed, graph = network.case.seed, network.model.graph
    try:
        runs = zip(network.truths, network.runs, strict=False)
        made = runners()
        results = [(truth, run(feeds)) for truth, feeds in runs for run in made]
    except Exception as error:
        return Outcome(seed, portable, "crashed", f"running it: {_line(error)}")
    worst, detail = 0.0, ""
    for truth, found in results:
        if missing := [o.name for o in graph.output if o.name not in found]:
            return Outcome(seed, portable, "wrong", f"output {missing[0]!r} is gone")
        far, name = _worst(graph, scales, altered, truth, found, kind)
        worst, detail = (far, name) if far > worst else (worst, detail)
    return Outcome(seed, portable, "wrong" if worst > 1 else "right", detail, worst)


def _worst(
    graph: onnx.GraphProto,
    scales: Mapping[str, Array],
    altered: set[str],
    truth: Truth,
    found: Mapping[str, Array],
    kind: str,
) -> tuple[float, str]:
    """Returns the largest difference over what is allowed, and the value that has it.

    Where a comparison or an ArgMax falls the other way on a near tie, what hangs on it is not compared.
    """
    loose: set[str] = set()
    worst, which = 0.0, ""
    for node in graph.node:
        if loose & {*node.input, *captured_names(node)}:
            loose.update(node.output)
            continue
        for name in node.output:
            exact, value = truth.values.get(name), found.get(name)
            if exact is None or value is None or name in altered:
                continue
            if exact.dtype.kind == "f":
                true = np.asarray(value, np.float64) * scales.get(name, 1.0)
                far = distance(true, exact, truth.noise.get(name, np.zeros(1)), kind)
            elif value.shape == exact.shape and (value == exact).all():
                continue
            else:
                far = choice_distance(node, value, exact, truth.values, TOLERANCE[kind])
                loose.add(name)
            if not far <= worst:
                worst, which = (far, name) if np.isfinite(far) else (1e30, name)
    return worst, which


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _where(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{_line(error)} ({frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name})"
