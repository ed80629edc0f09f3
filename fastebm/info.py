"""How this fastebm was built and what it can use here."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

from fastebm.ops.library import extension


def build_info() -> dict[str, str]:
    """Versions, instruction sets and devices, each as a line of text."""
    archs = extension.cuda_archs
    return {
        "fastebm": version("fastebm"),
        "python": platform.python_version(),
        "torch": f"{torch.__version__} (built against {extension.torch_version})",
        "compiler": extension.compiler,
        "cpu": f"{extension.simd()}, {torch.get_num_threads()} threads",
        "cuda kernels": f"sm {archs} (nvcc {extension.cuda_version})" if archs else "none",
        "gpu": gpu_status(),
    }


def gpu_status() -> str:
    """The GPU that the kernels can run on, or the reason why there is none."""
    if not extension.cuda_archs:
        return "not usable: fastebm was built without a CUDA compiler"
    if torch.version.cuda is None:
        return f"not usable: torch {torch.__version__} is a CPU build"
    if not torch.cuda.is_available():
        return "not usable: torch sees no CUDA device (driver missing, or none visible)"
    major, minor = torch.cuda.get_device_capability()
    archs = [int(a.split("-")[0].rstrip("af")) for a in extension.cuda_archs.split(",")]
    name = torch.cuda.get_device_name()
    if not any(a // 10 == major and a % 10 <= minor for a in archs):
        return f"not usable: {name} is sm_{major}{minor}, kernels are for sm {extension.cuda_archs}"
    return f"usable: {name} (sm_{major}{minor})"
