"""The options of an engine that a command starts, or that it finds at a server."""

from __future__ import annotations

from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ...traces.console.options import Command, Number, given, with_options

if TYPE_CHECKING:
    from .engine_options import EngineOptions
    from .engine_source import EngineHere, EngineThere

ENGINE_OPTIONS = (  # by the fields of live.client.engine_options.EngineOptions
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


def engine_options(command: Command) -> Command:
    """Gives a command the options of an engine that it starts, as one argument, `engine`."""

    @wraps(command)
    def with_engine(**arguments: Any) -> Any:
        from .engine_options import EngineOptions

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
    from .engine_options import EngineOptions

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


SERVE_OPTIONS = (
    click.option("--print-serve-args", is_flag=True, help="Print the command that starts such a server, and stop."),
    click.option(
        "--as",
        "serve_as",
        type=click.Choice(["scheduler", "cache-policy"]),
        default="scheduler",
        show_default=True,
        help="With --print-serve-args: cache-policy is the policy's host half alone, in vLLM's own CPU tier.",
    ),
    click.option("--control", is_flag=True, help="With --print-serve-args: a server that takes runs from --connect."),
)
SERVE_PARAMETERS = ("print_serve_args", "serve_as", "control")


class Serving(NamedTuple):
    """What kind of server the command is wanted of."""

    as_cache_policy: bool = False  # with vLLM's own scheduler and CPU tier
    control: bool = False  # takes runs from clients


def serve_options(command: Command) -> Command:
    """Gives a command the options of a server that it is to print, as one argument, `serving`; None if of none."""

    @wraps(command)
    def with_serving(print_serve_args: bool, serve_as: str, control: bool, **arguments: Any) -> Any:
        serving = Serving(serve_as == "cache-policy", control)
        if not print_serve_args and serving != Serving():
            raise click.UsageError(f"{'--control' if control else '--as'}: expected --print-serve-args, too")
        if all(serving):
            raise click.UsageError("--control: expected no --as cache-policy: such a server has no routes of ours")
        return command(serving=serving if print_serve_args else None, **arguments)

    return with_options(SERVE_OPTIONS)(with_serving)


def engine_source(
    options: EngineOptions, url: str | None, chat: bool, control_token_file: Path | None
) -> EngineHere | EngineThere:
    """An engine that is started here, or that of the server at `url`; options of the other are refused."""
    from .engine_source import EngineHere, EngineThere

    if url is None:
        if "chat" in given() or "control_token_file" in given():
            raise click.UsageError(f"{given().get('chat', '--control-token-file')}: expected --connect, too")
        return EngineHere(options)
    for name, written in given().items():
        if name in engine_parameters() - {"model", "seed"}:
            raise click.UsageError(f"--connect: the server's engine is up already: {written} cannot be asked for")
    return EngineThere(url, options.model, chat, control_token_file)
