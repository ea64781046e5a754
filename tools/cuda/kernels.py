"""The kernels' sources and what they say about themselves, and the tools that `setup.sh` installs."""

import hashlib
import re
import sysconfig
import zlib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
KERNELS = ROOT / "qwen-backend-cuda" / "kernels"
# Formats of blocks, a source each.
FORMATS = KERNELS / "formats"
PTX = KERNELS / "ptx"
PARAMS = KERNELS / "params.cuh"
PACKAGES = Path(sysconfig.get_path("purelib")) / "nvidia"


@dataclass(frozen=True)
class Module:
    """What one run of the compiler makes: its name, source, virtual architecture, and needed instructions."""

    name: str
    source: Path
    architecture: str
    # What machine code of each of its kernels has to have.
    instructions: tuple

    @property
    def ptx(self):
        """The file that keeps its PTX, compressed."""
        return PTX / f"{self.name}.ptx.zlib"

    def text(self):
        return zlib.decompress(self.ptx.read_bytes()).decode()


def words(text, key):
    """What a source says of itself in lines such as `// machine code: HMMA LDSM`."""
    return tuple(word for line in re.findall(rf"^// {re.escape(key)}: (.*)$", text, re.M) for word in line.split())


def modules():
    """A module a source, for the architecture that its first line names (`// compute_80`) if it is not the least; and
    two a format."""
    found = []
    tensor = words((KERNELS / "block_kernels.cuh").read_text(), "machine code of {format}_mma")
    for source in sorted(KERNELS.glob("*.cu")):
        text = source.read_text()
        named = re.fullmatch(r"// compute_(\d+a?)", text.split("\n", 1)[0])
        found.append(Module(source.stem, source, named[1] if named else "75", words(text, "machine code")))
    for source in sorted(FORMATS.glob("*.cu")):
        found.append(Module(source.stem, source, "75", ()))
        found.append(Module(f"{source.stem}_mma", source, "80", tensor))
    return sorted(found, key=lambda module: module.name)


def dynamic_shared(kernel):
    """Bytes of shared memory that a kernel is launched with, beside its own: as params.cuh says."""
    sizes = {name: int(size) for name, size in re.findall(r"^#define (\w+) (\d+)$", PARAMS.read_text(), re.M)}
    if tile := re.match(r"attention_tile_k(f32|f16)_d(\d+)$", kernel):
        key_bytes = 4 if tile[1] == "f32" else 2
        return 2 * sizes["ATTENTION_TILE"] * int(tile[2]) * (key_bytes + 2)
    if kernel.startswith("matmul_wide_"):
        return sizes["MATMUL_WIDE_SHARED"]
    if kernel.endswith("_mma_tile"):
        return sizes["BLOCK_MMA_SHARED"]
    return sizes["MATMUL_SHARED"] if kernel.startswith("matmul_") else 0


def source_digest(module, compiler):
    """Of a module's source, all headers, and how they are compiled."""
    h = hashlib.sha256(f"{compiler} {module.architecture}".encode())
    for path in [module.source, *sorted(KERNELS.glob("*.cuh")), *sorted(FORMATS.glob("*.cuh"))]:
        h.update(path.name.encode() + b"\0" + path.read_bytes())
    return h.hexdigest()


def tool(name):
    """A program or library that setup.sh installed, or None."""
    return next(iter(sorted(PACKAGES.glob(f"*/bin/{name}")) + sorted(PACKAGES.glob(f"*/lib/{name}"))), None)
