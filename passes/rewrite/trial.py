"""A model on ONNX Runtime, on one sample: before it is rewritten, to see what its values are, and afterwards.

Cost: one session of the model as it was, without optimisation, which shows the values at its sites; one of the
rewritten model with the fused kernels and one without. What the model's own noise is, is measured only where the
outputs differ by more than rounding, or where an operator that hides an add comes apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto

from laurel_graph import onnx_file, runtime
from laurel_graph.errors import ModelError, VerificationError
from laurel_graph.graph_view import Dim
from laurel_graph.onnx_model.shape_rules import Types
from laurel_graph.onnx_model.shapes import tensor_types
from laurel_graph.onnx_model.walk import copy_of
from laurel_graph.passes.bodies.alone import alone, bodies_in, first_step, needed
from laurel_graph.passes.verify.compare import EPSILON, Comparison, Verdict
from laurel_graph.passes.verify.precision import half_type
from laurel_graph.passes.verify.probe import bring_out, made_in, nudged, open_vectors, random_nodes
from laurel_graph.passes.verify.quantisers import rounds_activations, rounds_inside_kernels, unrounded
from laurel_graph.passes.verify.tolerances import VERIFIED
from laurel_graph.samples import BATCH, SEQUENCE, Sampler, Situation

from .sessions import Array, Sample, Seen, array_of, first_line, opened, run_on, seen_of

if TYPE_CHECKING:
    import onnxruntime

_BATCHES = (2, BATCH)
"""Batch sizes of the sample, the preferred one first: two rows tell a batch from a size of 1."""

_LENGTHS = (SEQUENCE, 8, 4, 2, 1)
_OTHER = (3, 11)
"""Batch and length of a second sample, which tells sizes that stay from those that follow the input."""

_DRAWS = 3
_ULPS = 2.0


class Trial:
    """The model as it was, on ONNX Runtime.

    Args:
        model: the model; it is copied.
        folder: where its external weights lie, ``None`` for a model without.
        values: names of values to look at, scoped in bodies; those that are none of the model's are left out.
        sample: what to run it on; by default one is drawn.

    Attributes:
        seen: value to what a run showed; empty where the model does not run.
        note: why it does not, or "".
        inner: path to the trial of a body that holds some of the values, which runs by itself.
    """

    def __init__(
        self, model: ModelProto, folder: Path | None, values: Sequence[str], sample: Sample | None = None
    ) -> None:
        self._model, self._folder = copy_of(model), folder
        self._sampler: Sampler | None = None
        self._sample: Sample = {}
        self._other: Sample = {}
        self._bodies = {
            path: body for path, body in bodies_in(self._model).items() if any(v.startswith(path) for v in values)
        }
        self.inner: dict[str, Trial] = {}
        self._outputs: dict[str, Array] = {}
        self._noise: list[dict[str, Array]] | None = None
        self._opened = False
        self.seen: dict[str, Seen] = {}
        self.note = ""
        self._values = _shown(model, values)
        self._session: onnxruntime.InferenceSession | None = None
        try:
            self._session = self._probe()
            self._opened = True
            if sample is None:
                self._sampler = Sampler(model)
                self._run_first()
            else:
                self._keep(sample, run_on(self._session, sample))
        except ModelError as error:
            what = "does not run on a drawn sample" if self._opened else "does not open"
            done = "rewritten files were opened, and not run" if self._opened else "nothing was run"
            self.note = f"the model itself {what} on this ONNX Runtime, so that {done}: {first_line(error)}"
        self._look_inside(values)

    def _look_inside(self, values: Sequence[str]) -> None:
        """Runs each body that holds some of *values* by itself, whether the model runs it on the sample or not."""
        for path, body in self._bodies.items() if self._sample else ():
            feeds = first_step(self._model, body, self._around)
            if feeds is None:
                self.note = f"the body {path[:-1]} cannot be run by itself, so that nothing in it was run"
                continue
            names = [value[len(path) :] for value in values if value.startswith(path)]
            child = self.inner[path] = Trial(alone(self._model, body, feeds), self._folder, names, feeds)
            self.seen.update((path + name, seen) for name, seen in child.seen.items())
            if child.note:
                self.note = f"in the body {path[:-1]}: {child.note}"

    # ---- the model as it was ------------------------------------------------------------------------------------

    def _probe(self) -> onnxruntime.InferenceSession:
        probe = copy_of(self._model)
        bring_out(probe, [*self._values, *self._needed()])
        return opened(probe, self._folder, optimize=False, kernels=True)

    def _needed(self) -> list[str]:
        names = [name for body in self._bodies.values() for name in needed(self._model, body)]
        inputs = {value.name for value in self._model.graph.input}
        return [name for name in dict.fromkeys(names) if name not in inputs]

    def _arrays(self, sample: Sample, found: Mapping[str, Any]) -> dict[str, Array]:
        """The values around the bodies, as a run on *sample* gave them."""
        names = [*self._needed(), *self._values] if self._bodies else []  # earlier skips may enter a body, too
        arrays = {name: array for name in names if (array := array_of(found.get(name))) is not None}
        return {**sample, **arrays}

    def _keep(self, sample: Sample, found: Mapping[str, Any]) -> None:
        """Keeps what a run on the first sample showed."""
        self._sample, self._around = sample, self._arrays(sample, found)
        outputs = [value.name for value in self._model.graph.output]
        self._outputs = {name: array for name in outputs if (array := array_of(found.get(name))) is not None}
        self.seen = {name: seen for name in self._values if (seen := seen_of(found.get(name))) is not None}

    def _run_first(self) -> None:
        assert self._sampler is not None
        refused: ModelError | None = None
        for at in self._situations():
            sample = self._sampler.draw(at)
            try:
                found = run_on(self._session, sample)
            except ModelError as error:
                refused = refused or error
                continue
            self._keep(sample, found)
            return
        raise refused or ModelError("no sample can be drawn")

    def _situations(self) -> Iterator[Situation]:
        """Situations to try, each once: two rows, then one, at the usual length, then at shorter ones."""
        assert self._sampler is not None
        tried = []
        for length in _LENGTHS:
            for kind in self._sampler.kinds:
                for batch in _BATCHES:
                    at = self._sampler.situation(kind, batch, length=length)
                    if at.shapes_key not in tried:
                        tried.append(at.shapes_key)
                        yield at

    def known(self) -> Types:
        """Returns shapes and types for detection: what inference says, and what a run says where that is silent.

        A size that inference leaves open is known where it is the same on a second sample of other sizes.
        """
        types, again = tensor_types(self._model)[0], self._second()
        found: Types = {}
        for name, seen in self.seen.items():
            if name not in self._values:
                continue
            stated = types.get(name, (None, None))[0]
            if stated is None or len(stated) != len(seen.shape):
                stated = (None,) * len(seen.shape)
            other = again.get(name)
            firm = other.shape if other is not None and len(other.shape) == len(seen.shape) else (None,) * len(stated)
            dims: list[Dim] = []
            for said, size, second in zip(stated, seen.shape, firm, strict=True):
                dims.append(size if isinstance(said, int) or size == second else said)
            found[name] = tuple(dims), seen.dtype
        for path, child in self.inner.items():
            found.update((path + name, known) for name, known in child.known().items())
        return found

    def _second(self) -> Mapping[str, Seen]:
        """What a sample of other sizes shows; the same as the first one where the model leaves no size open."""
        sample = self._other
        if self._sampler is not None:
            batch, length = _OTHER
            at = self._sampler.situation(self._sampler.kinds[0], batch, length=length)
            sample = self._sampler.draw(at, seed=1)
        if not sample:
            return {}
        if all(array.shape == self._sample[name].shape for name, array in sample.items()):
            return self.seen
        try:
            found = run_on(self._session, sample)
        except ModelError:
            return {}
        around = self._arrays(sample, found)
        for path, child in self.inner.items():
            child._other = first_step(self._model, self._bodies[path], around) or {}
        return {name: seen for name in self._values if (seen := seen_of(found.get(name))) is not None}

    def release(self) -> None:
        """Closes the session of the model as it was."""
        self._session = None
        for child in self.inner.values():
            child.release()

    # ---- the rewritten model ------------------------------------------------------------------------------------

    def check(self, rewritten: ModelProto | Path, fused: Sequence[str] = (), folder: Path | None = None) -> str:
        """Opens the rewritten model, with the fused kernels and without, and runs it on the sample.

        Bodies in which something was rewritten are run by themselves, too.

        Args:
            rewritten: the model, or the file as it will be served.
            fused: sites at which an operator came apart that hid the add.
            folder: where the external weights of a rewritten model lie, if not where those of the model do.

        Returns:
            A sentence for the user where the outputs differ by more than nothing because operators came apart, else "".

        Raises:
            VerificationError: it does not open, does not run, or its outputs are further from those of the model as it
                was than that model's own noise; naming which of the two forms it was.
        """
        if not self._opened:
            return ""
        told = self._check_inside(rewritten, fused, folder)
        return self._check_whole(rewritten, fused, folder) or told

    def _check_inside(self, rewritten: ModelProto | Path, fused: Sequence[str], folder: Path | None) -> str:
        """Holds every body that was run by itself against what stands in its place now."""
        if not self.inner:
            return ""
        after = onnx_file.read(rewritten) if isinstance(rewritten, Path) else rewritten
        home = rewritten.parent if isinstance(rewritten, Path) else folder
        there, told = bodies_in(after), ""
        for path, child in self.inner.items():
            feeds = first_step(after, there[path], self._around)
            if feeds is None:
                raise VerificationError(
                    f"the body {path[:-1]} of the rewritten model cannot be run by itself, as that of the model as it "
                    "was can. Nothing was written."
                )
            child._sample = {**child._sample, **feeds}
            told = child.check(alone(after, there[path], child._sample), fused, home) or told
        return told

    def _check_whole(self, rewritten: ModelProto | Path, fused: Sequence[str], folder: Path | None) -> str:
        verdicts = self._verdicts(rewritten, fused, folder)
        plain = self._without_rounding(rewritten, fused) if fused else None
        if plain is not None:
            return _told(plain, fused) + _rounds(verdicts)
        return _told(verdicts, fused) if fused and verdicts else ""

    def _without_rounding(self, rewritten: ModelProto | Path, fused: Sequence[str]) -> Mapping[str, Verdict] | None:
        """How far copies of both that do not round activations are apart; ``None`` where the model rounds none."""
        if not self._sample or not rounds_inside_kernels(self._model):
            return None
        folder = rewritten.parent if isinstance(rewritten, Path) else self._folder
        after = onnx_file.read(rewritten) if isinstance(rewritten, Path) else rewritten
        trial = Trial(unrounded(self._model), self._folder, (), self._sample if self._sampler is None else None)
        trial.release()
        return trial._verdicts(unrounded(after), fused, folder) if trial._opened and trial._sample else None

    def _verdicts(
        self, rewritten: ModelProto | Path, fused: Sequence[str], folder: Path | None = None
    ) -> Mapping[str, Verdict]:
        comparisons = {name: Comparison() for name in self._outputs}
        forms = [("with the function bodies", False)]
        if runtime.library_path() is not None:
            forms.append(("with the fused kernels", True))
        for form, kernels in forms:
            try:
                session = opened(rewritten, folder or self._folder, optimize=True, kernels=kernels)
                found = run_on(session, self._sample) if self._sample else {}
            except ModelError as error:
                raise VerificationError(
                    f"the rewritten model does not run {form}, the model as it was does: {first_line(error)} Nothing "
                    "was written."
                ) from error
            for name, comparison in comparisons.items():
                if (array := array_of(found.get(name))) is not None:
                    comparison.add(*self._comparable(self._outputs[name], array))
            del session, found  # a second one need not lie beside it
        return self._judge(comparisons, fused)

    def _comparable(self, expected: Array, actual: Array) -> tuple[Array, Array]:
        """Both arrays; of a model that draws random numbers the shapes alone are compared."""
        if random_nodes(self._model) and expected.shape == actual.shape:
            return expected, expected
        return expected, actual

    def _judge(self, comparisons: Mapping[str, Comparison], fused: Sequence[str]) -> Mapping[str, Verdict]:
        half = half_type(self._model)
        allowed = {name: self._tolerance(self._outputs[name], half) for name in comparisons}
        verdicts = {name: comparison.verdict(allowed[name]) for name, comparison in comparisons.items()}
        if self._sample and (fused or not all(verdict.equal for verdict in verdicts.values())):
            noise = self._measured(half)
            for name, comparison in comparisons.items():
                for moved in noise:
                    if name in moved:
                        comparison.add_noise(self._outputs[name], moved[name])
            quantum = float(rounds_activations(self._model))
            verdicts = {name: c.verdict(allowed[name], quantum=quantum) for name, c in comparisons.items()}
        wrong = [name for name, v in verdicts.items() if not v.equal and not self._changes_shape(name)]
        if wrong:
            worst = max(wrong, key=lambda name: verdicts[name].max_rel)
            hint = " Keep the operators that hide an add (--keep-fused)." if fused else ""
            raise VerificationError(
                f"output {worst!r} of the rewritten model differs from that of the model as it was by "
                f"{verdicts[worst].max_rel:.3g} of its scale; its own noise allows {verdicts[worst].allowed:.3g}. "
                f"Nothing was written.{hint}"
            )
        return verdicts

    def _tolerance(self, array: Array, half: str) -> float:
        tolerance = VERIFIED.get(array.dtype.name, 0.0)
        return max(tolerance, VERIFIED[half]) if half and array.dtype.name in EPSILON else tolerance

    def _measured(self, half: str) -> list[dict[str, Array]]:
        """The outputs of the model as it was, optimised, and with its numbers moved by their last bits."""
        if self._noise is None:
            self._noise = []
            rng = np.random.default_rng(0)
            served = opened(self._model, self._folder, optimize=True, kernels=True)
            self._add_noise(served, self._sample)
            del served
            moving = copy_of(self._model)
            vectors = open_vectors(moving, self._folder or Path())
            session = opened(moving, self._folder, optimize=True, kernels=True)
            coarse = EPSILON[half] / (2 * _ULPS) if half else 0.0
            for _ in range(_DRAWS):
                self._add_noise(session, nudged({**vectors, **self._sample}, _ULPS, rng, coarse))
        return self._noise

    def _add_noise(self, session: onnxruntime.InferenceSession, sample: Sample) -> None:
        assert self._noise is not None
        found = run_on(session, sample)
        self._noise.append({name: array for name in self._outputs if (array := array_of(found[name])) is not None})

    def _changes_shape(self, name: str) -> bool:
        """Whether the model's own noise changes how long an output is: durations that are rounded, choices by score."""
        shape = self._outputs[name].shape
        return any(name in moved and moved[name].shape != shape for moved in self._noise or ())


def _told(verdicts: Mapping[str, Verdict], fused: Sequence[str]) -> str:
    far, noise = _largest(verdicts)
    return (
        f"{len(fused)} operators that hid an add came apart, which rounds in another order: on the sample, outputs "
        f"start within {far:.2g} of their scale; the file's own noise, which a last bit of its numbers moves, is "
        f"{noise:.2g}. --keep-fused leaves such sites alone."
    )


def _rounds(verdicts: Mapping[str, Verdict]) -> str:
    far, noise = _largest(verdicts)
    return (
        " That is without the rounding of activations to 8 bits that the file asks for (accuracy_level). With it, last "
        f"bits move the outputs of the original itself by {noise:.2g} of their scale, and the rewritten file is "
        f"{far:.2g} from it: such files are not reproducible more closely, on one machine or from one to another."
    )


def _largest(verdicts: Mapping[str, Verdict]) -> tuple[float, float]:
    """The largest difference, and the largest noise."""
    return max([v.max_rel for v in verdicts.values()] or [0.0]), max([v.noise for v in verdicts.values()] or [0.0])


def _shown(model: ModelProto, values: Sequence[str]) -> list[str]:
    """Those of *values* that the main graph has, but for its inputs' own."""
    made = made_in(model)
    return [name for name in dict.fromkeys(values) if name in made]
