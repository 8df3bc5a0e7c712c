"""What is held stays, what is to go first goes first, and for the rest the policy underneath decides. Without vLLM."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from plain_lru import PlainLru

from tokencake.live.host_tier.chunks import Chunks
from tokencake.live.host_tier.offload_surface import Key

KEYS = [bytes([letter]) for letter in b"abcdefghij"]


def tier(keys: Iterable[Key]) -> tuple[PlainLru, Chunks]:
    """A tier in which these lie, used in this order."""
    inner = PlainLru()
    chunks = Chunks(inner)
    for key in keys:
        inner.insert(key, key.decode())
        chunks.mark_evictable(key)
    return inner, chunks


def nobody() -> bool:
    return False


def gone(chunks: Chunks, n: int, protected: set[Key] = frozenset(), give_up: Callable[[], bool] = nobody) -> Any:  # type: ignore[assignment]
    evicted = chunks.evict(n, protected, give_up)
    return None if evicted is None else "".join(chunk for _, chunk in evicted)


def test_a_policy_that_wants_nothing_leaves_the_order_as_it_is() -> None:
    _, chunks = tier(KEYS)
    assert (gone(chunks, 3), gone(chunks, 2)) == ("abc", "de")


def test_what_is_held_stays_and_goes_by_its_last_use_when_it_is_released() -> None:
    _, chunks = tier(KEYS)
    chunks.hold([b"a", b"c"])
    assert gone(chunks, 2) == "bd"
    assert chunks.release([b"a", b"c"]) == 2
    assert gone(chunks, 3) == "ace"


def test_what_two_hold_stays_until_both_release_it() -> None:
    _, chunks = tier(KEYS[:3])
    chunks.hold([b"a"])
    chunks.hold([b"a", b"b"])
    assert chunks.release([b"a"]) == 0
    assert gone(chunks, 1) == "c"
    assert chunks.release([b"a", b"b"]) == 2
    assert gone(chunks, 2) == "ab"


def test_some_go_first_unless_they_are_held_in_use_or_protected() -> None:
    _, chunks = tier(KEYS)
    chunks.hold([b"j"])
    chunks.mark_non_evictable(b"i")
    chunks.evict_first([b"j", b"i", b"h", b"g", b"f"])
    assert gone(chunks, 1, {b"h"}) == "g"
    assert gone(chunks, 2) == "hf"
    chunks.mark_evictable(b"i")
    assert gone(chunks, 2) == "ia"
    assert gone(chunks, 2) == "bc"


def test_without_room_what_is_held_is_given_up_as_far_as_needed() -> None:
    _, chunks = tier(KEYS[:5])
    holds = [[b"a"], [b"b", b"c"], [b"d"]]
    for hold in holds:
        chunks.hold(hold)

    def give_up() -> bool:
        if holds:
            chunks.release(holds.pop(0))
            return True
        return False

    assert gone(chunks, 1, give_up=give_up) == "e"
    assert gone(chunks, 2, give_up=give_up) == "ab"
    assert holds == [[b"d"]]
    assert gone(chunks, 2, {b"d"}, give_up) is None
    assert holds == [[b"d"]]


def test_a_chunk_that_a_failed_store_took_away_may_come_back_held() -> None:
    inner, chunks = tier([])
    inner.insert(b"a", "a")
    chunks.hold([b"a"])
    inner.remove(b"a")
    inner.insert(b"a", "a")
    chunks.mark_evictable(b"a")
    assert inner.evictable == set()
    assert chunks.release([b"a"]) == 1
    assert gone(chunks, 1) == "a"


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["insert", "use", "unuse", "hold", "release", "first", "evict"]),
        st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True),
        st.integers(1, 4),
    ),
    max_size=60,
)


@given(operations=OPERATIONS)
def test_it_evicts_what_a_plain_account_says(operations: list[tuple[str, list[Key], int]]) -> None:
    """The account: for each chunk whether it is in use, how many hold it; each eviction is looked up in full."""
    inner, chunks = tier([])
    in_use: dict[Key, bool] = {}  # by chunk that is there
    held: list[list[Key]] = []
    order: list[Key] = []  # of last use
    first: list[Key] = []

    def give_up() -> bool:
        if held:
            chunks.release(held.pop(0))
            return True
        return False

    for kind, keys, n in operations:
        if kind == "insert":
            for key in [key for key in keys if key not in in_use]:
                inner.insert(key, key.decode())
                in_use[key] = True
                order.append(key)
        elif kind == "use":
            for key in [key for key in keys if in_use.get(key) is False]:
                chunks.mark_non_evictable(key)
                in_use[key] = True
        elif kind == "unuse":
            for key in [key for key in keys if in_use.get(key) is True]:
                chunks.mark_evictable(key)
                in_use[key] = False
        elif kind == "hold":
            there = [key for key in keys if key in in_use]
            chunks.hold(there)
            held.append(there)
        elif kind == "release" and held:
            chunks.release(held.pop(n % len(held)))
        elif kind == "first":
            chunks.evict_first(keys)
            first = keys
        elif kind == "evict":
            protected = set(keys[:1])
            idle = [key for key in order if key in in_use and not in_use[key] and key not in protected]
            evicted = chunks.evict(n, protected, give_up)
            if len(idle) < n:
                assert evicted is None
                continue
            assert evicted is not None
            kept = {key for hold in held for key in hold}
            free = [key for key in idle if key not in kept]
            ahead: list[Key] = []
            passed: list[Key] = []
            while first and len(ahead) < n:
                key, *first = first
                if key in free:
                    ahead.append(key)
                elif key in in_use:
                    passed.append(key)
            first = passed + first
            expected = (ahead + [key for key in free if key not in ahead])[:n]
            assert [key for key, _ in evicted] == expected
            for key in expected:
                del in_use[key]
                order.remove(key)
            assert chunks.num_held == len(kept)
        assert inner.evictable == {
            key for key, used in in_use.items() if not used and not any(key in hold for hold in held)
        }
