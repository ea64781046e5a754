#!/usr/bin/env python3
"""Assemble the PTX for every supported card and look at what came out. Needs tools/cuda/setup.sh, no card.

Fails on spilled registers, on more registers than a kernel's launch bounds leave room for (the macro KERNEL declares
them), on symbols that nothing defines, on more static shared memory than every card has, and when the machine code of a
matrix kernel has lost its tensor-core or copy instructions. Prints registers and shared memory on compute capability 9.0.
"""

import concurrent.futures
import pathlib
import re
import subprocess
import sys
import tempfile

from toolchain import PTX, find, output

CARDS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_120")
SHOWN = "sm_90"
REGISTERS = 65536
STATIC_SHARED = 48 * 1024
# Kernels by the beginning of their names, and the instructions that they are written for.
MATRIX = {
    "skinny_": ("HMMA", "LDG.E.128"),
    "matmul_": ("HMMA", "LDSM", "LDGSTS"),
    "attention_tile_kf16": ("HMMA", "LDSM", "LDGSTS"),
    "attention_tile_kf32": ("HMMA", "LDSM"),
    "ceiling_mma_": ("HMMA",),
    "matvec_": ("LDG.E.128",),
}


def level(name):
    """The number of an architecture: 90 of sm_90a."""
    return int(re.search(r"\d+", name).group())


def budgets(text):
    """Of each kernel in a PTX file: threads a block, and registers a thread that its launch bounds leave."""
    found = {}
    for name, directives in re.findall(r"\.entry (\w+)\([^)]*\)\s*((?:\.\w+[^\n]*\n)*)", text):
        threads = int(re.search(r"\.maxntid (\d+)", directives).group(1))
        blocks = re.search(r"\.minnctapersm (\d+)", directives)
        blocks = int(blocks.group(1)) if blocks else 1
        # Registers are given out to warps in units of 256, 8 a thread; one thread has 255 at most.
        found[name] = (threads, min(255, REGISTERS // (threads * blocks) // 8 * 8))
    return found


def assemble(job):
    """Assemble a file for a card. Returns what is wrong, and figures of its kernels."""
    ptx, card, folder = job
    cubin = folder / f"{ptx.stem}.{card}.cubin"
    done = subprocess.run([find("cu13/bin/ptxas"), "-v", f"-arch={card}", ptx, "-o", cubin], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    where = f"{ptx.name} for {card}"
    if done.returncode != 0:
        return [f"{where}: {done.stdout.strip()}"], {}
    text, faults, figures = ptx.read_text(), [], {}
    if ".extern .func" in text:
        faults.append(f"{where}: calls a function that is not there")
    limits = budgets(text)
    for name, report in re.findall(r"Compiling entry function '(\w+)'(.*?)(?=Compiling entry|\Z)", done.stdout, re.S):
        number = lambda pattern: int(next(iter(re.findall(pattern, report)), 0))
        spilled = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
        registers, shared = number(r"Used (\d+) registers"), number(r"(\d+) bytes smem")
        threads, budget = limits[name]
        figures[name] = (threads, registers, budget, shared, number(r"(\d+) bytes stack frame"))
        if spilled:
            faults.append(f"{where}: {name} spills {spilled} bytes")
        if registers > budget:
            faults.append(f"{where}: {name} takes {registers} registers, {budget} are left to it")
        if shared > STATIC_SHARED:
            faults.append(f"{where}: {name} takes {shared} bytes of static shared memory")
    wanted = {name: opcodes for name in figures for start, opcodes in MATRIX.items() if name.startswith(start)}
    if wanted:
        code = output([find("cu13/bin/nvdisasm"), "-c", cubin])
        bodies = dict(re.findall(r"\.section\s+\.text\.(\w+),(.*?)(?=\.section|\Z)", code, re.S))
        for name, opcodes in wanted.items():
            lost = [opcode for opcode in opcodes if opcode not in bodies.get(name, "")]
            if lost:
                faults.append(f"{where}: {name} has no {', '.join(lost)}")
    return faults, figures


def main():
    files = sorted(PTX.glob("*.ptx"))
    if not files:
        sys.exit(f"no PTX in {PTX}")
    least = {file: level(re.search(r"\.target (\w+)", file.read_text()).group(1)) for file in files}
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = [(file, card, pathlib.Path(folder)) for file in files for card in CARDS if level(card) >= least[file]]
        results = list(zip(jobs, pool.map(assemble, jobs)))
    print(f"{'kernel on ' + SHOWN:<36} threads registers of budget shared stack")
    for (_, card, _), (_, figures) in results:
        if card == SHOWN:
            for name, (threads, registers, budget, shared, stack) in sorted(figures.items()):
                print(f"{name:<36} {threads:7} {registers:9} {budget:9} {shared:6} {stack:5}")
    faults = [fault for _, (found, _) in results for fault in found]
    print(f"{len(jobs)} assemblies for {', '.join(CARDS)}: {len(faults)} faults")
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
