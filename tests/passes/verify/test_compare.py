"""Differences are held against the scale of their own channel, and against the model's own noise."""

import numpy as np
import pytest

from laurel_graph.passes.verify.compare import MARGIN, Comparison

RNG = np.random.default_rng(0)


def verdict(expected, actual, tolerance=2e-5, axes=None, noise=None, **options):
    comparison = Comparison(axes)
    comparison.add(expected, actual)
    if noise is not None:
        comparison.add_noise(expected, noise)
    return comparison.verdict(tolerance, **options)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_a_small_channel_is_seen_when_it_lies_beside_a_large_one():
    boxes = np.concatenate([640 * normal(64, 4), normal(64, 1)], axis=1)
    wrong = boxes.copy()
    wrong[:, 4] *= 1.001
    found = verdict(boxes, wrong)
    assert not found.equal
    assert found.max_rel == pytest.approx(1e-3, rel=0.1)


@pytest.mark.parametrize("axis", [1, 2])
def test_channels_are_looked_for_on_both_axes_when_nothing_is_known(axis):
    values = normal(2, 40, 40)
    scale = np.where(np.arange(40) < 4, 1e4, 1.0).astype(np.float32)
    values *= scale[:, None] if axis == 1 else scale
    wrong = values.copy()
    np.moveaxis(wrong, axis, 0)[10:] *= np.float32(1.001)
    assert not verdict(values, wrong).equal


def test_logits_are_seen_when_most_of_a_channel_is_a_fill():
    values = normal(50, 8)
    values[RNG.random((50, 8)) < 0.3] = -1e9
    wrong = np.where(values < -1e8, values, values * np.float32(1.0005))
    assert not verdict(values, wrong).equal
    assert verdict(values, values).equal


def test_a_fill_is_held_against_itself_when_it_changes():
    values = normal(50, 8)
    values[::7] = -1e9
    assert not verdict(values, np.where(values < -1e8, values * np.float32(1.001), values)).equal


def test_rounding_is_no_difference_when_a_channel_is_almost_zero():
    values = normal(1, 100)
    values[0, 0] = 1e-9
    moved = values + np.float32(2e-7) * np.sign(values)
    assert verdict(values, moved).equal
    assert not verdict(values, moved, exact=True).equal


def test_noise_of_the_model_widens_what_is_allowed_when_it_was_measured():
    values = normal(32, 16)
    noisy = values * np.float32(1 + 1e-4)
    other = values * np.float32(1 - 3e-4)
    assert not verdict(values, other).equal
    found = verdict(values, other, noise=noisy)
    assert found.equal
    assert found.allowed == pytest.approx(MARGIN * 1e-4, rel=0.1)
    assert not verdict(values, other, noise=noisy, exact=True).equal


def test_noise_of_one_channel_excuses_no_other_when_it_is_larger_there():
    values = normal(64, 2)
    noisy = values * np.asarray([1.01, 1.0], np.float32)
    wrong = values * np.asarray([1.0, 1.001], np.float32)
    assert not verdict(values, wrong, noise=noisy).equal


def test_nan_and_infinity_are_equal_when_both_have_them():
    values = normal(4, 4)
    values[0, 0], values[1, 1] = np.nan, -np.inf
    assert verdict(values, values.copy()).equal
    wrong = values.copy()
    wrong[0, 0] = 0
    found = verdict(values, wrong)
    assert not found.equal
    assert found.max_abs == np.inf


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_types_have_their_own_precision_when_compared(dtype):
    values = normal(8, 8).astype(dtype)
    step = np.finfo(dtype).eps
    assert verdict(values, (values * (1 + step)).astype(dtype), tolerance=0.0).equal
    assert not verdict(values, (values * (1 + 100 * step)).astype(dtype), tolerance=0.0).equal


def test_shapes_and_types_must_agree_when_compared():
    assert not verdict(normal(2, 3), normal(3, 2)).equal
    assert not verdict(np.zeros(2, np.float32), np.zeros(2, np.float64)).equal


def test_integers_are_equal_only_when_they_are_the_same():
    values = np.arange(10)
    assert verdict(values, values).equal
    wrong = values.copy()
    wrong[3] += 1
    assert not verdict(values, wrong).equal
    assert verdict(values, wrong, quantum=1.0).equal


def test_channels_are_pooled_over_samples_when_their_number_stays():
    comparison = Comparison()
    for row in (np.asarray([[1e-6, 1]], np.float32), np.asarray([[1, 1]], np.float32)):
        comparison.add(row, row + np.asarray([[1e-5, 0]], np.float32))
    assert comparison.verdict(2e-5).equal


def test_a_dynamic_axis_is_no_feature_axis_when_its_size_varies():
    comparison = Comparison()
    for length in (3, 5):
        values = normal(2, length, 4)
        comparison.add(values, values)
    assert comparison.verdict(2e-5).equal
    assert comparison.shape == (2, 5, 4)
