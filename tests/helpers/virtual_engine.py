"""vLLM's real scheduler with our adapter and connector in virtual time; workers that check contents, not a model.

Nothing of ours is replaced but the clock, and nothing of vLLM's but the workers. These keep, for each slot of each
block, which context the token at that place had; before a token is computed, all those before it must be the request's
own. A copy takes the time that a machine's link takes; until it has ended its target holds rubbish, and its source must
be at the end what it was at the beginning.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from differential import vllm_driver  # sets vLLM's environment before it is imported
from kv_group_specs import kv_group_specs, retention
from vllm.config import CacheConfig, DeviceConfig, KVTransferConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from tokencake.live.client.play import Player
from tokencake.live.client.tokens import Tokens
from tokencake.live.connector import Done
from tokencake.live.copier.jobs import CopyJob
from tokencake.live.engine.adapter import Adapter
from tokencake.live.engine.control.engine_limits import block_bytes_of_rank
from tokencake.live.engine.control.metadata import KEY, to_metadata
from tokencake.live.engine.session import Session
from tokencake.live.scheduler import TokencakeAsyncScheduler, TokencakeScheduler
from tokencake.policies.controller import Sink
from tokencake.policies.run_settings import RunSettings
from tokencake.sim.engine.memory.link import Link
from tokencake.sim.machine.kv_groups import KvGroup
from tokencake.sim.machine.machine import Machine
from tokencake.sim.machine.timing import PS_PER_S
from tokencake.traces.apps import Application, Call, CallId
from tokencake.traces.events import Request as Described

VOCABULARY = 50_000
RUBBISH = -1
MOST_ROUNDS = 20_000
Contents = list[int]  # of one block: for each slot, the context that ends there
Tables = tuple[list[int], ...]  # a request's blocks, by KV cache group


@dataclass(slots=True)
class Flight:
    """A step under way."""

    output: SchedulerOutput
    end_ps: int
    sampling: frozenset[str]
    tables: dict[str, Tables]
    requests: dict[str, Request]
    jobs: list[CopyJob]  # begun when the step before has ended
    start_ps: int


@dataclass(slots=True)
class Copy:
    """A copy under way."""

    job: CopyJob
    source: list[Contents]


class Workers:
    """One worker, and the memory on both sides."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._size = machine.block_tokens
        self._link = Link(machine.timing())
        self.gpu = [[RUBBISH] * self._size for _ in range(machine.gpu_blocks + 1)]
        self.host = [[RUBBISH] * self._size for _ in range(machine.host_blocks)]
        self.ended: list[int] = []  # copies
        self.loaded: set[str] = set()
        self.copies = 0
        self._known: dict[str, list[int]] = {}  # by request

    @property
    def next_end_ps(self) -> int | None:
        """When the next copy ends."""
        return self._link.next_end_ps if self._link.under_way else None

    def begin(self, jobs: Sequence[CopyJob], from_ps: int) -> None:
        for job in jobs:
            self.copies += 1
            here, there = (self.gpu, self.host) if job.to_host else (self.host, self.gpu)
            sources, targets = (job.gpu_blocks, job.host_slots) if job.to_host else (job.host_slots, job.gpu_blocks)
            copy = Copy(job, [list(here[block]) for block in sources])
            for block in targets:
                there[block] = [RUBBISH] * self._size

            def done(at_ps: int, copy: Copy = copy, here: Any = here, there: Any = there) -> None:
                del at_ps
                job = copy.job
                sources, targets = (job.gpu_blocks, job.host_slots) if job.to_host else (job.host_slots, job.gpu_blocks)
                for source, target, before in zip(sources, targets, copy.source, strict=True):
                    assert here[source] == before, "the source of a copy was overwritten"
                    assert there[target] == [RUBBISH] * self._size, "the target of a copy was overwritten"
                    there[target] = list(before)
                self.ended.append(job.id)
                if job.request is not None:
                    self.loaded.add(job.request)

            (self._link.to_host if job.to_host else self._link.to_gpu)(len(job.gpu_blocks), from_ps, done)

    def look(self, now_ps: int) -> KVConnectorOutput:
        """What the step that ends now tells of copies."""
        self._link.finish(now_ps)
        ended, self.ended = self.ended, []
        loaded, self.loaded = self.loaded, set()
        meta = Done(dict.fromkeys(ended, 1)) if ended else None
        return KVConnectorOutput(finished_recving=loaded or None, kv_connector_worker_meta=meta)

    def compute(self, request: Request, tables: Tables, first: int, end: int) -> None:
        """Compute tokens `first` … `end − 1`: all that they attend to must be there, in each group."""
        contexts = self._contexts(request, end)
        for group, table in zip(self._machine.kv_groups, tables, strict=True):
            seen = first_seen(group, first)
            found = [self.gpu[table[at // self._size]][at % self._size] for at in range(seen, first)]
            assert found == contexts[seen:first], f"{request.request_id} computes on what is not its own"
            if group.kind == "mamba":  # the state behind the last token is its block's only content
                self.gpu[table[(end - 1) // self._size]] = [contexts[end - 1]] * self._size
            else:
                for at in range(first, end):
                    self.gpu[table[at // self._size]][at % self._size] = contexts[at]

    def _contexts(self, request: Request, end: int) -> list[int]:
        """For each of a request's tokens, at least the first `end`, a number that says all of them up to it."""
        contexts = self._known.setdefault(request.request_id, [])
        tokens = request.all_token_ids
        for at in range(len(contexts), end):
            contexts.append(hash((contexts[-1] if at else 0, tokens[at])))
        return contexts


def first_seen(group: KvGroup, token: int) -> int:
    """The first of the tokens before it that a token attends to; a state says all that came before in its last."""
    if group.kind == "mamba":
        return max(0, token - 1)
    if group.kind == "sliding_window":
        return max(0, token - group.window_tokens + 1)
    return token // group.window_tokens * group.window_tokens if group.kind == "chunked_local" else 0


@dataclass
class Virtual:
    """One engine. `play` runs applications under a policy; a test can also drive it by hand."""

    machine: Machine
    answers: dict[CallId, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.now_ps = 0
        self.scheduler = scheduler_of(self.machine)
        self.adapter: Adapter = self.scheduler.tokencake
        self.adapter.clock.read = lambda: self.now_ps / PS_PER_S
        self.workers = Workers(self.machine)
        self.flights: deque[Flight] = deque()
        self.hasher = vllm_driver._interning_hasher(self.machine.block_tokens)
        self.calls: dict[str, Call] = {}
        self.targets: dict[str, int] = {}  # tokens known when a request was admitted: until then it prefills
        self._futile = 0

    @property
    def session(self) -> Session:
        """The run under way."""
        assert self.adapter.session is not None
        return self.adapter.session

    # -- as an engine of a `Player`

    def app_started(self, app: str, due_s: float) -> None:
        self.adapter.tell({"event": "app_started", "app": app, "at_s": due_s})

    def app_finished(self, app: str, due_s: float) -> None:
        self.adapter.tell({"event": "app_finished", "app": app, "at_s": due_s})

    def tool_returned(self, call: Call, due_s: float) -> None:
        agent = call.agent.removeprefix(f"{call.app}/")
        self.adapter.tell({"event": "tool_returned", "app": call.app, "agent": agent, "at_s": due_s})

    def submit(self, call: Call, request: Described, token_ids: list[int], due_s: float, last: bool) -> None:
        self.calls[call.id] = call
        self.add(call.id, token_ids, call.output_tokens, due_s, {KEY: to_metadata(request, last)})

    def add(self, name: str, token_ids: list[int], output_tokens: int, due_s: float, extra: dict[str, Any]) -> None:
        sampling = SamplingParams(max_tokens=output_tokens, ignore_eos=True, detokenize=False, extra_args=extra)
        arrival = self.adapter.clock.start_wall_s + due_s
        self.scheduler.add_request(
            Request(name, token_ids, sampling, None, arrival_time=arrival, block_hasher=self.hasher)
        )

    @property
    def computes(self) -> bool:
        """Whether a step under way computes anything."""
        return any(flight.output.total_num_scheduled_tokens for flight in self.flights)

    # -- the engine's loop

    def step(self, before_end: Callable[[int], None] = lambda end_ps: None) -> list[tuple[str, list[int]]]:
        """Schedule one step and take in the outcome of the oldest one under way: what vLLM's engine loop does."""
        scheduler = self.scheduler
        lag = 1 if self.machine.asynchronous else 0
        if scheduler.has_requests():
            self._schedule()
        if len(self.flights) <= lag and self.flights and self.flights[-1].output.total_num_scheduled_tokens:
            return []  # the next one is scheduled before this one has ended
        return self._take_in(before_end) if self.flights else []

    def _schedule(self) -> None:
        output = self.scheduler.schedule()
        free_ps = max(self.now_ps, self.flights[-1].end_ps) if self.flights else self.now_ps
        manager = self.scheduler.kv_cache_manager
        requests = self.scheduler.requests
        came = {new.req_id for new in output.scheduled_new_reqs} | set(output.scheduled_cached_reqs.resumed_req_ids)
        self.targets.update((name, requests[name].num_tokens) for name in came)
        tables = {name: tuple(map(list, manager.get_block_ids(name))) for name in output.num_scheduled_tokens}
        sampling = frozenset(name for name in output.num_scheduled_tokens if not requests[name].is_prefill_chunk)
        jobs = output.kv_connector_metadata.jobs
        running = {name: requests[name] for name in output.num_scheduled_tokens}
        end_ps = free_ps + self._step_ps(output, admitted=len(came), sampled=len(sampling))
        self.flights.append(Flight(output, end_ps, sampling, tables, running, jobs, free_ps))
        if len(self.flights) == 1:
            self.workers.begin(jobs, free_ps)

    def _step_ps(self, output: SchedulerOutput, admitted: int, sampled: int) -> int:
        chunks, contexts = [], []
        for name, tokens in output.num_scheduled_tokens.items():
            request = self.scheduler.requests[name]
            before = request.num_computed_tokens - tokens
            if before >= self.targets[name]:
                contexts.append(before)
            else:
                chunks.append((tokens, before))
        if not chunks and not contexts:
            return 0
        completed = sampled - len(contexts)
        return self.machine.timing().of_step(chunks, contexts, admitted=admitted, completed=completed)

    def _take_in(self, before_end: Callable[[int], None]) -> list[tuple[str, list[int]]]:
        flight = self.flights.popleft()
        before_end(flight.end_ps)
        self.now_ps = max(self.now_ps, flight.end_ps)
        ran = self._run(flight)
        if self.flights:
            self.workers.begin(self.flights[0].jobs, self.flights[0].start_ps)
        outputs = self.scheduler.update_from_output(flight.output, ran)
        finished = []
        for of_client in outputs.values():
            for out in of_client.outputs:
                self.answers.setdefault(out.request_id, []).extend(out.new_token_ids)
                if out.finish_reason is not None:
                    finished.append((out.request_id, self.answers[out.request_id]))
        return finished

    def _run(self, flight: Flight) -> ModelRunnerOutput:
        names = list(flight.output.num_scheduled_tokens)
        sampled: list[list[int]] = []
        first_tokens = starts_of(flight.output)
        for name in names:
            request = flight.requests[name]
            first = first_tokens[name]
            end = first + flight.output.num_scheduled_tokens[name]
            if name in self.scheduler.requests:
                assert end <= request.num_tokens, "the token before is there: steps end in their order"
            end = min(end, request.num_tokens)  # of one that was given up meanwhile, a token may never have come
            self.workers.compute(request, flight.tables[name], first, end)
            token = crc32(f"{name} {end}".encode()) % VOCABULARY  # as in a trace, no two calls answer the same
            sampled.append([token] if name in flight.sampling else [])
        return ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: at for at, name in enumerate(names)},
            sampled_token_ids=sampled,
            kv_connector_output=self.workers.look(self.now_ps),
        )

    # -- a whole run

    def play(
        self,
        applications: Sequence[Application],
        settings: RunSettings,
        sinks: Sequence[Sink],
        journal: Sink | None = None,
    ) -> None:
        """Run all applications to their ends."""
        self.adapter.begin(settings, sinks, journal)
        self.adapter.clock.start_wall_s = 0.0  # arrivals to the last digit
        player = Player(applications, Tokens(VOCABULARY), self)
        start_ps = self.now_ps

        def until(end_ps: int) -> None:
            while (due_s := player.next_due_s) is not None and round(due_s * PS_PER_S) + start_ps < end_ps:
                self.now_ps = max(self.now_ps, round(due_s * PS_PER_S) + start_ps)
                player.advance(due_s)

        for _ in range(MOST_ROUNDS):
            player.advance((self.now_ps - start_ps) / PS_PER_S)
            if player.done:
                break
            if self.scheduler.has_requests() or self.flights:
                before = self._progress()
                for name, answer in self.step(until):
                    player.finished(name, (self.now_ps - start_ps) / PS_PER_S, answer)
                self._wait_if_futile(before, player.next_due_s, start_ps)
            else:
                self._sleep(player.next_due_s, start_ps)
        else:
            raise AssertionError(f"the engine does not come to an end: {player.sent} after {MOST_ROUNDS} rounds")
        self.adapter.end()
        self.come_to_rest()

    def come_to_rest(self) -> None:
        """Let copies under way end."""
        while self.scheduler.has_requests() or self.flights:
            self.now_ps = max(self.now_ps, self.workers.next_end_ps or 0)
            self.step()

    def run_until(self, over: Callable[[], bool]) -> None:
        """Step until something is so."""
        for _ in range(MOST_ROUNDS):
            if over():
                return
            self.step()
        raise AssertionError(f"it did not come to that in {MOST_ROUNDS} rounds")

    def abort(self, name: str) -> None:
        """A client gives a request up."""
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)

    def _progress(self) -> tuple[int, ...]:
        in_vain = self.adapter._steps.schedules_in_vain
        return (self.now_ps, self.session.steps, in_vain, self.workers.copies, len(self.scheduler.requests))

    def _wait_if_futile(self, before: tuple[int, ...], due_s: float | None, start_ps: int) -> None:
        """A step that did nothing: nothing will happen before the next thing that is due."""
        if self._progress() != before or self.computes:
            self._futile = 0
            return
        self._futile += 1
        if self._futile > 3:
            self._futile = 0
            self._sleep(due_s, start_ps)

    def _sleep(self, due_s: float | None, start_ps: int) -> None:
        times = [] if due_s is None else [round(due_s * PS_PER_S) + start_ps]
        if (end_ps := self.workers.next_end_ps) is not None:
            times.append(end_ps)
        if (wake_s := self.adapter.wake_s()) is not None:
            times.append(round(wake_s * PS_PER_S) + start_ps + 1)
        assert times, "the engine waits for ever: nothing is due"
        self.now_ps = max(self.now_ps + 1, min(times))

    def leaked_blocks(self) -> int:
        """Blocks that are not free although nothing runs."""
        return self.machine.gpu_blocks - int(self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())


def starts_of(output: SchedulerOutput) -> dict[str, int]:
    """Where each scheduled request's tokens of this step begin."""
    starts = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
    cached = output.scheduled_cached_reqs
    return starts | dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))


def vllm_config(machine: Machine, host_gib: float) -> VllmConfig:
    """vLLM's configuration for a machine's sizes, with our connector."""
    scheduler = SchedulerConfig(
        max_num_batched_tokens=machine.step_budget_tokens,
        max_num_seqs=machine.max_running,
        long_prefill_token_threshold=machine.long_prefill_token_threshold,
        max_model_len=vllm_driver.LONGEST_CONTEXT_TOKENS,
        is_encoder_decoder=False,
        enable_chunked_prefill=True,
        async_scheduling=machine.asynchronous,
    )
    return VllmConfig(
        model_config=vllm_driver._model(),
        scheduler_config=scheduler,
        cache_config=CacheConfig(block_size=machine.block_tokens, enable_prefix_caching=True),
        device_config=DeviceConfig("cpu"),
        kv_transfer_config=KVTransferConfig(
            kv_connector="TokencakeConnector",
            kv_connector_module_path="tokencake.live.connector",
            kv_role="kv_both",
            kv_connector_extra_config={"host_gib": host_gib},
        ),
    )


def scheduler_of(machine: Machine) -> Any:
    """Our scheduler on a machine's sizes and KV cache groups, with nothing behind it."""
    blocks = machine.gpu_blocks + 1  # the null block
    kv_cache = KVCacheConfig(blocks, [], kv_group_specs(machine), prefix_cache_retention_interval=retention(machine))
    config = vllm_config(machine, machine.host_blocks * block_bytes_of_rank(kv_cache) / 2**30)
    config.cache_config.num_gpu_blocks = blocks
    if any(group.kind == "mamba" for group in machine.kv_groups):
        config.cache_config.mamba_cache_mode = "align"  # as for a model with such layers
    kind = TokencakeAsyncScheduler if machine.asynchronous else TokencakeScheduler
    return kind(
        vllm_config=config,
        kv_cache_config=kv_cache,
        structured_output_manager=StructuredOutputManager(config),
        block_size=machine.block_tokens,
        log_stats=False,
    )
