"""Starts vLLM's engine in this process, plain or with our scheduler and connector, and speaks its language."""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ....traces.errors import EngineError
from ...engine.control.engine_limits import longest_context_tokens
from ...engine.control.versions import check_vllm, for_cpus
from ...engine.vllm_surface import VllmConfiguration
from ..engine_options import CPU_ENVIRONMENT, MODEL_RUNNER, MODEL_RUNNERS, TINY, EngineOptions, compilation, settled
from ..remote.serve_args import ASYNCHRONOUS_SCHEDULER, SCHEDULER, connector_config
from .tiny_model import tiny_model

LONGEST_MESSAGE = 300  # characters of a message that is not ours


class Started:
    """An engine that is up."""

    def __init__(self, llm: Any, version: str, options: EngineOptions, undo: Callable[[], None]) -> None:
        self._undo = undo  # what the process was told for this engine
        self.llm = llm
        self.version = version
        self.core = llm.engine_core.engine_core
        self.adapter = getattr(self.core.scheduler, "tokencake", None)
        self.executed = False  # whether the last step scheduled something that is computed
        self._options = options
        self._note_executed()

    def _note_executed(self) -> None:
        """The engine core tells its caller whether a step scheduled anything; vLLM's client drops it."""
        step = self.core.step_fn

        def noting() -> Any:
            outputs, self.executed = step()
            return outputs, self.executed

        self.core.step_fn = noting

    @property
    def busy(self) -> bool:
        """Whether vLLM has something to do, as its own loop asks."""
        return bool(self.core.scheduler.has_requests() or self.core.batch_queue)

    @property
    def computing(self) -> bool:
        """Whether a step is under way that computes something: in between steps, of an asynchronous engine alone."""
        steps = self.core.batch_queue or ()
        return any(scheduled.total_num_scheduled_tokens for _, scheduled, _ in steps)

    @property
    def vocabulary(self) -> int:
        size: int = self.llm.model_config.get_vocab_size()
        return size

    @property
    def gpu_blocks(self) -> int:
        """Usable ones: one is vLLM's null block."""
        blocks: int = self.core.scheduler.kv_cache_manager.block_pool.num_gpu_blocks
        return blocks - 1

    @property
    def block_tokens(self) -> int:
        tokens: int = self.core.scheduler.block_size
        return tokens

    @property
    def max_context_tokens(self) -> int:
        return longest_context_tokens(self.core.scheduler)

    def info(self) -> dict[str, object]:
        """What this engine is, as plain data."""
        known = {} if self.adapter is None else dict(self.adapter.info())
        for name in ("policy", "served_model"):  # that of a run; a folder where we were asked for a name
            known.pop(name, None)
        scheduling = self.llm.vllm_config.scheduler_config
        return known | {
            "vllm": self.version,
            "model": self._options.model,
            "gpu_blocks": self.gpu_blocks,
            "block_tokens": self.block_tokens,
            "max_context_tokens": self.max_context_tokens,
            "step_budget_tokens": scheduling.max_num_batched_tokens,
            "max_running": scheduling.max_num_seqs,
            "long_prefill_token_threshold": scheduling.long_prefill_token_threshold,
            "asynchronous": bool(scheduling.async_scheduling),
            "model_runner": _runner(self.llm.vllm_config),
            "dtype": str(self.llm.model_config.dtype).removeprefix("torch."),
        }

    def add(
        self, name: str, token_ids: list[int], answer_tokens: int, extra_args: Mapping[str, Any], arrival_s: float
    ) -> str:
        """Send a request. `arrival_s` is wall time. Returns vLLM's own name for it."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=answer_tokens,
            min_tokens=answer_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=dict(extra_args),
        )
        request: str = self.llm.add_request(name, {"prompt_token_ids": token_ids}, sampling, arrival_time=arrival_s)
        return request

    def forget(self) -> None:
        """Empty the prefix cache of an idle engine without an adapter."""
        if not self.llm.reset_prefix_cache():
            raise EngineError("vLLM could not empty its prefix cache: some blocks are still held")

    def stop(self) -> None:
        """End the engine, and what it keeps for the whole process, so that another one can be started."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self.llm.engine_core.shutdown()
        del self.llm, self.core, self.adapter
        cleanup_dist_env_and_memory()
        self._undo()


def start(options: EngineOptions, *, stock: bool = False) -> Started:
    """Start an engine. Raises `EngineError` in one line if it cannot be."""
    version = check_vllm()
    on_cpu = for_cpus()
    options = settled(options, on_cpu=on_cpu)
    folder = str(tiny_model()) if options.model == TINY else _found(options.model)
    _prepare_environment(options, on_cpu, local=Path(folder).is_dir())
    undo = _choose_runner(options.model_runner)
    try:
        with _quiet(options.verbose) as stderr:
            return Started(_engine(options, folder, stock, stderr), version, options, undo)
    except (Exception, SystemExit) as error:
        undo()
        raise EngineError(f"model {options.model!r}: vLLM {version} cannot start: {_one_line(error)}") from error


def _engine(options: EngineOptions, folder: str, stock: bool, stderr: TextIO) -> Any:
    """vLLM's engine, of the kind that was asked for."""
    from vllm import envs
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    from ...copier.host_memory import telling

    envs.disable_envs_cache()  # an engine before this one has left its own there
    config = EngineArgs(**_arguments(options, folder, stock)).create_engine_config()
    asynchronous = bool(config.scheduler_config.async_scheduling)
    if options.asynchronous not in (None, asynchronous):
        raise EngineError(f"this vLLM schedules {_manner(asynchronous)}, and cannot do so {_manner(not asynchronous)}")
    if options.model_runner not in (None, _runner(config)):
        raise EngineError(f"vLLM takes its model runner {_runner(config)}, not {options.model_runner}")
    if not stock and asynchronous:
        config.scheduler_config.scheduler_cls = ASYNCHRONOUS_SCHEDULER
    with telling(stderr):
        return LLMEngine.from_vllm_config(config)


def _manner(asynchronous: bool) -> str:
    return "asynchronously" if asynchronous else "synchronously"


def _runner(vllm_config: VllmConfiguration) -> str:
    return "v2" if vllm_config.use_v2_model_runner else "v1"


def _found(model: str) -> str:
    """A model that is not the tiny one. Raises `EngineError` for a folder that is not there or holds no model."""
    path = Path(model).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        raise EngineError(f"model {model!r}: the folder holds no config.json")
    if not path.is_dir() and (path.is_absolute() or model.startswith((".", "~"))):
        raise EngineError(f"model {model!r}: there is no such folder")
    return str(path) if path.is_dir() else model


def _arguments(options: EngineOptions, folder: str, stock: bool) -> dict[str, Any]:
    """vLLM's engine arguments. Those that nobody asked for are left out, and are vLLM's own."""
    asked = {
        "model": folder,
        "skip_tokenizer_init": True,
        "seed": options.seed,
        "dtype": options.dtype,
        "load_format": options.load_format,
        "enforce_eager": True if options.compile == "none" else None,
        "compilation_config": compilation(options) or None,
        "async_scheduling": options.asynchronous,
        "enable_prefix_caching": True,
        "tensor_parallel_size": options.tensor_parallel_size,
        "num_gpu_blocks_override": None if options.gpu_blocks is None else options.gpu_blocks + 1,
        "block_size": options.block_tokens,
        "max_model_len": options.max_context_tokens or -1,  # -1: the model's, or as much as the blocks hold
        "max_num_batched_tokens": options.step_budget_tokens,
        "max_num_seqs": options.max_running,
        "long_prefill_token_threshold": options.long_prefill_token_threshold,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "attention_backend": options.attention_backend,
        "use_tqdm_on_load": options.verbose,
    }
    if not stock:
        asked |= _plugged_in(options)
    return {name: value for name, value in asked.items() if value is not None}


def _plugged_in(options: EngineOptions) -> dict[str, Any]:
    """What makes it our engine: scheduler and connector. An asynchronous engine gets a scheduler of its own later."""
    from vllm.config import KVTransferConfig

    return {"scheduler_cls": SCHEDULER, "kv_transfer_config": KVTransferConfig(**connector_config(options))}


def _choose_runner(runner: str | None) -> Callable[[], None]:
    """Have vLLM take this model runner, which it is told by the environment. Returns what undoes that."""
    before = os.environ.get(MODEL_RUNNER)
    if runner is None:
        return lambda: None
    os.environ[MODEL_RUNNER] = MODEL_RUNNERS[runner]

    def undo() -> None:
        if before is None:
            os.environ.pop(MODEL_RUNNER, None)
        else:
            os.environ[MODEL_RUNNER] = before

    return undo


def _prepare_environment(options: EngineOptions, on_cpu: bool, local: bool) -> None:
    """Set what vLLM reads from the environment; what the user has set holds, but for where the engine lives."""
    environment = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}  # stdout is for results
    if not options.verbose:
        environment["VLLM_LOGGING_LEVEL"] = "ERROR"
    if local:
        environment["HF_HUB_OFFLINE"] = "1"  # there is nothing to ask the hub about
    if on_cpu:
        environment |= CPU_ENVIRONMENT
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


@contextmanager
def _quiet(verbose: bool) -> Iterator[TextIO]:
    """What libraries write to stderr while an engine starts goes nowhere, unless it was asked for. Yields what goes to
    stderr all the same.

    vLLM asks stdout for its file: one that has none, as in notebooks and under test, says that it writes to the
    process's own.
    """
    stdout = sys.stdout
    if not _has_file(stdout):
        sys.stdout = _OnFile(stdout)
    try:
        if verbose:
            yield sys.stderr
            return
        with _hushed() as stderr:
            yield stderr
    finally:
        sys.stdout = stdout


@contextmanager
def _hushed() -> Iterator[TextIO]:
    sys.stderr.flush()
    kept = os.dup(2)
    with (
        tempfile.TemporaryFile() as nowhere,
        warnings.catch_warnings(),
        os.fdopen(os.dup(kept), "w", buffering=1) as stderr,
    ):
        warnings.simplefilter("ignore")
        os.dup2(nowhere.fileno(), 2)
        try:
            yield stderr
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def _has_file(stream: Any) -> bool:
    try:
        stream.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return True


class _OnFile(io.TextIOBase):
    """A text stream that has no file, with the process's standard output as its file."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if self._stream is None else self._stream.write(text)

    def flush(self) -> None:
        if self._stream is not None:
            self._stream.flush()

    def fileno(self) -> int:
        return 1


def _one_line(error: BaseException) -> str:
    """The part of a message that says what is wrong: the first line, or what pydantic says of the first field."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = lines[0]
    if re.match(r"\d+ validation errors? for ", said) and len(lines) > 1:
        found = next((line for line in lines if line.startswith("Value error, ")), " ".join(lines[1:3]))
        said = re.sub(r"\[type=.*", "", found).removeprefix("Value error, ").strip()
    return said if len(said) <= LONGEST_MESSAGE else f"{said[:LONGEST_MESSAGE]}…"
