"""Options as click takes them, and the groups that become one argument of a command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console.options import Command, Number, Option, RenamedOption, collected, refuse, with_options

if TYPE_CHECKING:
    from ..generate.arrivals import ArrivalOptions
    from ..results.reports.publishing import Outputs
    from ..variants.workload import WorkloadOptions

arrivals_option = click.option(
    "--arrivals", type=click.Choice(["even", "poisson"]), default="even", show_default=True, help="How they are spaced."
)
seed_option = click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
progress_option = click.option("--progress", is_flag=True, help="Show progress even if stderr is no terminal.")
policy_option = click.option(
    "--policy", "specs", multiple=True, metavar="P", help="NAME or FILE.py:CLASS, then :key=value,…"
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
json_option = click.option(
    "--json", "json_file", metavar="FILE", help="Write the outcome as JSON; - is standard output."
)


def renamed_rate_option(text: str, name: str = "rate", **attributes: Any) -> Option:
    """`--rate`, which was `--qps`: the parameter `name`."""
    return click.option("--rate", name, cls=RenamedOption, formerly="--qps", help=text, **attributes)


def timeout_option(default: str = "") -> Option:
    """`--policy-timeout SECONDS`."""
    text = f"End a policy that takes longer to be made, or to plan.{default}"
    return click.option("--policy-timeout", type=Number(0, min_open=True), metavar="SECONDS", help=text)


def repeat_option(default: int, text: str) -> Option:
    """`--repeat N`."""
    return click.option("--repeat", type=click.IntRange(1), default=default, show_default=True, metavar="N", help=text)


def renamed_workers_option(text: str) -> Option:
    """`--workers N`, which was `--jobs N`."""
    return click.option(
        "--workers", cls=RenamedOption, formerly="--jobs", type=click.IntRange(1), metavar="N", help=text
    )


# -- groups


WORKLOAD = ("seed", "rate", "arrivals", "skip_oversized", "time_scale", "shrink")  # the parameters that say so
OUTPUTS = ("json_file", "csv_file", "events", "quiet")
OUTPUT_OPTIONS = (  # by the fields of traces.results.reports.publishing.Outputs
    click.option("--json", "json_file", metavar="FILE", help="Write the report as JSON; - is standard output."),
    click.option("--csv", "csv_file", metavar="FILE", help="Write a line a run as CSV; - is standard output."),
    click.option("--events", type=click.Path(path_type=Path), metavar="DIR", help="Write what happened, a file a run."),
    click.option("--quiet", is_flag=True, help="Print the verdict alone: no tables, no progress."),
)


def _arrivals(rate: float | None, arrivals: Any, seed: int) -> ArrivalOptions:
    from ..generate.arrivals import ArrivalOptions

    return ArrivalOptions(rate, arrivals, seed)


as_arrivals = collected("arrivals", _arrivals, ("rate", "arrivals", "seed"))


def _workload(**given: Any) -> WorkloadOptions:
    from ..variants.workload import WorkloadOptions

    return WorkloadOptions(**given)


as_workload = collected("workload", _workload, WORKLOAD)


def workload_options(command: Command) -> Command:
    """Gives a command the options that say how the trace is played, as one argument, `workload`.

    `scale_option` and `shrink_option` are part of it where a command has them.
    """
    return with_options((seed_option, rate_option, arrivals_option, oversized_option))(as_workload(command))


def _outputs(**given: Any) -> Outputs:
    from ..results.reports.publishing import Outputs

    return Outputs(**given)


as_outputs = collected("outputs", _outputs, OUTPUTS)


def output_options(command: Command) -> Command:
    """Gives a command the options that say where its results go, as one argument, `outputs`."""
    return with_options(OUTPUT_OPTIONS)(as_outputs(command))


def refuse_arrivals_without(rate: float | None) -> None:
    """Refuses `--arrivals` where there is no `--rate`: then the trace says when applications arrive."""
    if rate is None:
        refuse("without --rate", "arrivals")
