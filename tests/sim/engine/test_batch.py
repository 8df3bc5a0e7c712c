"""Times and block needs of stretches against the same thing added up iteration by iteration, to the picosecond."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from tokencake.sim.engine.memory.context_tree import ContextTree
from tokencake.sim.engine.requests import EngineCall, SimAgent
from tokencake.sim.engine.scheduling.batch import DecodeBatch
from tokencake.sim.engine.scheduling.pace import Pace, paced
from tokencake.sim.machine.timing import Timing, experts_ps
from tokencake.sim.machine.window import Window
from tokencake.traces.apps import Call, Prompt

TIMING = Timing(
    step_ps=1000,
    floor_ps=70,
    experts_ps=(),
    token_ps=30,
    prefill_token_ps=11,
    prefill_context_token_ps=0,
    attention_ps=2,
    decode_call_ps=7,
    context_token_ps=3,
    window=None,
    window_attention_ps=0,
    window_context_token_ps=0,
    host_call_ps=0,
    host_token_ps=0,
    asynchronous=False,
    copy_ps=0,
    copy_block_ps=1,
    client_ps=0,
)
# the device first, its growth, the host: it may be faster, be caught up with in a while, or in the end be slower
paces = st.builds(
    paced,
    st.integers(1, 10**12),
    st.one_of(st.just(0), st.integers(0, 10**9)),
    st.one_of(st.just(0), st.integers(0, 10**12)),
    asynchronous=st.booleans(),
)


@given(paces, st.integers(0, 60))
def test_a_stretch_takes_as_long_as_its_iterations(pace: Pace, iterations: int) -> None:
    assert pace.total_ps(iterations) == sum(pace.iteration_ps(i) for i in range(iterations))


@given(paces, st.integers(0, 10**6), st.integers(-2, 2))
def test_covering_is_the_least_number_of_iterations_that_suffices(pace: Pace, iterations: int, off_ps: int) -> None:
    """Right at a boundary, and one or two picoseconds beside it."""
    span = pace.total_ps(iterations) + off_ps
    least = pace.covering(span)
    assert pace.total_ps(least) >= span
    assert least == 0 or pace.total_ps(least - 1) < span
    if off_ps == 0:
        assert least == iterations


@given(paces, st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), max_size=9), st.integers(0, 1))
def test_iterations_are_weighed_as_one_by_one(pace: Pace, weights: list[tuple[int, int]], lag: int) -> None:
    assert pace.weighed_ps(weights, lag) == sum(weight * pace.total_ps(at - lag) for at, weight in weights)


def test_beside_the_device_an_iteration_takes_no_less_than_the_host() -> None:
    """The device takes 10, 13, 16, 19 … and the host 15: from the third iteration on it is the device that is late."""
    beside = paced(10, 3, 15, asynchronous=True)
    assert [beside.iteration_ps(i) for i in range(5)] == [15, 15, 16, 19, 22]
    assert [beside.total_ps(n) for n in range(5)] == [0, 15, 30, 46, 65]
    assert [beside.covering(span) for span in (0, 1, 15, 16, 30, 31, 46, 47)] == [0, 1, 1, 2, 2, 3, 3, 4]
    assert [paced(10, 3, 15, asynchronous=False).iteration_ps(i) for i in range(3)] == [25, 28, 31]


class Model:
    """A batch beside a plain list of its calls: [call, tokens with KV, iterations left]."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.size = self.rng.choice((1, 2, 3, 16))
        self.timing = replace(
            TIMING,
            host_call_ps=self.rng.choice((0, 400)),
            host_token_ps=self.rng.choice((0, 300)),
            asynchronous=self.rng.random() < 0.5,
            **self.rng.choice(({}, {}, self.beyond_plain())),
        )
        self.batch = DecodeBatch(self.timing, self.size)
        self.calls: list[tuple[EngineCall, int, int]] = []
        self.joined = 0

    def beyond_plain(self) -> dict[str, Any]:
        """A mixture of experts with windowed layers."""
        rng = self.rng
        return {
            "experts_ps": experts_ps(8, rng.randint(1, 8), 500),
            "prefill_context_token_ps": rng.choice((0, 5)),
            "window": rng.choice((None, Window(rng.choice((1, 5, 16)), chunked=rng.random() < 0.5))),
            "window_attention_ps": 13,
            "window_context_token_ps": 17,
        }

    def join(self) -> None:
        self.joined += 1
        call = _a_call(self.joined)
        computed, left = self.rng.randint(1, 40), self.rng.randint(1, 30)
        call.last_iteration = self.batch.iteration + left - 1
        self.batch.join(call, computed)
        self.calls.append((call, computed, left))

    def leave(self) -> None:
        if self.calls:
            call, computed, _ = self.calls.pop(self.rng.randrange(len(self.calls)))
            self.batch.leave(call)
            assert call.num_computed_tokens == computed

    def advance(self) -> None:
        most = min((left for _, _, left in self.calls), default=5)
        iterations = self.rng.randint(1, self.batch.until_turn(most))
        done = self.batch.advance(iterations)
        moved = [(call, computed + iterations, left - iterations) for call, computed, left in self.calls]
        assert done == [call for call, _, left in moved if not left]
        assert all(call.num_computed_tokens == computed for call, computed, left in moved if not left)
        self.calls = [call for call in moved if call[2]]

    def needs(self, ahead: int) -> int:
        return sum((computed + ahead) % self.size == 0 for _, computed, _ in self.calls)

    def compare(self) -> None:
        batch, rng = self.batch, self.rng
        assert batch.num_calls == len(self.calls)
        assert batch.context_tokens == sum(computed for _, computed, _ in self.calls)
        assert batch.until_end() == min((left for _, _, left in self.calls), default=None)
        for call, computed, _ in self.calls:
            assert batch.num_computed_tokens(call) == computed
        first, end = sorted((rng.randint(0, 40), rng.randint(0, 40)))
        assert batch.needs_between(first, end) == [(i, self.needs(i)) for i in range(first, end) if self.needs(i)]
        assert batch.needs(first) == self.needs(first)
        self._compare_until_full(rng.randint(0, 25), rng.randint(1, 60))
        self._compare_pace()

    def _compare_until_full(self, free_blocks: int, most: int) -> None:
        fit, left = 1, free_blocks
        while fit < most and self.needs(fit) <= left:
            left -= self.needs(fit)
            fit += 1
        assert self.batch.until_full(free_blocks, most) == fit

    def _compare_pace(self) -> None:
        pace = self.batch.pace({})
        for ahead in range(self.batch.until_turn(3)):
            contexts = [computed + ahead for _, computed, _ in self.calls]
            assert pace.iteration_ps(ahead) == self.timing.of_step((), contexts)
        contexts = [computed for _, computed, _ in self.calls]
        prefills = {_a_call(0, self.rng.randint(0, 40)): self.rng.randint(1, 9) for _ in range(self.rng.randint(1, 3))}
        began = {"admitted": self.rng.randint(0, 3), "completed": self.rng.randint(0, 1)}
        chunks = [(chunk, call.num_computed_tokens) for call, chunk in prefills.items()]
        assert self.batch.pace(prefills, **began).first_ps == self.timing.of_step(chunks, contexts, **began)


@pytest.mark.parametrize("seed", range(120))
def test_a_batch_counts_what_a_list_of_its_calls_says(seed: int) -> None:
    model = Model(seed)
    for _ in range(60):
        model.rng.choice((model.join, model.leave, model.advance, model.advance))()
        model.compare()


@pytest.mark.parametrize("seed", range(120))
def test_chunks_of_one_prompt_need_and_cost_what_they_do_one_by_one(seed: int) -> None:
    model = Model(seed)
    rng, batch = model.rng, model.batch
    for _ in range(rng.randint(0, 4)):
        model.join()
    before, chunk = rng.randint(0, 50), rng.randint(1, 20)
    batch.chunk = (before, chunk)
    pace = batch.pace({_a_call(0, before): chunk})
    for ahead in range(batch.until_turn(4)):
        contexts = [computed + ahead for _, computed, _ in model.calls]
        assert pace.iteration_ps(ahead) == model.timing.of_step([(chunk, before + ahead * chunk)], contexts)
    needed = dict(batch.needs_between(0, 10))
    for ahead in range(10):
        done = before + ahead * chunk
        more = -(-(done + chunk) // model.size) - -(-done // model.size)
        assert needed.get(ahead, 0) == model.needs(ahead) + more


def _a_call(order: int, computed_tokens: int = 0) -> EngineCall:
    name = f"a/{order}"
    call = Call(name, "a", name, "agent", Prompt((), tokens=1), output_tokens=1, max_output_tokens=1)
    engine_call = EngineCall(call, SimAgent(name), ContextTree().empty, 16, 0)
    engine_call.admission = order
    engine_call.num_computed_tokens = computed_tokens
    return engine_call
