"""The one table of tolerances, by dtype: largest difference relative to the scale of the expected output."""

import numpy as np

TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}


def relative_difference(actual, expected):
    """Returns max |actual - expected| over the scale max |expected| (1 where that is 0); inf where NaNs differ."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shape {actual.shape} instead of {expected.shape}"
    if not expected.size:
        return 0.0
    difference = np.abs(actual - expected)
    difference[(actual == expected) | (np.isnan(actual) & np.isnan(expected))] = 0
    scale = np.max(np.abs(expected), initial=0, where=np.isfinite(expected)) or 1.0
    return float(np.nan_to_num(difference, nan=np.inf).max() / scale)


def assert_close(actual, expected, dtype="float32"):
    """Fails when *actual* is further from *expected* than :data:`TOLERANCE` allows for *dtype*."""
    difference = relative_difference(actual, expected)
    assert difference <= TOLERANCE[dtype], f"relative difference {difference:.3g}, allowed {TOLERANCE[dtype]:.3g}"
