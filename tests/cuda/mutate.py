#!/usr/bin/env python3
"""Removes each barrier of the kernels in turn, and the waits between streams, and sees that the tests miss them.

    mutate.py DIR TESTS      DIR/mock has the driver built by tests/cuda/build, TESTS is the executable of tests/cuda.rs

A mutant is compiled with fewer sizes (-DEMULATE_FEW), takes the place of its original in a driver, and must make a test fail with a
race. The unchanged sources, built the same way, must pass. A driver that waits for no events must make a test fail, too.
"""
import concurrent.futures
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
    "fwht.cu": ["few_rows"],
    "sketch.cu": ["few_sketches"],
    "cast.cu": ["operators_of_every"],
    "norms.cu": ["panels"],
    "whiten.cu": ["panels"],
}
INCLUDES = {"fwht.cuh": ["fwht.cu"], "reduce.cuh": ["norms.cu"]}


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


def run(work, tests, names, **more):
    """Output of the tests of these names, and whether they passed."""
    env = dict(os.environ, LD_LIBRARY_PATH=str(work), REQUIRE_GPU="1", RUST_BACKTRACE="0", **more)
    done = subprocess.run([tests, "--quiet", "--test-threads", "1", *names], env=env, capture_output=True, text=True)
    return done.stdout + done.stderr, done.returncode == 0


def barrier(task):
    """Whether a barrier was missed, and what to print."""
    folder, tests, file, number, source = task
    work = folder / f"mutant-{file.stem}-{file.suffix[1:]}-{number}-{pathlib.Path(source).stem}"
    kernels = work / "kernels"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(KERNELS, kernels)
    lines = file.read_text().splitlines(keepends=True)
    lines[number] = BARRIER.sub(";", lines[number])
    (kernels / file.name).write_text("".join(lines))
    library(work, folder / "mock", kernels, source)
    output, passed = run(work, tests, TESTS[source])
    race = re.search(r"mock: (\w+): (race in \w+ memory: [^\n]*|read of uninit[^\n]*)", output)
    shutil.rmtree(work)
    return not passed and race is not None, f"{file.name}:{number + 1} in {source}: {race[0][6:] if race else output[-300:]}"


def whole(task):
    """Whether the tests of a source pass as it is, compiled as the mutants are."""
    folder, tests, source = task
    work = folder / f"mutant-{source}"
    library(work, folder / "mock", KERNELS, source)
    output, passed = run(work, tests, TESTS[source])
    shutil.rmtree(work)
    return passed, f"{source} as it is{'' if passed else ': ' + output}"


def deaf(task):
    """Whether it is missed that streams, or the host, no longer wait for events."""
    folder, tests, who, names = task
    # As late as CUDA allows, a host that waits for nothing overtakes the copies. Streams run at once here, so that all data
    # are there in time and nothing but the driver's check of their order can find it.
    lazy = "1" if who == "host" else "0"
    output, passed = run(folder / "mock", tests, [names], MOCK_DEAF=who, MOCK_LAZY=lazy)
    why = re.search(r"mock: streams: [^\n]*" if who == "stream" else r"panicked at [^\n]*\n[^\n]*", output)
    return not passed and why is not None, f"waits of the {who}, {names}: {why[0] if why else output[-300:]}".replace("\n", " ")


def main(folder, tests):
    folder = pathlib.Path(folder)
    tasks = [(barrier, (folder, tests, file, number, source))
             for file in sorted(KERNELS.iterdir())
             for number, line in enumerate(file.read_text().splitlines()) if BARRIER.search(line.split("//")[0])
             for source in INCLUDES.get(file.name, [file.name])]
    # The two streams of this crate, and that of a caller, both where factors come of it and where an error does.
    tasks += [(deaf, (folder, tests, *task)) for task in [
        ("stream", "operators_that_do_not_fit"), ("host", "operators_that_do_not_fit"),
        ("stream", "borrowed_matrices_are_factored"), ("stream", "error_in_the_middle")]]
    survivors = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for good, text in pool.map(whole, [(folder, tests, source) for source in TESTS]):
            print(f"{'passes  ' if good else 'FAILS   '} {text}")
            if not good:
                return 1
        for good, text in pool.map(lambda task: task[0](task[1]), tasks):
            survivors += not good
            print(f"{'caught  ' if good else 'SURVIVES'} {text}", flush=True)
    print(f"{len(tasks) - survivors} of {len(tasks)} caught: each barrier, and the waits between streams and host, left out in turn")
    return survivors > 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
