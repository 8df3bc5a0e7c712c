"""Tokencake: memory goes to the calls that their applications wait for, and contexts leave while their tools run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ...traces import events as e
from ...traces.apps import AgentId, CallId
from ...traces.errors import PolicyError
from ...traces.events import Request
from ..interface import EMPTY, NATIVE, Move, Plan, View
from ..parts.admission import Admission, Rival, first_come
from ..parts.tool_times import Gaps
from .losses import Losses
from .options import PRESETS, Options, Preset
from .pins import Keeps
from .published.spatial import Spatial
from .published.temporal import Temporal
from .published.uploads import NOTHING, UploadClaim, Uploads, Wishes
from .seniority import Seniority

SPACE_HEARS = (
    e.CallArrived,
    e.CallAdmitted,  # its prompt is cached from now on: its siblings need less
    e.CallPreempted,
    e.CallFinished,
    e.CallAborted,
    e.LoadFinished,
    e.OffloadFinished,
    e.UploadCancelled,
)
TIME_HEARS = (
    e.CallArrived,
    e.CallFinished,
    e.CallAborted,
    e.ToolStarted,
    e.ToolReturned,
    e.OffloadFinished,
    e.UploadFinished,
    e.UploadCancelled,
)
Handler = Callable[[Any, View], None]

QUIET_HEARS = (  # while every call that waits may start, and nothing is on the host
    e.CallArrived,
    e.CallPreempted,
    e.OffloadFinished,
)
HELD_BACK = Plan(admit=(), skip=True)


class Tokencake:
    """Old applications and small calls first; saves every context, and keeps it on the GPU where contexts get lost.

    Space, as published (`Spatial`): waiting calls are scored by their place in the application's DAG; critical agent
    types have reserves; a call starts only if its whole output budget fits into what is promised to nobody. A plan has
    no field for reserves: they are this policy's own book-keeping, and take effect through the calls that it admits. By
    default (`Seniority`): old applications and small calls first. Without space, calls start as vLLM starts them.

    Time, as published: contexts of stalled agents are copied to the host, and back shortly before their tools return.
    By default every context is saved when its call ends, and loaded when a call needs it. Without time, nothing is
    copied.
    """

    def __init__(self, options: Options = PRESETS["default"], gaps: Gaps | None = None) -> None:
        if not (options.space or options.time):
            raise PolicyError(
                "tokencake: options space and time are both off: expected at least one half (or policy vllm)"
            )
        self.options = options
        losses = Losses() if options.space and options.spatial == "seniority" else None  # nobody else asks
        self._spatial: Spatial | Seniority | None = None
        self._keeps: Keeps | None = None
        if losses is not None:
            self._spatial = Seniority(options, losses)
            self._keeps = Keeps(options, losses) if options.time and options.keep_weight else None
        elif options.space:
            self._spatial = Spatial(options)
        self._temporal = Temporal(options, gaps) if options.time else None
        self._uploads = Uploads(options) if options.time and options.upload != "demand" else None
        self._handlers: dict[type, list[Handler]] = {}  # of a fact, by its type
        through = None if self._temporal is None else self._temporal.through
        for half in (losses, self._spatial, through, self._temporal, self._uploads):
            for kind, handle in () if half is None else half.handlers.items():
                self._handlers.setdefault(kind, []).append(handle)
        self._news = frozenset((SPACE_HEARS if options.space else ()) + (TIME_HEARS if options.time else ()))
        saves_hear = e.ToolStarted if options.save == "stalls" else e.CallFinished
        self._quiet_news = frozenset(QUIET_HEARS + ((saves_hear,) if options.time else ()))
        self._quiet = False

    @property
    def listens_to(self) -> frozenset[type]:
        """What may change a decision; nothing that happens once a token, and little while nobody is held back."""
        return self._quiet_news if self._quiet else self._news

    def plan(self, view: View) -> Plan:
        """Admit first; what is left over decides what to save and what to bring back."""
        spatial, temporal, uploads = self._spatial, self._temporal, self._uploads
        handlers = self._handlers
        for fact in view.news:
            for handle in handlers.get(type(fact), ()):
                handle(fact, view)
        if spatial is not None:
            spatial.begin(view)
        if temporal is None:
            assert spatial is not None
            return self._made(spatial.admission(view), view)
        temporal.begin(view)
        held = 0 if uploads is None else uploads.held_blocks
        if not (view.waiting or held) and temporal.at_rest:
            return self._made(Admission(None if spatial is None else (), 0, 0), view)
        claims: list[UploadClaim] = []
        if uploads is not None:
            claims = uploads.claims(temporal.stalls.values(), self._agent_score, view)
        stalls = temporal.open_stalls(view)
        rival: Rival | None = None
        if spatial is not None:
            admission = spatial.admission(view, claims)
            if held:
                rival = spatial.rival(admission, held, view)
        elif uploads is not None and (stalls or claims or held):
            admission, rival = first_come(view, claims)
        else:
            admission = Admission(None, 0, view.free_blocks)
        offload = temporal.saves(stalls, self._importance, view)
        wishes = NOTHING
        if uploads is not None:
            if offload:
                claims = []  # a save holds its source while it copies: no room that was free before is sure
            wishes = uploads.wishes(claims, admission.room_blocks, rival, self._agent_score, view)
        return self._made(admission, view, tuple(offload), wishes, temporal.forgotten(), temporal.wake_at_s(view))

    def _made(
        self,
        admission: Admission,
        view: View,
        offload: tuple[Move, ...] = (),
        wishes: Wishes = NOTHING,
        forget: tuple[AgentId, ...] = (),
        look_at_s: float | None = None,
    ) -> Plan:
        """The plan. One that wants nothing special is not built anew."""
        admit = admission.admit
        pin = self._pins(admission, view)
        self._quiet = not (offload or pin) and self._is_quiet(admit, view)
        preempt = self._victims(view)
        if not (admit or preempt or offload or forget or pin) and wishes is NOTHING and look_at_s is None:
            if admit is None:
                return NATIVE
            if self.options.skip:
                return HELD_BACK
        return Plan(
            admit=admit,
            skip=admit is not None and self.options.skip,
            preempt=preempt,
            offload=offload,
            upload=wishes.upload,
            cancel=wishes.cancel,
            forget=forget,
            pin=pin,
            wake_at_s=min(
                (at_s for at_s in (look_at_s, wishes.wake_at_s, *pin.values()) if at_s is not None), default=None
            ),
        )

    def _pins(self, admission: Admission, view: View) -> Mapping[AgentId, float]:
        spatial, temporal = self._spatial, self._temporal
        if self._keeps is None or temporal is None or not isinstance(spatial, Seniority):
            return EMPTY
        return self._keeps.pins(temporal.stalls.values(), spatial.blocked(admission), spatial.rank, view)

    def _is_quiet(self, admit: tuple[CallId, ...] | None, view: View) -> bool:
        """Whether only a call that arrives, or a tool that starts, can lead to another plan.

        Not if calls start without room for their budgets: then each of them changes who would have to give way.
        """
        options, temporal, uploads = self.options, self._temporal, self._uploads
        return (
            len(view.waiting) == len(admit or ())
            and (options.commit or not options.preempt)
            and (temporal is None or temporal.holds_nothing)
            and (uploads is None or not uploads.held_blocks)
        )

    def _victims(self, view: View) -> tuple[str, ...]:
        if self._spatial is None or not self.options.preempt:
            return ()
        return self._spatial.victims(view)

    def _importance(self, request: Request, view: View) -> float:
        return request.hints.importance if self._spatial is None else self._spatial.importance(request, view)

    def _agent_score(self, request: Request, view: View) -> float:
        return 0.0 if self._spatial is None else self._spatial.agent_score(request, view)


def tokencake(rules: Preset = "default", **options: Any) -> Tokencake:
    """Make the policy from a preset; an option that is given by name, a field of `Options`, wins over it."""
    return Tokencake(replace(PRESETS[rules], **options))


def tokencake_space(**options: Any) -> Tokencake:
    """Tokencake's order alone: old applications and small calls first, and nothing is saved or kept."""
    return tokencake(**{"time": False, **options})


def tokencake_time(**options: Any) -> Tokencake:
    """Tokencake's copies alone, in vLLM's order: every context saved when its call ends, and loaded on demand."""
    return tokencake(**{"space": False, **options})
