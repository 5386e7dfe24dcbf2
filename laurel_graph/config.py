"""What a user asks for (:class:`LaurelConfig`) and what one site gets (:class:`SiteSpec`).

Both are frozen, checked on creation and survive a JSON round trip. The variants and defaults follow LAuReL
(Menghani, Kumar, Kumar, ICML 2025, arXiv 2411.07501v4).

One file, because the two share their fields, domains, checks and JSON form, and a field of one is mostly one of both.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from .errors import ConfigError
from .errors import invalid as _fail
from .variants import combine, pa
from .variants.combine import Options, canonical_variant, options_of
from .variants.registry import terms_of
from .variants.term import Scalar, Term, shape_of, symbols_of

FORMAT_VERSION = 1
"""Version of the JSON form of :class:`LaurelConfig`; a newer one is refused."""

VARIANTS = combine.VARIANTS
"""Those that the package brings; terms that are registered beside them go with each of them."""
WEIGHTS = ("softmax", "sigmoid", "free")
INITS = ("xavier", "orthogonal")
PREVIOUS_MAPS = ("identity", "low-rank")
DTYPES = ("float32", "float16", "bfloat16", "float64")
KINDS = ("identity", "projection")
MAX_PREVIOUS = pa.MAX_PREVIOUS
"""The largest k of PA."""
MOST_EARLIER = 4096
"""The largest number of earlier activations of a term that takes all."""


def _check_int(name: str, value: object, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        bound = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
        raise _fail(name, value, bound)


def _check_choice(name: str, value: object, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise _fail(name, value, f"one of {', '.join(valid)}")


def _is_text(value: object) -> bool:
    """Whether *value* is text without lone surrogates, which JSON can spell but no file can hold."""
    return isinstance(value, str) and all(not "\ud800" <= c <= "\udfff" for c in value)


@dataclass(frozen=True)
class SiteOverride:
    """What differs at the sites that a name or glob selects.

    Attributes:
        variant: another variant there, or ``None`` to keep the config's.
        rank: another rank there, or ``None`` to keep the config's.
        off: leave these sites alone.
    """

    variant: str | None = None
    rank: int | None = None
    off: bool = False

    def __post_init__(self) -> None:
        if self.variant is not None:
            object.__setattr__(self, "variant", canonical_variant(self.variant))
        if self.rank is not None:
            _check_int("rank", self.rank, 1)
        if not isinstance(self.off, bool):
            raise _fail("off", self.off, "true or false")


@dataclass(frozen=True)
class LaurelConfig:
    """How the residual connections of a model are rewritten.

    Attributes:
        variant: ``rw``, ``lr``, ``pa`` or a combination joined by ``+`` (paper §2 and §3; table in the README), and
            the terms that are registered beside them (:mod:`laurel_graph.variants`).
        rank: r of every low-rank product; ``None`` takes 16 on channel axes (convolutional nets) and 32 on last axes
            (transformers), never above D/4.
        weights: how α and β are bounded: ``softmax`` (2·softmax(w)), ``sigmoid`` (2·σ(w)) or ``free``.
        per_channel: α and β hold one value per channel (2D parameters a site) instead of one (2 parameters).
        init: how A starts: ``xavier`` (the paper's ResNet) or ``orthogonal`` (its language models); ``None`` takes
            xavier on channel axes and orthogonal on last axes. B always starts at zero.
        previous: k of PA, 1 to 8: how many earlier activations of the stream a site sees.
        previous_map: h of PA: ``identity`` (γ starts at 0) or ``low-rank`` (its B starts at 0, γ at 1).
        include: the kinds of residual connection to rewrite, out of ``identity`` and ``projection``.
        sites: names or globs of the sites to rewrite.
        overrides: site name or glob to :class:`SiteOverride`; the last that matches wins.
        seed: seed of the Xavier initialisation, mixed with each site's name.
        options: values of the options that registered terms have, by name.

    Raises:
        ConfigError: naming the field, the value and the valid ones.
    """

    variant: str = "rw+lr"
    rank: int | None = None
    weights: str = "softmax"
    per_channel: bool = False
    init: str | None = None
    previous: int = 3
    previous_map: str = "identity"
    include: tuple[str, ...] = KINDS
    sites: tuple[str, ...] = ("*",)
    overrides: Mapping[str, SiteOverride] = field(default_factory=dict)
    seed: int = 0
    options: Options = ()

    @classmethod
    def of(cls, value: object) -> LaurelConfig:
        """Returns a config from what a person passes for one: a config, a variant, a mapping of fields, or ``None``.

        Raises:
            ConfigError: it is something else, or holds an unknown field or a value outside its domain.
        """
        if isinstance(value, LaurelConfig):
            return value
        if value is None or isinstance(value, str):
            return cls() if value is None else cls(variant=value)
        known = [each.name for each in fields(cls)]
        if not isinstance(value, Mapping):
            late = (
                "; example inputs come after it" if hasattr(value, "shape") or isinstance(value, (tuple, list)) else ""
            )
            expected = f"a LaurelConfig, a variant such as 'rw+lr', or a mapping{late}"
            raise _fail("config", type(value).__name__, expected)
        for name in value:
            if name not in known:
                raise _fail("LaurelConfig field", name, f"one of {', '.join(known)}")
        return cls(**value)

    def __hash__(self) -> int:
        values = (getattr(self, each.name) for each in fields(self) if each.name != "overrides")
        return hash((*values, frozenset(self.overrides.items())))

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "variant", canonical_variant(self.variant))
        if self.rank is not None:
            _check_int("rank", self.rank, 1)
        _check_choice("weights", self.weights, WEIGHTS)
        if not isinstance(self.per_channel, bool):
            raise _fail("per_channel", self.per_channel, "true or false")
        if self.init is not None:
            _check_choice("init", self.init, INITS)
        _check_int("previous", self.previous, 1, MAX_PREVIOUS)
        _check_choice("previous_map", self.previous_map, PREVIOUS_MAPS)
        _check_int("seed", self.seed, 0)
        for name in ("include", "sites"):
            value = getattr(self, name)
            value = (value,) if isinstance(value, str) else value
            if not isinstance(value, (tuple, list)) or not value or not all(isinstance(v, str) and v for v in value):
                raise _fail(name, value, "one or more names")
            put(self, name, tuple(value))
        for kind in self.include:
            _check_choice("include", kind, KINDS)
        put(self, "overrides", self._read_overrides(self.overrides))
        every = options_of(self._terms(), self.options)
        put(self, "options", tuple((name, value) for name, value in every if name in dict(self.options)))

    def _terms(self) -> list[Term]:
        """Every term that some site may get."""
        variants = (self.variant, *(override.variant for override in self.overrides.values() if override.variant))
        return [one for variant in dict.fromkeys(variants) for one in terms_of(variant, self.previous_map)]

    def most_earlier(self, available: int) -> int:
        """Returns how many of *available* earlier activations a site may take at most."""
        return max(one.links(self.previous, available) if one.earlier != 0 else 0 for one in self._terms())

    @staticmethod
    def _read_overrides(overrides: object) -> dict[str, SiteOverride]:
        if not isinstance(overrides, Mapping):
            raise _fail("overrides", overrides, "a mapping from site name or glob to SiteOverride")
        valid = ", ".join(f.name for f in fields(SiteOverride))
        read: dict[str, SiteOverride] = {}
        for glob, value in overrides.items():
            if isinstance(value, Mapping):
                unknown = sorted(set(value) - {f.name for f in fields(SiteOverride)})
                if unknown:
                    raise _fail(f"overrides[{glob!r}]", unknown[0], f"the fields {valid}")
                value = SiteOverride(**value)
            if not isinstance(value, SiteOverride):
                raise _fail(f"overrides[{glob!r}]", value, f"a SiteOverride or a mapping with {valid}")
            read[str(glob)] = value
        return read

    def override_for(self, site: str) -> SiteOverride:
        """Returns the last override whose name or glob matches *site*, or an empty one."""
        found = SiteOverride()
        for glob, override in self.overrides.items():
            if glob == site or fnmatchcase(site, glob):
                found = override
        return found

    def spec_for(self, site: str, *, axis: int, width: int, ndim: int, dtype: str, previous: int) -> SiteSpec | None:
        """Returns what *site* gets, or ``None`` when it is switched off or nothing of its variant is left.

        Args:
            site: the stable name of the residual connection.
            axis: the feature axis of the join: -1 (tokens) or 1 (channels).
            width: D, the size of that axis.
            ndim: number of axes of the join.
            dtype: ``float32``, ``float16``, ``bfloat16`` or ``float64``.
            previous: how many earlier activations the stream offers here; PA drops out at 0.

        Raises:
            ConfigError: the rank asked for is larger than D.
        """
        override = self.override_for(site)
        terms = terms_of(override.variant or self.variant, self.previous_map)
        links = max(one.links(self.previous, previous) if one.earlier != 0 else 0 for one in terms)
        terms = tuple(one for one in terms if links or not one.needs_earlier)
        if override.off or not terms:
            return None
        rank = override.rank or self.rank
        if rank is None:
            rank = max(1, min(16 if axis == 1 else 32, width // 4))
        low_rank = any("r" in symbols_of(one) for one in terms)
        names = {name for one in terms for name in one.options}
        if low_rank and rank > width:
            raise _fail("rank", rank, f"at most the width of site {site!r}, which is {width}")
        if low_rank and rank > width / 2:
            warnings.warn(
                f"site {site!r}: rank {rank} is above half of its width {width}; a full matrix would be cheaper.",
                stacklevel=2,
            )
        return SiteSpec(
            site=site,
            variant="+".join(one.name for one in terms),
            axis=axis,
            width=width,
            ndim=ndim,
            dtype=dtype,
            rank=rank if low_rank else 0,
            weights=self.weights,
            per_channel=self.per_channel,
            init=self.init or ("xavier" if axis == 1 else "orthogonal"),
            previous=links,
            previous_map=self.previous_map,
            seed=self.seed,
            options=tuple((name, value) for name, value in dict(self.options).items() if name in names),
        )

    def to_json(self) -> str:
        """Returns the config as one JSON object with a ``format`` version."""
        data: dict[str, Any] = {"format": FORMAT_VERSION}
        data.update((f.name, getattr(self, f.name)) for f in fields(self) if f.name not in ("overrides", "options"))
        data["overrides"] = {glob: asdict(override) for glob, override in self.overrides.items()}
        if self.options:
            data["options"] = dict(self.options)
        return json.dumps(data)

    @classmethod
    def from_json(cls, text: str) -> LaurelConfig:
        """Reads what :meth:`to_json` wrote.

        Raises:
            ConfigError: not JSON, a newer format, an unknown field or a value outside its domain.
        """
        return cls(**_read_json(text, cls))


def _read_json(text: str, cls: type) -> dict[str, Any]:
    """Parses a JSON object whose keys are the fields of the dataclass *cls* plus ``format``."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{cls.__name__} is not valid JSON: {error}.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{cls.__name__} must be a JSON object, found {type(data).__name__}.")
    version = data.pop("format", FORMAT_VERSION)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise _fail("format", version, f"at most {FORMAT_VERSION}; a newer laurel-graph wrote this")
    known = [f.name for f in fields(cls)]
    for name in data:
        if name not in known:
            raise _fail(f"{cls.__name__} field", name, f"one of {', '.join(known)}")
    return data


@dataclass(frozen=True)
class SiteSpec:
    """Everything that fixes the LAuReL residual of one site: its operator, its tensors and how they start.

    Attributes:
        site: the stable name of the residual connection.
        variant: canonical variant; PA only where ``previous > 0``.
        axis: feature axis, -1 (``(..., D)``) or 1 (``(N, D, *spatial)``).
        width: D.
        ndim: number of axes of x and f.
        dtype: element type of the stored tensors: ``float32``, ``float16``, ``bfloat16`` or ``float64``.
        rank: r, 0 where nothing is of low rank.
        weights: ``softmax``, ``sigmoid`` or ``free``.
        per_channel: α and β of shape ``(D,)`` instead of ``()``.
        init: ``xavier`` or ``orthogonal``.
        previous: k, the number of earlier activations that enter.
        previous_map: ``identity`` or ``low-rank``.
        seed: seed of the Xavier initialisation.
        options: every option that its terms have with its value, sorted by name.
    """

    site: str
    variant: str
    axis: int
    width: int
    ndim: int
    dtype: str = "float32"
    rank: int = 0
    weights: str = "softmax"
    per_channel: bool = False
    init: str = "orthogonal"
    previous: int = 0
    previous_map: str = "identity"
    seed: int = 0
    options: tuple[tuple[str, Scalar], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "variant", canonical_variant(self.variant))
        if not isinstance(self.site, str) or not self.site:
            raise _fail("site", self.site, "the name of a residual connection")
        if isinstance(self.axis, bool) or self.axis not in (-1, 1):
            raise _fail("axis", self.axis, "-1 (last) or 1 (channels)")
        if not _is_text(self.site):
            raise _fail("site", self.site, "text that UTF-8 can hold")
        if not isinstance(self.per_channel, bool):
            raise _fail("per_channel", self.per_channel, "true or false")
        _check_int("ndim", self.ndim, 1)
        _check_int("seed", self.seed, 0)
        _check_int("width", self.width, 1)
        _check_choice("dtype", self.dtype, DTYPES)
        _check_choice("weights", self.weights, WEIGHTS)
        _check_choice("init", self.init, INITS)
        _check_choice("previous_map", self.previous_map, PREVIOUS_MAPS)
        most = max((MOST_EARLIER if one.earlier is None else one.earlier for one in self.terms), default=0)
        _check_int("previous", self.previous, int(any(one.needs_earlier for one in self.terms)), most)
        _check_int("rank", self.rank, int(any("r" in symbols_of(one) for one in self.terms)), self.width)
        object.__setattr__(self, "options", options_of(self.terms, self.options))

    @property
    def terms(self) -> tuple[Term, ...]:
        """What the site's residual is made of, in the order of its tensors."""
        return terms_of(self.variant, self.previous_map)

    @property
    def has_rw(self) -> bool:
        """Whether α and β are learned."""
        return "rw" in self.variant.split("+")

    @property
    def has_lr(self) -> bool:
        """Whether (xA)B is added."""
        return "lr" in self.variant.split("+")

    @property
    def has_pa(self) -> bool:
        """Whether earlier activations are added as PA does."""
        return "pa" in self.variant.split("+")

    @property
    def has_low_rank_pa(self) -> bool:
        """Whether earlier activations pass a low-rank map."""
        return self.has_pa and self.previous_map == "low-rank"

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns name to shape of the *resolved* tensors, in operator input order.

        ``alpha``, ``beta`` ``()`` or ``(D,)``; ``A`` ``(D, r)``; ``B`` ``(r, D)``; ``gamma`` ``(k,)``;
        ``previous_A`` ``(k, D, r)``; ``previous_B`` ``(k, r, D)``; then those of other terms.
        """
        return {name: shape_of(axes, self) for one in self.terms for name, axes in one.tensors.items()}

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns name to shape of the *trained* tensors: as :meth:`tensor_shapes`, with α and β as one ``w`` of
        shape ``(2,)`` or ``(2, D)`` unless :attr:`weights` is ``free``."""
        return {name: shape_of(axes, self) for one in self.terms for name, axes in one.parameters(self).items()}

    def parameter_count(self) -> int:
        """Returns the number of new parameters: 2 or 2D (RW) + 2rD (LR) + k or 2rDk + k (PA)."""
        total = 0
        for shape in self.parameter_shapes().values():
            size = 1
            for dim in shape:
                size *= dim
            total += size
        return total

    def with_dtype(self, dtype: str) -> SiteSpec:
        """Returns the same spec with tensors of another element type."""
        return replace(self, dtype=dtype)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a JSON-ready mapping; options alone may be absent."""
        data = asdict(self)
        options = dict(data.pop("options"))
        return {**data, "options": options} if options else data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SiteSpec:
        """Reads what :meth:`to_dict` returned; raises :class:`ConfigError` on unknown or missing fields or values."""
        read = _read_json(json.dumps(dict(data)), cls)
        if missing := [f.name for f in fields(cls) if f.default is MISSING and f.name not in read]:
            raise ConfigError(f"{cls.__name__} lacks the field {missing[0]!r}.")
        return cls(**read)
