"""Matrices that several tests use."""

import numpy as np
import pytest


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def decaying(rng):
    """Make a matrix of this shape with singular values 1, 1/2, 1/3, ..."""

    def make(m, n, dtype=np.float32):
        k = min(m, n)
        u, _ = np.linalg.qr(rng.standard_normal((m, k)))
        v, _ = np.linalg.qr(rng.standard_normal((n, k)))
        return ((u / np.arange(1, k + 1)) @ v.T).astype(dtype)

    return make
