"""tensorslim against PyTorch and cuSOLVER on one NVIDIA GPU: a truncated SVD from host memory to host memory.

    cargo build --release --features cuda,cli          (nvcc at hand)
    python benches/peers/cuda.py [--program target/release/tensorslim] [--csv FILE]

All times are of the whole way, matrix in host memory to factors in host memory; `on card` is torch's alone with the matrix there
already. torch.svd_lowrank gets as many columns as ours (rank + 10) and two and four of its iterations, in f32 with TF32 off; halves it
has to widen. torch.linalg.svd is cuSOLVER's full SVD. Ours runs in a process of its own: the median of `--repeat`, after one
that opens the device. Errors are ‖A − U S Vᵀ‖_F / ‖A‖_F, torch's formed in f64 on the card, ours as certified; `optimum` is that of
the full SVD.
"""

import argparse
import csv
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import numpy as np
import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROUNDS = 9
# Shape, element type, rank; values fall like j^-1/2.
CASES = [((4096, 4096), "f4", 256), ((11008, 4096), "f2", 256), ((4096, 1024), "f4", 64), ((1536, 384), "f4", 96)]


def milliseconds(f, rounds=ROUNDS):
    f()
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        f()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def error(a, u, s, v, rank):
    a, u, s, v = (x.double() for x in (a, u[:, :rank], s[:rank], v[:, :rank]))
    return float(torch.linalg.norm(a - (u * s) @ v.T) / torch.linalg.norm(a))


def ours(program, file, rank):
    options = ["--rank", rank, "--device", "cuda", "--repeat", ROUNDS, "--json"]
    done = subprocess.run([program, "factor", file, *map(str, options)], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    return report["elapsed_ms"], report["relative_error"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", default=str(ROOT / "target/release/tensorslim"))
    parser.add_argument("--csv")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    card = torch.cuda.get_device_name(0)
    print(f"{card}, torch {torch.__version__}; milliseconds from host to host, median of {ROUNDS}; error")
    rng = np.random.default_rng(0)
    rows = []
    for (m, n), dtype, rank in CASES:
        a = (rng.standard_normal((m, n), np.float32) / np.sqrt(np.arange(1, n + 1, dtype=np.float32))).astype(dtype)
        host = torch.from_numpy(a)
        on_card = host.cuda().float()
        lines = []
        with tempfile.NamedTemporaryFile(suffix=".npy") as file:
            np.save(file, a)
            file.flush()
            lines.append(("tensorslim", *ours(arguments.program, file.name, rank), None))
        for iterations in (2, 4):
            there = lambda x: torch.svd_lowrank(x, q=rank + 10, niter=iterations)  # noqa: E731
            home = milliseconds(lambda: [x.cpu() for x in there(host.cuda().float())])
            lines.append((f"torch.svd_lowrank, niter={iterations}", home, error(on_card, *there(on_card), rank),
                          milliseconds(lambda: there(on_card))))
        full = lambda x: torch.linalg.svd(x, full_matrices=False)  # noqa: E731
        u, s, vt = full(on_card)
        home = milliseconds(lambda: [x.cpu() for x in full(host.cuda().float())], 1)
        lines.append(("torch.linalg.svd (optimum)", home, error(on_card, u, s, vt.T, rank), None))
        print(f"\n{m}×{n} {dtype}, rank {rank}")
        for name, home, off, there in lines:
            print(f"  {name:28} {home:9.2f} ms  {off:.6f}  {f'on card {there:.2f} ms' if there else ''}")
            rows.append([card, m, n, dtype, rank, name, f"{home:.3f}", f"{off:.6f}", f"{there:.3f}" if there else ""])
    if arguments.csv:
        with open(arguments.csv, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["card", "m", "n", "dtype", "rank", "who", "ms_host_to_host", "error", "ms_on_card"])
            writer.writerows(rows)


if __name__ == "__main__":
    main()
