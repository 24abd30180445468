#!/usr/bin/env python3
"""Removes each barrier of the kernels in turn and sees that the tests miss it.

    mutate.py DIR TESTS      DIR/mock has the driver built by tests/cuda/build, TESTS is the executable of tests/cuda.rs

A mutant is compiled with fewer sizes (-DEMULATE_FEW), takes the place of its original in a driver, and must make a test fail with a
race. The unchanged sources, built the same way, must pass.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
KERNELS = HERE.parent.parent / "kernels"
BARRIER = re.compile(r"__sync(threads|warp)\(\w*\);")
# Which tests run a source, and under which name; a header is tried in each source that includes it.
TESTS = {
    "fwht.cu": ["few_"],
    "sketch.cu": ["few_"],
    "cast.cu": ["operators_of_every"],
    "norms.cu": ["panels"],
    "whiten.cu": ["panels"],
}
INCLUDES = {"fwht.cuh": ["fwht.cu", "sketch.cu"], "reduce.cuh": ["norms.cu"]}


def library(work, mock, kernels, source):
    """A driver with `source` compiled from the folder `kernels`."""
    work.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c++20", "-g", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-DSIMT_EMULATOR", "-DEMULATE_FEW",
             f"-I{HERE}", f"-I{kernels}", "-O1", "-fsanitize=thread,alignment", "--param",
             "tsan-instrument-func-entry-exit=0", "-Wno-unknown-pragmas", "-w"]
    mutant = work / "mutant.o"
    subprocess.run(["g++", *flags, "-x", "c++", "-c", str(kernels / source), "-o", str(mutant)], check=True)
    others = [str(o) for o in mock.glob("*.o") if o.stem != pathlib.Path(source).stem]
    subprocess.run(["g++", "-shared", "-Wl,-soname,libcuda.so.1", "-o", str(work / "libcuda.so.1"), str(mutant), *others, "-ldl"], check=True)
    for name in ("libcublas.so.12", "libcusolver.so.12"):
        link = work / name
        link.unlink(missing_ok=True)
        link.symlink_to("libcuda.so.1")


def run(work, tests, source):
    """Output of the tests of a source, and whether they passed."""
    env = dict(os.environ, LD_LIBRARY_PATH=str(work), REQUIRE_GPU="1", RUST_BACKTRACE="0")
    done = subprocess.run([tests, "--quiet", "--test-threads", "1", *TESTS[source]], env=env, capture_output=True, text=True)
    return done.stdout + done.stderr, done.returncode == 0


def main(folder, tests):
    folder = pathlib.Path(folder)
    mock, work, mutated = folder / "mock", folder / "mutant", folder / "mutated"
    survivors = count = 0
    for source in TESTS:
        library(work, mock, KERNELS, source)
        output, passed = run(work, tests, source)
        if not passed:
            print(output)
            sys.exit(f"{source} fails as it is")
    for file in sorted(KERNELS.iterdir()):
        lines = file.read_text().splitlines(keepends=True)
        for number, line in enumerate(lines):
            if not BARRIER.search(line.split("//")[0]):
                continue
            shutil.rmtree(mutated, ignore_errors=True)
            shutil.copytree(KERNELS, mutated)
            (mutated / file.name).write_text("".join(lines[:number] + [BARRIER.sub(";", line)] + lines[number + 1:]))
            for source in INCLUDES.get(file.name, [file.name]):
                library(work, mock, mutated, source)
                output, passed = run(work, tests, source)
                race = re.search(r"mock: (\w+): (race in \w+ memory: [^\n]*|read of uninit[^\n]*)", output)
                caught = not passed and race is not None
                survivors += not caught
                count += 1
                print(f"{'caught  ' if caught else 'SURVIVES'} {file.name}:{number + 1} in {source}: {race[0][6:] if race else output[-300:]}")
    print(f"{count - survivors} of {count} removed barriers caught")
    return survivors > 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
