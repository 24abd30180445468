"""LoRA extraction: the update of a fine-tuned weight, by `tensorslim factor TUNED --minus BASE` and by torch.

    cargo build --release --features cli
    python benches/peers/operands.py [path of the command, by default target/release/tensorslim] [method, by default auto]

A base weight in bf16, and the same plus an update of rank r, rounded to bf16. What users do by hand is an SVD in f32 of
the materialized difference (peft, mergekit); the command finds the rank by a threshold above what the rounding leaves.
Prints the rank that was found, the error of the update over the noise of rounding, and torch's time over ours: the
median of the factorization alone, and with the files read.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch

TOOL = sys.argv[1] if len(sys.argv) > 1 else "target/release/tensorslim"
METHOD = sys.argv[2] if len(sys.argv) > 2 else "auto"
ROUNDS = 5


def pair(m, n, r, seed):
    """The two weights in bf16, the update, and the largest singular value that rounding leaves."""
    g = torch.Generator().manual_seed(seed)
    base = (0.02 * torch.randn(m, n, generator=g)).bfloat16()
    u, _ = torch.linalg.qr(torch.randn(m, r, generator=g))
    v, _ = torch.linalg.qr(torch.randn(n, r, generator=g))
    update = 0.002 * (m * n / r) ** 0.5 * (u @ v.T)
    tuned = (base.float() + update).bfloat16()
    ulp = torch.exp2(torch.floor(torch.log2(tuned.float().abs().clamp_min(1e-30))) - 7)
    noise = (ulp.pow(2).mean() / 12).sqrt().item() * (m**0.5 + n**0.5)
    return base, tuned, update, noise


def extract(tuned, base, threshold):
    """What is done today: the difference in f32, all of its SVD, and what is above the threshold."""
    u, s, vt = torch.linalg.svd(tuned.float() - base.float(), full_matrices=False)
    k = max(1, int((s > threshold).sum()))
    return u[:, :k], s[:k], vt[:k]


def main():
    print(f"{'':14}{'rank':>6}{'found':>7}{'error / noise':>15}{'torch ms':>10}{'ours ms':>9}{'torch / ours':>14}{'peak MiB':>10}")
    for m, n in [(4096, 1024), (3072, 768)]:
        for r in [4, 8, 16, 32, 48, 64]:
            base, tuned, update, noise = pair(m, n, r, r)
            threshold = 1.5 * noise
            with tempfile.TemporaryDirectory() as folder:
                files = [str(pathlib.Path(folder) / name) for name in ("tuned.npy", "base.npy")]
                for file, w in zip(files, (tuned, base)):
                    np.save(file, w.view(torch.int16).numpy())
                out = str(pathlib.Path(folder) / "out")
                command = [TOOL, "factor", files[0], "--minus", files[1], "--bf16", "--above", str(threshold), "--method", METHOD]
                ours, theirs = [], []
                for _ in range(ROUNDS):
                    done = subprocess.run(command + ["--json", "--repeat", "3"], check=True, capture_output=True)
                    report = json.loads(done.stdout)
                    ours.append(report["elapsed_ms"])
                    begin = time.perf_counter()
                    extract(tuned, base, threshold)
                    theirs.append(1e3 * (time.perf_counter() - begin))
                subprocess.run(command + ["--out", out], check=True, capture_output=True)
                u, s, vt = (torch.from_numpy(np.load(f"{out}/{x}.npy")) for x in ("u", "s", "vt"))
            off = torch.linalg.matrix_norm((u * s) @ vt - update, 2).item()
            t, o = statistics.median(theirs), statistics.median(ours)
            peak = report["peak_bytes"] / 2**20
            print(f"{m}x{n:<9}{r:>6}{report['rank']:>7}{off / noise:>15.3f}{t:>10.1f}{o:>9.1f}{t / o:>14.1f}{peak:>10.1f}")


if __name__ == "__main__":
    main()
