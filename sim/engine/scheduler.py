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

from ...policies.interface import NATIVE, Extent, Hits, Plan
from ...traces import events as e
from ...traces.apps import CallId
from ...traces.events import Fact
from ..machine.machine import PS_PER_S, Machine, Timing
from .batch import Batch
from .memory.block_pool import KvPool
from .memory.copies import Copies
from .pace import Pace
from .requests import Job, State


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

    def __init__(self, pace: Pace, iterations: int, prefill: dict[Job, int], finals: list[Job]) -> None:
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
        gpu: KvPool,
        host: KvPool,
        copies: Copies,
        *,
        one_by_one: bool,
        step_log: StepLog | None,
    ) -> None:
        self._machine = machine
        self._size = machine.block_tokens
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
        self.batch = Batch(timing, self._size)
        self.waiting: OrderedDict[CallId, Job] = OrderedDict()  # one that lost its blocks goes to its front
        self._passed_over: dict[CallId, None] = {}  # up to 0.30: those at the front of the waiting that stay there
        self.running: dict[CallId, Job] = {}
        self._loaded: dict[CallId, Job] = {}  # of the waiting: those with blocks, in the order of their loads
        # Calls in the middle of their prompts, in order of admission. Nobody was admitted behind one that got less than
        # its share, and no other call asks for more than in the step before. So at most the last one, which is then
        # the last of all running calls, gets what the others leave; and everybody gets something.
        self._prefilling: dict[Job, None] = {}
        self._plan: Plan = NATIVE
        self._refused: tuple[int, int, int, int] | None = None  # the situation in which nobody could be admitted
        self.blocked = False  # nobody can be admitted before something changes that is a boundary anyway
        self._alone = False  # a prompt takes more than the threshold, until there is somebody to starve
        self.preempted = False  # whether the latest schedule took room from a running call
        self.ended: list[Job] = []  # calls whose contexts are to be written through
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

    def add(self, job: Job) -> None:
        """A call arrived."""
        self.waiting[job.id] = job
        job.agent.waiting += 1

    @property
    def heeds_arrivals(self) -> bool:
        """Whether the next schedule is another one if a call arrives before it."""
        return self._alone or (not self.blocked and self._plan.admit is None)

    # -- what a policy asks

    def hits(self, call: CallId) -> Hits:
        """What is cached of a waiting call's prompt."""
        job = self.waiting[call]
        if job.hold is not None:
            return Hits(job.hold.blocks, 0, 0)
        gpu, idle = self._gpu.hits(job.path, (job.target - 1) // self._size)
        return Hits(gpu, idle, self._copies.host_hits(job, gpu) - gpu)

    def shared_blocks(self, call: CallId) -> int:
        """Blocks of a waiting call's prompt that running calls hold."""
        job = self.waiting[call]
        return self._gpu.held(job.path, (job.target - 1) // self._size)

    # -- a step is scheduled

    def schedule(self, now: int, from_ps: int, single: bool) -> Step | None:
        """One schedule of vLLM's: running calls, then waiting ones. Nothing scheduled: None.

        `from_ps`: when the step will start. `single`: whether it is to be one iteration, because of news that comes
        with the end of the step before it.
        """
        batch = self.batch
        need = batch.needs()
        prefill: dict[Job, int] = {}
        finals: list[Job] = []
        preempted = False
        admissions = self._admissions
        if self._threshold:
            self._set_most()
        chunks = self._chunks() if self._prefilling else ()
        needed = need
        for _, _, blocks in chunks:
            needed += blocks
        if needed <= self._gpu.free:
            if need:
                self._gpu.allocate(need)
                self.growth_blocks -= need
            for job, chunk, blocks in chunks:
                self._prefill(job, chunk, blocks, prefill, finals)
        else:
            preempted = self._grow_one_by_one(now, prefill, finals)
        budget = self._budget - batch.calls
        for chunk in prefill.values():
            budget -= chunk
        self.preempted = preempted
        if preempted or not budget or not self.waiting:
            self.blocked = False
        elif self._refused != self._situation():
            self._admit(now, budget, prefill, finals)
        admitted = self._admissions - admissions
        single = single or preempted or self._one_by_one or (admitted > 0 and self._counts_admissions)
        return self._close(now, from_ps, prefill, finals, admitted, single)

    def _close(
        self, now: int, from_ps: int, prefill: dict[Job, int], finals: list[Job], admitted: int, single: bool
    ) -> Step | None:
        batch = self.batch
        if not batch.calls and not prefill:
            return None
        tokens = attended = 0
        for job, chunk in prefill.items():
            tokens += chunk
            attended += chunk * job.computed + chunk * (chunk + 1) // 2
        for job in finals:
            job.last_iteration = batch.iteration + job.output_tokens - 1 - (job.target - job.prompt_tokens)
        if self._step_log is not None:
            self._log(now, prefill)
        through = self._plan.write_through if prefill else None
        iterations = 1 if single or finals or len(prefill) > 1 or through else self._stretch(prefill)
        chunk = tokens if batch.chunk else 0
        pace = batch.pace(tokens, attended, chunk, admitted=admitted, completed=len(finals))
        if through:
            self._write_through(through, prefill, now, from_ps + pace.first)
        return Step(pace, iterations, prefill, finals)

    def _write_through(self, extent: Extent, prefill: Mapping[Job, int], now: int, end_ps: int) -> None:
        """When the step ends that computes these prompts' next tokens, their full blocks are copied to the host."""
        for job, chunk in prefill.items():
            upto = job.computed + chunk
            if extent == "prompts":
                upto = min(upto, job.prompt_tokens)
            if upto // self._size > job.stored:
                self._copies.store(job, upto // self._size, now, end_ps)

    def store_ended(self, now: int, from_ps: int) -> None:
        """Write through what the calls leave that have `ended` since this was last asked."""
        ended, self.ended = self.ended, []
        extent = self._plan.write_through
        if extent is None:
            return
        for job in ended:
            self._copies.store_rest(job, self._to_store(job, extent), now, from_ps)

    def _to_store(self, job: Job, extent: Extent) -> int:
        """How many blocks of a call that has ended are written through."""
        tokens = job.prompt_tokens if extent == "prompts" else job.prompt_tokens + job.output_tokens - 1
        return tokens // self._size

    def _stretch(self, prefill: dict[Job, int]) -> int:
        """How many iterations go by before anything changes: decoding, or whole chunks of one prompt beside it."""
        batch = self.batch
        most = batch.until_end()
        for job, chunk in prefill.items():
            full = batch.calls + chunk == self._budget
            if not full and (chunk < self._most or self.waiting):  # who waits may hit what an iteration computes
                return 1
            chunks = (job.target - job.computed - 1) // chunk  # all but the last one, which leaves room for other calls
            most = chunks if most is None else min(most, chunks)
            batch.chunk = (job.computed, chunk)
            self.blocked = full  # until then there is no token left for anybody
            self._refused = None
        assert most is not None
        return batch.until_full(self._gpu.free, most)

    def _prefill(self, job: Job, chunk: int, blocks: int, prefill: dict[Job, int], finals: list[Job]) -> None:
        """Compute the next tokens of a running call's prompt. Its full blocks can be hit from this moment on."""
        hold = job.hold
        assert hold is not None
        self._gpu.take(hold, blocks)
        self.growth_blocks -= blocks
        upto = job.computed + chunk
        self._gpu.register(hold, job.path, upto // self._size)
        prefill[job] = chunk
        if upto == job.target:
            finals.append(job)
            self._prefilling.pop(job, None)
        else:
            self._prefilling[job] = None

    def _set_most(self) -> None:
        """A long prompt is cut so that it starves nobody of tokens; one that is alone has nobody to starve."""
        self._alone = not self._as_0_30 and len(self.running) + len(self.waiting) == 1
        self._most = self._budget if self._alone else min(self._budget, self._threshold)

    def _chunks(self) -> list[tuple[Job, int, int]]:
        """Of each call in the middle of its prompt: the tokens that it computes next, and the blocks for them."""
        left = self._budget - self.batch.calls
        chunks = []
        for job in self._prefilling:
            chunk, blocks = self._chunk(job, left)
            left -= chunk
            chunks.append((job, chunk, blocks))
        return chunks

    def _chunk(self, job: Job, budget: int) -> tuple[int, int]:
        chunk = min(job.target - job.computed, self._most, budget)
        return chunk, -(-(job.computed + chunk) // self._size) - -(-job.computed // self._size)

    def _grow_one_by_one(self, now: int, prefill: dict[Job, int], finals: list[Job]) -> bool:
        """Give each running call the blocks that it needs now, in their order; preempt where there are none."""
        running = list(self.running.values())
        budget = self._budget
        preempted = False
        at = 0
        while at < len(running):
            job = running[at]
            if job in self._prefilling:
                tokens, blocks = self._chunk(job, budget)
            elif job.decoding:
                tokens, blocks = 1, 0 if self.batch.computed(job) % self._size else 1
            else:
                tokens = blocks = 0  # its last token is on its way
            while blocks > self._gpu.free:
                victim = self._victim(running, min(at + 1, len(running) - 1))
                running.remove(victim)
                self._preempt(victim, now)
                preempted = True
                if victim is job:
                    break
            else:
                at += 1
                budget -= tokens
                if job in self._prefilling:
                    self._prefill(job, tokens, blocks, prefill, finals)
                else:
                    self._gpu.allocate(blocks)
                    self.growth_blocks -= blocks
        return preempted

    def _victim(self, running: list[Job], first: int) -> Job:
        """Who of the running calls from `first` on gives way."""
        if self._plan.preempt:
            by_id = {job.id: job for job in running[first:]}
            for name in self._plan.preempt:
                if name in by_id:
                    return by_id[name]
        return running[-1]

    def _preempt(self, job: Job, now: int) -> None:
        """A running call loses its blocks and waits again, before all others."""
        known = job.computed
        if job in self._prefilling:
            del self._prefilling[job]
        else:
            if job.decoding:
                self.batch.leave(job)
            # with a step in flight, the token of the last slot is not known yet
            known = job.computed - self.lag if job.computed > job.target else job.computed
            job.target = job.computed + 1
        generated = job.target - job.prompt_tokens
        del self.running[job.id]
        self._release(job, known // self._size)
        job.state = State.WAITING
        job.computed = 0
        job.agent.waiting += 1
        self.waiting[job.id] = job
        self._to_front(job)
        if self._gpu.kept:
            self._copies.refusing = True
        self.report(e.CallPreempted(now / PS_PER_S, job.id, generated))

    def _to_front(self, job: Job) -> None:
        """A call waits before all others, but for those that stay in front of it."""
        self.waiting.move_to_end(job.id, last=False)
        for name in reversed(self._passed_over):
            self.waiting.move_to_end(name, last=False)

    # -- a step is on its way, or over

    def advance(self, step: Step) -> tuple[list[Job], list[Job]]:
        """The step's iterations are all scheduled: move the calls on. Who got a first token, who a last one."""
        batch = self.batch
        if batch.chunk is not None:
            self._book_chunks(step)
        finished = batch.advance(step.iterations)
        for job, tokens in step.prefill.items():
            job.computed += tokens * step.iterations
        firsts = []
        for job in step.finals:
            if job.target - job.prompt_tokens == 0:
                firsts.append(job)
            if job.last_iteration < batch.iteration:
                finished.append(job)
            else:
                batch.join(job, job.target)
        return firsts, finished

    def _book_chunks(self, step: Step) -> None:
        """A stretch of chunks is over: its later ones have their blocks, too, and can be hit."""
        self.batch.chunk = None
        for job, chunk in step.prefill.items():
            hold = job.hold
            assert hold is not None
            upto = job.computed + step.iterations * chunk
            hold.blank += -(-upto // self._size) - hold.blocks
            self._gpu.register(hold, job.path, upto // self._size)

    def finish(self, job: Job) -> None:
        """A call's last token came: it gives up its blocks, full ones known. Its context is its agent's latest."""
        agent = job.agent
        agent.path = job.path
        agent.context_blocks = (job.prompt_tokens + job.output_tokens - 1) // self._size
        self._copies.refusing = False
        if self._plan.write_through:
            self.ended.append(job)
            self._copies.used(job, self._to_store(job, self._plan.write_through))
        if job.state is State.RUNNING:
            del self.running[job.id]
            self._release(job, agent.context_blocks)
        else:  # preempted while its last token was on its way
            del self.waiting[job.id]
            self._passed_over.pop(job.id, None)
            agent.waiting -= 1

    def _release(self, job: Job, registered_blocks: int) -> None:
        """A running call gives up its blocks; `registered_blocks` of them are full and known."""
        hold = job.hold
        assert hold is not None
        held = -(-job.computed // self._size)
        hold.blank = held - hold.registered
        self._gpu.register(hold, job.path, registered_blocks)
        self._gpu.release(hold, job.agent.owner)
        if job.stores:
            self._copies.stops(job)
        self.growth_blocks -= job.final_blocks - held
        job.hold = None

    # -- admission

    def _admit(self, now: int, budget: int, prefill: dict[Job, int], finals: list[Job]) -> None:
        """Start waiting calls while tokens, places and memory last."""
        self.blocked = False
        skip, through = self._plan.skip, self._plan.write_through
        before = budget
        started = []
        for job in self._candidates():
            if len(self.running) >= self._machine.max_running:
                self.blocked = True
                break
            if job.state is State.LOADING or self._awaits_copy(job):
                continue
            if job.state is State.WAITING:
                hits, idle = self._gpu.hits(job.path, (job.target - 1) // self._size)
                fits = -(-job.target // self._size) - hits + idle <= self._gpu.free
                loads_to = self._copies.host_hits(job, hits)
                if through and self._copies.coming(job, loads_to):
                    continue
                if loads_to > hits:
                    if self._copies.under_way(job, hits, loads_to):
                        continue
                    if fits and loads_to - hits + idle <= self._gpu.free - self._promised():
                        self._load(job, hits, loads_to, now)
                        continue
                    fits = False
            else:
                assert job.hold is not None
                hits = job.hold.blocks
                fits = -(-job.target // self._size) - hits <= self._gpu.free
            if not fits:
                if skip:
                    continue
                self.blocked = True
                break
            budget -= self._start(job, hits, budget, now, prefill, finals)
            started.append(job.id)
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

    def _candidates(self) -> Iterator[Job]:
        """Waiting calls in the order in which they may start. Only as many as are asked for: there may be thousands."""
        waiting = self.waiting
        if self._plan.admit is not None:
            return (waiting[name] for name in self._plan.admit if name in waiting)
        ordered: Iterator[Job] = iter(waiting.values())
        if self._loaded:
            ordered = chain(self._loaded.values(), (job for job in waiting.values() if job.state is State.WAITING))
        return self._noting_passed_over(ordered) if self._as_0_30 else ordered

    def _noting_passed_over(self, ordered: Iterator[Job]) -> Iterator[Job]:
        """The same calls. Who has been asked and is still as it was when the next one is asked was passed over."""
        for job in ordered:
            yield job
            if job.state is State.WAITING:
                self._passed_over[job.id] = None

    def _awaits_copy(self, job: Job) -> bool:
        """Whether the call waits for a copy that is on its way.

        An upload for its agent: the call takes it when it has come. Or what it computed before it was preempted, on its
        way to the host.
        """
        return bool(job.stores) or (bool(job.agent.uploads) and self._copies.uploading(job.agent))

    def _promised(self) -> int:
        """Blocks that calls lack which hold some and have not computed their prompts: no load may take them.

        A load holds its blocks without computing anything. If several took the room that the others need to go on,
        none of them could.
        """
        jobs = (*self._loaded.values(), *self._prefilling)
        return sum(-(-job.target // self._size) - job.hold.blocks for job in jobs if job.hold is not None)

    def _load(self, job: Job, first: int, end: int, now: int) -> None:
        self._copies.load(job, first, end, now)
        self._loaded[job.id] = job
        self._passed_over.pop(job.id, None)
        self.growth_blocks += job.final_blocks - end
        self._taken_over(job, now)

    def _start(self, job: Job, hits: int, budget: int, now: int, prefill: dict[Job, int], finals: list[Job]) -> int:
        """Admit a call: it takes its hits and the blocks of its first chunk. How many tokens are computed."""
        if job.state is State.WAITING:
            job.hold = self._gpu.open(job.path, hits)
            job.computed = hits * self._size
            self.growth_blocks += job.final_blocks - hits
            job.gpu_hit_tokens, job.host_hit_tokens = job.computed, 0
        job.state = State.RUNNING
        job.agent.waiting -= 1
        self._admissions += 1
        job.order = self._admissions
        self.running[job.id] = job
        resumed = job.target if job.started else 0
        job.started = True
        self.report(e.CallAdmitted(now / PS_PER_S, job.id, job.gpu_hit_tokens, job.host_hit_tokens, resumed))
        chunk = min(job.target - job.computed, self._most, budget)
        self._prefill(job, chunk, -(-(job.computed + chunk) // self._size) - hits, prefill, finals)
        self._taken_over(job, now)
        return chunk

    def _taken_over(self, job: Job, now: int) -> None:
        """What was held for a call's agent is the call's own now."""
        agent = job.agent
        if agent.uploads:
            self._copies.taken(agent, job.arrived_ps, now)
        self._copies.unpin(agent)

    # -- getting unstuck

    def is_idle(self) -> bool:
        """Whether calls wait and none runs."""
        return bool(self.waiting) and not self.running

    def is_starved(self) -> bool:
        """Whether none runs, and the calls that wait do not wait for a copy of their own."""
        if not self.is_idle():
            return False
        return not any(job.state is State.LOADING or self._awaits_copy(job) for job in self.waiting.values())

    def admits_anybody(self) -> bool:
        """Whether the plan admits a call that waits."""
        return next(self._candidates(), None) is not None

    def unload_last(self) -> bool:
        """The call that was loaded last gives its blocks up; they stay cached. False if there is none.

        It waits before all others, as a preempted one does.
        """
        if not self._loaded:
            return False
        _, job = self._loaded.popitem()
        assert job.hold is not None
        self.growth_blocks -= job.final_blocks - job.hold.blocks
        self._gpu.release(job.hold, job.agent.owner)
        job.hold = None
        job.state = State.WAITING
        job.computed = 0
        self._to_front(job)
        return True

    def _log(self, now: int, prefill: dict[Job, int]) -> None:
        assert self._step_log is not None
        tokens = {job.id: prefill.get(job, 1) for job in self.running.values() if job in prefill or job.decoding}
        self._step_log(Scheduled(now, tokens, self._gpu.free, self._gpu.evicted))
