"""Quantization errors as low-rank factors (QERA, arXiv 2410.06040): ours against the closed form, in f64.

    cargo build --release --features cli
    python benches/peers/qera.py [tensorslim]

A weight is rounded to 4 or 3 bits in blocks of 64 (round to nearest, one scale a block); C of rank 32 is added to the
rounded Q so that `(Q + C) x` is near `W x` on the calibration inputs. The closed form takes the symmetric square root of
the inputs' second moments and its inverse, of which singular moments have none (they get 1e-12 of their largest
eigenvalue here); ours is one call, `factor W.npy --minus Q.npy --calibration X.npy`. The table has the objective
`||(W - Q - C) X^T|| / ||W X^T||` of both, and the output error on held-out inputs before and after.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

DATA = pathlib.Path(__file__).resolve().parents[2] / "tests" / "data"
TOOL = sys.argv[1] if len(sys.argv) > 1 else "target/release/tensorslim"
RANK = 32


def rounded(w, bits):
    """Return W rounded to nearest in blocks of 64 inputs, each with one scale."""
    blocks = w.reshape(w.shape[0], -1, 64)
    most = 2 ** (bits - 1) - 1
    scale = np.abs(blocks).max(axis=2, keepdims=True) / most
    scale[scale == 0] = 1
    return (np.clip(np.round(blocks / scale), -most - 1, most) * scale).reshape(w.shape)


def closed_form(e, x):
    """Return the best rank-32 C for `||(E - C) X^T||` by the square root of `X^T X`."""
    values, vectors = np.linalg.eigh(x.T @ x)
    values = np.maximum(values, 1e-12 * values[-1])
    root = (vectors * np.sqrt(values)) @ vectors.T
    inverse = (vectors / np.sqrt(values)) @ vectors.T
    u, s, vt = np.linalg.svd(e @ root, full_matrices=False)
    return (u[:, :RANK] * s[:RANK]) @ vt[:RANK] @ inverse


def ours(w, q, x, folder):
    """Return the product of our factors of `W - Q`."""
    names = {"w": w, "q": q, "x": x}
    for name, array in names.items():
        np.save(folder / f"{name}.npy", np.ascontiguousarray(array))
    subprocess.run(
        [TOOL, "factor", folder / "w.npy", "--minus", folder / "q.npy", "--rank", str(RANK), "--precision", "f64",
         "--method", "full", "--calibration", folder / "x.npy", "--out", folder / "out", "--overwrite", "--json"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    u, s, vt = (np.load(folder / "out" / f"{name}.npy") for name in ("u", "s", "vt"))
    return (u * s) @ vt


def main():
    print("| weight | bits | objective: Q alone | closed form | ours | held-out error: Q | Q + C |")
    print("|---|---|---|---|---|---|---|")
    results = []
    for name in ("ffn_up", "ffn_down"):
        w = np.load(DATA / f"{name}.npy").astype(np.float64)
        x = np.load(DATA / f"{name}_calibration.npy").astype(np.float64)
        held = np.load(DATA / f"{name}_heldout.npy").astype(np.float64)
        for bits in (4, 3):
            q = rounded(w, bits)

            def error(change, inputs):
                return np.linalg.norm(change @ inputs.T) / np.linalg.norm(w @ inputs.T)

            with tempfile.TemporaryDirectory() as folder:
                c = ours(w, q, x, pathlib.Path(folder))
            best = error(w - q - closed_form(w - q, x), x)
            mine = error(w - q - c, x)
            print(
                f"| {name} | {bits} | {error(w - q, x):.5f} | {best:.9f} | {mine:.9f} "
                f"| {error(w - q, held):.5f} | {error(w - q - c, held):.5f} |"
            )
            results.append({"weight": name, "bits": bits, "closed_form": best, "ours": mine})
    worst = max(r["ours"] / r["closed_form"] - 1 for r in results)
    print(f"\nours over the closed form, at most: {worst:+.1e}")
    print(json.dumps(results), file=sys.stderr)
    return 0 if worst < 1e-6 else 1


if __name__ == "__main__":
    sys.exit(main())
