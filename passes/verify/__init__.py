"""Two models side by side on ONNX Runtime: the difference of every output and of every residual connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from laurel_graph import onnx_file
from laurel_graph.errors import ModelError
from laurel_graph.foreign_names import printable
from laurel_graph.onnx_model.walk import copy_of
from laurel_graph.opset.plain import with_nodes_put_back
from laurel_graph.opset.recover import is_deployed
from laurel_graph.opset.schema import METADATA_DEPLOYED, read_json
from laurel_graph.showing import Cell, Shown

from .check import Check, Findings
from .compare import MARGIN, Verdict
from .pair import Pair, Subject, Watched
from .tolerances import DEPLOYED, VERIFIED
from .watching import site_values, with_scales

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs
    from onnx import ModelProto

    from laurel_graph.passes.fold.fold import FoldReport


@dataclass(frozen=True)
class OutputDifference:
    """How far one output of two models is apart, at the channel that is furthest from what is allowed.

    Attributes:
        output: its name in the first model.
        dtype: its element type.
        shape: its shape on the last sample.
        max_abs: largest absolute difference over all samples; infinite where only one of the two is NaN.
        max_rel: largest difference of a channel over the channel's scale.
        same_bits: every element has the same bits.
        tolerance: what ``max_rel`` is held against: the tolerance, or eight times the model's own noise where that is
            more.
        noise: what the first model's output moves by when its numbers are moved by their last bits, or when ONNX
            Runtime optimises it or not, over the same scale.
        exact_rel: ``max_rel`` with ONNX Runtime's optimisation and rounding to integers off in both models.
        exact_tolerance: what that is held against.
        idle: on every sample it was empty, not finite or the same everywhere: being equal there says nothing.
    """

    output: str
    dtype: str
    shape: tuple[int, ...]
    max_abs: float
    max_rel: float
    same_bits: bool
    tolerance: float
    noise: float = 0.0
    exact_rel: float = 0.0
    exact_tolerance: float = 0.0
    idle: bool = False

    @property
    def vague(self) -> bool:
        """Whether noise alone makes the tolerance so large that being within it says little."""
        return MARGIN * self.noise > VAGUE and self.tolerance > VAGUE

    @property
    def equal(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.max_rel <= self.tolerance


@dataclass(frozen=True)
class SiteDifference(OutputDifference):
    """The same for a value inside both models; ``output`` is the value's name in the first one.

    Attributes:
        site: the residual connection that makes it, "" for a value that is stored at another scale.
    """

    site: str = ""


@dataclass(frozen=True, repr=False)
class VerifyReport(Shown):
    """What :func:`verify` found; true when the models are equal.

    Attributes:
        models: the two files.
        samples: how many samples were run.
        outputs: one difference per output, of the files as they are served.
        sites: one difference per residual connection that both models show, in graph order, per value that one of
            them stores at another scale, and per output of a body of If, Loop or Scan with residual connections; ONNX
            Runtime's optimisation and rounding to integers are off there.
        style: how the floats of the samples were drawn, "" for given data.
        situations: the situations that were compared (batches, prompt and step, padded or not); empty for given data.
        refused: the situations that were not, because the first model itself does not run in them, with its reason.
    """

    models: tuple[str, str]
    samples: int
    outputs: tuple[OutputDifference, ...]
    sites: tuple[SiteDifference, ...] = ()
    style: str = ""
    situations: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()

    columns_shown: ClassVar[tuple[str, ...]] = ("value", "max abs", "max rel", "allowed", "noise", "equal")

    def shown(self) -> list[str]:
        """Returns the verdict, the outputs and the sites in a line each, and the notes."""
        worst = max(self.outputs, key=lambda item: item.max_rel, default=None)
        verdict = "equal" if self.equal else "NOT equal"
        first = self.first_difference
        return [
            f"{self.models[0]} and {self.models[1]} are {verdict} on {self.samples} samples",
            f"{len(self.outputs)} outputs, at most {worst.max_rel:.3g} of the scale apart" if worst else "",
            self.summary,
            f"differs first at {getattr(first, 'site', '') or first.output}" if first is not None else "",
            *self.notes,
        ]

    def rows_shown(self) -> Sequence[Sequence[Cell]]:
        """Returns one row per output and per site."""
        return [
            (
                getattr(item, "site", "") or item.output,
                item.max_abs,
                item.max_rel,
                item.tolerance,
                item.noise,
                "yes" if item.equal else "no",
            )
            for item in (*self.outputs, *self.sites)
        ]

    @property
    def equal(self) -> bool:
        """Whether every output and every site is within its tolerance."""
        return all(item.equal for item in (*self.outputs, *self.sites))

    def __bool__(self) -> bool:
        return self.equal

    @property
    def first_difference(self) -> OutputDifference | None:
        """The first site, in graph order, that is not equal; else the first such output."""
        return next((item for item in (*self.sites, *self.outputs) if not item.equal), None)

    @property
    def counts(self) -> tuple[int, int]:
        """How many residual connections are equal, and of how many that were compared; each counts once."""
        verdicts: dict[str, bool] = {}
        for item in self.sites:
            if item.site:
                verdicts[item.site] = verdicts.get(item.site, True) and item.equal
        return sum(verdicts.values()), len(verdicts)

    @property
    def summary(self) -> str:
        """One line: how the residual connections compare; "" where the models show none."""
        equal, sites = self.counts
        if not sites:
            return ""
        worst = max(self.sites, key=lambda item: item.max_rel)
        others = sum(not item.site for item in self.sites)
        more = f", {others} more values compared" if others else ""
        where = worst.site or worst.output
        return f"{equal} of {sites} sites equal{more}, at most {worst.max_rel:.3g} of the scale apart (at {where})"

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences: what was not compared, and where a comparison is weak."""
        found = [
            f"not compared: {printable(at)}: the first model does not run there ({_first_line(reason)})"
            for at, reason in self.refused
        ]
        found += [
            f"{printable(item.output)}: nothing is proven at this output: on every sample it is empty, not finite, or "
            "the same everywhere"
            for item in self.outputs
            if item.idle
        ]
        weak = [item for item in self.outputs if item.vague]
        if sites := [item for item in self.sites if item.vague]:
            found.append(
                f"{_names(sites)}: own noise of {_noise(sites)} of the scale, so that these values say little; the "
                "outputs and the other sites have to"
            )
        if unproven := [item for item in weak if item.exact_tolerance > VAGUE]:
            found.append(
                f"{_names(unproven)}: own noise of {_noise(unproven)} of the scale, as served and without rounding to "
                f"integers too (apart by {_exact(unproven)}): nothing is proven there"
            )
        if proven := [item for item in weak if item.exact_tolerance <= VAGUE]:
            found.append(
                f"{_names(proven)}: as served, own noise of {_noise(proven)} of the scale, because activations are "
                "rounded to integers, between which a last bit decides; being within it says little. The proof: "
                f"without that rounding, what is furthest from what is allowed is apart by {_exact(proven)}"
            )
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form of ``laurel verify --json``."""
        outputs, sites = ([{**asdict(item), "equal": item.equal} for item in of] for of in (self.outputs, self.sites))
        return {
            "models": list(self.models),
            "samples": self.samples,
            "style": self.style,
            "situations": list(self.situations),
            "not_compared": [{"situation": at, "reason": reason} for at, reason in self.refused],
            "notes": list(self.notes),
            "equal": self.equal,
            "outputs": outputs,
            "sites": sites,
        }


def _names(items: Sequence[OutputDifference]) -> str:
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(printable(item.output) for item in items[:LISTED]) + more


def _noise(items: Sequence[OutputDifference]) -> str:
    return _between([item.noise for item in items])


def _exact(items: Sequence[OutputDifference]) -> str:
    """What was found without rounding, where it is nearest to what is allowed."""
    worst = max(items, key=lambda item: item.exact_rel / (item.exact_tolerance or 1.0))
    return f"{worst.exact_rel:.2g} of the scale, {worst.exact_tolerance:.2g} allowed"


def _between(numbers: Sequence[float]) -> str:
    low, high = f"{min(numbers):.2g}", f"{max(numbers):.2g}"
    return low if low == high else f"{low} to {high}"


LISTED = 5
"""How many outputs or sites a note names."""
VAGUE = 0.1
"""A tolerance beyond this share of the scale, owed to noise, is said aloud."""
_SHOWN = 200
"""Characters of ONNX Runtime's reason that a sentence shows."""


def _first_line(text: str) -> str:
    return printable(text.partition("\n")[0], _SHOWN)


def _difference(name: str, verdict: Verdict, exact: Verdict | None = None) -> OutputDifference:
    exact = exact or verdict
    return OutputDifference(
        name,
        verdict.dtype,
        verdict.shape,
        verdict.max_abs,
        verdict.max_rel,
        verdict.same_bits,
        verdict.allowed,
        verdict.noise,
        exact.max_rel,
        exact.allowed,
        verdict.idle and exact.idle,
    )


def _site_difference(item: Watched, verdict: Verdict) -> SiteDifference:
    return SiteDifference(**asdict(_difference(item.name, verdict)), site=item.site)


def report_of(models: tuple[str, str], findings: Findings) -> VerifyReport:
    """Returns what a check found as a report; of an output's two comparisons the worse one counts."""
    outputs = []
    for name, served in findings.outputs.items():
        algebra = findings.algebra[name]
        outputs.append(_difference(name, served if not served.equal or algebra.equal else algebra, algebra))
    sites = tuple(_site_difference(item, verdict) for item, verdict in findings.values.items())
    refused = tuple(findings.refused.items())
    return VerifyReport(models, findings.samples, tuple(outputs), sites, findings.style, findings.situations, refused)


def read_samples(path: str | Path) -> list[dict[str, NDArray[Any]]]:
    """Reads one sample from an ``.npz`` file whose arrays are named after the model's inputs.

    Raises:
        ModelError: missing, or not an ``.npz`` file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [{name: arrays[name] for name in arrays.files}]
    except FileNotFoundError:
        raise ModelError(f"{path}: no such data file; expected an .npz with one array per model input.") from None
    except (OSError, ValueError, AttributeError) as error:
        why = "it holds Python objects, or is no archive of arrays" if "pickle" in str(error) else str(error)
        raise ModelError(f"{path}: not an .npz file of arrays named after the model's inputs ({why}).") from error


def verify(
    model_a: str | Path | ModelProto | gs.Graph,
    model_b: str | Path | ModelProto | gs.Graph,
    data: str | Path | Sequence[Mapping[str, NDArray[Any]]] | None = None,
    *,
    tolerance: float | None = None,
    batches: Sequence[int] = (1, 7),
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    optimize: bool | tuple[bool, bool] = True,
) -> VerifyReport:
    """Runs two ONNX files (or model folders) on the same inputs and compares every output.

    Nodes that draw random numbers (of a variational or diffusion model) draw the same ones in both models, if their
    outputs have the same names.

    Args:
        model_a: the reference: an ONNX file, a ``ModelProto`` or a ``gs.Graph``.
        model_b: the other one; it must have the inputs and outputs of the first.
        data: an ``.npz`` file with one array per input, or samples in memory; ``None`` draws seeded ones in the
            first style that exercises every residual connection.
        tolerance: largest difference over a channel's scale that counts as equal; by default what
            :mod:`~laurel_graph.passes.verify.tolerances` says of two such files (1e-5 in float32 and float64, 2e-5 of a
            trained file and what was deployed of it, as when it was written; 5e-3 in float16, 4e-2 in bfloat16), or
            eight times the first model's own noise where that is more, and 0 for anything else.
        batches: the batch sizes of drawn samples (one only, where the model fixes it).
        seed: seed of drawn samples.
        sizes: sizes of symbolic dims of drawn samples.
        optimize: run with ORT's graph optimisations; a pair says it for each of the two.

    Raises:
        ModelError: a file cannot be read, inputs or outputs differ, a sample does not fit or holds no rows.
        VerificationError: no drawn sample exercises the model, so that nothing can be said without data.
    """
    from laurel_graph.passes.files import as_file

    with as_file(model_a) as path_a, as_file(model_b) as path_b:
        first, second = Subject(path_a, onnx_file.read(path_a)), Subject(path_b, onnx_file.read(path_b))
        pair = Pair(
            first,
            second,
            _watched(first, second),
            tolerance=tolerance,
            usual=DEPLOYED if _is_served(first, second) else VERIFIED,
            optimize=optimize if isinstance(optimize, tuple) else (optimize, optimize),
        )
        check = Check(pair)
        models = _called(model_a), _called(model_b)
        if data is None:
            return report_of(models, check.on_drawn(batches, seed, sizes))
        return report_of(models, check.on_data(read_samples(data) if isinstance(data, (str, Path)) else list(data)))


def _called(model: object) -> str:
    return str(model) if isinstance(model, (str, Path)) else type(model).__name__


def _watched(first: Subject, second: Subject) -> list[Watched]:
    """The residual connections that both models show; where the second is deployed, folding says at which scales."""
    sites = site_values(first.model, second.model)
    if _is_served(first, second):
        folded = _refolded(with_nodes_put_back(copy_of(first.model)), second.model, first.path.parent)
        return [item for item in with_scales(sites, folded, first.model, second.model) if item.is_site]
    return sites if is_deployed(first.model) == is_deployed(second.model) else []


def _is_served(first: Subject, second: Subject) -> bool:
    """Whether the second is what the first may have been deployed to."""
    return is_deployed(second.model) and not is_deployed(first.model)


def _refolded(trained: ModelProto, served: ModelProto, folder: Path) -> FoldReport:
    """Folds *trained*, in place, as it was folded when *served* was made of it, whose record says how."""
    from laurel_graph.passes.deploy.deploy import close_inputs, keep_needed_functions
    from laurel_graph.passes.fold.fold import RESCALE, fold

    record = read_json(served, METADATA_DEPLOYED)
    said = record.get("rescale") if isinstance(record, dict) else None
    close_inputs(trained)
    keep_needed_functions(trained, portable=False)
    return fold(trained, folder, rescale=said if isinstance(said, str) and said in RESCALE else RESCALE[0])
