"""Two ranks by hand, with mpi4py and NumPy, against `tensorslim factor` on the same two ranks.

    cargo build --release --features cli,mpi
    pip install mpi4py numpy
    python benches/peers/mpi.py [ROWS COLUMNS RANK]

By hand are the Gram matrix (one all-reduce of n × n, an eigendecomposition) and TSQR (R of each rank, a QR of both on
top of each other, an SVD of that). All run on one thread for each rank, from the same file in the page cache, to U on
the rank of its rows; the times have the reading in them and are the slowest rank's, the median of five turns. Ours also
refuse what is not finite and know their error, which is not counted by hand.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import numpy as np


def by_hand(path, k):
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    whole = np.load(path, mmap_mode="r")
    m, n = whole.shape
    cut = [m * r // comm.size for r in range(comm.size + 1)]
    read = lambda: np.array(whole[cut[comm.rank] : cut[comm.rank + 1]])
    a = read()

    def gram(a):
        g = np.empty((n, n), a.dtype)
        comm.Allreduce(a.T @ a, g)
        values, vectors = np.linalg.eigh(g)
        s, v = np.sqrt(np.maximum(values[::-1][:k], 0)), vectors[:, ::-1][:, :k]
        return a @ v / s, s, v.T

    def tsqr(a):
        q, r = np.linalg.qr(a)
        top, r = np.linalg.qr(np.concatenate(comm.allgather(r)))
        u, s, vt = np.linalg.svd(r)
        return q @ (top[comm.rank * n : (comm.rank + 1) * n] @ u[:, :k]), s[:k], vt[:k]

    norm = comm.allreduce(np.linalg.norm(a.astype(np.float64)) ** 2)
    for method in (gram, tsqr):
        times = []
        for _ in range(5):
            comm.Barrier()
            start = time.perf_counter()
            u, s, vt = method(read())
            times.append(comm.allreduce(time.perf_counter() - start, MPI.MAX))
        rest = comm.allreduce(np.linalg.norm(a.astype(np.float64) - (u * s) @ vt) ** 2)
        if comm.rank == 0:
            print(f"  by hand, {method.__name__:5} {1e3 * sorted(times)[2]:9.1f} ms   error {np.sqrt(rest / norm):.6f}", flush=True)


def main():
    m, n, k = (int(x) for x in sys.argv[1:4]) if len(sys.argv) > 3 else (20000, 1000, 64)
    mpirun = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", "2"]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "w.npy")
        random = np.random.default_rng(1)
        low = random.standard_normal((m, 2 * k)) / np.arange(1, 2 * k + 1)
        w = low @ random.standard_normal((2 * k, n)) + 0.05 * random.standard_normal((m, n))
        np.save(path, w.astype(np.float32))
        print(f"{m} × {n} f32, rank {k}, two ranks of one thread")
        subprocess.run([*mpirun, sys.executable, __file__, "--rank-of", path, str(k)], check=True)
        program = os.environ.get("TENSORSLIM", "target/release/tensorslim")
        # Ten filtered steps on the Gram matrix have the error of all of its eigenvectors.
        for method in (["randomized"], ["gram"], ["gram", "--power-iterations", "10"]):
            factor = [program, "factor", path, "--rank", str(k), "--method", *method, "--threads", "1", "--repeat", "5"]
            done = subprocess.run([*mpirun, *factor, "--json"], check=True, capture_output=True)
            report = json.loads(done.stdout)
            name, time_of, error = (report[key] for key in ("method", "elapsed_ms", "relative_error"))
            print(f"  tensorslim, {name:10} {time_of:9.1f} ms   error {error:.6f}")


if __name__ == "__main__":
    if "--rank-of" in sys.argv:
        by_hand(sys.argv[2], int(sys.argv[3]))
    else:
        main()
