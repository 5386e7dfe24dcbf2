"""Chooses the sites to rewrite and fixes what each one gets; changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import ClassVar

from laurel_graph.config import MAX_PREVIOUS, LaurelConfig, SiteOverride
from laurel_graph.detection import Detection, Residual, SitePlan
from laurel_graph.errors import NoResidualError, SelectorError, near
from laurel_graph.foreign_names import around

NEAREST_MISSES = 5
LISTED = 4
"""How many sites a note names."""
MAX_CHANNEL_NDIM = 5


@dataclass(frozen=True)
class Selection:
    """What will be rewritten and what not.

    Attributes:
        plans: one per site, in topological order.
        skipped: (site, reason) of every other residual connection.
        notes: sentences on what some of the sites did not get of what was asked for.
    """

    plans: tuple[SitePlan, ...]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    describes_graph: ClassVar[bool] = True


def select(
    detection: Detection,
    config: LaurelConfig,
    *,
    refusals: Mapping[str, str] | None = None,
    any_rank: bool = False,
) -> Selection:
    """Applies the kinds, globs and overrides of *config* to what was found.

    PA, and other terms that take earlier activations, link the skips of the earlier sites on the same stream with the
    same shape, nearest first; those sites need not be rewritten themselves. A skip that has no name of its own, inside
    an operator that hides an add, is not linked.

    Args:
        detection: what was found.
        config: what is asked for.
        refusals: site to the reason why it is left alone, where something else decided that.
        any_rank: what is put in takes values of any rank and type (torch modules), so that those need not be known.

    Raises:
        NoResidualError: nothing was found, or nothing that was found can be rewritten as asked.
        SelectorError: a glob of ``sites`` or ``overrides`` matches no site.
        ConfigError: a rank is larger than its site's width.
    """
    found = [residual for residual in detection.residuals if residual.kind != "laurel"]
    if not found:
        raise NoResidualError(_nothing_found(detection))
    config = _in_names_of_today(config, detection.residuals)
    sites = [residual.site for residual in detection.residuals]
    for what, globs in (("sites", config.sites), ("overrides", config.overrides)):
        for glob in globs:
            if not any(_matches(site, (glob,)) for site in sites):
                raise SelectorError(
                    f"{what} {glob!r} matches none of the {len(sites)} sites of {detection.model}.{near(glob, sites)}"
                )
    if config.most_earlier(len(found)) > MAX_PREVIOUS:
        found = _with_all_earlier(found)
    skips = _Skips(detection.residuals)
    plans: list[SitePlan] = []
    skipped = [
        (residual.site, "a LAuReL residual is already there")
        for residual in detection.residuals
        if residual.kind == "laurel"
    ]
    for residual in found:
        refusal = (refusals or {}).get(residual.site, "")
        plan = _plan(residual, config, skips, refusal, any_rank=any_rank)
        if isinstance(plan, SitePlan):
            plans.append(plan)
        else:
            skipped.append((residual.site, plan))
    if not plans:
        reasons = "; ".join(f"{site}: {reason}" for site, reason in skipped[:NEAREST_MISSES])
        raise NoResidualError(
            f"{detection.model} has {len(found)} residual connections, but none of them can be rewritten as asked: "
            f"{reasons}."
        )
    return Selection(tuple(plans), tuple(skipped), _without_pa(detection, config, plans))


def _in_names_of_today(config: LaurelConfig, residuals: Iterable[Residual]) -> LaurelConfig:
    """Returns *config* with globs that match no site, but a former name of one, replaced by the sites they mean."""
    residuals = tuple(residuals)

    def sites_of(glob: str) -> tuple[str, ...]:
        if any(_matches(residual.site, (glob,)) for residual in residuals):
            return (glob,)
        return tuple(r.site for r in residuals if r.former and _matches(r.former, (glob,))) or (glob,)

    sites = tuple(site for glob in config.sites for site in sites_of(glob))
    overrides: dict[str, SiteOverride] = {}
    for glob, override in config.overrides.items():
        for site in sites_of(glob):
            overrides.pop(site, None)  # the last one wins
            overrides[site] = override
    if sites == tuple(config.sites) and list(overrides) == list(config.overrides):
        return config
    return replace(config, sites=sites, overrides=overrides)


def _matches(site: str, globs: Iterable[str]) -> bool:
    return any(glob == site or fnmatchcase(site, glob) for glob in globs)


class _Skips:
    """The skips of all sites that have a name of their own, by the body that they are seen in."""

    def __init__(self, residuals: Iterable[Residual]) -> None:
        self._skips: dict[str, dict[str, str]] = {}
        for residual in (each for r in residuals for each in (r, *r.copies)):
            if residual.skip not in residual.joins:
                self._skips.setdefault(residual.body, {})[residual.site] = residual.skip

    def earlier(self, residual: Residual, sites: Iterable[str]) -> tuple[str, ...]:
        """Returns the skips of *sites* as a residual's body sees them: its own first, then those around it."""
        path, seen = residual.body, [self._skips.get(residual.body, {})]
        while path:
            path = around(path)
            seen.append(self._skips.get(path, {}))
        found = (next((skips[site] for skips in seen if site in skips), "") for site in sites)
        return tuple(name for name in found if name)


def _plan(residual: Residual, config: LaurelConfig, skips: _Skips, refusal: str, *, any_rank: bool) -> SitePlan | str:
    if residual.kind not in config.include:
        return f"its kind {residual.kind} is not included"
    if not _matches(residual.site, config.sites):
        return "not selected"
    if config.override_for(residual.site).off:
        return "switched off by an override"
    if refusal:
        return refusal
    for each in (residual, *residual.copies):
        if each.blocked:
            return each.blocked
    if residual.width is None:
        return "the size of its feature axis is unknown"
    earlier = skips.earlier(residual, residual.previous)
    others = [skips.earlier(copy, copy.previous) for copy in residual.copies]
    earlier = earlier[: min(map(len, (earlier, *others)))]
    if not any_rank and (residual.shape is None or residual.dtype is None):
        what = "how many axes it has" if residual.shape is None else "the type of its elements"
        return f"{what} is unknown: neither the file, its weights nor a run says so"
    rank = len(residual.shape) if residual.shape is not None else 4 if residual.axis == 1 else 3
    if residual.axis == 1 and rank > MAX_CHANNEL_NDIM:
        return f"its channels have {rank - 2} axes of space; at most {MAX_CHANNEL_NDIM - 2} are supported"
    spec = config.spec_for(
        residual.site,
        axis=residual.axis,
        width=residual.width,
        ndim=rank,
        dtype=residual.dtype or "float32",
        previous=len(earlier),
    )
    if spec is None:
        return f"variant {config.variant} needs earlier activations and there are none on its stream"
    if len(residual.branches) > 1 and (one := next((one for one in spec.terms if not one.several_branches), None)):
        return f"it adds {len(residual.branches)} branches, and {one.name} is defined for one"
    return SitePlan(residual, spec, earlier[: spec.previous], tuple(other[: spec.previous] for other in others))


def _without_pa(detection: Detection, config: LaurelConfig, plans: Iterable[SitePlan]) -> tuple[str, ...]:
    """Says which sites were asked to take earlier activations and take none, grouped by the reason."""
    why: dict[str, list[str]] = {}
    for plan in plans:
        site, residual = plan.spec.site, plan.residual
        asked = config.override_for(site).variant or config.variant
        if "pa" not in asked.split("+") or plan.spec.has_pa:
            continue
        alone = sum(other.stream == residual.stream for other in detection.residuals) == 1
        if residual.shape is None:
            reason = "the shape of their joins is unknown"
        elif alone:
            reason = "they are alone on their stream"
        elif residual.index == 0:
            reason = "they are the first of their stream"
        else:
            reason = "no earlier site of their stream has their shape and a skip with a name"
        why.setdefault(reason, []).append(site)
    return tuple(
        f"PA is left out at {len(sites)} of the sites, as {reason}: {', '.join(sites[:LISTED])}"
        f"{', ...' if len(sites) > LISTED else ''}."
        for reason, sites in why.items()
    )


def _with_all_earlier(found: Iterable[Residual]) -> list[Residual]:
    """Returns residual connections with every earlier site of their stream, where detection names the nearest alone."""
    every: dict[str, tuple[str, ...]] = {}
    for residual in found:
        every[residual.site] = (*residual.previous[:1], *every.get(next(iter(residual.previous), ""), ()))

    def of(residual: Residual) -> Residual:
        return replace(residual, previous=every[residual.site], copies=tuple(map(of, residual.copies)))

    return [of(residual) for residual in found]


def _nothing_found(detection: Detection) -> str:
    if any(residual.kind == "laurel" for residual in detection.residuals):
        return f"{detection.model}: every residual connection is a LAuReL residual already; nothing is left to rewrite."
    misses = sorted((r for r in detection.rejected if r.near > 0), key=lambda r: -r.near)[:NEAREST_MISSES]
    listed = "; ".join(f"{miss.join} ({miss.reason}: {miss.detail})" for miss in misses)
    adds = f"{len(detection.rejected)} adds were looked at" if detection.rejected else "it holds no adds"
    return f"{detection.model} has no residual connection; {adds}." + (f" Nearest: {listed}." if listed else "")
