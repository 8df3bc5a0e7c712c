"""vLLM V1's scheduler: which calls compute how many tokens in the next step, which are admitted, which are preempted.

Running calls come first, in order of admission; then waiting calls are admitted while tokens, slots and memory last.
The rules are those of `Scheduler` and `AsyncScheduler` in vLLM 0.26 to 0.33, and tests hold every step to theirs; what
versions have otherwise is in `machine/engine_versions.py`. vLLM schedules one iteration; here it is a stretch of as
many as pass before anything can change.
"""

from __future__ import annotations

from collections.abc import Callable

from ....policies.interface import NATIVE, Hits, Plan
from ....traces import events as e
from ....traces.apps import CallId
from ....traces.events import Fact
from ...machine.engine_versions import PASSED_OVER_CALLS_KEEP_THEIR_PLACE
from ...machine.machine import Machine
from ...machine.timing import Timing, seconds
from ..memory.block_pool import BlockPool
from ..memory.context_tree import changes
from ..memory.copies import Copies
from ..requests import EngineCall, State
from .batch import DecodeBatch
from .prefills import Prefills
from .running_calls import RunningCalls
from .step import Scheduled, Step, StepLog
from .waiting_queue import WaitingQueue
from .write_through import HostWriter


class Scheduler:
    """One engine's calls, waiting and running, and what a step does to them. It has no clock: it is told the time."""

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
        self._budget_tokens = machine.step_budget_tokens
        self._one_by_one = one_by_one
        self._step_log = step_log
        self._gpu = gpu
        self._host = host
        self._copies = copies
        self._counts_admissions = timing.host_call_ps > 0
        self.batch = DecodeBatch(timing, self._block_tokens)
        self.waiting = WaitingQueue(keeps_places=machine.has(PASSED_OVER_CALLS_KEEP_THEIR_PLACE))
        self._prefills = Prefills(machine, gpu, self.batch)
        self.running = self._running_calls()
        self._plan: Plan = NATIVE
        self._refused: tuple[int, int, int, int] | None = None  # the situation in which nobody could be admitted
        self.blocked = False  # nobody can be admitted before something changes that is a boundary anyway
        self.preempted = False  # whether the latest schedule took room from a running call
        self.write_through = HostWriter(copies, machine.block_tokens)
        self._admissions = 0
        self.report: Callable[[Fact], None]

    def _running_calls(self) -> RunningCalls:
        return RunningCalls(self._machine, self._gpu, self._copies, self.batch, self._prefills, self.waiting)

    @property
    def plan(self) -> Plan:
        """What the policy wants."""
        return self._plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        self._plan = plan
        self._refused = None

    @property
    def heeds_arrivals(self) -> bool:
        """Whether the next schedule is another one if a call arrives before it."""
        return self._prefills.alone or (not self.blocked and self._plan.admit is None)

    # -- what a policy asks

    def hits(self, name: CallId) -> Hits:
        """What is cached of a waiting call's prompt. The same object again, while nothing near it has changed."""
        call = self.waiting.calls[name]
        if call.hold is not None:
            return Hits(call.hold.num_blocks, 0, 0)
        count = changes(call.path)
        if call.hits_changes != count:
            call.hits_changes = count
            found = self.look_up(call)
            if found != call.hits:
                call.hits = found
        return call.hits

    def look_up(self, call: EngineCall) -> Hits:
        """What is cached now of the prompt of a call that waits without blocks."""
        gpu, idle = self._gpu.cached_prefix(call.path, call.most_hit_blocks)
        return Hits(gpu, idle, self._copies.host_hits(call, gpu) - gpu)

    def shared_blocks(self, name: CallId) -> int:
        """Blocks of a waiting call's prompt that running calls hold."""
        call = self.waiting.calls[name]
        if call.hold is not None:
            return self._gpu.held_prefix(call.path, call.most_hit_blocks)
        hits = self.hits(name)
        return hits.gpu_blocks - hits.idle_blocks

    # -- a step is scheduled

    def schedule(self, now_ps: int, from_ps: int, single: bool) -> Step | None:
        """One schedule of vLLM's: running calls, then waiting ones. Nothing scheduled: None.

        `from_ps`: when the step will start. `single`: whether it is to be one iteration, because of news that comes
        with the end of the step before it.
        """
        waiting = self.waiting.calls
        step = Step()
        batch, prefills = self.batch, self._prefills
        admissions = self._admissions
        prefills.limit_chunks(len(self.running.calls) + len(waiting))
        self.preempted = self.running.schedule(step, now_ps, self._plan.preempt)
        budget_tokens = self._budget_tokens - batch.num_calls
        for chunk_tokens in step.prefill_tokens.values():
            budget_tokens -= chunk_tokens
        if self.preempted or not budget_tokens or not waiting:
            self.blocked = False
        elif self._refused != self._situation():
            self._admit(step, now_ps, budget_tokens)
        if not batch.num_calls and not step.prefill_tokens:
            return None
        admitted = self._admissions - admissions
        single = single or self.preempted or self._one_by_one or (admitted > 0 and self._counts_admissions)
        self._close(step, now_ps, from_ps, admitted, single)
        return step

    def _close(self, step: Step, now_ps: int, from_ps: int, admitted: int, single: bool) -> None:
        """Everybody has got tokens: how many iterations the step has, and what they cost."""
        batch, prefills, finals = self.batch, step.prefill_tokens, step.finals
        for call in finals:
            call.last_iteration = batch.iteration + call.output_tokens - 1 - call.generated_tokens
        if self._step_log is not None:
            self._log(self._step_log, step, now_ps)
        extent = self._plan.write_through if prefills else None
        if not (single or finals or len(prefills) > 1 or extent):
            step.iterations = self._stretch(step)
        step.pace = batch.pace(prefills, admitted=admitted, completed=len(finals))
        if extent:
            self.write_through.computed(prefills, extent, now_ps, from_ps + step.pace.first_ps)

    def _stretch(self, step: Step) -> int:
        """How many iterations go by before anything changes: decoding, or whole chunks of one prompt beside it."""
        most = self.batch.until_end()
        if step.prefill_tokens:
            chunks = self._prefills.begin_stretch(step, others_wait=bool(self.waiting.calls))
            if not chunks:
                return 1
            most = chunks if most is None else min(most, chunks)
            self.blocked = self._prefills.fill_the_step(step)  # until then there is no token left for anybody
            self._refused = None
        assert most is not None
        return self.batch.until_full(self._gpu.num_free_blocks, self.batch.until_turn(most))

    # -- a step is on its way, or over

    def advance(self, step: Step) -> tuple[list[EngineCall], list[EngineCall]]:
        """The step's iterations are all scheduled: move the calls on. Who got a first token, who a last one."""
        batch = self.batch
        if batch.chunk is not None:
            self._prefills.end_stretch(step)
        finished = batch.advance(step.iterations)
        self.running.resume()
        for call, tokens in step.prefill_tokens.items():
            call.num_computed_tokens += tokens * step.iterations
        firsts = []
        for call in step.finals:
            if not call.generated_tokens:
                firsts.append(call)
            if call.last_iteration < batch.iteration:
                finished.append(call)
            else:
                batch.join(call, call.num_prefill_tokens)
        return firsts, finished

    def finish(self, call: EngineCall) -> None:
        """A call's last token came: it gives up its blocks, full ones known. Its context is its agent's latest."""
        agent = call.agent
        agent.context = call.context
        agent.context_blocks = (call.prompt_tokens + call.output_tokens - 1) // self._block_tokens
        self._copies.refusing = False
        if self._plan.write_through:
            self.write_through.finished(call, self._plan.write_through)
        if call.state is State.RUNNING:
            del self.running.calls[call.id]
            self.running.free(call, agent.context_blocks)
        else:  # preempted while its last token was on its way
            self.waiting.remove(call.id)
            agent.waiting -= 1

    def store_ended(self, now_ps: int, from_ps: int) -> None:
        """Write through what the calls leave that have ended since this was last asked."""
        self.write_through.store_ended(self._plan.write_through, now_ps, from_ps)

    # -- admission

    def _admit(self, step: Step, now_ps: int, budget_tokens: int) -> None:
        """Start waiting calls while tokens, places and memory last."""
        self.blocked = False
        skip, through = self._plan.skip, self._plan.write_through
        copies, running, max_running = self._copies, self.running.calls, self._machine.max_running
        started = []
        for call in self.waiting.candidates(self._plan.admit):
            if len(running) >= max_running:
                self.blocked = True
                break
            if call.state is State.LOADING or self._awaits_copy(call):
                continue
            if call.state is State.WAITING:
                hits, idle = self._find(call)
                loads_to = copies.host_hits(call, hits)
                if through and copies.coming(call, loads_to):
                    continue
                if loads_to > hits:
                    if copies.under_way(call, hits, loads_to):
                        continue
                    if self._can_load(call, hits, idle, loads_to):
                        self._load(call, hits, loads_to, now_ps)
                        continue
                    fits = False
                else:
                    fits = self._fits(call, hits, idle, budget_tokens)
            else:
                assert call.hold is not None
                hits = call.hold.num_blocks
                fits = self._fits(call, hits, 0, budget_tokens)
            if not fits:
                if skip:
                    continue
                self.blocked = True
                break
            budget_tokens -= self._start(step, call, hits, now_ps, budget_tokens)
            started.append(call.id)
            if not budget_tokens:
                break
        for name in started:
            self.waiting.remove(name)
        self._refused = None if started else self._situation()

    def _find(self, call: EngineCall) -> tuple[int, int]:
        """How many blocks of a call's prompt are cached, and how many of these are idle."""
        return self._gpu.cached_prefix(call.path, call.most_hit_blocks)

    def _fits(self, call: EngineCall, hits: int, idle: int, budget_tokens: int) -> bool:
        """Whether there is room for a call's whole prompt behind its hits, of which so many blocks are idle."""
        return call.prefill_blocks - hits + idle <= self._gpu.num_free_blocks

    def _can_load(self, call: EngineCall, hits: int, idle: int, end: int) -> bool:
        """Whether there is room for a call's whole prompt, and to load its blocks up to `end` now."""
        free_blocks = self._gpu.num_free_blocks
        if call.prefill_blocks - hits + idle > free_blocks:
            return False
        return end - hits + idle <= free_blocks - self._promised()

    def _situation(self) -> tuple[int, int, int, int]:
        """While this is the same, under the same plan and with no more room, whoever was refused is refused again."""
        return self._gpu.version, self._host.version, len(self.waiting.calls), len(self.running.calls)

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
        calls = (*self.waiting.loaded.values(), *self._prefills.calls)
        return sum(call.prefill_blocks - call.hold.num_blocks for call in calls if call.hold is not None)

    def _load(self, call: EngineCall, first: int, end: int, now_ps: int) -> None:
        self._copies.load(call, first, end, now_ps)
        self.waiting.load(call)
        self.running.growth_blocks += call.final_blocks - end
        self._taken_over(call, now_ps)

    def _start(self, step: Step, call: EngineCall, hits: int, now_ps: int, budget_tokens: int) -> int:
        """Admit a call: it takes its hits and the blocks of its first chunk. How many tokens are computed."""
        if call.state is State.WAITING:
            self._hold_hits(call, hits)
            call.num_computed_tokens = hits * self._block_tokens
            call.gpu_hit_tokens, call.host_hit_tokens = call.num_computed_tokens, 0
        call.state = State.RUNNING
        call.agent.waiting -= 1
        self._admissions += 1
        call.admission = self._admissions
        self.running.calls[call.id] = call
        resumed = call.num_prefill_tokens if call.was_admitted else 0
        call.was_admitted = True
        self.report(e.CallAdmitted(seconds(now_ps), call.id, call.gpu_hit_tokens, call.host_hit_tokens, resumed))
        chunk_tokens = self._compute_first(step, call, budget_tokens)
        self._taken_over(call, now_ps)
        return chunk_tokens

    def _hold_hits(self, call: EngineCall, hits: int) -> None:
        call.hold = self._gpu.touch(call.path, hits)
        self.running.growth_blocks += call.final_blocks - hits

    def _compute_first(self, step: Step, call: EngineCall, budget_tokens: int) -> int:
        """The first chunk of a call that has just been admitted. Its tokens."""
        chunk_tokens, blocks = self._prefills.chunk(call, budget_tokens)
        self._prefills.compute(step, call, chunk_tokens, blocks)
        self.running.growth_blocks -= blocks
        return chunk_tokens

    def _taken_over(self, call: EngineCall, now_ps: int) -> None:
        """What was held for a call's agent is the call's own now."""
        agent = call.agent
        if agent.uploads:
            self._copies.taken(agent, call.arrived_ps, now_ps)
        self._copies.unpin(agent)

    # -- getting unstuck

    def is_idle(self) -> bool:
        """Whether calls wait and none runs."""
        return bool(self.waiting.calls) and not self.running.calls

    def is_starved(self) -> bool:
        """Whether none runs, and the calls that wait do not wait for a copy of their own."""
        if not self.is_idle():
            return False
        return not any(call.state is State.LOADING or self._awaits_copy(call) for call in self.waiting.calls.values())

    def why_nobody_starts(self) -> str:
        """The first call that waits does not fit, even into an empty cache."""
        call = next(iter(self.waiting.calls.values()))
        blocks = f"{self._gpu.num_blocks} blocks of {self._block_tokens}"
        return f"call {call.id!r}: {call.num_prefill_tokens} tokens do not fit into {blocks}"

    def admits_anybody(self) -> bool:
        """Whether the plan admits a call that waits."""
        return next(self.waiting.candidates(self._plan.admit), None) is not None

    def unload_last(self) -> bool:
        """The call that was loaded last gives its blocks up; they stay cached. False if there is none.

        It waits before all others, as a preempted one does.
        """
        if not self.waiting.loaded:
            return False
        _, call = self.waiting.loaded.popitem()
        assert call.hold is not None
        self.running.growth_blocks -= call.final_blocks - call.hold.num_blocks
        self._gpu.free(call.hold, call.agent.owner)
        call.hold = None
        call.state = State.WAITING
        call.num_computed_tokens = 0
        self.waiting.to_front(call)
        return True

    def _log(self, log: StepLog, step: Step, now_ps: int) -> None:
        prefills = step.prefill_tokens
        tokens = {
            call.id: prefills.get(call, 1) for call in self.running.calls.values() if call in prefills or call.decoding
        }
        log(Scheduled(now_ps, tokens, self._gpu.num_free_blocks, self._gpu.num_evicted_blocks))
