"""What a call from Python costs beside the same call in Rust, on a matrix so small that it shows.

    python python/benches/overhead.py

The matrix has 64x64 elements, the factors rank 8. Calls from Python and from Rust take turns in one process; each line
shows medians, and that of the differences of neighbours, in microseconds.
"""

import statistics
import sys
import time

import numpy as np

import tensorslim
from tensorslim import _core

ROUNDS = 3000


def main():
    w = np.random.default_rng(0).standard_normal((64, 64), dtype=np.float32)
    kinds = {"NumPy float32": w}
    try:
        import torch
    except ImportError:
        print("PyTorch is not there: NumPy only", file=sys.stderr)
    else:
        kinds["PyTorch float32"] = torch.from_numpy(w.copy())
        kinds["PyTorch bfloat16"] = kinds["PyTorch float32"].to(torch.bfloat16)
    times = {kind: [] for kind in kinds}
    for turn in range(ROUNDS + 100):
        for kind, x in kinds.items():
            source = x if isinstance(x, np.ndarray) else torch.utils.dlpack.to_dlpack(x)
            rust = _core.seconds_in_rust(source, 8)
            start = time.perf_counter()
            tensorslim.factor(x, 8)
            python = time.perf_counter() - start
            if turn >= 100:
                times[kind].append((1e6 * python, 1e6 * rust))
    print(f"{'64x64, rank 8':18s}{'Python':>10s}{'Rust':>10s}{'overhead':>10s}")
    for kind, pairs in times.items():
        python, rust = (statistics.median(column) for column in zip(*pairs))
        print(f"{kind:18s}{python:10.1f}{rust:10.1f}{statistics.median(p - r for p, r in pairs):10.1f}")


if __name__ == "__main__":
    main()
