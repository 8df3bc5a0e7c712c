"""A large model's shape: brought up, calibrated, and played under policies against predictions that came before.

All phases share one engine. What is predicted is written to predictions.json before the first of the runs, by the
machine that was just calibrated and by the preset that nobody measured; each run names the file's hash.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from live_accuracy import formula_error

from tokencake import __version__
from tokencake.live.client.in_process import InProcess
from tokencake.policies.costs import LinearCosts
from tokencake.policies.registry import load_policy
from tokencake.policies.replay.replay import replay_file
from tokencake.policies.run_settings import RunSettings
from tokencake.sim.calibration import report as calibration
from tokencake.sim.calibration.calibrate import calibrate
from tokencake.sim.calibration.engine_info import MachineLimits, limits_of, with_limits
from tokencake.sim.calibration.samples import Samples
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.fidelity.agreement import Agreement
from tokencake.sim.fidelity.rerun import play_recorded
from tokencake.sim.machine.kv_groups import groups_of
from tokencake.sim.machine.machine import Machine
from tokencake.sim.machine.presets import PUBLISHED
from tokencake.traces.apps import Application
from tokencake.traces.format.events_file import EventsWriter
from tokencake.traces.results.metrics import Metrics

from . import results, setups
from .answers import backends
from .plan import PLAYED
from .results import CALIBRATED, PREDICTIONS, PRESET
from .work import Work

SLACK = 1.2  # a live run may take so much longer than the simulated one
RUN_S = 6.0  # and so much for what comes around it
RESERVED_S = 75.0  # for what is measured behind these runs


def up(work: Work) -> dict[str, Any]:
    shape = setups.shape_7b(work)
    began_s = time.monotonic()
    engine = work.closing.enter_context(InProcess(shape.engine))
    work.engine = engine
    start_s = time.monotonic() - began_s
    work.note(start_s=start_s, engine=engine.info(), backends=backends(engine), host_gib=shape.engine.host_gib)
    engine.play(setups.decoding(2, 100, 8), RunSettings(), progress=work.watch)
    info = engine.info()
    how = "asynchronous" if info["asynchronous"] else "synchronous"
    return {"said": f"{shape.title}, {info['gpu_blocks']:,} blocks, {how}: up after {start_s:.0f} s"}


def calibrated(work: Work) -> dict[str, Any]:
    """By probes of all sizes, and of the steps that what is played will come to."""
    engine, shape = engine_of(work), setups.shape_7b(work)
    began_s = time.monotonic()
    fitted = calibrate(
        engine,
        shape.effort,
        applications=lambda limits: shape.workload(shape.counts[0]),
        link_gbps=shape.engine.link_gbps,
    ).fit
    took_s = time.monotonic() - began_s
    work.note(calibration_s=took_s, host_load=fitted.host_load)
    machine = fitted.machine(CALIBRATED)
    warnings = fitted.warnings()
    work.note(calibration=calibration.build(__version__, engine.info(), fitted, machine), warnings=warnings)
    overall = fitted.steps.overall
    said = f"{overall.steps} steps in {took_s:.0f} s, error {overall.median:+.1%} (95 % within {overall.p95:.1%})"
    return {"said": f"{said}, {len(warnings)} warning{'s' * (len(warnings) != 1)}"}


def predicted(work: Work) -> dict[str, Any]:
    """Write down what the simulator says of as many applications as there is time to play."""
    shape = setups.shape_7b(work)
    machines = {CALIBRATED: calibrated_machine(work), PRESET: preset_machine(work, shape)}
    believed = machines[CALIBRATED] or machines[PRESET]
    if believed is None:
        raise RuntimeError("the engine was not calibrated, and no preset is known of this GPU")
    count, first = planned(work, shape, believed)
    workload = shape.workload(count)
    predictions = {}
    for name, machine in machines.items():
        if machine is not None:
            done = first if machine is believed else {policy: simulated(policy, workload, machine) for policy in PLAYED}
            predictions[name] = done
    content = {
        "schema": f"{results.SCHEMA}/predictions",
        "written": results.utc(),
        "tokencake": __version__,
        "applications": count,
        "calls": setups.calls_of(workload),
        "rate": setups.RATE / shape.time_scale,
        "time_scale": shape.time_scale,
        "shrink": shape.shrink,
        "machines": {name: machine.settings() for name, machine in machines.items() if machine is not None},
        "predictions": predictions,
    }
    results.write_json(work.out / PREDICTIONS, content)
    spans = ", ".join(f"{policy} {metrics['makespan_s']:.0f} s" for policy, metrics in first.items())
    return {"sha256": digest(work.out), "said": f"{count} applications: {spans}"}


def planned(work: Work, shape: setups.Shape, machine: Machine) -> tuple[int, dict[str, Any]]:
    """As many applications as can be played under all policies in the session's time, and what is said of them."""
    left_s = work.session_end_s - time.monotonic() - RESERVED_S
    for count in shape.counts:
        workload = shape.workload(count)
        said = {policy: simulated(policy, workload, machine) for policy in PLAYED}
        if sum(metrics["makespan_s"] * SLACK + RUN_S for metrics in said.values()) <= left_s:
            break
    return count, said


def simulated(policy: str, workload: list[Application], machine: Machine) -> dict[str, Any]:
    metrics = Metrics()
    simulate(workload, load_policy(policy), machine, [metrics.add])
    return metrics.result()


def live_vllm(work: Work) -> dict[str, Any]:
    return live(work, "vllm")


def live_tokencake(work: Work) -> dict[str, Any]:
    return live(work, "tokencake")


def live_native_offload(work: Work) -> dict[str, Any]:
    return live(work, "native-offload")


def live(work: Work, policy: str) -> dict[str, Any]:
    """One run, beside what was said of it before. A run that is cut off leaves its events and metrics so far."""
    engine, shape = engine_of(work), setups.shape_7b(work)
    said = json.loads((work.out / PREDICTIONS).read_text())
    machines = {name: machine_of(settings) for name, settings in said["machines"].items()}
    machine = machines.get(CALIBRATED) or machines[PRESET]
    workload = shape.workload(said["applications"])
    work.note(policy=policy, predictions={"written": said["written"], "sha256": digest(work.out)}, began=results.utc())
    events = work.folder("events") / f"{policy}.jsonl.gz"
    metrics, samples = played_live(work, engine, policy, workload, machine.beliefs(), events)
    limits = limits_of(engine.info())
    agreement = decided_again(events, workload, limits, policy)
    work.note(parity=work.noted("parity") | agreement.record())
    if CALIBRATED in machines:
        work.note(steps_error=formula_error(machines[CALIBRATED], samples.steps))
    live_s = metrics["makespan_s"]
    errors = {name: expected[policy]["makespan_s"] / live_s - 1 for name, expected in said["predictions"].items()}
    differ = ", ".join(f"{name} {error:+.1%}" for name, error in errors.items())
    latency_s = metrics["app_latency_s"]["mean"]
    return {"said": f"makespan {live_s:.1f} s (said before: {differ}), mean application latency {latency_s:.1f} s"}


def played_live(
    work: Work, engine: InProcess, policy: str, workload: list[Application], costs: LinearCosts, events: Path
) -> tuple[dict[str, Any], Samples]:
    """Play, and note metrics, counts and whether the plans come out again. Raises AssertionError if the run failed."""
    metrics, samples = Metrics(), Samples()
    settings = RunSettings(policy=policy, costs=costs, steps=True)
    try:
        with EventsWriter(events) as writer:
            stats = engine.play(workload, settings, [metrics.add, samples.add], writer.add, work.watch)
    except BaseException:
        work.note(partial=metrics.result())
        raise
    parity = replay_file(events, policy)[1]
    work.note(
        live=metrics.result(), stats=stats.record(), policy_s=stats.policy_s, wall_s=stats.wall_s, steps=stats.steps
    )
    work.note(parity=parity.record())
    doubts = [*stats.errors, *stats.disagreements, *([str(parity.first)] if parity.first else [])]
    if doubts:
        raise AssertionError(f"{policy}: {doubts[0]}")
    return metrics.result(), samples


def decided_again(events: Path, workload: list[Application], limits: MachineLimits, policy: str) -> Agreement:
    """Whether the simulator's engine, given the times of a live run, does what the real one did."""
    return play_recorded(events, workload, with_limits(PUBLISHED, limits), policy)


def engine_of(work: Work) -> InProcess:
    assert work.engine is not None, "the engine is not up"
    return work.engine


def calibrated_machine(work: Work) -> Machine | None:
    """What an earlier phase measured."""
    found = results.found(work.out, "calibrated")
    return machine_of(found["calibration"]["machine"]) if found else None


def preset_machine(work: Work, shape: setups.Shape) -> Machine | None:
    """What the presets say of this GPU, which nobody measured here; None if there is none."""
    gpu = results.found(work.out, "machine").get("gpu")
    return setups.preset("" if gpu is None else gpu["name"], shape)


def machine_of(settings: dict[str, Any]) -> Machine:
    """A machine from its settings."""
    fields = dict(settings)
    fields["kv_groups"] = groups_of(fields["kv_groups"])
    return Machine(believed=tuple(fields.pop("beliefs").items()), **fields)


def digest(out: Path) -> str:
    return hashlib.sha256((out / PREDICTIONS).read_bytes()).hexdigest()
