"""Compile the CUDA kernels to the PTX that is checked in.

    compile.py            compile all of qwen-backend-cuda/kernels into kernels/ptx, and write SOURCES.sha256
    compile.py --check    fail where kernels/ptx was made from other sources, or the sources do not compile
    compile.py --show X   print the PTX of the module X

Run by the Python that `setup.sh` prints. Without NVRTC `--check` only compares digests, and says what it skips.
"""

import ctypes
import hashlib
import re
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kernels import FORMATS, KERNELS, PTX, modules, source_digest, tool

# Fusing is left to the sources (fmaf), so that the GPU gives the emulator's bits.
OPTIONS = ["--fmad=false", "--std=c++17"]
PACKAGE = re.search(r"^nvidia-cuda-nvrtc.*$", (Path(__file__).parent / "requirements.txt").read_text(), re.M)[0]
COMPILER = " ".join([PACKAGE, *OPTIONS])
DIGESTS = PTX / "SOURCES.sha256"


def nvrtc():
    builtins, library = tool("libnvrtc-builtins.so.12.1"), tool("libnvrtc.so.12")
    if not library:
        return None
    # NVRTC looks for this one by name: loaded beforehand, it is found.
    ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(library))


def stripped(ptx):
    """Without what no kernel uses: comments, spaces, long names, and constants that NVRTC puts into each module."""
    lines = (re.sub(r"\s*//.*", "", line) for line in ptx.split("\n"))
    lines = (re.sub(r"\w+_param_0", "p", re.sub(r",\s+", ",", " ".join(line.split()))) for line in lines)
    text = "\n".join(line for line in lines if line and "nv6target" not in line) + "\n"
    # Arrays in shared memory are named after the functions they are in.
    for i, name in enumerate(dict.fromkeys(re.findall(r"_Z\w+", text))):
        text = re.sub(rf"\b{name}\b", f"array{i}", text)
    return text


def compile_one(module):
    library = nvrtc()
    source = module.source
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    library.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), source.name.encode(), 0, None, None)
    options = [f"--gpu-architecture=compute_{module.architecture}", f"-I{KERNELS}", f"-I{FORMATS}", *OPTIONS]
    given = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    failed = library.nvrtcCompileProgram(program, len(options), given)
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    if failed or log.value.strip():
        sys.exit(f"{source.name}:\n{log.value.decode()}")
    library.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    library.nvrtcGetPTX(program, ptx)
    sys.stdout.write(stripped(ptx.value.decode()))


def heads(ptx):
    """The kernels of a module, their parameters and launch bounds. The rest varies: NVRTC leaves a dead load here and
    there, from run to run, and numbers registers accordingly."""
    return re.findall(r"^\.visible \.entry.*?^\{", ptx, re.M | re.S)


def compiled(module):
    """In a process of its own: malformed assembly may take the compiler down."""
    child = subprocess.run([sys.executable, __file__, "--one", module.name], capture_output=True, text=True)
    if child.returncode:
        sys.exit(f"{module.source.name} does not compile (status {child.returncode})\n{child.stderr}")
    return child.stdout


def digests():
    """A line a module: of what it is made from, of the PTX, its name."""
    return "".join(f"{source_digest(m, COMPILER)} {hashlib.sha256(m.text().encode()).hexdigest()} {m.name}\n" for m in modules())


def check():
    stale = [module.name for module in modules() if not module.ptx.exists()]
    extra = {p.name for p in PTX.glob("*.ptx*")} - {module.ptx.name for module in modules()}
    if stale or extra:
        sys.exit(f"kernels/ptx lacks {stale} and has {sorted(extra)} without a source: run tools/cuda/compile.py")
    if not DIGESTS.exists() or DIGESTS.read_text() != digests():
        sys.exit("kernels/ptx was made from other sources: run tools/cuda/compile.py")
    if not nvrtc():
        print("!!!! SKIPPED: no NVRTC here (tools/cuda/setup.sh installs it): digests compared, nothing compiled !!!!")
        return
    with ThreadPoolExecutor(2) as pool:
        for module, text in zip(modules(), pool.map(compiled, modules())):
            if heads(text) != heads(module.text()):
                sys.exit(f"{module.ptx.name} has other kernels than {module.source.name}: run tools/cuda/compile.py")
    print(f"kernels/ptx was made from these sources, and they compile to the kernels of its {len(modules())} modules")


def write():
    if not nvrtc():
        sys.exit("no NVRTC here: run this by the Python that tools/cuda/setup.sh prints")
    PTX.mkdir(exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(compiled, modules()))
    for old in PTX.glob("*.ptx*"):
        old.unlink()
    for module, text in zip(modules(), texts):
        module.ptx.write_bytes(zlib.compress(text.encode(), 9))
    DIGESTS.write_text(digests())
    size = sum(module.ptx.stat().st_size for module in modules())
    print(f"{len(texts)} files, {sum(map(len, texts)):,} bytes, {size:,} compressed")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        compile_one(next(module for module in modules() if module.name == sys.argv[2]))
    elif sys.argv[1:2] == ["--show"]:
        sys.stdout.write(next(module for module in modules() if module.name == sys.argv[2]).text())
    elif sys.argv[1:] == ["--check"]:
        check()
    elif not sys.argv[1:]:
        write()
    else:
        sys.exit(__doc__)
