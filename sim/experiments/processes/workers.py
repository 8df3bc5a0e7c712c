"""Processes that play for this one, several at a time.

The standard library's pool of processes is broken as a whole when one of them is killed, and does not say which task
did it; a sweep goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from typing import Any, TypeVar

from .agenda import Agenda
from .worker import LOOK_S, Died, Worker, outcome

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_OWNERS = 4  # for whom a seat keeps a process each


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Calls functions in one of `count` processes; a process that dies gets a successor.

    `whose` says of an item whose code plays it: what one has changed in its process is not played by another.
    `policy_timeout_s`: see `Worker`.
    """

    def __init__(
        self, count: int, policy_timeout_s: float | None = None, whose: Callable[[Any], str] = lambda item: ""
    ) -> None:
        self._seats = [_Seat(policy_timeout_s) for _ in range(count)]
        self._whose = whose

    def play(
        self, act: Callable[[Item], Result], agenda: Agenda[Item], lost: Callable[[Item, str], Result]
    ) -> Iterator[tuple[Item, Result]]:
        """What `act`, a function of a module, makes of each item, in the order in which they finish.

        `lost` makes a result for an item whose process has died, and why. Raises as `worker.outcome`.
        """
        busy: dict[_Seat, Item] = {}

        def go_on(seat: _Seat) -> None:
            if (item := agenda.draw(seat)) is not None:
                busy[seat] = item
                seat.begin(self._whose(item), act, item)

        for seat in self._seats:
            go_on(seat)
        while busy:
            wait([seat.worker.pipe for seat in busy], LOOK_S)
            for seat, item in list(busy.items()):
                try:
                    answer = seat.worker.answer()
                except Died as died:
                    seat.dismiss()
                    answer = "done", lost(item, str(died))
                if answer is not None:
                    del busy[seat]
                    agenda.took(item, time.perf_counter() - seat.began_s)
                    go_on(seat)  # before anybody looks at the result
                    yield item, outcome(answer)

    def end(self) -> None:
        """Ends the processes; what they are playing is lost."""
        workers = [worker for seat in self._seats for worker in seat.workers.values()]
        for worker in workers:
            worker.hurry()
        for worker in workers:
            worker.end()


class _Seat:
    """Plays one item at a time, each in a process of the one whose code it is."""

    worker: Worker  # who plays now, or has played last

    def __init__(self, policy_timeout_s: float | None) -> None:
        self.workers: dict[str, Worker] = {}  # by owner
        self.began_s = 0.0
        self._policy_timeout_s = policy_timeout_s

    def begin(self, owner: str, act: Callable[[Item], object], item: Item) -> None:
        self.began_s = time.perf_counter()
        if owner not in self.workers:
            if len(self.workers) == MOST_OWNERS:
                self.workers.pop(next(iter(self.workers))).end()
            self.workers[owner] = Worker(self._policy_timeout_s)
        self.worker = self.workers[owner]
        self.worker.begin(act, item)

    def dismiss(self) -> None:
        """Its process has died, and gets a successor."""
        self.worker.end()
        self.workers = {owner: worker for owner, worker in self.workers.items() if worker is not self.worker}
