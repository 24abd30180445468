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
    "srht_": 112, "srht_f64_": 128, "srht_panel_": 40,
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


def instructions(image, kernel, architecture):
    """How often each opcode occurs."""
    count = {}
    for line in run("cuobjdump", "-sass", "-arch", architecture, "-fun", kernel, image).splitlines():
        if m := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)", line):
            count[m[1]] = count.get(m[1], 0) + 1
    return count


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

    # 12 additions for each of a thread's 32 elements, none fused; 16-byte accesses to memory and to shared memory.
    fwht = next(i for i in images if i.endswith("fwht.fatbin"))
    for architecture in columns:
        for kernel, adds in (("fwht_rows_f32_12", 12 * 32), ("fwht_rows_bf16_12", 12 * 32)):
            ops = instructions(fwht, kernel, architecture)
            total = lambda prefix: sum(n for op, n in ops.items() if op.startswith(prefix))
            # f32: 32 elements in 8 loads; bf16: in 4. The scalar path for unaligned rows is there besides.
            loads, stores = ops.get("LDG.E.128", 0), ops.get("STG.E.128", 0)
            # (For sm_80 and sm_90 nvcc takes the last store apart.)
            want = 8 if "_f32_" in kernel else 4
            good = (total("FFMA"), total("FADD")) == (0, adds)
            good &= loads >= want and stores >= want - 1 and total("LDS.128") >= 8
            failures += not good
            print(f"{'ok' if good else 'FAIL':4} {architecture:7} {kernel:18} FADD {total('FADD')}, FFMA {total('FFMA')}, "
                  f"SHFL {total('SHFL')}, LDG.128 {loads}, STG.128 {stores}, LDS.128 {total('LDS.128')}, BAR {total('BAR')}")
    print(f"{kernels} kernels in {len(columns)} architectures, {failures} failures")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
