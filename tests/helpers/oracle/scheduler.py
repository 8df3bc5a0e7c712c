"""vLLM's scheduler and prefix cache again, plainly: one object a block, one loop an iteration, no shortcuts.

It is the oracle of the fast engine's tests and is itself held to vLLM 0.26 to 0.33 (`differential/`). The rules are
those of `vllm.v1.core.sched.scheduler.Scheduler`, its `AsyncScheduler`, and `vllm.v1.core.block_pool.BlockPool` for
groups of layers of any kind, first come first served, without speculation or a connector.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tokencake.sim.machine.engine_versions import CHUNKS_END_WHERE_A_PROMPT_RESUMES, LONE_PROMPTS_ARE_NOT_CUT
from tokencake.sim.machine.machine import Machine
from tokencake.traces.apps import Application, Call, CallId

from .block_pool import OracleBlockPool
from .kv_groups import Held, Hit, KvGroups
from .play import Piece, Schedule, Step, play
from .tokens import Tokens


class BlockHash(NamedTuple):
    """A full block's tokens and, through the chain of parents, all tokens before them."""

    parent: int | None
    tokens: tuple[int, ...]


@dataclass(eq=False, slots=True)
class Job:
    """A call in the engine."""

    call: Call
    tokens: list[int]  # known ones: the prompt and the sampled tokens that have arrived
    answer: list[int]
    hashes: list[int] = field(default_factory=list)  # of the full blocks of `tokens`
    held: list[Held] = field(default_factory=list)  # by group
    shared_tokens: int = 0  # where others with its prefix may go on (see `Hit`)
    computed: int = 0  # tokens with KV, those of steps in flight counted
    target: int = 0  # tokens known when it was admitted: until they are computed it prefills
    in_flight: int = 0  # tokens of steps that have not ended
    unknown: int = 0  # of the tokens that steps in flight will sample; stays 0 without asynchronous scheduling
    stale: int = 0  # of `in_flight`, those from before a preemption
    running: bool = False

    @property
    def sampled_last(self) -> bool:
        """Whether a step in flight samples its last token: then it is not scheduled again."""
        whole = self.call.prompt_tokens + self.call.output_tokens
        return self.unknown > 0 and len(self.tokens) + self.unknown >= whole


class Scheduler:
    """The oracle as an `Engine`."""

    def __init__(self, applications: Sequence[Application], machine: Machine) -> None:
        self._machine = machine
        self._tokens = Tokens(applications)
        self._interned: dict[BlockHash, int] = {}
        self._pool = OracleBlockPool(machine.gpu_blocks)
        self._kv = KvGroups(machine, self._pool)
        self._splits = any(group.kind == "mamba" for group in machine.kv_groups)
        self._jobs: dict[CallId, Job] = {}
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._sampling: deque[frozenset[CallId]] = deque()  # for each step in flight, the calls that sample a token
        self._longest_chunk = machine.step_budget_tokens  # of a call in the step that is being scheduled

    def add(self, call: Call) -> None:
        job = Job(call, self._tokens.prompt(call), self._tokens.answer(call))
        self._hash(job)
        self._jobs[call.id] = job
        self._waiting.append(job)

    def schedule(self) -> Schedule:
        spared = len(self._running) + len(self._waiting) == 1 and self._machine.has(LONE_PROMPTS_ARE_NOT_CUT)
        self._longest_chunk = (not spared and self._machine.long_prefill_token_threshold) or 2**63
        self._kv.begin_step()
        scheduled, preempted, budget = self._schedule_running()
        admitted = [] if preempted else self._admit(budget)
        scheduled += [(job, tokens) for job, tokens, _ in admitted]
        pieces = tuple(_piece(job, tokens) for job, tokens in scheduled)
        sampling = frozenset(job.call.id for job, tokens in scheduled if self._advance(job, tokens))
        if pieces or preempted:
            self._sampling.append(sampling)
        return Schedule(
            pieces,
            tuple((job.call.id, hits) for job, _, hits in admitted),
            tuple(job.call.id for job in preempted),
            len(self._pool.free),
            self._pool.evicted,
            len(sampling),
        )

    def update(self, schedule: Schedule) -> list[CallId]:
        sampling = self._sampling.popleft()
        finished = []
        for piece in schedule.pieces:
            job = self._jobs[piece.call]
            job.in_flight -= piece.tokens
            stale = job.stale > 0
            if stale:
                job.stale -= piece.tokens
            if piece.call in sampling:
                self._receive(job, stale)
                if len(job.tokens) == job.call.prompt_tokens + job.call.output_tokens:
                    self._finish(job)
                    finished.append(piece.call)
        return finished

    def _schedule_running(self) -> tuple[list[tuple[Job, int]], list[Job], int]:
        """Running calls in order of admission. Also the preempted ones and the budget that is left."""
        budget = self._machine.step_budget_tokens
        scheduled: list[tuple[Job, int]] = []
        preempted: list[Job] = []
        at = 0
        while at < len(self._running) and budget:
            job = self._running[at]
            at += 1
            tokens = min(len(job.tokens) + job.unknown - job.computed, self._longest_chunk, budget)
            if job.sampled_last or not tokens:
                continue
            tokens = self._split(job, job.computed, tokens)
            if not tokens:
                continue
            while not self._allocate(job, tokens):
                victim = self._running.pop()
                self._preempt(victim)
                preempted.append(victim)
                if victim is job:
                    return scheduled, preempted, budget
            scheduled.append((job, tokens))
            budget -= tokens
        return scheduled, preempted, budget

    def _admit(self, budget: int) -> list[tuple[Job, int, int]]:
        """Waiting calls, first come first served: each with its tokens in this step and the blocks that it hit."""
        admitted: list[tuple[Job, int, int]] = []
        while self._waiting and budget and len(self._running) < self._machine.max_running:
            job = self._waiting[0]
            assert not job.stale  # what was in flight when it was preempted ended before this schedule
            hit = self._kv.hit(job.hashes, len(job.tokens) - 1)
            job.shared_tokens = hit.shared_tokens
            computed = hit.num_blocks * self._machine.block_tokens
            tokens = min(len(job.tokens) - computed, self._longest_chunk, budget)
            tokens = self._split(job, computed, tokens)
            if not tokens or not self._fits(job, hit, computed + tokens):
                break
            self._waiting.popleft()
            for held, blocks in zip(job.held, hit.blocks, strict=True):
                self._pool.use(block for block in blocks if block is not None)
                held.blocks = list(blocks)
                held.cached = len(blocks)
            job.computed = computed
            job.target = len(job.tokens)
            job.running = True
            self._take(job, tokens)
            self._running.append(job)
            admitted.append((job, tokens, hit.num_blocks))
            budget -= tokens
        return admitted

    def _fits(self, job: Job, hit: Hit, tokens: int) -> bool:
        """Whether there is room for a call's whole prompt, and for its first `tokens` tokens."""
        if any(group.is_too_new(blocks) for group, blocks in zip(self._kv.groups, hit.blocks, strict=True)):
            return False
        job.held = [Held() for _ in self._kv.groups]
        whole, first = (
            sum(
                group.needs(held, tokens, blocks, whole=whole)
                for group, held, blocks in zip(self._kv.groups, job.held, hit.blocks, strict=True)
            )
            for tokens, whole in ((len(job.tokens), True), (tokens, False))
        )
        return max(whole, first) <= len(self._pool.free)

    def _split(self, job: Job, start: int, tokens: int) -> int:
        """The tokens of a chunk that ends where Mamba's state is kept: vLLM's `_mamba_block_aligned_split`."""
        prefill_end = max(job.call.prompt_tokens, len(job.tokens) - 1)
        if not self._splits or start >= prefill_end:
            return tokens
        size = self._machine.block_tokens
        end = start + tokens
        if end < prefill_end:
            aligned = end // size * size
            most = self._machine.step_budget_tokens
            threshold = self._machine.long_prefill_token_threshold
            if aligned > start or size <= (min(most, threshold) if threshold else most):
                end = aligned
        shared = job.shared_tokens
        stops = (
            (start // size + 1) * size if start % size else 0,
            (len(job.tokens) - self._machine.has(CHUNKS_END_WHERE_A_PROMPT_RESUMES)) // size * size,
            start + (shared - start) // size * size if start < shared < end else 0,
        )
        return max(min((stop for stop in stops if start < stop < end), default=end) - start, 0)

    def _allocate(self, job: Job, tokens: int) -> bool:
        """Room for the next `tokens` tokens; what they complete can be hit at once. False if there is no room."""
        computed = job.computed + tokens
        for group, held in zip(self._kv.groups, job.held, strict=True):
            group.remove_skipped(held, max(0, job.computed - job.in_flight))
        missing = sum(
            group.needs(held, computed, (), whole=False) for group, held in zip(self._kv.groups, job.held, strict=True)
        )
        if missing > len(self._pool.free):
            return False
        self._take(job, tokens)
        return True

    def _take(self, job: Job, tokens: int) -> None:
        for group, held in zip(self._kv.groups, job.held, strict=True):
            group.allocate(held, job.computed + tokens)
        self._cache(job, min(job.computed + tokens, len(job.tokens)))

    def _cache(self, job: Job, tokens: int) -> None:
        boundaries = [job.call.prompt_tokens - 1, *([job.shared_tokens] if job.shared_tokens else [])]
        for group, held in zip(self._kv.groups, job.held, strict=True):
            group.cache(held, job.hashes, tokens, boundaries)

    def _advance(self, job: Job, tokens: int) -> bool:
        """The step is on its way. Returns whether it samples a token of this call."""
        job.computed += tokens
        job.in_flight += tokens
        samples = job.computed >= len(job.tokens) + job.unknown
        if samples and self._machine.asynchronous:
            job.unknown += 1
        return samples

    def _preempt(self, job: Job) -> None:
        """It loses its blocks and its progress, not its tokens: those in flight will still arrive."""
        self._release(job)
        job.computed = job.unknown = 0
        job.stale = job.in_flight
        job.running = False
        self._waiting.appendleft(job)

    def _receive(self, job: Job, stale: bool) -> None:
        """A sampled token arrives; a block that it completes was computed before its content was known."""
        job.tokens.append(job.answer[len(job.tokens) - job.call.prompt_tokens])
        self._hash(job)
        if self._machine.asynchronous and not stale:
            job.unknown -= 1
            self._cache(job, job.computed - job.unknown)

    def _finish(self, job: Job) -> None:
        self._release(job)
        del self._jobs[job.call.id]
        if job.running:
            self._running.remove(job)
        else:
            self._waiting.remove(job)

    def _release(self, job: Job) -> None:
        for group, held in zip(self._kv.groups, job.held, strict=False):  # one that waits holds nothing
            group.release(held)
        job.held = []

    def _hash(self, job: Job) -> None:
        """Hashes of blocks that are full of known tokens by now."""
        size = self._machine.block_tokens
        while len(job.tokens) >= (len(job.hashes) + 1) * size:
            at = len(job.hashes) * size
            key = BlockHash(job.hashes[-1] if job.hashes else None, tuple(job.tokens[at : at + size]))
            job.hashes.append(self._interned.setdefault(key, len(self._interned)))


def _piece(job: Job, tokens: int) -> Piece:
    return Piece(job.call.id, tokens, job.computed, job.computed >= job.target)


def simulate(applications: Sequence[Application], machine: Machine) -> Iterator[Step]:
    """Every step of the oracle on these applications."""
    return play(Scheduler(applications, machine), applications, machine)
