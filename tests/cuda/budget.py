#!/usr/bin/env python3
"""Checks compiled kernels: registers and memory of each on every architecture, and what instructions they are made of.

    budget.py IMAGE.fatbin...       needs cuobjdump and nvdisasm on PATH

Prints one line for each kernel and architecture. Fails if a kernel uses local memory (a spill or an array that is not in
registers), goes over its budget, or if the pure transforms multiply.
"""
import re
import subprocess
import sys

# Registers by kernel, the longest matching prefix counts. What they allow: 64 for 1024 threads on a multiprocessor, 128
# for 512. fwht_columns holds 2^r elements of a column in each thread; 8 warps of it are enough to keep memory busy.
REGISTERS = {
    "fwht_rows_": 64,
    "fwht_rows_f32_15": 128, "fwht_rows_f16_15": 128, "fwht_rows_bf16_15": 128,
    "fwht_rows_f64_": 64, "fwht_rows_f64_14": 128,
    "fwht_columns_": 80,
    "fwht_columns_f32_5": 128, "fwht_columns_f16_5": 128, "fwht_columns_bf16_5": 128, "fwht_columns_f64_5": 168,
    "fwht_columns_f32_6": 255, "fwht_columns_f16_6": 255, "fwht_columns_bf16_6": 255,
    "fwht_columns_f32_f16_6": 96, "fwht_columns_f32_bf16_6": 96,
    "fwht_based_": 72, "fwht_based_f64_9": 96, "hadamard_": 48,
    "srht_": 80, "srht_f64_13": 128, "srht_panel_": 40, "sparse_sign_": 72,
    "cast_f16_f64": 48, "cast_bf16_f64": 48,  # eight doubles at a time
    "cast_f64_f16": 56, "cast_f64_bf16": 56,  # and each rounded to an odd float first
    "": 40,
}
# sm_90 and later reserve 1 KiB of shared memory for each block.
RESERVED = 1024


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def budget(kernel):
    return REGISTERS[max((prefix for prefix in REGISTERS if kernel.startswith(prefix)), key=len)]


def usage(image):
    """(architecture, kernel, {REG, STACK, SHARED, LOCAL}) of an image."""
    architecture = kernel = None
    for line in run("cuobjdump", "-res-usage", image).splitlines():
        if m := re.match(r"arch = (\S+)", line):
            architecture = m[1]
        elif m := re.match(r" Function (\S+):", line):
            kernel = m[1]
        elif kernel and "REG:" in line:
            yield architecture, kernel, {k: int(v) for k, v in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)}
            kernel = None


def instructions(image):
    """How often each opcode occurs, by architecture and kernel."""
    count = {}
    architecture = kernel = None
    for line in run("cuobjdump", "-sass", image).splitlines():
        if m := re.match(r"\s*arch = (\S+)", line):
            architecture = m[1]
        elif m := re.search(r"Function : (\S+)", line):
            kernel = count[architecture, m[1]] = {}
        elif m := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)", line):
            kernel[m[1]] = kernel.get(m[1], 0) + 1
    return count


def made_of(kernel, ops):
    """What a kernel is made of, and what is wrong with that: in a transform nothing is fused and there are as many additions as
    butterflies need; what lies together in memory moves 16 bytes at a time."""
    total = lambda *prefixes: sum(n for op, n in ops.items() if op.startswith(prefixes))
    have = {
        "add": total("FADD", "DADD"), "fma": total("FFMA", "DFMA"), "shuffle": total("SHFL"), "barrier": total("BAR"),
        "load": total("LDG.E.128"), "store": total("STG.E.128"), "read": total("LDS.128"), "write": total("STS.128"),
    }
    wrong = []
    size = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8}
    if m := re.fullmatch(r"(fwht_rows|srht)_(f16|bf16|f32|f64)_(\d+)", kernel):
        # struct Layout of kernels/fwht.cuh.
        k, vector, registers = int(m[3]), {"f32": 2, "f64": 1}.get(m[2], 3), 4 if m[2] == "f64" else 5
        v = min(k, vector)
        c = max(0, min(k - v - 5, registers - v))
        threads = min(k - v - c, 9)
        elements = 2 ** (k - threads)
        want = {"fma": 0, "add": k * elements}
        if k >= vector:
            want["load"] = want["store"] = elements >> vector
        if threads > 5:
            want["read"] = want["write"] = elements * (8 if m[2] == "f64" else 4) // 16
        if m[1] == "srht":
            # And 16 bytes of signs. The stages of the warp bits are done where it samples, which is there more than once: a term
            # for each warp, and one of the block before.
            want = {"fma": 0, "load": elements >> vector, "write": elements * (8 if m[2] == "f64" else 4) // 16 + 1}
            warps = max(threads - 5, 0)
            least = (k - warps) * elements + 2**warps
            wrong = [] if least <= have["add"] < 2 * least else [f"add (not {least} and some)"]
    elif m := re.fullmatch(r"cast_(\w+)_(\w+)", kernel):
        unit = 16 // min(size[m[1]], size[m[2]])
        want = {"load": unit * size[m[1]] // 16, "store": unit * size[m[2]] // 16}
    elif kernel.startswith("statistics"):
        want = {"load": 1}
    else:
        want = {"fma": 0} if kernel.startswith(("hadamard", "fwht_based")) else {}
    wrong += [f"{what} (not {n})" for what, n in want.items() if have[what] != n]
    if m := re.fullmatch(r"fwht_columns_\w+_(\d+)", kernel):
        # The body may be there more than once.
        r = int(m[1])
        if have["add"] == 0 or have["add"] % (r * 2**r) or have["fma"]:
            wrong.append(f"add (no multiple of {r * 2**r}) or fma")
    return have, wrong


def main(images):
    failures = kernels = 0
    table = {}
    for image in images:
        for architecture, kernel, used in usage(image):
            kernels += 1
            limit = budget(kernel)
            shared = used["SHARED"] - (RESERVED if int(architecture[3:]) >= 90 else 0)
            good = used["REG"] <= limit and used["STACK"] == used["LOCAL"] == 0 and shared <= 0
            failures += not good
            table.setdefault(kernel, (limit, {}))[1][architecture] = f"{used['REG']}{'' if good else ' FAILS ' + str(used)}"
    columns = sorted({a for _, row in table.values() for a in row}, key=lambda a: int(a[3:]))
    print(f"{'registers':22} {'budget':>6} " + " ".join(f"{a:>7}" for a in columns) + "   (no spills, no stack, no static shared memory)")
    for kernel, (limit, row) in sorted(table.items()):
        print(f"{kernel:22} {limit:6} " + " ".join(f"{row.get(a, 'absent'):>7}" for a in columns))
        failures += len(row) != len(columns)

    checked = 0
    print(f"\n{'instructions':22} {'':7}   add    fma  shuffle  barrier  16 bytes: load  store  shared read  write")
    found = {key: ops for image in images for key, ops in instructions(image).items()}
    for (architecture, kernel), ops in sorted(found.items(), key=lambda x: (x[0][1], int(x[0][0][3:]))):
        have, wrong = made_of(kernel, ops)
        checked += 1
        failures += bool(wrong)
        if wrong or re.search(r"_(f32|bf16|f64)_12$|fwht_\w+_f32_5$|hadamard_f32$|fwht_based_b?f\d+_8$|cast_b?f\d+_f32|statistics_f32", kernel):
            print(f"{kernel:22} {architecture:7} {have['add']:5} {have['fma']:6} {have['shuffle']:8} {have['barrier']:8} "
                  f"{have['load']:14} {have['store']:6} {have['read']:12} {have['write']:6}  {'FAILS: ' + ', '.join(wrong) if wrong else ''}")
    print(f"{checked} looked at (some are printed): transforms fuse nothing and add as often as butterflies need; rows, casts, norms and SRHT "
          "move 16 bytes at a time")
    print(f"{kernels} kernels in {len(columns)} architectures, {failures} failures")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
