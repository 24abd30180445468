"""tensorslim against the PyPI package fht-cpu, one thread, on the same arrays, in one process.

    cargo build --release --example fwht_c
    pip install -r benches/peers/requirements.txt
    python benches/peers/fwht.py [--csv benches/record/fwht_peers.csv] [log2 ...]

Both are called from Python on the same NumPy array, by turns (a, b, a, b, ...), and the medians are compared. Short
transforms go in batches of rows that stay in L1, and the cost of a call from Python, measured on an array of 1 × 2 in the
same rounds, is subtracted from each (about 0.4 µs for ctypes, 0.2 µs for fht-cpu's nanobind); fht-cpu is given
whichever of its two entry points (1-d, rows of 2-d) has the better median. Before anything is timed, the two must
agree bit for bit on integers. From 2^22 on the last column compares with two sweeps over memory, each an in-place
scaling of the same array by NumPy, which is the floor of a transform that does not fit the caches.
"""

import argparse
import csv
import ctypes
import os
import pathlib
import platform
import statistics
import time

os.environ["OMP_NUM_THREADS"] = "1"
import fht_cpu  # noqa: E402
import numpy as np  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROUNDS = 21
BATCH_BYTES = 32 << 10  # of a batch of short rows


def load():
    names = ["libfwht_c.so", "libfwht_c.dylib", "fwht_c.dll"]
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    for name in names:
        if (target / "release" / "examples" / name).exists():
            return ctypes.CDLL(str(target / "release" / "examples" / name))
    raise SystemExit("first: cargo build --release --example fwht_c")


def array(count, dtype, offset):
    """Zeroed elements, `offset` bytes past a multiple of 64."""
    raw = np.zeros(count * np.dtype(dtype).itemsize + 128, np.uint8)
    skip = -raw.ctypes.data % 64 + offset
    return raw[skip : skip + count * np.dtype(dtype).itemsize].view(dtype)


def seconds(f, reps):
    start = time.perf_counter()
    for _ in range(reps):
        f()
    return (time.perf_counter() - start) / reps


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--csv")
    parser.add_argument("--offset", type=int, default=0, help="bytes past a multiple of 64 where the array starts")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("log2", nargs="*", type=int)
    args = parser.parse_args()
    ours = load()
    table = []
    print(f"{'':4} {'n':>5} {'tensorslim':>11} {'fht-cpu':>8} {'ratio':>6}   G additions/s; time / two sweeps")
    for name in ("f32", "f64"):
        dtype = np.dtype(name.replace("f", "float"))
        call = getattr(ours, f"tensorslim_fwht_rows_{name}")
        call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        one, many = getattr(fht_cpu, f"fht_1d_{name}"), getattr(fht_cpu, f"fht_2d_{name}_rows")
        for k in args.log2 or [6, *range(8, 25)]:
            n = 1 << k
            rows = max(1, BATCH_BYTES // dtype.itemsize // n)
            x = array(rows * n, dtype, args.offset)
            matrix = x.reshape(rows, n)

            values = np.random.default_rng(k).integers(-1, 2, rows * n)
            x[:] = values
            assert call(x.ctypes.data, rows, n) == 0
            mine = x.copy()
            x[:] = values
            many(matrix, 1)
            assert (mine == x).all(), f"{name} 2^{k}: results differ"
            x[:] = 0

            address = x.ctypes.data
            tiny = np.zeros((1, 2), dtype)
            tiny_address, tiny_row = tiny.ctypes.data, tiny[0]
            runs = {
                "ours call": lambda: call(tiny_address, 1, 2),
                "rows call": lambda: many(tiny, 1),
                "1d call": lambda: one(tiny_row),
                "ours": lambda: call(address, rows, n),
                "rows": lambda: many(matrix, 1),
            }
            if rows == 1:
                runs["1d"] = lambda: one(x)
            sweep = np.multiply if k >= 22 else None
            if sweep:
                runs["sweep"] = lambda: np.multiply(x, 1.0, out=x)
            additions = rows * n * k
            reps = max(1, int(2e7 / additions))
            times = {what: [] for what in runs}
            for _ in range(args.rounds if k < 22 else max(7, args.rounds // 3)):
                for what, f in runs.items():
                    times[what].append(seconds(f, reps))
            t = {what: statistics.median(v) for what, v in times.items()}
            for what in ("ours", "rows", "1d"):
                if what in t and what + " call" in t:
                    t[what] -= t[what + " call"]
            theirs = min(t["rows"], t.get("1d", t["rows"]))
            floor = t["ours"] / (2 * t["sweep"]) if sweep else None
            ratio = theirs / t["ours"]
            a, b = additions / t["ours"] / 1e9, additions / theirs / 1e9
            print(f"{name:4} 2^{k:<3} {a:11.1f} {b:8.1f} {ratio:6.2f}" + (f"   {floor:.2f}" if floor else ""), flush=True)
            table.append([name, k, f"{a:.1f}", f"{b:.1f}", f"{ratio:.2f}", f"{floor:.2f}" if floor else ""])
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            out = csv.writer(file)
            out.writerow(["type", "log2_n", "tensorslim_gadds", "fht_cpu_gadds", "ratio", "time_over_two_sweeps"])
            out.writerows(table)
        print("wrote", args.csv, "on", platform.machine())


if __name__ == "__main__":
    main()
