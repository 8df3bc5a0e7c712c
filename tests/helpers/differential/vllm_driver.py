"""Drives vLLM's own scheduler and KV cache manager in virtual time, without a model, a worker or a GPU.

`VllmEngine` wraps a real `Scheduler` or `AsyncScheduler` of vLLM 0.32.0; nothing of it is patched, what it evicts and
preempts is seen by wrapping two methods on the instance. Importing this module imports vLLM.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from oracle.play import Piece, Schedule, Step, play
from oracle.tokens import Tokens
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    MambaSpec,
    SlidingWindowSpec,
)
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from tokencake.sim.machine.kv_groups import SPARSE, KvGroup
from tokencake.sim.machine.machine import Machine
from tokencake.traces.apps import Application, Call, CallId

RETENTION = "VLLM_PREFIX_CACHE_RETENTION_INTERVAL"  # a variable, up to 0.28

# Any small architecture that vLLM knows: the scheduler only wants a context length and a vocabulary.
LONGEST_CONTEXT_TOKENS = 1 << 20
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
    "vocab_size": 128,
    "max_position_embeddings": LONGEST_CONTEXT_TOKENS,
    "torch_dtype": "float32",
}


def simulate(applications: Sequence[Application], machine: Machine) -> Iterator[Step]:
    """Every step of vLLM's scheduler on these applications."""
    return play(VllmEngine(applications, machine), applications, machine)


class VllmEngine:
    """vLLM's scheduler as an `Engine`."""

    def __init__(self, applications: Sequence[Application], machine: Machine) -> None:
        self.scheduler = _scheduler(machine)
        self._tokens = Tokens(applications)
        self._hasher = _interning_hasher(machine.block_tokens)
        self._answers: dict[CallId, list[int]] = {}
        self._targets: dict[CallId, int] = {}  # tokens known at a call's admission: until they are computed it prefills
        self._in_flight: deque[tuple[SchedulerOutput, frozenset[CallId]]] = deque()  # and who samples a token
        self._preempted: list[CallId] = []
        self._evicted = 0
        self._observe()

    def add(self, call: Call) -> None:
        sampling = SamplingParams(max_tokens=call.output_tokens, ignore_eos=True, detokenize=False)
        prompt = self._tokens.prompt(call)
        self._answers[call.id] = self._tokens.answer(call)
        self.scheduler.add_request(
            Request(call.id, prompt, sampling, None, arrival_time=0.0, block_hasher=self._hasher)
        )

    def schedule(self) -> Schedule:
        output = self.scheduler.schedule()
        schedule = self.described(output)
        if schedule.pieces or schedule.preempted:
            self._in_flight.append((output, self.sampling(output)))
        return schedule

    def update(self, schedule: Schedule) -> list[CallId]:
        output, sampling = self._in_flight.popleft()
        outputs = self.scheduler.update_from_output(output, self.sampled(output, sampling))
        return finished(outputs)

    def described(self, output: SchedulerOutput) -> Schedule:
        """What `schedule()` has just done."""
        block_tokens = self.scheduler.block_size
        came = {new.req_id for new in output.scheduled_new_reqs} | set(output.scheduled_cached_reqs.resumed_req_ids)
        admitted = [call for call in output.num_scheduled_tokens if call in came]
        for call in admitted:
            self._targets[call] = self.scheduler.requests[call].num_tokens
        pieces = {call: self._piece(call, tokens) for call, tokens in output.num_scheduled_tokens.items()}
        preempted, self._preempted = tuple(self._preempted), []
        return Schedule(
            tuple(pieces.values()),
            tuple((call, pieces[call].computed_tokens // block_tokens) for call in admitted),
            preempted,
            self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
            self._evicted,
            len(self.sampling(output)),
        )

    def sampling(self, output: SchedulerOutput) -> frozenset[CallId]:
        """The calls that will sample a token in the step that has just been scheduled."""
        requests = self.scheduler.requests
        return frozenset(call for call in output.num_scheduled_tokens if not requests[call].is_prefill_chunk)

    def sampled(self, output: SchedulerOutput, sampling: frozenset[CallId]) -> ModelRunnerOutput:
        """What a worker would send back when the step ends."""
        calls = list(output.num_scheduled_tokens)
        return ModelRunnerOutput(
            req_ids=calls,
            req_id_to_index={call: at for at, call in enumerate(calls)},
            sampled_token_ids=[[self._next_token(call)] if call in sampling else [] for call in calls],
        )

    def _piece(self, call: CallId, tokens: int) -> Piece:
        computed = self.scheduler.requests[call].num_computed_tokens - tokens  # `schedule` has counted them already
        return Piece(call, tokens, computed, computed >= self._targets[call])

    def _next_token(self, call: CallId) -> int:
        generated: int = self.scheduler.requests[call].num_output_tokens
        return self._answers[call][generated]

    def _observe(self) -> None:
        """Counts evictions and notes preemptions, by wrapping two methods of the instances."""
        pool: Any = self.scheduler.kv_cache_manager.block_pool
        scheduler: Any = self.scheduler
        evict, preempt = pool._maybe_evict_cached_block, scheduler._preempt_request

        def evict_and_count(block: Any) -> bool:
            evicted: bool = evict(block)
            self._evicted += evicted
            return evicted

        def preempt_and_note(request: Request, *args: Any, **options: Any) -> None:
            self._preempted.append(request.request_id)
            preempt(request, *args, **options)

        pool._maybe_evict_cached_block = evict_and_count
        scheduler._preempt_request = preempt_and_note


def finished(outputs: Mapping[int, EngineCoreOutputs]) -> list[CallId]:
    """The calls that these outputs end, in order."""
    return [
        out.request_id for of_client in outputs.values() for out in of_client.outputs if out.finish_reason is not None
    ]


def _scheduler(machine: Machine) -> Scheduler:
    config = _config(machine)
    config.scheduler_config.async_scheduling = machine.asynchronous  # which vLLM turns off where there is only a CPU
    blocks = machine.gpu_blocks + 1  # the null block
    config.cache_config.num_gpu_blocks = blocks
    if any(group.kind == "mamba" for group in machine.kv_groups):
        config.cache_config.mamba_cache_mode = "align"  # as for a model with such layers
    groups = [
        KVCacheGroupSpec([f"layer-{at}"], _spec(group, machine.block_tokens))
        for at, group in enumerate(machine.kv_groups)
    ]
    kind = AsyncScheduler if machine.asynchronous else Scheduler
    return kind(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(blocks, [], groups, **_retention(machine)),
        structured_output_manager=StructuredOutputManager(config),
        block_size=machine.block_tokens,
        log_stats=False,
    )


def _spec(group: KvGroup, block_tokens: int) -> KVCacheSpec:
    layer: dict[str, Any] = {"block_size": block_tokens, "num_kv_heads": 1, "head_size": 1, "dtype": torch.float32}
    if group.kind == "sliding_window":
        return SlidingWindowSpec(**layer, sliding_window=group.window_tokens)
    if group.kind == "chunked_local":
        return ChunkedLocalAttentionSpec(**layer, attention_chunk_size=group.window_tokens)
    if group.kind == "mamba":
        return MambaSpec(
            block_size=block_tokens, shapes=((block_tokens,),), dtypes=(torch.float32,), mamba_cache_mode="align"
        )
    return FullAttentionSpec(**layer)


def _retention(machine: Machine) -> dict[str, int | None]:
    """What the manager of the KV cache is told to keep; up to 0.28 it looks for that in the environment."""
    interval = machine.prefix_cache_retention_interval
    if "prefix_cache_retention_interval" not in KVCacheConfig.__dataclass_fields__:
        os.environ.pop(RETENTION, None)
        if interval >= 0 and any(group.kind in SPARSE for group in machine.kv_groups):
            os.environ[RETENTION] = str(interval)
        return {}
    return {"prefix_cache_retention_interval": None if interval < 0 else interval}


def _config(machine: Machine) -> VllmConfig:
    scheduler = SchedulerConfig(
        max_num_batched_tokens=machine.step_budget_tokens,
        max_num_seqs=machine.max_running,
        long_prefill_token_threshold=machine.long_prefill_token_threshold,
        max_model_len=LONGEST_CONTEXT_TOKENS,
        is_encoder_decoder=False,
        enable_chunked_prefill=True,
        async_scheduling=machine.asynchronous,
    )
    return VllmConfig(
        model_config=_model(),
        scheduler_config=scheduler,
        cache_config=CacheConfig(block_size=machine.block_tokens, enable_prefix_caching=True),
        device_config=DeviceConfig("cpu"),
    )


@cache
def _model() -> ModelConfig:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(MODEL))
        return ModelConfig(folder, skip_tokenizer_init=True, max_model_len=LONGEST_CONTEXT_TOKENS, dtype="float32")


def _interning_hasher(block_tokens: int) -> Callable[[Request], list[Any]]:
    """Chained block hashes that cannot collide: each distinct (parent, tokens) gets the next number."""
    numbers: dict[tuple[bytes, tuple[int, ...]], bytes] = {}

    def hashes(request: Request) -> list[Any]:
        new: list[Any] = []
        parent: bytes = request.block_hashes[-1] if request.block_hashes else b""
        for at in range(len(request.block_hashes), request.num_tokens // block_tokens):
            key = (parent, tuple(request.all_token_ids[at * block_tokens : (at + 1) * block_tokens]))
            parent = numbers.setdefault(key, len(numbers).to_bytes(8, "big"))
            new.append(parent)
        return new

    return hashes
