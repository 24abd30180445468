"""torch.linalg.qr on the panels of benches/qr.rs, for the peers' column of its table.

    pip install torch numpy            # the CPU build
    python benches/peers/qr.py [--threads N] [--rounds N]

Prints the median and the minimum of each; compare with `cargo bench --bench qr` on the same idle machine, or pass
`--bench PATH` of the built benchmark to alternate with it in one run.
"""

import argparse
import os
import statistics
import subprocess
import time

import torch


def panel(m, l, condition):
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(m, l, generator=generator, dtype=torch.float64)
    if condition:
        a, _ = torch.linalg.qr(a)
        v, _ = torch.linalg.qr(torch.randn(l, l, generator=generator, dtype=torch.float64))
        a = (a * torch.logspace(0, -torch.log10(torch.tensor(condition)), l, dtype=torch.float64)) @ v.T
    return a.float()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--bench", help="path of the built benchmark, to run before and after")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    environment = dict(os.environ, RAYON_NUM_THREADS=str(args.threads))
    if args.bench:
        subprocess.run([args.bench, "--quick"], check=True, env=environment)
    for m, l in [(3072, 202), (4096, 266), (30522, 106)]:
        for condition in [0.0, 1e3, 1e6]:
            y = panel(m, l, condition)
            times = []
            for _ in range(args.rounds):
                start = time.perf_counter()
                q, _ = torch.linalg.qr(y)
                times.append((time.perf_counter() - start) * 1e3)
            defect = (q.double().T @ q.double() - torch.eye(l, dtype=torch.float64)).abs().max().item()
            assert defect < 1e-4, f"{m}x{l}: orthogonality {defect}"
            print(f"torch {m:6}×{l:<4} cond {condition:7.0e}  {statistics.median(times):7.3f} ms (min {min(times):7.3f})  {defect:.1e}")
    if args.bench:
        subprocess.run([args.bench, "--quick"], check=True, env=environment)


if __name__ == "__main__":
    main()
