"""What happened, told to whoever handles facts of its kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ...traces.events import Fact


def tell(news: Iterable[Fact], handlers: Mapping[type, Callable[..., None]], *more: object) -> None:
    """Each fact that has a handler, in order; `more` is what a handler gets beside it."""
    for fact in news:
        handle = handlers.get(type(fact))
        if handle is not None:
            handle(fact, *more)
