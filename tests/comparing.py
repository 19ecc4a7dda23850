"""The two ways in which outputs are compared: close to PyTorch, or the same bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RELATIVE_ERROR = 1e-4
COSINE = 0.99999


def assert_close(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    """max |difference| <= 1e-4 * max |expected|, and cosine >= 0.99999, for each output."""
    assert len(actual) == len(expected)
    for number, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        assert got.shape == wanted.shape and got.dtype == wanted.dtype, f"output {number}"
        a, b = got.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
        assert np.isfinite(a).all(), f"output {number} is not finite"
        error, scale = np.abs(a - b).max(), np.abs(b).max()
        assert error <= RELATIVE_ERROR * scale, (
            f"output {number}: off by {error:.3g}, largest value {scale:.3g}"
        )
        cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        assert cosine >= COSINE, f"output {number}: cosine {cosine:.7f}"


def same(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> bool:
    """Bit-equal: NaN equals itself, 0.0 and -0.0 differ."""
    return len(first) == len(second) and all(
        a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
        for a, b in zip(first, second, strict=True)
    )


def assert_same(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> None:
    if not same(first, second):
        largest = max(
            (np.abs(a - b).max() for a, b in zip(first, second, strict=True) if a.shape == b.shape),
            default=None,
        )
        raise AssertionError(f"outputs differ in bits, at most by {largest}")
