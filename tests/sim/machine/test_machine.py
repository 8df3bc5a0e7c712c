"""What a machine costs, in seconds for people and in picoseconds for the engine."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencake.sim.machine.kv_groups import KvGroup
from tokencake.sim.machine.machine import BELIEVABLE, RULES, Machine
from tokencake.sim.machine.timing import experts_ps
from tokencake.traces.errors import MachineError


def a_machine(**changes):
    """Round numbers: a block is 16,000 bytes and takes 16 ms on the link."""
    plain = Machine(
        name="plain",
        gpu_blocks=100,
        kv_bytes_per_token=1000,
        host_gib=1.0,
        max_context_tokens=1000,
        step_s=0.010,
        floor_s=0.005,
        token_s=0.001,
        prefill_token_s=0.0001,
        attention_s=1e-6,
        decode_call_s=0.002,
        context_token_s=1e-5,
        link_gbps=0.001,
        copy_s=0.5,
        client_s=0.05,
    )
    return replace(plain, **changes)


WINDOW = {"window_tokens": 128, "window_attention_s": 1e-7, "window_context_token_s": 1e-6}


def test_a_step_of_few_tokens_takes_as_long_as_reading_the_weights():
    two_decoding = a_machine().timing().of_step(chunks=[], contexts=[100, 200])

    # step 10 ms + floor 5 ms (2 tokens would be 2 ms) + 2 calls x 2 ms + 300 tokens x 10 µs
    assert two_decoding == 22_000_000_000


def test_a_step_of_many_tokens_takes_as_long_as_its_arithmetic():
    timing = a_machine().timing()

    # step 10 ms + 9 tokens x 1 ms + 8 prefill tokens x 0.1 ms + (8 x 100 + 36) pairs x 1 µs + 2 ms + 50 x 10 µs
    assert timing.of_step(chunks=[(8, 100)], contexts=[50]) == 23_136_000_000


def test_a_prompt_attends_to_the_same_pairs_whether_cut_into_chunks_or_not():
    timing = a_machine(step_s=1e-12, floor_s=0).timing()

    whole = timing.of_step(chunks=[(300, 0)], contexts=[])
    parts = sum(timing.of_step(chunks=[(100, before)], contexts=[]) for before in (0, 100, 200))

    assert parts == whole + 2 * timing.step_ps


def test_a_mixture_of_experts_reads_those_that_its_tokens_touch():
    """Each token chooses a quarter of the experts; reading all takes 64 ms."""
    mixture = a_machine(experts_s=0.064, experts=8, experts_per_token=2).timing()

    # step 10 ms + floor 5 ms + 64 ms x (1 - 0.75 ** calls) + 2 ms and 1 ms of context a call
    assert mixture.of_step([], [100]) == 34_000_000_000
    assert mixture.of_step([], [100, 100]) == 49_000_000_000
    assert mixture.weights_ps(1000) == 69_000_000_000


@pytest.mark.parametrize(("experts", "chosen"), [(8, 2), (8, 8), (128, 8), (512, 10), (256, 1)])
def test_the_experts_that_are_touched_are_the_formula_s(experts, chosen):
    touched_ps = experts_ps(experts, chosen, 10**10)

    for tokens in (1, 8, 32, len(touched_ps) - 1):
        assert touched_ps[min(tokens, len(touched_ps) - 1)] == pytest.approx(
            10**10 * (1 - (1 - chosen / experts) ** tokens), abs=2
        )
    assert touched_ps[-1] == 10**10
    assert sorted(touched_ps) == list(touched_ps)


def test_windowed_layers_see_no_more_than_their_window():
    sliding, none = a_machine(**WINDOW).timing(), a_machine().timing()

    # 128 tokens each of two contexts, not 100 + 9,000; of a chunk's 8 tokens, each sees 128
    assert sliding.of_step([], [9_000, 100]) - none.of_step([], [9_000, 100]) == (128 + 100) * 1_000_000
    assert sliding.of_step([(8, 500)], []) - none.of_step([(8, 500)], []) == 8 * 128 * 100_000


def test_chunks_that_do_not_see_each_other_start_anew():
    groups = (KvGroup("full"), KvGroup("chunked_local", 128))
    chunked, none = a_machine(kv_groups=groups, **WINDOW).timing(), a_machine().timing()

    assert chunked.of_step([], [130]) - none.of_step([], [130]) == 2 * 1_000_000


def test_every_chunk_may_read_what_is_before_it():
    timing, none = a_machine(prefill_context_token_s=1e-6).timing(), a_machine().timing()

    assert timing.of_step([(8, 500), (3, 20)], []) - none.of_step([(8, 500), (3, 20)], []) == 520 * 1_000_000


def test_a_policy_believes_that_windows_are_full():
    assert a_machine(**WINDOW).beliefs().prefill_s(10, 1000) == pytest.approx(
        a_machine().beliefs().prefill_s(10, 1000) + 10 * 128 * 1e-7
    )


def test_blocks_and_bytes_follow_from_tokens():
    machine = a_machine(host_gib=1.0)

    assert machine.block_bytes == 16_000
    assert machine.host_blocks == 67_108  # 2**30 / 16,000, rounded down
    assert a_machine(host_gib=0).host_blocks == 0


def test_the_link_counts_gigabytes_of_1e9_bytes():
    assert a_machine(kv_bytes_per_token=196_608, link_gbps=25.0).timing().copy_block_ps == 125_829_120


def test_beliefs_are_the_truth_unless_told_otherwise():
    machine = a_machine()
    told = a_machine(believed=(("link_gbps", 0.002),))

    assert machine.beliefs().upload_s(10) == pytest.approx(0.5 + 10 * 0.016)
    assert told.beliefs().offload_s(10) == pytest.approx(0.5 + 10 * 0.008)
    assert told.timing() == machine.timing()  # what the engine spends is not touched


def test_believed_prefill_is_what_the_tokens_add_to_a_step_that_runs_anyway():
    costs = a_machine().beliefs()

    assert costs.prefill_s(10, context_tokens=100) == pytest.approx(10 * 0.0011 + (10 * 100 + 55) * 1e-6)
    assert costs.prefill_s(0, context_tokens=100) == 0
    assert costs.upload_s(0) == 0  # nothing to copy is no job


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"gpu_blocks": 0}, "gpu_blocks: expected a whole number from 1"),
        ({"gpu_blocks": True}, "gpu_blocks: expected a whole number from 1 to 1000000000, got true"),
        ({"gpu_blocks": 10**5000}, "got a number of more than 20 digits"),
        ({"step_s": math.nan}, "step_s: expected 0 or a number from 1e-12 to 1000, got NaN"),
        ({"step_s": -1.0}, "step_s: expected 0 or a number from 1e-12 to 1000, got -1.0"),
        ({"token_s": 1e-13}, "token_s: expected 0 or a number from 1e-12 to 1, got 1e-13"),
        ({"link_gbps": 0}, "link_gbps: expected a number from 0.001"),
        ({"link_gbps": math.inf}, "got Infinity"),
        ({"asynchronous": 1}, "asynchronous: expected true or false, got 1"),
        ({"name": "two\nlines"}, "name: expected a name"),
        ({"step_s": 0, "floor_s": 0}, "step_s, floor_s: expected one above 0"),
        ({"experts_s": 0.1}, "experts_per_token: expected 1 to experts (0), for experts_s is above 0, got 0"),
        ({"experts_s": 0.1, "experts": 4, "experts_per_token": 5}, "expected 1 to experts (4)"),
        ({"window_attention_s": 1e-9}, "window_tokens: expected at least 1, for windowed layers cost something, got 0"),
        (
            {**WINDOW, "kv_groups": (KvGroup("full"), KvGroup("sliding_window", 64))},
            "window_tokens: expected that of a group (64), got 128",
        ),
        ({"believed": (("client_s", 1.0),)}, "beliefs.client_s: expected one of link_gbps"),
        ({"believed": (("copy_s", -1.0),)}, "beliefs.copy_s: expected 0 or a number"),
    ],
)
def test_a_machine_that_cannot_be_is_refused_in_one_line(changes, culprit):
    with pytest.raises(MachineError) as refusal:
        a_machine(**changes)

    assert culprit in str(refusal.value)
    assert "\n" not in str(refusal.value)


seconds = st.one_of(st.just(0.0), st.floats(1e-12, 1e-3))
chunks = st.lists(st.tuples(st.integers(1, 8192), st.integers(0, 100_000)), max_size=3)
contexts = st.lists(st.integers(1, 100_000), max_size=5)


@given(chunks, contexts, seconds, seconds, seconds)
def test_picoseconds_add_up_to_the_formula_in_seconds(chunks, contexts, token_s, attention_s, context_token_s):
    machine = a_machine(token_s=token_s, attention_s=attention_s, context_token_s=context_token_s)
    tokens = sum(size for size, _ in chunks)
    pairs = sum(sum(before + 1 + i for i in range(size)) for size, before in chunks)

    expected_s = 0.010 + max(0.005, token_s * (tokens + len(contexts))) + 0.0001 * tokens
    expected_s += attention_s * pairs + 0.002 * len(contexts) + context_token_s * sum(contexts)

    rounding_s = 0.5e-12 * (tokens + pairs + sum(contexts) + 20)  # half a picosecond for every unit counted
    assert machine.timing().of_step(chunks, contexts) / 1e12 == pytest.approx(expected_s, rel=1e-12, abs=rounding_s)


def test_only_costs_can_be_believed_otherwise():
    for key in BELIEVABLE:
        assert a_machine(believed=((key, 0.25),)).beliefs() != a_machine().beliefs()
        assert key in RULES
