"""Assemble the checked-in PTX for every GPU that it may run on, and fail if a kernel breaks a rule below.

It should not spill registers, nor use more than lets a multiprocessor take as many blocks as its KERNEL line says, nor
call what is not there; and its machine code has the instructions that its source names (`// machine code: HMMA LDSM`).
Prints a table for compute capability 9.0. Arguments, such as `75 90`, restrict it to those GPUs. Run by the Python that
`setup.sh` prints; without ptxas it says what it skips.
"""

import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kernels import dynamic_shared, modules, tool

GPUS = ["75", "80", "86", "89", "90", "90a", "100", "120"]
TABLE = "90"
REGISTERS = 65536
# Of shared memory: what a multiprocessor of 9.0 has, and what each block takes beside its own.
SHARED, SHARED_PER_BLOCK = 228 * 1024, 1024
# Threads that a multiprocessor has at once.
THREADS = {"75": 1024, "86": 1536, "89": 1536, "120": 1536}


def number(value):
    return int(re.search(r"\d+", value)[0])


def gpus_of(ptx):
    """The GPUs that a module runs on."""
    target = re.search(r"^\.target sm_(\d+)(a?)", ptx, re.M)
    if target[2]:
        return [target[1] + "a"]
    return [gpu for gpu in GPUS if number(gpu) >= int(target[1])]


def declared(ptx):
    """For each kernel its threads and the blocks that a multiprocessor is to take."""
    kernels = {}
    for name, head in re.findall(r"\.entry (\w+)\((.*?)^\{", ptx, re.M | re.S):
        threads = int(re.search(r"\.maxntid (\d+)", head)[1])
        kernels[name] = threads, int(re.search(r"\.minnctapersm (\d+)", head)[1])
    return kernels


def assemble(module, ptx, gpu, folder):
    """(problems, {kernel: (registers, shared bytes)}) for the PTX of a module on a GPU."""
    cubin = Path(folder) / f"{module.name}.{gpu}.cubin"
    command = [str(tool("ptxas")), "-v", f"-arch=sm_{gpu}", "-", "-o", str(cubin)]
    done = subprocess.run(command, input=ptx, capture_output=True, text=True)
    where = f"{module.name} on sm_{gpu}"
    if done.returncode:
        return [f"{where}: {done.stderr.strip()}"], {}
    problems, used, name = [], {}, None
    kernels = declared(ptx)
    for line in done.stderr.split("\n"):
        if match := re.search(r"Function properties for (\w+)", line):
            name = match[1]
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            if match[1] != "0" or match[2] != "0":
                problems.append(f"{where}: {name} spills {match[1]} bytes")
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            used[name] = int(match[1]), int(shared[1]) if shared else 0
    for name, (threads, blocks) in kernels.items():
        if name not in used:
            problems.append(f"{where}: nothing is known of {name}")
            continue
        possible = min(blocks, THREADS.get(gpu, 2048) // threads)
        if used[name][0] * threads * possible > REGISTERS:
            problems.append(f"{where}: {name} uses {used[name][0]} registers, too many for {possible} blocks")
    if module.instructions:
        code = subprocess.run([str(tool("nvdisasm")), "-c", str(cubin)], capture_output=True, text=True, check=True)
        # nvdisasm fills its headings up to a common length.
        parts = re.split(r"^//-+ \.text\.(\w+) +-+$", code.stdout, flags=re.M)[1:]
        machine_code = dict(zip(parts[::2], parts[1::2]))
        for name in kernels:
            if name not in machine_code:
                problems.append(f"{where}: no machine code of {name} was found")
                continue
            for instruction in module.instructions:
                if not re.search(rf"\b{re.escape(instruction)}\b", machine_code[name]):
                    problems.append(f"{where}: the machine code of {name} has no {instruction}")
    cubin.unlink()
    return problems, used


def print_table(texts, used):
    print(f"{'kernel':40} {'threads':>7} {'registers':>9} {'shared':>7} {'blocks a multiprocessor (sm_' + TABLE + ')':>34}")
    for module, ptx in texts.items():
        for name, (threads, _) in sorted(declared(ptx).items()):
            registers, shared = used[module, TABLE][name]
            shared += dynamic_shared(name)
            limits = [2048 // threads, REGISTERS // (-(-registers // 8) * 8 * threads), 32]
            limits.append(SHARED // (shared + SHARED_PER_BLOCK))
            print(f"{name:40} {threads:7} {registers:9} {shared:7} {min(limits):34}")


def main():
    if not tool("ptxas") or not tool("nvdisasm"):
        print("!!!! SKIPPED: no ptxas here (tools/cuda/setup.sh installs it): the PTX of kernels was not assembled !!!!")
        return
    wanted = sys.argv[1:] or GPUS
    texts = {module: module.text() for module in modules()}
    problems, used = [], {}
    for module, ptx in texts.items():
        for array in re.findall(r"^\.extern \.shared .*?(\w+)\[\]", ptx, re.M):
            for name, body in re.findall(r"\.entry (\w+)\((.*?)^\}", ptx, re.M | re.S):
                if array in body and not dynamic_shared(name):
                    problems.append(f"{module.name}: {name} has shared memory of no known size")
        for extern in re.findall(r"^\.extern \.func.*$", ptx, re.M):
            problems.append(f"{module.name}: calls what is not there: {extern}")
    jobs = [(module, gpu) for module, ptx in texts.items() for gpu in gpus_of(ptx) if gpu in wanted]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        for job, (found, kernels) in zip(jobs, pool.map(lambda job: assemble(job[0], texts[job[0]], job[1], folder), jobs)):
            problems += found
            used[job] = kernels
    if not problems and TABLE in wanted:
        print_table(texts, used)
    print(f"{len(texts)} modules, {sum(map(len, texts.values())):,} bytes of PTX, {len(jobs)} assemblies")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
