"""The two halves that Tokencake is composed of: who runs, and what becomes of the contexts of those that do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from ...traces import events as e
from ...traces.apps import AgentId
from ...traces.events import Request
from ..interface import CallView, Move, View
from ..parts.admission import Admission, Claim
from ..parts.dispatch import Listener
from .published.score import Line

SPACE_FACTS = frozenset(
    {
        e.CallArrived,
        e.CallAdmitted,  # its prompt is cached from now on: its siblings need less
        e.CallPreempted,
        e.CallFinished,
        e.CallAborted,
        e.LoadFinished,
        e.OffloadFinished,
        e.UploadCancelled,
    }
)
TIME_FACTS = frozenset(
    {
        e.CallArrived,
        e.CallFinished,
        e.CallAborted,
        e.ToolStarted,
        e.ToolReturned,
        e.OffloadFinished,
        e.UploadFinished,
        e.UploadCancelled,
    }
)


class Needs(NamedTuple):
    """What the temporal half needs of the spatial one in this plan."""

    claims: Sequence[Claim] = ()  # of uploads that are to grow, highest score first
    held_blocks: int = 0  # room that uploads hold, or are filling
    weighs: Callable[[View], bool] = lambda view: False  # whether some save is weighed
    at_rest: bool = False  # no tool runs, and there is nothing to save, bring back or give up


class Wishes(NamedTuple):
    """What to upload, what to cancel, when to look again."""

    upload: tuple[Move, ...]
    cancel: tuple[AgentId, ...]
    wake_at_s: float | None


NOTHING = Wishes((), (), None)


class SpaceHalf(Protocol):
    """Which calls start, in which order, and which give way."""

    @property
    def listens_to(self) -> frozenset[type]:
        """The facts after which the policy is asked."""
        ...

    @property
    def listeners(self) -> Sequence[Listener]:
        """What takes in facts."""
        ...

    def heeds_start(self, call: CallView, view: View) -> bool:
        """Whether the start of the only call that waits may change what is planned."""
        ...

    def begin(self, view: View) -> None:
        """All facts are taken in: what follows is about this moment."""
        ...

    def admission(self, view: View, needs: Needs) -> Admission:
        """Loading calls, then those that start now, in order. A call that is not named is held back.

        Claims, highest score first, are granted their share of the room where their score stands in the order.
        """
        ...

    def importance(self, request: Request) -> float:
        """What a save of this call's context is weighed with, 10 at most where it is learned."""
        ...

    def agent_score(self, request: Request) -> float:
        """Where the next call of an agent would stand whose last call is `request`; higher goes first."""
        ...

    def agent_line(self, request: Request) -> Line:
        """How that score grows from now on."""
        ...


class TimeHalf(Protocol):
    """What is saved, brought back, kept and given up of contexts between the calls of their agents."""

    @property
    def listens_to(self) -> frozenset[type]:
        """The facts after which the policy is asked."""
        ...

    @property
    def saves_after(self) -> frozenset[type]:
        """The facts after which a context may be saved."""
        ...

    @property
    def listeners(self) -> Sequence[Listener]:
        """What takes in facts."""
        ...

    @property
    def holds(self) -> bool:
        """Whether copies are held on the host, or room on the GPU for uploads."""
        ...

    @property
    def gives_up_saves(self) -> bool:
        """Whether some copy to the host is given up as soon as it has been made."""
        ...

    def begin(self, view: View) -> Needs:
        """All facts are taken in: what it needs in this plan."""
        ...

    def saves(self, view: View) -> tuple[Move, ...]:
        """Contexts to copy to the host now."""
        ...

    def uploads(self, view: View, admission: Admission) -> Wishes:
        """What to bring back now, in the room that `admission` granted."""
        ...

    def pins(self, view: View, admission: Admission) -> Mapping[AgentId, float]:
        """Contexts to keep on the GPU, each until a time."""
        ...

    def forgotten(self) -> tuple[AgentId, ...]:
        """Host copies to give up now. Each is named once."""
        ...

    def wake_at_s(self, view: View) -> float | None:
        """When to look at what is to be saved again."""
        ...
