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

from collections.abc import Callable, Mapping
from enum import Enum
from itertools import count
from math import isfinite
from typing import Any

from ..traces import events as e
from ..traces.apps import AgentId, CallId
from ..traces.errors import PolicyError
from ..traces.events import Request
from .endings import Endings
from .interface import Plan, View
from .news import tell

TOKENS_A_PROGRAM = 100  # published


class Stage(Enum):
    """What a program may do."""

    ACTIVE = 0
    MARKED = 1  # paused as soon as its call ends
    PAUSED = 2


class Program:
    """An agent: one context."""

    __slots__ = ("agent", "last", "new", "number", "reasoning", "stage", "tokens")

    def __init__(self, request: Request, number: int) -> None:
        self.agent = request.agent
        self.number = number  # programs that came before it
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


class ThunderAgent:
    """Pauses and resumes agents as wholes, so that the contexts of those that go on fit into the GPU's memory."""

    hears = frozenset({e.CallArrived, e.CallPreempted, e.CallFinished, e.CallAborted})

    def __init__(self, period_s: float = 5.0, acting_weight: float = 1.0) -> None:
        if not (isfinite(period_s) and period_s > 0):
            raise PolicyError(f"thunderagent: option period_s: expected a number above 0, got {period_s!r}")
        if not (isfinite(acting_weight) and acting_weight >= 0):
            raise PolicyError(
                f"thunderagent: option acting_weight: expected a number at least 0, got {acting_weight!r}"
            )
        self._period_s = period_s
        self._acting_weight = acting_weight
        self._endings = Endings()
        self._numbers = count()  # of programs, as they come
        self._programs: dict[AgentId, Program] = {}
        self._over: dict[AgentId, Program] = {}  # believed to be, of applications that go on
        self._caller: dict[CallId, Program] = {}  # of the calls that have not ended
        self._next_s = 0.0  # when to weigh again
        self._handlers: Mapping[type, Callable[[Any, View], None]] = {
            e.CallArrived: self._arrived,
            e.CallAdmitted: self._admitted,
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
        caller = self._caller
        free = [
            name
            for name, call in view.waiting.items()
            if caller[name].stage is not Stage.PAUSED or call.preemptions or call.loading
        ]
        return None if len(free) == len(view.waiting) else tuple(free)

    # -- weigh

    def _cost(self, program: Program) -> float:
        weight = 1.0 if program.reasoning else self._acting_weight
        return weight * program.tokens + TOKENS_A_PROGRAM

    def _room(self, view: View) -> float:
        """Tokens that the GPU holds beyond the programs that are not paused; negative: they are too many."""
        taken = sum(self._cost(program) for program in self._programs.values() if program.stage is not Stage.PAUSED)
        return view.gpu_blocks * view.block_tokens + _shared_tokens(view) - taken

    def _weigh(self, view: View) -> None:
        room = self._room(view)
        if room >= 0:
            self._resume(room)
            return
        room += sum(self._cost(program) for program in self._programs.values() if program.stage is Stage.MARKED)
        active = [program for program in self._programs.values() if program.stage is Stage.ACTIVE]
        for program in sorted(active, key=lambda program: (program.reasoning, program.tokens, program.number)):
            if room >= 0:
                return
            room += self._cost(program)
            program.stage = Stage.MARKED if program.reasoning else Stage.PAUSED

    def _resume(self, room: float) -> None:
        held = [program for program in self._programs.values() if program.stage is not Stage.ACTIVE]
        for program in sorted(held, key=lambda program: program.resumption):
            cost = self._cost(program) if program.stage is Stage.PAUSED else 0
            if cost <= room:
                room -= cost
                program.stage = Stage.ACTIVE

    def _keep_going(self) -> None:
        """If all are paused, one goes on."""
        programs = self._programs.values()
        if programs and all(program.stage is Stage.PAUSED for program in programs):
            min(programs, key=lambda program: program.resumption).stage = Stage.ACTIVE

    # -- facts

    def _arrived(self, fact: e.CallArrived, view: View) -> None:
        request = fact.request
        program = self._programs.get(request.agent)
        if program is None:
            program = self._over.pop(request.agent, None)
        if program is None:
            program = Program(request, next(self._numbers))
            if self._is_held_back(program, view):
                program.stage = Stage.PAUSED
        else:
            self._endings.learn(program.last)
            program.last = request
            program.tokens = request.prompt_tokens
            program.reasoning = True
        self._programs[request.agent] = program
        self._caller[request.id] = program

    def _is_held_back(self, program: Program, view: View) -> bool:
        others = self._programs.values()
        queued = any(other.stage is Stage.PAUSED and other.reasoning for other in others)
        return queued or self._cost(program) > self._room(view)

    def _admitted(self, fact: e.CallAdmitted, view: View) -> None:
        self._caller[fact.call].new = False

    def _finished(self, fact: e.CallFinished, view: View) -> None:
        program = self._caller.pop(fact.call)
        self._act(program, program.last.prompt_tokens + fact.output_tokens)
        if program.agent in self._programs and not self._endings.calls_again(program.last):
            self._over[program.agent] = self._programs.pop(program.agent)

    def _aborted(self, fact: e.CallAborted, view: View) -> None:
        program = self._caller.pop(fact.call)
        self._act(program, program.tokens)

    @staticmethod
    def _act(program: Program, tokens: int) -> None:
        program.tokens = tokens
        program.reasoning = False
        if program.stage is Stage.MARKED:
            program.stage = Stage.PAUSED

    def _app_finished(self, fact: e.AppFinished, view: View) -> None:
        for programs in (self._programs, self._over):
            for agent in [agent for agent, program in programs.items() if program.last.app == fact.app]:
                del programs[agent]


def _shared_tokens(view: View) -> int:
    """Tokens that running calls hold in common, counted once less than there are holders."""
    size = view.block_tokens
    calls = list(view.running.values()) + [call for call in view.waiting.values() if call.loading]
    alone = sum(-(-(call.request.prompt_tokens + call.request.max_output_tokens) // size) for call in calls)
    together = view.gpu_blocks - view.free_blocks + view.growth_blocks
    return max(0, alone - together) * size
