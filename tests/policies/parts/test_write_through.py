"""Write-through: what calls compute lies on the host, and belongs to nobody.

A block is four tokens. A step takes a second, however much it computes, and a copy of a block a tenth of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any, cast

from crowded_runs import count
from hypothesis import given
from hypothesis import strategies as st
from runs import Record, assert_the_same_by_all_structures, play

from tokencake.policies.field.native_offload import NativeOffload
from tokencake.policies.field.oracle import Oracle
from tokencake.policies.interface import EVERYTHING, Extent, Move, Plan, View
from tokencake.sim.machine.machine import Machine
from tokencake.traces import events as e
from tokencake.traces.apps import Application, Call, Prompt, Segment

SIZE = 4
BLOCK_BYTES = 100_000_000
MACHINE = Machine(
    name="small",
    gpu_blocks=20,
    block_tokens=SIZE,
    kv_bytes_per_token=BLOCK_BYTES // SIZE,
    host_gib=100 * BLOCK_BYTES / 2**30,
    max_context_tokens=1000,
    step_budget_tokens=32,
    max_running=8,
    asynchronous=False,
    step_s=1.0,
    link_gbps=1.0,
)
through = partial(NativeOffload, save="contexts")
prompts_alone = partial(NativeOffload, save="prompts")


def prompt_of(*parts: tuple[str, int]) -> Prompt:
    """Tokens from the beginnings of these sources."""
    return Prompt(tuple(Segment(source, 0, tokens) for source, tokens in parts), tokens=sum(n for _, n in parts))


def one_call(name: str, at_s: float, prompt: Prompt, output_tokens: int = 1) -> Application:
    """An application of one call."""
    return Application(name, at_s, (Call(name, name, f"{name}/agent", "agent", prompt, output_tokens, output_tokens),))


def happened(records: Sequence[Record], kind: type) -> list[tuple[Any, ...]]:
    return [cast(Any, record) for record in records if isinstance(record, kind)]


# -- what is stored, and when


def test_a_prompts_full_blocks_are_copied_when_the_step_has_ended_that_computes_them() -> None:
    """70 tokens in steps of 32, 32 and 6: blocks 0 to 7, 8 to 15 and 16, copied from 1 s, 2 s and 3 s on.

    The second copy takes from 2.0 to 2.8 s; the end of a copy is seen at the end of a step.
    """
    records = play((one_call("a", 0.0, prompt_of(("x", 70)), 3),), prompts_alone, replace(MACHINE, gpu_blocks=30))
    assert happened(records, e.StoreStarted) == [(0.0, "a", 8), (1.0, "a", 8), (2.0, "a", 1)]
    assert happened(records, e.StoreFinished) == [(2.0, "a", 8), (3.0, "a", 8), (4.0, "a", 1)]


def test_an_answers_blocks_follow_when_its_call_has_ended() -> None:
    """8 tokens and an answer of 6: 13 of them have KV, three blocks; the third is the answer's."""
    made = (one_call("a", 0.0, prompt_of(("x", 8)), 6), one_call("b", 20.0, prompt_of(("y", 1))))
    assert happened(play(made, through, MACHINE), e.StoreStarted) == [(0.0, "a", 2), (6.0, "a", 1)]
    assert happened(play(made, prompts_alone, MACHINE), e.StoreStarted) == [(0.0, "a", 2)]


def test_nothing_is_copied_twice() -> None:
    """The second call has eight blocks with the first, on the GPU and on the host, and one of its own."""
    made = (
        one_call("a", 0.0, prompt_of(("x", 33))),
        one_call("b", 10.0, prompt_of(("x", 32), ("y", 5))),
        one_call("c", 20.0, prompt_of(("z", 1))),
    )
    records = play(made, through, MACHINE)
    assert [(call, blocks) for _, call, blocks in happened(records, e.StoreStarted)] == [("a", 8), ("b", 1)]


def test_two_calls_of_one_step_copy_what_they_share_once() -> None:
    machine = replace(MACHINE, step_budget_tokens=64)
    made = (one_call("a", 0.0, prompt_of(("x", 32), ("y", 5))), one_call("b", 0.0, prompt_of(("x", 32), ("z", 5))))
    records = play((*made, one_call("c", 20.0, prompt_of(("u", 1)))), through, machine)
    assert [(call, blocks) for _, call, blocks in happened(records, e.StoreStarted)] == [("a", 9), ("b", 1)]


def test_what_is_on_the_gpu_and_not_on_the_host_is_copied_by_the_next_call_that_hits_it() -> None:
    class Later:
        """Begins to write through at ten seconds."""

        listens_to = frozenset({e.CallArrived})

        def plan(self, view: View) -> Plan:
            return Plan(write_through="prompts" if view.now_s >= 10 else None)

    made = (
        one_call("a", 0.0, prompt_of(("x", 33))),
        one_call("b", 10.0, prompt_of(("x", 33))),
        one_call("c", 20.0, prompt_of(("z", 1))),
    )
    assert happened(play(made, Later, MACHINE), e.StoreStarted) == [(10.0, "b", 8)]


class AdmitsNobody:
    """The engine starts every call against its will."""

    listens_to = EVERYTHING

    def plan(self, view: View) -> Plan:
        return Plan(admit=(), write_through="prompts")


def test_a_call_that_starts_against_the_plan_is_written_through_as_well() -> None:
    """Nobody is admitted and nothing runs, so the engine starts the call. Its blocks are stored all the same."""
    records = play((one_call("a", 0.0, prompt_of(("x", 70)), 3),), AdmitsNobody, replace(MACHINE, gpu_blocks=30))
    assert happened(records, e.StoreStarted) == [(0.0, "a", 8), (1.0, "a", 8), (2.0, "a", 1)]


def test_a_call_that_was_loaded_against_the_plan_starts_as_loaded() -> None:
    """c loads five blocks behind three that are cached, since the engine wills it; with them it starts."""
    made = (
        one_call("a", 0.0, prompt_of(("x", 33))),
        one_call("b", 10.0, prompt_of(("y", 65))),
        one_call("c", 30.0, prompt_of(("x", 33))),
    )
    records = play(made, AdmitsNobody, MACHINE)
    (admitted,) = [fact for fact in records if isinstance(fact, e.CallAdmitted) and fact.call == "c"]
    assert (admitted.gpu_hit_tokens, admitted.host_hit_tokens) == (12, 20)
    assert happened(records, e.LoadFinished) == [(admitted.at_s, "c", 5)]


def test_what_was_loaded_gives_way_to_whom_the_plan_admits() -> None:
    """c has 8 blocks from its load and wants no more room; d, whom alone the plan admits, lacks it."""

    class WantsOnlyD:
        listens_to = EVERYTHING

        def plan(self, view: View) -> Plan:
            admit = ("d",) if "d" in view.waiting else tuple(call for call in view.waiting if call != "d")
            return Plan(admit=admit, write_through="prompts")

    made = (
        one_call("a", 0.0, prompt_of(("x", 33))),
        one_call("b", 10.0, prompt_of(("y", 65))),
        one_call("c", 30.0, prompt_of(("x", 33))),
        one_call("d", 30.2, prompt_of(("z", 65))),
    )
    records = play(made, WantsOnlyD, MACHINE)
    assert [call for _, call, *_ in happened(records, e.CallAdmitted)] == ["a", "b", "d", "c"]
    assert happened(records, e.LoadStarted)[0][1] == "c"


def test_a_host_without_room_for_all_of_it_takes_nothing() -> None:
    """As vLLM's does. Ten blocks on the host; a prompt of eight leaves no room for another step's eight of its own."""
    machine = replace(MACHINE, gpu_blocks=30, host_gib=10 * BLOCK_BYTES / 2**30, link_gbps=0.01)
    records = play((one_call("a", 0.0, prompt_of(("x", 65))),), through, machine)
    assert happened(records, e.StoreStarted) == [(0.0, "a", 8)]


# -- who hits it


def test_a_call_of_another_application_loads_what_the_gpu_has_lost() -> None:
    """b's prompt takes 17 of the 20 blocks, so of a's eight cached ones three are left; c loads five."""
    made = (
        one_call("a", 0.0, prompt_of(("x", 33))),
        one_call("b", 10.0, prompt_of(("y", 65))),
        one_call("c", 30.0, prompt_of(("x", 33))),
    )
    records = play(made, through, MACHINE)
    assert [tuple(fact)[1:] for fact in records if isinstance(fact, e.LoadStarted)] == [("c", 5, 3)]
    hits = {
        fact.call: (fact.gpu_hit_tokens, fact.host_hit_tokens) for fact in records if isinstance(fact, e.CallAdmitted)
    }
    assert hits == {"a": (0, 0), "b": (0, 0), "c": (12, 20)}


def test_the_host_drops_what_was_used_last_the_longest_ago() -> None:
    """It holds 16 blocks; a, b and c have eight each. c takes the place of b, since a was used again meanwhile."""
    machine = replace(MACHINE, gpu_blocks=12, host_gib=16 * BLOCK_BYTES / 2**30)
    sources = ("a", "b", "a", "c", "a", "b")
    made = tuple(one_call(f"{at}{x}", 10.0 * at, prompt_of((x, 33))) for at, x in enumerate(sources))
    records = play(made, through, machine)
    hits = [fact.gpu_hit_tokens + fact.host_hit_tokens for fact in records if isinstance(fact, e.CallAdmitted)]
    assert hits == [0, 0, 32, 0, 32, 0]


def test_what_is_on_its_way_to_the_host_is_still_on_the_gpu() -> None:
    """The copy holds its source, also when its call has ended: whoever has the same prompt hits it there."""
    machine = replace(MACHINE, link_gbps=0.1)  # a second a block: eight seconds
    made = (one_call("a", 0.0, prompt_of(("x", 33))), one_call("b", 2.0, prompt_of(("x", 33))))
    records = play(made, through, machine)
    admitted = {fact.call: fact for fact in records if isinstance(fact, e.CallAdmitted)}
    assert admitted["b"].gpu_hit_tokens == 32
    assert admitted["b"].at_s == 2.0


def test_moves_and_write_through_share_the_host() -> None:
    """An agent's context that was written through is held for it without another copy; and given up when it ends."""

    class Both:
        listens_to = EVERYTHING

        def plan(self, view: View) -> Plan:
            idle = [agent.id for agent in view.agents.values() if agent.context_blocks and not agent.host_blocks]
            return Plan(write_through="contexts", offload=tuple(Move(name, 100) for name in idle))

    first = Call("a/1", "a", "a/x", "agent", prompt_of(("x", 33)), 4, 4)
    second = Call("a/2", "a", "a/x", "agent", prompt_of(("x", 33)), 1, 1, after=("a/1",), pause_s=10.0)
    records = play((Application("a", 0.0, (first, second)),), Both, MACHINE)
    assert [blocks for _, _, blocks in happened(records, e.StoreStarted)] == [8, 1]
    assert sum(fact.blocks for fact in records if isinstance(fact, e.OffloadStarted)) == 0
    assert count(records, e.HostDropped) == 1


# -- whose it is


@st.composite
def independent_calls(draw: st.DrawFn) -> tuple[list[Call], list[float], Machine]:
    """Calls with a common beginning, when they come, and a machine that can hold the largest of them."""
    shared = draw(st.integers(0, 40))
    calls: list[Call] = []
    for at in range(draw(st.integers(2, 8))):
        own, answer = draw(st.integers(1, 30)), draw(st.integers(1, 20))
        kept = draw(st.sampled_from((shared, shared // 2)))
        parts = [("shared", kept), (draw(st.sampled_from(("same", f"own{at}"))), own)]
        prompt = prompt_of(*(part for part in parts if part[1]))
        calls.append(Call(f"c{at}", "a", "a/agent", "agent", prompt, answer, answer))
    gaps = draw(st.lists(st.sampled_from((0.0, 1.0, 1.5, 30.0)), min_size=len(calls), max_size=len(calls)))
    largest = max(-(-(call.prompt_tokens + call.output_tokens) // SIZE) for call in calls)
    machine = replace(
        MACHINE,
        gpu_blocks=largest + draw(st.integers(0, 10)),
        host_gib=draw(st.sampled_from((0, 5, 20, 1000))) * BLOCK_BYTES / 2**30,
        link_gbps=draw(st.sampled_from((0.1, 1.0, 1000.0))),
        asynchronous=draw(st.booleans()),
    )
    return calls, list(accumulate(gaps)), machine


def of_calls(records: Sequence[Record]) -> list[Record]:
    kinds = (e.CallAdmitted, e.CallFinished, e.CallPreempted, e.LoadStarted, e.StoreStarted, e.StoreFinished)
    return [record for record in records if isinstance(record, kinds)]


@given(made=independent_calls(), save=st.sampled_from(("prompts", "contexts")))
def test_independent_applications_have_the_hits_of_one_agents_calls(
    made: tuple[list[Call], list[float], Machine], save: Extent
) -> None:
    calls, arrivals_s, machine = made
    make = partial(NativeOffload, save=save)
    together = tuple(call._replace(pause_s=at_s) for call, at_s in zip(calls, arrivals_s, strict=True))
    apart = tuple(
        Application(call.id, at_s, (call._replace(app=call.id, agent=f"{call.id}/agent"),))
        for call, at_s in zip(calls, arrivals_s, strict=True)
    )
    one = of_calls(play((Application("a", 0.0, together),), make, machine))
    many = of_calls(play(apart, make, machine))
    assert many == one
    assert {record.call for record in many} == {call.id for call in calls}


@given(made=independent_calls(), save=st.sampled_from(("prompts", "contexts")))
def test_stretches_iterations_and_blocks_agree(made: tuple[list[Call], list[float], Machine], save: Extent) -> None:
    calls, arrivals_s, machine = made
    apart = tuple(
        Application(call.id, at_s, (call._replace(app=call.id, agent=f"{call.id}/agent"),))
        for call, at_s in zip(calls, arrivals_s, strict=True)
    )
    assert_the_same_by_all_structures(apart, partial(NativeOffload, save=save), machine)


@given(made=independent_calls())
def test_the_oracle_finds_no_less_in_an_ample_host(made: tuple[list[Call], list[float], Machine]) -> None:
    """One-call applications, whose contexts belong to nobody when somebody else hits them."""
    calls, arrivals_s, machine = made
    machine = replace(machine, host_gib=1000 * BLOCK_BYTES / 2**30, link_gbps=1000.0)
    apart = tuple(
        Application(call.id, at_s, (call._replace(app=call.id, agent=f"{call.id}/agent"),))
        for call, at_s in zip(calls, arrivals_s, strict=True)
    )
    native = computed_tokens(play(apart, through, machine))
    oracle = computed_tokens(play(apart, partial(Oracle, apart), machine))
    assert oracle <= native


def computed_tokens(records: Sequence[Record]) -> int:
    """Prompt tokens that no cache had, at each call's first admission."""
    prompts = {fact.request.id: fact.request.prompt_tokens for fact in records if isinstance(fact, e.CallArrived)}
    firsts = [fact for fact in records if isinstance(fact, e.CallAdmitted) and not fact.resumed_tokens]
    return sum(prompts[fact.call] - fact.gpu_hit_tokens - fact.host_hit_tokens for fact in firsts)
