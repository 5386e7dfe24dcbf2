"""The tensors of a torch module that were trained: under their own names, and as a file holds them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..opset.schema import tensor_name

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..config import SiteSpec
    from ..torch_residual.module import LaurelResidual
    from .file import Array


def site_parameters(module: nn.Module) -> Iterator[tuple[SiteSpec, dict[str, Array]]]:
    """Yields what each LAuReL site of *module* is, in the element type that it has now, and its parameters by name.

    The names and shapes are those of :meth:`SiteSpec.parameter_shapes`; bfloat16 comes as float32.
    """
    from ..torch_residual.module import laurel_modules

    for laurel in laurel_modules(module).values():
        spec = own_spec(laurel)
        yield spec, {name: _array(laurel.get_parameter(name)) for name in spec.parameter_shapes()}


def own_spec(laurel: LaurelResidual) -> SiteSpec:
    """Returns the spec of a residual with the element type that its parameters have now."""
    dtype = next(laurel.parameters()).dtype
    return laurel.spec.with_dtype(str(dtype).removeprefix("torch."))


def trained_tensors(module: nn.Module) -> dict[str, Array]:
    """Returns name in the file to value for everything in *module* that trains; bfloat16 comes as float32.

    The parameters of a LAuReL site come as the resolved tensors that a file holds (α and β instead of w), with the
    bits that the module computes with. Parameters that were not imported go by their path.
    """
    from ..torch_residual.import_record import META
    from ..torch_residual.module import laurel_modules

    values: dict[str, Array] = {}
    inside: set[int] = set()
    for site, laurel in laurel_modules(module).items():
        inside.update(map(id, laurel.parameters()))
        if any(parameter.requires_grad for parameter in laurel.parameters()):
            values.update((tensor_name(site, name), _array(tensor)) for name, tensor in laurel.resolved().items())
    record = getattr(module, "meta", {}).get(META)
    names: dict[str, str] = record.tensors if record is not None else {}
    for path, parameter in module.named_parameters():
        if parameter.requires_grad and id(parameter) not in inside:
            values[names.get(path, path)] = _array(parameter)
    return values


def _array(tensor: Tensor) -> Array:
    import torch

    from laurel_graph.torch_residual.sharded import whole

    value = whole(tensor.detach()).cpu()
    array: Array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return array
