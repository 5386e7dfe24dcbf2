"""The torch module of one residual connection, and which parameters of a rewritten model train.

    x' = α·Σf + β·(x + (xA)B + Σ_{j<k} γ_j·h_j(x_{i-1-j}))

The mathematics is that of :mod:`laurel_graph.formula`; at the start the module returns the same bits as the adds it
stands for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..config import SiteSpec
from ..errors import ConfigError
from ..formula import initial_parameters
from ..opset.schema import PREFIX
from ..variants.registry import applied, term
from ..variants.term import Operands
from .import_record import META, ImportRecord
from .sum import Form, laurel_sum, memory_order

_WEIGHTS = term("rw")

FROZEN = "laurel_frozen"
"""Key of ``GraphModule.meta``: the parameters that :func:`freeze_base` froze."""

CONFIG = "laurel_config"
"""Key of ``GraphModule.meta``: the JSON form of the config that the module was rewritten with."""


ATTRIBUTES = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))
"""What every module that holds a graph has already: no tensor or module inside it may take its place."""


class LaurelResidual(nn.Module):
    """The LAuReL residual of one site in the place of ``x + f``.

    Its parameters are those of :meth:`SiteSpec.parameter_shapes` under their own names: ``w`` or ``alpha`` and
    ``beta``, ``A``, ``B``, ``gamma``, ``previous_A``, ``previous_B``, and those of other terms.

    Attributes:
        spec: what the site gets.
        joins: what the pass that put the module into a graph needs to take it out again.
        is_fused: RW, LR and PA alone are one sum (:mod:`.sum`); with other terms each computes its part.

    Args:
        spec: what the site gets.
        device: where the parameters live.
        dtype: their element type; ``None`` takes :attr:`SiteSpec.dtype`.

    Raises:
        ConfigError: a term has a tensor whose name a module has other use for.
    """

    is_fused = True
    w: Tensor
    alpha: Tensor
    beta: Tensor
    A: Tensor
    B: Tensor
    gamma: Tensor
    previous_A: Tensor
    previous_B: Tensor

    def __init__(
        self, spec: SiteSpec, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.joins: tuple[Any, ...] = ()
        if not all(one.has_kernels for one in spec.terms):
            self.is_fused = False
        dtype = dtype or getattr(torch, spec.dtype)
        for name, array in initial_parameters(spec).items():
            if name not in LaurelResidual.__annotations__ and hasattr(self, name):
                raise ConfigError(
                    f"variant {spec.variant!r}: a torch module has a {name!r} already; rename the tensor."
                )
            self.register_parameter(name, nn.Parameter(torch.from_numpy(array).to(device=device, dtype=dtype)))

    def forward(
        self,
        x: Tensor,
        *values: Tensor,
        outer: bool = False,
        skip_scale: float = 1.0,
        branch_scale: float = 1.0,
        relu: bool = False,
    ) -> Tensor:
        """Returns x' in the shape and (promoted) element type of the join.

        16-bit inputs are accumulated in float32 and rounded once per add.

        Args:
            x: the skip, ``(..., D)`` or ``(N, D, *spatial)`` after :attr:`SiteSpec.axis`.
            values: the branches, inner to outer, then the :attr:`SiteSpec.previous` earlier activations, nearest
                first; all of x's shape.
            outer: the call stands for an outer add of an n-ary join: x + α·f, with the site's α and nothing else.
            skip_scale: factor of x and of the earlier activations (a join ``torch.add(f, x, alpha=...)``).
            branch_scale: factor of the branches (a join ``torch.add(x, f, alpha=...)``).
            relu: the call stands for the ReLU behind the join, too.

        Raises:
            ValueError: too few values.
        """
        if isinstance(x, fx.Proxy):  # symbolic tracing keeps the module whole
            kwargs: dict[str, Any] = {"outer": True} if outer else {}
            kwargs |= {"skip_scale": skip_scale} if skip_scale != 1.0 else {}
            kwargs |= {"branch_scale": branch_scale} if branch_scale != 1.0 else {}
            kwargs |= {"relu": True} if relu else {}
            path = x.tracer.path_of_module(self)
            proxy: Any = x.tracer.create_proxy("call_module", path, (x, *values), kwargs)
            return proxy
        links = 0 if outer else self.spec.previous
        branches, previous = values[: len(values) - links], values[len(values) - links :]
        if not branches:
            raise ValueError(
                f"site {self.spec.site!r}: expected a branch and {links} earlier activations, "
                f"found {len(values)} tensors"
            )
        order, dtype = memory_order(x, branches[0]), x.dtype
        scaled = skip_scale != 1.0 or branch_scale != 1.0
        for j, f in enumerate(branches):
            dtype = torch.promote_types(dtype, f.dtype)
            work = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
            last = j == len(branches) - 1
            form = Form(2, (), self.spec.axis % x.ndim, order, dtype, work, relu=relu and last and not scaled)
            if j == 0 and not outer:
                join = self._join if self.is_fused else self._apply_terms
                x = join(form, x, f, previous, skip_scale, branch_scale)
            else:
                skip_scale = skip_scale if j == 0 else 1.0
                x = self._add(form, (None, x), (self._weights(form)[0], f), skip_scale, branch_scale)
        return x.relu() if relu and scaled else x

    def _join(
        self, form: Form, x: Tensor, f: Tensor, previous: Sequence[Tensor], skip_scale: float, branch_scale: float
    ) -> Tensor:
        """Returns α·f + β·(x + (xA)B + Σ γ_j·h_j(x_j)) for one branch."""
        spec, work = self.spec, form.work
        alpha, beta = self._weights(form)
        terms: list[tuple[Tensor | None, Tensor]] = [(beta, x)]
        extra: list[Tensor] = []
        lows, downs, ups = [], [], []
        if spec.has_lr:
            lows, downs, ups = [0], [self.A.to(work)], [self.B.to(work)]
        gammas = self.gamma.to(work).unbind() if spec.has_pa else ()
        if spec.has_low_rank_pa:
            extra = list(previous)
            downs += self.previous_A.to(work).unbind()
            ups += [gamma * b for gamma, b in zip(gammas, self.previous_B.to(work).unbind(), strict=True)]
        else:
            terms += [
                (gamma.view(1) if beta is None else gamma * beta, p) for gamma, p in zip(gammas, previous, strict=True)
            ]
        scaled = skip_scale != 1.0 or branch_scale != 1.0
        if not scaled:
            terms.insert(1, (alpha, f))
        lows += range(len(terms), len(terms) + len(extra))
        up = None
        if ups:
            up = ups[0] if len(ups) == 1 else torch.cat(ups)
            if beta is not None:
                up = up * beta.flatten()
        skip = replace(form, terms=len(terms), lows=tuple(lows), dtype=work if scaled else form.dtype)
        y = laurel_sum(skip, [s for s, _ in terms], [*(t for _, t in terms), *extra], downs, up)
        return self._add(form, (None, y), (alpha, f), skip_scale, branch_scale) if scaled else y

    def _apply_terms(
        self, form: Form, x: Tensor, f: Tensor, previous: Sequence[Tensor], skip_scale: float, branch_scale: float
    ) -> Tensor:
        """As :meth:`_join` for any terms: each changes skip and branch in turn, features last."""
        with torch.autocast(x.device.type, enabled=False):
            skip, branch, *earlier = (t.to(form.work).movedim(form.axis, -1) for t in (x, f, *previous))
            tensors = {name: tensor.to(form.work) for name, tensor in self.resolved().items()}
            at = Operands(skip, earlier, tensors, dict(self.spec.options))
            for one in applied(self.spec.terms):
                skip, branch = one.forward(skip, branch, at)
            sides = [side.broadcast_to(at.x.shape).movedim(-1, form.axis) for side in (skip, branch)]
        if skip_scale == branch_scale == 1.0:
            return laurel_sum(form, [None, None], sides, [], None)
        return self._add(form, (None, sides[0].to(form.dtype)), (None, sides[1]), skip_scale, branch_scale)

    @staticmethod
    def _add(
        form: Form,
        skip: tuple[Tensor | None, Tensor],
        branch: tuple[Tensor | None, Tensor],
        skip_scale: float,
        branch_scale: float,
    ) -> Tensor:
        """Returns the sum of two terms, with the factors and the bits of ``torch.add(..., alpha=...)``."""
        if skip_scale == branch_scale == 1.0:
            return laurel_sum(form, [skip[0], branch[0]], [skip[1], branch[1]], [], None)
        x, f = ((t if s is None else t * s).to(form.dtype) for s, t in (skip, branch))
        if branch_scale == 1.0:
            return torch.add(f, x, alpha=skip_scale)
        return torch.add(x if skip_scale == 1.0 else x * skip_scale, f, alpha=branch_scale)

    def _weights(self, form: Form) -> tuple[Tensor | None, Tensor | None]:
        """Returns α and β in a shape that broadcasts against x, or ``None`` for a variant without RW."""
        if not self.spec.has_rw:
            return None, None
        tail = (-1, *[1] * (len(form.order) - 1 - form.axis)) if self.spec.per_channel else (-1,)
        alpha, beta = self._resolved_weights()
        return alpha.to(form.work).view(tail), beta.to(form.work).view(tail)

    def _resolved_weights(self) -> tuple[Tensor, Tensor]:
        """Returns α and β, ``()`` or ``(D,)``, rounded to the element type of the parameters."""
        if self.spec.weights == "free":
            return self.alpha, self.beta
        pair = _WEIGHTS.resolve_torch(self.spec, {"w": self.w})
        return pair["alpha"], pair["beta"]

    def resolved(self) -> dict[str, Tensor]:
        """Returns the tensors that the operator of this site takes (:meth:`SiteSpec.tensor_shapes`), with gradients."""
        tensors: dict[str, Tensor] = dict(self.named_parameters(recurse=False))
        for one in self.spec.terms:
            tensors.update(one.resolve_torch(self.spec, tensors))
        return {name: tensors[name] for name in self.spec.tensor_shapes()}

    def extra_repr(self) -> str:
        """The variant and sizes, as ``print(model)`` shows them."""
        spec = self.spec
        parts = [spec.variant, f"D={spec.width}", f"axis={spec.axis}"]
        parts += [f"r={spec.rank}"] * bool(spec.rank)
        if spec.has_rw:
            parts.append(f"weights={spec.weights}" + " per channel" * spec.per_channel)
        if spec.has_pa:
            parts.append(f"k={spec.previous} {spec.previous_map}")
        elif spec.previous:
            parts.append(f"k={spec.previous}")
        parts += [f"{name}={value}" for name, value in spec.options]
        return ", ".join(parts)


def laurel_modules(module: nn.Module) -> dict[str, LaurelResidual]:
    """Returns site to module for every LAuReL residual inside *module*, in registration order."""
    return {m.spec.site: m for m in module.modules() if isinstance(m, LaurelResidual)}


def freeze_base(module: nn.Module) -> None:
    """Freezes every parameter of *module* except those of its LAuReL residuals, which are set to train.

    The frozen weights are the caller's own where the module shares them with another one.
    """
    if isinstance(module, fx.GraphModule) and FROZEN not in module.meta:
        laurel_names = {id(p) for m in laurel_modules(module).values() for p in m.parameters()}
        base = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in laurel_names]
        module.meta[FROZEN] = tuple(base)
    module.requires_grad_(False)
    for laurel in laurel_modules(module).values():
        laurel.requires_grad_(True)


class TrainableParameters(dict[str, nn.Parameter]):
    """The parameters of a model that train, by name: for a module imported from ONNX, the names in the file.

    Attributes:
        total: number of elements of all parameters of the model, frozen ones included, and those that a module
            imported from ONNX keeps as buffers, packed ones too.
    """

    def __init__(self, module: nn.Module) -> None:
        record: ImportRecord | None = getattr(module, "meta", {}).get(META)
        names = record.tensors if record is not None else {}
        super().__init__()
        for path, parameter in module.named_parameters():
            if parameter.requires_grad:
                name = names.get(path, path)  # two branches of an If may each have a tensor of one name
                self[path if name in self else name] = parameter
        self.total = sum(p.numel() for p in module.parameters()) + sum(map(_held_as_buffers, module.modules()))

    @property
    def count(self) -> int:
        """Number of elements that train."""
        return sum(p.numel() for p in self.values())

    @property
    def summary(self) -> str:
        """One line: tensors, elements and their share of the whole."""
        share = 100 * self.count / self.total if self.total else math.nan
        return f"{self.count:,} of {self.total:,} parameters train ({share:.3g} %), in {len(self)} tensors"

    def __str__(self) -> str:
        return self.summary


def _held_as_buffers(part: nn.Module) -> int:
    """How many parameters of its file an imported module keeps otherwise than as ``nn.Parameter``; 0 for others."""
    record: ImportRecord | None = getattr(part, "meta", {}).get(META)
    if record is None:
        return 0
    own = ((record.tensors.get(path, path), p.numel()) for path, p in part.named_parameters())
    return max(0, record.parameters - sum(size for name, size in own if not name.startswith(f"{PREFIX}.")))


def trainable_parameters(module: nn.Module) -> TrainableParameters:
    """Returns the parameters of *module* that require gradients, by name; ``.summary`` is one line about them."""
    return TrainableParameters(module)


def parameter_groups(module: nn.Module, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Returns the optimizer's groups: LAuReL parameters without weight decay, others that train (a head) with it.

    Decay would pull w, γ, A and B back to the start, where the model is the original.
    """
    laurel = {id(p) for m in laurel_modules(module).values() for p in m.parameters()}
    ours: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for p in trainable_parameters(module).values():
        (ours if id(p) in laurel else others).append(p)
    groups = [{"params": ours, "weight_decay": 0.0}, {"params": others, "weight_decay": weight_decay}]
    return [group for group in groups if group["params"]]
