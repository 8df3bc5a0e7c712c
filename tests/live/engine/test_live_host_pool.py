"""The host's pool goes by runs of blocks, and finds, holds and gives up the slots of one that goes block by block."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from plain_host_pool import PlainHostPool

from tokencake.live.engine.memory.host_pool import HostPool
from tokencake.live.engine.memory.host_runs import HostHold

Context = list[bytes]  # a block's hash says all that is before it


def context(blocks: str) -> Context:
    return [blocks[: at + 1].encode() for at in range(len(blocks))]


def store(pool: HostPool, contents: Context, first: int = 0) -> list[HostHold]:
    return pool.store(pool.take(len(contents) - first), contents[first:], range(first, len(contents)))


def test_what_two_contexts_share_is_found_up_to_where_they_part() -> None:
    pool = HostPool(8)
    pool.release_all(store(pool, context("abcde")))
    assert pool.end(context("abcxe"), 0, 5) == 3
    assert pool.end(context("abcde"), 1, 4) == 4
    assert pool.end(context("abcdef"), 0, 6) == 5
    assert pool.end(context("b"), 0, 1) == 0


def test_of_what_was_released_the_last_block_goes_first() -> None:
    pool = HostPool(4)
    whole = context("abcd")
    pool.release_all(store(pool, whole))
    front = pool.hold(whole, 0, 1)
    assert pool.take(2) == [3, 2]
    assert (pool.end(whole, 0, 4), pool.free) == (2, 1)
    pool.release(front)
    assert pool.take(1) == [1]
    assert pool.end(whole, 0, 4) == 1


def test_a_content_that_is_there_already_leaves_its_slot_free() -> None:
    pool = HostPool(4)
    (first,) = store(pool, context("ab"))
    (held,) = store(pool, context("abc"), 1)
    assert (held.slots, pool.free) == ([3], 1)
    assert pool.take(1) == [2]
    pool.release(first)
    assert pool.free == 2


def test_only_blocks_that_are_copied_from_are_read() -> None:
    pool = HostPool(4)
    whole = context("abcd")
    store(pool, whole)
    hold = pool.hold(whole, 1, 3, to_read=True)
    assert [pool.is_read(whole, at, at + 1) for at in range(4)] == [False, True, True, False]
    pool.release(hold)
    assert not pool.is_read(whole, 0, 4)


class Twins:
    """Both pools, which are told the same, and what is held of each."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        slots = rng.choice((6, 15, 40))
        self.pool, self.plain = HostPool(slots), PlainHostPool(slots)
        self.contexts = [context(self._text()) for _ in range(8)]
        self.held: list[tuple[list[HostHold], list[int], frozenset[bytes]]] = []

    def _text(self) -> str:
        """Texts share beginnings, and part in their middle."""
        rng = self.rng
        return "".join(rng.choice("uv") * rng.randint(1, 5) for _ in range(rng.randint(1, 4)))

    def hold(self) -> None:
        one = self.rng.choice(self.contexts)
        first = self.rng.randint(0, len(one) - 1)
        end = self.plain.end(one, first, self.rng.randint(first, len(one)))
        reads = self.rng.random() < 0.3
        hold = self.pool.hold(one, first, end, to_read=reads)
        self.held.append(([hold], self.plain.hold(one[first:end]), frozenset(one[first:end] if reads else ())))
        assert len(hold) == end - first

    def hold_with_gaps(self) -> None:
        one = self.rng.choice(self.contexts)
        spans = self.pool.stretches(one, 0, len(one))
        here = [at for at in range(len(one)) if self.plain.end(one, at, at + 1) > at]
        assert [at for span in spans for at in range(*span)] == here
        holds = [self.pool.hold(one, *span) for span in spans]
        self.held.append((holds, self.plain.hold([one[at] for at in here]), frozenset()))

    def store(self) -> None:
        """Of a context, maybe with gaps, maybe what is there already."""
        one = self.rng.choice(self.contexts)
        places = [at for at in range(len(one)) if self.rng.random() < 0.8]
        if len(places) > self.plain.free:
            return
        target, contents = self.plain.take(len(places)), [one[at] for at in places]
        assert self.pool.take(len(places)) == target
        self.held.append((self.pool.store(target, contents, places), self.plain.store(target, contents), frozenset()))

    def release(self) -> None:
        if self.held:
            holds, slots, _ = self.held.pop(self.rng.randrange(len(self.held)))
            assert [slot for hold in holds for slot in hold.slots] == slots
            self.pool.release_all(holds)
            self.plain.release(slots)

    def check(self) -> None:
        assert self.pool.free == self.plain.free
        reading = [content for _, _, contents in self.held for content in contents]
        for one in self.contexts:
            for at in range(len(one)):
                assert self.pool.end(one, at, len(one)) == self.plain.end(one, at, len(one))
                for end in range(at, len(one) + 1):
                    assert self.pool.is_read(one, at, end) == any(content in reading for content in one[at:end])


def run(seed: int) -> Iterator[Twins]:
    rng = random.Random(seed)
    twins = Twins(rng)
    for _ in range(150):
        rng.choice((Twins.hold, Twins.hold_with_gaps, Twins.store, Twins.release, Twins.release))(twins)
        yield twins


@pytest.mark.parametrize("seed", range(20))
def test_by_runs_or_by_blocks_the_same_is_found_and_goes(seed: int) -> None:
    for twins in run(seed):
        twins.check()
