"""Holds the parts of a term against each other: what a test of a term of your own calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import VerificationError

Array = NDArray[Any]
TOLERANCE = 1e-5
"""Largest difference over the scale of the result, in float32."""
TOLERANCE_16 = 2e-2
"""The same for function bodies in float16."""
SHAPES: tuple[tuple[int, tuple[int, ...]], ...] = ((-1, (2, 5, 8)), (-1, (3, 8)), (1, (2, 8, 4, 3)), (1, (2, 8, 5)))
"""Feature axis and shape of the joins that a term is tried on."""


def check_term(
    variant: str,
    options: Mapping[str, object] | None = None,
    *,
    opsets: Sequence[int] = (13, 17, 21),
    previous: int = 3,
    tolerance: float = TOLERANCE,
) -> float:
    """Tries a variant on tokens and on pixels: one result from formula, torch and function body, gradients, start.

    Args:
        variant: as for :class:`laurel_graph.LaurelConfig`.
        options: values of its options.
        opsets: versions of the ONNX operator set that the body is run in.
        previous: how many earlier activations there are.
        tolerance: the largest difference over the scale of the result.

    Returns:
        The largest difference found.

    Raises:
        VerificationError: two of its parts compute something else, its tensors or the inputs get no gradient, or it
            does not start with the bits of x + f; the message says which and where.
    """
    from ..config import LaurelConfig

    config = LaurelConfig(variant=variant, rank=3, options=dict(options or {}))  # type: ignore[arg-type]
    worst = 0.0
    for axis, shape in SHAPES:
        spec = config.spec_for("site", axis=axis, width=8, ndim=len(shape), dtype="float32", previous=previous)
        if spec is None:
            raise VerificationError(f"variant {variant!r} leaves nothing to do with {previous} earlier activations.")
        where = f"variant {variant!r} at {shape}, features on axis {axis}"
        draw = np.random.default_rng(0)
        x, f, *earlier = (draw.standard_normal(shape).astype(np.float32) for _ in range(2 + spec.previous))
        worst = max(worst, _Trial(spec, where, x, f, earlier, tolerance).run(opsets))
    return worst


_DTYPES = ("float32", "float16")


class _Trial:
    """One variant at one site."""

    def __init__(self, spec: Any, where: str, x: Array, f: Array, earlier: list[Array], tolerance: float) -> None:
        self.spec, self.where, self.tolerance = spec, where, tolerance
        self.x, self.f, self.earlier = x, f, earlier

    def run(self, opsets: Sequence[int]) -> float:
        import torch

        from ..formula import residual, resolve
        from ..torch_residual.module import LaurelResidual

        module = LaurelResidual(self.spec)
        inputs = [torch.from_numpy(array).requires_grad_() for array in (self.x, self.f, *self.earlier)]
        started = {name: p.detach().numpy().copy() for name, p in module.named_parameters()}
        self.same_bits(module(*inputs).detach().numpy(), "torch")
        for opset in opsets:
            for dtype in _DTYPES:
                what = f"the function body in opset {opset} and {dtype}"
                self.same_bits(self.body(resolve(self.spec, started), opset, dtype), what, dtype)

        draw = np.random.default_rng(1)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.from_numpy(0.3 * draw.standard_normal(parameter.shape)))
        made = module(*inputs)
        made.square().sum().backward()
        for name, tensor in (*module.named_parameters(), *zip(("x", "f"), inputs, strict=False)):
            if tensor.grad is None or not bool(tensor.grad.isfinite().all()) or not bool(tensor.grad.any()):
                raise VerificationError(f"{self.where}: {name} gets no gradient in torch.")
        trained = {name: p.detach().numpy() for name, p in module.named_parameters()}
        exact = {name: value.astype(np.float64) for name, value in resolve(self.spec, trained).items()}
        wide = [array.astype(np.float64) for array in (self.x, self.f, *self.earlier)]
        options = dict(self.spec.options)
        truth = residual(wide[0], wide[1], exact, wide[2:], self.spec.axis, self.spec.terms, options)
        for opset in opsets:
            narrow = self.body(resolve(self.spec, trained), opset, "float16")
            self.near(narrow, truth, f"the function body in opset {opset} and float16", TOLERANCE_16)
        found = {"torch": made.detach().numpy()}
        for opset in opsets:
            found[f"the function body in opset {opset}"] = self.body(resolve(self.spec, trained), opset, "float32")
        return max(self.near(array, truth, what, self.tolerance) for what, array in found.items())

    def body(self, tensors: Mapping[str, Array], opset: int, dtype: str) -> Array:
        """What ONNX Runtime makes of the function body."""
        import onnxruntime
        from onnx import helper

        from ..opset.functions import IR_VERSION, function
        from ..opset.nodes import ELEMENT_TYPES
        from ..opset.schema import DOMAIN, VERSION, Operator

        operator = Operator.of(self.spec)
        earlier = {f"previous_{j + 1}": array for j, array in enumerate(self.earlier)}
        feeds = {name: a.astype(dtype) for name, a in {"x": self.x, "f": self.f, **earlier, **tensors}.items()}
        node = helper.make_node(operator.name, operator.inputs, ["y"], domain=DOMAIN)
        kind = ELEMENT_TYPES[dtype]
        infos = [helper.make_tensor_value_info(n, kind, feeds[n].shape) for n in operator.inputs]
        made = helper.make_tensor_value_info("y", kind, self.x.shape)
        graph = helper.make_graph([node], "term", infos, [made])
        imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)]
        bodies = [function(operator, opset, dtype)]
        model = helper.make_model(graph, functions=bodies, opset_imports=imports, ir_version=IR_VERSION)
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
            result: Array = session.run(None, feeds)[0]
        except Exception as error:  # ONNX Runtime's errors share no base class
            why = f"{self.where}: the function body does not run in opset {opset} and {dtype}: {error}"
            raise VerificationError(why) from error
        return result

    def same_bits(self, found: Array, what: str, dtype: str = "float32") -> None:
        if found.shape != self.x.shape or not np.array_equal(found, self.x.astype(dtype) + self.f.astype(dtype)):
            raise VerificationError(f"{self.where}: {what} does not start with the bits of x + f.")

    def near(self, found: Array, truth: Array, what: str, tolerance: float) -> float:
        far = float(np.abs(found - truth).max() / np.abs(truth).max()) if found.shape == truth.shape else np.inf
        if not far <= tolerance:
            raise VerificationError(f"{self.where}: {what} is {far:.3g} of the scale away from the formula.")
        return far
