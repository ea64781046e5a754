"""The emulator from Python: kernels by name on numpy arrays.

For checks of single kernels while they are written; the backend's own tests load the same library from Rust.
"""

import ctypes
import re
from pathlib import Path

import numpy as np

KERNELS = Path(__file__).resolve().parent.parent / "kernels"
TYPES = {"u32": ctypes.c_uint32, "u64": ctypes.c_uint64, "float": ctypes.c_float}


def structures():
    """The parameter structures of params.cuh, by name."""
    text = re.sub(r"//[^\n]*", "", (KERNELS / "params.cuh").read_text())
    found = {}
    for name, body in re.findall(r"struct (\w+) \{(.*?)\};", text, re.S):
        fields = []
        for declaration in body.split(";"):
            words = declaration.replace("const", "").split()
            if not words:
                continue
            kind = ctypes.c_void_p if words[0].endswith("*") else TYPES[words[0]]
            fields += [(field.strip(" *"), kind) for field in " ".join(words[1:]).split(",")]
        found[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return found


def constants():
    """The numbers that params.cuh defines, by name."""
    return {n: int(v) for n, v in re.findall(r"#define (\w+) (\d+)\n", (KERNELS / "params.cuh").read_text())}


class KernelError(Exception):
    pass


class Emulator:
    def __init__(self, library):
        self.library = ctypes.CDLL(str(library))
        self.reverse = False
        # Every wait that any launch came to.
        self.seen = set()
        # Bytes of every array given to a kernel, by address, to keep them alive and their guards in sight.
        self.guarded = []

    def _text(self, function):
        length = function(None, 0)
        text = ctypes.create_string_buffer(length)
        function(text, length)
        return text.value.decode().split()

    def kernels(self):
        return self._text(self.library.emulated_kernels)

    def waits(self):
        """Where threads of the last launch waited, as FILE:LINE."""
        return self._text(self.library.emulated_waits)

    def without(self, wait):
        """Pass over a wait from now on; None: over none."""
        self.library.emulate_without(wait.encode() if wait else None)

    def array(self, values, dtype=None):
        """A copy of `values` at a multiple of 256 bytes, with guard bytes on both sides that `launch` checks."""
        values = np.ascontiguousarray(values, dtype)
        memory = np.full(values.nbytes + 1024, 0xA5, np.uint8)
        start = 256 + -(memory.ctypes.data + 256) % 256
        memory[start : start + values.nbytes] = values.reshape(-1).view(np.uint8)
        self.guarded.append((memory, start, values.nbytes))
        return memory[start : start + values.nbytes].view(values.dtype).reshape(values.shape)

    def launch(self, name, grid, block, params, shared=0):
        grid = (ctypes.c_uint * 3)(*grid)
        block = (ctypes.c_uint * 3)(block, 1, 1)
        size = self.library.emulated_params_size(name.encode())
        if size != ctypes.sizeof(params):
            raise KernelError(f"{name}: parameters of {size} bytes expected, {ctypes.sizeof(params)} given")
        error = ctypes.create_string_buffer(512)
        failed = self.library.emulate(
            name.encode(), grid, block, shared, ctypes.byref(params), int(self.reverse), error, ctypes.c_ulong(512)
        )
        self.seen.update(self.waits())
        for memory, start, length in self.guarded:
            if (memory[:start] != 0xA5).any() or (memory[start + length :] != 0xA5).any():
                raise KernelError(f"{name}: wrote beyond an array of {length} bytes")
        if failed:
            raise KernelError(error.value.decode())


def address(array):
    return None if array is None else array.ctypes.data
