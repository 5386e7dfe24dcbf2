"""The formula against itself: the equations written out by hand, the start, the weights."""

import ml_dtypes
import numpy as np
import pytest

from laurel_graph import formula
from laurel_graph.config import VARIANTS, SiteSpec

RNG = np.random.default_rng(0)


def make_spec(**changes):
    fields = {"site": "a", "variant": "rw+lr+pa", "axis": -1, "width": 12, "ndim": 3, "rank": 5, "previous": 2}
    fields.update(changes)
    if "pa" not in fields["variant"]:
        fields["previous"] = 0
    return SiteSpec(**fields)


def test_residual_is_the_equation_when_written_out_per_row():
    x, f, p1, p2 = RNG.standard_normal((4, 7, 12))
    A, B, gamma = RNG.standard_normal((12, 5)), RNG.standard_normal((5, 12)), RNG.standard_normal(2)
    PA, PB = RNG.standard_normal((2, 12, 5)), RNG.standard_normal((2, 5, 12))
    alpha, beta = RNG.uniform(0.5, 1.5, 12), RNG.uniform(0.5, 1.5, 12)
    tensors = {"alpha": alpha, "beta": beta, "A": A, "B": B, "gamma": gamma, "previous_A": PA, "previous_B": PB}
    got = formula.residual(x, f, tensors, [p1, p2])
    for n in range(7):
        for d in range(12):
            low = sum(x[n, i] * A[i, j] * B[j, d] for i in range(12) for j in range(5))
            links = sum(
                gamma[k] * p[n, i] * PA[k, i, j] * PB[k, j, d]
                for k, p in enumerate((p1, p2))
                for i in range(12)
                for j in range(5)
            )
            assert got[n, d] == pytest.approx(alpha[d] * f[n, d] + beta[d] * (x[n, d] + low + links), rel=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_residual_is_the_same_when_the_feature_axis_is_moved(variant):
    spec = make_spec(variant=variant)
    tensors = {name: RNG.standard_normal(shape) for name, shape in spec.tensor_shapes().items()}
    x, f, *previous = RNG.standard_normal((2 + spec.previous, 2, 12, 3, 4))
    last = [np.moveaxis(v, 1, -1) for v in (x, f, *previous)]
    got = formula.residual(x, f, tensors, previous, axis=1)
    assert np.allclose(np.moveaxis(got, 1, -1), formula.residual(last[0], last[1], tensors, last[2:]), atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("weights", ["softmax", "sigmoid", "free"])
@pytest.mark.parametrize("previous_map", ["identity", "low-rank"])
def test_residual_is_the_plain_add_to_the_bit_when_at_the_start(variant, weights, previous_map):
    spec = make_spec(variant=variant, weights=weights, previous_map=previous_map)
    tensors = formula.resolve(spec, formula.initial_parameters(spec))
    x, f, *previous = RNG.standard_normal((2 + spec.previous, 9, 12)).astype(np.float32)
    assert formula.residual(x, f, tensors, previous).tobytes() == (x + f).tobytes()


def test_branches_add_up_when_a_join_has_several():
    spec = make_spec(variant="rw")
    x, f, g = RNG.standard_normal((3, 4, 12))
    tensors = {"alpha": np.array(0.5), "beta": np.array(1.5)}
    assert spec.previous == 0
    assert np.allclose(formula.residual(x, [f, g], tensors), 0.5 * (f + g) + 1.5 * x)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_weights_are_bounded_when_w_is_far_out(kind):
    alpha, beta = formula.resolve_weights(kind, RNG.uniform(-30, 30, (2, 1000)))
    assert (alpha >= 0).all() and (alpha <= 2).all() and (beta >= 0).all() and (beta <= 2).all()
    if kind == "softmax":
        assert np.allclose(alpha + beta, 2)


@pytest.mark.parametrize("weights", ["softmax", "sigmoid", "free"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_resolved_tensors_are_the_same_when_unresolved_and_resolved_again(weights, per_channel):
    spec = make_spec(weights=weights, per_channel=per_channel)
    parameters = {name: RNG.standard_normal(shape) for name, shape in spec.parameter_shapes().items()}
    tensors = formula.resolve(spec, parameters)
    again = formula.resolve(spec, formula.unresolve(spec, tensors))
    assert list(tensors) == list(spec.tensor_shapes())
    assert all(np.allclose(tensors[name], again[name], rtol=1e-12) for name in tensors)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("w", [-1000.0, -120.0, -18.0, -9.5, 9.0, 20.0, 60.0, 1000.0])
def test_w_comes_back_finite_and_gives_the_stored_weights_when_they_are_saturated(dtype, kind, w):
    np_dtype = np.dtype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)
    with np.errstate(over="ignore"):
        alpha, beta = formula.resolve_weights(kind, np.array([w, 0.0 if kind == "sigmoid" else -w]))
    stored = [v.astype(np_dtype).astype(np.float64) for v in (alpha, beta)]
    back = formula.unresolve_weights(kind, *stored, dtype)
    assert np.isfinite(back).all()
    again = [v.astype(np_dtype).astype(np.float64) for v in formula.resolve_weights(kind, back)]
    step = float(ml_dtypes.finfo(np_dtype).eps)
    np.testing.assert_allclose(again, stored, rtol=2 * step, atol=1e-300)


def test_column_orthogonal_start_has_orthogonal_columns_when_the_rank_divides_the_width():
    a = formula.column_orthogonal(12, 4).astype(np.float64)
    assert np.allclose(a.T @ a, np.eye(4) * 12 / 4 / (4 * 12))
    assert a[5, 1] == pytest.approx(1 / np.sqrt(48)) and a[5, 2] == 0


def test_xavier_draw_depends_on_site_and_seed_alone_when_repeated():
    first = formula.initial_parameters(make_spec(init="xavier"))["A"]
    assert (formula.initial_parameters(make_spec(init="xavier"))["A"] == first).all()
    assert (formula.initial_parameters(make_spec(init="xavier", seed=1))["A"] != first).any()
    assert (formula.initial_parameters(make_spec(init="xavier", site="b"))["A"] != first).any()
    assert np.abs(first).max() <= np.sqrt(6 / 17)
