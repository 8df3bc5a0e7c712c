"""ThunderAgent: no more programs at once than fit into the GPU's memory; the others are paused as a whole.

Source: "ThunderAgent: A Simple, Fast and Program-Aware Agentic Inference System".

The rule. A program has one context, and is *reasoning* while a call of its waits or runs, *acting* from its call's end
until the next one. Every `period_s` the programs that are not paused are weighed:

    tokens of the reasoning ones + acting_weight x tokens of the acting ones - shared tokens + 100 for each program

If that is more than the GPU holds, acting programs are paused, the smallest first; if that is not enough, reasoning
ones are marked, the smallest first: a mark becomes a pause when the call has ended. If there is room, paused programs
are resumed as long as they fit: first those that were reasoning before and whose next call waits, then new ones, then
acting ones, each in ascending tokens. A paused program's calls are held back. What is evicted is the engine's business:
the paper's system stands in front of it and has no say in that.

What is left open, or differs here:

- A program is an agent: that is what has one context that grows and whose calls follow each other. An application with
  several agents is several programs; its context would be several contexts that share most of their tokens.
- A program is over when nothing says that its agent calls again (see `endings`), or with its application.
- Tokens of a reasoning program are its prompt; the 100 are for what it generates. Those of an acting one are prompt and
  answer.
- Shared tokens are what running calls share: the blocks that each needs up to its declared budget, in sum, less the
  blocks that they hold and will yet take together.
- A marked program counts as gone where others are to be marked, or the next weighing would mark another one for it;
  it takes room like any other where programs are resumed. When all fit again, it loses its mark.
- A new program starts between two weighings if nobody else is held back and it fits; a call of a program that is not
  paused is never held back.
- If every program that is not paused has left, the first one in the order of resumption goes on, whatever it takes: a
  program that is larger than the GPU allows could wait for ever.
- Waiting calls start as they came, and the first that does not fit blocks the rest, as in vLLM.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from enum import Enum
from itertools import count
from math import isfinite
from operator import itemgetter
from typing import ClassVar

from ...traces import events as e
from ...traces.apps import AgentId, AppId, CallId
from ...traces.arithmetic import div_ceil
from ...traces.errors import PolicyError
from ...traces.events import Request
from ..interface import Plan, View
from ..parts.dispatch import Handler, tell
from ..parts.returns import Returns

TOKENS_A_PROGRAM = 100  # published


class Stage(Enum):
    """What a program may do."""

    ACTIVE = 0
    MARKED = 1  # paused as soon as its call ends
    PAUSED = 2


class Program:
    """An agent: one context."""

    __slots__ = ("agent", "calls", "last", "new", "number", "reasoning", "stage", "tokens")

    def __init__(self, request: Request, number: int) -> None:
        self.agent = request.agent
        self.number = number  # programs that came before it
        self.calls: dict[CallId, None] = {}  # that have not ended
        self.last = request
        self.tokens = request.prompt_tokens
        self.reasoning = True
        self.new = True  # none of its calls has started
        self.stage = Stage.ACTIVE

    @property
    def resumption(self) -> tuple[int, int, int]:
        """Its place in the order of resumption: reasoning before, new, acting; ascending tokens; first come."""
        rank = 2 if not self.reasoning else 1 if self.new else 0
        return (rank, self.tokens, self.number)


class Programs:
    """Those that go on and those that are paused, and sums over them: nothing is added up anew, however many wait.

    A program is taken out before anything of it changes, and put in again afterwards.
    """

    def __init__(self) -> None:
        self.going_on: dict[AgentId, Program] = {}
        self._paused: list[tuple[tuple[int, int, int], Program]] = []  # by resumption; no two are equal in it
        self._paused_reasoning = 0
        self._reasoning_tokens = 0  # of those that go on
        self._acting_tokens = 0

    def __bool__(self) -> bool:
        return bool(self.going_on or self._paused)

    @property
    def queued(self) -> bool:
        """Whether a program is paused whose call waits."""
        return self._paused_reasoning > 0

    @property
    def first_paused(self) -> Program | None:
        """The first in the order of resumption."""
        return self._paused[0][1] if self._paused else None

    def paused(self) -> list[Program]:
        """In the order of resumption."""
        return [program for _, program in self._paused]

    def tokens(self, acting_weight: float) -> float:
        """What those that go on cost together."""
        own = TOKENS_A_PROGRAM * len(self.going_on)
        return self._reasoning_tokens + acting_weight * self._acting_tokens + own

    def put(self, program: Program) -> None:
        """Count a program as it is now."""
        if program.stage is Stage.PAUSED:
            insort(self._paused, (program.resumption, program))
            self._paused_reasoning += program.reasoning
        else:
            self.going_on[program.agent] = program
            self._count(program, 1)

    def take(self, program: Program) -> None:
        """Count it no longer."""
        if program.stage is Stage.PAUSED:
            del self._paused[bisect_left(self._paused, program.resumption, key=itemgetter(0))]
            self._paused_reasoning -= program.reasoning
        else:
            del self.going_on[program.agent]
            self._count(program, -1)

    def become(self, program: Program, stage: Stage) -> None:
        """Pause it, mark it, or let it go on."""
        self.take(program)
        program.stage = stage
        self.put(program)

    def _count(self, program: Program, sign: int) -> None:
        if program.reasoning:
            self._reasoning_tokens += sign * program.tokens
        else:
            self._acting_tokens += sign * program.tokens


class ThunderAgent:
    """Pauses whole agents until the contexts of the others fit on the GPU."""

    listens_to: ClassVar[frozenset[type]] = frozenset({e.CallArrived, e.CallPreempted, e.CallFinished, e.CallAborted})

    def __init__(self, period_s: float = 5.0, acting_weight: float = 1.0) -> None:
        if not (isfinite(period_s) and period_s > 0):
            raise PolicyError(f"thunderagent: option period_s: expected a number above 0, got {period_s!r}")
        if not (isfinite(acting_weight) and acting_weight >= 0):
            raise PolicyError(
                f"thunderagent: option acting_weight: expected a number at least 0, got {acting_weight!r}"
            )
        self._period_s = period_s
        self._acting_weight = acting_weight
        self._returns = Returns()
        self._numbers = count()  # of programs, as they come
        self._programs = Programs()  # that are not over
        self._of_agent: dict[AgentId, Program] = {}  # all of applications that go on
        self._over: dict[AgentId, Program] = {}  # of these, believed to be
        self._agents_of: dict[AppId, list[AgentId]] = {}
        self._stragglers: dict[CallId, Program] = {}  # calls of programs that seemed to be over with an earlier call
        self._preempted: dict[CallId, None] = {}  # calls that wait though they had started
        self._caller: dict[CallId, Program] = {}  # of the calls that have not ended
        self._next_s = 0.0  # when to weigh again
        self._handlers: Mapping[type, Handler] = {
            e.CallArrived: self._arrived,
            e.CallAdmitted: self._admitted,
            e.CallPreempted: self._was_preempted,
            e.CallFinished: self._finished,
            e.CallAborted: self._aborted,
            e.AppFinished: self._app_finished,
        }

    def plan(self, view: View) -> Plan:
        """Weigh the programs if it is time to; hold back the calls of those that are paused."""
        if not self._programs:
            self._next_s = view.now_s + self._period_s
        tell(view.news, self._handlers, view)
        if not self._programs:
            return Plan()
        if self._next_s <= view.now_s:
            self._weigh(view)
            self._next_s = view.now_s + self._period_s
        self._keep_going()
        return Plan(admit=self._admit(view), wake_at_s=self._next_s)

    def _admit(self, view: View) -> tuple[CallId, ...] | None:
        """Calls of programs that are not paused, and those that had started before; None if that is all of them."""
        waiting = view.waiting
        names = dict.fromkeys(self._preempted)
        names.update(dict.fromkeys(view.loading))
        for program in self._programs.going_on.values():
            names.update(program.calls)
        names.update({name: None for name, program in self._stragglers.items() if program.stage is not Stage.PAUSED})
        free = sorted((waiting[name].place, name) for name in names if name in waiting)
        return None if len(free) == len(waiting) else tuple([name for _, name in free])

    # -- weigh

    def _cost(self, program: Program) -> float:
        weight = 1.0 if program.reasoning else self._acting_weight
        return weight * program.tokens + TOKENS_A_PROGRAM

    def _room(self, view: View) -> float:
        """Tokens that the GPU holds beyond the programs that are not paused; negative: they are too many."""
        taken = self._programs.tokens(self._acting_weight)
        return view.gpu_blocks * view.block_tokens + _shared_tokens(view) - taken

    def _weigh(self, view: View) -> None:
        room = self._room(view)
        if room >= 0:
            self._resume(room)
            return
        going_on = self._programs.going_on.values()
        room += sum(self._cost(program) for program in going_on if program.stage is Stage.MARKED)
        active = [program for program in going_on if program.stage is Stage.ACTIVE]
        for program in sorted(active, key=lambda program: (program.reasoning, program.tokens, program.number)):
            if room >= 0:
                return
            room += self._cost(program)
            self._programs.become(program, Stage.MARKED if program.reasoning else Stage.PAUSED)

    def _resume(self, room: float) -> None:
        for program in self._programs.going_on.values():
            program.stage = Stage.ACTIVE  # the marked ones: they take their room already
        for program in self._programs.paused():
            if room < TOKENS_A_PROGRAM:
                return  # too little for any
            cost = self._cost(program)
            if cost <= room:
                room -= cost
                self._programs.become(program, Stage.ACTIVE)

    def _keep_going(self) -> None:
        """If all are paused, one goes on."""
        first = self._programs.first_paused
        if first is not None and not self._programs.going_on:
            self._programs.become(first, Stage.ACTIVE)

    # -- facts

    def _arrived(self, fact: e.CallArrived, view: View) -> None:
        request = fact.request
        program = self._of_agent.get(request.agent)
        if program is None:
            program = self._of_agent[request.agent] = Program(request, next(self._numbers))
            self._agents_of.setdefault(request.app, []).append(request.agent)
            if self._is_held_back(program, view):
                program.stage = Stage.PAUSED
        else:
            if self._over.pop(request.agent, None) is None:
                self._programs.take(program)
            self._returns.learn(program.last)
            program.last = request
            program.tokens = request.prompt_tokens
            program.reasoning = True
        self._programs.put(program)
        program.calls[request.id] = None
        self._caller[request.id] = program

    def _is_held_back(self, program: Program, view: View) -> bool:
        return self._programs.queued or self._cost(program) > self._room(view)

    def _admitted(self, fact: e.CallAdmitted, view: View) -> None:
        self._preempted.pop(fact.call, None)
        program = self._caller[fact.call]
        if program.new:
            counted = self._is_counted(program)
            if counted:
                self._programs.take(program)
            program.new = False
            if counted:
                self._programs.put(program)

    def _was_preempted(self, fact: e.CallPreempted, view: View) -> None:
        self._preempted[fact.call] = None

    def _finished(self, fact: e.CallFinished, view: View) -> None:
        program = self._left(fact.call)
        self._act(program, program.last.prompt_tokens + fact.output_tokens)
        if self._is_counted(program) and not self._returns.calls_again(program.last):
            self._programs.take(program)
            self._over[program.agent] = program
            self._stragglers.update(dict.fromkeys(program.calls, program))

    def _aborted(self, fact: e.CallAborted, view: View) -> None:
        program = self._left(fact.call)
        self._act(program, program.tokens)

    def _left(self, call: CallId) -> Program:
        self._preempted.pop(call, None)
        self._stragglers.pop(call, None)
        program = self._caller.pop(call)
        del program.calls[call]
        return program

    def _is_counted(self, program: Program) -> bool:
        """Whether its application goes on, and it is not believed to be over."""
        return self._of_agent.get(program.agent) is program and program.agent not in self._over

    def _act(self, program: Program, tokens: int) -> None:
        counted = self._is_counted(program)
        if counted:
            self._programs.take(program)
        program.tokens = tokens
        program.reasoning = False
        if program.stage is Stage.MARKED:
            program.stage = Stage.PAUSED
        if counted:
            self._programs.put(program)

    def _app_finished(self, fact: e.AppFinished, view: View) -> None:
        for agent in self._agents_of.pop(fact.app, ()):
            program = self._of_agent.pop(agent)
            if self._over.pop(agent, None) is None:
                self._programs.take(program)


def _shared_tokens(view: View) -> int:
    """Tokens that running calls hold in common, counted once less than there are holders."""
    size = view.block_tokens
    calls = [*view.running.values(), *view.loading.values()]
    alone = sum(div_ceil(call.request.prompt_tokens + call.request.max_output_tokens, size) for call in calls)
    together = view.gpu_blocks - view.free_blocks + view.growth_blocks
    return max(0, alone - together) * size
