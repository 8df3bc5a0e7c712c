"""The published workload on one GPU, live and simulated: is the simulator's verdict the engine's?

    python benchmarks/gpu.py [--budget-s 540] [--applications 24] [--policy P]... [--json FILE]
    python benchmarks/gpu.py --tiny                         # the same steps with a tiny model: a few minutes

Starts vLLM with dummy weights of the published model's shape (no download) and the published sizes, measures what it
costs, plays the published applications under each policy, and simulates the same on the machine that was just fitted.
What does not fit into the budget is left out, and named: first applications, then policies behind the first two. The
JSON file is written anew after each step, so that a time limit loses nothing.

Without a GPU, as with --tiny, model, prompts, memory and waits are scaled down. That proves the script, and says
nothing about the published system: what is missing is printed, and stands in the file.

Of an environment that is put together by hand it needs, beside vLLM and what that needs: click, numpy, rich, scipy,
simpy; and vLLM's `*.dist-info` folder, which says its version. Tokencake itself need not be installed. Without
FlashAttention: --attention-backend TRITON_ATTN.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if find_spec("tokencake") is None:  # a checkout: its root is the package, whatever its folder is called
    _links = tempfile.mkdtemp(prefix="tokencake-")
    atexit.register(shutil.rmtree, _links)
    Path(_links, "tokencake").symlink_to(Path(__file__).resolve().parents[1])
    sys.path.insert(0, _links)

from live_accuracy import formula_error
from rich.console import Console

from tokencake import __version__
from tokencake.live import validation
from tokencake.live.engine_options import EngineOptions
from tokencake.live.in_process import InProcess
from tokencake.live.measure import QUICK, Effort, measure
from tokencake.live.settings import RunSettings
from tokencake.live.versions import for_cpus
from tokencake.policies.registry import load_policy
from tokencake.policies.replay import replay_file
from tokencake.sim import calibration
from tokencake.sim.fit import fit_facts, limits_of
from tokencake.sim.machine import Machine
from tokencake.sim.outputs import check_writable, write_whole
from tokencake.sim.presets import MODELS, PUBLISHED, Model
from tokencake.sim.recorded import play_recorded
from tokencake.sim.samples import Samples
from tokencake.sim.simulate import simulate
from tokencake.traces.apps import Application
from tokencake.traces.errors import TokencakeError
from tokencake.traces.events_io import EventsWriter
from tokencake.traces.generate import code_writer
from tokencake.traces.metrics import Metrics
from tokencake.traces.scaling import scaled
from tokencake.traces.shrinking import shrunk

SCHEMA = "tokencake.gpu/1"
RESULTS = Path(__file__).parent / "results"
POLICIES = ("vllm", "tokencake", "tokencake-time:upload=demand")
COMPARED = 2  # the policies that applications are left out for; those behind them are played if there is time
APPLICATIONS, FEW_APPLICATIONS = 24, 12  # of the published workload, and of the tiny model's
RATE = 1.0  # applications a second
SLACK = 1.15  # a live run may take so much longer than the simulated one
RUN_S = 5.0  # and so much for what comes around it
TIME_SCALE = 0.1  # of the tiny model's waits
KV_BYTES_PER_TOKEN = 4096  # of the tiny model
SMALL = "the published model and sizes: a tiny model was computed, with prompts, memory and waits scaled down"
NO_GPU = (
    "the step times of a GPU, with its kernels and CUDA graphs",
    "copies between GPU memory and pinned host memory: they were made within the host's memory",
    "asynchronous scheduling, which vLLM's backend for CPUs does not have",
)


@dataclass(frozen=True, slots=True)
class Setup:
    """An engine, how it is measured, and what of the published workload it can play."""

    title: str
    engine: EngineOptions
    effort: Effort
    applications: int
    shrink: int = 1  # of this many tokens one is left
    time_scale: float = 1.0  # of arrivals and tools

    def workload(self, applications: int) -> list[Application]:
        """The first so many of the published applications."""
        whole = code_writer(applications, RATE)
        return list(scaled(shrunk(whole, self.shrink) if self.shrink > 1 else whole, self.time_scale))


def published(arguments: argparse.Namespace, folder: Path) -> Setup:
    """The published system's sizes and model."""
    write_config(folder, MODELS["qwen2.5-14b"])
    engine = EngineOptions(
        model=str(folder),
        load_format="dummy",
        dtype="bfloat16",
        gpu_blocks=PUBLISHED.gpu_blocks,
        block_tokens=PUBLISHED.block_tokens,
        max_context_tokens=PUBLISHED.max_context_tokens,
        step_budget_tokens=PUBLISHED.step_budget_tokens,
        max_running=PUBLISHED.max_running,
        host_gib=arguments.host_gib or min(PUBLISHED.host_gib, memory_gib() // 2),
        attention_backend=arguments.attention_backend,
        compile="none" if arguments.eager else None,
        verbose=arguments.verbose,
    )
    # Contexts that fit into the cache together; prompts and copies as large as the workload's.
    effort = replace(
        QUICK,
        prefill_tokens=(8, 64, 256, 1024, 2048, 4096, 8192),
        context_tokens=(64, 2048, 8192),
        cached_tokens=16_384,
        largest_batch=64,
        copy_bytes=(1 << 22, 1 << 24, 1 << 26, 1 << 28, 1 << 30),
    )
    applications = arguments.applications or APPLICATIONS
    title = "Qwen2.5-14B's shape, dummy weights"
    return Setup(title, engine, effort, applications, time_scale=arguments.time_scale or 1.0)


def tiny(arguments: argparse.Namespace, gpu: bool) -> Setup:
    """An eighth of the tokens, so of the published memory, and a tenth of the waits."""
    shrink, block_tokens = 8, 32  # the only blocks that vLLM has on CPUs
    share = KV_BYTES_PER_TOKEN / PUBLISHED.kv_bytes_per_token / shrink
    engine = EngineOptions(
        gpu_blocks=PUBLISHED.gpu_blocks * PUBLISHED.block_tokens // shrink // block_tokens,
        block_tokens=block_tokens,
        max_context_tokens=PUBLISHED.max_context_tokens // shrink,
        step_budget_tokens=PUBLISHED.step_budget_tokens // shrink,
        max_running=PUBLISHED.max_running // shrink,
        host_gib=arguments.host_gib or PUBLISHED.host_gib * share,
        link_gbps=None if gpu else PUBLISHED.link_gbps * share / TIME_SCALE,
        attention_backend=arguments.attention_backend,
        verbose=arguments.verbose,
    )
    applications = arguments.applications or FEW_APPLICATIONS
    return Setup("the tiny model", engine, QUICK, applications, shrink, arguments.time_scale or TIME_SCALE)


def write_config(folder: Path, model: Model) -> None:
    """A model's folder that holds nothing but its shape: enough for dummy weights."""
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": model.hidden,
        "intermediate_size": model.ffn,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.q_heads,
        "num_key_value_heads": model.kv_heads,
        "vocab_size": model.vocab,
        "max_position_embeddings": model.max_context_tokens,
        "rope_theta": 1_000_000.0,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": None,
        "eos_token_id": None,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def has_gpu() -> bool:
    """Whether the installed vLLM is one for GPUs, and there is one."""
    if for_cpus():
        return False
    import torch

    return bool(torch.cuda.is_available())


def device() -> dict[str, object]:
    """What it runs on."""
    import torch

    found: dict[str, object] = {
        "processor": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": memory_gib(),
        "load": os.getloadavg()[0],  # before this run adds to it: what else takes the processors' time
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        found |= {"gpu": about.name, "gpu_memory_gib": round(about.total_memory / 2**30, 1)}
    return found


def memory_gib() -> int:
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) >> 30


class OutOfTime(Exception):
    """The budget is spent."""


class Budget:
    """The time that a run may take, from now on."""

    def __init__(self, seconds: float) -> None:
        self._end_s = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        return self._end_s - time.monotonic()

    def holds(self, runs_s: float, runs: int = 1) -> bool:
        """Whether live runs that take so long in the simulator fit."""
        return runs_s * SLACK + runs * RUN_S <= self.left_s

    def watch(self, applications: int, at_s: float) -> None:
        """Progress of a live run. Raises `OutOfTime`."""
        if self.left_s < 0:
            raise OutOfTime(f"stopped after {at_s:.0f} s, when {applications} applications had ended")


@dataclass(slots=True)
class Record:
    """All that is known so far, and the file that it is in."""

    path: Path
    known: dict[str, Any]
    left_out: list[str] = field(default_factory=list)

    def put(self, **found: object) -> None:
        """Add to it, and write it down."""
        self.known |= found
        write_whole(self.path, json.dumps({**self.known, "left_out": self.left_out}, indent=1) + "\n")

    def leave_out(self, what: str) -> None:
        print(f"left out: {what}", flush=True)
        self.left_out.append(what)
        self.put()


def main() -> int:
    """0; 1 if a plan or a count was not what it has to be, or a policy failed; 2 after an error, told in one line."""
    arguments = parse()
    budget = Budget(arguments.budget_s)
    gpu = has_gpu()
    whole = gpu and not arguments.tiny
    name = "gpu" if whole else "gpu-tiny" if gpu else "gpu-script-on-a-cpu"
    record = Record(arguments.json or RESULTS / f"{date.today()}-{name}.json", {"schema": SCHEMA})
    missing = [] if whole else [SMALL, *([] if gpu else NO_GPU)]
    try:
        check_writable(record.path)
        with tempfile.TemporaryDirectory() as folder:
            setup = published(arguments, Path(folder)) if whole else tiny(arguments, gpu)
            about = {"title": setup.title, "shrink": setup.shrink, "time_scale": setup.time_scale}
            record.put(version=__version__, date=str(date.today()), setup=about, device=device(), missing=missing)
            fine = measured(setup, arguments, budget, record, Path(folder))
    except TokencakeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if missing:
        print(f"{'' if gpu else 'no GPU: '}missing: {'; '.join(missing)}")
    print(f"written to {record.path}")
    return 0 if fine else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget-s", type=float, default=540.0, help="what the whole run may take")
    few = f"at most; {APPLICATIONS}, of the tiny model {FEW_APPLICATIONS}"
    parser.add_argument("--applications", type=at_least_one, metavar="N", help=few)
    parser.add_argument("--time-scale", type=float, help="of arrivals and tools; 1, of the tiny model 0.1")
    parser.add_argument("--policy", action="append", help=f"in place of {', '.join(POLICIES)}")
    parser.add_argument("--host-gib", type=float, help="memory for copies; 100 or half of what there is")
    parser.add_argument("--attention-backend", metavar="NAME", help="as vLLM calls it")
    parser.add_argument("--eager", action="store_true", help="no compilation, no CUDA graphs: starts sooner")
    parser.add_argument("--tiny", action="store_true", help="the tiny model, though there is a GPU")
    parser.add_argument("--verbose", action="store_true", help="show vLLM's log")
    parser.add_argument("--json", type=Path, help=f"in place of {RESULTS.name}/DATE-gpu.json")
    return parser.parse_args()


def at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def measured(setup: Setup, arguments: argparse.Namespace, budget: Budget, record: Record, folder: Path) -> bool:
    """All steps, each written down. Whether the live runs are what they have to be."""
    with timed() as start_s, InProcess(setup.engine) as engine:
        record.put(engine=engine.info(), start_s=start_s())
        print(f"{setup.title}: vLLM {engine.version} was up after {record.known['start_s']:.0f} s", flush=True)
        machine = calibrated(engine, setup, record)
        policies = arguments.policy or list(POLICIES)
        count, trials = planned(setup, machine, policies, budget, record)
        played = setup.workload(count)
        calls = sum(len(application.calls) for application in played)
        record.put(
            workload={"applications": count, "calls": calls, "rate": RATE / setup.time_scale},
            simulated={trial.policy: trial.simulated for trial in trials},
        )
        print(f"{count} applications, {calls} calls", flush=True)
        for trial in trials:
            if not budget.holds(trial.simulated["makespan_s"]):
                needed_s = trial.simulated["makespan_s"]
                record.leave_out(f"{trial.policy}: needs {needed_s:.0f} s, {max(0.0, budget.left_s):.0f} s are left")
                continue
            try:
                note = played_live(engine, machine, trial, played, budget, folder)
            except OutOfTime as stopped:
                record.leave_out(f"{trial.policy}: {stopped}")
                continue
            record.put(runs=[*record.known.get("runs", []), note], validation=validation.build({}, trials))
    return shown(record)


def calibrated(engine: InProcess, setup: Setup, record: Record) -> Machine:
    """The machine that fits the engine."""
    facts: list[Any] = []
    info = engine.info()
    limits = limits_of(info)
    with timed() as took_s:
        measure(engine, limits, setup.effort, facts.append, link_gbps=setup.engine.link_gbps)
    fitted = fit_facts(facts, limits)
    machine = fitted.machine("calibrated")
    record.put(calibration=calibration.build(__version__, info, fitted, machine), calibration_s=took_s())
    print(f"calibrated in {took_s():.0f} s", flush=True)
    console().print(calibration.tables(fitted))
    for warning in fitted.warnings():
        print(f"warning: {warning}", flush=True)
    return machine


def planned(
    setup: Setup, machine: Machine, policies: Sequence[str], budget: Budget, record: Record
) -> tuple[int, list[validation.Trial]]:
    """As many applications as fit under the policies to be compared, and what the simulator says of each policy."""
    most = setup.applications
    for count in range(most, 0, -1):
        workload = setup.workload(count)
        compared = [simulated(policy, workload, machine) for policy in policies[:COMPARED]]
        if budget.holds(sum(trial.simulated["makespan_s"] for trial in compared), len(compared)) or count == 1:
            break
    if count < most:
        record.leave_out(f"{most - count} of {most} applications: {count} fit into the {budget.left_s:.0f} s left")
    return count, compared + [simulated(policy, workload, machine) for policy in policies[COMPARED:]]


def simulated(policy: str, workload: Sequence[Application], machine: Machine) -> validation.Trial:
    metrics = Metrics()
    simulate(workload, load_policy(policy), machine, [metrics.add])
    return validation.Trial(policy, metrics.result())


def played_live(
    engine: InProcess,
    machine: Machine,
    trial: validation.Trial,
    workload: Sequence[Application],
    budget: Budget,
    folder: Path,
) -> dict[str, Any]:
    """One live run: metrics and parity go to its trial; what else there is to say is returned. Raises `OutOfTime`."""
    metrics, samples = Metrics(), Samples()
    settings = RunSettings(policy=trial.policy, costs=machine.beliefs(), steps=True)
    events = folder / "events.jsonl"
    with EventsWriter(events) as writer:
        stats = engine.play(workload, settings, [metrics.add, samples.add], writer.add, budget.watch)
    parity: dict[str, object] = {**replay_file(events, trial.policy)[1].record()}
    if not machine.asynchronous:
        parity |= play_recorded(events, workload, machine, trial.policy).record()
    trial.live.append(metrics.result())
    trial.parity.append(parity)
    error = formula_error(machine, samples.steps)
    print(f"{trial.policy}: played in {stats.wall_s:.0f} s; the fitted formula is {error:+.1%} off its own steps' time")
    return {
        "policy": trial.policy,
        "wall_s": stats.wall_s,
        "policy_s": stats.policy_s,
        "steps_error": error,
        **stats.record(),
    }


def shown(record: Record) -> bool:
    """Print the comparison. Whether plans came out again, counts agree and no policy failed."""
    if "validation" not in record.known:
        return True
    screen, report = console(), record.known["validation"]
    screen.print(validation.tables(report, screen.width))
    for line in validation.words(report):
        screen.print(line, soft_wrap=True)
    runs = record.known["runs"]
    doubts = [f"{run['policy']}: {line}" for run in runs for line in (*run["disagreements"], *run["errors"])]
    for line in doubts:
        print(f"warning: {line}")
    parities = [run["parity"] for run in report["runs"]]
    return not doubts and not any(parity["different"] or parity["not_replayed"] for parity in parities)


def console() -> Console:
    return Console(highlight=False, markup=False, emoji=False)


@contextmanager
def timed() -> Iterator[Callable[[], float]]:
    """Seconds since it was entered."""
    began = time.monotonic()
    yield lambda: round(time.monotonic() - began, 1)


if __name__ == "__main__":
    sys.exit(main())
