"""The functions of PyTorch and scikit-learn: the same signatures, the same results to rounding of the optimum."""

import inspect

import numpy as np
import pytest

import tensorslim


def test_svd_lowrank_has_the_signature_of_torch():
    torch = pytest.importorskip("torch")
    theirs = inspect.signature(torch.svd_lowrank).parameters
    ours = inspect.signature(tensorslim.svd_lowrank).parameters
    assert [p for p in ours if p != "seed"] == list(theirs)
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default and ours[name].kind == parameter.kind
    assert ours["seed"].kind == inspect.Parameter.KEYWORD_ONLY


def test_randomized_svd_has_the_signature_of_scikit_learn():
    extmath = pytest.importorskip("sklearn.utils.extmath")
    theirs = inspect.signature(inspect.unwrap(extmath.randomized_svd)).parameters
    ours = inspect.signature(tensorslim.randomized_svd).parameters
    assert list(ours) == list(theirs)
    for name, parameter in theirs.items():
        assert (ours[name].default, ours[name].kind) == (parameter.default, parameter.kind), name


def test_svd_lowrank_returns_what_torch_returns():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    for shape in [(50, 30), (30, 50), (2, 3, 20, 15)]:
        low = torch.randn(*shape[:-1], 5, dtype=torch.float64) @ torch.randn(
            *shape[:-2], 5, shape[-1], dtype=torch.float64
        )
        for M in (None, low.mean(-2, keepdim=True)):
            U, S, V = tensorslim.svd_lowrank(low, q=5, M=M)
            theirs = torch.svd_lowrank(low, q=5, niter=4, M=M)
            assert [a.shape for a in (U, S, V)] == [a.shape for a in theirs]
            assert [a.dtype for a in (U, S, V)] == [a.dtype for a in theirs]
            assert torch.allclose(S, theirs[1], rtol=1e-8, atol=1e-8)
            want = low if M is None else low - M
            assert torch.allclose(U @ torch.diag_embed(S) @ V.mT, want, atol=1e-8)
    U, S, V = tensorslim.svd_lowrank(torch.eye(4), q=None, niter=None)
    assert S.shape == (4,)


def test_svd_lowrank_takes_numpy(rng):
    a = rng.standard_normal((40, 30))
    U, S, V = tensorslim.svd_lowrank(a, 30)
    assert isinstance(U, np.ndarray) and np.allclose(S, np.linalg.svd(a, compute_uv=False))
    assert np.allclose((U * S) @ V.T, a)


def test_randomized_svd_gives_the_example_of_its_documentation():
    a = np.array([[1, 2, 3, 5], [3, 4, 5, 6], [7, 8, 9, 10]])
    U, s, Vt = tensorslim.randomized_svd(a, n_components=2, random_state=0)
    assert U.shape == (3, 2) and s.shape == (2,) and Vt.shape == (2, 4)
    assert np.allclose(s, np.linalg.svd(a, compute_uv=False)[:2])


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
@pytest.mark.parametrize("transpose", ["auto", True, False])
def test_randomized_svd_returns_what_scikit_learn_returns(rng, shape, transpose):
    extmath = pytest.importorskip("sklearn.utils.extmath")
    a = rng.standard_normal((shape[0], 6)) @ np.diag(2.0 ** -np.arange(6)) @ rng.standard_normal((6, shape[1]))
    ours = tensorslim.randomized_svd(a, 6, random_state=1, transpose=transpose)
    theirs = extmath.randomized_svd(a, 6, random_state=1, transpose=transpose)
    for x, y in zip(ours, theirs):
        assert x.shape == y.shape and x.dtype == y.dtype and np.allclose(x, y, atol=1e-8)


def test_randomized_svd_honours_its_options(rng):
    sparse = pytest.importorskip("scipy.sparse")
    a = rng.standard_normal((200, 150))
    s = np.linalg.svd(a, compute_uv=False)
    errors = [np.abs(tensorslim.randomized_svd(a, 5, n_iter=q, random_state=0)[1] - s[:5]).max() for q in (0, 2, 8)]
    assert errors[0] > errors[1] > errors[2]
    of = [tensorslim.randomized_svd(a, 3, random_state=r)[0] for r in (4, 4, 5)]
    assert np.array_equal(of[0], of[1]) and not np.array_equal(of[0], of[2])
    states = [np.random.RandomState(4) for _ in range(2)]
    assert np.array_equal(*(tensorslim.randomized_svd(a, 3, random_state=state)[0] for state in states))
    np.random.seed(3)
    first = tensorslim.randomized_svd(a, 3)[0]
    np.random.seed(3)
    assert np.array_equal(first, tensorslim.randomized_svd(a, 3)[0])
    dense = a * (np.abs(a) > 1)
    found = tensorslim.randomized_svd(sparse.csr_matrix(dense), 3, random_state=0)
    assert np.array_equal(found[1], tensorslim.randomized_svd(dense, 3, random_state=0)[1])
    for wrong in ({"power_iteration_normalizer": "QQ"}, {"random_state": "a"}, {"svd_lapack_driver": "x"}):
        with pytest.raises(ValueError):
            tensorslim.randomized_svd(a, 3, **wrong)
