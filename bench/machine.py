"""Where and when a result was measured, and whether the machine was free for it."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
VECTORS = {  # the most that a CPU has, by its flag in Linux
    "amx_int8": "AVX-512 and AMX",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx2": "AVX2",
}
RIVALS = ("torchebm", "ebmkit", "faiss-cpu", "faiss-gpu", "pykeops", "kornia", "pillow")


def environment(device: torch.device) -> dict[str, Any]:
    """Machine, versions, commit and load."""
    commit, changed = source()
    facts: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "uncommitted_changes": changed,
        "device": device_name(device),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "load_average": load_average(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastebm": metadata.version("fastebm"),
        "rivals": {name: _version(name) for name in RIVALS if _version(name)},
    }
    if device.type == "cuda":
        facts["cuda"] = torch.version.cuda
        facts["driver"] = _output(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
        )
    return facts


def source() -> tuple[str, bool]:
    """The commit, and whether the tree differs from it: of the checkout, or of a copy of its files
    as FASTEBM_COMMIT says (``git describe --always --dirty``)."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    if commit:
        return commit, bool(_git("status", "--porcelain"))
    told = os.environ.get("FASTEBM_COMMIT", "")
    return told.removesuffix("-dirty")[:12] or "none", told.endswith("-dirty")


def load_average() -> list[float]:
    return [round(v, 2) for v in os.getloadavg()]


def warning_if_busy(threads: int) -> str | None:
    """What to say where fewer CPUs are idle than threads are about to be timed."""
    busy, cpus = _busy_cpus(), os.cpu_count() or 1
    if busy + threads <= cpus + 0.5:
        return None
    return f"others keep {busy:.1f} of {cpus} CPUs busy; {threads} thread(s) need more"


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def _busy_cpus(seconds: float = 1.0) -> float:
    """CPUs in use while this process sleeps; 0 where the system does not say."""
    try:
        before = _cpu_ticks()
        time.sleep(seconds)
        after = _cpu_ticks()
    except OSError:
        return 0.0
    return (after - before) / os.sysconf("SC_CLK_TCK") / seconds


def _cpu_ticks() -> int:
    fields = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return sum(fields[:3]) + sum(fields[5:8])  # all but idle and waiting for input and output


def _cpu_name() -> str:
    """Model and vectors: a hypervisor may give one name to several generations."""
    facts = cpu_facts()
    name = facts.get("model name") or platform.processor() or platform.machine()
    flags = facts.get("flags", "").split()
    vectors = next((words for flag, words in VECTORS.items() if flag in flags), None)
    return f"{name} with {vectors}" if vectors else name


def cpu_facts() -> dict[str, str]:
    """What Linux says of the first CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    facts = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    return {key.strip(): value.strip() for key, value in facts.items()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    return _output("git", "-C", str(ROOT), *arguments)


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
