"""A thread that carries out copies of one direction while the engine goes on."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Thread
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Lane(Generic[Item]):
    """Carries out items one after another, in the order in which they were put. One that fails is the last one."""

    def __init__(
        self,
        name: str,
        carry_out: Callable[[Item], None],
        failed: Callable[[Exception], None],
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        """All three are called by the thread: `begin` once, `failed` with what one of the others raised."""
        self._carry_out = carry_out
        self._failed = failed
        self._begin = begin
        self._items: SimpleQueue[Item | None] = SimpleQueue()
        self._closing = Event()
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        self._items.put(item)

    def close(self) -> None:
        """Stop after the item under way. Those behind it are dropped."""
        self._closing.set()
        self._items.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._begin()
            while (item := self._items.get()) is not None and not self._closing.is_set():
                self._carry_out(item)
        except Exception as error:  # of whatever kind: without a word of it the engine would wait for ever
            self._failed(error)


def first_line(error: Exception) -> str:
    """What an error says, without the pages of advice that torch and CUDA append."""
    return str(error).partition("\n")[0] or type(error).__name__
