"""Tokencake: memory goes to the calls that their applications wait for, and contexts leave while their tools run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ...traces import events as e
from ...traces.apps import AgentId
from ...traces.errors import PolicyError
from ..interface import NATIVE, Move, Plan, View
from ..parts.admission import Admission
from ..parts.dispatch import merged, tell
from ..parts.tool_times import ToolTimeEstimates, ToolTimes
from .first_come import FirstCome, FirstComeBesideUploads
from .halves import Needs, SpaceHalf, TimeHalf, Wishes
from .known_agents import KnownAgents
from .miss_share import MissShare
from .options import PRESETS, Options, Preset
from .pins import Pins
from .published.uploads import Uploads
from .seniority import Seniority
from .stalls import Stalls
from .time_half import NoCopies, NoPins, NoUploads, PinRule, SaveRule, SavesAll, StalledContexts

QUIET_FACTS = frozenset(  # while every call that waits may start, and nothing is on the host
    {
        e.CallArrived,
        e.CallPreempted,
        e.OffloadFinished,
    }
)
STARTS = frozenset({e.CallAdmitted})
SAVES = frozenset({e.OffloadFinished})
HELD_BACK = Plan(admit=(), skip=True)


class Tokencake:
    """Old applications and small calls first; saves every context, and keeps it on the GPU where contexts get lost.

    That is the default. The policy of the Tokencake paper is another composition (`PRESETS["published"]`). Either has a
    spatial half, which decides which calls start, and a temporal one, which decides what becomes of contexts while
    their agents' tools run; each can be switched off.

    Space, as published (`PublishedSpace`): waiting calls are scored by their place in the application's DAG; critical
    agent types have reserves; a call starts only if its whole output budget fits into what is promised to nobody. A
    plan has no field for reserves: they are this policy's own book-keeping, and take effect through the calls that it
    admits. By default (`Seniority`): old applications and small calls first. Without space (`FirstCome`), calls start
    as vLLM starts them.

    Time, as published: contexts of stalled agents are copied to the host, and back shortly before their tools return.
    By default every context is saved when its call ends, and loaded when a call needs it. Without time, nothing is
    copied.
    """

    def __init__(self, options: Options = PRESETS["default"], tool_times: ToolTimes | None = None) -> None:
        self.options = options
        if tool_times is None:
            tool_times = ToolTimeEstimates(options.gap_weight_share, options.unknown_gap_s)
        agents = KnownAgents()
        self._space, self._time = halves(options, tool_times, agents)
        self._handlers = merged((*self._space.listeners, *self._time.listeners, agents))
        self._loud_facts = self._space.listens_to | self._time.listens_to
        self._quiet_facts = QUIET_FACTS | self._time.saves_after
        self._commits = options.commit or not options.preempt
        self._weighs_saves = options.preempt or options.save != "all" or options.upload != "demand"
        self._listens_to = self.facts = self._loud_facts

    @property
    def listens_to(self) -> frozenset[type]:
        """What may change a decision; nothing that happens once a token, and little while nobody is held back."""
        return self._listens_to

    def plan(self, view: View) -> Plan:
        """Calls start first; what is left over decides what is saved, brought back and kept."""
        needs = self._tell(view)
        admission = self._space.admission(view, needs)
        saves = self._time.saves(view)
        uploads = self._time.uploads(view, admission)
        pins = self._time.pins(view, admission)
        return self._plan(view, admission, saves, uploads, pins)

    def _tell(self, view: View) -> Needs:
        tell(view.news, self._handlers, view)
        self._space.begin(view)
        return self._time.begin(view)

    def _plan(
        self,
        view: View,
        admission: Admission,
        offload: tuple[Move, ...],
        uploads: Wishes,
        pin: Mapping[AgentId, float],
    ) -> Plan:
        """The plan. One that wants nothing special is not built anew."""
        admit, preempt = admission.admit, admission.preempt
        forget = self._time.forgotten()
        quiet = not (offload or pin) and self._is_quiet(admission, view)
        self.facts = self._quiet_facts if quiet else self._loud_facts
        self._listens_to = self._needed(admission, pin, view)
        wake_at_s = earliest_s((self._time.wake_at_s(view), uploads.wake_at_s, *pin.values()))
        if not (admit or preempt or offload or uploads.upload or uploads.cancel or forget) and wake_at_s is None:
            if admit is None:
                return NATIVE
            if self.options.skip:
                return HELD_BACK
        return Plan(
            admit=admit,
            skip=admit is not None and self.options.skip,
            preempt=preempt,
            offload=offload,
            upload=uploads.upload,
            cancel=uploads.cancel,
            forget=forget,
            pin=pin,
            wake_at_s=wake_at_s,
        )

    def _needed(self, admission: Admission, pin: Mapping[AgentId, float], view: View) -> frozenset[type]:
        """The facts that can lead to another plan; all that matter to a policy like this one are in `facts`.

        While one call waits and may start, its start matters if it tells how much of its context was lost, and the end
        of a save if it is given up then. While some call is held back all facts matter, or contexts are pinned, or
        several calls wait: each that starts changes the order of the others.
        """
        if self.facts is self._quiet_facts or self._weighs_saves:
            return self.facts
        if pin or len(view.waiting) > 1 or len(view.waiting) != len(admission.admit or ()):
            return self.facts
        facts = self.facts
        if not any(self._space.heeds_start(call, view) for call in view.waiting.values()):
            facts -= STARTS
        return facts if self._time.gives_up_saves else facts - SAVES

    def _is_quiet(self, admission: Admission, view: View) -> bool:
        """Whether only a call that arrives, or a tool that starts, can lead to another plan.

        Not if calls start without room for their budgets: then each of them changes who would have to give way.
        """
        return len(view.waiting) == len(admission.admit or ()) and self._commits and not self._time.holds


def earliest_s(times_s: Iterable[float | None]) -> float | None:
    """The first of those times that there are."""
    earliest_s = None
    for at_s in times_s:
        if at_s is not None and (earliest_s is None or at_s < earliest_s):
            earliest_s = at_s
    return earliest_s


def halves(options: Options, tool_times: ToolTimes, agents: KnownAgents) -> tuple[SpaceHalf, TimeHalf]:
    """What the options name, put together; `agents` listen after both. Raises PolicyError if both halves are off."""
    if not (options.space or options.time):
        raise PolicyError("tokencake: options space and time are both off: expected at least one half (or policy vllm)")
    stalls = Stalls(options, tool_times, agents)
    pins: PinRule = NoPins()
    space: SpaceHalf
    if not options.space:
        space = FirstCome() if options.upload == "demand" else FirstComeBesideUploads()
    elif options.spatial == "score":
        from .published.spatial import PublishedSpace  # no other rules need it

        space = PublishedSpace(options)
    else:
        miss_share = MissShare(agents)
        space = seniority = Seniority(options, miss_share, agents)
        pins = Pins(options, miss_share, stalls, seniority)
    if not options.time:
        return space, NoCopies()
    saves: SaveRule = SavesAll()
    if options.save != "all":
        from .published.saves import PublishedSaves  # as above

        saves = PublishedSaves(options, stalls, space.importance)
    uploads = NoUploads() if options.upload == "demand" else Uploads(options, stalls, space)
    return space, StalledContexts(stalls, saves, uploads, pins)


def tokencake(rules: Preset = "default", **options: Any) -> Tokencake:
    """Make the policy from a preset; an option that is given by name, a field of `Options`, wins over it."""
    return Tokencake(replace(PRESETS[rules], **options))


def tokencake_space(**options: Any) -> Tokencake:
    """Tokencake's order alone: old applications and small calls first, and nothing is saved or kept."""
    return tokencake(**{"time": False, **options})


def tokencake_time(**options: Any) -> Tokencake:
    """Tokencake's copies alone, in vLLM's order: every context saved when its call ends, and loaded on demand."""
    return tokencake(**{"space": False, **options})
