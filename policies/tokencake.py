"""Tokencake: memory goes to the calls that their applications wait for, and contexts leave while their tools run."""

from __future__ import annotations

from typing import Any

from ..traces import events as e
from ..traces.errors import PolicyError
from ..traces.events import Request
from .admission import Admission, Rival, first_come
from .interface import NATIVE, Plan, View
from .rules import CHANGES, Rules
from .spatial import Spatial
from .temporal import Temporal
from .uploads import NOTHING, Uploads, Wishes

SPACE_HEARS = (
    e.CallArrived,
    e.CallAdmitted,  # its prompt is cached from now on: its siblings need less
    e.CallPreempted,
    e.CallFinished,
    e.LoadFinished,
    e.OffloadFinished,
    e.UploadCancelled,
)
TIME_HEARS = (
    e.CallArrived,
    e.CallFinished,
    e.ToolStarted,
    e.ToolReturned,
    e.OffloadFinished,
    e.UploadFinished,
    e.UploadCancelled,
)
HELD_BACK = Plan(admit=(), skip=True)


class Tokencake:
    """The policy of the Tokencake paper: a spatial and a temporal half that can each be switched off.

    Space: waiting calls are scored by their place in the application's DAG; critical agent types have reserves; a call
    starts only if its whole output budget fits into what is promised to nobody. A plan has no field for reserves: they
    are this policy's own book-keeping, and take effect through the calls that it admits. Without space, calls start as
    vLLM starts them.

    Time: contexts of stalled agents are copied to the host, and back shortly before their tools return. Without time,
    nothing is copied.
    """

    def __init__(self, rules: Rules | None = None) -> None:
        rules = Rules() if rules is None else rules
        if not (rules.space or rules.time):
            raise PolicyError(
                "tokencake: options space and time are both off: expected at least one half (or policy vllm)"
            )
        self.rules = rules
        self._spatial = Spatial(rules) if rules.space else None
        self._temporal = Temporal(rules) if rules.time else None
        self._uploads = Uploads(rules) if rules.time and rules.upload != "demand" else None
        self._hears = frozenset((SPACE_HEARS if rules.space else ()) + (TIME_HEARS if rules.time else ()))

    @property
    def hears(self) -> frozenset[type]:
        """What may change a decision; nothing that happens once a token."""
        return self._hears

    def plan(self, view: View) -> Plan:
        """Admit first; what is left over decides what to save and what to bring back."""
        spatial, temporal = self._spatial, self._temporal
        admission: Admission | None = None
        if spatial is not None:
            spatial.fold(view)
            admission = spatial.admission(view)
        if temporal is None:
            assert admission is not None
            return self._spatial_plan(admission, view)
        temporal.fold(view)
        return self._full_plan(admission, temporal, view)

    def _spatial_plan(self, admission: Admission, view: View) -> Plan:
        preempt = self._victims(view)
        if not admission.admit and not preempt and self.rules.skip:
            return HELD_BACK
        return Plan(admit=admission.admit, skip=self.rules.skip, preempt=preempt)

    def _full_plan(self, admission: Admission | None, temporal: Temporal, view: View) -> Plan:
        stalls = temporal.open_stalls(view)
        native: tuple[Admission, Rival | None] | None = None
        if admission is None and stalls:
            native = first_come(view)
        fit = admission or (native[0] if native else None)
        offload = temporal.saves(stalls, fit, self._importance, view) if fit is not None else []
        wishes = self._wishes(admission, native, temporal, view) if self._uploads is not None else NOTHING
        forget = temporal.forgotten()
        if admission is not None and not (offload or forget or wishes is not NOTHING):
            return self._spatial_plan(admission, view)
        if admission is None and not (offload or forget or wishes is not NOTHING):
            return NATIVE
        return Plan(
            admit=None if admission is None else admission.admit,
            skip=admission is not None and self.rules.skip,
            preempt=self._victims(view),
            offload=tuple(offload),
            upload=wishes.upload,
            cancel=wishes.cancel,
            forget=forget,
            wake_at_s=wishes.wake_at_s,
        )

    def _wishes(
        self,
        admission: Admission | None,
        native: tuple[Admission, Rival | None] | None,
        temporal: Temporal,
        view: View,
    ) -> Wishes:
        uploads = self._uploads
        assert uploads is not None
        uploads.fold(view)
        room, contested = 0, False
        if admission is not None:
            assert admission.admit is not None
            room, contested = admission.room_blocks, len(admission.admit) < len(view.waiting)
        elif temporal.stalls:
            native = native or first_come(view)
            room, contested = native[0].room_blocks, native[1] is not None
        ready, wake_at_s = uploads.due(temporal.stalls.values(), room, contested, view)
        if not ready and not uploads.hold_room:
            return NOTHING if wake_at_s is None else Wishes((), (), wake_at_s)
        if self._spatial is not None and admission is not None:
            rival = self._spatial.rival(admission) if contested else None
        else:
            rival = (native or first_come(view))[1]
        return uploads.wishes(ready, wake_at_s, room, rival, self._agent_score, view)

    def _victims(self, view: View) -> tuple[str, ...]:
        if self._spatial is None or not self.rules.preempt:
            return ()
        return self._spatial.victims(view)

    def _importance(self, request: Request, view: View) -> float:
        return request.hints.importance if self._spatial is None else self._spatial.importance(request, view)

    def _agent_score(self, request: Request, view: View) -> float:
        return 0.0 if self._spatial is None else self._spatial.agent_score(request, view)


def tokencake(**options: Any) -> Tokencake:
    """Make the policy from options by name: fields of `Rules`. `rules` names the set that the others change."""
    changes = CHANGES[options.get("rules", "default")]
    return Tokencake(Rules(**{**changes, **options}))
