"""The chunks of the tier: which are held, which go first, and for all the rest vLLM's own policy, LRU.

A chunk that is held is for vLLM's policy one that is in use. So its rules of recency, which change with its versions,
stay its own, and a policy that wants nothing leaves them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .offload_surface import Evicted, Key, VllmCachePolicy


class Chunks:
    """What lies in the tier. `inner` is vLLM's policy; what is in use and what is not, it is told by this alone."""

    def __init__(self, inner: VllmCachePolicy) -> None:
        self._inner = inner
        self._idle: set[Key] = set()  # no transfer uses them
        self._holders: dict[Key, int] = {}  # how many hold a chunk; one that was lost may come back
        self._num_free = 0  # of the idle, those that nobody holds
        self._first: list[Key] = []  # go first, the next one at the end

    def __contains__(self, key: Key) -> bool:
        return self._inner.get(key) is not None

    @property
    def num_held(self) -> int:
        return len(self._holders)

    def prefix(self, keys: Sequence[Key]) -> int:
        """How many of these are there, from the first on."""
        for number, key in enumerate(keys):
            if key not in self:
                return number
        return len(keys)

    # -- what transfers do

    def mark_evictable(self, key: Key) -> None:
        self._idle.add(key)
        if key not in self._holders:
            self._num_free += 1
            self._inner.mark_evictable(key)

    def mark_non_evictable(self, key: Key) -> None:
        self._idle.discard(key)
        if key not in self._holders:
            self._num_free -= 1
            self._inner.mark_non_evictable(key)

    def clear(self) -> None:
        """Everything is gone, and nothing is held."""
        self._inner.clear()
        self._idle.clear()
        self._holders.clear()
        self._first.clear()
        self._num_free = 0

    # -- what a policy wants

    def hold(self, keys: Iterable[Key]) -> None:
        """These stay until as many release them as hold them."""
        for key in keys:
            holders = self._holders.get(key, 0)
            self._holders[key] = holders + 1
            if not holders and key in self._idle:
                self._num_free -= 1
                self._inner.mark_non_evictable(key)

    def release(self, keys: Iterable[Key]) -> int:
        """Hold these no more. Returns how many of them nobody holds now."""
        freed = 0
        for key in keys:
            holders = self._holders.get(key, 0)
            if holders > 1:
                self._holders[key] = holders - 1
            elif holders:
                del self._holders[key]
                freed += 1
                if key in self._idle:
                    self._num_free += 1
                    self._inner.mark_evictable(key)
        return freed

    def evict_first(self, keys: Iterable[Key]) -> None:
        """These go before all others, in this order, as far as nobody uses or holds them then."""
        self._first = [*keys]
        self._first.reverse()

    def evict(self, n: int, protected: set[Key], give_up: Callable[[], bool]) -> Evicted | None:
        """Take `n` chunks out, none of `protected`; None, and nothing has changed, if there are not as many.

        While too few are free `give_up` is asked, which gives up what somebody holds; there must be somebody then.
        """
        kept = [key for key in protected if key in self._idle]
        if n > len(self._idle) - len(kept):
            return None
        while n > self._num_free - sum(key not in self._holders for key in kept) and give_up():
            pass
        evicted = self._take_first(n, protected)
        if len(evicted) < n:
            others = self._inner.evict(n - len(evicted), protected)
            assert others is not None, "vLLM's policy has fewer chunks to evict than there are"
            self._idle.difference_update([key for key, _ in others])
            self._num_free -= len(others)
            evicted += others
        return evicted

    def _take_first(self, n: int, protected: set[Key]) -> Evicted:
        taken: list[tuple[Key, Any]] = []
        passed: list[Key] = []
        while self._first and len(taken) < n:
            key = self._first.pop()
            if key in self._idle and key not in self._holders and key not in protected:
                taken.append((key, self._inner.get(key)))
                self._inner.mark_non_evictable(key)
                self._inner.remove(key)
                self._idle.remove(key)
                self._num_free -= 1
            elif key in self:
                passed.append(key)
        self._first += reversed(passed)
        return taken
