"""Compilation of the kernels for GPUs that are not there, with the registers and the spills that they take."""

from __future__ import annotations

import re
import subprocess
import tempfile
from typing import Any, NamedTuple

from twinloss.fast.kernels.gpu.launch import Launch

# The GPUs to compile for: backend, architecture, and the number of threads of a warp.
TARGETS: dict[str, tuple[str, Any, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "gfx942": ("hip", "gfx942", 64),
}


class Resources(NamedTuple):
    """What a kernel takes of a processor.

    Attributes:
        registers: of each thread.
        spills: bytes (NVIDIA) or registers (AMD) of each thread that do not fit and go through memory.
        shared: bytes of shared memory of each program.
    """

    registers: int
    spills: int
    shared: int


def compiled(launch: Launch, target: str) -> Resources:
    """Compile a recorded launch for one of `TARGETS`; no GPU and no driver are needed.

    Raises:
        RuntimeError: Triton's interpreter is on (TRITON_INTERPRET=1), which leaves nothing to compile.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if triton.knobs.runtime.interpret:
        raise RuntimeError("unset TRITON_INTERPRET before Triton is imported: its interpreter compiles nothing")
    places = {name: (index,) for index, (name, _) in enumerate(launch.types)}
    source = ASTSource(
        fn=launch.kernel,
        signature=dict(launch.types),
        constexprs={places[name]: value for name, value in launch.constants},
        attrs={places[name]: [["tt.divisibility", 16]] for name in launch.aligned},
    )
    made = triton.compile(
        source, target=GPUTarget(*TARGETS[target]), options={"num_warps": launch.warps, "enable_fp_fusion": False}
    )
    backend, architecture, _ = TARGETS[target]
    return _on_nvidia(made, architecture) if backend == "cuda" else _on_amd(made)


def _on_nvidia(made: Any, architecture: int) -> Resources:
    from triton.backends.nvidia.compiler import get_ptxas

    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(made.asm["ptx"])
        file.flush()
        name = _found(r"\.target (sm_\w+)", made.asm["ptx"])
        assembler = [get_ptxas(architecture).path, "-v", f"-arch={name}", file.name, "-o", "/dev/null"]
        said = subprocess.run(assembler, capture_output=True, text=True, check=False).stderr
    registers, spills = _found(r"Used (\d+) registers", said), _found(r"(\d+) bytes spill stores", said)
    return Resources(int(registers), int(spills), made.metadata.shared)


def _on_amd(made: Any) -> Resources:
    code = made.asm["amdgcn"]
    registers, spills = _found(r"\.vgpr_count:\s+(\d+)", code), _found(r"\.vgpr_spill_count:\s+(\d+)", code)
    return Resources(int(registers), int(spills), made.metadata.shared)


def _found(pattern: str, text: str) -> str:
    found = re.findall(pattern, text)
    if not found:
        raise ValueError(f"the compiler printed nothing that matches {pattern!r}: {text[-1000:]}")
    return str(found[-1])
