"""A cache policy as vLLM's CPU tier has them, by last insertion, told in the plainest way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


class PlainLru:
    def __init__(self) -> None:
        self.chunks: dict[bytes, Any] = {}
        self.evictable: set[bytes] = set()

    def get(self, key: bytes) -> Any | None:
        return self.chunks.get(key)

    def insert(self, key: bytes, chunk: Any, *req_context: Any) -> None:
        self.chunks[key] = chunk

    def remove(self, key: bytes) -> None:
        del self.chunks[key]

    def touch(self, keys: Iterable[bytes], req_context: Any) -> None:
        """Nothing is reused."""

    def on_store_miss(self, keys: Iterable[bytes], req_context: Any) -> None:
        """Nothing is learnt."""

    def on_request_finished(
        self, key_groups: Sequence[Sequence[bytes]], only: set[bytes], reused: set[bytes], req_context: Any
    ) -> None:
        """Nothing is reused."""

    def evict(self, n: int, protected: set[bytes]) -> list[tuple[bytes, Any]] | None:
        going = [key for key in self.chunks if key in self.evictable and key not in protected][:n]
        if len(going) < n:
            return None
        self.evictable.difference_update(going)
        return [(key, self.chunks.pop(key)) for key in going]

    def clear(self) -> None:
        self.chunks.clear()
        self.evictable.clear()

    def mark_evictable(self, key: bytes) -> None:
        assert key in self.chunks
        assert key not in self.evictable
        self.evictable.add(key)

    def mark_non_evictable(self, key: bytes) -> None:
        self.evictable.remove(key)
