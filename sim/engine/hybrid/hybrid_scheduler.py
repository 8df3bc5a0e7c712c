"""The scheduler where the KV cache has several groups (see `memory.hybrid_pool`)."""

from __future__ import annotations

from typing import NamedTuple

from ....policies.interface import Hits
from ....traces.apps import CallId
from ...machine.machine import Machine
from ...machine.timing import Timing
from ..memory.context_tree import changes
from ..memory.copies import Copies
from ..requests import EngineCall
from ..scheduling.running_calls import RunningCalls
from ..scheduling.scheduler import Scheduler
from ..scheduling.step import Step, StepLog
from .group_pool import UNBOUNDED
from .hybrid_calls import HybridRunningCalls
from .hybrid_pool import HybridHold, HybridPool


class Found(NamedTuple):
    """What is cached of a call's prompt of `limit` blocks, when the changes of its path were these."""

    changes: int
    limit: int
    end: int
    idle_blocks: int
    full_idle_blocks: int  # of the idle ones, those of groups of full attention
    shared_blocks: int  # that the full groups have, if that is more than the hit; else 0


class HybridScheduler(Scheduler):
    """What the scheduler asks its pool group by group: room for a prompt, its hits, its first chunk."""

    def __init__(
        self,
        machine: Machine,
        timing: Timing,
        gpu: HybridPool,
        host: HybridPool,
        copies: Copies,
        *,
        one_by_one: bool,
        step_log: StepLog | None,
    ) -> None:
        self._pool = gpu
        super().__init__(machine, timing, gpu, host, copies, one_by_one=one_by_one, step_log=step_log)
        self._shared_blocks = 0  # of the call that was looked up last
        self._found: dict[CallId, Found] = {}  # of the calls that were looked up and wait
        self._full_idle_blocks = 0  # of its hit, in groups of full attention
        self._looking = False  # whether the call that was looked up last has not been told if there is room for it
        self._lacking_blocks = 0  # no call that waits can start before so many more are free
        self._passing = False  # whether a call could not start for a reason that lasts for a step only

    def _running_calls(self) -> RunningCalls:
        self.hybrid_calls = HybridRunningCalls(
            self._machine, self._pool, self._copies, self.batch, self._prefills, self.waiting
        )
        return self.hybrid_calls

    def look_up(self, call: EngineCall) -> Hits:
        hits, idle = self._gpu.cached_prefix(call.path, call.most_hit_blocks)
        return Hits(hits, idle, self._copies.host_hits(call, hits) - hits)

    def advance(self, step: Step) -> tuple[list[EngineCall], list[EngineCall]]:
        outcomes = super().advance(step)
        for call in step.finals:
            if call.decoding:
                self.hybrid_calls.joins(call)
        return outcomes

    def _stretch(self, step: Step) -> int:
        """How many iterations go by in which nobody has to give way, and no room comes that somebody waits for."""
        batch = self.batch
        most = batch.until_end()
        if step.prefill_tokens or self._passing or self.hybrid_calls.lack_tokens or most is None:
            return 1
        most = batch.until_full(self._gpu.num_free_blocks // len(self._machine.kv_groups), batch.until_turn(most))
        return self.hybrid_calls.until_given_back(self._lacking_blocks, most) if self.waiting.calls else most

    def _admit(self, step: Step, now_ps: int, budget_tokens: int) -> None:
        self._passing = self._looking = False
        self._lacking_blocks = UNBOUNDED
        super()._admit(step, now_ps, budget_tokens)
        if self._looking:
            self._lacking_blocks = 0
        if self._passing:
            self.blocked = False
            self._refused = None

    def _situation(self) -> tuple[int, int, int, int]:
        """Where a hit gets shorter, the windows before its end may be in use, and less be needed than before."""
        gpu, host, waiting, running = super()._situation()
        return gpu + self._gpu.num_evicted_blocks, host, waiting, running

    def _refuse(self, required_blocks: int) -> None:
        """A call waits at least until there are so many free pages.

        For nothing that a stretch does makes it need less than its whole prompt and what is idle of its hit in full
        groups: handing out a page of the hit makes it shorter, or it has a later copy, and then the page is not free.
        """
        self._lacking_blocks = min(self._lacking_blocks, required_blocks - self._pool.num_free_blocks)

    def finish(self, call: EngineCall) -> None:
        self._found.pop(call.id, None)
        super().finish(call)

    def _find(self, call: EngineCall) -> tuple[int, int]:
        """As the base does; and how much the full groups have. It stays as long as nothing near has changed."""
        limit, count = call.most_hit_blocks, changes(call.path)
        found = self._found.get(call.id)
        if found is None or found.changes != count or found.limit != limit:
            end, longest = self._pool.longest_hit(call.path, limit)
            idle = self._pool.idle_blocks(call.path, end, end)
            full_idle = self._pool.full_idle_blocks(call.path, end)
            found = self._found[call.id] = Found(count, limit, end, idle, full_idle, longest if longest > end else 0)
        self._shared_blocks, self._full_idle_blocks = found.shared_blocks, found.full_idle_blocks
        if self._looking:
            self._lacking_blocks = 0
        self._looking = True
        return found.end, found.idle_blocks

    def _fits(self, call: EngineCall, hits: int, idle: int, budget_tokens: int) -> bool:
        pool, tokens = self._pool, hits * self._block_tokens
        self._looking = False
        shared_blocks = call.hold.shared_blocks if isinstance(call.hold, HybridHold) else self._shared_blocks
        if call.hold is None and pool.is_too_new(call.path, hits):
            self._passing = True
            return False
        chunk_tokens = self.hybrid_calls.chunk_tokens(call, tokens, shared_blocks * self._block_tokens, budget_tokens)
        if not chunk_tokens:
            self._passing = True
            return False
        whole_blocks = pool.whole_blocks(hits, hits, call.num_prefill_tokens)
        chunk_blocks = pool.chunk_blocks(hits, tokens + chunk_tokens)
        if max(whole_blocks, chunk_blocks) + idle <= pool.num_free_blocks:
            return True
        self._refuse(whole_blocks + (self._full_idle_blocks if call.hold is None else 0))
        return False

    def _can_load(self, call: EngineCall, hits: int, idle: int, end: int) -> bool:
        pool = self._pool
        self._looking = False
        idle = pool.idle_blocks(call.path, hits, end)  # of the pages that the longer hit needs
        whole_blocks = pool.whole_blocks(hits, end, call.num_prefill_tokens)
        loaded_blocks = sum([upto - first for first, upto in pool.needed(end, hits)])
        free_blocks = pool.num_free_blocks
        if whole_blocks + idle <= free_blocks and loaded_blocks + idle <= free_blocks - self._promised():
            return True
        self._refuse(whole_blocks + self._full_idle_blocks)
        return False

    def _promised(self) -> int:
        pool, promised = self._pool, 0
        for call in (*self.waiting.loaded.values(), *self._prefills.calls):
            hold = call.hold
            if hold is not None:
                promised += pool.whole_blocks(hold.num_blocks, hold.num_blocks, call.num_prefill_tokens)
        return promised

    def _load(self, call: EngineCall, first: int, end: int, now_ps: int) -> None:
        self._found.pop(call.id, None)
        call.hold = self._pool.start(call.path, first, end, call.prompt_tokens, self._shared_blocks)
        super()._load(call, first, end, now_ps)

    def _hold_hits(self, call: EngineCall, hits: int) -> None:
        self._found.pop(call.id, None)
        call.hold = self._pool.start(call.path, hits, hits, call.prompt_tokens, self._shared_blocks)

    def _compute_first(self, step: Step, call: EngineCall, budget_tokens: int) -> int:
        hold = call.hold
        assert isinstance(hold, HybridHold)
        shared_tokens = hold.shared_blocks * self._block_tokens
        self._pool.slide(hold, call.path, call.num_computed_tokens, call.agent.owner)
        chunk_tokens = self.hybrid_calls.chunk_tokens(call, call.num_computed_tokens, shared_tokens, budget_tokens)
        self.hybrid_calls.compute(step, call, hold, chunk_tokens)
        return chunk_tokens

    def shared_blocks(self, name: CallId) -> int:
        call = self.waiting.calls[name]
        hits, idle = self._gpu.cached_prefix(call.path, call.most_hit_blocks)
        return sum([end - first for first, end in self._pool.needed(hits)]) - idle
