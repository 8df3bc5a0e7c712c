"""The command line. What a command does is imported when it is asked for: `simulate` needs no vLLM and starts at once.

Exit codes: 0 when the result was written, and not before · 1 for other decisions in a replay or a validation, a case
of the gate that regressed or failed, a policy that failed in a comparison, or a run that failed in a real engine · 2
for anything that the user can mend, said in one line on stderr · 3 for a conversion that left something out, with
--strict · 70 for a bug of ours, with its traceback in a file · 130 after an interrupt, and 128 + N after a signal N
that asks to end.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from . import __version__
from .traces.console.command_group import CommandGroup
from .traces.console.exit_codes import exit_code_of
from .traces.console.options import (
    Command,
    Number,
    RenamedOption,
    collected,
    given,
    refuse,
    refuse_all_but,
    with_options,
)
from .traces.console.process import run_process
from .traces.console.progress import progress_bar, runs_watched
from .traces.console.terminal import say, say_named
from .traces.errors import EngineError, MachineError, TokencakeError, TraceError

if TYPE_CHECKING:
    from .live.client.engine_options import EngineOptions
    from .live.client.in_process import InProcess
    from .live.client.remote.remote import Remote
    from .policies.run_settings import RunSettings
    from .sim.calibration.fit import Fit
    from .sim.calibration.step_mix import Shape
    from .sim.fidelity.validation import Trial
    from .sim.gate.command import CheckOptions
    from .sim.gate.live_verdict import EngineRuns, MissingVerdict, TwoSidedVerdict
    from .sim.gate.suite.suite import Case, Suite
    from .sim.machine.files import MachineChoice
    from .sim.machine.machine import Machine
    from .traces.console.progress import Bar
    from .traces.events import Fact
    from .traces.limits import Limits
    from .traces.results.publishing import Outputs
    from .traces.results.report import Run
    from .traces.variants.workload import Counts, Workload, WorkloadOptions

STANDARD_OUTPUT = "-"


arrivals_option = click.option(
    "--arrivals", type=click.Choice(["even", "poisson"]), default="even", show_default=True, help="How they are spaced."
)
seed_option = click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
progress_option = click.option("--progress", is_flag=True, help="Show progress even if stderr is no terminal.")
policy_option = click.option(
    "--policy", "specs", multiple=True, metavar="P", help="NAME or FILE.py:CLASS, then :key=value,…"
)
timeout_option = click.option(
    "--policy-timeout",
    type=Number(0, min_open=True),
    metavar="SECONDS",
    help="End a policy that takes longer to be made, or to plan.",
)
rate_option = click.option(
    "--rate", type=float, metavar="R", help="Applications a second, instead of the trace's arrivals."
)
oversized_option = click.option(
    "--skip-oversized", is_flag=True, help="Leave out applications that the machine cannot hold."
)
scale_option = click.option(
    "--time-scale", type=float, default=1.0, show_default=True, metavar="X", help="Arrivals, tools, pauses."
)
shrink_option = click.option(
    "--shrink", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Of N tokens, play one."
)
setting_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting of the machine."
)
WORKLOAD = ("seed", "rate", "arrivals", "skip_oversized", "time_scale", "shrink")  # the parameters that say so
OUTPUTS = ("json_file", "csv_file", "events", "quiet")
OUTPUT_OPTIONS = (  # by the fields of traces.results.publishing.Outputs
    click.option("--json", "json_file", metavar="FILE", help="Write the report as JSON; - is standard output."),
    click.option("--csv", "csv_file", metavar="FILE", help="Write a line a run as CSV; - is standard output."),
    click.option("--events", type=click.Path(path_type=Path), metavar="DIR", help="Write what happened, a file a run."),
    click.option("--quiet", is_flag=True, help="Print the verdict alone: no tables, no progress."),
)
ENGINE_OPTIONS = (  # by the fields of live.engine_options.EngineOptions
    click.option("--model", metavar="M", help="A name, a folder, or tiny: a small random model.  [required]"),
    click.option("--gpu-blocks", type=click.IntRange(1), metavar="N", help="KV blocks. [default: what fits]"),
    click.option("--block-tokens", type=click.IntRange(1), metavar="N", help="Tokens of a block. [default: vLLM's]"),
    click.option("--host-gib", type=Number(0), help="Memory for copies. [default: what is available; on a CPU 1]"),
    click.option("--link-gbps", type=Number(0, min_open=True), help="Copies go no faster, in GB/s."),
    click.option("--max-context", "max_context_tokens", type=click.IntRange(2), metavar="N", help="Tokens of a call."),
    click.option("--step-budget", "step_budget_tokens", type=click.IntRange(1), metavar="N", help="Tokens of a step."),
    click.option("--max-running", type=click.IntRange(1), metavar="N", help="Calls of a step."),
    click.option(
        "--long-prefill-token-threshold", type=click.IntRange(0), metavar="N", help="Tokens of a prompt in a step."
    ),
    click.option("--dtype", default="auto", show_default=True),
    click.option("--load-format", default="auto", show_default=True, help="dummy: a model without weights."),
    click.option("--tensor-parallel-size", type=click.IntRange(1), default=1, show_default=True, metavar="N"),
    click.option("--gpu-memory-utilization", type=Number(0, 1, min_open=True), metavar="SHARE"),
    click.option("--attention-backend", metavar="NAME", help="vLLM's name of one."),
    click.option("--asynchronous/--synchronous", default=None, help="Schedule ahead. [default: as vLLM does]"),
    click.option(
        "--compile",
        type=click.Choice(["none", "graphs", "full"]),
        help="graphs: CUDA graphs without torch.compile. [default: none without a GPU, else full]",
    ),
    click.option(
        "--largest-graph",
        "largest_graph_tokens",
        type=click.IntRange(1),
        metavar="N",
        help="Tokens of a step that has a CUDA graph. [default: what --max-running needs]",
    ),
    click.option("--model-runner", type=click.Choice(["v1", "v2"]), help="vLLM's. [default: vLLM's choice]"),
    click.option(
        "--stall-s",
        type=Number(0, min_open=True),
        default=60.0,
        show_default=True,
        help="Calls wait and nothing happens: then a run has failed.",
    ),
    click.option("--verbose", is_flag=True, help="Show vLLM's log."),
)


def _workload(**given: Any) -> WorkloadOptions:
    from .traces.variants.workload import WorkloadOptions

    return WorkloadOptions(**given)


as_workload = collected("workload", _workload, WORKLOAD)


def workload_options(command: Command) -> Command:
    """Gives a command the options that say how the trace is played, as one argument, `workload`.

    `scale_option` and `shrink_option` are part of it where a command has them.
    """
    return with_options((seed_option, rate_option, arrivals_option, oversized_option))(as_workload(command))


def _machine(machine_name: str | None, settings: tuple[str, ...]) -> MachineChoice:
    from .sim.machine.files import MachineChoice

    return MachineChoice(machine_name, settings)


as_machine = collected("machine", _machine, ("machine_name", "settings"))


def _outputs(**given: Any) -> Outputs:
    from .traces.results.publishing import Outputs

    return Outputs(**given)


as_outputs = collected("outputs", _outputs, OUTPUTS)


def output_options(command: Command) -> Command:
    """Gives a command the options that say where its results go, as one argument, `outputs`."""
    return with_options(OUTPUT_OPTIONS)(as_outputs(command))


def engine_options(command: Command) -> Command:
    """Gives a command the options of an engine that it starts, as one argument, `engine`."""

    @wraps(command)
    def with_engine(**arguments: Any) -> Any:
        from .live.client.engine_options import EngineOptions

        names = _engine_parameters()
        own = {name: value for name, value in arguments.items() if name not in names or name == "seed"}
        given = {name: value for name, value in arguments.items() if name in names}
        if given["model"] is None:
            if own.get("recorded") is None:  # what was recorded needs no engine
                raise click.UsageError("Missing option '--model'.")
            del given["model"]
        return command(**own, engine=EngineOptions(**given))

    return with_options(ENGINE_OPTIONS)(with_engine)


def main() -> NoReturn:
    """Runs the command of the process's arguments, and exits with its code."""
    run_process(run)


def run(arguments: Sequence[str]) -> int:
    """Runs a command and returns its exit code. Whatever a user can mend is one line on stderr, never a traceback."""
    command = partial(cli.main, list(arguments), prog_name="tokencake", standalone_mode=False)
    return exit_code_of(command, arguments)


@click.group(cls=CommandGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Compare KV-cache policies for LLM agents on a simulated vLLM engine, and on vLLM itself."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
@click.argument("trace", type=click.Path(path_type=Path))
@policy_option
@click.option("--machine", "machine_name", metavar="M", help="A preset or a TOML file. [default: h200-llama-3.1-8b]")
@setting_option
@as_machine
@workload_options
@timeout_option
@output_options
@progress_option
def simulate(
    trace: Path,
    specs: tuple[str, ...],
    machine: MachineChoice,
    workload: WorkloadOptions,
    policy_timeout: float | None,
    outputs: Outputs,
    progress: bool,
) -> None:
    """Play TRACE under each policy and compare them with the first.

    Without --policy: vllm, then tokencake. What finished before an interrupt is reported.
    """
    from .sim.experiments.simulate_policies import simulate_policies

    if workload.rate is None:
        refuse("without --rate", "arrivals")
    simulate_policies(trace, specs, machine, workload, outputs, policy_timeout_s=policy_timeout, progress=progress)


@cli.command()
@click.argument("trace", type=click.Path(path_type=Path), required=False)
@engine_options
@click.option("--connect", "url", metavar="URL", help="Play against a server that runs with the plugin.")
@click.option("--chat", is_flag=True, help="With --connect: send text in chat completions, and not token ids.")
@click.option(
    "--control-token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --connect: has the server's control token. Without: the variable TOKENCAKE_CONTROL_TOKEN.",
)
@click.option("--print-serve-args", is_flag=True, help="Print the command that starts such a server, and stop.")
@click.option("--control", is_flag=True, help="With --print-serve-args: a server that takes runs from --connect.")
@policy_option
@click.option(
    "--repeat", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Runs of each policy."
)
@scale_option
@shrink_option
@click.option("--machine", "machine_name", metavar="M", help="Whose costs the policies believe in: see calibrate.")
@seed_option
@rate_option
@arrivals_option
@oversized_option
@output_options
@progress_option
def live(
    trace: Path | None,
    engine: EngineOptions,
    url: str | None,
    chat: bool,
    control_token_file: Path | None,
    print_serve_args: bool,
    control: bool,
    specs: tuple[str, ...],
    repeat: int,
    time_scale: float,
    shrink: int,
    machine_name: str | None,
    seed: int,
    rate: float | None,
    arrivals: Any,
    skip_oversized: bool,
    outputs: Outputs,
    progress: bool,
) -> int:
    """Play TRACE on vLLM itself under each policy, and compare them with the first.

    The engine is started here, once for all runs, or is a server's. Without --policy: vllm, then tokencake. What
    finished before an interrupt or a failure is reported, and beside it how far the run came that it ended.
    """
    from .policies.foreign_code import supervise_foreign
    from .policies.registry import DEFAULT_POLICIES, is_file, load_policy
    from .sim.machine.files import inputs_of
    from .traces.format.reader import read_trace
    from .traces.generate.arrivals import arrival_times
    from .traces.results.run_counts import check_repeats
    from .traces.results.run_report import publish_report, report_of
    from .traces.variants.workload import Workload

    if print_serve_args:
        refuse_all_but("with --print-serve-args", *_OF_A_SERVER, *_engine_parameters())
    elif rate is None:
        refuse("without --rate", "arrivals")
    check_repeats(repeat)
    if url is None:
        supervise_foreign(specs)
    if print_serve_args:
        _print_serve_args(engine, specs, _live_settings(machine_name, seed, steps=False), control)
        return 0
    if control:
        raise click.UsageError("--control: expected --print-serve-args, too")
    if trace is None:
        raise click.UsageError("Missing argument 'TRACE'.")
    contenders = list(specs or DEFAULT_POLICIES)
    if url is None:
        for spec in contenders:
            load_policy(spec, seed=seed)  # what is wrong is found before the engine starts, which takes a while
    elif files := [spec for spec in contenders if is_file(spec)]:
        raise EngineError(f"policy {files[0]}: --connect: a server takes policies that it knows by name, and no files")
    if rate is not None:
        arrival_times(rate, arrivals, seed)
    settings = _live_settings(machine_name, seed, steps=outputs.events is not None)
    outputs.check(inputs_of(trace, machine=machine_name, policies=contenders), contenders * repeat)
    workload = Workload(read_trace(trace), seed, rate, arrivals, skip_oversized, time_scale, shrink)
    finished: list[tuple[Run, Counts]] = []
    cut_off: list[tuple[Run, Counts]] = []
    about: dict[str, object] = {}
    try:
        with progress_bar(progress, outputs.quiet) as bar, _engine(engine, url, chat, control_token_file) as running:
            about = running.info()
            _check_playable(workload, running.limits)
            watching = runs_watched(bar, contenders * repeat, workload.trace.header.applications, "played")
            for index, spec in enumerate(contenders * repeat):
                label = {"repeat": index // len(contenders) + 1} if repeat > 1 else {}
                path = outputs.events_file(index, spec)
                one = replace(settings, policy=spec)
                finished.append(_live_run(running, workload, one, path, watching(index), label, cut_off))
    finally:
        if finished or cut_off:
            version = {"name": "vllm", "version": about.pop("vllm")}
            machine = {"name": about.pop("model"), **about}
            publish_report(report_of(finished, workload, machine, version, cut_off), outputs)
    return max([_doubts(run) for run, _ in finished])


_OF_A_SERVER = ("print_serve_args", "control", "specs", "machine_name")  # what its command depends on, and its engine


def _engine_parameters() -> set[str]:
    """The parameters of `ENGINE_OPTIONS`, and `seed`."""
    from .live.client.engine_options import EngineOptions

    return {field.name for field in fields(EngineOptions)}


def _engine(options: EngineOptions, url: str | None, chat: bool, control_token_file: Path | None) -> InProcess | Remote:
    """An engine that is started here, or that of the server at `url`."""
    from .live.client.in_process import InProcess
    from .live.client.remote.remote import Remote

    if url is None:
        if chat:
            raise click.UsageError("--chat: expected --connect, too")
        if control_token_file is not None:
            raise click.UsageError("--control-token-file: expected --connect, too")
        return InProcess(options)
    for name, written in given().items():
        if name in _engine_parameters() - {"model", "seed"}:
            raise click.UsageError(f"--connect: the server's engine is up already: {written} cannot be asked for")
    token = None if control_token_file is None else _key_in(control_token_file)
    return Remote(url, options.model, chat=chat, control_token=token)


def _key_in(path: Path) -> str:
    from .live.client.remote.address import sound_key

    try:
        with path.open("rb") as file:
            text = file.read(10_000).decode("ascii").strip()
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or "it is no ASCII text"
        raise EngineError(f"--control-token-file {path}: cannot be read: {said}") from None
    return sound_key(text, f"--control-token-file {path}")


def _print_serve_args(options: EngineOptions, specs: Sequence[str], settings: RunSettings, control: bool) -> None:
    from .live.client.engine_options import settled
    from .live.client.remote.serve_args import serve_args, serve_command
    from .live.engine.control.versions import for_cpus
    from .policies.registry import DEFAULT_POLICIES, load_policy

    if len(specs) > 1:
        raise click.UsageError("--print-serve-args: expected one --policy: a server runs one")
    policy = specs[0] if specs else DEFAULT_POLICIES[-1]
    load_policy(policy, seed=settings.seed)
    on_cpu = for_cpus()
    options = settled(options, on_cpu=on_cpu)
    args = serve_args(options, replace(settings, policy=policy), on_cpu=on_cpu, control=control)
    say(serve_command(args, on_cpu=on_cpu, model_runner=options.model_runner))


def _live_settings(machine_name: str | None, seed: int, steps: bool) -> RunSettings:
    """What holds for all runs of a live comparison."""
    from .policies.run_settings import RunSettings
    from .sim.machine.files import load_machine

    settings = RunSettings(seed=seed, steps=steps)
    return settings if machine_name is None else replace(settings, costs=load_machine(machine_name).beliefs())


def _check_playable(workload: Workload, limits: Limits) -> None:
    """Reads the whole trace: what the engine cannot serve is found before the first run and not in its middle."""
    from .traces.limits import problem
    from .traces.variants.workload import Counts, nothing_to_play

    counts = Counts()
    for application in workload.play(limits, counts):
        if (text := problem(application, limits)) is not None:
            raise EngineError(text)
    if not counts.applications:
        raise TraceError(nothing_to_play(counts))


def _live_run(
    running: InProcess | Remote,
    workload: Workload,
    settings: RunSettings,
    events: Path | None,
    progress: Callable[[int, float], None],
    label: Mapping[str, object],
    cut_off: list[tuple[Run, Counts]] | None = None,
) -> tuple[Run, Counts]:
    """One run. If something ends it early, how far it came is added to `cut_off`."""
    from .policies.registry import options_of
    from .traces.format.events_file import EventsWriter
    from .traces.results.metrics import Metrics
    from .traces.results.report import Run
    from .traces.variants.workload import Counts

    counts, metrics = Counts(), Metrics()
    spec, began_s = settings.policy, time.monotonic()

    def run(wall_s: float, policy_s: float | None, more: Mapping[str, object]) -> tuple[Run, Counts]:
        found = metrics.result()
        return Run(spec, options_of(spec), settings.seed, wall_s, policy_s, found, {**label, **more}), counts

    try:
        with EventsWriter(events) if events else nullcontext() as writer:
            journal = writer.add if writer else None
            applications = workload.play(running.limits, counts)
            stats = running.play(applications, settings, [metrics.add], journal, progress)
    except (TokencakeError, KeyboardInterrupt) as error:
        so_far = metrics.result()
        if cut_off is not None and (so_far["calls"] or so_far["aborted_calls"]):
            why = str(error) if isinstance(error, TokencakeError) else "interrupted"
            cut_off.append(run(time.monotonic() - began_s, None, {"partial": why}))
        raise
    return run(stats.wall_s, stats.policy_s, stats.record())


def _doubts(run: Run) -> int:
    """Says what makes a run worth less than it looks; 1 if its policy did not last."""
    from .live.client.lateness import lateness_problem

    if (problem := lateness_problem(run.more["lateness_s"], run.more["call_latency_s"])) is not None:
        say(f"warning: {run.policy}: {problem}", err=True)
    for line in run.more["disagreements"]:
        say(f"warning: {run.policy}: vLLM counts differently: {line}", err=True)
    for line in run.more["errors"]:
        say(f"error: {line}; the rest of its run was played without it", err=True)
    if again := run.more["asked_again"]:
        say(f"warning: {run.policy}: the server had to be asked again {again} times", err=True)
    if failed := run.more["failed_calls"]:
        first = run.more["failures"][0]
        calls = f"{failed} call{'s' if failed > 1 else ''}"
        say(f"error: {run.policy}: {calls} failed, and what came behind: {first}", err=True)
    return 1 if run.more["failed"] else 0


@cli.command()
@click.argument("events", type=click.Path(path_type=Path))
@click.option("--policy", metavar="P", help="As for simulate. [default: the recorded one, if it has a name]")
@click.option("--seed", type=click.IntRange(0), help="[default: the recorded one]")
@click.option("--machine", "machine_name", metavar="M", help="What the policy believes. [default: as recorded]")
@click.option("--json", "json_file", metavar="FILE", help="Write the outcome as JSON; - is standard output.")
def replay(events: Path, policy: str | None, seed: int | None, machine_name: str | None, json_file: str | None) -> int:
    """Play the recorded facts of EVENTS to a fresh policy, with no engine: are its plans the recorded ones?

    Exits with 0 if all are equal, and with 1 if not.
    """
    from .policies.replay_report import replay_and_report
    from .sim.machine.files import inputs_of, load_machine

    inputs = inputs_of(events, machine=machine_name, policies=() if policy is None else (policy,))
    costs = None if machine_name is None else load_machine(machine_name).beliefs()
    return replay_and_report(events, policy, seed, costs, _outputs(json_file=json_file), inputs)


@cli.command()
@click.argument("trace", type=click.Path(path_type=Path))
@engine_options
@policy_option
@click.option("--machine", "machine_name", metavar="M", help="What is simulated. [default: the engine, measured now]")
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True, metavar="N", help="Live runs of each.")
@scale_option
@shrink_option
@seed_option
@rate_option
@arrivals_option
@oversized_option
@click.option("--json", "json_file", metavar="FILE", help="Write the validation as JSON; - is standard output.")
@click.option("--events", type=click.Path(path_type=Path), metavar="DIR", help="Keep what happened, a file a live run.")
@click.option("--quiet", is_flag=True, help="Print parity and verdict alone: no tables, no progress.")
@progress_option
def validate(
    trace: Path,
    engine: EngineOptions,
    specs: tuple[str, ...],
    machine_name: str | None,
    repeat: int,
    time_scale: float,
    shrink: int,
    seed: int,
    rate: float | None,
    arrivals: Any,
    skip_oversized: bool,
    json_file: str | None,
    events: Path | None,
    quiet: bool,
    progress: bool,
) -> int:
    """Play TRACE live and simulated under each policy: how far are they apart, and who wins on both sides?

    Exits with 1 if a run failed, or if decisions differ: plans that do not come out again when a live run is replayed,
    or calls that the simulator admits otherwise when it is given a live run's step times.
    """
    from tempfile import TemporaryDirectory

    from .live.client.in_process import InProcess
    from .policies.foreign_code import supervise_foreign
    from .policies.registry import DEFAULT_POLICIES, load_policy, options_of
    from .sim.experiments.simulate_policies import Contender, simulate_each
    from .sim.fidelity.validation import Trial
    from .sim.machine.files import inputs_of, load_machine
    from .traces.format.reader import read_trace
    from .traces.generate.arrivals import arrival_times
    from .traces.results.publishing import Outputs
    from .traces.results.run_counts import check_repeats
    from .traces.variants.workload import Workload

    if rate is None:
        refuse("without --rate", "arrivals")
    check_repeats(repeat)
    supervise_foreign(specs)
    contenders = [Contender(spec, options_of(spec), load_policy(spec, seed=seed)) for spec in specs or DEFAULT_POLICIES]
    if rate is not None:
        arrival_times(rate, arrivals, seed)
    told = None if machine_name is None else load_machine(machine_name)
    runs = list(specs or DEFAULT_POLICIES) * repeat
    outputs = Outputs(json_file, None, events, quiet)
    outputs.check(inputs_of(trace, machine=machine_name, policies=runs), runs)
    workload = Workload(read_trace(trace), seed, rate, arrivals, skip_oversized, time_scale, shrink)
    trials: list[Trial] = []
    cut_off: list[tuple[Run, Counts]] = []
    about: dict[str, Any] = {"version": __version__, "trace": str(trace), "time_scale": time_scale, "shrink": shrink}
    about["seed"] = seed
    try:
        with (
            progress_bar(progress, quiet) as bar,
            InProcess(engine) as running,
            nullcontext(events) if events else TemporaryDirectory() as folder,
        ):
            _check_playable(workload, running.limits)
            machine = _machine_of(running, told, workload, bar)
            about |= {"engine": running.info(), "machine": machine.settings()}
            simulated = [run for run, _ in simulate_each(workload, contenders, machine)]
            trials += [Trial(run.policy, run.metrics) for run in simulated]
            watching = runs_watched(
                bar, [run.policy for run in simulated] * repeat, workload.trace.header.applications, "played"
            )
            for index, trial in enumerate(trials * repeat):  # in turns: what drifts drifts for all policies
                label = {"repeat": index // len(trials) + 1} if repeat > 1 else {}
                _live_trial(running, workload, machine, trial, Path(folder), index, watching(index), label, cut_off)
    finally:
        if cut_off or any(trial.live for trial in trials):
            report = _validation(about, trials, [run for run, _ in cut_off], outputs)
    return 0 if all(_same_decisions(run["parity"]) and run["failed"] is None for run in report["runs"]) else 1


def _machine_of(running: InProcess, told: Machine | None, workload: Workload, bar: Bar) -> Machine:
    """The machine to simulate, with the engine's own limits: the one that was told of, else one fitted to it now."""
    from .sim.calibration.engine_info import limits_of, name_of
    from .sim.fidelity.rerun import with_limits

    if told is not None:
        return with_limits(told, limits_of(running.info()))
    info, facts = _measured(running, True, workload.seed, bar, workload)
    fitted = _fitted(info, facts, workload.seed, workload)
    for warning in fitted.warnings():
        say(f"warning: {warning}", err=True)
    return fitted.machine(name_of(info))


def _live_trial(
    running: InProcess,
    workload: Workload,
    machine: Machine,
    trial: Trial,
    folder: Path,
    index: int,
    progress: Callable[[int, float], None],
    label: Mapping[str, object],
    cut_off: list[tuple[Run, Counts]],
) -> None:
    """One live run: its metrics, and whether its decisions come out again. Warns if the host was loaded meanwhile."""
    from .policies.replay import replay_file
    from .policies.run_settings import RunSettings
    from .sim.calibration.host_load import HostLoad, loaded_words
    from .sim.fidelity.rerun import play_recorded
    from .traces.results.run_files import events_name
    from .traces.variants.workload import Counts

    events = folder / events_name(index, trial.policy)
    settings = RunSettings(policy=trial.policy, seed=workload.seed, costs=machine.beliefs(), steps=True)
    began = HostLoad.now()
    run, _ = _live_run(running, workload, settings, events, progress, label, cut_off)
    for words in loaded_words(began.until(HostLoad.now())):
        say(f"warning: {trial.policy}, live run {index + 1}: {words}", err=True)
    _doubts(run)
    trial.failed = trial.failed or run.more["failed"]
    again = play_recorded(events, workload.play(running.limits, Counts()), machine, trial.policy)
    trial.live.append(run.metrics)
    trial.parity.append({**replay_file(events, trial.policy)[1].record(), **again.record()})


def _validation(
    about: Mapping[str, object], trials: Sequence[Trial], ended: Sequence[Run], outputs: Outputs
) -> dict[str, Any]:
    """Write and print what was found."""
    from .sim.fidelity import validation
    from .traces.results.report_text import cut_off_lines

    report = validation.build(about, trials, [run.record() for run in ended])
    outputs.publish(report, [*validation.words(report), *cut_off_lines(report)], partial(validation.tables, report))
    return report


def _same_decisions(parity: Mapping[str, Any]) -> bool:
    counts = ("different", "not_replayed", "admissions_different")
    return not any(parity.get(name) for name in counts) and parity.get("ended") is None


@cli.command()
@engine_options
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="The machine, for --machine.")
@click.option("--name", metavar="NAME", help="The machine's. [default: the model's]")
@click.option("--quick", is_flag=True, help="Measure less: for a small model on a CPU.")
@click.option("--for", "trace", type=click.Path(path_type=Path), metavar="TRACE", help="Also measure what it needs.")
@scale_option
@shrink_option
@rate_option
@arrivals_option
@oversized_option
@click.option("--samples", type=click.Path(path_type=Path), metavar="FILE", help="Keep what was measured.")
@click.option("--from", "recorded", type=click.Path(path_type=Path), metavar="FILE", help="Fit --samples of before.")
@click.option("--json", "json_file", metavar="FILE", help="Write the outcome as JSON; - is standard output.")
@seed_option
@progress_option
def calibrate(
    engine: EngineOptions,
    output: Path | None,
    name: str | None,
    quick: bool,
    trace: Path | None,
    time_scale: float,
    shrink: int,
    rate: float | None,
    arrivals: Any,
    skip_oversized: bool,
    samples: Path | None,
    recorded: Path | None,
    json_file: str | None,
    seed: int,
    progress: bool,
) -> None:
    """Measure an engine, and fit a machine that the simulator can play: --machine FILE.

    Takes minutes of an engine that does nothing else, on hardware that does nothing else. With --for, what the trace
    is made of is measured as well, and matters most in the fit; the options of arrivals and sizes say how it is played.
    """
    from datetime import date

    from .sim.calibration import report as calibration
    from .sim.calibration.engine_info import limits_of, name_of
    from .sim.calibration.samples_file import read_samples
    from .sim.machine.files import inputs_of, machine_toml
    from .sim.machine.machine import RULES
    from .traces.files.outputs import check_outputs, outputs_of, write_whole
    from .traces.format.reader import read_trace
    from .traces.generate.arrivals import arrival_times
    from .traces.variants.workload import Workload

    if recorded is not None and samples is not None:
        raise TokencakeError("--samples: --from measures nothing")
    if recorded is not None:
        refuse("with --from", "quick", *(_engine_parameters() - {"seed"}))
    if name is not None and (problem := RULES["name"].problem(name)):
        raise TokencakeError(f"--name: {problem}")
    if output is None and json_file is None:
        refuse("without --output or --json", "name")
    if trace is None:
        refuse("without --for", "time_scale", "shrink", "rate", "arrivals", "skip_oversized")
    elif rate is None:
        refuse("without --rate", "arrivals")
    else:
        arrival_times(rate, arrivals, seed)
    outputs = outputs_of(output=output, samples=samples, json=json_file)
    check_outputs(outputs, inputs_of(recorded, trace))
    workload = None
    if trace is not None:
        workload = Workload(read_trace(trace), seed, rate, arrivals, skip_oversized, time_scale, shrink)
    try:
        if recorded is not None:
            told, facts = read_samples(recorded)
            if workload is not None:
                _check_playable(workload, limits_of(told))
        else:
            from .live.client.in_process import InProcess

            with InProcess(engine) as running, progress_bar(progress) as bar:
                if workload is not None:
                    _check_playable(workload, running.limits)
                told, facts = _measured(running, quick, seed, bar, workload, samples)
        fitted = _fitted(told, facts, seed, workload)
        machine = fitted.machine(name or name_of(told))
    except MachineError as error:
        raise error if recorded is None else MachineError(f"{recorded}: {error}") from None
    try:
        if output is not None:
            write_whole(output, machine_toml(machine, calibration.comments(told, fitted, str(date.today()))))
        if json_file is not None:
            write_whole(json_file, json.dumps(calibration.build(__version__, told, fitted, machine), indent=2) + "\n")
    finally:  # a disk that is full keeps nobody from seeing the results
        if not any(one.is_standard for one in outputs):
            _print_calibration(fitted)


def _measured(
    running: InProcess, quick: bool, seed: int, bar: Bar, workload: Workload | None, samples: Path | None = None
) -> tuple[dict[str, object], Iterator[Fact]]:
    """What an engine tells, how loaded its host was among it, and the facts of its probes.

    The file `samples` keeps them even if something ends them early.
    """
    from .sim.calibration.calibrate import measure
    from .sim.calibration.engine_info import limits_of
    from .sim.calibration.fit import rough_mix
    from .sim.calibration.host_load import HostLoad
    from .sim.calibration.probes.effort import FULL, QUICK
    from .sim.calibration.samples_file import samples_text
    from .traces.files.outputs import write_whole
    from .traces.variants.workload import Counts

    told, facts = running.info(), list[Any]()
    limits, began = limits_of(told), HostLoad.now()

    def shapes(played: Workload) -> list[Shape]:
        return rough_mix(facts, limits, partial(played.play, limits, Counts())).shapes()

    try:
        measure(
            running,
            limits,
            QUICK if quick else FULL,
            facts.append,
            seed=seed,
            link_gbps=running.options.link_gbps,
            progress=lambda label, done, total: bar(label, done, total, ""),
            shapes=None if workload is None else partial(shapes, workload),
        )
    finally:
        told["host_load"] = began.until(HostLoad.now())
        if samples is not None and facts:
            write_whole(samples, samples_text(told, facts))
    return told, iter(facts)


def _fitted(told: Mapping[str, object], facts: Iterable[object], seed: int, workload: Workload | None) -> Fit:
    from .sim.calibration.engine_info import host_load_of, limits_of
    from .sim.calibration.fit import fit_for
    from .traces.variants.workload import Counts

    limits = limits_of(told)
    played = None if workload is None else partial(workload.play, limits, Counts())
    return fit_for(facts, limits, played, seed, host_load_of(told))


def _print_calibration(fitted: Fit) -> None:
    from .sim.calibration.report import tables
    from .traces.console.printing import printing

    console = printing()
    console.print(tables(fitted))
    for warning in fitted.warnings():
        console.print(f"warning: {warning}", soft_wrap=True)


@cli.group(invoke_without_command=True)
@click.pass_context
def trace(context: click.Context) -> None:
    """Make, convert and look into traces."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@trace.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--from", "source_format", required=True, metavar="agentic-coding|mooncake|azure", help="What SOURCE is.")
@click.option("--rate", type=float, metavar="R", help="Applications a second, instead of the source's arrivals.")
@arrivals_option
@seed_option
@click.option("--block-tokens", type=click.IntRange(1, 2**20), metavar="N", help="Tokens of a block that has an id.")
@click.option("--time-unit", type=click.Choice(["s", "ms", "us", "ns"]), help="The unit of SOURCE's times.")
@click.option("--ignore-field", "ignored", multiple=True, metavar="NAME", help="Go on without this field. Repeatable.")
@click.option(
    "--bad-rows",
    type=click.Choice(["skip", "keep", "fail"]),
    default="skip",
    show_default=True,
    help="Requests without an answer: leave them out, keep the prompt with one token of answer, or stop.",
)
@click.option("--strict", is_flag=True, help="Exit with 3 if something was left out.")
@progress_option
def convert(
    source: Path,
    output: Path,
    source_format: str,
    rate: float | None,
    arrivals: Any,
    seed: int,
    block_tokens: int | None,
    time_unit: Any,
    ignored: tuple[str, ...],
    bad_rows: Any,
    strict: bool,
    progress: bool,
) -> int:
    """Convert SOURCE, a file or a folder that others recorded, into the trace OUTPUT."""
    from .traces.convert.conversion import ConversionOptions
    from .traces.convert.convert_file import convert_file
    from .traces.convert.formats import DEFAULT_RATES

    if rate is None and source_format not in DEFAULT_RATES:
        refuse("without --rate", "arrivals", "seed")
    if arrivals != "poisson":
        refuse("without --arrivals poisson", "seed")
    options = ConversionOptions(block_tokens, time_unit, frozenset(ignored), bad_rows)
    conversion = convert_file(
        source, output, source_format, options, rate=rate, arrivals=arrivals, seed=seed, progress=progress
    )
    return 3 if strict and conversion.left_out else 0


@trace.command()
@click.argument("workload", type=click.Choice(["code-writer", "deep-research"]))
@click.option("--apps", type=click.IntRange(1), default=24, show_default=True, help="How many applications.")
@click.option(
    "--rate",
    cls=RenamedOption,
    formerly="--qps",
    type=float,
    metavar="R",
    help="Applications a second. [default: 1.0 code-writer, 0.1 deep-research]",
)
@arrivals_option
@seed_option
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE")
@progress_option
def generate(
    workload: str, apps: int, rate: float | None, arrivals: Any, seed: int, output: Path, progress: bool
) -> None:
    """Generate a trace: the published code writer, or deep research."""
    from .traces.generate.generate_trace import generate_trace

    generate_trace(workload, output, apps=apps, rate=rate, arrivals=arrivals, seed=seed, progress=progress)


@trace.command()
@click.argument("file", type=click.Path(path_type=Path))
@progress_option
def inspect(file: Path, progress: bool) -> int:
    """Show what is in the trace FILE, and what is wrong with it."""
    from .traces.inspect.inspect_file import inspect_file

    return inspect_file(file, progress)


@cli.command()
def policies() -> None:
    """List the policies, one a line."""
    from .policies.registry import policy_lines

    say_named(policy_lines())


@cli.command()
def machines() -> None:
    """List the machines, one a line."""
    from .sim.machine.files import machine_names

    say_named(list(machine_names().items()))


@cli.command()
@click.option("--suite", type=click.Path(path_type=Path), metavar="FILE", help="[default: the nearest tokencake.toml]")
@click.option("--case", "cases", multiple=True, metavar="NAME", help="These alone; * and ? as in a shell.")
@click.option("--init", is_flag=True, help="Write a suite and a small trace, to start from.")
@click.option("--update", is_flag=True, help="Write new baselines, and say what they change.")
@click.option("--strict", is_flag=True, help="Fail for anything that is not as it was, improvements too.")
@click.option("--live", "on_vllm", is_flag=True, help="Play the live cases on vLLM: are the verdicts the same there?")
@click.option("--format", "formats", multiple=True, type=click.Choice(["text", "github", "junit", "markdown", "json"]))
@click.option("-o", "--output", "outputs", multiple=True, type=click.Path(path_type=Path), metavar="FILE")
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Processes. [default: one a core]")
@click.option(
    "--policy-timeout",
    type=Number(0, min_open=True),
    metavar="SECONDS",
    help="End a policy that takes longer to be made, or to plan. [default: the suite's, else 60]",
)
@progress_option
def check(init: bool, on_vllm: bool, progress: bool, **options: Any) -> int:
    """Run a suite of cases and compare them with their baselines: has a policy become worse?

    Several formats at once: the first --output is for the first --format, and so on; the rest is printed. Exits with 0
    if all is good, with 1 if a case regressed, and with 2 if the suite or a baseline is wrong.
    """
    from .sim.gate.command import CheckOptions, run_check
    from .sim.gate.suite.init_suite import start_suite

    if init:
        refuse_all_but("with --init", "init")
        for line in start_suite(Path()):
            say(line)
        return 0
    if on_vllm:
        refuse("with --live", "update", "workers", "policy_timeout")
    if options["update"]:
        refuse("with --update", "strict", "formats", "outputs")
    with progress_bar(progress) as bar:
        if on_vllm:
            return _check_live(CheckOptions(**options), bar)
        return run_check(CheckOptions(**options), lambda done, total: bar("runs", done, total, ""))


def _check_live(options: CheckOptions, bar: Bar) -> int:
    """Play the suite's live cases on both sides: 1 if simulator and engine say opposite things about who is better."""
    from .live.client.engine_options import EngineOptions
    from .live.client.in_process import InProcess
    from .live.engine.control.versions import check_vllm
    from .policies.foreign_code import supervise_foreign
    from .sim.gate.command import checked_files, suite_of
    from .sim.gate.live_verdict import as_record, compare_sides, cut_off_words, fails, live_cases, live_policies, words
    from .sim.gate.suite.suite_file import LIVE_KEYS
    from .traces.files.outputs import write_whole

    if set(options.formats) - {"text", "json"}:
        raise TokencakeError("--live: expected --format text or json")
    suite = suite_of(options)
    cases = live_cases(suite)
    files = dict(checked_files(options, suite))
    supervise_foreign([policy for case in cases for policy in live_policies(case)])
    check_vllm()
    found: dict[str, Sequence[TwoSidedVerdict | MissingVerdict]] = {}
    cut_off: dict[str, dict[str, Any]] = {}  # of the case that something ended early, the run in which it did
    engines: dict[str, object] = {}
    said: list[str] = []

    def tell(lines: Iterable[str]) -> None:
        for line in lines:
            said.append(line)
            if "json" not in files or files["json"] is not None:
                say(line)

    def write() -> None:
        if "json" in files:
            record = json.dumps(as_record(suite, found, engines, cut_off), indent=2, default=str)
            write_whole(files["json"] or STANDARD_OUTPUT, record + "\n")
        if (text_file := files.get("text")) is not None:
            write_whole(text_file, "".join(f"{line}\n" for line in said))

    for case in cases:
        told = {key: value for key, value in (case.live or {}).items() if key in LIVE_KEYS}
        ended: list[tuple[Run, Counts]] = []
        try:
            with InProcess(EngineOptions(**told, seed=case.seed)) as running:
                engines[case.name] = running.info()
                sides = _both_sides(suite, case, running, bar, ended)
        except BaseException:
            if ended:
                cut_off[case.name] = ended[0][0].record()
                tell([cut_off_words(case.name, cut_off[case.name])])
                write()
            raise
        found[case.name] = compare_sides(case, *sides, suite.confidence)
        tell(words(case.name, case.policy, found[case.name]))
    write()
    return 1 if any(fails(compared, options.strict) for compared in found.values()) else 0


def _both_sides(
    suite: Suite, case: Case, running: InProcess, bar: Bar, cut_off: list[tuple[Run, Counts]]
) -> tuple[dict[str, Mapping[str, Any]], dict[str, EngineRuns]]:
    """A case's policies and rivals: the metrics of a simulated run of each, and some live runs of each, in turns.

    If something ends a live run early, how far it came is added to `cut_off`.
    """
    from .policies.registry import load_policy
    from .policies.run_settings import RunSettings
    from .sim.experiments.simulate_policies import Contender, simulate_each
    from .sim.gate.live_verdict import REPEATS, EngineRuns, live_policies
    from .traces.format.reader import read_trace
    from .traces.variants.workload import Workload

    how = case.live or {}
    trace = read_trace(suite.paths.path(case.trace))
    scale, shrink = how.get("time_scale", 1.0), how.get("shrink", 1)
    workload = Workload(trace, case.seed, case.rate, case.arrivals, case.skip_oversized, scale, shrink)
    _check_playable(workload, running.limits)
    told = suite.paths.machine(how["machine"]) if "machine" in how else None
    machine = _machine_of(running, told, workload, bar)
    specs = {policy: suite.paths.policy(policy) for policy in live_policies(case)}
    contenders = [Contender(name, {}, load_policy(spec, seed=case.seed)) for name, spec in specs.items()]
    simulated = {run.policy: run.metrics for run, _ in simulate_each(workload, contenders, machine)}
    live = {name: EngineRuns() for name in specs}
    names = list(specs) * how.get("repeats", REPEATS)
    watching = runs_watched(bar, names, trace.header.applications, "played")
    for index, name in enumerate(names):
        settings = RunSettings(policy=specs[name], seed=case.seed, costs=machine.beliefs())
        label = {"repeat": index // len(specs) + 1}
        run, _ = _live_run(running, workload, settings, None, watching(index), label, cut_off)
        _doubts(run)
        live[name].metrics.append(run.metrics)
        live[name].failed = live[name].failed or run.more["failed"]
    return simulated, live


@cli.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="TRACE")
@click.option(
    "--live", is_flag=True, help="Compare runs of `tokencake live --repeat`: TRACE is its --json, or several."
)
@policy_option
@click.option(
    "--repeat", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="Runs of each policy."
)
@click.option(
    "--vary", metavar="A,…", help="What differs: arrivals, tools[=X], declared[=X], order; none. [default: all]"
)
@click.option("--metric", default="app_latency_s.mean", show_default=True, metavar="M", help="Who is best by it?")
@click.option("--confidence", type=Number(0.5, 0.9999), default=0.95, show_default=True)
@click.option("--margin", type=Number(0, 0.5), default=0.02, show_default=True, help="Less is no difference.")
@click.option("--machine", "machine_name", metavar="M", help="As for simulate.")
@setting_option
@as_machine
@workload_options
@timeout_option
@click.option(
    "--workers",
    cls=RenamedOption,
    formerly="--jobs",
    type=click.IntRange(1),
    metavar="N",
    help="Processes. [default: the cores]",
)
@click.option("--json", "json_file", metavar="FILE", help="Write the comparison as JSON; - is standard output.")
@click.option("--csv", "csv_file", metavar="FILE", help="Write it as CSV; - is standard output.")
@click.option("--quiet", is_flag=True, help="Print the words alone: no tables, no progress.")
@as_outputs
@progress_option
def compare(
    files: tuple[Path, ...],
    live: bool,
    machine: MachineChoice,
    workload: WorkloadOptions,
    outputs: Outputs,
    progress: bool,
    **options: Any,
) -> int:
    """Which policy is the best on TRACE, by how much, and how sure? Each plays many repeats, and the same ones.

    Without --policy: every policy that has a name, against vllm. What every policy finished before an interrupt is
    reported. Exits with 1 if a policy failed.
    """
    from .sim.experiments.compare import CompareOptions, compare, compare_live

    if not files or (len(files) > 1 and not live):
        raise click.UsageError("expected one TRACE" if not live else "--live: expected reports of tokencake live")
    if live:
        own = ("files", "live", "specs", "metric", "confidence", "margin", "seed", *OUTPUTS)
        refuse_all_but("with --live", *own)
        return compare_live(files, CompareOptions(**options), workload.seed, outputs)
    if workload.rate is None:
        refuse("without --rate", "arrivals")
    return compare(files[0], CompareOptions(**options), machine, workload, outputs, progress)


@cli.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option(
    "--rate",
    "rates",
    cls=RenamedOption,
    formerly="--qps",
    metavar="R,…",
    help="Loads, in applications a second: 0.1:1.0:0.1 (start:stop:step) or a,b,c.",
)
@click.option("--set", "settings", multiple=True, metavar="KEY=V,…", help="Values of a machine's setting, likewise.")
@policy_option
@click.option(
    "--repeat", type=click.IntRange(1), default=5, show_default=True, metavar="N", help="Runs of each policy a point."
)
@click.option("--vary", metavar="A,…", help="What differs between repeats, as for compare. [default: all]")
@click.option("--machine", "machine_name", metavar="M", help="As for simulate.")
@click.option("--metric", default="app_latency_s.mean", show_default=True, metavar="M", help="What is plotted.")
@seed_option
@arrivals_option
@oversized_option
@as_workload
@timeout_option
@click.option(
    "--workers",
    cls=RenamedOption,
    formerly="--jobs",
    type=click.IntRange(1),
    metavar="N",
    help="Cells at a time. [default: the cores]",
)
@click.option("--ray", "on_cluster", is_flag=True, help="Play on a Ray cluster, or on one that is started here.")
@click.option("--ray-address", metavar="A", help="Which cluster. [default: RAY_ADDRESS]")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE.csv", help="The results.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="The same and more as JSON.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw them: .png, .svg or .pdf.")
@click.option("--fresh", is_flag=True, help="Play all anew, whatever an earlier sweep left.")
@click.option("--quiet", is_flag=True, help="Print failures alone.")
@progress_option
def sweep(
    trace: Path,
    output: Path,
    json_file: Path | None,
    plot: Path | None,
    workload: WorkloadOptions,
    progress: bool,
    **options: Any,
) -> int:
    """Play TRACE under each policy at every load and on every machine of a grid.

    What is finished is kept beside the results: the same command goes on where an interrupt ended it. Exits with 1 if
    cells failed.
    """
    from .sim.experiments.sweep.run import Files, SweepOptions, run_sweep

    if options["rates"] is None:
        refuse("without --rate", "arrivals")
    return run_sweep(trace, SweepOptions(**options), workload, Files(output, json_file, plot), progress)


if __name__ == "__main__":
    main()
