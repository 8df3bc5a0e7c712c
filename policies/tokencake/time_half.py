"""The temporal half of Tokencake: saves, uploads and pins, each by one rule or by none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from ...traces import events as e
from ...traces.apps import AgentId
from ..interface import EMPTY, Move, View
from ..parts.admission import Admission
from ..parts.dispatch import Handler, Listener
from ..parts.ended_calls import EndedCalls, whole_contexts
from .halves import NOTHING, TIME_FACTS, Needs, Wishes
from .published.uploads import UploadClaim
from .stalls import Stalls


class SaveRule(Listener, Protocol):
    """When contexts are saved, and which."""

    @property
    def after(self) -> frozenset[type]:
        """The facts after which there may be something to save."""
        ...

    @property
    def due(self) -> bool:
        """Whether there is something to save, come what may."""
        ...

    def weighs(self, view: View) -> bool:
        """Whether it will look at something that may be saved."""
        ...

    def saves(self, view: View) -> tuple[Move, ...]: ...
    def wake_at_s(self, view: View) -> float | None: ...


class UploadRule(Listener, Protocol):
    """What is brought back before a call needs it."""

    @property
    def held_blocks(self) -> int:
        """Room that is held, or being filled."""
        ...

    def claims(self, view: View) -> Sequence[UploadClaim]: ...
    def wishes(self, claims: Sequence[UploadClaim], admission: Admission, view: View) -> Wishes: ...


class PinRule(Listener, Protocol):
    """What stays on the GPU while its tool runs."""

    def pins(self, admission: Admission, view: View) -> Mapping[AgentId, float]: ...


class StalledContexts:
    """What becomes of contexts between two calls. In a plan: `begin`, `saves`, `uploads`, `pins`, then the rest."""

    listens_to: ClassVar[frozenset[type]] = TIME_FACTS

    def __init__(self, stalls: Stalls, saves: SaveRule, uploads: UploadRule, pins: PinRule) -> None:
        self._stalls = stalls
        self._saves = saves
        self._uploads = uploads
        self._pins = pins
        self._claims: Sequence[UploadClaim] = ()
        self.listeners: Sequence[Listener] = (stalls, saves, uploads, pins)  # the others go by what stalls know
        self.saves_after = saves.after

    @property
    def holds(self) -> bool:
        return self._stalls.holds or self._uploads.held_blocks > 0

    @property
    def gives_up_saves(self) -> bool:
        return self._stalls.saves_unheld

    def begin(self, view: View) -> Needs:
        self._stalls.expire(view.now_s)
        self._claims = self._uploads.claims(view)
        held_blocks = self._uploads.held_blocks
        at_rest = self._stalls.at_rest and not (held_blocks or self._saves.due)
        return Needs(self._claims, held_blocks, self._saves.weighs, at_rest)

    def saves(self, view: View) -> tuple[Move, ...]:
        moves = self._saves.saves(view)
        if moves:
            self._stalls.saving(moves)
            self._claims = ()  # a save holds its source while it copies: no room that was free before is sure
        return moves

    def uploads(self, view: View, admission: Admission) -> Wishes:
        return self._uploads.wishes(self._claims, admission, view)

    def pins(self, view: View, admission: Admission) -> Mapping[AgentId, float]:
        return self._pins.pins(admission, view)

    def forgotten(self) -> tuple[AgentId, ...]:
        return self._stalls.forgotten()

    def wake_at_s(self, view: View) -> float | None:
        return self._saves.wake_at_s(view)


class SavesAll:
    """Every context when its call ends, whether a tool runs then or not."""

    after: ClassVar[frozenset[type]] = frozenset({e.CallFinished})

    def __init__(self) -> None:
        self._ended_calls = EndedCalls()
        self.handlers = self._ended_calls.handlers

    @property
    def due(self) -> bool:
        return self._ended_calls.due

    def weighs(self, view: View) -> bool:
        return False

    def saves(self, view: View) -> tuple[Move, ...]:
        return tuple(whole_contexts(self._ended_calls.ended(view)))

    def wake_at_s(self, view: View) -> float | None:
        return None


class NoUploads:
    """Contexts come back when a call needs them: the engine loads them by itself."""

    held_blocks = 0
    handlers: ClassVar[Mapping[type, Handler]] = {}

    def claims(self, view: View) -> Sequence[UploadClaim]:
        return ()

    def wishes(self, claims: Sequence[UploadClaim], admission: Admission, view: View) -> Wishes:
        return NOTHING


class NoPins:
    """What is cached on the GPU goes by last use."""

    handlers: ClassVar[Mapping[type, Handler]] = {}

    def pins(self, admission: Admission, view: View) -> Mapping[AgentId, float]:
        return EMPTY


class NoCopies:
    """The temporal half, switched off: nothing is copied, and nothing is kept."""

    listens_to: ClassVar[frozenset[type]] = frozenset()
    saves_after: ClassVar[frozenset[type]] = frozenset()
    listeners: Sequence[Listener] = ()
    holds = False
    gives_up_saves = False

    def begin(self, view: View) -> Needs:
        return Needs()

    def saves(self, view: View) -> tuple[Move, ...]:
        return ()

    def uploads(self, view: View, admission: Admission) -> Wishes:
        return NOTHING

    def pins(self, view: View, admission: Admission) -> Mapping[AgentId, float]:
        return EMPTY

    def forgotten(self) -> tuple[AgentId, ...]:
        return ()

    def wake_at_s(self, view: View) -> float | None:
        return None
