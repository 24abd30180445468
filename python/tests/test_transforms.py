"""Hadamard transforms, rotations, bases and budgets against their definitions."""

import pickle

import numpy as np
import pytest

import tensorslim


def matrix(n):
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_transform_is_the_product_with_the_matrix(rng, dtype):
    x = rng.integers(-4, 5, (3, 5, 64)).astype(dtype)
    want = x.astype(np.float64) @ matrix(64)
    for view in (x, np.asfortranarray(x), np.ascontiguousarray(x[:, ::-1])[:, ::-1]):
        y = tensorslim.hadamard(view)
        assert y.dtype == dtype and np.array_equal(y, want)
    assert np.array_equal(tensorslim.hadamard(x, orthonormal=True), want / 8)
    assert np.array_equal(tensorslim.hadamard_transform(x, scale=0.5), want / 2)
    assert np.array_equal(tensorslim.hadamard(x[0, 0]), want[0, 0])


def test_a_transform_in_place_changes_its_array(rng):
    x = rng.integers(-4, 5, (6, 32)).astype(np.float32)
    want = x @ matrix(32)
    strided = np.zeros((12, 64), np.float32)[::2, ::2]
    strided[:] = x
    assert tensorslim.hadamard(strided, inplace=True) is strided and np.array_equal(strided, want)
    x.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        tensorslim.hadamard(x, inplace=True)


def test_other_lengths_are_padded_with_zeros(rng):
    x = rng.standard_normal((4, 100))
    padded = np.zeros((4, 128))
    padded[:, :100] = x
    assert np.allclose(tensorslim.hadamard_transform(x, 0.1), 0.1 * (padded @ matrix(128))[:, :100])
    assert tensorslim.hadamard_transform(np.zeros((0, 8))).shape == (0, 8)


def test_lengths_with_a_base_have_a_matrix_of_their_own():
    h = tensorslim.hadamard(np.eye(96))
    assert np.allclose(h @ h.T, 96 * np.eye(96)) and set(np.unique(h)) == {-1.0, 1.0}
    below, above = tensorslim.hadamard_nearest(97)
    assert below == 96 and above > 97


@pytest.mark.parametrize("scheme, dim", [("order", 96), ("blocks", 48), ("kac", 50), ("padded", 37)])
def test_a_rotation_is_orthogonal_and_undone(rng, scheme, dim):
    q = tensorslim.Rotation(dim, 42, scheme)
    x = rng.standard_normal((7, dim))
    y = q.apply(x)
    assert y.shape == (7, q.output_dim) and np.allclose(np.linalg.norm(y, axis=1), np.linalg.norm(x, axis=1))
    assert np.allclose(q.inverse(y), x) and not np.allclose(y[:, :dim], x)
    again = [tensorslim.Rotation(dim, 42, scheme), pickle.loads(pickle.dumps(q))]
    assert all(np.array_equal(r.apply(x), y) for r in again)
    assert not np.array_equal(tensorslim.Rotation(dim, 43, scheme).apply(x), y)
    with pytest.raises(tensorslim.ShapeError):
        q.apply(x[:, :-1])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_basis_is_orthonormal(rng, dtype):
    y = rng.standard_normal((50, 8)).astype(dtype)
    y[:, 3] = y[:, 2]
    q, r, algorithm, condition = tensorslim.orthonormalize(y)
    eps = np.finfo(q.dtype).eps
    assert np.abs(q.T @ q - np.eye(8)).max() < 100 * eps and np.abs(q @ r - y).max() < 100 * eps
    assert np.array_equal(r, np.triu(r)) and condition > 1e3 and algorithm


def test_a_budget_goes_where_it_loses_least(rng):
    spectra = [np.sort(rng.random(20))[::-1], 100 * np.sort(rng.random(20))[::-1]]
    layers = [tensorslim.Layer((30, 20), s, float((s**2).sum())) for s in spectra]
    found = tensorslim.allocate(layers, 600)
    assert found.total <= 600 and found.bound <= found.loss and found.ranks[0] < found.ranks[1]
    layers[1].protected = True
    assert tensorslim.allocate(layers, 700).ranks == [1, None]
    with pytest.raises(tensorslim.OptionError):
        tensorslim.allocate(layers, 10)
    assert tensorslim.rank_for_ratio(100, 50, 2.0) == 16 and tensorslim.rank_saves_memory(100, 50, 33)
