"""What a user asks for (:class:`LaurelConfig`) and what one site gets (:class:`SiteSpec`).

Both are frozen, checked on creation and survive a JSON round trip. The variants and defaults follow LAuReL
(Menghani, Kumar, Kumar, ICML 2025, arXiv 2411.07501v4).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from .errors import ConfigError

FORMAT_VERSION = 1
"""Version of the JSON form of :class:`LaurelConfig`; a newer one is refused."""

PARTS = ("rw", "lr", "pa")
VARIANTS = ("rw", "lr", "pa", "rw+lr", "rw+pa", "lr+pa", "rw+lr+pa")
WEIGHTS = ("softmax", "sigmoid", "free")
INITS = ("xavier", "orthogonal")
PREVIOUS_MAPS = ("identity", "low-rank")
DTYPES = ("float32", "float16", "bfloat16", "float64")
KINDS = ("identity", "projection")
DTYPES = ("float32", "float16", "bfloat16", "float64")
MAX_PREVIOUS = 8
"""The largest k of PA: what the operator set has names for."""


def _fail(name: str, value: object, valid: str) -> ConfigError:
    return ConfigError(f"{name} = {value!r} is not valid: expected {valid}.")


def canonical_variant(variant: object) -> str:
    """Returns *variant* in canonical spelling: ``"PA + rw"`` becomes ``"rw+pa"``.

    Raises:
        ConfigError: *variant* is not one of :data:`VARIANTS` in any order or case.
    """
    parts = [part.strip() for part in variant.lower().split("+")] if isinstance(variant, str) else []
    name = "+".join(part for part in PARTS if part in parts)
    if name not in VARIANTS or len(parts) != len(set(parts)) or set(parts) - set(PARTS):
        raise _fail("variant", variant, f"one of {', '.join(VARIANTS)}")
    return name


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
        variant: ``rw``, ``lr``, ``pa`` or a combination joined by ``+`` (paper §2 and §3; table in the README).
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
            raise _fail("config", type(value).__name__, "a LaurelConfig, a variant such as 'rw+lr', or a mapping")
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
        variant, links = override.variant or self.variant, min(self.previous, previous)
        if "pa" in variant.split("+") and links == 0:
            variant = "+".join(part for part in variant.split("+") if part != "pa")
        if override.off or not variant:
            return None
        rank = override.rank or self.rank
        if rank is None:
            rank = max(1, min(16 if axis == 1 else 32, width // 4))
        low_rank = "lr" in variant or ("pa" in variant and self.previous_map == "low-rank")
        if low_rank and rank > width:
            raise _fail("rank", rank, f"at most the width of site {site!r}, which is {width}")
        if low_rank and rank > width / 2:
            warnings.warn(
                f"site {site!r}: rank {rank} is above half of its width {width}; a full matrix would be cheaper.",
                stacklevel=2,
            )
        return SiteSpec(
            site=site,
            variant=variant,
            axis=axis,
            width=width,
            ndim=ndim,
            dtype=dtype,
            rank=rank if low_rank else 0,
            weights=self.weights,
            per_channel=self.per_channel,
            init=self.init or ("xavier" if axis == 1 else "orthogonal"),
            previous=links if "pa" in variant else 0,
            previous_map=self.previous_map,
            seed=self.seed,
        )

    def to_json(self) -> str:
        """Returns the config as one JSON object with a ``format`` version."""
        data: dict[str, Any] = {"format": FORMAT_VERSION}
        data.update((f.name, getattr(self, f.name)) for f in fields(self) if f.name != "overrides")
        data["overrides"] = {glob: asdict(override) for glob, override in self.overrides.items()}
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
        _check_int("previous", self.previous, 1 if self.has_pa else 0, MAX_PREVIOUS)
        _check_int("rank", self.rank, 1 if self.has_lr or self.has_low_rank_pa else 0, self.width)

    @property
    def has_rw(self) -> bool:
        """Whether α and β are learned."""
        return "rw" in self.variant

    @property
    def has_lr(self) -> bool:
        """Whether (xA)B is added."""
        return "lr" in self.variant

    @property
    def has_pa(self) -> bool:
        """Whether earlier activations are added."""
        return "pa" in self.variant

    @property
    def has_low_rank_pa(self) -> bool:
        """Whether earlier activations pass a low-rank map."""
        return self.has_pa and self.previous_map == "low-rank"

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns name to shape of the *resolved* tensors, in operator input order.

        ``alpha``, ``beta`` ``()`` or ``(D,)``; ``A`` ``(D, r)``; ``B`` ``(r, D)``; ``gamma`` ``(k,)``;
        ``previous_A`` ``(k, D, r)``; ``previous_B`` ``(k, r, D)``.
        """
        d, r, k = self.width, self.rank, self.previous
        shapes: dict[str, tuple[int, ...]] = {}
        if self.has_rw:
            shapes["alpha"] = shapes["beta"] = (d,) if self.per_channel else ()
        if self.has_lr:
            shapes.update(A=(d, r), B=(r, d))
        if self.has_pa:
            shapes["gamma"] = (k,)
        if self.has_low_rank_pa:
            shapes.update(previous_A=(k, d, r), previous_B=(k, r, d))
        return shapes

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns name to shape of the *trained* tensors: as :meth:`tensor_shapes`, with α and β as one ``w`` of
        shape ``(2,)`` or ``(2, D)`` unless :attr:`weights` is ``free``."""
        shapes = self.tensor_shapes()
        if self.has_rw and self.weights != "free":
            tail = shapes.pop("alpha")
            del shapes["beta"]
            shapes = {"w": (2, *tail), **shapes}
        return shapes

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
        """Returns the fields as a JSON-ready mapping."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SiteSpec:
        """Reads what :meth:`to_dict` returned; raises :class:`ConfigError` on unknown or missing fields or values."""
        read = _read_json(json.dumps(dict(data)), cls)
        if missing := [f.name for f in fields(cls) if f.default is MISSING and f.name not in read]:
            raise ConfigError(f"{cls.__name__} lacks the field {missing[0]!r}.")
        return cls(**read)
