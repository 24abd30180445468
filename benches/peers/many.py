"""2000 matrices of 256x256: TruncatedSvd::factor_many against torch.svd_lowrank on the whole batch, alternating.

    pip install torch                  # the CPU build
    cargo bench --bench many --no-run # prints the path of the binary
    python benches/peers/many.py PATH [--threads N] [--count N] [--rounds N]

torch gets q = k + 10 and niter = 2, our defaults, and the same kind of matrix (uniform entries). Prints milliseconds per
batch and the error of the rank-k factors of one matrix on each side.
"""

import argparse
import os
import statistics
import subprocess
import time

import torch

PAUSE = 0.25


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bench", help="path of the built benchmark `many`")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    environment = dict(os.environ, RAYON_NUM_THREADS=str(args.threads))
    ours = subprocess.Popen(
        [args.bench, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )

    def run_ours(n, k):
        ours.stdin.write(f"{n} {k} {args.count}\n")
        ours.stdin.flush()
        seconds, error = map(float, ours.stdout.readline().split())
        return seconds, error

    for n, k in [(64, 8), (128, 16), (256, 32)]:
        a = torch.rand(args.count, n, n) - 0.5
        run_ours(n, k)
        mine, theirs = [], []
        for _ in range(args.rounds):
            time.sleep(PAUSE)  # the worker threads of the other side spin for 200 ms after a call
            seconds, error = run_ours(n, k)
            mine.append(seconds)
            time.sleep(PAUSE)
            start = time.perf_counter()
            u, s, v = torch.svd_lowrank(a, q=k + 10, niter=2)
            theirs.append(time.perf_counter() - start)
        rest = a[0] - (u[0, :, :k] * s[0, :k]) @ v[0, :, :k].T
        peer_error = (rest.norm() / a[0].norm()).item()
        x, y = statistics.median(mine), statistics.median(theirs)
        print(
            f"{args.count} of {n:3}x{n:<3} k {k:2}, {args.threads} threads: {x * 1e3:8.1f} ms (error {error:.4f})"
            f"  torch {y * 1e3:8.1f} ms (error {peer_error:.4f})  {y / x:5.2f}x",
            flush=True,
        )
    ours.stdin.close()
    ours.wait()


if __name__ == "__main__":
    main()
