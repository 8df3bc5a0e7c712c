"""Triton's interpreter in place of its compiler: vLLM's model runner V2, the one of GPUs, runs on a CPU with it.

vLLM for CPUs takes Triton for absent unless it has a backend for CPUs, which the package of that name lacks. With its
kernels interpreted, a step of the tiny model takes some fifty milliseconds.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec


class _Driver:
    @staticmethod
    def is_active() -> bool:
        return True


class _Cpu:
    driver = _Driver


def prepare() -> str | None:
    """Have vLLM, which is yet to be imported, find a Triton for CPUs. What is in the way of that; None: nothing."""
    if find_spec("triton") is None:
        return "needs Triton"
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "needs a process with TRITON_INTERPRET=1"
    if "vllm" in sys.modules:
        return "needs a process of its own"
    from triton.backends import backends

    backends.clear()
    backends["cpu"] = _Cpu
    return None
