"""How much of the host's memory is free to be taken now, and how much of it an engine takes unless it is told."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ....traces.errors import EngineError

MEMORY = Path("/proc/meminfo")
GROUPS = Path("/sys/fs/cgroup")  # of a container: its own limit
LEFT_SHARE, LEFT_BYTES = (
    0.25,
    4 << 30,
)  # of what is available, left to weights on their way and to others
MOST_GIB_PER_GPU = 100.0  # the published system's pool; each GiB takes a third of a second to be pinned


def available_bytes() -> int:
    """What can be taken without swapping: by the kernel's count, and not beyond the limit of a container."""
    return min(_of_machine(), _of_container())


def usual_host_gib(gpus: int) -> float:
    """Memory for copies where nobody said how much: whole GiB. Raises `EngineError` where there is next to none."""
    available = available_bytes()
    gib = (available - max(LEFT_SHARE * available, LEFT_BYTES)) // 2**30
    if gib < 1:
        raise EngineError(
            f"--host-gib: only {available / 2**30:.1f} GiB of memory are available: say how much of it copies may take"
        )
    return float(min(gib, MOST_GIB_PER_GPU * gpus))


def _of_machine() -> int:
    try:
        found = re.search(r"^MemAvailable: *([0-9]+) kB$", MEMORY.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        found = None
    if found is not None:
        return int(found[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # not Linux: what there is


def _of_container() -> int:
    """What its limit leaves; files that are only cached give way. Without a limit: as much as there is."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),  # the older kind
    ):
        try:
            most, taken = (int((GROUPS / name).read_text(encoding="ascii")) for name in (limit, used))
            told = ((GROUPS / limit).parent / "memory.stat").read_text(encoding="ascii")
        except (OSError, ValueError):  # no such file; or `max`
            continue
        given = re.search(rf"^{cached} ([0-9]+)$", told, re.MULTILINE)
        return max(0, most - taken + (int(given[1]) if given else 0))
    return _of_machine()
