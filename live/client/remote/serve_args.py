"""What `vllm serve` is told so that it runs a policy: stock vLLM, and this package installed beside it."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping

from ....policies.run_settings import SECTION, STALL_S, RunSettings
from ....traces.errors import EngineError
from ..engine_options import CPU_ENVIRONMENT, MODEL_RUNNER, MODEL_RUNNERS, TINY, EngineOptions, compilation
from ..start.tiny_model import tiny_model
from .address import CONTROL_TOKEN

SCHEDULER = "tokencake.live.scheduler.TokencakeScheduler"
ASYNCHRONOUS_SCHEDULER = "tokencake.live.scheduler.TokencakeAsyncScheduler"
ASYNCHRONOUS: Mapping[bool, str] = {True: "--async-scheduling", False: "--no-async-scheduling"}
# vLLM loads routes only of plugins that are named here. It is a list of all plugins that may be loaded.
ENVIRONMENT: Mapping[str, str] = {"VLLM_PLUGINS": "tokencake"}
# vLLM's worker heeds OMP_NUM_THREADS only if it binds no threads to cores by itself.
CPU_SERVER_ENVIRONMENT: Mapping[str, str] = {**CPU_ENVIRONMENT, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def serve_args(
    options: EngineOptions, settings: RunSettings, *, on_cpu: bool = False, control: bool = False
) -> list[str]:
    """The arguments that follow `vllm serve`: the model first, then options with their values.

    `on_cpu`: for the vLLM of machines without a GPU, which schedules synchronously; on GPUs a server schedules
    asynchronously, unless it is asked not to. `control`: clients who have the token in TOKENCAKE_CONTROL_TOKEN may
    begin and end runs. Writes the model `tiny` if that is asked for and not there yet; raises `EngineError` if it
    cannot, or if no server could start so.
    """
    asynchronous = not on_cpu if options.asynchronous is None else options.asynchronous
    if asynchronous and on_cpu:
        raise EngineError("--asynchronous: a vLLM for machines without a GPU schedules synchronously")
    chosen = [ASYNCHRONOUS[asynchronous]]
    chosen += ["--scheduler-cls", ASYNCHRONOUS_SCHEDULER if asynchronous else SCHEDULER]
    chosen += ["--kv-transfer-config", json.dumps(connector_config(options))]
    chosen += ["--additional-config", json.dumps(additional_config(settings, control=control, stall_s=options.stall_s))]
    return engine_args(options, chosen)


def engine_args(options: EngineOptions, chosen: list[str]) -> list[str]:
    """The model, what is `chosen` for it, and what the options say of any engine."""
    _check_context(options)
    args = [str(tiny_model()) if options.model == TINY else options.model]
    if options.model == TINY:
        args += ["--served-model-name", TINY, "--skip-tokenizer-init"]
    args += chosen
    args += ["--host", "127.0.0.1"]  # vLLM's own default is to listen to everybody
    for name, value in _limits(options).items():
        if value is not None:
            args += [name, str(value)]
    if options.compile == "none":
        args += ["--enforce-eager"]
    if told := compilation(options):
        args += ["--compilation-config", json.dumps(told)]
    return args


def serve_command(
    args: list[str],
    environment: Mapping[str, str] = ENVIRONMENT,
    *,
    on_cpu: bool = False,
    model_runner: str | None = None,
) -> str:
    """The command as a shell takes it, an option a line. `vllm serve` cannot start the vLLM that is made for CPUs.

    What is set in our environment for such a vLLM holds, as it does for an engine that is started here.
    """
    start = "python -m vllm.entrypoints.openai.api_server --model" if on_cpu else "vllm serve"
    lines = [f"{start} {shlex.quote(args[0])}"]
    for arg in args[1:]:
        if arg.startswith("--"):
            lines.append(f"  {arg}")
        else:
            lines[-1] += f" {shlex.quote(arg)}"
    told = dict(environment)
    if on_cpu:
        told |= {name: os.environ.get(name, usual) for name, usual in CPU_SERVER_ENVIRONMENT.items()}
    if model_runner is not None:
        told[MODEL_RUNNER] = MODEL_RUNNERS[model_runner]
    variables = "".join(f"{name}={shlex.quote(value)} " for name, value in told.items())
    return variables + " \\\n".join(lines)


def connector_config(options: EngineOptions) -> dict[str, object]:
    """vLLM's `kv_transfer_config`, as plain data."""
    extra = {"host_gib": options.host_gib, "link_gbps": options.link_gbps}
    if options.host_gib is None:
        del extra["host_gib"]
    return {
        "kv_connector": "TokencakeConnector",
        "kv_connector_module_path": "tokencake.live.connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": extra,
    }


def additional_config(settings: RunSettings, *, control: bool = False, stall_s: float = STALL_S) -> dict[str, object]:
    """vLLM's `additional_config`: the policy, and of the other settings those that are not at their defaults."""
    usual = RunSettings().as_record()
    told = {key: value for key, value in settings.as_record().items() if key == "policy" or value != usual[key]}
    if stall_s != STALL_S:
        told["stall_s"] = stall_s
    return {SECTION: told | ({"control_token_env": CONTROL_TOKEN} if control else {})}


def _check_context(options: EngineOptions) -> None:
    """vLLM starts with no context that its blocks cannot hold."""
    blocks, tokens, context = options.gpu_blocks, options.block_tokens, options.max_context_tokens
    if blocks is not None and tokens is not None and context is not None and context > blocks * tokens:
        raise EngineError(
            f"--max-context {context}: expected at most {blocks * tokens}, as {blocks} blocks of {tokens} tokens hold:"
            " ask for more --gpu-blocks, or leave --max-context out"
        )


def _limits(options: EngineOptions) -> dict[str, object]:
    """What the engine is limited to, where that is not left to vLLM."""
    usual = EngineOptions()
    told: dict[str, object] = {
        "--num-gpu-blocks-override": None if options.gpu_blocks is None else options.gpu_blocks + 1,  # the null block
        "--block-size": options.block_tokens,
        # the model's own context may be more than so few blocks hold: then vLLM takes what they do
        "--max-model-len": options.max_context_tokens or (None if options.gpu_blocks is None else "auto"),
        "--max-num-batched-tokens": options.step_budget_tokens,
        "--max-num-seqs": options.max_running,
        "--long-prefill-token-threshold": options.long_prefill_token_threshold,
        "--gpu-memory-utilization": options.gpu_memory_utilization,
        "--attention-backend": options.attention_backend,
    }
    for field in ("dtype", "load_format", "seed", "tensor_parallel_size"):
        value = getattr(options, field)
        told[f"--{field.replace('_', '-')}"] = None if value == getattr(usual, field) else value
    return told
