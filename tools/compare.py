"""Several adapters or files of one base side by side: what each rewrote, what it learned, what it costs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from laurel_graph import onnx_file
from laurel_graph.adapters import WEIGHTS, Adapter, read_adapter
from laurel_graph.errors import AdapterError, ConfigError, ModelError
from laurel_graph.fingerprint import Fingerprint, compare
from laurel_graph.fingerprint.from_onnx import of_model
from laurel_graph.model_folder import folder_files, graph_path, is_folder
from laurel_graph.opset.recover import is_deployed
from laurel_graph.opset.schema import PREFIX, tensor_name
from laurel_graph.outputs.models import model_files
from laurel_graph.passes.deploy.untrained import is_untrained
from laurel_graph.passes.pipeline import inspect
from laurel_graph.showing import Cell, Shown

from .page.facts import Curve, SiteRow, Training, learned, read_training, site_row
from .report import site_tensors

if TYPE_CHECKING:
    from .page.facts import Tensors

ADAPTERS = (".safetensors", ".onnx_adapter")


@dataclass(frozen=True)
class Candidate:
    """One of the things that are compared.

    Attributes:
        name: its file name, with folders in front where two have the same.
        state: ``adapter``, ``plain``, ``transformed`` (still at its start), ``trained`` or ``deployed``.
        joins: how many residual connections the graph has; ``None`` of an adapter, which has no graph.
        rewritten: how many of them are LAuReL residuals; of a deployed file, how many of these are operators still.
        rows: its sites in numbers, in depth order; empty for a deployed file, whose tensors are folded.
        curves: what it learned, by its own depth.
        parameters: the LAuReL parameters that it has.
        multiplications: for one row of features, before folding; ``None`` of a deployed file.
        size: bytes of its files.
        training: how training went, where that was given.
    """

    name: str
    state: str
    joins: int | None
    rewritten: int
    rows: tuple[SiteRow, ...]
    curves: tuple[Curve, ...]
    parameters: int
    multiplications: int | None
    size: int
    training: Training | None = None

    @property
    def variants(self) -> dict[str, int]:
        """Variant to how many sites have it."""
        return dict(Counter(row.variant for row in self.rows))

    @property
    def ranks(self) -> str:
        """Its rank, or the lowest and the highest one."""
        ranks = sorted({row.rank for row in self.rows if row.rank})
        return "" if not ranks else str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} – {ranks[-1]}"

    @property
    def sites(self) -> str:
        """How much of it is rewritten, as text."""
        return str(self.rewritten) if self.joins is None else f"{self.rewritten}/{self.joins}"

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        went = self.training
        return {
            "model": self.name,
            "state": self.state,
            "joins": self.joins,
            "rewritten": self.rewritten,
            "variants": self.variants,
            "parameters": self.parameters,
            "multiplications": self.multiplications,
            "bytes": self.size,
            "learned": {
                curve.name: {
                    "start": curve.start,
                    "mean": curve.mean,
                    "furthest": curve.furthest,
                    "site": self.rows[curve.furthest_at].site,
                }
                for curve in self.curves
            },
            "training": None
            if went is None
            else {"metric": went.name, "before": went.before, "after": went.after, "loss": list(went.loss)},
        }


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """What :func:`compare_models` found.

    Attributes:
        candidates: what was compared, as given.
        sites: every site of any of them, in depth order.
        places: for each candidate the places among *sites* of its own.
        notes: sentences: what could not be told, how sites were matched.
    """

    candidates: tuple[Candidate, ...]
    sites: tuple[str, ...]
    places: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...]

    columns_shown: ClassVar[tuple[str, ...]] = ("model", "state", "sites", "variant", "rank", "parameters", "bytes")

    def shown(self) -> list[str]:
        """Returns one line per candidate, and the notes."""
        lines = [
            f"{each.name}: {each.state}, {each.sites} sites, {each.parameters:,} parameters, {each.size:,} bytes"
            for each in self.candidates
        ]
        return [f"{len(lines)} of one base", *lines, *self.notes]

    def rows_shown(self) -> Sequence[Sequence[Cell]]:
        """Returns one row per candidate."""
        return [
            (each.name, each.state, each.sites, ", ".join(each.variants), each.ranks, each.parameters, each.size)
            for each in self.candidates
        ]

    @property
    def quantities(self) -> dict[str, float]:
        """What any of them learned, and where it starts."""
        return {curve.name: curve.start for each in self.candidates for curve in each.curves}

    def learned(self) -> list[tuple[str, ...]]:
        """Returns for each candidate that learned anything its name and the mean distances of :attr:`quantities`."""
        rows = []
        for each in self.candidates:
            if each.curves:
                means = {curve.name: f"{curve.mean:.3g}" for curve in each.curves}
                rows.append((each.name, *(means.get(name, "") for name in self.quantities)))
        return rows

    def by_site(self) -> list[tuple[str, ...]]:
        """Returns for each site its name and what each candidate with sites (:attr:`with_sites`) has there."""
        cells = [
            dict(zip(at, each.rows, strict=True))
            for at, each in zip(self.places, self.candidates, strict=True)
            if each.rows
        ]
        return [
            (site, *(_told(rows[place]) if place in rows else "" for rows in cells))
            for place, site in enumerate(self.sites)
        ]

    @property
    def with_sites(self) -> list[str]:
        """The names of the candidates whose sites are known."""
        return [each.name for each in self.candidates if each.rows]

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form of ``laurel compare --json``."""
        names = [each.name for each in self.candidates]
        sites = []
        for place, site in enumerate(self.sites):
            held = {}
            for name, at, each in zip(names, self.places, self.candidates, strict=True):
                if place in at:
                    depth = at.index(place)
                    values = {c.name: v for c in each.curves for d, v, _ in c.points if d == depth}
                    row = each.rows[depth]
                    held[name] = {"variant": row.variant, "rank": row.rank, "parameters": row.parameters, **values}
            sites.append({"site": site, "models": held})
        return {"models": [each.to_dict() for each in self.candidates], "sites": sites, "notes": list(self.notes)}


def _told(row: SiteRow) -> str:
    parts = (("α", row.alpha), ("β", row.beta), ("AB", row.product), ("γ", row.gamma), ("", row.others))
    return f"{row.variant}: " + " ".join(f"{name} {value}".strip() for name, value in parts if value)


def compare_models(models: Sequence[str | Path], *, training: Sequence[str | Path] = ()) -> Comparison:
    """Holds adapters, transformed, trained and deployed files of one base side by side.

    Args:
        models: ``.safetensors`` adapters, ``.onnx`` files or model folders, two at least.
        training: what ``laurel finetune --json`` printed of some of them; each goes to the file that it wrote.

    Raises:
        ModelError: a file cannot be read, or two have different bases.
        AdapterError: an adapter cannot be read.
        ConfigError: fewer than two, or one twice, or a training of none of them.
        DataError: a training is something else.
    """
    paths = [Path(model) for model in models]
    if len(paths) < 2:
        raise ConfigError(f"compare needs two files at least, found {len(paths)}; `laurel report` shows one.")
    names, twice = _names(paths), Counter(path.resolve() for path in paths)
    for path in paths:
        if twice[path.resolve()] > 1:
            raise ConfigError(f"{path} was given twice: expected files that differ.")
    read = [_read(path, name) for path, name in zip(paths, names, strict=True)]
    notes = _check_bases(paths, [base for _, base in read], [candidate for candidate, _ in read])
    candidates = _with_training([candidate for candidate, _ in read], paths, training)
    sites, places, matched = _matched(candidates)
    for each in candidates:
        if each.state == "deployed":
            notes.append(f"{each.name} is deployed: what it learned is folded into its weights and cannot be shown.")
    return Comparison(tuple(candidates), tuple(sites), tuple(places), (*notes, *matched))


def _names(paths: Sequence[Path]) -> list[str]:
    """What to call each: its file name, or the whole path where several have the same."""
    count = Counter(path.name for path in paths)
    return [path.name if path.name and count[path.name] == 1 else str(path) for path in paths]


def _read(path: Path, name: str) -> tuple[Candidate, Fingerprint | None]:
    if path.suffix == ".onnx_adapter":
        raise AdapterError(
            f"{path}: ONNX Runtime's adapter format does not say what its sites are; compare the .safetensors that "
            "finetune --adapter writes, or the tuned file."
        )
    if path.suffix == ".safetensors":
        adapter = read_adapter(path)
        tensors = _adapter_tensors(adapter)
        return _candidate(name, "adapter", tensors, path.stat().st_size), _base_of(adapter)
    graph = graph_path(path)
    proto = onnx_file.read_with_records(graph)
    files = dict.fromkeys((*model_files(graph, proto), *(folder_files(path) if is_folder(path) else ())))
    tensors, found = site_tensors(proto, graph.parent), inspect(proto)
    if is_deployed(proto):
        state = "deployed"
    else:
        state = "plain" if not tensors else "transformed" if is_untrained(proto, graph.parent) else "trained"
    candidate = _candidate(name, state, tensors, sum(file.stat().st_size for file in files if file.is_file()))
    if state == "deployed":
        left = sum(math.prod(t.dims) for t in proto.graph.initializer if t.name.startswith(f"{PREFIX}."))
        candidate = replace(
            candidate, parameters=left, multiplications=None, rewritten=sum(r.kind == "laurel" for r in found.residuals)
        )
    return replace(candidate, joins=len(found.residuals)), of_model(proto, graph.parent)


def _adapter_tensors(adapter: Adapter) -> Tensors:
    values = adapter.resolved()
    return {
        spec: {name: values[tensor_name(site, name)] for name in spec.tensor_shapes()}
        for site, spec in adapter.specs.items()
    }


def _base_of(adapter: Adapter) -> Fingerprint | None:
    try:
        return Fingerprint.from_text(adapter.base[WEIGHTS]) if WEIGHTS in adapter.base else None
    except ValueError:
        return None


def _candidate(name: str, state: str, tensors: Tensors, size: int) -> Candidate:
    rows = tuple(site_row(spec, held) for spec, held in tensors.items())
    parameters, work = sum(row.parameters for row in rows), sum(row.multiplications for row in rows)
    return Candidate(name, state, None, len(rows), rows, tuple(learned(tensors)), parameters, work, size)


def _check_bases(
    paths: Sequence[Path], bases: Sequence[Fingerprint | None], candidates: Sequence[Candidate]
) -> list[str]:
    """Holds each base against that of the first that has one as it was trained on.

    Raises:
        ModelError: two differ.
    """
    notes = [
        f"the base of {each.name} cannot be told: an older version wrote it."
        for each, base in zip(candidates, bases, strict=True)
        if base is None
    ]
    known = [(path, base, each) for path, base, each in zip(paths, bases, candidates, strict=True) if base is not None]
    known.sort(key=lambda item: item[2].state == "deployed")
    for path, base, each in known[1:]:
        first, expected, _ = known[0]
        verdict = compare(expected, base)
        if verdict.answer == "other":
            raise ModelError(
                f"{first} and {path} have different bases, so that their sites do not correspond ({verdict.reason}): "
                "compare adapters and files of one model."
            )
        if verdict.answer == "unknown":
            notes.append(f"whether {each.name} has the base of {first} cannot be told: {verdict.reason}.")
    return notes


def _with_training(
    candidates: Sequence[Candidate], paths: Sequence[Path], training: Sequence[str | Path]
) -> list[Candidate]:
    """Gives each training to the candidates that it wrote.

    Raises:
        ConfigError: it wrote none of them.
        DataError: it is something else.
    """
    given = list(candidates)
    for source in training:
        history = read_training(source)
        wrote = [Path(file).resolve() for file in history.files]
        mine = [i for i, path in enumerate(paths) if path.resolve() in wrote]
        mine = mine or [i for i, path in enumerate(paths) if path.name in {file.name for file in wrote}]
        if not mine:
            said = " and ".join(history.files) or "no file"
            raise ConfigError(f"--training {source}: it wrote {said}, which is none of the files that are compared.")
        for i in mine:
            given[i] = replace(given[i], training=history)
    return given


def _matched(candidates: Sequence[Candidate]) -> tuple[list[str], list[tuple[int, ...]], list[str]]:
    """Returns all sites in depth order, where those of each candidate are among them, and sentences.

    Sites go by name; where a candidate shares no name with those before and has as many, by place.
    """
    sites: list[str] = []
    called: list[list[str]] = []
    notes = []
    for each in candidates:
        own = [row.site for row in each.rows]
        if own and sites and not set(own) & set(sites) and len(own) == len(sites):
            notes.append(f"{each.name} names its sites otherwise ({own[0]} for {sites[0]}): they go by place.")
            own = list(sites)
        place = 0
        for site in own:
            if site in sites:
                place = sites.index(site) + 1
            else:
                sites.insert(place, site)
                place += 1
        called.append(own)
    index = {site: place for place, site in enumerate(sites)}
    return sites, [tuple(index[site] for site in own) for own in called], notes
