"""vLLM's scheduler and prefix cache again, plainly: one object a block, one loop an iteration, no shortcuts.

It is the oracle of the fast engine's tests and is itself held to vLLM 0.26 to 0.33 (`differential/`). The rules are
those of `vllm.v1.core.sched.scheduler.Scheduler`, its `AsyncScheduler`, and `vllm.v1.core.block_pool.BlockPool` for
one group of full-attention layers, first come first served, without speculation or a connector.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tokencake.sim.machine.engine_versions import LONE_PROMPTS_ARE_NOT_CUT
from tokencake.sim.machine.machine import Machine
from tokencake.traces.apps import Application, Call, CallId

from .play import Piece, Schedule, Step, play
from .tokens import Tokens


class BlockHash(NamedTuple):
    """A full block's tokens and, through the chain of parents, all tokens before them."""

    parent: int | None
    tokens: tuple[int, ...]


@dataclass(eq=False, slots=True)
class Block:
    hash: int | None = None  # interned BlockHash
    users: int = 0


class OracleBlockPool:
    """All blocks, the queue of the free ones, and the look-up of cached ones by hash."""

    def __init__(self, blocks: int) -> None:
        self.free: dict[Block, None] = dict.fromkeys(Block() for _ in range(blocks))  # in the order of reuse
        self._cached: dict[int, dict[Block, None]] = {}  # copies of the same content, first inserted first
        self.evicted = 0

    def cached(self, block_hash: int) -> Block | None:
        """The copy that a look-up finds."""
        return next(iter(self._cached.get(block_hash, ())), None)

    def cache(self, block: Block, block_hash: int) -> None:
        block.hash = block_hash
        self._cached.setdefault(block_hash, {})[block] = None

    def use(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            self.free.pop(block, None)
            block.users += 1

    def take(self, count: int) -> list[Block]:
        """Free blocks from the front of the queue. Only now do they lose what was cached in them."""
        taken = [block for block, _ in zip(self.free, range(count), strict=False)]
        for block in taken:
            if block.hash is not None:
                self._forget(block, block.hash)
        self.use(taken)
        return taken

    def release(self, blocks: Iterable[Block]) -> None:
        """The tail first; blocks that cannot be hit go to the front of the queue, the others to its end."""
        front: dict[Block, None] = {}
        for block in blocks:
            block.users -= 1
            if not block.users:
                (front if block.hash is None else self.free)[block] = None
        if front:
            self.free = front | self.free

    def _forget(self, block: Block, block_hash: int) -> None:
        self.evicted += 1
        block.hash = None
        copies = self._cached[block_hash]
        del copies[block]
        if not copies:
            del self._cached[block_hash]


@dataclass(eq=False, slots=True)
class Job:
    """A call in the engine."""

    call: Call
    tokens: list[int]  # known ones: the prompt and the sampled tokens that have arrived
    answer: list[int]
    hashes: list[int] = field(default_factory=list)  # of the full blocks of `tokens`
    blocks: list[Block] = field(default_factory=list)
    cached_blocks: int = 0  # of `blocks`, those whose content is under its hash
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
            hits = self._hits(job)
            if self._blocks(len(job.tokens)) - len(hits) + sum(not hit.users for hit in hits) > len(self._pool.free):
                break
            self._waiting.popleft()
            self._pool.use(hits)
            job.blocks = list(hits)
            job.cached_blocks = len(hits)
            job.computed = len(hits) * self._machine.block_tokens
            job.target = len(job.tokens)
            job.running = True
            tokens = min(len(job.tokens) - job.computed, self._longest_chunk, budget)
            self._allocate(job, tokens)
            self._running.append(job)
            admitted.append((job, tokens, len(hits)))
            budget -= tokens
        return admitted

    def _hits(self, job: Job) -> list[Block]:
        """The longest cached run of blocks. The last token is always computed anew: its logits are needed."""
        hits = []
        for block_hash in job.hashes[: (len(job.tokens) - 1) // self._machine.block_tokens]:
            block = self._pool.cached(block_hash)
            if block is None:
                break
            hits.append(block)
        return hits

    def _allocate(self, job: Job, tokens: int) -> bool:
        """Room for the next `tokens` tokens; what they complete can be hit at once. False if there is no room."""
        missing = self._blocks(job.computed + tokens) - len(job.blocks)
        if missing > len(self._pool.free):
            return False
        if missing > 0:
            job.blocks += self._pool.take(missing)
        self._cache(job, min(job.computed + tokens, len(job.tokens)))
        return True

    def _cache(self, job: Job, tokens: int) -> None:
        full_blocks = tokens // self._machine.block_tokens
        for at in range(job.cached_blocks, full_blocks):
            self._pool.cache(job.blocks[at], job.hashes[at])
        job.cached_blocks = max(job.cached_blocks, full_blocks)

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
        self._pool.release(reversed(job.blocks))
        job.blocks = []
        job.cached_blocks = job.computed = job.unknown = 0
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
        self._pool.release(reversed(job.blocks))
        del self._jobs[job.call.id]
        if job.running:
            self._running.remove(job)
        else:
            self._waiting.remove(job)

    def _hash(self, job: Job) -> None:
        """Hashes of blocks that are full of known tokens by now."""
        size = self._machine.block_tokens
        while len(job.tokens) >= (len(job.hashes) + 1) * size:
            at = len(job.hashes) * size
            key = BlockHash(job.hashes[-1] if job.hashes else None, tuple(job.tokens[at : at + size]))
            job.hashes.append(self._interned.setdefault(key, len(self._interned)))

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._machine.block_tokens)


def _piece(job: Job, tokens: int) -> Piece:
    return Piece(job.call.id, tokens, job.computed, job.computed >= job.target)


def simulate(applications: Sequence[Application], machine: Machine) -> Iterator[Step]:
    """Every step of the oracle on these applications."""
    return play(Scheduler(applications, machine), applications, machine)
