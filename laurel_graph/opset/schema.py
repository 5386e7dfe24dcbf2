"""Names and signatures of the operators of ``ai.laurel``, and where a model file keeps what belongs to a site.

A function body cannot branch on an attribute or on a missing input, so everything that changes the body is part of the
operator's name::

    Laurel[_RW][_LR][_PA<k>|_PAL<k>][_Bias][_1d|_2d|_3d][_Relu|_LayerNorm|_RMSNorm]
    Laurel[_RW]_LR[_Relu]_Quantized
    Laurel[_RW][_LR][_PA<k>|_PAL<k>](_<term>)+[_P<k>][_1d|_2d|_3d][_with(_<option>_<value>)+]

``PA<k>`` takes k earlier activations as they are, ``PAL<k>`` through low-rank maps. ``1d``, ``2d``, ``3d`` mean
channels on axis 1 followed by that many spatial axes (NCHW is ``2d``); without them D is the last axis. ``Bias`` adds a
vector (D,) to f. The last part is applied to the residual's output. Inputs, in order (absent parts leave no gap)::

    x, f, alpha, beta, A, B, gamma, previous_A, previous_B, bias, scale, offset, previous_1 ... previous_k

``x``, ``f`` and ``previous_*`` share one shape; ``alpha``, ``beta`` are () or (D,); ``A`` (D, r); ``B`` (r, D);
``gamma`` (k,); ``previous_A`` (k, D, r); ``previous_B`` (k, r, D); ``bias``, ``scale``, ``offset`` (D,). ``scale`` and
``offset`` belong to LayerNorm, ``scale`` alone to RMSNorm; both have the float attribute ``epsilon`` and a second,
optional output: the residual before the norm. Element types: float32, float16, bfloat16 (and float64 in bodies), one
for all inputs and outputs; 16-bit types are accumulated in float32.

``Quantized`` operators stand between a quantised model's DequantizeLinear and QuantizeLinear nodes: x, f and y are
uint8 or int8, all three the same, D is the last axis, and six constant scalars follow B: ``x_scale, x_zero_point,
f_scale, f_zero_point, y_scale, y_zero_point``, float32 scales and zero points of the type of x. The other inputs are
float32, and so is what is computed in between.

The last line is that of variants with terms of :mod:`laurel_graph.variants` that the package has no kernels for, by
their lower-case names. Their tensors follow ``previous_B``; ``P<k>`` says that one of them takes k earlier activations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import MAX_PREVIOUS, SiteSpec
from ..errors import ConfigError, ModelError, UnknownVariantError
from ..variants.combine import canonical_variant, options_of
from ..variants.registry import term, terms_of
from ..variants.term import Option, Scalar, Term

if TYPE_CHECKING:
    import onnx

DOMAIN = "ai.laurel"
VERSION = 1
PREFIX = "laurel"
"""First part of every initializer, parameter and metadata name of ours."""

METADATA_FORMAT = "laurel.format"
RECORDS_FORMAT = "1"
"""Version of the records that a transformed model carries."""
METADATA_CONFIG = "laurel.config"
METADATA_SITES = "laurel.sites"
METADATA_UNDO = "laurel.undo"
METADATA_BASE = "laurel.base"
"""Fingerprints of the torch module that a file was exported from."""
METADATA_DEPLOYED = "laurel.deployed"
METADATA_PLAIN = "laurel.plain"
"""What plain nodes stand for, in a model that is kept without nodes of ours."""

EPILOGUES = ("", "Relu", "LayerNorm", "RMSNorm")
LAYOUTS = ("", "1d", "2d", "3d")

_NAME = re.compile(
    r"Laurel(?P<rw>_RW)?(?P<lr>_LR)?(?:_PA(?P<low>L?)(?P<k>[1-9]))?(?P<further>(?:_(?!with_)[a-z][a-z0-9]*)*)"
    r"(?:_P(?P<earlier>[1-9][0-9]{0,3}))?(?P<bias>_Bias)?(?:_(?P<layout>[123]d))?"
    r"(?:_(?P<epilogue>Relu|LayerNorm|RMSNorm))?(?:_with(?P<options>(?:_[a-z][a-z0-9]*_[A-Za-z0-9]+)+))?"
    r"(?P<quantized>_Quantized)?"
)


@dataclass(frozen=True)
class Operator:
    """One operator of the set.

    Attributes:
        rw: has α and β.
        lr: has A and B.
        previous: k, 0 without PA.
        low_rank_previous: earlier activations pass low-rank maps.
        bias: a vector is added to f.
        layout: "" (last axis), "1d", "2d" or "3d" (axis 1).
        epilogue: "", "Relu" (channel layouts and quantised operators), "LayerNorm" or "RMSNorm" (last axis).
        quantized: x, f and y are 8-bit integers with a scale and a zero point each.
        further: names of the terms beside RW, LR and PA.
        earlier: how many earlier activations one of those takes.
        options: the options of those, by name.
    """

    rw: bool = False
    lr: bool = False
    previous: int = 0
    low_rank_previous: bool = False
    bias: bool = False
    layout: str = ""
    epilogue: str = ""
    quantized: bool = False
    further: tuple[str, ...] = ()
    earlier: int = 0
    options: tuple[tuple[str, Scalar], ...] = ()

    def __post_init__(self) -> None:
        if self.further:
            self._check_further()
        elif self.earlier or self.options:
            raise ValueError("only terms beside RW, LR and PA have options and further earlier activations")
        if not (self.rw or self.lr or self.previous or self.further):
            raise ValueError("an operator of ai.laurel has at least one of RW, LR, PA")
        if not 0 <= self.previous <= MAX_PREVIOUS or self.layout not in LAYOUTS or self.epilogue not in EPILOGUES:
            raise ValueError(f"no operator of ai.laurel: {self}")
        if self.quantized:
            if not self.lr or self.previous or self.bias or self.layout or self.epilogue not in ("", "Relu"):
                raise ValueError(f"no quantised operator of ai.laurel: {self}")
        elif self.epilogue and (self.epilogue == "Relu") != bool(self.layout):
            raise ValueError(f"{self.epilogue} does not go with layout {self.layout or 'last axis'!r}")
        if self.bias and self.layout:
            raise ValueError("a bias on f goes with the last axis alone; convolutions carry their own")

    def _check_further(self) -> None:
        terms = [term(name) for name in self.further]
        if any(one.has_kernels for one in terms) or canonical_variant(self.variant) != self.variant:
            raise ValueError(f"no variant has the terms {self.variant}")
        if self.bias or self.epilogue or self.quantized:
            raise ValueError(f"no operator of ai.laurel: {self}")
        if self.earlier and not any(one.links(self.earlier, self.earlier) == self.earlier for one in terms):
            raise ValueError(f"{self.further} do not take {self.earlier} earlier activations")
        if options_of(terms, self.options) != self.options:
            raise ValueError(f"{self.further} have other options than {self.options}")

    @property
    def variant(self) -> str:
        """The variant that it stands for."""
        own = (("rw", self.rw), ("lr", self.lr), ("pa", self.previous))
        return "+".join((*(name for name, there in own if there), *self.further))

    @property
    def terms(self) -> tuple[Term, ...]:
        """What it is made of, in the order of the variant's name."""
        return terms_of(self.variant, "low-rank" if self.low_rank_previous else "identity")

    @property
    def links(self) -> int:
        """How many earlier activations enter."""
        return self.previous + self.earlier

    @property
    def name(self) -> str:
        """The operator's type name."""
        parts = ["Laurel"]
        parts += ["RW"] * self.rw + ["LR"] * self.lr
        if self.previous:
            parts.append(f"PA{'L' * self.low_rank_previous}{self.previous}")
        parts += [*self.further, *[f"P{self.earlier}"] * bool(self.earlier)]
        parts += ["Bias"] * self.bias + [part for part in (self.layout, self.epilogue) if part]
        parts += ["with", *(part for name, value in self.options for part in (name, spelled(value)))] * bool(
            self.options
        )
        parts += ["Quantized"] * self.quantized
        return "_".join(parts)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The input names in order."""
        names = ["x", "f", *self.tensors] + ["bias"] * self.bias
        names += {"LayerNorm": ["scale", "offset"], "RMSNorm": ["scale"]}.get(self.epilogue, [])
        if self.quantized:
            names += [f"{array}_{part}" for array in ("x", "f", "y") for part in ("scale", "zero_point")]
        return (*names, *(f"previous_{j + 1}" for j in range(self.links)))

    @property
    def tensors(self) -> tuple[str, ...]:
        """Those of :attr:`inputs` that are learned."""
        return tuple(name for one in self.terms for name in one.tensors)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The output names in order."""
        return ("y", "sum") if self.epilogue in ("LayerNorm", "RMSNorm") else ("y",)

    @property
    def axis(self) -> int:
        """The feature axis, 1 or -1."""
        return 1 if self.layout else -1

    @classmethod
    def parse(cls, name: str) -> Operator | None:
        """Returns the operator of that type name, or ``None`` if there is none."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        try:
            return cls(
                rw=bool(match["rw"]),
                lr=bool(match["lr"]),
                previous=int(match["k"] or 0),
                low_rank_previous=bool(match["low"]),
                bias=bool(match["bias"]),
                layout=match["layout"] or "",
                epilogue=match["epilogue"] or "",
                quantized=bool(match["quantized"]),
                further=(further := tuple(match["further"].split("_")[1:])),
                earlier=int(match["earlier"] or 0),
                options=_options(further, (match["options"] or "").split("_")[1:]),
            )
        except (ValueError, ConfigError):
            return None

    @classmethod
    def of(cls, spec: SiteSpec) -> Operator:
        """Returns the plain operator (no bias, no epilogue) that computes the residual of *spec*.

        Raises:
            ValueError: channels on axis 1 with more than three spatial axes.
        """
        layout = f"{spec.ndim - 2}d" if spec.axis == 1 and spec.ndim > 2 else ""
        return cls(
            rw=spec.has_rw,
            lr=spec.has_lr,
            previous=spec.previous if spec.has_pa else 0,
            low_rank_previous=spec.has_low_rank_pa,
            layout=layout,
            further=tuple(one.name for one in spec.terms if not one.has_kernels),
            earlier=0 if spec.has_pa else spec.previous,
            options=spec.options,
        )


def spelled(value: Scalar) -> str:
    """Returns the value of an option as letters and digits: ``-0.5`` as ``m0p5``."""
    text = repr(value) if isinstance(value, float) else str(value)
    return text.replace("-", "m").replace(".", "p").replace("+", "")


def _options(further: tuple[str, ...], spellings: list[str]) -> tuple[tuple[str, Scalar], ...]:
    """Reads what :func:`spelled` wrote behind the names of options."""
    known: dict[str, Option] = {name: option for part in further for name, option in term(part).options.items()}
    read = []
    for name, text in zip(spellings[::2], spellings[1::2], strict=True):
        if name not in known:
            raise ConfigError(f"no option {name!r}")
        is_text = isinstance(known[name].default, str)
        read.append((name, known[name].read(name, text if is_text else text.replace("m", "-").replace("p", "."))))
    return tuple(read)


def unknown_operator(name: str) -> str:
    """Returns why the operator of a type name is unknown, as a sentence about what to do."""
    match = _NAME.fullmatch(name)
    for part in match["further"].split("_")[1:] if match is not None else ():
        try:
            term(part)
        except UnknownVariantError as error:
            return str(error)
    return f"{DOMAIN} has no operator {name!r} in version {VERSION}; a newer laurel-graph may have written it."


def tensor_name(site: str, name: str) -> str:
    """Returns the initializer (and torch parameter) name of a site's tensor: ``laurel.<site>.<name>``."""
    return f"{PREFIX}.{site}.{name}"


def read_metadata(model: onnx.ModelProto, key: str) -> str | None:
    """Returns the model's metadata property *key*, or ``None``."""
    return next((prop.value for prop in model.metadata_props if prop.key == key), None)


def read_json(model: onnx.ModelProto, key: str) -> Any:
    """Returns the model's metadata property *key* read as JSON, or ``None`` if there is none.

    Raises:
        ModelError: it is no JSON.
    """
    text = read_metadata(model, key)
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(key, str(error)) from None


def damaged(key: str, why: str) -> ModelError:
    """Returns the error that says that a metadata property of ours was changed by hand or cut off."""
    return ModelError(
        f"the metadata {key!r} of the model is damaged: {why.rstrip('.')}; take the file as laurel-graph wrote it."
    )


def read_specs(model: onnx.ModelProto) -> dict[str, SiteSpec]:
    """Returns site name to spec for a transformed model; empty for any other model.

    Raises:
        ModelError: the metadata was written by a newer version, is damaged, or does not fit the tensors of the model.
        UnknownVariantError: a site's variant is not registered here.
    """
    rows = read_json(model, METADATA_SITES)
    if rows is None:
        return {}
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise damaged(METADATA_SITES, "expected a list of sites")
    specs: dict[str, SiteSpec] = {}
    for row in rows:
        try:
            spec = SiteSpec.from_dict(row)
        except UnknownVariantError:
            raise
        except ConfigError as error:
            raise damaged(METADATA_SITES, str(error)) from None
        if spec.site in specs:
            raise damaged(METADATA_SITES, f"the site {spec.site!r} is there twice")
        specs[spec.site] = spec
    _check_shapes(model, specs)
    return specs


def _check_shapes(model: onnx.ModelProto, specs: Mapping[str, SiteSpec]) -> None:
    """Raises ModelError where a site's tensor has another shape than its spec says."""
    held = {t.name: tuple(t.dims) for t in model.graph.initializer if t.name.startswith(f"{PREFIX}.")}
    for site, spec in specs.items():
        for name, shape in spec.tensor_shapes().items():
            found = held.get(tensor_name(site, name), shape)
            if found != shape:
                raise damaged(METADATA_SITES, f"tensor {tensor_name(site, name)!r} has the shape {found}, not {shape}")


def laurel_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Returns the nodes of domain ``ai.laurel`` of one graph (not of its subgraphs), in graph order."""
    return [node for node in graph.node if node.domain == DOMAIN]
