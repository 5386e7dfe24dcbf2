"""The library's sums and their gradients against autograd in float64, on every instruction set."""

import itertools
from dataclasses import replace

import pytest
import torch
from tolerance import assert_close

from laurel_graph import runtime
from laurel_graph.torch_residual import native_sum as sums
from laurel_graph.torch_residual import sum as autograd
from laurel_graph.torch_residual.sum import Form, laurel_sum

pytestmark = pytest.mark.skipif(runtime.library_path() is None, reason="the library of kernels is not built")
each_isa = pytest.mark.parametrize("isa", runtime.available_isas())

ORDERS = {"rows": (0, 1), "channels": (0, 1, 2), "channels last": (0, 2, 1)}
SHAPES = {
    "rows": [(1, 1), (3, 7), (50, 33), (131, 96), (48, 384), (2, 1000), (0, 8)],
    "channels": [(1, 1, 1), (2, 3, 5), (2, 24, 49), (1, 70, 196), (3, 17, 300), (2, 130, 17), (2, 6, 1), (0, 4, 3)],
    "channels last": [(2, 12, 5), (1, 70, 50)],
}
RANKS = [(), (1,), (4,), (16,), (33,), (128,), (5, 16), (8, 3, 20)]


def make_sum(layout, shape, ranks, scales, relu=False, extra=0, seed=0):
    """Returns a form and the arguments of :func:`laurel_sum` in float64.

    Args:
        layout: a key of ORDERS.
        shape: of every tensor; the feature axis is 1.
        ranks: of each product; the first and every third one work on the first term, the others on one tensor each.
        scales: for each term ``None``, "scalar" or "channel".
        relu: whether the sum ends in one.
        extra: tensors behind the terms.
        seed: of the random numbers.
    """
    draw = torch.Generator().manual_seed(seed)

    def random(*size):
        return torch.randn(size, generator=draw).double()

    width, count = shape[1], len(scales) + extra
    sources = tuple(0 if i % 3 == 0 else min(i, count - 1) for i in range(len(ranks)))
    if extra:
        sources = (*sources[:-extra], *range(len(scales), count))
    form = Form(len(scales), sources, 1, ORDERS[layout], torch.float64, torch.float64, relu)
    column = (width, *[1] * (len(shape) - 2))
    factors = [s if s is None else random(*(column if s == "channel" else (1,))) for s in scales]
    tensors = [random(*shape) + 0.5 for _ in range(count)]  # with a positive gradient no sum comes near zero
    if layout == "channels last":
        tensors = [t.permute(0, 2, 1).contiguous().permute(0, 2, 1) for t in tensors]
    downs = [random(width, rank) / width**0.5 for rank in ranks]
    up = random(sum(ranks), width) / max(1, sum(ranks)) ** 0.5 if ranks else None
    return form, factors, tensors, downs, up


def results(form, factors, tensors, downs, up, dtype, wanted=None):
    """Returns y and the gradients of all arguments, or of those numbered in *wanted*, for a positive gradient of y."""
    form = replace(form, dtype=dtype, work=dtype)
    leaves = [*factors, *tensors, *downs, up]
    leaves = [t if t is None else t.to(dtype).detach() for t in leaves]
    given = [t for i, t in enumerate(leaves) if t is not None and (wanted is None or i in wanted)]
    for t in given:
        t.requires_grad_()
    a, b = len(factors), len(factors) + len(tensors)
    y = laurel_sum(form, leaves[:a], leaves[a:b], leaves[b:-1], leaves[-1])
    grad = torch.rand(y.shape, generator=torch.Generator().manual_seed(9)).to(dtype)
    return [y.detach(), *torch.autograd.grad(y, given, grad)]


def check(case, wanted=None):
    """Compares the library in float32 with torch in float64."""
    values = (*case[1], *case[2], *case[3], case[4])
    single = [v if v is None else v.float() for v in values]
    assert sums.takes(replace(case[0], dtype=torch.float32, work=torch.float32), single)
    exact = [case[0], *([v if v is None else v.float().double() for v in part] for part in case[1:4])]
    exact.append(case[4] if case[4] is None else case[4].float().double())
    actual = results(*case, torch.float32, wanted)
    expected = results(*exact, torch.float64, wanted)
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == torch.float32
        assert_close(one, other)
    return actual


@each_isa
@pytest.mark.parametrize("layout", ORDERS)
def test_library_equals_autograd_when_shapes_and_ranks_vary(isa, layout, monkeypatch):
    monkeypatch.setenv("LAUREL_ISA", isa)
    scales = itertools.cycle([("scalar", "scalar"), ("channel", "channel", "scalar"), (None, None), (None, "channel")])
    for i, (shape, ranks) in enumerate(itertools.product(SHAPES[layout], RANKS)):
        check(make_sum(layout, shape, ranks, next(scales), relu=bool(i // 2 % 2), seed=i))


@each_isa
@pytest.mark.parametrize("layout", ORDERS)
def test_library_equals_autograd_when_tensors_enter_through_products_alone(isa, layout, monkeypatch):
    monkeypatch.setenv("LAUREL_ISA", isa)
    for ranks, extra in (((4,), 1), ((7, 16), 1), ((3, 5, 16, 9), 3)):
        check(make_sum(layout, SHAPES[layout][1], ranks, ("scalar", None), relu=extra == 3, extra=extra))


@each_isa
@pytest.mark.parametrize("layout", ORDERS)
@pytest.mark.parametrize("relu", [False, True])
def test_each_gradient_is_right_when_it_is_the_only_one_needed(isa, layout, relu, monkeypatch):
    monkeypatch.setenv("LAUREL_ISA", isa)
    case = make_sum(layout, (2, 19, 21)[: len(ORDERS[layout])], (5, 3), ("channel", None, "scalar"), relu)
    for number in range(len(case[1]) + len(case[2]) + len(case[3]) + 1):
        if number != 1:  # the scale that is not there
            check(case, {number})


@each_isa
@pytest.mark.parametrize("layout", ["rows", "channels"])
def test_results_are_right_and_repeat_when_threads_share_the_work(isa, layout, monkeypatch):
    monkeypatch.setenv("LAUREL_ISA", isa)
    shape = (1500, 160) if layout == "rows" else (5, 160, 300)
    case = make_sum(layout, shape, (16, 4), ("scalar", "channel"), relu=True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        first, again = check(case), results(*case, torch.float32)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("layout", ["rows", "channels"])
def test_ten_terms_and_products_are_taken(layout):
    check(make_sum(layout, SHAPES[layout][2], (2,) * 10, ("scalar", None, "channel") * 3 + (None,)))


@pytest.mark.parametrize("native", [False, True])
def test_relu_treats_nan_and_zero_as_torch_does(native, monkeypatch):
    if not native:
        monkeypatch.setattr(sums, "takes", lambda form, arguments: False)
    x = torch.tensor([[float("nan"), -1.0, 0.0, -0.0, 2.0, float("inf")]], requires_grad=True)
    form = Form(2, (), 1, (0, 1), torch.float32, torch.float32, relu=True)
    y = laurel_sum(form, [None, None], [x, torch.zeros_like(x)], [], None)
    expected = torch.relu(x + torch.zeros_like(x))
    assert torch.equal(y.nan_to_num(7.0), expected.nan_to_num(7.0))
    gradients = [torch.autograd.grad(value.sum(), x)[0] for value in (y, expected)]
    assert torch.equal(*gradients)


def test_torch_computes_the_gradients_when_somebody_looks_on():
    case = make_sum("channels", (2, 12, 30), (4,), ("scalar", "channel"), relu=True)

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    form = replace(case[0], dtype=torch.float32, work=torch.float32)
    factors, tensors, downs = ([t.float().requires_grad_() for t in part] for part in case[1:4])
    up = case[4].float().requires_grad_()
    y = laurel_sum(form, factors, tensors, downs, up)
    leaves = [*factors, *tensors, *downs, up]
    native = torch.autograd.grad(y.square().sum(), leaves, retain_graph=True)
    with Watch():
        watched = torch.autograd.grad(y.square().sum(), leaves)
    for one, other in zip(native, watched, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("change", ["float64", "subclass", "many terms"])
def test_torch_computes_the_sum_when_the_library_does_not_take_it(change):
    form = Form(2, (), 1, (0, 1), torch.float32, torch.float32)
    tensors = [torch.ones(2, 3)] * 2
    if change == "float64":
        form, tensors = replace(form, dtype=torch.float64, work=torch.float64), [t.double() for t in tensors]
    elif change == "subclass":

        class Own(torch.Tensor):
            pass

        tensors = [t.as_subclass(Own) for t in tensors]
    else:
        tensors = [torch.ones(2, 3)] * (sums.MAX_TERMS + 1)
        form = replace(form, terms=len(tensors))
    scales = [None] * form.terms
    assert not sums.takes(form, [*scales, *tensors])
    assert torch.equal(laurel_sum(form, scales, tensors, [], None).double(), sum(t.double() for t in tensors))


def test_error_is_raised_when_the_instruction_set_changes_before_the_backward_pass(monkeypatch):
    if len(runtime.available_isas()) < 2:
        pytest.skip("needs two instruction sets")
    form = Form(1, (0,), 1, (0, 1), torch.float32, torch.float32)
    x, a, up = torch.ones(3, 8), torch.ones(8, 1, requires_grad=True), torch.ones(1, 8, requires_grad=True)
    y = autograd.laurel_sum(form, [None], [x], [a], up)
    monkeypatch.setenv("LAUREL_ISA", runtime.available_isas()[-1])
    with pytest.raises(RuntimeError, match="LAUREL_ISA"):
        y.sum().backward()
