"""A CPU as if it had fewer instructions: fastebm's own level, and what rivals can be held to.

What they read at their start is set before it, so a bench at a chosen level starts once more.
"""

from __future__ import annotations

import os
import sys

from fastebm import _C

# torch's own loops and torch.compile; MKL; oneDNN, where bfloat16 and int8 products are; faiss's
# own loops; the OpenBLAS in faiss.
READ_AT_START = (
    *("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA"),
    *("FAISS_SIMD_LEVEL", "OPENBLAS_CORETYPE"),
)
LEVELS = {
    "scalar": ("default", "SSE4_2", "SSE41", "NONE", "Nehalem"),
    "avx2": ("avx2", "AVX2", "AVX2", "AVX2", "Haswell"),
    "avx2_vnni": ("avx2", "AVX2", "AVX2_VNNI", "AVX2", "Haswell"),
    "avx512": ("avx512", "AVX512", "AVX512_CORE", "AVX512", "SkylakeX"),
    "avx512_vnni": ("avx512", "AVX512", "AVX512_CORE_BF16", "AVX512", "SkylakeX"),
    "amx": ("avx512", "AVX512", "AVX512_CORE_AMX", "AVX512_SPR", "SkylakeX"),
}
MARK = "FASTEBM_BENCH_SIMD"


def hold_to(level: str) -> None:
    """Starts this process once more as for a CPU of that level, unless it has been."""
    if os.environ.get(MARK) != level:
        held = dict(zip(READ_AT_START, LEVELS[level], strict=True)) | {MARK: level}
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | held)
    _C.set_simd(level)


def name() -> str:
    """What fastebm uses."""
    return _C.simd()


def is_held() -> bool:
    return MARK in os.environ


def facts() -> dict[str, str]:
    """The level, and what else is held to it."""
    found = {"simd": name()}
    if is_held():
        held = ", ".join(f"{name}={os.environ[name]}" for name in READ_AT_START)
        found["held"] = f"{held}; not held: KeOps, which compiles for the CPU that it finds"
    return found
