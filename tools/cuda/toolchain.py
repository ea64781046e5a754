"""The pinned compilers, where tools/cuda/setup.sh put them, and the kernels in the repository."""

import ctypes
import hashlib
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
KERNELS = ROOT / "qwen-backend-cuda/kernels"
PTX = KERNELS / "ptx"
VENV = ROOT / "target/cuda-venv"

# Which compiler made the PTX. Contractions are off: a kernel fuses where it says fmaf, as the emulator does.
COMPILER = "nvrtc 12.1.105"
OPTIONS = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")


def find(pattern):
    """The one file of the compilers that matches."""
    found = sorted(VENV.glob(f"lib/python*/site-packages/nvidia/{pattern}"))
    if not found:
        sys.exit(f"{pattern} is not in {VENV}: run tools/cuda/setup.sh")
    return found[0]


def sources():
    """All kernel sources."""
    return sorted(KERNELS.glob("*.cu"))


def target(source):
    """The virtual architecture of a source: its first line may name one."""
    named = re.match(r"// (compute_\w+)", source.read_text())
    return named.group(1) if named else "compute_75"


def digest(source):
    """What the PTX of a source depends on: its text, that of all it includes, and the compiler."""
    hash, seen, todo = hashlib.sha256(" ".join((COMPILER, *OPTIONS, target(source))).encode()), set(), [source]
    while todo:
        file = todo.pop(0)
        if file in seen:
            continue
        seen.add(file)
        text = file.read_text()
        hash.update(text.encode())
        # The emulator's headers lie elsewhere and say nothing about the card.
        todo += [KERNELS / name for name in re.findall(r'^#include "(\w+\.cuh)"', text, re.M)]
    return hash.hexdigest()


def nvrtc(source):
    """Compile a source to PTX in this process. Malformed assembler may end the process."""
    library = ctypes.CDLL(str(find("cuda_nvrtc/lib/libnvrtc.so.12")))
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    text = source.read_bytes()
    library.nvrtcCreateProgram(ctypes.byref(program), text, source.name.encode(), 0, None, None)
    options = [*OPTIONS, f"--gpu-architecture={target(source)}", f"--include-path={KERNELS}"]
    array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = library.nvrtcCompileProgram(program, len(options), array)
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    message = log.value.decode().strip()
    if message:
        print(message, file=sys.stderr)
    if status != 0:
        sys.exit(f"{source.name}: nvrtc refused it ({status})")
    library.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    library.nvrtcGetPTX(program, ptx)
    # Without the compiler's own comments and its table of targets, which no code refers to.
    noise = re.compile(r"//|\.global .*nv6target")
    lines = [line.rstrip() for line in ptx.value.decode().splitlines() if not noise.match(line)]
    return "\n".join(lines).strip() + "\n"


def output(command):
    """Run a command and return what it printed, or end with it."""
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout
