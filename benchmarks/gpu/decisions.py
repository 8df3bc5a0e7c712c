"""A synchronous run on the same engine: do the simulator's engine and policy decide what the real ones did?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokencake.live.client.in_process import InProcess
from tokencake.policies.run_settings import UNMEASURED
from tokencake.sim.calibration.engine_info import limits_of
from tokencake.sim.machine.machine import Machine
from tokencake.traces.apps import Application

from . import results, setups
from .plan import COMPILED
from .shape import calibrated_machine, decided_again, played_live, simulated
from .work import Work

POLICY = "tokencake"
APPLICATIONS = (6, 4, 2, 1)  # as many as there is time for
SLACK = 1.3  # a synchronous run may take so much longer than the calibrated, asynchronous machine says
START_S = 75.0  # of the engine


def replayed(work: Work) -> dict[str, Any]:
    """Raises AssertionError if anything was decided otherwise."""
    work.variant = (results.read(work.out, "up") or {}).get("variant") or COMPILED  # as the engine came up before
    shape = setups.shape_7b(work, asynchronous=False)
    machine = calibrated_machine(work)
    workload = fitting(shape, machine, 10.0 if work.dry else work.left_s - START_S)
    events = work.folder("events") / "synchronous.jsonl.gz"
    options = shape.engine if work.dry or shape.engine.compile else replace(shape.engine, compile="graphs")  # sooner up
    with InProcess(options) as engine:
        info = engine.info()
        work.note(engine=info, applications=len(workload), calls=setups.calls_of(workload))
        played_live(work, engine, POLICY, workload, machine.beliefs() if machine else UNMEASURED, events)
        limits = limits_of(info)
    agreement = decided_again(events, workload, limits, POLICY)
    tallies = {kind: {"recorded": tally.recorded, "different": tally.different}
               for kind, tally in agreement.tallies.items()}  # fmt: skip
    firsts = [f"{kind}: {tally.first}" for kind, tally in agreement.tallies.items() if tally.first is not None]
    work.note(agreement=agreement.record(), tallies=tallies, firsts=firsts)
    if not agreement.equal:
        raise AssertionError(agreement.ended or firsts[0])
    counts = agreement.record()
    return {"said": f"{counts['admissions']} admissions and {counts['records']} records, none differs"}


def fitting(shape: setups.Shape, machine: Machine | None, left_s: float) -> list[Application]:
    """As many applications as can be played in that time; few where nobody knows how long they take."""
    if machine is None:
        return shape.workload(APPLICATIONS[-2])
    for count in APPLICATIONS:
        workload = shape.workload(count)
        if simulated(POLICY, workload, machine)["makespan_s"] * SLACK <= left_s:
            break
    return workload
