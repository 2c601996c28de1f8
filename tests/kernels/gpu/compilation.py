"""Kernels compiled for a GPU that need not be there, just as a call would launch them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from homeostat.kernels.gpu import batchnorm
from homeostat.kernels.gpu.launch import options_of
from homeostat.kernels.gpu.plans import Plan

POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Launch(NamedTuple):
    """What a call would have launched."""

    kernel: Any
    programs: int
    plan: Plan
    arguments: dict[str, Any]

    def compiled(self, capability: int, **options: Any) -> Any:
        """Return the kernel compiled with what the launcher would tell of the arguments."""
        signature, constants, attributes = {}, {}, {}
        for at, parameter in enumerate(self.kernel.params):
            name, value = parameter.name, self.arguments[parameter.name]
            if isinstance(value, torch.Tensor):
                signature[name] = POINTERS[value.dtype]
            elif parameter.is_constexpr or value is None or value == 1:
                signature[name], constants[(at,)] = "constexpr", value
            else:
                signature[name] = "i32" if value < 2**31 else "i64"
            if isinstance(value, torch.Tensor) or (signature[name][0] == "i" and value % 16 == 0):
                attributes[(at,)] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, constants, attributes)
        options |= options_of(self.plan)
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@contextmanager
def launches() -> Iterator[list[Launch]]:
    """Collect what calls in the body launch, instead of launching it."""
    found: list[Launch] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batchnorm, "launch", lambda *given: found.append(Launch(*given)))
        yield found


def told_by(tool: str, option: str, compiled: Any, folder: Path) -> str:
    """Return what a tool, Triton's or CUDA's, prints of the machine's code."""
    file = folder / "kernel.cubin"
    file.write_bytes(compiled.asm["cubin"])
    program = shutil.which(tool, path=f"{TOOLS}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip(f"{tool} is not there: neither in {TOOLS} nor on the PATH")
    command = [program, option, file]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def resources(compiled: Any, folder: Path) -> dict[str, int]:
    """Return the bytes of the stack and the registers of a thread."""
    told = told_by("cuobjdump", "--dump-resource-usage", compiled, folder)
    return {name: int(number) for name, number in re.findall(r"\b(REG|STACK):(\d+)", told)}


def loops(compiled: Any, folder: Path) -> list[list[str]]:
    """Return the machine's instructions of every loop that has no other loop in it."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    found: list[tuple[int, int]] = []
    for line in told_by("nvdisasm", "--print-code", compiled, folder).splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif code := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.+?)\s*;", line):
            target = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", code[1])
            # What jumps to itself is behind the kernel's end.
            if target and labels.get(target[1], len(instructions)) < len(instructions):
                found.append((labels[target[1]], len(instructions)))
            instructions.append(code[1])
    inner = [
        (first, last)
        for first, last in found
        if not any((first, last) != (f, t) and first <= f and t <= last for f, t in found)
    ]
    return [instructions[first : last + 1] for first, last in inner]


def bytes_moved(instructions: list[str]) -> int:
    """Return the bytes that a thread reads and writes of global memory."""
    found = re.findall(r"\b(?:LDG|STG)\.E(?:\.EF)?(?:\.(\d+|U8|U16|U))?\b", "\n".join(instructions))
    return sum({"": 4, "U8": 1, "U16": 2}.get(size) or int(size) // 8 for size in found)


def accesses(compiled: Any) -> list[tuple[str, int]]:
    """Return every access of global memory, as "ld" or "st" and its bytes."""
    found = re.findall(r"\b(ld|st)\.global[.\w:]*?(?:\.v(\d))?\.b(\d+)", compiled.asm["ptx"])
    return [(kind, int(lanes or 1) * int(bits) // 8) for kind, lanes, bits in found]
