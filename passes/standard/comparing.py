"""``verify``: the pass that holds the finished graph against the one that came in."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from laurel_graph.errors import ModelError
from laurel_graph.passes.base import NO_FACTS, Facts, Graph, Pass, PassResult, Report, SiteChange, option
from laurel_graph.passes.facts import Forms, Reference, Samples
from laurel_graph.passes.files import Written, as_file
from laurel_graph.passes.fold.fold import FoldReport
from laurel_graph.passes.invariants import NOTHING
from laurel_graph.passes.options import parse_sizes

if TYPE_CHECKING:
    from laurel_graph.passes.verify import VerifyReport
    from laurel_graph.passes.verify.pair import Subject


@dataclass(frozen=True)
class Verify(Pass, name="verify", requires=NOTHING, last=True, compares=True):
    """Compares with the graph that came in, at every residual and output, as the file lies on disk; stops otherwise."""

    data: Path | None = option(None, "an .npz with one array per input, in place of drawn samples")
    tolerance: float | None = option(None, "largest difference over a channel's scale; by default by element type")
    size: tuple[str, ...] = option((), "size of a symbolic dim of drawn samples, NAME=N")
    seed: int = option(0, "seed of drawn samples")

    def run(self, graph: Graph, facts: Facts = NO_FACTS) -> PassResult:
        """Compares; the graph stays as it is.

        Raises:
            VerificationError: it computes something else, or no sample exercises it.
            ModelError: there is nothing to compare with, or the data cannot be read.
        """
        reference, written = facts.get(Reference), facts.get(Written)
        if reference is None:
            raise ModelError(
                "verify has no original to compare with: run it on a file, or hand the fact Reference(model) in."
            )
        from laurel_graph.passes.verify.pair import Subject

        with ExitStack() as stack:  # what lies in no file is put into one
            if written is not None:
                path, lies_there = written.write(graph)
            else:
                path, lies_there = stack.enter_context(as_file(graph)), graph
            before = stack.enter_context(as_file(reference.path or reference.model))
            found = self._compare(Subject(before, reference.model), Subject(path, lies_there), facts)
        sites = tuple(
            SiteChange(each.site or each.output, "equal", f"{each.max_rel:.3g} of {each.tolerance:.3g} allowed")
            for each in found.sites
        )
        counters = {"samples": found.samples, "sites": len(found.sites), "outputs": len(found.outputs)}
        return PassResult(graph, False, Report(counters, sites, found.notes, found))

    def _compare(self, first: Subject, second: Subject, facts: Facts) -> VerifyReport:
        from laurel_graph.passes.deploy.deploy import check_deployed
        from laurel_graph.passes.verify import read_samples

        given = facts.get(Samples) or Samples()
        samples = given.feeds if self.data is None else read_samples(self.data)
        folded, forms = facts.get(FoldReport) or FoldReport(), facts.get(Forms) or Forms()
        altered = {name for form in forms.sites for name in form.altered}
        return check_deployed(
            first,
            second,
            folded,
            altered,
            samples=samples,
            tolerance=self.tolerance,
            seed=self.seed,
            sizes={**given.sizes, **parse_sizes(self.size, "size")},
        )
