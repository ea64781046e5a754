"""The kernels' sources and what they say about themselves, and the tools that `setup.sh` installs."""

import hashlib
import re
import sysconfig
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
KERNELS = ROOT / "qwen-backend-cuda" / "kernels"
PTX = KERNELS / "ptx"
PARAMS = KERNELS / "params.cuh"
PACKAGES = Path(sysconfig.get_path("purelib")) / "nvidia"


def sources():
    return sorted(KERNELS.glob("*.cu"))


def architecture(source):
    """The virtual architecture that a source is for: its first line says `// compute_80` if it is not the least."""
    first = source.read_text().split("\n", 1)[0]
    named = re.fullmatch(r"// compute_(\d+a?)", first)
    return named[1] if named else "75"


def needed_instructions(source):
    """What machine code of each kernel of a source has to have: a line `// machine code: HMMA LDSM`."""
    return [word for line in re.findall(r"^// machine code: (.*)$", source.read_text(), re.M) for word in line.split()]


def dynamic_shared(kernel):
    """Bytes of shared memory that a kernel is launched with, beside its own: as params.cuh says."""
    sizes = {name: int(size) for name, size in re.findall(r"^#define (\w+) (\d+)$", PARAMS.read_text(), re.M)}
    if tile := re.match(r"attention_tile_k(f32|f16)_d(\d+)$", kernel):
        key_bytes = 4 if tile[1] == "f32" else 2
        return 2 * sizes["ATTENTION_TILE"] * int(tile[2]) * (key_bytes + 2)
    if kernel.startswith("matmul_wide_"):
        return sizes["MATMUL_WIDE_SHARED"]
    return sizes["MATMUL_SHARED"] if kernel.startswith("matmul_") else 0


def ptx_path(source):
    """Where the PTX of a source is kept, compressed."""
    return PTX / f"{source.stem}.ptx.zlib"


def ptx_text(path):
    return zlib.decompress(path.read_bytes()).decode()


def source_digest(source, compiler):
    """Of a source, all headers, and how they are compiled."""
    h = hashlib.sha256(compiler.encode())
    for path in [source, *sorted(KERNELS.glob("*.cuh"))]:
        h.update(path.name.encode() + b"\0" + path.read_bytes())
    return h.hexdigest()


def tool(name):
    """A program or library that setup.sh installed, or None."""
    return next(iter(sorted(PACKAGES.glob(f"*/bin/{name}")) + sorted(PACKAGES.glob(f"*/lib/{name}"))), None)
