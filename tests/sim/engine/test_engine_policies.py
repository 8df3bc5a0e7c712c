"""Whatever a policy wants: every application ends, no block is lost, and the engine's structures do not show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import cycle

import pytest
from adversary import Adversary, Hoarder, hard_workload
from runs import MakePolicy, Record, assert_the_same_by_all_structures, play, play_to_rest
from seeds import seeds

from tokencake.policies.field.vllm import Vllm
from tokencake.policies.interface import EVERYTHING, NATIVE, Move, Plan, View
from tokencake.policies.tokencake.policy import tokencake
from tokencake.sim.machine.machine import Machine
from tokencake.traces import events as e
from tokencake.traces.apps import Application, Call, Prompt, Segment, Tool


@seeds(20, 150)
def test_under_any_policy_everything_ends_and_no_structure_shows(seed: int) -> None:
    applications, machine = hard_workload(seed)
    records = assert_the_same_by_all_structures(applications, partial(Adversary, seed), machine)
    _check_ends(applications, records)


@seeds(8, 50)
def test_a_hoarder_stops_nobody(seed: int) -> None:
    applications, machine = hard_workload(seed)
    _check_ends(applications, play(applications, Hoarder, machine))


@seeds(8, 50)
def test_after_the_last_application_nothing_is_held(seed: int) -> None:
    """And an idle engine's blocks are nobody's: an idle time twice as long adds to no integral."""
    applications, machine = hard_workload(seed)
    make = partial(Adversary, seed)
    rest, longer = (play_to_rest(applications, make, machine, idle_s) for idle_s in (1000.0, 2000.0))
    for pool in (rest.gpu, rest.host):
        assert pool.num_free_blocks == pool.num_blocks
        assert pool.stalled_idle_blocks == 0
        pool.check()
    assert _integrals(rest.records) == pytest.approx(_integrals(longer.records), abs=1e-6)


def _integrals(records: list[Record]) -> tuple[float, ...]:
    last = records[-1]
    assert isinstance(last, e.Occupied)
    return last.used_block_s, last.stalled_block_s, last.held_block_s, last.busy_s


def _check_ends(applications: tuple[Application, ...], records: list[Record]) -> None:
    """Every call arrives, is admitted and answers once; what was preempted was admitted again."""
    count = Counter(type(record) for record in records)
    calls = sum(len(application.calls) for application in applications)
    assert count[e.AppFinished] == len(applications)
    assert count[e.CallArrived] == count[e.FirstToken] == count[e.CallFinished] == calls
    assert calls <= count[e.CallAdmitted] <= calls + count[e.CallPreempted]
    answers = {call.id: call.output_tokens for application in applications for call in application.calls}
    assert {fact.call: fact.output_tokens for fact in records if type(fact) is e.CallFinished} == answers


# -- the ways in which a policy once could stop the engine, one by one

MACHINE = Machine(
    name="small",
    gpu_blocks=12,
    block_tokens=4,
    kv_bytes_per_token=2**20,
    host_gib=1.0,
    max_context_tokens=1000,
    step_budget_tokens=8,
    max_running=8,
    asynchronous=False,
    step_s=0.01,
    link_gbps=0.1,
)


def _call(name: str, tokens: int, output_tokens: int, tool_s: float | None = None) -> Call:
    app = name.split("/")[0]
    tools = () if tool_s is None else (Tool("tool", tool_s),)
    prompt = Prompt((Segment(f"{name}.prompt", 0, tokens),), tokens=tokens)
    return Call(name, app, f"{name}.agent", "agent", prompt, output_tokens, output_tokens, tools=tools)


class Does:
    """A policy made of one function."""

    listens_to = EVERYTHING

    def __init__(self, plan: Callable[[View], Plan]) -> None:
        self._plan = plan

    def plan(self, view: View) -> Plan:
        return self._plan(view)


def test_a_call_that_lacks_a_block_takes_it_from_one_behind_it_whatever_else_the_plan_names() -> None:
    """vLLM stops when a call gives up its own blocks, so that is left to the last one."""
    applications = tuple(Application(name, 0.0, (_call(f"{name}/1", 8, 20),)) for name in "abc")

    def oldest_goes(view: View) -> Plan:
        return Plan(preempt=tuple(sorted(view.running)))

    records = assert_the_same_by_all_structures(applications, lambda: Does(oldest_goes), MACHINE)
    assert next(fact.call for fact in records if type(fact) is e.CallPreempted) == "b/1"
    _check_ends(applications, records)


def test_a_pin_that_is_over_does_not_stop_the_clock() -> None:
    """Each plan is news by itself here, and each names a pin that has ended: asking again at once would never end."""
    application = Application("a", 0.0, (_call("a/1", 8, 4, tool_s=1.0), _call("a/2", 8, 4)._replace(after=("a/1",))))

    def pins_the_past(view: View) -> Plan:
        agents = tuple(view.agents)
        return Plan(offload=tuple(Move(agent, 0) for agent in agents), pin=dict.fromkeys(agents, view.now_s))

    _check_ends((application,), play((application,), lambda: Does(pins_the_past), MACHINE))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_no_policy_takes_the_room_from_under_a_prompt_for_ever(asynchronous: bool) -> None:
    """A call finds six blocks and starts, the rest of them is pinned, it gives way; what it computed is overwritten.

    All twelve blocks are cached ones of two stalled agents, of which the policy uploads and pins just what hurts.
    """
    stalled = tuple(Application(name, 0.0, (_call(f"{name}/1", 24, 2, tool_s=30.0),)) for name in "ab")
    applications = (*stalled, Application("c", 3.0, (_call("c/1", 23, 2),)))
    refills = cycle(("a/1.agent", "b/1.agent"))

    def in_the_way(view: View) -> Plan:
        agents = tuple(view.stalled)
        if view.running:
            return Plan(pin=dict.fromkeys(agents, 1000.0))
        if view.waiting:
            return Plan(cancel=agents, upload=(Move(next(refills), 100),))
        return Plan(offload=tuple(Move(agent, 100) for agent in agents))

    machine = replace(MACHINE, asynchronous=asynchronous, link_gbps=100_000.0)
    records = play(applications, lambda: Does(in_the_way), machine)
    (finished,) = [fact for fact in records if type(fact) is e.CallFinished and fact.call == "c/1"]
    assert finished.at_s < 4.0
    assert any(type(fact) is e.CallPreempted for fact in records)


def _saved(view: View) -> Plan:
    """Each stalled agent's context is moved to the host, and back when a call asks for it."""
    return Plan(offload=tuple(Move(agent, 100, keep=False) for agent in view.stalled))


def test_a_load_leaves_the_room_that_a_loaded_call_needs_to_go_on() -> None:
    """The first is loaded, 5 of its 11 blocks; of the 7 that are free, the second's 6 would leave too few for the rest.

    So the second is loaded when the first has ended.
    """
    applications = []
    for name, tokens, more in (("a", 19, 22), ("b", 23, 2)):
        first = _call(f"{name}/1", tokens, 2, tool_s=30.0)
        prompt = Prompt((Segment(f"{name}/2.new", 0, more),), first.id, tokens + 2, tokens + 2 + more)
        second = first._replace(id=f"{name}/2", prompt=prompt, output_tokens=1, after=(first.id,), tools=())
        applications.append(Application(name, 0.0, (first, second)))
    records = assert_the_same_by_all_structures(tuple(applications), lambda: Does(_saved), MACHINE)
    assert [fact.blocks for fact in records if type(fact) is e.LoadStarted] == [5, 6]
    ended, _ = (fact.at_s for fact in records if type(fact) is e.CallFinished and fact.call.endswith("/2"))
    _, later = (fact.at_s for fact in records if type(fact) is e.LoadStarted)
    assert later >= ended
    _check_ends(tuple(applications), records)


def test_a_cancelled_upload_keeps_its_blocks_until_the_copy_has_ended() -> None:
    """A block is never overwritten while it is copied."""
    free_blocks: dict[str, int] = {}

    def starts_and_cancels(view: View) -> Plan:
        (agent,) = view.agents.values()
        facts = {type(fact) for fact in view.news}
        if e.ToolStarted in facts:
            return _saved(view)
        if e.OffloadFinished in facts:
            return Plan(upload=(Move(agent.id, 100),), wake_at_s=view.now_s + 0.01)
        if agent.uploading:
            return Plan(cancel=(agent.id,), wake_at_s=view.now_s + 0.01)
        if e.UploadCancelled in facts:
            free_blocks["at once"] = view.free_blocks
        if e.UploadReleased in facts:
            free_blocks["later"] = view.free_blocks
        return Plan()

    application = Application("a", 0.0, (_call("a/1", 30, 2, tool_s=20.0),))
    play((application,), lambda: Does(starts_and_cancels), MACHINE)
    assert free_blocks == {"at once": 12 - 7, "later": 12}


def test_what_was_pinned_for_an_application_is_free_when_it_has_ended() -> None:
    """And what its calls might have grown by is no longer expected."""
    pinned = _call("a/1", 30, 2, tool_s=1.0)._replace(max_output_tokens=12)
    applications = (Application("a", 0.0, (pinned,)), Application("b", 5.0, (_call("b/1", 4, 1),)))

    def pins(view: View) -> Plan:
        return Plan(pin=dict.fromkeys(view.agents, 1000.0), wake_at_s=0.7)

    asked = [fact for fact in play(applications, lambda: Does(pins), MACHINE) if type(fact) is e.Polled]
    assert min(fact.free_blocks for fact in asked if 0.5 < fact.at_s < 1.0) == 12 - 7
    (again,) = [fact for fact in asked if fact.at_s == 5.0]
    assert (again.free_blocks, again.growth_blocks) == (12, 0)


def test_a_pin_ends_when_the_policy_says_so() -> None:
    free_blocks: list[int] = []

    def pins_for_a_while(view: View) -> Plan:
        free_blocks.append(view.free_blocks)
        until_s = 1000.0 if view.now_s < 3.0 else 3.0
        return Plan(pin=dict.fromkeys(view.stalled, until_s), wake_at_s=view.now_s + 2.0)

    play((Application("a", 0.0, (_call("a/1", 30, 2, tool_s=8.0),)),), lambda: Does(pins_for_a_while), MACHINE)
    assert free_blocks[-4:] == [12, 5, 5, 12]  # the wish is older than the room by one question


def test_a_plan_that_names_no_pin_gives_pins_up() -> None:
    """The native plan, too: what it leaves out is the engine's native behaviour, and vLLM pins nothing."""

    def pins_at_first(view: View) -> Plan:
        return Plan(pin=dict.fromkeys(view.stalled, 1000.0)) if view.now_s < 3.0 else NATIVE

    calls = (_call("a/1", 30, 2, tool_s=8.0),)
    others = [Application(name, at_s, (_call(f"{name}/1", 4, 1),)) for name, at_s in (("b", 2.0), ("c", 4.0))]
    asked = [
        fact
        for fact in play((Application("a", 0.0, calls), *others), lambda: Does(pins_at_first), MACHINE)
        if type(fact) is e.Polled
    ]
    assert min(fact.free_blocks for fact in asked if 0.5 < fact.at_s < 4.0) < 12 - 2
    assert asked[-1].free_blocks == 12


def _deaf(plan: Callable[[View], Plan]) -> MakePolicy:
    """A policy that hears of tools that start, and of nothing else."""

    class Deaf(Does):
        listens_to = frozenset({e.ToolStarted})

    return partial(Deaf, plan)


def _admitted_s(records: list[Record], call: str) -> float:
    (at_s,) = [fact.at_s for fact in records if type(fact) is e.CallAdmitted and fact.call == call]
    return float(at_s)


ROOMY = replace(MACHINE, step_budget_tokens=64)


def test_room_that_an_ended_application_leaves_is_used_at_the_next_step() -> None:
    """Whether or not the policy hears of it: five blocks are pinned, one call decodes, one waits for six blocks."""
    pinned, decoding, waiting = _call("a/1", 20, 1, tool_s=1.0), _call("b/1", 4, 24), _call("c/1", 24, 1)
    apps = (Application("a", 0.0, (pinned,)), Application("b", 0.9, (decoding,)), Application("c", 0.92, (waiting,)))
    pins = _deaf(lambda view: Plan(pin=dict.fromkeys(view.stalled, 1000.0)))
    records = assert_the_same_by_all_structures(apps, pins, ROOMY)
    ended_s = next(fact.at_s for fact in records if type(fact) is e.AppFinished)
    assert ended_s <= _admitted_s(records, "c/1") <= ended_s + ROOMY.step_s


def test_room_that_a_copy_leaves_is_used_at_the_next_step() -> None:
    """Whether or not the policy hears of it: five blocks are copied, one call decodes, one waits for six blocks."""
    copied, decoding, waiting = _call("a/1", 20, 1, tool_s=30.0), _call("b/1", 4, 24), _call("c/1", 24, 1)
    apps = (Application("a", 0.0, (copied,)), Application("b", 0.1, (decoding,)), Application("c", 0.12, (waiting,)))
    records = assert_the_same_by_all_structures(apps, _deaf(_saved), ROOMY)
    (copied_s,) = [fact.at_s for fact in records if type(fact) is e.OffloadFinished]
    assert copied_s <= _admitted_s(records, "c/1") <= copied_s + ROOMY.step_s


def test_what_is_held_for_a_stalled_agent_stops_being_so_when_its_tool_returns() -> None:
    """Its offload outlasts its tool: the blocks are stalled ones for a second, and held ones to the end of the copy."""
    calls = (_call("a/1", 30, 2, tool_s=1.0), _call("a/2", 4, 2)._replace(after=("a/1",), pause_s=60.0))

    def copies(view: View) -> Plan:
        return Plan(offload=tuple(Move(agent, 100) for agent in view.stalled))

    last = play((Application("a", 0.0, calls),), lambda: Does(copies), MACHINE)[-1]
    assert isinstance(last, e.Occupied)
    blocks, copy_s = 7, 7 * 4 * 2**20 / 0.1e9
    assert last.held_block_s == pytest.approx(blocks * copy_s)
    assert last.stalled_block_s == pytest.approx(blocks * 1.0)


# -- Tokencake itself

VARIANTS: dict[str, MakePolicy] = {
    "vllm": Vllm,
    "default": tokencake,
    "space": partial(tokencake, time=False),
    "time": partial(tokencake, space=False),
    "pause": partial(tokencake, upload="pause"),
    "demand": partial(tokencake, upload="demand"),
    "predictive": partial(tokencake, upload="predictive"),
    "published": partial(tokencake, rules="published"),
    "published, demand": partial(tokencake, rules="published", upload="demand"),
    "published, no gate": partial(tokencake, rules="published", gate=False),
    "published, no gate, time, pause": partial(tokencake, rules="published", gate=False, space=False, upload="pause"),
    "published, no skip, no gate": partial(tokencake, rules="published", gate=False, skip=False, upload="demand"),
}


@seeds(6, 20)
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_structure_shows_under_tokencake(variant: str, seed: int) -> None:
    applications, machine = hard_workload(seed)
    records = assert_the_same_by_all_structures(applications, VARIANTS[variant], machine)
    _check_ends(applications, records)
