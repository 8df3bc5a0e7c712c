"""vLLM's scheduler without a model and without workers, with stopwatches: what `overhead.py` steps.

Calls come, run and end as it says; each call gets a made-up token a step, and copies end with their step.
"""

# mypy: disallow-subclassing-any=false
from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from vllm.config import CacheConfig, DeviceConfig, KVTransferConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from tokencake.live.client.start.tiny_model import LONGEST_CONTEXT_TOKENS, tiny_model
from tokencake.live.connector import Done, Jobs
from tokencake.live.engine.control.metadata import KEY
from tokencake.live.scheduler import TokencakeMixin
from tokencake.policies.run_settings import RunSettings
from tokencake.traces import events as e

RUNNING, WAITING, STALLED = 64, 256, 1_000
BLOCK_TOKENS = 16
PROMPT_TOKENS = 2_000
FIRST_TOKENS = 1_900  # a stalled agent's context; its next prompt goes on from there
HOST_BLOCKS = 200_000
BUDGET_TOKENS = 8_192  # a step
STEP_S = 0.03
TOOL_S = 3_600.0  # nobody comes back by itself
WARM_UP = 150  # steps
TOKEN, STOP = 7, 8
SITUATIONS = {"quiet": "nothing happens but tokens", "news": "at each step a call ends and another arrives"}
PARTS = {  # what a stopwatch is put at, by where it is found
    "tokencake": ("arrived", "boundary", "scheduled", "stepped", "matched", "allocated", "take_jobs"),
    "_tokencake_queues": ("lay", "restore"),
}
CONNECTOR = (
    "get_num_new_matched_tokens",
    "update_state_after_alloc",
    "build_connector_meta",
    "update_connector_output",
)


class Stopwatch:
    """Nanoseconds of this step inside functions, by name."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = {}

    def watch(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        spent = self.spent
        clock = time.perf_counter_ns

        def watched(*args: Any, **kwargs: Any) -> Any:
            began = clock()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] = spent.get(name, 0) + clock() - began

        return watched


class _Inner(Scheduler):
    """vLLM's scheduler that notes how long its own methods take, when ours call them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.stopwatch = Stopwatch()
        super().__init__(*args, **kwargs)

    def add_request(self, request: Any) -> None:
        began = time.perf_counter_ns()
        super().add_request(request)
        self._vllm_took(time.perf_counter_ns() - began)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter_ns()
        output = super().schedule(*args, **kwargs)
        self._vllm_took(time.perf_counter_ns() - began)
        return output

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter_ns()
        outputs = super().update_from_output(*args, **kwargs)
        self._vllm_took(time.perf_counter_ns() - began)
        return outputs

    def _vllm_took(self, nanoseconds: int) -> None:
        spent = self.stopwatch.spent
        spent["vllm"] = spent.get("vllm", 0) + nanoseconds


class StopwatchesAlone(_Inner):
    """vLLM's, with the same stopwatches: around its share of a step, and around a connector that does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        no_jobs = Jobs()
        for method in CONNECTOR:
            setattr(self.connector, method, self.stopwatch.watch("connector", lambda *given: None))
        self.connector.get_num_new_matched_tokens = self.stopwatch.watch("connector", lambda *given: (0, False))
        self.connector.build_connector_meta = self.stopwatch.watch("connector", lambda *given: no_jobs)


class WatchedScheduler(TokencakeMixin, _Inner):
    """Ours, with stopwatches at what is vLLM's, and at what vLLM asks of our connector."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.watch("connector", self.connector, CONNECTOR)

    def watch(self, name: str | None, place: Any, methods: Sequence[str]) -> None:
        """Put a stopwatch of that name, or of each method's own, at these methods."""
        for method in methods:
            setattr(place, method, self.stopwatch.watch(name or method, getattr(place, method)))

    def watch_parts(self) -> None:
        for place, methods in PARTS.items():
            self.watch(None, getattr(self, place), methods)


@dataclass(frozen=True)
class Situation:
    """How many tokens calls may generate, and what the GPU holds."""

    name: str
    output_tokens: int  # declared, and at most
    gpu_blocks: int
    longest_prompt_tokens: int  # of the call that waits first

    @property
    def news(self) -> bool:
        return self.name == "news"


def situation(name: str, steps: int) -> Situation:
    """Room for 64 calls' budgets and no more. In `quiet`, the first call that waits does not even fit at first, when
    nothing was generated: vLLM lets nobody pass."""
    output_tokens = 96 if name == "news" else steps + WARM_UP + 64
    blocks = RUNNING * -(-(PROMPT_TOKENS + output_tokens) // BLOCK_TOKENS) + 50
    if name == "news":
        return Situation(name, output_tokens, blocks, PROMPT_TOKENS)
    free = blocks - RUNNING * (PROMPT_TOKENS // BLOCK_TOKENS)
    return Situation(name, output_tokens, blocks, (free + 1) * BLOCK_TOKENS)


class Engine:
    """One scheduler, and what a worker would answer."""

    def __init__(self, scheduler: Any, situation: Situation) -> None:
        self.scheduler = scheduler
        self.situation = situation
        self._hasher = get_request_block_hasher(BLOCK_TOKENS, sha256)
        self._steps = 0
        self.polls = 0
        self.spent: dict[str, int] = scheduler.stopwatch.spent if isinstance(scheduler, _Inner) else {}
        self._returning = iter(range(STALLED))
        self._fresh = iter(range(STALLED, sys.maxsize))
        self._answers: dict[int, int] = {}  # tokens, by agent

    def begin(self, policy: str) -> None:
        adapter = self.scheduler.tokencake
        adapter.clock.read = lambda: self._steps * STEP_S
        adapter.begin(RunSettings(policy=policy), [self._hear])

    def _hear(self, fact: Any) -> None:
        self.polls += type(fact) is e.Polled

    # -- calls

    def request(self, agent: int, call: int, prompt_tokens: int, output_tokens: int) -> Request:
        """A call of an agent whose prompt starts with the call before and its answer."""
        own = [1_000 + (agent * 31 + at // 64) % 3_000 for at in range(FIRST_TOKENS)]
        own[:3] = [agent % 4_000, agent // 4_000, TOKEN]
        answer = [TOKEN] * (self._answers.get(agent, 0) - 1) + [STOP] if call else []
        tokens = (own + answer + own * (prompt_tokens // FIRST_TOKENS))[:prompt_tokens]
        told = {
            "app": f"app{agent}",
            "agent": "main",
            "type": ("planner", "coder", "tester", "reviewer")[agent % 4],
            "call": str(call),
            "max_output": output_tokens,
            "tools": [{"kind": ("search", "test")[agent % 2], "declared_s": TOOL_S}],
            "hints": {"critical_path": agent % 3 == 0, "remaining_depth": 1 + agent % 5, "max_depth": 6},
        }
        sampling = SamplingParams(
            max_tokens=output_tokens,
            ignore_eos=True,
            detokenize=False,
            stop_token_ids=[STOP],
            extra_args={KEY: json.dumps(told)},
        )
        sampling.update_from_generation_config({})
        return Request(f"{agent}-{call}", tokens, sampling, None, arrival_time=time.time(), block_hasher=self._hasher)

    def returning(self) -> Request:
        """The next call of the agent that has been stalled for longest."""
        return self.request(next(self._returning), 1, PROMPT_TOKENS, self.situation.output_tokens)

    def fresh(self, prompt_tokens: int) -> Request:
        """The first call of an agent that nobody knows."""
        return self.request(next(self._fresh), 0, prompt_tokens, self.situation.output_tokens)

    # -- steps

    def step(self, arriving: Sequence[Request] = (), ending: int = 0) -> int:
        """One step in which the `ending` calls that run for longest end. Nanoseconds that the scheduler took."""
        scheduler, clock = self.scheduler, time.perf_counter_ns
        self._steps += 1
        began = clock()
        for request in arriving:
            scheduler.add_request(request)
        output = scheduler.schedule()
        scheduled = clock()
        ran = self._run(output, ending)
        again = clock()
        scheduler.update_from_output(output, ran)
        return clock() - again + scheduled - began

    def _run(self, output: Any, ending: int) -> ModelRunnerOutput:
        requests = self.scheduler.requests
        names = list(output.num_scheduled_tokens)
        sampling = [name for name in names if not requests[name].is_prefill_chunk]
        last = set([name for name in sampling if requests[name].num_output_tokens][:ending])
        for name in last:
            self._answers[int(name.split("-")[0])] = requests[name].num_output_tokens + 1
        chosen = set(sampling)
        sampled = [([STOP] if name in last else [TOKEN]) if name in chosen else [] for name in names]
        index = {name: at for at, name in enumerate(names)}
        meta = output.kv_connector_metadata
        return ModelRunnerOutput(
            req_ids=names,
            req_id_to_index=index,
            sampled_token_ids=sampled,
            kv_connector_output=None if meta is None else self._copies(meta.jobs),
        )

    @staticmethod
    def _copies(jobs: Sequence[Any]) -> KVConnectorOutput:
        loaded = {job.request for job in jobs if job.request is not None}
        meta = Done({job.id: 1 for job in jobs}) if jobs else None
        return KVConnectorOutput(finished_recving=loaded or None, kv_connector_worker_meta=meta)

    # -- the situation

    def fill(self) -> None:
        """First the contexts of those that stall, then calls that run, then calls that wait."""
        for first in range(0, STALLED, RUNNING):
            for agent in range(first, min(first + RUNNING, STALLED)):
                self.scheduler.add_request(self.request(agent, 0, FIRST_TOKENS, 8))
            while self.scheduler.requests:
                self.step(ending=RUNNING)
        for _ in range(RUNNING):
            self.scheduler.add_request(self.fresh(PROMPT_TOKENS))
        while len(self.scheduler.running) < RUNNING or any(r.is_prefill_chunk for r in self.scheduler.running):
            self.step()
        self.scheduler.add_request(self.fresh(self.situation.longest_prompt_tokens))
        for _ in range(WAITING - 1):
            self.scheduler.add_request(self.fresh(PROMPT_TOKENS))

    def counts(self) -> dict[str, int]:
        """Calls and agents by their state. Stalled agents only where somebody knows of them."""
        running, waiting = self.scheduler.get_request_counts()
        counts = {"running": running, "waiting": waiting}
        adapter = getattr(self.scheduler, "tokencake", None)
        return counts if adapter is None else {**counts, "stalled": len(adapter.session.apps.stalled)}


def scheduler_of(kind: type[Scheduler], situation: Situation) -> Any:
    """A scheduler with nothing behind it. Ours get their connector."""
    spec = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=1, dtype=torch.float32)
    transfer = KVTransferConfig(
        kv_connector="TokencakeConnector",
        kv_connector_module_path="tokencake.live.connector",
        kv_role="kv_both",
        kv_connector_extra_config={"host_gib": HOST_BLOCKS * spec.page_size_bytes / 2**30},
    )
    config = VllmConfig(
        model_config=ModelConfig(str(tiny_model()), skip_tokenizer_init=True, dtype="float32"),
        scheduler_config=SchedulerConfig(
            max_num_batched_tokens=BUDGET_TOKENS,
            max_num_seqs=RUNNING + WAITING,
            max_model_len=LONGEST_CONTEXT_TOKENS,
            is_encoder_decoder=False,
            enable_chunked_prefill=True,
            async_scheduling=False,
        ),
        cache_config=CacheConfig(block_size=BLOCK_TOKENS, enable_prefix_caching=True),
        device_config=DeviceConfig("cpu"),
        kv_transfer_config=None if kind is Scheduler else transfer,
    )
    blocks = situation.gpu_blocks + 1  # the null block
    config.cache_config.num_gpu_blocks = blocks
    return kind(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(blocks, [], [KVCacheGroupSpec(["layer"], spec)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK_TOKENS,
        log_stats=False,
    )
