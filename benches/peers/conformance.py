"""What other projects test, with tensorslim behind their functions.

    cargo build --release --example svd_c --example fwht_c
    pip install numpy scipy scikit-learn pytest           # torch, too, if it is there
    python benches/peers/conformance.py [--method METHOD] [scikit-learn] [torch] [hadamard]

scikit-learn    The tests of `randomized_svd` that the installed package ships, and those of its estimators that call
                it, run as they are, with `randomized_svd` replaced by a function of its signature.
torch           The properties that PyTorch tests of `torch.svd_lowrank`, said anew: that test is not in its wheel.
                Where torch is installed, it factors the same matrices, too.
hadamard        Those that fast-hadamard-transform tests of its kernels, against the Hadamard matrix of SciPy: that
                package is built for a GPU alone.

A failure that follows from how tensorslim is meant to work stands in BY_DESIGN with its reason, one that another seed
does not have in BY_CHANCE. The exit code is 0 if there is no other, and none of BY_DESIGN passes.
"""

import argparse
import collections
import ctypes
import fnmatch
import importlib
import importlib.util
import os
import pathlib
import sys

os.environ.setdefault("SCIPY_ARRAY_API", "1")
import numpy as np  # noqa: E402
import scipy.linalg  # noqa: E402
import scipy.sparse  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
METHODS = ["auto", "full", "gram", "randomized", "krylov", "single-pass", "nystrom"]  # Method::ALL
TESTED = ["randomized", "krylov", "gram", "full", "auto"]  # one look at the matrix is less than these tests ask for

NOISE = "without power iterations the error is asserted to be large; {} is accurate without them"
DIVERGES = "power iterations without normalization are asserted to diverge; every product is orthonormalized here"
WARNING = "sparse input is made dense, in any format at the same cost, so that there is nothing to warn about"
# (method, test) -> reason; patterns as of a shell.
BY_DESIGN = [
    ("*", "test_randomized_svd_sparse_warnings*", WARNING),
    ("*", "test_randomized_svd_power_iteration_normalizer", DIVERGES),
    ("[kgf]*", "test_randomized_svd_low_rank_with_noise", NOISE),
    ("[kgf]*", "test_randomized_svd_infinite_rank", NOISE),
]
SEED = "U agrees with A V to 5e-4 in each element or not, by the seed: not at 1 of 12 in scikit-learn, at 2 here"
BY_CHANCE = [("[rk]*", "test_whitening*randomized*", SEED)]


class Library:
    """The examples that give the crate C names, of one build profile."""

    def __init__(self, profile):
        target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / profile / "examples"

        def load(name):
            for file in (f"lib{name}.so", f"lib{name}.dylib", f"{name}.dll"):
                if (target / file).exists():
                    return ctypes.CDLL(str(target / file))
            flag = " --release" if profile == "release" else ""
            raise SystemExit(f"{target} has no {name}; first: cargo build{flag} --example svd_c --example fwht_c")

        self.svd, self.fwht = load("svd_c"), load("fwht_c")


class Options(ctypes.Structure):
    """`Options` of svd_c.rs."""

    _fields_ = [
        ("rank", ctypes.c_size_t),
        ("oversample", ctypes.c_size_t),
        ("power_iterations", ctypes.c_size_t),
        ("seed", ctypes.c_uint64),
        ("method", ctypes.c_size_t),
    ]


class Failure(Exception):
    """tensorslim returned an error."""


def factor(library, a, rank, oversample=10, power_iterations=2, seed=0, method="auto"):
    """U, s and Vᵀ of a float32 or float64 array of any strides, and the error that was reported."""
    a = np.asarray(a)
    if any(stride % a.itemsize for stride in a.strides) or a.strides[0] == 0 or a.strides[1] == 0:
        a = a.copy()
    (m, n), size = a.shape, a.itemsize
    # Of an axis that runs backwards the last element is the first in memory.
    start = a.ctypes.data + sum((length - 1) * min(stride, 0) for length, stride in zip(a.shape, a.strides))
    shape = (ctypes.c_size_t * 2)(m, n)
    strides = (ctypes.c_ssize_t * 2)(*(stride // size for stride in a.strides))
    options = Options(rank, oversample, power_iterations, seed, METHODS.index(method))
    u, s, vt, report = np.empty((m, rank), a.dtype), np.empty(rank, a.dtype), np.empty((rank, n), a.dtype), np.empty(2)
    call = getattr(library.svd, f"tensorslim_svd_with_{ {4: 'f32', 8: 'f64'}[size] }")
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in (u, s, vt, report)]
    if call(ctypes.c_void_p(start), shape, strides, ctypes.byref(options), *pointers):
        raise Failure(f"{method} of {m}×{n} {a.dtype} at rank {rank} ended with an error")
    return u, s, vt, report[0]


# scikit-learn


def like_sklearn(library, method):
    """`randomized_svd` by tensorslim. It orthonormalizes every product and transposes wide matrices itself."""
    from sklearn.utils import check_array, check_random_state

    def randomized_svd(
        M,
        n_components,
        *,
        n_oversamples=10,
        n_iter="auto",
        power_iteration_normalizer="auto",
        transpose="auto",
        flip_sign=True,
        random_state=None,
        svd_lapack_driver="gesdd",
    ):
        randomized_svd.calls += 1
        assert power_iteration_normalizer in ("auto", "QR", "LU", "none")
        assert svd_lapack_driver in ("gesdd", "gesvd")
        a = M.toarray() if scipy.sparse.issparse(M) else M
        a = check_array(a, dtype=[np.float64, np.float32])
        small = min(a.shape)
        if n_iter == "auto":
            n_iter = 7 if n_components < 0.1 * small else 4
        seed = int(check_random_state(random_state).randint(1 << 31))
        turned = transpose is True or (transpose == "auto" and a.shape[0] < a.shape[1])
        options = dict(oversample=n_oversamples, power_iterations=n_iter, seed=seed, method=method)
        u, s, vt, _ = factor(library, a.T if turned else a, min(n_components, small), **options)
        if turned:
            u, vt = vt.T, u.T
        if flip_sign:
            signs = np.sign(u[np.abs(u).argmax(axis=0), np.arange(len(s))])
            u, vt = u * signs, vt * signs[:, None]
        return u, s, vt

    randomized_svd.calls = 0
    return randomized_svd


def listed(method, test, reasons):
    for methods, tests, reason in reasons:
        if fnmatch.fnmatchcase(method, methods) and fnmatch.fnmatchcase(test, tests):
            return reason.format(method)
    return None


class Outcomes:
    """A plugin of pytest that keeps what became of each test."""

    def __init__(self):
        self.of = collections.OrderedDict()

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            why = report.longrepr.reprcrash.message.split("\n")[0] if report.failed else ""
            self.of[report.nodeid.split("::", 1)[1]] = (report.outcome, why)


SKLEARN = [
    ("sklearn.utils.extmath", "sklearn.utils.tests.test_extmath", "randomized_svd"),
    ("sklearn.decomposition", "sklearn.decomposition.tests.test_truncated_svd", "randomized"),
    ("sklearn.decomposition", "sklearn.decomposition.tests.test_pca", "randomized"),
]


def scikit_learn(library, methods):
    """Yields (method, test, outcome, why)."""
    import pytest

    for method in methods:
        function = like_sklearn(library, method)
        for module, tests, _ in SKLEARN:
            importlib.import_module(module)
            # They are imported anew, so that they take the function from its module as it is now.
            sys.modules.pop(tests, None)
        restore = []
        for name, module in list(sys.modules.items()):
            for attribute in ("randomized_svd", "_randomized_svd"):
                if name.startswith("sklearn.") and hasattr(module, attribute):
                    restore.append((module, attribute, getattr(module, attribute)))
                    setattr(module, attribute, function)
        try:
            for _, tests, wanted in SKLEARN:
                outcomes, before = Outcomes(), function.calls
                options = ["-p", "no:cacheprovider", "-p", "no:terminal"]
                # Arrays of torch, where it is installed, would have to come through the array API: the adapter takes NumPy's.
                pytest.main(["--pyargs", tests, "-k", f"({wanted}) and not torch", *options], plugins=[outcomes])
                if function.calls == before:
                    yield method, tests, "failed", "no test was found that calls randomized_svd"
                for test, (outcome, why) in outcomes.of.items():
                    yield method, test, outcome, why
        finally:
            for module, attribute, original in restore:
                setattr(module, attribute, original)


# torch


def normal(rng, *shape):
    return rng.standard_normal(shape)


def low_rank(rng, batch, m, n, rank):
    return normal(rng, *batch, m, rank) @ normal(rng, *batch, rank, n)


def sparse(rng, m, n, density):
    """At least one entry for each row and column, the others at random; small where it is far from the diagonal."""
    count = max(m, n, int(density * m * n))
    i, j = (rng.permutation(np.arange(count) % length) for length in (m, n))
    a = np.zeros((m, n))
    np.add.at(a, (i, j), normal(rng, count) * np.exp(-((i - j).astype(float) ** 2)))
    return a


def like_torch(library, a, q, niter, M, method):
    """`torch.svd_lowrank`: batches in front, V and not its transpose, M is taken off, no more than q columns."""
    a = a if M is None else a - M
    flat = a.reshape(-1, *a.shape[-2:])
    parts = [factor(library, x, q, 0, niter, seed, method) for seed, x in enumerate(flat)]
    u, s, vt = (np.stack([part[i] for part in parts]) for i in range(3))
    batch = a.shape[:-2]
    return u.reshape(*batch, *u.shape[1:]), s.reshape(*batch, q), vt.mT.reshape(*batch, *vt.mT.shape[1:])


def torch_lowrank(a, q, niter, M):
    import torch

    M = None if M is None else torch.from_numpy(M)
    return [x.numpy() for x in torch.svd_lowrank(torch.from_numpy(a), q=q, niter=niter, M=M)]


def is_svd(a, exact, q, factors, rank):
    """Whether these are the leading q triplets of a matrix of so many singular values above zero; what is wrong if not.

    `exact` is its SVD by LAPACK, in float64.
    """
    u, s, v = (x.astype(np.float64) for x in factors)
    double = factors[0].dtype == np.float64
    a, tolerance = a.astype(np.float64), 1e-7 if double else 2e-4
    *batch, m, n = a.shape
    if (u.shape, s.shape, v.shape) != ((*batch, m, q), (*batch, q), (*batch, n, q)):
        return f"shapes {u.shape}, {s.shape}, {v.shape}"
    exact_u, exact_s, exact_vt = exact
    # Absolute for elements about 1, as the originals have it for f64.
    scale = max(1.0, exact_s.max() / np.sqrt(max(m, n))) if not double else max(1.0, 1e-3 * exact_s.max())
    if q >= min(m, n) or (rank is not None and q >= rank):
        apart = np.abs((u * s[..., None, :]) @ v.mT - a).max()
        if apart > 2 * tolerance * scale:
            return f"U diag(s) Vᵀ is {apart:.1e} from A"
    apart = np.abs(s - exact_s[..., :q]).max()
    if apart > tolerance * max(1.0, exact_s.max()):
        return f"s is {apart:.1e} from the singular values"
    for name, x in (("U", u), ("V", v)):
        apart = np.abs(x.mT @ x - np.eye(q)).max()
        if apart > tolerance:
            return f"columns of {name} are {apart:.1e} from orthonormal"
    if rank is not None:
        k = min(q, rank)
        for name, x, y in (("U", u, exact_u), ("V", v, exact_vt.mT)):
            one = np.abs(np.linalg.det(x[..., :k].mT @ y[..., :k]))
            if np.abs(one - 1).max() > tolerance * k:
                return f"{name} spans another subspace: |det| is {one.min():.9f}"
    return None


def torch_cases():
    """Yields (name, matrix, q, M, rank)."""
    rng = np.random.default_rng(11)
    sizes = [(2, (17, 4)), (4, (17, 4)), (4, (17, 17)), (10, (100, 40)), (7, (1000, 1000))]
    for rank, (m, n) in sizes:
        for batch in [(), (1,), (3,), (2, 3)] if m < 1000 else [()]:
            for m, n in {(m, n): 0, (n, m): 0}:
                a = low_rank(rng, batch, m, n, rank)
                name = f"rank {rank}, {'×'.join(map(str, (*batch, m, n)))}"
                yield f"{name}, q = {min(m, n)}", a, min(m, n), None, rank
                yield f"{name}, q = {rank}", a, rank, None, rank
    for m, n in [(17, 4), (4, 17), (17, 17), (100, 40), (40, 100), (1000, 1000)]:
        for density in (0.005, 0.1):
            for _ in range(3):
                yield f"density {density}, {m}×{n}, q = {min(m, n)}", sparse(rng, m, n, density), min(m, n), None, None
    # M of one row takes a mean off each column, as principal components do.
    a = low_rank(rng, (), 100, 40, 5) + 3 * normal(rng, 1, 40)
    mean = np.broadcast_to(a.mean(axis=0, keepdims=True), a.shape).copy()
    yield "M, 100×40, q = 40", a, 40, mean, 5
    a = low_rank(rng, (3,), 17, 30, 4) + normal(rng, 3, 17, 30)
    yield "M, 3×17×30, q = 17", a, 17, a - low_rank(rng, (3,), 17, 30, 4), 4


def torch_like(library, methods):
    has_torch = importlib.util.find_spec("torch") is not None
    for name, a, q, M, rank in torch_cases():
        for dtype in (np.float64, np.float32):
            x, y = a.astype(dtype), None if M is None else M.astype(dtype)
            target = x if y is None else x - y
            exact = np.linalg.svd(target.astype(np.float64), full_matrices=False)
            for method in methods:
                try:
                    why = is_svd(target, exact, q, like_torch(library, x, q, 3, y, method), rank)
                except Failure as failure:
                    why = str(failure)
                yield method, f"{name}, {np.dtype(dtype).name}", "failed" if why else "passed", why or ""
            if has_torch:
                why = is_svd(target, exact, q, torch_lowrank(x, q, 3, y), rank)
                yield "(torch)", f"{name}, {np.dtype(dtype).name}", "peer failed" if why else "passed", why or ""
    if not has_torch:
        yield "(torch)", "torch.svd_lowrank on the same matrices", "skipped", "no torch"


# fast-hadamard-transform


def to_bfloat16(x):
    """The bits of bfloat16, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


TO = {"f32": np.float32, "f16": np.float16, "bf16": to_bfloat16}
FROM = {"f32": np.float32, "f16": np.float32, "bf16": from_bfloat16}
# Relative and absolute.
TOLERANCES = {"f32": (3e-4, 3e-3), "f16": (3e-3, 5e-3), "bf16": (1e-2, 5e-2)}


def hadamard_transform(library, x, kind, scale, multiple=1):
    """Along the last axis, of any batch, zeros appended up to `multiple` times a power of two and cut off again."""
    n = x.shape[-1]
    length = multiple
    while length < n:
        length *= 2
    rows = x.reshape(-1, n)
    padded = np.zeros((len(rows), length), x.dtype)
    padded[:, :n] = rows
    call = getattr(library.fwht, f"tensorslim_fwht_rows_{kind}")
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    if call(padded.ctypes.data, len(rows), length):
        raise Failure(f"{kind} of length {length} ended with an error")
    scaled = FROM[kind](padded[:, :n]) * np.float32(scale)
    return TO[kind](scaled).reshape(x.shape)


def sylvester(length, first_columns):
    """The first columns of the Hadamard matrix of a power of two, whose whole may not fit the memory."""
    bits = np.arange(length)[:, None] & np.arange(first_columns)[None, :]
    for shift in (8, 4, 2, 1):
        bits ^= bits >> shift
    return 1.0 - 2.0 * (bits & 1)


def hadamard(library, _):
    rng = np.random.default_rng(0)
    powers = [1 << k for k in range(16)]
    for n in [*powers, 3, 5, 137, 1000, 1025, 4097, 20000]:
        length = 1 << (n - 1).bit_length()
        # Beyond 2^12 some of the columns are enough: no transform is right in those alone.
        columns = min(n, 512) if length > 4096 else n
        matrix = scipy.linalg.hadamard(length, float) if length <= 4096 else sylvester(length, columns)
        for kind, (relative, absolute) in TOLERANCES.items():
            x = TO[kind](normal(rng, 3, 5, n).astype(np.float32))
            exact = FROM[kind](x)
            why = None
            for scale in (1 / np.sqrt(n), 1.0, 0.37):
                y = FROM[kind](hadamard_transform(library, x, kind, scale)).astype(np.float64)
                want = scale * (exact.astype(np.float64) @ matrix[:n, :columns])
                # The tolerances are for the scale that keeps norms.
                allowed = absolute * scale * np.sqrt(n) + relative * np.abs(want)
                apart = np.abs(y[..., :columns] - want) - allowed
                if not (apart <= 0).all():
                    why = why or f"scale {scale:.3g}: off by {apart.max():.1e} more than is allowed"
            # The derivative of a symmetric matrix is the transform itself: <H x, g> = <x, H g>.
            g = TO[kind](normal(rng, 3, 5, n).astype(np.float32))
            hx, hg = (FROM[kind](hadamard_transform(library, z, kind, 1 / np.sqrt(n))) for z in (x, g))
            left, right = np.vdot(hx.astype(float), FROM[kind](g)), np.vdot(exact.astype(float), hg)
            if abs(left - right) > relative * np.linalg.norm(hx) * np.linalg.norm(FROM[kind](g)):
                why = why or f"not symmetric: {left} {right}"
            yield "-", f"{n} in {length}, {kind}", "failed" if why else "passed", why or ""
    # Their other bases are Hadamard matrices of 12, 20, 28 and 40, which are not unique. What is the same for all:
    # entries of ±1, and H Hᵀ = n I.
    for base in (12, 20, 28, 40):
        for log2 in (0, 1, 4, 6):
            n = base << log2
            why = None
            try:
                matrix = hadamard_transform(library, np.eye(n, dtype=np.float32), "f32", 1.0, base).astype(float)
                if not (np.abs(matrix) == 1).all() or not (matrix @ matrix.T == n * np.eye(n)).all():
                    why = "not a Hadamard matrix"
                x = normal(rng, 15, n).astype(np.float32)
                y = hadamard_transform(library, x, "f32", 1 / np.sqrt(n), base)
                if not why and not np.allclose(y, x.astype(float) @ matrix / np.sqrt(n), *TOLERANCES["f32"]):
                    why = "not the product with its matrix"
            except Failure as failure:
                why = str(failure)
            yield "-", f"{n} = {base}·2^{log2}, f32", "failed" if why else "passed", why or ""


PROJECTS = {"scikit-learn": scikit_learn, "torch": torch_like, "hadamard": hadamard}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--method", action="append", choices=METHODS, help=f"[default: {', '.join(TESTED)}]")
    parser.add_argument("--profile", default="release", help="of the build: release or debug")
    parser.add_argument("--verbose", action="store_true", help="a line for each test instead of each kind")
    parser.add_argument("project", nargs="*", help=f"of {', '.join(PROJECTS)} [default: all]")
    args = parser.parse_args()
    if not set(args.project) <= set(PROJECTS):
        parser.error(f"projects are {', '.join(PROJECTS)}")
    library, bad = Library(args.profile), 0
    for project in args.project or PROJECTS:
        print(f"\n{project}")
        table = collections.OrderedDict()
        for method, test, outcome, why in PROJECTS[project](library, args.method or TESTED):
            reason = listed(method, test, BY_DESIGN) if project == "scikit-learn" else None
            chance = listed(method, test, BY_CHANCE) if project == "scikit-learn" else None
            if chance and outcome == "failed":
                outcome, why = "by chance", chance
            if reason:
                outcome = "by design" if outcome == "failed" else f"{outcome}, but should fail by design"
                why = reason
            bad += outcome not in ("passed", "skipped", "by design", "by chance", "peer failed")
            kind = test if args.verbose or outcome not in ("passed", "skipped") else test.split("[")[0].split(",")[0]
            key = (method, kind, outcome, why)
            table[key] = table.get(key, 0) + 1
        for (method, test, outcome, why), count in table.items():
            times = f"{count}×" if count > 1 else ""
            print(f"  {method:11} {test:58} {times:>5} {outcome}{': ' + why if why else ''}")
    print(f"\n{bad} failed that should not" if bad else "\nnothing failed that should not")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
