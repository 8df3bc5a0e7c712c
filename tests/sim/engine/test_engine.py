"""The engine on scenes so small that every time can be worked out by hand."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from differential.workloads import workload
from runs import play

from tokencake.policies.field.vllm import Vllm
from tokencake.sim.engine.memory.link import Link
from tokencake.sim.engine.scheduling.step import Scheduled
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.machine import Machine
from tokencake.traces import events as e
from tokencake.traces.apps import Application, Call, CallId, Prompt, Segment, Tool
from tokencake.traces.errors import EngineError

STEP_S, TOKEN_S, CALL_S, CONTEXT_S, CLIENT_S = 0.010, 0.001, 0.002, 0.0001, 0.05
TOOL_S = 2.0


def a_machine(**changes: object) -> Machine:
    machine = Machine(
        name="small",
        gpu_blocks=100,
        block_tokens=4,
        kv_bytes_per_token=1,
        host_gib=0.0,
        max_context_tokens=1000,
        asynchronous=False,
        step_s=STEP_S,
        prefill_token_s=TOKEN_S,
        decode_call_s=CALL_S,
        context_token_s=CONTEXT_S,
        link_gbps=1.0,
        client_s=CLIENT_S,
    )
    return replace(machine, **changes)  # type: ignore[arg-type]


def a_call(name: str, source: str, tokens: int, output_tokens: int) -> Call:
    """The first `tokens` tokens of a source, and an answer."""
    app = name.split("/")[0]
    prompt = Prompt((Segment(source, 0, tokens),), tokens=tokens)
    return Call(name, app, app + "/agent", "agent", prompt, output_tokens, output_tokens)


def after(call: Call, name: str, new_tokens: int, output_tokens: int) -> Call:
    """The same agent goes on: all of its context, then new tokens."""
    kept = call.prompt_tokens + call.output_tokens
    prompt = Prompt((Segment(f"{name}.new", 0, new_tokens),), call.id, kept, kept + new_tokens)
    return call._replace(
        id=name, prompt=prompt, output_tokens=output_tokens, max_output_tokens=output_tokens, after=(call.id,)
    )


def alone(call: Call, arrival_s: float = 0.0) -> Application:
    return Application(call.app, arrival_s, (call,))


def prefill_s(tokens: int) -> float:
    return STEP_S + TOKEN_S * tokens


def decode_s(*contexts: int) -> float:
    """One iteration in which calls with so many tokens decode."""
    return STEP_S + CALL_S * len(contexts) + CONTEXT_S * sum(contexts)


def facts(applications: tuple[Application, ...], machine: Machine, kind: type) -> list:  # type: ignore[type-arg]
    return [record for record in play(applications, Vllm, machine) if type(record) is kind]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_one_agent_and_its_tool_take_as_long_as_their_steps(asynchronous: bool) -> None:
    first = a_call("a/1", "a/task", 10, 4)._replace(tools=(Tool("search", TOOL_S),))
    second = after(first, "a/2", 6, 3)
    machine = a_machine(asynchronous=asynchronous)
    finished = facts((Application("a", 1.0, (first, second)),), machine, e.CallFinished)

    first_s = 1.0 + CLIENT_S + prefill_s(10) + decode_s(10) + decode_s(11) + decode_s(12)
    # 13 tokens of the first context have KV: three full blocks, and so 12 of the second prompt's 20 tokens are cached
    second_s = first_s + TOOL_S + CLIENT_S + prefill_s(20 - 12) + decode_s(20) + decode_s(21)
    assert [fact.at_s for fact in finished] == pytest.approx([first_s, second_s], abs=1e-11)
    assert [fact.context_blocks for fact in finished] == [13 // 4, 22 // 4]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_cached_prompt_of_whole_blocks_computes_its_last_block_again(asynchronous: bool) -> None:
    early, late = a_call("a/1", "/shared", 8, 2), a_call("b/1", "/shared", 8, 1)
    machine = a_machine(asynchronous=asynchronous)
    apps = (alone(early), alone(late, 5.0))
    admitted = facts(apps, machine, e.CallAdmitted)
    assert [fact.gpu_hit_tokens for fact in admitted] == [0, 4]
    assert facts(apps, machine, e.FirstToken)[1].at_s == pytest.approx(5.0 + CLIENT_S + prefill_s(4), abs=1e-11)


def test_calls_of_the_same_step_hit_what_the_first_of_them_computes() -> None:
    admitted = facts(
        (alone(a_call("a/1", "/shared", 9, 2)), alone(a_call("b/1", "/shared", 9, 2))), a_machine(), e.CallAdmitted
    )
    assert [(fact.at_s, fact.gpu_hit_tokens) for fact in admitted] == [(CLIENT_S, 0), (CLIENT_S, 8)]


@pytest.mark.parametrize(("asynchronous", "steps_before"), [(False, 1), (True, 2)])
def test_an_arrival_waits_for_the_running_step_and_asynchronously_for_the_next_one_too(
    asynchronous: bool, steps_before: int
) -> None:
    early = a_call("a/1", "a/task", 10, 30)
    late = a_call("b/1", "b/task", 5, 1)
    decoding_s = CLIENT_S + prefill_s(10)  # when `early` begins to decode, with 10 tokens
    arrival_s = decoding_s + decode_s(10) + decode_s(11) / 2  # in its second iteration
    first_tokens = facts(
        (alone(early), alone(late, arrival_s - CLIENT_S)), a_machine(asynchronous=asynchronous), e.FirstToken
    )
    steps = [decode_s(10), decode_s(11), decode_s(12)][: 1 + steps_before]
    together_s = prefill_s(5) + CALL_S + CONTEXT_S * (10 + len(steps))
    assert first_tokens[1].at_s == pytest.approx(decoding_s + sum(steps) + together_s, abs=1e-11)


def test_a_long_prompt_is_computed_in_chunks_of_the_step_budget() -> None:
    machine = a_machine(step_budget_tokens=16, max_running=16)
    first_token = facts((alone(a_call("a/1", "a/task", 50, 1)),), machine, e.FirstToken)
    assert first_token[0].at_s == pytest.approx(CLIENT_S + 3 * prefill_s(16) + prefill_s(2), abs=1e-11)


def test_the_call_admitted_last_gives_way_and_finds_most_of_its_blocks_again() -> None:
    one, two = a_call("a/1", "a/task", 8, 3), a_call("b/1", "b/task", 8, 3)
    records = play((alone(one), alone(two)), Vllm, a_machine(gpu_blocks=5))
    decoding_s = CLIENT_S + prefill_s(16)
    finished_s = decoding_s + decode_s(8) + decode_s(9)  # `one` has the fifth block for itself
    (preempted,) = [record for record in records if type(record) is e.CallPreempted]
    assert (preempted.call, preempted.generated_tokens) == ("b/1", 1)
    assert preempted.at_s == pytest.approx(decoding_s, abs=1e-11)
    again = [record for record in records if type(record) is e.CallAdmitted][2]
    assert (again.call, again.resumed_tokens, again.gpu_hit_tokens) == ("b/1", 9, 8)
    # it comes back as soon as the other's new block leaves it one: nine tokens are two cached blocks and a third one
    assert again.at_s == pytest.approx(finished_s, abs=1e-11)


def test_a_call_longer_than_the_context_is_an_error_that_names_it() -> None:
    with pytest.raises(EngineError, match=r"'a/1': 1001 tokens .* context is 1000"):
        play((alone(a_call("a/1", "a/task", 1000, 1)),), Vllm, a_machine(gpu_blocks=10_000))


def test_a_call_larger_than_the_memory_is_an_error_that_names_it() -> None:
    with pytest.raises(EngineError, match=r"'a/1': 42 tokens need 11 blocks, but the GPU has 10"):
        play((alone(a_call("a/1", "a/task", 40, 2)),), Vllm, a_machine(gpu_blocks=10))


def test_a_call_that_just_fits_runs() -> None:
    """The last token of an answer needs no place: of these 41 tokens 40 do, in 10 blocks of 4."""
    finished = facts((alone(a_call("a/1", "a/task", 40, 1)),), a_machine(gpu_blocks=10), e.CallFinished)
    assert [fact.call for fact in finished] == ["a/1"]


class Queue:
    """The waiting calls, preempted ones first, and the running ones, from the facts."""

    def __init__(self) -> None:
        self.known_tokens: dict[CallId, int] = {}  # of those that wait: prompt, and what was generated
        self.prompt_tokens: dict[CallId, int] = {}
        self.running: set[CallId] = set()
        self.preempted = False  # since the last schedule

    def hear(self, fact: object) -> None:
        if isinstance(fact, e.CallArrived):
            self.prompt_tokens[fact.request.id] = self.known_tokens[fact.request.id] = fact.request.prompt_tokens
        elif isinstance(fact, e.CallAdmitted):
            del self.known_tokens[fact.call]
            self.running.add(fact.call)
        elif isinstance(fact, e.CallFinished):
            self.known_tokens.pop(fact.call, None)  # preempted while its last token was on its way
            self.running.discard(fact.call)
        elif isinstance(fact, e.CallPreempted):
            self.preempted = True
            self.running.remove(fact.call)
            tokens = self.prompt_tokens[fact.call] + fact.generated_tokens
            self.known_tokens = {fact.call: tokens, **self.known_tokens}


@pytest.mark.parametrize("seed", range(120))
def test_something_runs_whenever_something_fits(seed: int) -> None:
    """After each schedule the first waiting call would not fit, or places or tokens of the step are used up."""
    applications, machine = workload(seed)
    queue = Queue()

    def check(step: Scheduled) -> None:
        spent = sum(step.tokens.values())
        assert 0 < spent <= machine.step_budget_tokens
        assert len(step.tokens) <= machine.max_running
        assert 0 <= step.free_blocks <= machine.gpu_blocks
        waiting, preempted = queue.known_tokens, queue.preempted
        queue.preempted = False
        full = len(queue.running) == machine.max_running or spent == machine.step_budget_tokens
        if waiting and not preempted and not full:
            tokens = next(iter(waiting.values()))
            assert -(-tokens // machine.block_tokens) > step.free_blocks

    simulate(applications, Vllm(), machine, (queue.hear,), one_by_one=True, step_log=check)
    assert not queue.known_tokens


@pytest.mark.parametrize("seed", range(60))
def test_the_outcome_does_not_depend_on_how_an_application_is_written(seed: int) -> None:
    """Segments that follow each other are one content, however they are cut."""
    applications, machine = workload(seed)
    rng = random.Random(seed)
    cut = tuple(app._replace(calls=tuple(_cut(call, rng) for call in app.calls)) for app in applications)
    assert play(cut, Vllm, machine) == play(applications, Vllm, machine)


def _cut(call: Call, rng: random.Random) -> Call:
    pieces = []
    for source, start, tokens in call.prompt.segments:
        at = rng.randint(0, tokens)
        pieces += [Segment(source, start, at), Segment(source, start + at, tokens - at)]
    return call._replace(prompt=call.prompt._replace(segments=tuple(piece for piece in pieces if piece.tokens)))


def test_copies_of_one_way_queue_and_those_of_the_other_way_do_not_wait_for_them() -> None:
    timing = replace(a_machine().timing(), copy_ps=100, copy_block_ps=10)
    link = Link(timing)
    ended: list[tuple[str, int]] = []
    link.to_host(5, 1000, lambda at_ps: ended.append(("first down", at_ps)))
    link.to_host(1, 1020, lambda at_ps: ended.append(("second down", at_ps)))
    link.to_gpu(3, 1040, lambda at_ps: ended.append(("up", at_ps)))
    ends = []
    while link.next_end_ps is not None:
        ends.append(link.next_end_ps)
        link.finish(link.next_end_ps)
    assert ends == [1150, 1170, 1150 + 110]
    assert ended == [("first down", 1150), ("up", 1170), ("second down", 1260)]
