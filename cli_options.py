"""The options that several commands have, and the groups of options that a command gets as one argument."""

from __future__ import annotations

from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .traces.console.options import Command, Number, Option, RenamedOption, collected, given, refuse, with_options

if TYPE_CHECKING:
    from .live.client.engine_options import EngineOptions
    from .live.client.engine_source import EngineHere, EngineThere
    from .sim.machine.files import MachineChoice
    from .traces.generate.arrivals import ArrivalOptions
    from .traces.results.reports.publishing import Outputs
    from .traces.variants.workload import WorkloadOptions

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
setting_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting of the machine."
)


def renamed_rate_option(text: str, name: str = "rate", **attributes: Any) -> Option:
    """`--rate`, which was `--qps`: the parameter `name`."""
    return click.option("--rate", name, cls=RenamedOption, formerly="--qps", help=text, **attributes)


def timeout_option(default: str = "") -> Option:
    """`--policy-timeout SECONDS`."""
    text = f"End a policy that takes longer to be made, or to plan.{default}"
    return click.option("--policy-timeout", type=Number(0, min_open=True), metavar="SECONDS", help=text)


def machine_option(text: str) -> Option:
    """`--machine M`."""
    return click.option("--machine", "machine_name", metavar="M", help=text)


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


def _arrivals(rate: float | None, arrivals: Any, seed: int) -> ArrivalOptions:
    from .traces.generate.arrivals import ArrivalOptions

    return ArrivalOptions(rate, arrivals, seed)


as_arrivals = collected("arrivals", _arrivals, ("rate", "arrivals", "seed"))


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
    from .traces.results.reports.publishing import Outputs

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

        names = engine_parameters()
        own = {name: value for name, value in arguments.items() if name not in names or name == "seed"}
        given = {name: value for name, value in arguments.items() if name in names}
        if given["model"] is None:
            if own.get("recorded") is None:  # what was recorded needs no engine
                raise click.UsageError("Missing option '--model'.")
            del given["model"]
        return command(**own, engine=EngineOptions(**given))

    return with_options(ENGINE_OPTIONS)(with_engine)


def engine_parameters() -> set[str]:
    """The parameters of `ENGINE_OPTIONS`, and `seed`."""
    from .live.client.engine_options import EngineOptions

    return {field.name for field in fields(EngineOptions)}


CONNECT_OPTIONS = (
    click.option("--connect", "url", metavar="URL", help="Play against a server that runs with the plugin."),
    click.option("--chat", is_flag=True, help="With --connect: send text in chat completions, and not token ids."),
    click.option(
        "--control-token-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="With --connect: has the server's control token. Without: the variable TOKENCAKE_CONTROL_TOKEN.",
    ),
)
connect_options = with_options(CONNECT_OPTIONS)


def engine_source(
    options: EngineOptions, url: str | None, chat: bool, control_token_file: Path | None
) -> EngineHere | EngineThere:
    """An engine that is started here, or that of the server at `url`; options of the other are refused."""
    from .live.client.engine_source import EngineHere, EngineThere

    if url is None:
        if "chat" in given() or "control_token_file" in given():
            raise click.UsageError(f"{given().get('chat', '--control-token-file')}: expected --connect, too")
        return EngineHere(options)
    for name, written in given().items():
        if name in engine_parameters() - {"model", "seed"}:
            raise click.UsageError(f"--connect: the server's engine is up already: {written} cannot be asked for")
    return EngineThere(url, options.model, chat, control_token_file)


def refuse_arrivals_without(rate: float | None) -> None:
    """Refuses `--arrivals` where there is no `--rate`: then the trace says when applications arrive."""
    if rate is None:
        refuse("without --rate", "arrivals")
