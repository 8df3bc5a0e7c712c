"""InferCept: a stalled agent's cache is preserved, swapped or discarded, whichever wastes the least memory.

Reyna Abhyankar and others, "InferCept: Efficient Intercept Support for Augmented Large Language Model Inference", ICML
2024. Waste is memory held for nothing times the time for which it is held, here in token-seconds. Of a context of `c`
tokens whose tool is estimated to take `g` seconds,

    W_preserve = g * c
    W_discard  = f(S) * h * n * (n + 1) / 2  +  f(h) * n * C_running  +  f(r + l) * c + f(l) * C_running

The second is its recomputation in chunks: `r` running calls leave `h = max(S - r, 1)` of the `S` tokens with which an
iteration is saturated, so there are `n = ceil(c / h) - 1` whole chunks and a last one of `l = c - n * h` tokens. Each
holds what is recomputed so far, and delays the running calls with their `C_running` tokens. An iteration of x tokens
takes `f(x) = (a * x + c0) / 1000` seconds, `a` and `c0` in ms. What can be copied while iterations go on anyway wastes
nothing: so those with the largest `min(W_preserve, W_discard)` are swapped to the host, as far as an iteration's time
goes; of the rest each takes the smaller (`rule=min-waste`). The authors' simpler variant (`rule=heuristic`) preserves
below 4 s, swaps below 7 s, and discards beyond.

To preserve is a pin. To swap is an offload that frees the GPU's copy. To discard lets the cache be overwritten first;
in vLLM it can still be hit until that happens. A swap or a discard is final; who is preserved is looked at again.
Calls start in the order in which their agents first arrived, not behind all that came during their tools; before them
those that hold memory already, because their context was preserved or has been swapped in.

Constants, by default fitted to the machine:

- `saturation_tokens` (S): the authors' 384; a view does not tell it.
- `token_ms` (a): what the machine is believed to need for a token of the context in question: `prefill_s(c, 0) / c`,
  attention included, or contexts of 100,000 tokens would seem cheap to recompute. The authors': 0.0279.
- `step_ms` (c0): the shortest mean time of 32 consecutive steps that was seen, which is that of steps that mostly
  decode; until then the authors' 15.4.

Left open there, chosen here:

- *An interception* lasts from the tool's start to the arrival of the agent's next call, which may wait for other agents
  of its application after the tool has returned.
- *Its length* is estimated, as in the paper, by the time that has gone by (`gap=elapsed`): everything is preserved at
  first. With `gap=declared` it is what was declared or learned, or the time that has gone by once that is longer.
- *Iterations.* A policy is asked when calls or tools start and end, and wakes when a tool has run for so long that the
  decision turns. In between only `C_running` changes.
- *The copy budget.* A copy runs beside the iterations, whole contexts at once. A swap may start while those before it
  are not late by an iteration or more; what it takes beyond an iteration is owed by the following ones.
- *No swap for a gap that is not longer than the copy out and in.* The paper swaps piece by piece, and a tool that
  returns early finds the rest in place; here a context that is on its way can be read only when it has come.
- *Swapping in* is vLLM's load on demand, when the call's turn comes; copies to the GPU do not slow those to the host.
  The host's copy is given up when the call has started.
- *A swap that the host has no room for*, or that the engine refuses, is none: the context stays preserved until its
  discard wastes less, or in the heuristic variant until 7 s. A refused one is not tried again.
- *Contexts that no later call extends* are left to vLLM: nobody is intercepted there. The application says which
  (`reusable`).
- *`C_running`* are prompt tokens; what running calls have generated is in no view.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from math import ceil, inf, isfinite
from typing import ClassVar, Literal, NamedTuple

from ...traces import events as e
from ...traces.apps import AgentId, AppId, CallId
from ...traces.errors import PolicyError
from ...traces.events import Request
from ..interface import Move, Plan, View
from ..parts.dispatch import Handler, tell
from ..parts.ranked_queue import RankedQueue
from ..parts.timed_pins import FOREVER_S
from ..parts.tool_stalls import ToolStall, ToolStalls
from ..parts.tool_times import ToolTimeEstimates

Rule = Literal["min-waste", "heuristic"]
Gap = Literal["declared", "elapsed"]

AUTHORS_STEP_MS = 15.4
PRESERVE_BELOW_S = 4.0
SWAP_BELOW_S = 7.0
MEASURED_STEPS = 32

# Places in the queue.
HOLDING, OTHER = 0.0, 1.0


class StepTime:
    """The shortest mean time of a number of consecutive steps: what a step costs that computes next to nothing."""

    def __init__(self) -> None:
        self._from_s = 0.0
        self._from_step = 0
        self.least_s: float | None = None  # None: not yet known

    def look(self, view: View) -> None:
        """Time and steps went by; if they were idle the mean is long, and does not count."""
        steps = view.step - self._from_step
        if steps < MEASURED_STEPS:
            return
        mean_s = (view.now_s - self._from_s) / steps
        if mean_s > 0 and (self.least_s is None or mean_s < self.least_s):
            self.least_s = mean_s
        self._from_s, self._from_step = view.now_s, view.step


class RunningBatch(NamedTuple):
    """What runs now, and how long iterations take."""

    calls: int
    context_tokens: int
    saturation_tokens: int
    step_s: float

    def discard_waste(self, tokens: int, token_s: float) -> float:
        """Token-seconds that the recomputation of a context wastes: `W_discard`."""
        chunk = max(self.saturation_tokens - self.calls, 1)
        whole = ceil(tokens / chunk) - 1
        last = tokens - whole * chunk
        step_s = self.step_s
        return (
            (token_s * self.saturation_tokens + step_s) * chunk * whole * (whole + 1) / 2
            + (token_s * chunk + step_s) * whole * self.context_tokens
            + (token_s * (self.calls + last) + step_s) * tokens
            + (token_s * last + step_s) * self.context_tokens
        )


class Preserved:
    """A stall of which it is not decided that it is swapped or discarded."""

    __slots__ = ("blocks", "copies_s", "estimate_s", "number", "refill_s", "stall", "swappable", "tokens")

    def __init__(self, stall: ToolStall, estimate_s: float, view: View) -> None:
        agent = view.agents[stall.agent]
        blocks = agent.context_blocks
        self.stall = stall
        self.number = agent.number
        self.estimate_s = estimate_s
        self.blocks = blocks
        self.tokens = blocks * view.block_tokens
        self.copies_s = view.costs.offload_s(blocks) + view.costs.upload_s(blocks)
        self.refill_s = view.costs.prefill_s(self.tokens, 0)
        self.swappable = True

    def gap_s(self, now_s: float) -> float:
        """How long its tool is estimated to take, at least as long as it has."""
        return max(self.estimate_s, now_s - self.stall.since_s)


class Look(NamedTuple):
    """A preserved stall as it is now: its waste, and the gaps from which on it is to be swapped, or discarded."""

    of: Preserved
    gap_s: float
    waste: float
    swap_from_s: float
    discard_from_s: float


class Disposition(NamedTuple):
    """What became of the preserved ones."""

    offload: tuple[Move, ...] = ()
    evict: tuple[AgentId, ...] = ()
    wake_at_s: float | None = None


NOTHING = Disposition()


class InferCept:
    """Keeps, swaps or discards the context at each tool call, whichever wastes the least memory.

    Raises PolicyError for an option out of its range.
    """

    listens_to: ClassVar[frozenset[type]] = frozenset(
        {e.CallArrived, e.CallPreempted, e.LoadStarted, e.ToolStarted, e.OffloadRefused}
    )

    def __init__(
        self,
        rule: Rule = "min-waste",
        gap: Gap = "elapsed",
        saturation_tokens: int = 384,
        token_ms: float | None = None,
        step_ms: float | None = None,
    ) -> None:
        _check(rule, gap, saturation_tokens, token_ms, step_ms)
        self._heuristic = rule == "heuristic"
        self._gaps = ToolTimeEstimates() if gap == "declared" else None
        self._saturation_tokens = saturation_tokens
        self._token_s = None if token_ms is None else token_ms / 1000
        self._step_s = None if step_ms is None else step_ms / 1000
        self._steps = StepTime()
        self._stalls = ToolStalls()
        self._preserved: dict[AgentId, Preserved] = {}
        self._pins: dict[AgentId, float] = {}
        self._swapped: dict[AgentId, Preserved] = {}
        self._forget: list[AgentId] = []
        self._copied_at_s = 0.0  # when the swaps so far are believed to be out
        self._first: dict[AppId, dict[AgentId, tuple[float, int]]] = {}  # when agents arrived first, and their numbers
        self._queue = RankedQueue()
        self._calls: dict[CallId, tuple[Request, int]] = {}  # that have not ended, and their numbers
        self._numbers = count()  # of calls, as they arrive
        self._handlers: Mapping[type, Handler] = {
            e.CallArrived: self._arrived,
            e.CallAdmitted: self._admitted,
            e.CallPreempted: self._preempted,
            e.CallFinished: self._left,
            e.CallAborted: self._left,
            e.LoadStarted: self._load_started,
            e.ToolStarted: self._tool_started,
            e.OffloadRefused: self._refused,
            e.AppFinished: self._app_finished,
        }

    def plan(self, view: View) -> Plan:
        """Take the news in, then decide about those who are still preserved."""
        tell(view.news, self._handlers, view)
        self._steps.look(view)
        decision = self._decide(view) if self._preserved else NOTHING
        forget, self._forget = tuple(self._forget), []
        return Plan(
            admit=self._queue.names(),
            evict=decision.evict,
            offload=decision.offload,
            forget=forget,
            pin=dict(self._pins),
            wake_at_s=decision.wake_at_s,
        )

    # -- the rule

    def _decide(self, view: View) -> Disposition:
        """Swap while there is time to copy, the largest waste first; discard where that is less than to preserve."""
        now_s = view.now_s
        batch = self._batch(view)
        looks = [self._look(one, batch, now_s) for one in self._preserved.values()]
        looks.sort(key=lambda look: (-look.waste, look.of.number))
        budget_s = inf if self._heuristic else self._iteration_s(batch, looks)
        room = view.host_free_blocks
        moves, evict = [], []
        wake_at_s = inf
        for look in looks:
            one = look.of
            agent, since_s = one.stall.agent, one.stall.since_s
            swappable = one.swappable and one.blocks <= room
            if swappable and look.gap_s >= look.swap_from_s and self._copied_at_s - now_s <= budget_s:
                self._copied_at_s = max(now_s, self._copied_at_s) + view.costs.offload_s(one.blocks)
                room -= one.blocks
                moves.append(Move(agent, one.blocks, keep=False))
                self._swapped[agent] = self._release(agent)
            elif look.gap_s >= look.discard_from_s:
                evict.append(agent)
                self._release(agent)
            else:
                if swappable:
                    wake_at_s = min(wake_at_s, max(since_s + look.swap_from_s, self._copied_at_s))
                wake_at_s = min(wake_at_s, since_s + look.discard_from_s)
        return Disposition(tuple(moves), tuple(evict), wake_at_s if isfinite(wake_at_s) else None)

    def _look(self, one: Preserved, batch: RunningBatch, now_s: float) -> Look:
        gap_s = one.gap_s(now_s)
        if self._heuristic:
            swap_from_s = PRESERVE_BELOW_S if gap_s < SWAP_BELOW_S else inf
            return Look(one, gap_s, gap_s * one.tokens, swap_from_s, SWAP_BELOW_S)
        discard = batch.discard_waste(one.tokens, self._token_time_s(one))
        return Look(one, gap_s, min(gap_s * one.tokens, discard), one.copies_s, discard / one.tokens)

    def _batch(self, view: View) -> RunningBatch:
        running = view.running
        tokens = sum([call.request.prompt_tokens for call in running.values()])
        step_s = self._step_s
        if step_s is None:
            step_s = AUTHORS_STEP_MS / 1000 if self._steps.least_s is None else self._steps.least_s
        return RunningBatch(len(running), tokens, self._saturation_tokens, step_s)

    def _iteration_s(self, batch: RunningBatch, looks: list[Look]) -> float:
        """How long the next iteration takes: the copies that it hides."""
        return self._token_time_s(looks[0].of) * batch.calls + batch.step_s

    def _token_time_s(self, one: Preserved) -> float:
        return one.refill_s / one.tokens if self._token_s is None else self._token_s

    def _release(self, agent: AgentId) -> Preserved:
        del self._pins[agent]
        return self._preserved.pop(agent)

    # -- facts: tools

    def _tool_started(self, fact: e.ToolStarted, view: View) -> None:
        stall = self._stalls.started(fact)
        agent = view.agents.get(fact.agent)
        if stall is None or agent is None or not agent.context_blocks:
            return
        estimate_s = 0.0 if self._gaps is None else self._gaps.estimate_s(stall.request)
        self._preserved[stall.agent] = Preserved(stall, estimate_s, view)
        self._pins[stall.agent] = FOREVER_S

    def _refused(self, fact: e.OffloadRefused, view: View) -> None:
        one = self._swapped.pop(fact.agent, None)
        if one is None or fact.agent not in self._stalls.open:
            return
        one.swappable = False
        self._pins[fact.agent] = FOREVER_S
        if one.stall.call is None:
            self._preserved[fact.agent] = one

    # -- facts: calls

    def _arrived(self, fact: e.CallArrived, view: View) -> None:
        request = fact.request
        number = next(self._numbers)
        self._first.setdefault(request.app, {}).setdefault(request.agent, (fact.at_s, number))
        self._calls[request.id] = (request, number)
        stall = self._stalls.arrived(fact)
        if stall is not None:
            self._preserved.pop(stall.agent, None)  # what is still preserved stays so until the call starts
            if self._gaps is not None:
                self._gaps.learn(stall.request, fact.at_s - stall.since_s)
        self._place(request.id, HOLDING if request.agent in self._pins else OTHER)

    def _place(self, call: CallId, rank: float) -> None:
        request, number = self._calls[call]
        self._queue.put(call, (rank, *self._first[request.app][request.agent], number))

    def _load_started(self, fact: e.LoadStarted, view: View) -> None:
        self._place(fact.call, HOLDING)

    def _admitted(self, fact: e.CallAdmitted, view: View) -> None:
        self._queue.remove(fact.call)
        self._close(fact.call)

    def _preempted(self, fact: e.CallPreempted, view: View) -> None:
        self._place(fact.call, OTHER)

    def _left(self, fact: e.CallFinished | e.CallAborted, view: View) -> None:
        self._queue.remove(fact.call)
        self._calls.pop(fact.call, None)
        self._close(fact.call)

    def _close(self, call: CallId) -> None:
        stall = self._stalls.closed(call)
        if stall is not None and self._drop(stall.agent):
            self._forget.append(stall.agent)

    def _drop(self, agent: AgentId) -> bool:
        """Nothing is kept for it any longer. Whether it was swapped."""
        self._preserved.pop(agent, None)
        self._pins.pop(agent, None)
        return self._swapped.pop(agent, None) is not None

    def _app_finished(self, fact: e.AppFinished, view: View) -> None:
        for stall in self._stalls.app_finished(fact):
            self._drop(stall.agent)
        self._first.pop(fact.app, None)


def _check(rule: str, gap: str, saturation_tokens: int, token_ms: float | None, step_ms: float | None) -> None:
    if rule not in ("min-waste", "heuristic"):
        raise PolicyError(f"infercept: option rule: expected min-waste or heuristic, got {rule!r}")
    if gap not in ("declared", "elapsed"):
        raise PolicyError(f"infercept: option gap: expected declared or elapsed, got {gap!r}")
    if saturation_tokens < 1:
        raise PolicyError(f"infercept: option saturation_tokens: expected at least 1, got {saturation_tokens!r}")
    for name, value in (("token_ms", token_ms), ("step_ms", step_ms)):
        if value is not None and not (isfinite(value) and value >= 0):
            raise PolicyError(f"infercept: option {name}: expected a number of at least 0, got {value!r}")
