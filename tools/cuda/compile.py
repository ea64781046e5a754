"""Compile the CUDA kernels to the PTX that is checked in.

    compile.py            compile all of qwen-backend-cuda/kernels into kernels/ptx, and write SOURCES.sha256
    compile.py --check    fail where kernels/ptx was made from other sources, or the sources do not compile
    compile.py --show X   print the PTX that is kept of X.cu

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

from kernels import KERNELS, PTX, architecture, ptx_path, ptx_text, source_digest, sources, tool

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


def compile_one(source):
    library = nvrtc()
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    library.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), source.name.encode(), 0, None, None)
    options = [f"--gpu-architecture=compute_{architecture(source)}", f"-I{KERNELS}", *OPTIONS]
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


def compiled(source):
    """In a process of its own: malformed assembly may take the compiler down."""
    child = subprocess.run([sys.executable, __file__, "--one", str(source)], capture_output=True, text=True)
    if child.returncode:
        sys.exit(f"{source.name} does not compile (status {child.returncode})\n{child.stderr}")
    return child.stdout


def digests():
    """A line a source: of what it is made from, of the PTX, its name."""
    return "".join(
        f"{source_digest(s, COMPILER)} {hashlib.sha256(ptx_text(ptx_path(s)).encode()).hexdigest()} {s.stem}\n"
        for s in sources()
    )


def check():
    stale = []
    for source in sources():
        if not ptx_path(source).exists():
            stale.append(source.stem)
    extra = {p.name for p in PTX.glob("*.ptx*")} - {ptx_path(s).name for s in sources()}
    if stale or extra:
        sys.exit(f"kernels/ptx lacks {stale} and has {sorted(extra)} without a source: run tools/cuda/compile.py")
    if not DIGESTS.exists() or DIGESTS.read_text() != digests():
        sys.exit("kernels/ptx was made from other sources: run tools/cuda/compile.py")
    if not nvrtc():
        print("!!!! SKIPPED: no NVRTC here (tools/cuda/setup.sh installs it): digests compared, nothing compiled !!!!")
        return
    with ThreadPoolExecutor(2) as pool:
        for source, text in zip(sources(), pool.map(compiled, sources())):
            if heads(text) != heads(ptx_text(ptx_path(source))):
                sys.exit(f"kernels/ptx/{ptx_path(source).name} has other kernels than {source.name}: run tools/cuda/compile.py")
    print(f"kernels/ptx was made from these {len(sources())} sources, and they compile to its kernels")


def write():
    if not nvrtc():
        sys.exit("no NVRTC here: run this by the Python that tools/cuda/setup.sh prints")
    PTX.mkdir(exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(compiled, sources()))
    for old in PTX.glob("*.ptx*"):
        old.unlink()
    for source, text in zip(sources(), texts):
        ptx_path(source).write_bytes(zlib.compress(text.encode(), 9))
    DIGESTS.write_text(digests())
    sizes = [ptx_path(source).stat().st_size for source in sources()]
    print(f"{len(texts)} files, {sum(map(len, texts)):,} bytes, {sum(sizes):,} compressed")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        compile_one(KERNELS / sys.argv[2])
    elif sys.argv[1:2] == ["--show"]:
        sys.stdout.write(ptx_text(PTX / f"{sys.argv[2]}.ptx.zlib"))
    elif sys.argv[1:] == ["--check"]:
        check()
    elif not sys.argv[1:]:
        write()
    else:
        sys.exit(__doc__)
