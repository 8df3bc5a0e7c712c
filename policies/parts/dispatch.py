"""What happened, told to whoever handles facts of its kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from ...traces.events import Fact

Handler = Callable[..., None]


class Listener(Protocol):
    """A part of a policy that takes in facts, by their kinds."""

    @property
    def handlers(self) -> Mapping[type, Handler]: ...


def tell(news: Iterable[Fact], handlers: Mapping[type, Handler], *more: object) -> None:
    """Each fact that has a handler, in order; `more` is what a handler gets beside it."""
    for fact in news:
        handle = handlers.get(type(fact))
        if handle is not None:
            handle(fact, *more)


def merged(listeners: Iterable[Listener]) -> Mapping[type, Handler]:
    """One handler a kind of fact: it hands a fact to each listener that handles its kind, in their order."""
    several: dict[type, list[Handler]] = {}
    for listener in listeners:
        for kind, handle in listener.handlers.items():
            several.setdefault(kind, []).append(handle)
    return {kind: handles[0] if len(handles) == 1 else partial(_each, handles) for kind, handles in several.items()}


def _each(handles: Sequence[Handler], fact: Any, *more: object) -> None:
    for handle in handles:
        handle(fact, *more)
