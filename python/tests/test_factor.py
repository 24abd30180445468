"""Factorizations against NumPy's SVD in float64, for every type and layout of arrays."""

import gc
import inspect
import json
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import tensorslim


def optimum(w, k):
    w = np.asarray(w, dtype=np.float64)
    s = np.linalg.svd(w, compute_uv=False)
    return np.sqrt((s[k:] ** 2).sum() / (s**2).sum())


def true_error(f, w):
    w = np.asarray(w, dtype=np.float64)
    u, s, vt = (np.asarray(part, dtype=np.float64) for part in (f.u, f.s, f.vt))
    return np.linalg.norm(w - (u * s) @ vt) / np.linalg.norm(w)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (200, 37)])
def test_factors_are_near_the_optimum_and_the_certificate_is_true(decaying, dtype, shape):
    w = decaying(*shape, dtype)
    f = tensorslim.factor(w, rank=12)
    assert f.u.shape == (shape[0], 12) and f.s.shape == (12,) and f.vt.shape == (12, shape[1])
    assert f.u.dtype == (np.float64 if dtype == np.float64 else np.float32)
    best, got = optimum(w, 12), true_error(f, w)
    assert best <= got * (1 + 1e-5) and got <= 1.02 * best
    assert abs(f.relative_error - got) < 1e-5
    full = tensorslim.factor(w, rank=12, method="full", precision="f64")
    assert abs(full.relative_error - best) < 1e-9


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a,
        lambda a: np.asfortranarray(a),
        lambda a: np.repeat(np.repeat(a, 2, 0), 3, 1)[::2, ::3],
        lambda a: np.ascontiguousarray(a[::-1])[::-1],
        lambda a: np.ascontiguousarray(a[:, ::-1])[:, ::-1],
        lambda a: np.ascontiguousarray(a.T).T,
    ],
)
def test_strides_do_not_change_the_bits(decaying, view):
    w = decaying(80, 48)
    f, g = tensorslim.factor(w, rank=9, seed=3), tensorslim.factor(view(w), rank=9, seed=3)
    assert np.array_equal(f.u, g.u) and np.array_equal(f.s, g.s) and np.array_equal(f.vt, g.vt)


def test_a_read_only_array_is_taken_and_stays_as_it_is(decaying):
    w = decaying(40, 30)
    before = w.copy()
    w.flags.writeable = False
    tensorslim.factor(w, rank=3)
    assert np.array_equal(w, before)


def test_bfloat16_of_ml_dtypes_is_read_in_place(decaying):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    w = decaying(64, 40).astype(ml_dtypes.bfloat16)
    f = tensorslim.factor(w, rank=8)
    assert f.report["dtype"] == "bf16"
    assert np.array_equal(f.s, tensorslim.factor(w.astype(np.float32), rank=8).s)


@pytest.mark.parametrize(
    "rule",
    [{"ratio": 3.0}, {"energy": 0.9}, {"tolerance": 0.2}, {"above": 0.105}, {"energy": 0.9999, "max_rank": 5}],
)
def test_rules_of_ranks(decaying, rule):
    w = decaying(60, 50, np.float64)
    f = tensorslim.factor(w, method="full", **rule)
    s = np.linalg.svd(w, compute_uv=False)
    energy = np.cumsum(s**2) / (s**2).sum()
    want = {
        "ratio": 3000 // (3 * 111),
        "energy": int(np.searchsorted(energy, rule.get("energy", 0)) + 1),
        "tolerance": int(np.searchsorted(energy, 1 - 0.04) + 1),
        "above": int((s > 0.105).sum()),
    }[next(iter(rule))]
    assert f.rank == min(want, rule.get("max_rank", want))
    assert bool(f.report["notes"]) == ("max_rank" in rule)


def test_the_numerical_rank_is_what_is_not_rounding(rng):
    w = (rng.standard_normal((60, 7)) @ rng.standard_normal((7, 50))).astype(np.float32)
    assert tensorslim.factor(w, numerical=True).rank == 7
    with pytest.raises(TypeError):
        tensorslim.factor(w, rank=2, numerical=True)


def test_the_smallest_triplets_are_the_last_of_all(decaying):
    w = decaying(60, 50, np.float64)
    u, s, _ = np.linalg.svd(w, full_matrices=False)
    f = tensorslim.factor(w, rank=4, smallest=True)
    assert np.allclose(f.s, s[-4:], rtol=0, atol=1e-13 * s[0])
    assert np.allclose(abs((u[:, -4:] * f.u).sum(0)), 1, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_side_comes_from_the_last_one_in_half_of_the_products(decaying, rng, dtype):
    w = decaying(120, 80, np.float64)
    last = tensorslim.basis(w.astype(dtype), 8, seed=3)
    for _ in range(3):
        w = w + 1e-3 * rng.standard_normal(w.shape) * np.linalg.norm(w) / np.sqrt(w.size)
        cold = tensorslim.basis(w.astype(dtype), 8)
        last = tensorslim.basis(w.astype(dtype), 8, last.vectors)
        assert last.vectors.shape == (120, 8) and last.vectors.dtype == dtype
        assert last.relative_error < 1.001 * cold.relative_error
        assert last.products == 3
        left = w - last.vectors @ (last.vectors.T @ w)
        assert np.isclose(np.linalg.norm(left) / np.linalg.norm(w), last.relative_error, rtol=1e-4)
    with pytest.raises(tensorslim.ShapeError):
        tensorslim.basis(w, 8, last.vectors[:60])
    with pytest.raises(tensorslim.ShapeError):
        tensorslim.basis(w, 8, last.vectors[:, 0])


def test_the_factors_do_what_they_say(decaying, rng):
    w = decaying(30, 20, np.float64)
    f = tensorslim.factor(w, rank=6)
    x = rng.standard_normal((2, 5, 20))
    low = (f.u * f.s) @ f.vt
    assert np.allclose(f.apply(x), x @ low.T) and f.apply(x).shape == (2, 5, 30)
    assert np.allclose(f.reconstruct(), low) and np.allclose(f.residual(w), w - low)
    for mode in ("balanced", "left", "right"):
        up, down = f.split(mode)
        assert up.shape == (30, 6) and down.shape == (6, 20) and np.allclose(up @ down, low)
    cut = f.truncate(4)
    assert cut.rank == 4 and np.allclose(cut.u, f.u[:, :4])
    assert abs(cut.relative_error - true_error(cut, w)) < 1e-8
    y, z = x.reshape(-1, 20) @ w.T, x.reshape(-1, 20) @ low.T
    found = f.agreement(w, x.reshape(-1, 20))
    assert abs(found.relative_error - np.linalg.norm(y - z) / np.linalg.norm(y)) < 1e-9
    assert abs(found.cosine - (y * z).sum() / np.linalg.norm(y) / np.linalg.norm(z)) < 1e-9
    assert not f.u.flags.writeable


def test_views_outlive_their_factors(decaying):
    w = decaying(50, 40)
    u = tensorslim.factor(w, rank=5).u
    want = u.copy()
    gc.collect()
    np.ones((1000, 100))
    assert np.array_equal(u, want)


def test_the_report_is_plain_data(decaying):
    report = tensorslim.factor(decaying(50, 40), ratio=2).report
    report = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in report.items()}
    kept = json.loads(json.dumps(report))
    assert kept["shape"] == [50, 40] and kept["ratio"] >= 2 and kept["error_kind"] == "exact"


def test_a_calibration_gives_the_best_factors_for_its_inputs(decaying, rng):
    w = decaying(60, 40, np.float64)
    x = rng.standard_normal((500, 40)) @ np.diag(np.linspace(0.01, 3, 40)) + 0.5
    c = tensorslim.Calibration(40)
    c.update(x[:200])
    c.update(x[200:].reshape(3, 100, 40))
    assert c.samples == 500 and c.dead == [] and np.allclose(c.gram(), x.T @ x) and np.allclose(c.means, x.mean(0))
    f = tensorslim.factor(w, rank=6, calibration=c, method="full")
    # The optimum: an SVD of the outputs.
    y = w @ x.T
    s = np.linalg.svd(y, compute_uv=False)
    best = np.sqrt((s[6:] ** 2).sum() / (s**2).sum())
    low = (f.u * f.s) @ f.vt
    got = np.linalg.norm(y - low @ x.T) / np.linalg.norm(y)
    assert abs(got - best) < 1e-6 and abs(f.report["activation"]["relative_error"] - got) < 1e-6
    assert abs(f.agreement(w, c).relative_error - got) < 1e-6
    assert tensorslim.factor(w, quality=0.9, calibration=c, method="full").report["activation"]["cosine"] >= 0.9


def test_statistics_are_merged_copied_written_and_pickled(rng):
    import pickle

    x = rng.standard_normal((64, 8)).astype(np.float32)
    a, b, whole = (tensorslim.Calibration(8) for _ in range(3))
    a.update(x[:30]), b.update(x[30:]), whole.update(x)
    kept = a.copy()
    a.merge(b)
    assert a.samples == 64 and kept.samples == 30 and np.allclose(a.gram(), whole.gram())
    assert tensorslim.Calibration.from_bytes(a.to_bytes()) == a == pickle.loads(pickle.dumps(a)) != kept
    with pytest.raises(tensorslim.FormatError):
        tensorslim.Calibration.from_bytes(b"nothing of the kind")
    skips = tensorslim.Calibration(8, non_finite="skip")
    bad = x.copy()
    bad[3, 2] = np.nan
    skips.update(bad)
    assert (skips.samples, skips.skipped) == (63, 1)
    with pytest.raises(tensorslim.NotFiniteError) as caught:
        whole.update(bad)
    assert (caught.value.row, caught.value.col) == (3, 2) and whole.samples == 64


def test_a_difference_is_factored_without_being_formed(decaying, rng):
    base = decaying(70, 50)
    update = (rng.standard_normal((70, 4)) @ rng.standard_normal((4, 50))).astype(np.float32)
    f = tensorslim.factor(base + update, rank=4, minus=base)
    assert np.linalg.norm(f.reconstruct() - update) / np.linalg.norm(update) < 1e-5


def test_a_convolution_has_its_rows_in_front(rng):
    w = rng.standard_normal((16, 3, 3, 3)).astype(np.float32)
    f = tensorslim.factor(w, rank=5, row_axes=1)
    assert f.shape == (16, 27) and np.array_equal(f.s, tensorslim.factor(w.reshape(16, 27), rank=5).s)


def test_many_matrices_have_the_bits_of_single_ones(decaying):
    weights = [decaying(40, 30), decaying(20, 50), decaying(64, 64)]
    for f, w in zip(tensorslim.factor_many(weights, rank=4, seed=1), weights):
        assert np.array_equal(f.u, tensorslim.factor(w, rank=4, seed=1).u)
    weights[1] = np.full((5, 5), np.nan, np.float32)
    with pytest.raises(tensorslim.NotFiniteError):
        tensorslim.factor_many(weights, rank=4)
    found = tensorslim.factor_many(weights, rank=4, return_exceptions=True)
    assert isinstance(found[1], tensorslim.NotFiniteError) and found[2].rank == 4


@pytest.mark.parametrize(
    "call, kind, builtin",
    [
        (lambda w: tensorslim.factor(w, rank=0), tensorslim.RankError, ValueError),
        (lambda w: tensorslim.factor(w, rank=31), tensorslim.RankError, ValueError),
        (lambda w: tensorslim.factor(w, ratio=-1.0), tensorslim.OptionError, ValueError),
        (lambda w: tensorslim.factor(w, rank=2, method="best"), tensorslim.OptionError, ValueError),
        (lambda w: tensorslim.factor(w, rank=2, precision="f16"), tensorslim.OptionError, ValueError),
        (lambda w: tensorslim.factor(w, quality=0.9), tensorslim.OptionError, ValueError),
        (lambda w: tensorslim.factor(w * np.nan, rank=2), tensorslim.NotFiniteError, ValueError),
        (lambda w: tensorslim.factor(w[:0], rank=2), tensorslim.EmptyError, ValueError),
        (lambda w: tensorslim.factor(np.broadcast_to(w[0], (9, 30)), rank=2), tensorslim.LayoutError, ValueError),
        (lambda w: tensorslim.factor(w, rank=2, memory_limit=10), tensorslim.MemoryLimitError, MemoryError),
        (lambda w: tensorslim.factor(w, rank=2).split("middle"), tensorslim.OptionError, ValueError),
        (lambda w: tensorslim.factor(w, rank=2).apply(w.T), tensorslim.ShapeError, ValueError),
        (lambda w: tensorslim.Calibration(0), tensorslim.EmptyError, ValueError),
        (lambda w: tensorslim.Rotation(1001), tensorslim.LengthError, ValueError),
        (lambda w: tensorslim.hadamard(w[:, :22]), tensorslim.LengthError, ValueError),
    ],
)
def test_errors_have_their_type_and_one_line(rng, call, kind, builtin):
    w = rng.standard_normal((40, 30)).astype(np.float32)
    with pytest.raises(kind) as caught:
        call(w)
    assert isinstance(caught.value, (tensorslim.Error,)) and isinstance(caught.value, builtin)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda w: tensorslim.factor(w.astype(np.int32), rank=2),
        lambda w: tensorslim.factor(w.astype(w.dtype.newbyteorder()), rank=2),
        lambda w: tensorslim.factor(w),
        lambda w: tensorslim.factor(w, rank=2, ratio=2.0),
        lambda w: tensorslim.factor(w, rank=2.5),
        lambda w: tensorslim.factor("weight", rank=2),
    ],
)
def test_what_is_no_array_or_no_rule_is_a_type_error(rng, call):
    with pytest.raises(TypeError):
        call(rng.standard_normal((40, 30)).astype(np.float32))


def test_what_an_error_is_about_is_an_attribute(rng):
    w = rng.standard_normal((40, 30)).astype(np.float32)
    w[4, 5] = np.inf
    with pytest.raises(tensorslim.NotFiniteError) as caught:
        tensorslim.factor(w, rank=2)
    assert (caught.value.row, caught.value.col, caught.value.value) == (4, 5, np.inf)
    with pytest.raises(tensorslim.RankError) as caught:
        tensorslim.factor(w, rank=99)
    assert (caught.value.rank, caught.value.max) == (99, 30)
    w[4, 5] = 0
    with pytest.raises(tensorslim.MemoryLimitError) as caught:
        tensorslim.factor(w, rank=2, memory_limit=1)
    least = caught.value.least
    assert tensorslim.factor(w, rank=2, memory_limit=least).report["peak_bytes"] <= least


def test_the_plan_bounds_the_memory():
    plan = tensorslim.plan((512, 256), "bf16", ratio=3.2)
    assert plan.peak_bytes > 0 and plan.explanation
    w = np.ones((512, 256), np.float16)
    assert tensorslim.factor(w, ratio=3.2).report["peak_bytes"] <= tensorslim.plan((512, 256), "f16", ratio=3.2)[0]


def test_many_python_threads_get_the_bits_of_one(decaying):
    weights = [decaying(90 + i, 70) for i in range(8)]
    alone = [tensorslim.factor(w, rank=7, seed=5) for w in weights]
    found = [None] * 8

    def work(i):
        for _ in range(5):
            found[i] = tensorslim.factor(weights[i], rank=7, seed=5)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [t.start() for t in threads], [t.join() for t in threads]
    for f, g in zip(alone, found):
        assert np.array_equal(f.u, g.u) and np.array_equal(f.s, g.s) and np.array_equal(f.vt, g.vt)


def test_one_statistics_object_is_fed_by_many_threads(rng):
    blocks = rng.standard_normal((16, 50, 24))
    c = tensorslim.Calibration(24)
    threads = [threading.Thread(target=c.update, args=(block,)) for block in blocks]
    [t.start() for t in threads], [t.join() for t in threads]
    x = blocks.reshape(-1, 24)
    assert c.samples == 800 and np.allclose(c.gram(), x.T @ x)


def test_the_number_of_threads_does_not_change_the_bits(decaying):
    w = decaying(300, 200)
    before, count = tensorslim.factor(w, rank=20), tensorslim.get_num_threads()
    try:
        for threads in (1, 3):
            tensorslim.set_num_threads(threads)
            assert tensorslim.get_num_threads() == threads
            assert np.array_equal(tensorslim.factor(w, rank=20).u, before.u)
    finally:
        tensorslim.set_num_threads(count)


def test_python_runs_while_the_core_works(rng):
    w = rng.standard_normal((1500, 1500)).astype(np.float32)
    times, done = [], threading.Event()

    def count():
        while not done.is_set():
            times.append(time.perf_counter())
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    counter.start()
    start = time.perf_counter()
    tensorslim.factor(w, rank=200, method="full")
    spent = time.perf_counter() - start
    done.set()
    counter.join()
    during = [t for t in times if start < t < start + spent]
    # With the lock held all the while there would be none but the first.
    assert len(during) > 3, f"{len(during)} steps in {spent} s"


def test_progress_is_told_and_can_end_a_call(decaying):
    w, told = decaying(400, 300), []
    tensorslim.factor(w, rank=10, method="randomized", progress=told.append)
    assert told and told[-1] > 0 and told == sorted(told)

    def refuse(_):
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        tensorslim.factor(w, rank=10, progress=refuse)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
def test_control_c_ends_a_long_call():
    code = (
        "import numpy as np, tensorslim, time, threading, os, signal\n"
        "w = np.random.default_rng(0).standard_normal((1500, 1500)).astype('f4')\n"
        "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "start = time.time()\n"
        "try:\n"
        "    tensorslim.factor(w, rank=300, method='randomized', power_iterations=100000)\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped after', time.time() - start)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert out.stdout.startswith("stopped after"), out
    assert float(out.stdout.split()[-1]) < 20


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="there is no fork")
def test_a_forked_child_has_threads_of_its_own():
    code = (
        "import os, numpy as np, tensorslim\n"
        "w = np.random.default_rng(0).standard_normal((300, 200)).astype('f4')\n"
        "a = tensorslim.factor(w, rank=5).s\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if np.array_equal(tensorslim.factor(w, rank=5).s, a) else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60).returncode == 0


def test_a_call_costs_microseconds(rng):
    w = rng.standard_normal((8, 8)).astype(np.float32)
    tensorslim.factor(w, rank=1)
    times = []
    for _ in range(300):
        start = time.perf_counter()
        f = tensorslim.factor(w, rank=1)
        times.append(time.perf_counter() - start - f.report["elapsed_ms"] / 1e3)
    # The bound is far above what is measured, because a test must not depend on the machine.
    assert np.median(times) < 1e-3


def test_public_names_have_documentation():
    for name in tensorslim.__all__:
        if name != "__version__":
            assert inspect.getdoc(getattr(tensorslim, name)), name


def test_output_gradients_weigh_the_error():
    rng = np.random.default_rng(5)
    w = rng.standard_normal((40, 30))
    x = rng.standard_normal((300, 30)) / (1 + np.arange(30))
    g = rng.standard_normal((300, 40)) / (1 + np.arange(40))
    inputs, outputs = tensorslim.Calibration(30), tensorslim.Calibration(40)
    inputs.update(x)
    outputs.update(g)
    f = tensorslim.factor(w, 6, method="full", calibration=inputs, output_calibration=outputs)
    values = np.linalg.svd(g @ w @ x.T, compute_uv=False)
    best = np.sqrt((values[6:] ** 2).sum() / (values**2).sum())
    off = np.linalg.norm(g @ (w - f.u * f.s @ f.vt) @ x.T) / np.linalg.norm(values)
    assert off == pytest.approx(best, rel=1e-6)
    assert f.report["activation"]["relative_error"] == pytest.approx(best, rel=1e-6)
    assert f.report["activation"]["output_samples"] == 300
    with pytest.raises(tensorslim.ShapeError, match="40 outputs"):
        tensorslim.factor(w, 6, output_calibration=inputs)


def test_uniform_budget_reduces_layers_alike():
    spectra = [np.ones(20), np.linspace(1, 0, 20)]
    layers = [tensorslim.Layer((60, 20), s, float((s**2).sum())) for s in spectra]
    found = tensorslim.uniform(layers, 1200)
    assert found.ranks == [7, 7] and found.total == 2 * 7 * 81
    assert tensorslim.uniform(layers, 2400).ranks == [None, None]
