"""What the session runs on: GPU, link, memory, versions."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tokencake import __version__
from tokencake.live.engine.control.versions import installed_vllm

from .setups import available_gib
from .work import Work

ASKED = (
    "name", "driver_version", "memory.total", "memory.used", "pcie.link.gen.current", "pcie.link.gen.max",
    "pcie.link.width.current", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu",
)  # fmt: skip
PACKAGES = ("torch", "triton", "transformers", "numpy", "simpy", "scipy", "pytest", "cuda-bindings")
GIB = 2**30


def facts(work: Work) -> dict[str, Any]:
    work.note(
        processor=processor(),
        cores=len(os.sched_getaffinity(0)),
        load=os.getloadavg()[0],
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        memory_available_gib=round(available_gib(), 1),
        locked_memory_limit=_first_line("bash", "-c", "ulimit -l"),
        kernel=platform.release(),
        python=platform.python_version(),
        gcc=_first_line("gcc", "--version"),
        vllm=installed_vllm(),
        tokencake=__version__,
        packages={name: _version(name) for name in PACKAGES},
        nvidia_smi=_nvidia_smi(),
    )
    import torch

    gpu = _gpu(torch) if torch.cuda.is_available() else None
    work.note(gpu=gpu, torch_cuda=torch.version.cuda)
    if gpu is None and not work.dry:
        raise RuntimeError(f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU")
    name = "no GPU" if gpu is None else gpu["name"]
    return {"said": f"{name}, {available_gib():.0f} GiB of memory available, vLLM {installed_vllm()}"}


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _gpu(torch: Any) -> dict[str, Any]:
    about = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    return {
        "name": about.name,
        "capability": f"{about.major}.{about.minor}",
        "multiprocessors": about.multi_processor_count,
        "memory_gib": round(total / GIB, 1),
        "free_gib": round(free / GIB, 1),
    }


def _nvidia_smi() -> dict[str, str] | None:
    line = _first_line("nvidia-smi", f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader")
    if line is None:
        return None
    values = [value.strip() for value in line.split(",")]
    return dict(zip(ASKED, values, strict=True)) if len(values) == len(ASKED) else {"said": line}


def _first_line(*command: str) -> str | None:
    """What a program says first; None where it is not there or says nothing."""
    if shutil.which(command[0]) is None:
        return None
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return None
    lines = (said.stdout or said.stderr).splitlines()
    return lines[0].strip() if lines else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
