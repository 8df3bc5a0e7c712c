"""An application as it plays: which calls are ready when others have ended. It knows no time and no engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from .apps import Application, Call
from .errors import TraceError


class DagCall:
    """A call of an application under way, its `place`th. `context` is what whoever plays it keeps of it."""

    __slots__ = (
        "agent", "awaited", "call", "context", "continued_tokens", "extends", "followers", "id", "place", "run",
    )  # fmt: skip
    __deletable__: ClassVar = ("call",)  # mypyc asks

    def __init__(self, run: DagRun, place: int, call: Call) -> None:
        self.run = run
        self.place = place
        self.id = call.id
        self.agent = call.agent
        self.call = call  # until it has an answer
        self.awaited = len(call.after)  # of those that it waits for, how many have not ended
        self.followers: list[DagCall] | None = None  # that wait for it, until it has ended
        self.extends: DagCall | None = None
        self.continued_tokens = 0  # how many tokens of its context later prompts continue
        self.context: object = None

    @property
    def order(self) -> tuple[int, int]:
        """Breaks ties between calls that arrive at once: by the applications' begins, then as the trace lists them."""
        return self.run.number, self.place

    def answered(self) -> None:
        """What it asked for is of no interest any more. It is most of what there is of an agent whose tools run."""
        del self.call


class DagRun:
    """One application under way, the `number`th that began. Its calls know each other: there may be 100,000 of it."""

    __slots__ = ("_left", "app", "calls", "number")

    def __init__(self, app: Application, number: int) -> None:
        self.app = app.id
        self.number = number
        self._left = len(app.calls)
        self.calls = tuple([DagCall(self, place, call) for place, call in enumerate(app.calls)])
        if self._left > 1:
            self._link()

    def _link(self) -> None:
        by_id = {each.id: each for each in self.calls}
        for each in self.calls:
            for name in each.call.after:
                before = by_id[name]
                if before.followers is None:
                    before.followers = [each]
                else:
                    before.followers.append(each)
            prompt = each.call.prompt
            if prompt.extends is not None:
                extended = each.extends = by_id[prompt.extends]
                extended.continued_tokens = max(prompt.keep_tokens, extended.continued_tokens)

    @property
    def over(self) -> bool:
        """Whether all calls and their tools have ended."""
        return not self._left

    def first(self) -> list[DagCall]:
        """The calls that wait for no other."""
        return [each for each in self.calls if not each.awaited]

    def ended(self, call: DagCall) -> list[DagCall]:
        """A call and its tools have ended, once: the calls that waited for it, and now wait for no other."""
        ready: list[DagCall] = []
        self._left -= 1
        followers, call.followers = call.followers, None
        call.extends = None  # else a long conversation would be let go of as one chain
        for follower in followers or ():
            follower.awaited -= 1
            if not follower.awaited:
                ready.append(follower)
        return ready

    def forget(self) -> None:
        """Nobody asks any more: lets go of its calls, which know it."""
        self.calls = ()


def tools_s(call: Call) -> float:
    """How long the tools of a call take, which has some: they run side by side."""
    return max(tool.duration_s for tool in call.tools)


def in_arrival_order(applications: Iterable[Application]) -> Iterator[Application]:
    """The same applications, drawn one at a time. Raises `TraceError` at one that comes before the one before it."""
    latest_s = 0.0
    for app in applications:
        if app.arrival_s < latest_s:
            raise TraceError(
                f"application {app.id!r}: arrival_s: expected no earlier than the one before it, got {app.arrival_s}"
            )
        latest_s = app.arrival_s
        yield app
