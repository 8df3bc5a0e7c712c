"""vLLM V1's scheduler: who computes how many tokens in the next step, who is admitted, who is preempted.

Running calls come first, in order of admission, then waiting ones while tokens, places and memory last. What is
scheduled is a stretch: as many iterations as go by before anything can change. The rules are those of `Scheduler` and
`AsyncScheduler` of vLLM 0.26 to 0.32; tests hold every step to theirs. In two of them versions differ:

- Whoever was passed over, because it waits for a copy or lets others go first, kept its place in the queue since 0.31.
  Up to 0.30 it goes into a queue of its own, which is asked first: before a call that is preempted later, too.
- Up to 0.30 a prompt that is the only one is cut to the threshold for long prompts like any other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import NamedTuple

from ...policies.execution.copy_rules import tokens_left_behind, tokens_to_store
from ...policies.interface import NATIVE, Extent, Hits, Plan
from ...traces import events as e
from ...traces.apps import CallId
from ...traces.events import Fact
from ..machine.machine import PS_PER_S, Machine, Timing
from .batch import Batch
from .memory.block_pool import BlockPool
from .memory.copies import Copies
from .pace import Pace
from .requests import EngineCall, State


class Scheduled(NamedTuple):
    """One iteration as it was scheduled: what is held against vLLM's scheduler, and what a calibration is made for."""

    at_ps: int
    tokens: dict[CallId, int]  # by call, in the order of admission
    free_blocks: int  # afterwards
    evicted_blocks: int  # since the start


StepLog = Callable[[Scheduled], None]


class Step:
    """Iterations that are scheduled but not done."""

    __slots__ = ("finals", "iterations", "pace", "prefill")

    def __init__(self, pace: Pace, iterations: int, prefill: dict[EngineCall, int], finals: list[EngineCall]) -> None:
        self.pace = pace
        self.iterations = iterations
        self.prefill = prefill  # prompt tokens by call, in each iteration
        self.finals = finals  # calls whose prefill is complete after the only iteration


class Scheduler:
    """The queues of one engine, and what a step does to them. It has no clock."""

    def __init__(
        self,
        machine: Machine,
        timing: Timing,
        gpu: BlockPool,
        host: BlockPool,
        copies: Copies,
        *,
        one_by_one: bool,
        step_log: StepLog | None,
    ) -> None:
        self._machine = machine
        self._block_tokens = machine.block_tokens
        self._budget = machine.step_budget_tokens
        self._threshold = machine.long_prefill_token_threshold
        self._as_0_30 = machine.has_scheduler_of_0_30
        self._most = self._budget  # tokens of one prompt in the step that is being scheduled
        self.lag = 1 if machine.asynchronous else 0  # steps whose outcome has not come when the next is scheduled
        self._one_by_one = one_by_one
        self._step_log = step_log
        self._gpu = gpu
        self._host = host
        self._copies = copies
        self._counts_admissions = timing.host_call_ps > 0
        self.batch = Batch(timing, self._block_tokens)
        self.waiting: OrderedDict[CallId, EngineCall] = OrderedDict()  # one that lost its blocks goes to its front
        self._passed_over: dict[CallId, None] = {}  # up to 0.30: those at the front of the waiting that stay there
        self.running: dict[CallId, EngineCall] = {}
        self._loaded: dict[CallId, EngineCall] = {}  # of the waiting: those with blocks, in the order of their loads
        # Calls in the middle of their prompts, in order of admission. Nobody was admitted behind one that got less than
        # its share, and no other call asks for more than in the step before. So at most the last one, which is then
        # the last of all running calls, gets what the others leave; and everybody gets something.
        self._prefilling: dict[EngineCall, None] = {}
        self._plan: Plan = NATIVE
        self._refused: tuple[int, int, int, int] | None = None  # the situation in which nobody could be admitted
        self.blocked = False  # nobody can be admitted before something changes that is a boundary anyway
        self._alone = False  # a prompt takes more than the threshold, until there is somebody to starve
        self.preempted = False  # whether the latest schedule took room from a running call
        self.ended: list[EngineCall] = []  # calls whose contexts are to be written through
        self._admissions = 0
        self.growth_blocks = 0  # that running and loading calls will yet take until their declared budgets
        self.report: Callable[[Fact], None]

    @property
    def plan(self) -> Plan:
        """What the policy wants."""
        return self._plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        self._plan = plan
        self._refused = None

    def add(self, call: EngineCall) -> None:
        """A call arrived."""
        self.waiting[call.id] = call
        call.agent.waiting += 1

    @property
    def heeds_arrivals(self) -> bool:
        """Whether the next schedule is another one if a call arrives before it."""
        return self._alone or (not self.blocked and self._plan.admit is None)

    # -- what a policy asks

    def hits(self, name: CallId) -> Hits:
        """What is cached of a waiting call's prompt."""
        call = self.waiting[name]
        if call.hold is not None:
            return Hits(call.hold.num_blocks, 0, 0)
        gpu, idle = self._gpu.cached_prefix(call.path, (call.num_prefill_tokens - 1) // self._block_tokens)
        return Hits(gpu, idle, self._copies.host_hits(call, gpu) - gpu)

    def shared_blocks(self, name: CallId) -> int:
        """Blocks of a waiting call's prompt that running calls hold."""
        call = self.waiting[name]
        return self._gpu.held_prefix(call.path, (call.num_prefill_tokens - 1) // self._block_tokens)

    # -- a step is scheduled

    def schedule(self, now_ps: int, from_ps: int, single: bool) -> Step | None:
        """One schedule of vLLM's: running calls, then waiting ones. Nothing scheduled: None.

        `from_ps`: when the step will start. `single`: whether it is to be one iteration, because of news that comes
        with the end of the step before it.
        """
        batch = self.batch
        need = batch.needs()
        prefill: dict[EngineCall, int] = {}
        finals: list[EngineCall] = []
        preempted = False
        admissions = self._admissions
        if self._threshold:
            self._set_most()
        chunks = self._chunks() if self._prefilling else ()
        needed = need
        for _, _, blocks in chunks:
            needed += blocks
        if needed <= self._gpu.num_free_blocks:
            if need:
                self._gpu.get_new_blocks(need)
                self.growth_blocks -= need
            for call, chunk, blocks in chunks:
                self._prefill(call, chunk, blocks, prefill, finals)
        else:
            preempted = self._grow_one_by_one(now_ps, prefill, finals)
        budget = self._budget - batch.num_calls
        for chunk in prefill.values():
            budget -= chunk
        self.preempted = preempted
        if preempted or not budget or not self.waiting:
            self.blocked = False
        elif self._refused != self._situation():
            self._admit(now_ps, budget, prefill, finals)
        admitted = self._admissions - admissions
        single = single or preempted or self._one_by_one or (admitted > 0 and self._counts_admissions)
        return self._close(now_ps, from_ps, prefill, finals, admitted, single)

    def _close(
        self,
        now_ps: int,
        from_ps: int,
        prefill: dict[EngineCall, int],
        finals: list[EngineCall],
        admitted: int,
        single: bool,
    ) -> Step | None:
        batch = self.batch
        if not batch.num_calls and not prefill:
            return None
        tokens = attended = 0
        for call, chunk in prefill.items():
            tokens += chunk
            attended += chunk * call.num_computed_tokens + chunk * (chunk + 1) // 2
        for call in finals:
            call.last_iteration = (
                batch.iteration + call.output_tokens - 1 - (call.num_prefill_tokens - call.prompt_tokens)
            )
        if self._step_log is not None:
            self._log(now_ps, prefill)
        through = self._plan.write_through if prefill else None
        iterations = 1 if single or finals or len(prefill) > 1 or through else self._stretch(prefill)
        chunk = tokens if batch.chunk else 0
        pace = batch.pace(tokens, attended, chunk, admitted=admitted, completed=len(finals))
        if through:
            self._write_through(through, prefill, now_ps, from_ps + pace.first_ps)
        return Step(pace, iterations, prefill, finals)

    def _write_through(self, extent: Extent, prefill: Mapping[EngineCall, int], now_ps: int, end_ps: int) -> None:
        """When the step ends that computes these prompts' next tokens, their full blocks are copied to the host."""
        for call, chunk in prefill.items():
            upto = tokens_to_store(extent, call.num_computed_tokens + chunk, call.prompt_tokens) // self._block_tokens
            if upto > call.stored_blocks:
                self._copies.store(call, upto, now_ps, end_ps)

    def store_ended(self, now_ps: int, from_ps: int) -> None:
        """Write through what the calls leave that have `ended` since this was last asked."""
        ended, self.ended = self.ended, []
        extent = self._plan.write_through
        if extent is None:
            return
        for call in ended:
            self._copies.store_rest(call, self._to_store(call, extent), now_ps, from_ps)

    def _to_store(self, call: EngineCall, extent: Extent) -> int:
        """How many blocks of a call that has ended are written through."""
        return tokens_left_behind(extent, call.prompt_tokens, call.output_tokens) // self._block_tokens

    def _stretch(self, prefill: dict[EngineCall, int]) -> int:
        """How many iterations go by before anything changes: decoding, or whole chunks of one prompt beside it."""
        batch = self.batch
        most = batch.until_end()
        for call, chunk in prefill.items():
            full = batch.num_calls + chunk == self._budget
            if not full and (chunk < self._most or self.waiting):  # who waits may hit what an iteration computes
                return 1
            chunks = (
                call.num_prefill_tokens - call.num_computed_tokens - 1
            ) // chunk  # all but the last one, which leaves room for other calls
            most = chunks if most is None else min(most, chunks)
            batch.chunk = (call.num_computed_tokens, chunk)
            self.blocked = full  # until then there is no token left for anybody
            self._refused = None
        assert most is not None
        return batch.until_full(self._gpu.num_free_blocks, most)

    def _prefill(
        self, call: EngineCall, chunk: int, blocks: int, prefill: dict[EngineCall, int], finals: list[EngineCall]
    ) -> None:
        """Compute the next tokens of a running call's prompt. Its full blocks can be hit from this moment on."""
        hold = call.hold
        assert hold is not None
        self._gpu.allocate(hold, blocks)
        self.growth_blocks -= blocks
        upto = call.num_computed_tokens + chunk
        self._gpu.cache(hold, call.path, upto // self._block_tokens)
        prefill[call] = chunk
        if upto == call.num_prefill_tokens:
            finals.append(call)
            self._prefilling.pop(call, None)
        else:
            self._prefilling[call] = None

    def _set_most(self) -> None:
        """A long prompt is cut so that it starves nobody of tokens; one that is alone has nobody to starve."""
        self._alone = not self._as_0_30 and len(self.running) + len(self.waiting) == 1
        self._most = self._budget if self._alone else min(self._budget, self._threshold)

    def _chunks(self) -> list[tuple[EngineCall, int, int]]:
        """Of each call in the middle of its prompt: the tokens that it computes next, and the blocks for them."""
        left = self._budget - self.batch.num_calls
        chunks = []
        for call in self._prefilling:
            chunk, blocks = self._chunk(call, left)
            left -= chunk
            chunks.append((call, chunk, blocks))
        return chunks

    def _chunk(self, call: EngineCall, budget: int) -> tuple[int, int]:
        chunk = min(call.num_prefill_tokens - call.num_computed_tokens, self._most, budget)
        return chunk, -(-(call.num_computed_tokens + chunk) // self._block_tokens) - -(
            -call.num_computed_tokens // self._block_tokens
        )

    def _grow_one_by_one(self, now_ps: int, prefill: dict[EngineCall, int], finals: list[EngineCall]) -> bool:
        """Give each running call the blocks that it needs now, in their order; preempt where there are none."""
        running = list(self.running.values())
        budget = self._budget
        preempted = False
        at = 0
        while at < len(running):
            call = running[at]
            if call in self._prefilling:
                tokens, blocks = self._chunk(call, budget)
            elif call.decoding:
                tokens, blocks = 1, 0 if self.batch.num_computed_tokens(call) % self._block_tokens else 1
            else:
                tokens = blocks = 0  # its last token is on its way
            while blocks > self._gpu.num_free_blocks:
                victim = self._victim(running, min(at + 1, len(running) - 1))
                running.remove(victim)
                self._preempt(victim, now_ps)
                preempted = True
                if victim is call:
                    break
            else:
                at += 1
                budget -= tokens
                if call in self._prefilling:
                    self._prefill(call, tokens, blocks, prefill, finals)
                else:
                    self._gpu.get_new_blocks(blocks)
                    self.growth_blocks -= blocks
        return preempted

    def _victim(self, running: list[EngineCall], first: int) -> EngineCall:
        """Who of the running calls from `first` on gives way."""
        if self._plan.preempt:
            by_id = {call.id: call for call in running[first:]}
            for name in self._plan.preempt:
                if name in by_id:
                    return by_id[name]
        return running[-1]

    def _preempt(self, call: EngineCall, now_ps: int) -> None:
        """A running call loses its blocks and waits again, before all others."""
        known = call.num_computed_tokens
        if call in self._prefilling:
            del self._prefilling[call]
        else:
            if call.decoding:
                self.batch.leave(call)
            # with a step in flight, the token of the last slot is not known yet
            known = (
                call.num_computed_tokens - self.lag
                if call.num_computed_tokens > call.num_prefill_tokens
                else call.num_computed_tokens
            )
            call.num_prefill_tokens = call.num_computed_tokens + 1
        generated = call.num_prefill_tokens - call.prompt_tokens
        del self.running[call.id]
        self._release(call, known // self._block_tokens)
        call.state = State.WAITING
        call.num_computed_tokens = 0
        call.agent.waiting += 1
        self.waiting[call.id] = call
        self._to_front(call)
        if self._gpu.kept_blocks:
            self._copies.refusing = True
        self.report(e.CallPreempted(now_ps / PS_PER_S, call.id, generated))

    def _to_front(self, call: EngineCall) -> None:
        """A call waits before all others, but for those that stay in front of it."""
        self.waiting.move_to_end(call.id, last=False)
        for name in reversed(self._passed_over):
            self.waiting.move_to_end(name, last=False)

    # -- a step is on its way, or over

    def advance(self, step: Step) -> tuple[list[EngineCall], list[EngineCall]]:
        """The step's iterations are all scheduled: move the calls on. Who got a first token, who a last one."""
        batch = self.batch
        if batch.chunk is not None:
            self._book_chunks(step)
        finished = batch.advance(step.iterations)
        for call, tokens in step.prefill.items():
            call.num_computed_tokens += tokens * step.iterations
        firsts = []
        for call in step.finals:
            if call.num_prefill_tokens - call.prompt_tokens == 0:
                firsts.append(call)
            if call.last_iteration < batch.iteration:
                finished.append(call)
            else:
                batch.join(call, call.num_prefill_tokens)
        return firsts, finished

    def _book_chunks(self, step: Step) -> None:
        """A stretch of chunks is over: its later ones have their blocks, too, and can be hit."""
        self.batch.chunk = None
        for call, chunk in step.prefill.items():
            hold = call.hold
            assert hold is not None
            upto = call.num_computed_tokens + step.iterations * chunk
            hold.uncached_blocks += -(-upto // self._block_tokens) - hold.num_blocks
            self._gpu.cache(hold, call.path, upto // self._block_tokens)

    def finish(self, call: EngineCall) -> None:
        """A call's last token came: it gives up its blocks, full ones known. Its context is its agent's latest."""
        agent = call.agent
        agent.path = call.path
        agent.context_blocks = (call.prompt_tokens + call.output_tokens - 1) // self._block_tokens
        self._copies.refusing = False
        if self._plan.write_through:
            self.ended.append(call)
            self._copies.used(call, self._to_store(call, self._plan.write_through))
        if call.state is State.RUNNING:
            del self.running[call.id]
            self._release(call, agent.context_blocks)
        else:  # preempted while its last token was on its way
            del self.waiting[call.id]
            self._passed_over.pop(call.id, None)
            agent.waiting -= 1

    def _release(self, call: EngineCall, registered_blocks: int) -> None:
        """A running call gives up its blocks; `registered_blocks` of them are full and known."""
        hold = call.hold
        assert hold is not None
        held = -(-call.num_computed_tokens // self._block_tokens)
        hold.uncached_blocks = held - hold.cached_end_block
        self._gpu.cache(hold, call.path, registered_blocks)
        self._gpu.free(hold, call.agent.owner)
        if call.store_sources:
            self._copies.stops(call)
        self.growth_blocks -= call.final_blocks - held
        call.hold = None

    # -- admission

    def _admit(self, now_ps: int, budget: int, prefill: dict[EngineCall, int], finals: list[EngineCall]) -> None:
        """Start waiting calls while tokens, places and memory last."""
        self.blocked = False
        skip, through = self._plan.skip, self._plan.write_through
        before = budget
        started = []
        for call in self._candidates():
            if len(self.running) >= self._machine.max_running:
                self.blocked = True
                break
            if call.state is State.LOADING or self._awaits_copy(call):
                continue
            if call.state is State.WAITING:
                hits, idle = self._gpu.cached_prefix(call.path, (call.num_prefill_tokens - 1) // self._block_tokens)
                fits = -(-call.num_prefill_tokens // self._block_tokens) - hits + idle <= self._gpu.num_free_blocks
                loads_to = self._copies.host_hits(call, hits)
                if through and self._copies.coming(call, loads_to):
                    continue
                if loads_to > hits:
                    if self._copies.under_way(call, hits, loads_to):
                        continue
                    if fits and loads_to - hits + idle <= self._gpu.num_free_blocks - self._promised():
                        self._load(call, hits, loads_to, now_ps)
                        continue
                    fits = False
            else:
                assert call.hold is not None
                hits = call.hold.num_blocks
                fits = -(-call.num_prefill_tokens // self._block_tokens) - hits <= self._gpu.num_free_blocks
            if not fits:
                if skip:
                    continue
                self.blocked = True
                break
            budget -= self._start(call, hits, budget, now_ps, prefill, finals)
            started.append(call.id)
            if not budget:
                break
        for name in started:
            del self.waiting[name]
            self._loaded.pop(name, None)
            self._passed_over.pop(name, None)
        self._refused = self._situation() if budget == before else None

    def _situation(self) -> tuple[int, int, int, int]:
        """While this is the same, under the same plan and with no more room, whoever was refused is refused again."""
        return self._gpu.version, self._host.version, len(self.waiting), len(self.running)

    def _candidates(self) -> Iterator[EngineCall]:
        """Waiting calls in the order in which they may start. Only as many as are asked for: there may be thousands."""
        waiting = self.waiting
        if self._plan.admit is not None:
            return (waiting[name] for name in self._plan.admit if name in waiting)
        ordered: Iterator[EngineCall] = iter(waiting.values())
        if self._loaded:
            ordered = chain(self._loaded.values(), (call for call in waiting.values() if call.state is State.WAITING))
        return self._noting_passed_over(ordered) if self._as_0_30 else ordered

    def _noting_passed_over(self, ordered: Iterator[EngineCall]) -> Iterator[EngineCall]:
        """The same calls. Who has been asked and is still as it was when the next one is asked was passed over."""
        for call in ordered:
            yield call
            if call.state is State.WAITING:
                self._passed_over[call.id] = None

    def _awaits_copy(self, call: EngineCall) -> bool:
        """Whether the call waits for a copy that is on its way.

        An upload for its agent: the call takes it when it has come. Or what it computed before it was preempted, on its
        way to the host.
        """
        return bool(call.store_sources) or (bool(call.agent.uploads) and self._copies.uploading(call.agent))

    def _promised(self) -> int:
        """Blocks that calls lack which hold some and have not computed their prompts: no load may take them.

        A load holds its blocks without computing anything. If several took the room that the others need to go on,
        none of them could.
        """
        calls = (*self._loaded.values(), *self._prefilling)
        return sum(
            -(-call.num_prefill_tokens // self._block_tokens) - call.hold.num_blocks
            for call in calls
            if call.hold is not None
        )

    def _load(self, call: EngineCall, first: int, end: int, now_ps: int) -> None:
        self._copies.load(call, first, end, now_ps)
        self._loaded[call.id] = call
        self._passed_over.pop(call.id, None)
        self.growth_blocks += call.final_blocks - end
        self._taken_over(call, now_ps)

    def _start(
        self,
        call: EngineCall,
        hits: int,
        budget: int,
        now_ps: int,
        prefill: dict[EngineCall, int],
        finals: list[EngineCall],
    ) -> int:
        """Admit a call: it takes its hits and the blocks of its first chunk. How many tokens are computed."""
        if call.state is State.WAITING:
            call.hold = self._gpu.touch(call.path, hits)
            call.num_computed_tokens = hits * self._block_tokens
            self.growth_blocks += call.final_blocks - hits
            call.gpu_hit_tokens, call.host_hit_tokens = call.num_computed_tokens, 0
        call.state = State.RUNNING
        call.agent.waiting -= 1
        self._admissions += 1
        call.admission = self._admissions
        self.running[call.id] = call
        resumed = call.num_prefill_tokens if call.was_admitted else 0
        call.was_admitted = True
        self.report(e.CallAdmitted(now_ps / PS_PER_S, call.id, call.gpu_hit_tokens, call.host_hit_tokens, resumed))
        chunk = min(call.num_prefill_tokens - call.num_computed_tokens, self._most, budget)
        self._prefill(call, chunk, -(-(call.num_computed_tokens + chunk) // self._block_tokens) - hits, prefill, finals)
        self._taken_over(call, now_ps)
        return chunk

    def _taken_over(self, call: EngineCall, now_ps: int) -> None:
        """What was held for a call's agent is the call's own now."""
        agent = call.agent
        if agent.uploads:
            self._copies.taken(agent, call.arrived_ps, now_ps)
        self._copies.unpin(agent)

    # -- getting unstuck

    def is_idle(self) -> bool:
        """Whether calls wait and none runs."""
        return bool(self.waiting) and not self.running

    def is_starved(self) -> bool:
        """Whether none runs, and the calls that wait do not wait for a copy of their own."""
        if not self.is_idle():
            return False
        return not any(call.state is State.LOADING or self._awaits_copy(call) for call in self.waiting.values())

    def admits_anybody(self) -> bool:
        """Whether the plan admits a call that waits."""
        return next(self._candidates(), None) is not None

    def unload_last(self) -> bool:
        """The call that was loaded last gives its blocks up; they stay cached. False if there is none.

        It waits before all others, as a preempted one does.
        """
        if not self._loaded:
            return False
        _, call = self._loaded.popitem()
        assert call.hold is not None
        self.growth_blocks -= call.final_blocks - call.hold.num_blocks
        self._gpu.free(call.hold, call.agent.owner)
        call.hold = None
        call.state = State.WAITING
        call.num_computed_tokens = 0
        self._to_front(call)
        return True

    def _log(self, now_ps: int, prefill: dict[EngineCall, int]) -> None:
        assert self._step_log is not None
        tokens = {call.id: prefill.get(call, 1) for call in self.running.values() if call in prefill or call.decoding}
        self._step_log(Scheduled(now_ps, tokens, self._gpu.num_free_blocks, self._gpu.num_evicted_blocks))
