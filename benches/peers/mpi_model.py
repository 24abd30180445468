"""How long a factorization takes on P ranks: measured seconds of one rank, stated latency and bandwidth, counted sums.

    python benches/peers/mpi_model.py [--program target/release/tensorslim]

With --program the seconds of one rank are measured here: gram and randomized at 4096 columns and two numbers of rows.
The slope is what a row costs its owner, the intercept what every rank repeats. Without it the figures below are taken,
which are those of the table in benches/NOTES.md.

    T(P) = repeated + row * (rows of the rank with most) + Σ over the sums of 2 log₂ P (latency + bytes / bandwidth)
                                                         + log₂ P bytes / merge

The sums are those that `tests/mpi.rs` counts: gram one of n (n + 1) / 2 numbers; randomized q + 1 of n l, and for each
panel up to three of l² in f64. Rows are cut as src/mpi/blocks.rs cuts them.
"""

import argparse
import json
import math
import os
import subprocess
import tempfile

N, K, OVERSAMPLE, POWER = 4096, 256, 10, 2
LATENCY, BANDWIDTH, MERGE = 2e-6, 12.5e9, 4e9  # 100 Gbit/s; an addition of two vectors in memory
# Seconds of one rank of one thread: a row, and what is repeated on each.
MEASURED = {"gram": (293.03e-6, 1.05), "randomized": (99.17e-6, 0.46)}


def most_rows(m, size):
    """The rows of the rank with most of them."""
    height = min(max(-(-max(-(-m // 128), N // 2) // 32) * 32, 128), 1024)
    count = -(-m // height)
    share = count // (8 * size)
    grain = 1 if share == 0 else 1 << (share.bit_length() - 1)
    bound = [
        min((r * count // size if grain == 1 else (r * count + grain * size // 2) // (grain * size) * grain), count)
        for r in range(size)
    ] + [count]
    return min(max(b - a for a, b in zip(bound, bound[1:])) * height, m)


def sums(method):
    """The bytes of each sum."""
    if method == "gram":
        return [4 * N * (N + 1) // 2]
    l = K + OVERSAMPLE
    return [4 * N * l] * (POWER + 1) + [8 * l * l] * (3 * (POWER + 1))


def seconds(method, m, size, measured):
    row, repeated = measured[method]
    levels = math.ceil(math.log2(size))
    exchanged = sum(levels * (2 * (LATENCY + s / BANDWIDTH) + s / MERGE) for s in sums(method))
    return repeated + row * most_rows(m, size), exchanged


def measure(program):
    import numpy as np

    measured, rows = {}, (8192, 32768)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "w.npy")
        random = np.random.default_rng(1)
        for m in rows:
            w = random.standard_normal((m, 2 * K), np.float32) / np.arange(1, 2 * K + 1, dtype=np.float32)
            w = w @ random.standard_normal((2 * K, N), np.float32)
            w += np.float32(0.05) * random.standard_normal((m, N), np.float32)
            np.save(path, w)
            for method in MEASURED:
                mpirun = ["mpirun", "--allow-run-as-root", "--bind-to", "none", "-n", "1"]
                factor = [program, "factor", path, "--rank", str(K), "--method", method, "--oversample", str(OVERSAMPLE)]
                factor += ["--power-iterations", str(POWER), "--threads", "1", "--repeat", "3", "--json"]
                done = subprocess.run([*mpirun, *factor], check=True, capture_output=True)
                measured.setdefault(method, []).append(json.loads(done.stdout)["elapsed_ms"] / 1e3)
    slope = {method: (t[1] - t[0]) / (rows[1] - rows[0]) for method, t in measured.items()}
    return {method: (slope[method], max(t[0] - slope[method] * rows[0], 0.0)) for method, t in measured.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program")
    program = parser.parse_args().program
    measured = measure(program) if program else MEASURED
    for method, (row, repeated) in measured.items():
        print(f"{method}: {1e6 * row:.2f} us for a row, {repeated:.2f} s on every rank")
    sizes = (1, 4, 16, 64, 256, 1024)
    for method in measured:
        print(f"\n{method}, seconds (efficiency against one rank), of which sums\n")
        print("| rows | " + " | ".join(f"P = {size}" for size in sizes) + " |")
        print("|---" * (len(sizes) + 1) + "|")
        for m in (10**6, 10**7, 10**8, 10**9):
            one = sum(seconds(method, m, 1, measured))
            line = []
            for size in sizes:
                local, exchanged = seconds(method, m, size, measured)
                total = local + exchanged
                line.append(f"{total:.3g} ({one / size / total:.2f}), {exchanged:.2g}")
            print(f"| 1e{round(math.log10(m))} | " + " | ".join(line) + " |")
        weak = []
        for size in sizes:
            weak.append(sum(seconds(method, 10**6, 1, measured)) / sum(seconds(method, 10**6 * size, size, measured)))
        print("| 1e6 each, weak | " + " | ".join(f"{x:.3f}" for x in weak) + " |")


if __name__ == "__main__":
    main()
