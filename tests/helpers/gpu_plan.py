"""Phases that do whatever phases may do, for the tests of the session on a GPU: a plan, as a worker finds it."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from gpu.plan import Phase, Process
from gpu.work import OutOfTime, Work

HANGS_S = 5.0  # limit of what hangs: longer than it takes a busy machine to start a process


def fine(work: Work) -> dict[str, Any]:
    return {"said": "all is well", "by": os.getpid()}


def fails(work: Work) -> dict[str, Any]:
    work.note(halfway=1)
    raise ValueError("three of four\nand more")


def hangs(work: Work) -> dict[str, Any]:
    work.note(halfway=1)
    time.sleep(600)
    return {}


def dies(work: Work) -> dict[str, Any]:
    print("the last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def stops_by_itself(work: Work) -> dict[str, Any]:
    work.note(halfway=1)
    raise OutOfTime("stopped after 3 s")


def up(work: Work) -> dict[str, Any]:
    """An engine that comes up only the third way."""
    with (work.out / "ups").open("a") as file:
        file.write(work.variant + "\n")
    if work.variant != "third":
        raise RuntimeError(f"cannot start {work.variant}")
    return {"by": os.getpid()}


def slowly_up(work: Work) -> dict[str, Any]:
    """An engine that takes too long the first way, and would the second."""
    with (work.out / "ups").open("a") as file:
        file.write(work.variant + "\n")
    return hangs(work) if work.variant in ("first", "second") else fine(work)


def never_up(work: Work) -> dict[str, Any]:
    raise RuntimeError("cannot start")


def phase(name: str, function: str, limit_s: float = 20.0, least_s: float = 0.1) -> Phase:
    return Phase(name, f"the phase {name}", f"{__name__}:{function}", limit_s, least_s)


PROCESSES = (
    Process("a", (phase("good", "fine"),)),
    Process("b", (phase("bad", "fails"), phase("behind-bad", "fine"))),
    Process("c", (phase("stuck", "hangs", HANGS_S), phase("behind-stuck", "fine"))),
    Process("d", (phase("dead", "dies"), phase("behind-dead", "fine"))),
    Process("e", (phase("late", "stops_by_itself"),)),
    Process(
        "f",
        (
            phase("up", "up"),
            phase("on-it", "fine"),
            phase("stuck-on-it", "hangs", HANGS_S),
            phase("still-on-it", "fine"),
        ),
        ("first", "second", "third"),
    ),
    Process(
        "slow-up",
        (phase("slowly-up", "slowly_up", HANGS_S), phase("on-slow", "fine")),
        ("first", "second", "third", "last"),
        hasty="third",
    ),
    Process("g", (phase("never", "never_up"), phase("on-nothing", "fine")), ("first", "second")),
    Process("endless", (phase("endless", "hangs", 600.0), phase("behind-endless", "fine"))),
    Process("h", (phase("long", "fine", least_s=1e6),)),
)
