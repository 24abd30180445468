"""torch.linalg.qr against qr::orthonormalize on the panels of benches/qr.rs, in one run.

    pip install torch                # the CPU build
    cargo bench --bench qr --no-run  # prints the path of the binary
    python benches/peers/qr.py PATH [--threads N] [--rounds N] [--csv benches/record/qr_peers.csv]

The two alternate in blocks of calls, of which the first half warms the cores up. A pause between blocks lets the worker
threads of the one go to sleep: OpenMP's spin for 200 ms after a call, on the cores that the other is timed on. Prints the
median of each and their ratio, and the least and largest ratio of the rounds, which says how steady the machine was. Both
sides draw their own panel of the same shape and singular values.
"""

import argparse
import os
import statistics
import subprocess
import time

import torch

BLOCK = 20
PAUSE = 0.25


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
    parser.add_argument("bench", help="path of the built benchmark `qr`")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--csv", help="file to write the table to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    environment = dict(os.environ, RAYON_NUM_THREADS=str(args.threads))
    ours = subprocess.Popen(
        [args.bench, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )

    def run_ours(m, l, condition):
        ours.stdin.write(f"{m} {l} {condition} {BLOCK}\n")
        ours.stdin.flush()
        return [float(x) for x in ours.stdout.readline().split()]

    lines = ["m,l,condition,ms,torch_ms,ratio"]
    for m, l in [(3072, 202), (4096, 266), (30522, 106)]:
        for condition in [0.0, 1e3, 1e6]:
            y = panel(m, l, condition)
            torch.linalg.qr(y)
            run_ours(m, l, condition)
            mine, theirs, ratios = [], [], []
            for _ in range(args.rounds):
                time.sleep(PAUSE)
                mine += run_ours(m, l, condition)[BLOCK // 2 :]
                time.sleep(PAUSE)
                block = []
                for _ in range(BLOCK):
                    start = time.perf_counter()
                    q, _ = torch.linalg.qr(y)
                    block.append(time.perf_counter() - start)
                theirs += block[BLOCK // 2 :]
                recent = [statistics.median(times[-(BLOCK - BLOCK // 2) :]) for times in (mine, theirs)]
                ratios.append(recent[1] / recent[0])
            defect = (q.double().T @ q.double() - torch.eye(l, dtype=torch.float64)).abs().max().item()
            assert defect < 1e-4, f"{m}x{l}: orthogonality {defect}"
            x, z = statistics.median(mine), statistics.median(theirs)
            print(
                f"{m:6}x{l:<4} cond {condition:7.0e}  {x * 1e3:7.3f} ms  torch {z * 1e3:7.3f} ms = {z / x:5.2f}x"
                f"  ({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )
            lines.append(f"{m},{l},{condition:.0e},{x * 1e3:.4f},{z * 1e3:.4f},{z / x:.3f}")
    if args.csv:
        with open(args.csv, "w") as file:
            file.write("\n".join(lines) + "\n")
    ours.stdin.close()
    ours.wait()


if __name__ == "__main__":
    main()
