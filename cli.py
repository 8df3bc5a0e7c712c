"""The command line: `tokencake simulate`, `trace`, `policies`, `machines`. What each does is imported when it is asked.

Exit codes: 0 · 2 for anything that the user can mend, said in one line on stderr · 130 after an interrupt.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

import click

from . import __version__
from .traces.errors import TokencakeError

if TYPE_CHECKING:
    from .sim.compare import Contender, Counts, Workload
    from .sim.machine import Machine
    from .sim.report import Run
    from .traces.apps import Application
    from .traces.header import Header

Item = TypeVar("Item")

DEFAULT_POLICIES = ("vllm", "tokencake")
QUIET_S = 1.0  # what is done sooner needs no progress bar
STANDARD_OUTPUT = "-"

arrivals_option = click.option(
    "--arrivals", type=click.Choice(["even", "poisson"]), default="even", show_default=True, help="How they are spaced."
)
seed_option = click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
progress_option = click.option("--progress", is_flag=True, help="Show progress even if stderr is no terminal.")


def main() -> NoReturn:
    """Runs the command of the process's arguments, and exits with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs a command and returns its exit code. Whatever a user can mend is one line on stderr, never a traceback."""
    try:
        code = cli.main(list(arguments), prog_name="tokencake", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        return _fail(error.format_message())
    except BrokenPipeError:  # who read our output has gone; keep Python from complaining when it flushes at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except TokencakeError as error:
        return _fail(str(error))
    except UnicodeError as error:
        return _fail(f"text that cannot be encoded or decoded: {error}")
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130


def _fail(message: str) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return 2


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Compare KV-cache policies for LLM agents on a simulated vLLM engine."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--policy", "specs", multiple=True, metavar="P", help="NAME or FILE.py:CLASS, then :key=value,…")
@click.option("--machine", "machine_name", metavar="M", help="A preset or a TOML file. [default: h200-llama-3.1-8b]")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting of the machine.")
@seed_option
@click.option("--rate", type=float, metavar="R", help="Applications a second, instead of the trace's arrivals.")
@arrivals_option
@click.option("--skip-oversized", is_flag=True, help="Leave out applications that the machine cannot hold.")
@click.option("--json", "json_file", metavar="FILE", help="Write the report as JSON; - is standard output.")
@click.option("--csv", "csv_file", metavar="FILE", help="Write a line a run as CSV; - is standard output.")
@click.option("--events", type=click.Path(path_type=Path), metavar="DIR", help="Write what happened, a file a run.")
@click.option("--quiet", is_flag=True, help="Print the verdict alone: no tables, no progress.")
@progress_option
def simulate(
    trace: Path,
    specs: tuple[str, ...],
    machine_name: str | None,
    settings: tuple[str, ...],
    seed: int,
    rate: float | None,
    arrivals: Any,
    skip_oversized: bool,
    json_file: str | None,
    csv_file: str | None,
    events: Path | None,
    quiet: bool,
    progress: bool,
) -> None:
    """Play TRACE under each policy and compare them with the first.

    Without --policy: vllm, then tokencake. What finished before an interrupt is reported.
    """
    from .policies.registry import load_policy
    from .sim.compare import Contender, Workload, compare, options_of
    from .sim.machine_file import DEFAULT_MACHINE, load_machine
    from .traces.arrivals import arrival_times
    from .traces.reader import read_trace

    machine = load_machine(machine_name or DEFAULT_MACHINE, settings)
    contenders = [Contender(spec, options_of(spec), load_policy(spec, seed=seed)) for spec in specs or DEFAULT_POLICIES]
    if rate is not None:
        arrival_times(rate, arrivals, seed)  # a wrong rate is found now
    outputs = _Outputs(json_file, csv_file, events, quiet)
    outputs.check(trace)
    workload = Workload(read_trace(trace), seed, rate, arrivals, skip_oversized)
    finished: list[tuple[Run, Counts]] = []
    try:
        with _progress(progress, quiet) as bar:
            for outcome in compare(workload, contenders, machine, events, _watching(bar, contenders, workload)):
                finished.append(outcome)
    finally:
        if finished:
            outputs.publish(_report(finished, workload, machine))


def _watching(
    bar: Bar, contenders: Sequence[Contender], workload: Workload
) -> Callable[[int], Callable[[int, float], None]]:
    """For each run, what shows how far it has come."""
    total = workload.trace.header.applications

    def of_run(index: int) -> Callable[[int, float], None]:
        label = f"{index + 1}/{len(contenders)} {contenders[index].spec}"
        return lambda applications, at_s: bar(label, applications, total, f"{at_s:,.0f} s simulated")

    return of_run


def _report(finished: Sequence[tuple[Run, Counts]], workload: Workload, machine: Machine) -> dict[str, Any]:
    from .sim.report import build
    from .traces.reader import trace_digest

    path, counts = workload.trace.path, finished[0][1]
    played = {
        "path": str(path),
        "sha256": trace_digest(path),
        "applications": counts.applications,
        "calls": counts.calls,
        "oversized": counts.oversized,
        "rate": workload.rate,
        "arrivals": workload.arrivals if workload.rate is not None else None,
    }
    return build(__version__, played, machine.settings(), [run for run, _ in finished])


class _Outputs(NamedTuple):
    """Where a comparison's results go. Standard output is for people unless a report goes there."""

    json_file: str | None
    csv_file: str | None
    events: Path | None
    quiet: bool

    def check(self, trace: Path) -> None:
        """Finds what cannot be written before the work is done."""
        from .sim.outputs import check_writable, prepare_folder

        if self.json_file is not None and self.json_file == self.csv_file:
            raise TokencakeError(f"--json and --csv: expected two files, got {self.json_file} twice")
        for file in (self.json_file, self.csv_file):
            if file is not None and file != STANDARD_OUTPUT:
                check_writable(Path(file), but_not=trace)
        if self.events:
            prepare_folder(self.events)

    def publish(self, report: dict[str, Any]) -> None:
        from .sim.report import csv_text

        played = report["trace"]
        if left_out := played["oversized"]:
            everything = played["applications"] + left_out
            click.echo(f"left out: {left_out} of {everything} applications, larger than the machine", err=True)
        try:
            if self.json_file is not None:
                _put(self.json_file, json.dumps(report, indent=2, allow_nan=False) + "\n")
            if self.csv_file is not None:
                _put(self.csv_file, csv_text(report))
        finally:  # a disk that is full keeps nobody from seeing the results
            if STANDARD_OUTPUT not in (self.json_file, self.csv_file):
                _print(report, self.quiet)


def _put(file: str, text: str) -> None:
    from .sim.outputs import write_whole

    if file == STANDARD_OUTPUT:
        click.echo(text, nl=False)
    else:
        write_whole(Path(file), text)


def _print(report: dict[str, Any], quiet: bool) -> None:
    from rich.console import Console

    from .sim import report as reports

    console = Console(highlight=False, markup=False, emoji=False)
    if not quiet:
        played, machine = report["trace"], report["machine"]
        console.print(f"{played['calls']:,} calls of {played['applications']:,} applications on {machine['name']}\n")
        console.print(reports.tables(report, console.width))
    for line in reports.verdict(report):
        console.print(line, soft_wrap=True)


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
@progress_option
def convert(
    source: Path, output: Path, source_format: str, rate: float | None, arrivals: Any, seed: int, progress: bool
) -> None:
    """Convert SOURCE, a file or a folder that others recorded, into the trace OUTPUT."""
    from .traces import convert as converters
    from .traces.header import Header

    applications = converters.convert(source, source_format, rate, arrivals, seed)
    about = {"rate": rate, "arrivals": arrivals if rate is not None else None, "seed": seed}
    header = Header(name=source.stem, source=source_format, about=about)
    _write(output, applications, header, progress, source)


@trace.command()
@click.argument("workload", type=click.Choice(["code-writer", "deep-research"]))
@click.option("--apps", type=click.IntRange(1), default=24, show_default=True, help="How many applications.")
@click.option("--qps", type=float, help="Applications a second. [default: 1.0 code-writer, 0.1 deep-research]")
@arrivals_option
@seed_option
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE")
@progress_option
def generate(
    workload: str, apps: int, qps: float | None, arrivals: Any, seed: int, output: Path, progress: bool
) -> None:
    """Generate a trace: the published code writer, or deep research."""
    from .traces import generate as generators
    from .traces.header import Header

    make = {"code-writer": generators.code_writer, "deep-research": generators.deep_research}[workload]
    rate = {"code-writer": 1.0, "deep-research": 0.1}[workload] if qps is None else qps
    applications = make(apps=apps, qps=rate, arrivals=arrivals, seed=seed)
    about = {"qps": rate, "arrivals": arrivals, "seed": seed}
    header = Header(name=workload, source="tokencake trace generate", applications=apps, about=about)
    _write(output, applications, header, progress)


def _write(
    output: Path, applications: Iterable[Application], header: Header, progress: bool, source: Path | None = None
) -> None:
    from .sim.outputs import check_writable
    from .traces.writer import write_trace

    check_writable(output, but_not=source)
    with _progress(progress) as bar:
        written = write_trace(output, _watched(applications, bar, "writing", header.applications), header)
    click.echo(f"{output}: {written:,} application{'' if written == 1 else 's'}")


def _watched(items: Iterable[Item], bar: Bar, label: str, total: int | None) -> Iterator[Item]:
    for index, item in enumerate(items):
        bar(label, index, total, "")
        yield item


@trace.command()
@click.argument("file", type=click.Path(path_type=Path))
@progress_option
def inspect(file: Path, progress: bool) -> int:
    """Show what is in the trace FILE, and what is wrong with it."""
    from .traces.describe import describe
    from .traces.inspect import inspect_trace
    from .traces.reader import read_trace

    source = read_trace(file)
    with _progress(progress) as bar:
        found = inspect_trace(source, lambda done: bar("reading", done, source.header.applications, ""))
    for line in describe(found):
        click.echo(line)
    for error in found.errors:
        _fail(str(error))
    return 2 if found.errors else 0


@cli.command()
def policies() -> None:
    """List the policies, one a line."""
    from .policies.registry import policy_lines

    _print_lines(policy_lines())


@cli.command()
def machines() -> None:
    """List the machines, one a line."""
    from .sim.machine_file import machine_names

    _print_lines(list(machine_names().items()))


def _print_lines(lines: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in lines)
    for name, about in lines:
        click.echo(f"{name:<{width}}  {about}")


Bar = Callable[[str, int, int | None, str], None]  # what is being done, how much of it is done, of how much, a note


@contextmanager
def _progress(forced: bool, quiet: bool = False) -> Iterator[Bar]:
    """A bar that appears when something has taken longer than a second, if stderr is a terminal or it is `forced`."""
    if not forced and (quiet or not sys.stderr.isatty()):
        yield lambda label, done, total, note: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    console = Console(stderr=True, markup=False, force_terminal=forced or None)
    bar = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
    tasks: dict[str, Any] = {}
    started = time.monotonic()

    def update(label: str, done: int, total: int | None, note: str) -> None:
        if time.monotonic() - started < QUIET_S:
            return
        if label not in tasks:
            bar.start()
            for task in tasks.values():
                bar.remove_task(task)
            tasks.clear()
            tasks[label] = bar.add_task(label, total=total, note=note)
        bar.update(tasks[label], completed=done, note=note)

    try:
        yield update
    finally:
        bar.stop()


if __name__ == "__main__":
    main()
