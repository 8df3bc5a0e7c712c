"""The command line. What a command does is imported when it is asked for: `simulate` needs no vLLM and starts at once.

Exit codes: 0 when the result was written, and not before · 1 for other decisions in a replay or a validation, a case
of the gate that regressed or failed, a policy that failed in a comparison, or a run that failed in a real engine · 2
for anything that the user can mend, said in one line on stderr · 3 for a conversion that left something out, with
--strict · 70 for a bug of ours, with its traceback in a file · 130 after an interrupt, and 128 + N after a signal N
that asks to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from .live.client import options as engine_options
from .sim.machine import options as machine_options
from .traces import core_build
from .traces.console.command_group import CommandGroup
from .traces.console.exit_codes import exit_code_of
from .traces.console.options import Number, refuse, refuse_all_but
from .traces.console.process import run_process
from .traces.console.progress import progress_bar
from .traces.console.terminal import say, say_named
from .traces.errors import TokencakeError
from .traces.files.fields import shown
from .traces.options import shared
from .traces.version import __version__

if TYPE_CHECKING:
    from .live.client.engine_options import EngineOptions
    from .live.client.options import Serving
    from .sim.machine.files import MachineChoice
    from .traces.generate.arrivals import ArrivalOptions
    from .traces.results.reports.publishing import Outputs
    from .traces.variants.workload import WorkloadOptions


def main() -> NoReturn:
    """Runs the command of the process's arguments, and exits with its code."""
    run_process(run)


def run(arguments: Sequence[str]) -> int:
    """Runs a command and returns its exit code. Whatever a user can mend is one line on stderr, never a traceback."""
    command = partial(cli.main, list(arguments), prog_name="tokencake", standalone_mode=False)
    return exit_code_of(command, arguments)


@click.group(cls=CommandGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message=f"%(prog)s %(version)s ({core_build.running})")
@click.pass_context
def cli(context: click.Context) -> None:
    """Compare KV-cache policies for LLM agents on a simulated vLLM engine, and on vLLM itself."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
@click.argument("trace", type=click.Path(path_type=Path))
@shared.policy_option
@machine_options.machine_option("A preset or a TOML file. [default: h200-llama-3.1-8b]")
@machine_options.setting_option
@machine_options.as_machine
@shared.workload_options
@shared.timeout_option()
@shared.output_options
@shared.progress_option
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

    shared.refuse_arrivals_without(workload.rate)
    simulate_policies(trace, specs, machine, workload, outputs, policy_timeout_s=policy_timeout, progress=progress)


@cli.command()
@click.argument("trace", type=click.Path(path_type=Path), required=False)
@engine_options.engine_options
@engine_options.connect_options
@engine_options.serve_options
@shared.policy_option
@shared.repeat_option(1, "Runs of each policy.")
@shared.scale_option
@shared.shrink_option
@machine_options.machine_option("Whose costs the policies believe in: see calibrate.")
@shared.workload_options
@shared.output_options
@shared.progress_option
def live(
    trace: Path | None,
    engine: EngineOptions,
    url: str | None,
    chat: bool,
    control_token_file: Path | None,
    serving: Serving | None,
    specs: tuple[str, ...],
    repeat: int,
    machine_name: str | None,
    workload: WorkloadOptions,
    outputs: Outputs,
    progress: bool,
) -> int:
    """Play TRACE on vLLM itself under each policy, and compare them with the first.

    The engine is started here, once for all runs, or is a server's. Without --policy: vllm, then tokencake. What
    finished before an interrupt or a failure is reported, and beside it how far the run came that it ended.
    """
    from .live.client.command import print_serve_command, run_live
    from .policies.registry import DEFAULT_POLICIES
    from .policies.run_settings import RunSettings
    from .sim.machine.files import inputs_of, load_machine

    if serving is not None:
        own = (*engine_options.SERVE_PARAMETERS, "specs", "machine_name", *engine_options.engine_parameters())
        refuse_all_but("with --print-serve-args", *own)
    else:
        shared.refuse_arrivals_without(workload.rate)
    settings = RunSettings(seed=workload.seed)
    if machine_name is not None:
        settings = replace(settings, costs=load_machine(machine_name).beliefs())
    if serving is not None:
        if len(specs) > 1:
            raise click.UsageError("--print-serve-args: expected one --policy: a server runs one")
        policy = specs[0] if specs else DEFAULT_POLICIES[-1]
        print_serve_command(engine, replace(settings, policy=policy), serving)
        return 0
    if trace is None:
        raise click.UsageError("Missing argument 'TRACE'.")
    source = engine_options.engine_source(engine, url, chat, control_token_file)
    inputs = inputs_of(trace, machine=machine_name, policies=specs)
    return run_live(source, trace, specs, settings, workload, outputs, inputs=inputs, repeats=repeat, progress=progress)


@cli.command()
@click.argument("file", metavar="EVENTS", type=click.Path(path_type=Path))
@click.option("--policy", metavar="P", help="As for simulate. [default: the recorded one, if it has a name]")
@click.option("--seed", type=click.IntRange(0), help="[default: the recorded one]")
@machine_options.machine_option("What the policy believes. [default: as recorded]")
@shared.json_option
@shared.as_outputs
def replay(file: Path, policy: str | None, seed: int | None, machine_name: str | None, outputs: Outputs) -> int:
    """Play the recorded facts of EVENTS to a fresh policy, with no engine: are its plans the recorded ones?

    Exits with 0 if all are equal, and with 1 if not.
    """
    from .policies.replay.report import replay_and_report
    from .sim.machine.files import inputs_of, load_machine

    inputs = inputs_of(file, machine=machine_name, policies=() if policy is None else (policy,))
    costs = None if machine_name is None else load_machine(machine_name).beliefs()
    return replay_and_report(file, policy, seed, costs, outputs, inputs)


@cli.command()
@click.argument("trace", type=click.Path(path_type=Path))
@engine_options.engine_options
@shared.policy_option
@machine_options.machine_option("What is simulated. [default: the engine, measured now]")
@shared.repeat_option(3, "Live runs of each.")
@shared.scale_option
@shared.shrink_option
@shared.workload_options
@click.option("--json", "json_file", metavar="FILE", help="Write the validation as JSON; - is standard output.")
@click.option("--events", type=click.Path(path_type=Path), metavar="DIR", help="Keep what happened, a file a live run.")
@click.option("--quiet", is_flag=True, help="Print parity and verdict alone: no tables, no progress.")
@shared.as_outputs
@shared.progress_option
def validate(
    trace: Path,
    engine: EngineOptions,
    specs: tuple[str, ...],
    machine_name: str | None,
    repeat: int,
    workload: WorkloadOptions,
    outputs: Outputs,
    progress: bool,
) -> int:
    """Play TRACE live and simulated under each policy: how far are they apart, and who wins on both sides?

    Exits with 1 if a run failed, or if decisions differ: plans that do not come out again when a live run is replayed,
    or calls that the simulator admits otherwise when it is given a live run's step times.
    """
    from .live.client.in_process import InProcess
    from .sim.fidelity.command import run_validate

    shared.refuse_arrivals_without(workload.rate)
    validated = partial(run_validate, partial(InProcess, engine), machine_name=machine_name, link_gbps=engine.link_gbps)
    return validated(trace, specs, workload, outputs, repeats=repeat, progress=progress)


@cli.command()
@engine_options.engine_options
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="The machine, for --machine.")
@click.option("--name", metavar="NAME", help="The machine's. [default: the model's]")
@click.option("--quick", is_flag=True, help="Measure less: for a small model on a CPU.")
@click.option("--for", "trace", type=click.Path(path_type=Path), metavar="TRACE", help="Also measure what it needs.")
@shared.scale_option
@shared.shrink_option
@shared.rate_option
@shared.arrivals_option
@shared.oversized_option
@click.option("--samples", type=click.Path(path_type=Path), metavar="FILE", help="Keep what was measured.")
@click.option("--from", "recorded", type=click.Path(path_type=Path), metavar="FILE", help="Fit --samples of before.")
@shared.json_option
@shared.seed_option
@shared.as_workload
@shared.progress_option
def calibrate(
    engine: EngineOptions,
    output: Path | None,
    name: str | None,
    quick: bool,
    trace: Path | None,
    workload: WorkloadOptions,
    samples: Path | None,
    recorded: Path | None,
    json_file: str | None,
    progress: bool,
) -> None:
    """Measure an engine, and fit a machine that the simulator can play: --machine FILE.

    Takes minutes of an engine that does nothing else, on hardware that does nothing else. With --for, what the trace
    is made of is measured as well, and matters most in the fit; the options of arrivals and sizes say how it is played.
    """
    from .sim.calibration.command import CalibrationOutputs, run_calibrate, run_calibrate_from
    from .sim.calibration.probes.effort import FULL, QUICK

    if recorded is not None and samples is not None:
        raise TokencakeError("--samples: --from measures nothing")
    if recorded is not None:
        refuse("with --from", "quick", *(engine_options.engine_parameters() - {"seed"}))
    if output is None and json_file is None:
        refuse("without --output or --json", "name")
    if trace is None:
        refuse("without --for", "time_scale", "shrink", "rate", "arrivals", "skip_oversized")
    else:
        shared.refuse_arrivals_without(workload.rate)
    outputs = CalibrationOutputs(output, json_file, samples, name)
    if recorded is not None:
        run_calibrate_from(recorded, outputs, trace, workload)
        return
    from .live.client.in_process import InProcess

    start, effort = partial(InProcess, engine), QUICK if quick else FULL
    run_calibrate(start, effort, outputs, trace, workload, link_gbps=engine.link_gbps, progress=progress)


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
@shared.arrivals_option
@shared.seed_option
@shared.as_arrivals
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
@shared.progress_option
def convert(
    source: Path,
    output: Path,
    source_format: str,
    arrivals: ArrivalOptions,
    ignored: tuple[str, ...],
    strict: bool,
    progress: bool,
    **rows: Any,
) -> int:
    """Convert SOURCE, a file or a folder that others recorded, into the trace OUTPUT."""
    from .traces.convert.conversion import ConversionOptions
    from .traces.convert.convert_file import convert_file
    from .traces.convert.formats import DEFAULT_RATES

    if arrivals.rate is None and source_format not in DEFAULT_RATES:
        refuse("without --rate", "arrivals", "seed")
    if arrivals.process != "poisson":
        refuse("without --arrivals poisson", "seed")
    options = ConversionOptions(ignored_fields=frozenset(ignored), **rows)
    conversion = convert_file(source, output, source_format, options, arrivals, progress)
    return 3 if strict and conversion.left_out else 0


@trace.command()
@click.argument("name", type=click.Choice(["code-writer", "deep-research"]))
@click.option("--apps", type=click.IntRange(1), default=24, show_default=True, help="How many applications.")
@shared.renamed_rate_option(
    "Applications a second. [default: 1.0 code-writer, 0.1 deep-research]", type=float, metavar="R"
)
@shared.arrivals_option
@shared.seed_option
@shared.as_arrivals
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE")
@shared.progress_option
def generate(name: str, apps: int, arrivals: ArrivalOptions, output: Path, progress: bool) -> None:
    """Generate a trace: the published code writer, or deep research."""
    from .traces.generate.generate_trace import generate_trace

    generate_trace(name, output, apps, arrivals, progress)


@trace.command()
@click.argument("file", type=click.Path(path_type=Path))
@shared.progress_option
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
@click.argument("words", nargs=-1, metavar="[WORD]...")
def machines(words: tuple[str, ...]) -> None:
    """List the machines, one a line: all, or those whose names hold each WORD."""
    from .sim.machine.preset_tables import preset_lines

    lines = list(preset_lines(words))
    if not lines:
        raise TokencakeError(
            f"no machine has {' and '.join(map(shown, words))} in its name: `tokencake machines` lists all"
        )
    say_named(lines)


@cli.group(invoke_without_command=True)
@click.pass_context
def machine(context: click.Context) -> None:
    """Write a machine down: a preset, or one derived from a model's configuration."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@machine.command()
@click.argument("name")
@machine_options.setting_option
def show(name: str, settings: tuple[str, ...]) -> None:
    """Write the machine NAME, a preset or a file, as a file that --machine takes."""
    from .sim.machine.files import load_machine, machine_toml

    say(machine_toml(load_machine(name, settings)).rstrip())


@machine.command()
@machine_options.derive_options
def derive(**options: Any) -> None:
    """Derive a machine from a Hugging Face configuration, offline, and say what was assumed."""
    from .sim.machine.derivation.command import DeriveOptions, run_derive

    run_derive(DeriveOptions(**options))


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
@shared.timeout_option(" [default: the suite's, else 60]")
@shared.progress_option
def check(init: bool, on_vllm: bool, progress: bool, **options: Any) -> int:
    """Run a suite of cases and compare them with their baselines: has a policy become worse?

    Several formats at once: the first --output is for the first --format, and so on; the rest is printed. Exits with 0
    if all is good, with 1 if a case regressed, and with 2 if the suite or a baseline is wrong.
    """
    from .sim.gate.command import CheckOptions, run_check

    if init:
        from .sim.gate.suite.init_suite import start_suite

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
            from .live.client.engine_source import engine_here
            from .sim.gate.live_command import run_check_live  # loads numpy, whose threads keep processes from copies

            return run_check_live(CheckOptions(**options), engine_here, bar)
        return run_check(CheckOptions(**options), lambda done, total: bar("runs", done, total, ""))


@cli.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="TRACE")
@click.option(
    "--live", is_flag=True, help="Compare runs of `tokencake live --repeat`: TRACE is its --json, or several."
)
@shared.policy_option
@shared.repeat_option(20, "Runs of each policy.")
@click.option(
    "--vary", metavar="A,…", help="What differs: arrivals, tools[=X], declared[=X], order; none. [default: all]"
)
@click.option("--metric", default="app_latency_s.mean", show_default=True, metavar="M", help="Who is best by it?")
@click.option("--confidence", type=Number(0.5, 0.9999), default=0.95, show_default=True)
@click.option("--margin", type=Number(0, 0.5), default=0.02, show_default=True, help="Less is no difference.")
@machine_options.machine_option("As for simulate.")
@machine_options.setting_option
@machine_options.as_machine
@shared.workload_options
@shared.timeout_option()
@shared.renamed_workers_option("Processes. [default: the cores]")
@click.option("--json", "json_file", metavar="FILE", help="Write the comparison as JSON; - is standard output.")
@click.option("--csv", "csv_file", metavar="FILE", help="Write it as CSV; - is standard output.")
@click.option("--quiet", is_flag=True, help="Print the words alone: no tables, no progress.")
@shared.as_outputs
@shared.progress_option
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
        own = ("files", "live", "specs", "metric", "confidence", "margin", "seed", *shared.OUTPUTS)
        refuse_all_but("with --live", *own)
        return compare_live(files, CompareOptions(**options), workload.seed, outputs)
    shared.refuse_arrivals_without(workload.rate)
    return compare(files[0], CompareOptions(**options), machine, workload, outputs, progress)


@cli.command()
@click.argument("trace", type=click.Path(path_type=Path))
@shared.renamed_rate_option(
    "Loads, in applications a second: 0.1:1.0:0.1 (start:stop:step) or a,b,c.", "rates", metavar="R,…"
)
@click.option("--set", "settings", multiple=True, metavar="KEY=V,…", help="Values of a machine's setting, likewise.")
@shared.policy_option
@shared.repeat_option(5, "Runs of each policy a point.")
@click.option("--vary", metavar="A,…", help="What differs between repeats, as for compare. [default: all]")
@machine_options.machine_option("As for simulate.")
@click.option("--metric", default="app_latency_s.mean", show_default=True, metavar="M", help="What is plotted.")
@shared.seed_option
@shared.arrivals_option
@shared.oversized_option
@shared.as_workload
@shared.timeout_option()
@shared.renamed_workers_option("Cells at a time. [default: the cores]")
@click.option("--ray", "on_cluster", is_flag=True, help="Play on a Ray cluster, or on one that is started here.")
@click.option("--ray-address", metavar="A", help="Which cluster. [default: RAY_ADDRESS]")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE.csv", help="The results.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="The same and more as JSON.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw them: .png, .svg or .pdf.")
@click.option("--fresh", is_flag=True, help="Play all anew, whatever an earlier sweep left.")
@click.option("--quiet", is_flag=True, help="Print failures alone.")
@shared.progress_option
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
