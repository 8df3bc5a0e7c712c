"""vLLM's block pool where several KV cache groups share it: a page is known by its block's hash and its group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ..vllm_surface import Hash, VllmBlock, VllmBlockPool, VllmRequest
from .gpu_pool import GpuPool, Source
from .page_rules import PageSpan, Rules, last_boundary, places, spans


class GroupedGpuPool(GpuPool):
    """`rules` are those of the groups, in vLLM's order."""

    def __init__(self, pool: VllmBlockPool, rules: Rules) -> None:
        super().__init__(pool, rules[0].block_tokens, rules)
        self._ids = [[group] for group in range(len(rules))]

    def page(self, content: Hash, group: int) -> VllmBlock | None:
        """A page with this content, or None."""
        pages = self._pool.get_cached_block(content, self._ids[group])
        return None if pages is None else pages[0]

    def hit(self, hashes: Sequence[Hash], upto: int) -> int:
        """The last boundary of a context, at most `upto`, at which it hits."""
        lookup, ids = self._pool.get_cached_block, self._ids
        return last_boundary(self.rules, 0, upto, lambda group, at: lookup(hashes[at], ids[group]) is not None)

    def pages(self, hashes: Sequence[Hash], boundary: int) -> list[VllmBlock]:
        """All that a hit at this boundary needs, which must be cached."""
        lookup, ids = self._pool.get_cached_block, self._ids
        found = []
        for group, at in places(list(spans(self.rules, 0, boundary))):
            cached = lookup(hashes[at], ids[group])
            assert cached is not None
            found.append(cached[0])
        return found

    def look_up(self, hashes: Sequence[Hash], upto: int) -> Iterator[VllmBlock | None]:
        """Every page of a context's first blocks, whether it can be hit or not."""
        every = [PageSpan(group, 0, upto) for group in range(len(self.rules))]
        return (self.page(hashes[at], group) for group, at in places(every))

    def register_pages(
        self, source: VllmRequest | Source, pages: Sequence[VllmBlock], at: Iterable[tuple[int, int]]
    ) -> None:
        """These pages hold the source's contents, each of a group and a place in its context: they can be hit."""
        for run in _runs(at, pages):
            padded: list[VllmBlock | None] = [None] * run.first + run.pages
            self._pool.cache_full_blocks(source, padded, run.first, len(padded), self.block_tokens, run.group)

    def expose(self, hashes: Sequence[Hash], upto: int, moved: set[int]) -> None:
        self._expose([page for page in self.look_up(hashes, upto) if page is not None], moved)


def gpu_pool(pool: VllmBlockPool, rules: Rules) -> GpuPool:
    """The pool of a model with these groups."""
    return GroupedGpuPool(pool, rules) if len(rules) > 1 else GpuPool(pool, rules[0].block_tokens)


class _Run(NamedTuple):
    """Pages of a group, one after another in their context."""

    group: int
    first: int
    pages: list[VllmBlock]


def _runs(at: Iterable[tuple[int, int]], pages: Sequence[VllmBlock]) -> list[_Run]:
    runs: list[_Run] = []
    for (group, place), page in zip(at, pages, strict=True):
        last = runs[-1] if runs else None
        if last is None or last.group != group or last.first + len(last.pages) != place:
            last = _Run(group, place, [])
            runs.append(last)
        last.pages.append(page)
    return runs
