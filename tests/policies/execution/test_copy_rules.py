"""Which blocks copies take, what is refused and what is reported: small contexts of an agent called `a`."""

from collections.abc import Iterable
from typing import Any

import pytest

from tokencake.policies.execution.agent_cache import AgentCache, Upload
from tokencake.policies.execution.copy_rules import (
    blocks_to_move,
    cancel_uploads,
    expired_pins,
    may_pin,
    offload_span,
    ready_blocks,
    take_uploads,
    tokens_left_behind,
    tokens_to_store,
    upload_span,
    upload_start,
    uploading,
)
from tokencake.policies.interface import Move

Agent = AgentCache[str, str, int]


def agent(context_blocks: int = 10, **fields: object) -> Agent:
    made = Agent("a", 0)
    made.context_blocks = context_blocks
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def upload(first_block: int, end_block: int, started_at: int = 0, ready_at: int | None = None) -> Upload[str, int]:
    made = Upload(f"blocks from {first_block} on", first_block, end_block, started_at)
    made.ready_at = ready_at
    return made


# -- offloads


def offload(of: Agent, first: int = 4, cached_end: int = 9, saved: int = 0, slots: int = 100) -> Any:
    return offload_span(of, first, cached_end, saved, slots, refusing=False)


def test_no_more_blocks_move_than_the_context_has() -> None:
    assert blocks_to_move(agent(10), Move("a", 12)) == 10
    assert blocks_to_move(agent(10), Move("a", 7)) == 7


def test_an_offload_copies_what_the_host_lacks_of_what_the_gpu_has() -> None:
    assert offload(agent()) == (4, 9)


def test_an_offload_goes_as_far_as_the_host_has_room() -> None:
    assert offload(agent(), slots=5) == (4, 9)
    assert offload(agent(), slots=3) == (4, 7)


def test_an_offload_copies_nothing_if_others_have_copied_all_of_it() -> None:
    assert offload(agent(), cached_end=4) == (4, 4)
    assert offload(agent(), slots=0) == (4, 4)


@pytest.mark.parametrize("fields", [{"offloading": True}, {"gone": True}])
def test_no_second_offload_and_none_of_an_agent_that_is_gone(fields: dict[str, object]) -> None:
    assert offload(agent(**fields)) is None  # type: ignore[arg-type]


def test_an_offload_that_adds_nothing_to_the_agents_copy_is_refused() -> None:
    assert offload(agent(), saved=9) is None
    assert offload(agent(), saved=8) == (4, 9)
    assert offload(agent(), saved=7, slots=3) is None


def test_an_offload_of_nothing_is_refused() -> None:
    assert offload(agent(0), first=0, cached_end=0) is None
    assert offload(agent(), first=0, slots=0) is None


def test_while_calls_starve_nothing_is_offloaded_or_uploaded() -> None:
    assert offload_span(agent(), 4, 9, 0, 100, refusing=True) is None
    assert upload_span(agent(), 4, 9, 100, refusing=True) is None


# -- uploads


def test_the_first_upload_holds_what_is_cached_and_copies_what_follows() -> None:
    assert upload_start([], gpu_end=3) == (0, 3)


def test_the_next_upload_copies_behind_what_is_on_its_way_and_holds_nothing_twice() -> None:
    assert upload_start([upload(3, 5)], gpu_end=3) == (5, 5)
    assert upload_start([upload(3, 5), upload(5, 8)], gpu_end=3) == (8, 8)


def test_when_an_upload_is_ready_the_next_one_holds_what_is_cached_behind_it() -> None:
    assert upload_start([upload(3, 5, ready_at=1)], gpu_end=5) == (5, 5)
    assert upload_start([upload(3, 5, ready_at=1)], gpu_end=7) == (5, 7)


def test_an_upload_begins_where_the_gpus_part_ends_even_if_an_earlier_one_is_further_on() -> None:
    """The agent's context is another one by now: of the new one, the GPU has less."""
    assert upload_start([upload(3, 5)], gpu_end=2) == (2, 2)


def test_an_upload_goes_as_far_as_the_host_has_it_and_there_is_room() -> None:
    assert upload_span(agent(), 4, host_end=9, room=5, refusing=False) == (4, 9)
    assert upload_span(agent(), 4, host_end=9, room=3, refusing=False) == (4, 7)


@pytest.mark.parametrize(("host_end", "room"), [(4, 5), (9, 0), (9, -1)])
def test_an_upload_of_nothing_is_refused(host_end: int, room: int) -> None:
    assert upload_span(agent(), 4, host_end, room, refusing=False) is None


@pytest.mark.parametrize("fields", [{"waiting": 1}, {"gone": True}])
def test_no_upload_for_a_call_that_waits_already_or_never_comes(fields: dict[str, object]) -> None:
    assert upload_span(agent(**fields), 4, 9, 5, refusing=False) is None  # type: ignore[arg-type]


def test_uploads_are_under_way_until_the_last_one_is_ready() -> None:
    assert not uploading(agent())
    some = agent(uploads=(upload(3, 5, ready_at=7), upload(5, 9)))
    assert uploading(some)
    assert ready_blocks(some) == 2
    some.uploads[1].ready_at = 8
    assert not uploading(some)
    assert ready_blocks(some) == 6


# -- what becomes of uploads


@pytest.mark.parametrize(("arrived", "early", "late"), [(30, 10, 0), (20, 0, 0), (15, 0, 5)])
def test_uploads_are_early_or_late_by_the_last_of_them(arrived: int, early: int, late: int) -> None:
    uploads = (upload(3, 5, ready_at=10), upload(5, 9, ready_at=20))
    some = agent(uploads=uploads)
    taken = take_uploads(some, arrived, now=40)
    assert (taken.uploads, taken.num_blocks, taken.early, taken.late) == (uploads, 6, early, late)
    assert some.uploads == ()


def test_an_upload_that_is_still_on_its_way_is_ready_now_at_the_earliest() -> None:
    taken = take_uploads(agent(uploads=(upload(3, 5, ready_at=0), upload(5, 9))), arrived=30, now=40)
    assert (taken.early, taken.late) == (0, 10)


def test_an_upload_may_be_ready_at_time_zero() -> None:
    assert take_uploads(agent(uploads=(upload(3, 5, ready_at=0),)), arrived=30, now=40).early == 30


def test_times_are_of_the_engines_kind() -> None:
    seconds = AgentCache[str, str, float]("a", 0.0)
    seconds.uploads = (Upload("blocks", 3, 5, 1.0),)
    seconds.uploads[0].ready_at = 2.0
    taken = take_uploads(seconds, 1.5, 3.0)
    assert (repr(taken.early), repr(taken.late)) == ("0.0", "0.5")


def test_of_cancelled_uploads_those_that_are_ready_are_given_up_now() -> None:
    ready, coming = upload(3, 5, started_at=4, ready_at=6), upload(5, 9, started_at=5)
    some = agent(uploads=(ready, coming))
    cancelled = cancel_uploads(some, now=12)
    assert (cancelled.ready, cancelled.num_blocks, cancelled.held) == ([ready], 6, 8)
    assert (ready.cancelled, coming.cancelled) == (False, True)
    assert some.uploads == ()


# -- pins


def test_what_is_cached_of_an_idle_agent_may_be_pinned() -> None:
    assert may_pin(agent(), refusing=False)


@pytest.mark.parametrize("fields", [{"pin": "blocks"}, {"waiting": 1}, {"context_blocks": 0}])
def test_nothing_is_pinned_twice_or_for_a_call_that_waits_or_without_a_context(fields: dict[str, Any]) -> None:
    assert not may_pin(agent(**fields), refusing=False)


def test_nothing_is_pinned_while_calls_starve() -> None:
    assert not may_pin(agent(), refusing=True)


def test_a_pin_ends_at_its_time() -> None:
    pinned = [agent(pin_until=until) for until in (3, 4, 5)]
    assert untils(expired_pins(pinned, now=4)) == [3, 4]


def untils(agents: Iterable[Agent]) -> list[int]:
    return [one.pin_until for one in agents]


# -- write-through


@pytest.mark.parametrize(("computed", "stored"), [(30, 30), (50, 40)])
def test_of_prompts_no_answer_is_stored(computed: int, stored: int) -> None:
    assert tokens_to_store("prompts", computed, prompt_tokens=40) == stored
    assert tokens_to_store("contexts", computed, prompt_tokens=40) == computed


def test_the_last_token_of_an_answer_has_no_kv() -> None:
    assert tokens_left_behind("prompts", 40, 8) == 40
    assert tokens_left_behind("contexts", 40, 8) == 47
