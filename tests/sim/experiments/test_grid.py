"""The points of a sweep: which values, which combinations, in which order, and what is refused."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from tokencake.sim.experiments.sweep.grid import Axis, make_grid
from tokencake.sim.machine.files import load_machine
from tokencake.traces.errors import TokencakeError


def refused(qps=None, settings=()):
    with pytest.raises(TokencakeError) as refusal:
        make_grid(qps, settings)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def rates(qps):
    return [point.rate for point in make_grid(qps, []).points]


def test_a_range_has_exact_decimals_and_its_stop():
    """0.1 + 0.1 + 0.1 is 0.30000000000000004 in binary, and 0.1 * 10 steps must not miss 1.0."""
    assert rates("0.1:1.0:0.1") == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


def test_a_stop_that_no_step_meets_is_left_out():
    assert rates("1:2:0.4") == [1.0, 1.4, 1.8]


def test_a_list_is_taken_in_its_order():
    assert rates("2, 0.5,1") == [2.0, 0.5, 1.0]


def test_the_last_axis_changes_fastest():
    grid = make_grid("1,2", ["gpu_blocks=1000:3000:1000", "asynchronous=true,false"])
    assert grid.axes == (
        Axis("qps", (1.0, 2.0)),
        Axis("gpu_blocks", (1000, 2000, 3000)),
        Axis("asynchronous", (True, False)),
    )
    assert [point.label() for point in grid.points[:3]] == [
        "qps=1.0 gpu_blocks=1000 asynchronous=true",
        "qps=1.0 gpu_blocks=1000 asynchronous=false",
        "qps=1.0 gpu_blocks=2000 asynchronous=true",
    ]
    assert len(grid.points) == 12
    assert (grid.points[3].rate, grid.points[3].machine.gpu_blocks) == (1.0, 2000)
    assert grid.points[3].machine.asynchronous is False


def test_one_value_is_a_setting_and_no_axis():
    grid = make_grid("0.5", ["gpu_blocks=1000", "host_gib=1,2"])
    assert [axis.key for axis in grid.axes] == ["host_gib"]
    assert {(point.rate, point.machine.gpu_blocks) for point in grid.points} == {(0.5, 1000)}
    assert [dict(point.at) for point in grid.points] == [{"host_gib": 1.0}, {"host_gib": 2.0}]


def test_nothing_swept_is_one_point_with_the_arrivals_of_the_trace():
    (point,) = make_grid(None, []).points
    assert (point.at, point.rate, point.machine) == ((), None, load_machine())
    assert point.label() == "the trace"


def test_what_policies_believe_can_be_swept():
    grid = make_grid(None, ["beliefs.link_gbps=1,100"])
    assert [point.machine.believed for point in grid.points] == [(("link_gbps", 1.0),), (("link_gbps", 100.0),)]
    assert grid.points[1].label() == "beliefs.link_gbps=100.0"


@pytest.mark.parametrize(
    ("qps", "said"),
    [
        ("", '--rate: expected positive numbers, start:stop:step or a,b,c, got ""'),
        ("1,", '--rate: expected positive numbers, start:stop:step or a,b,c, got ""'),
        ("0.1:1.0", '--rate: expected positive numbers, start:stop:step or a,b,c, got "0.1:1.0"'),
        ("0:1:0.5", '--rate: expected positive numbers, start:stop:step or a,b,c, got "0.0"'),
        ("nan", '--rate: expected positive numbers, start:stop:step or a,b,c, got "nan"'),
        ("2:1:0.1", '--rate: expected start:stop:step with stop not below start and step above 0, got "2:1:0.1"'),
        ("1:2:0", '--rate: expected start:stop:step with stop not below start and step above 0, got "1:2:0"'),
        ("1:2:1e-9", '--rate: expected at most 100,000 values, got "1:2:1e-9"'),
        ("1,2,1.0", "--rate: expected different values, got 1.0, 2.0, 1.0"),
    ],
)
def test_a_wrong_load_is_one_line(qps, said):
    assert refused(qps) == said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["gpu_blocks"], '--set "gpu_blocks": expected key=value'),
        (["gpu_block=1,2"], '--set unknown setting "gpu_block": did you mean gpu_blocks'),
        (["gpu_blocks=1,x"], '--set gpu_blocks: expected a whole number from 1 to 1000000000, got "x"'),
        (["gpu_blocks=1,,2"], '--set gpu_blocks: expected a whole number from 1 to 1000000000, got ""'),
        (["host_gib=1,1.0"], '--set host_gib: expected different values, got "1,1.0"'),
        (["gpu_blocks=1", "gpu_blocks=2"], "--set gpu_blocks: given twice: expected all of its values in one"),
        (
            ["max_running=1,9000"],
            '--set: machine "h200-llama-3.1-8b": max_running: expected at most step_budget_tokens',
        ),
        (["gpu_blocks=1:1000:1", "host_gib=1:1000:1"], "the grid: expected at most 100,000 points, got 1,000,000"),
    ],
)
def test_a_wrong_setting_is_one_line(settings, said):
    assert refused(settings=settings).startswith(said)


@given(st.integers(1, 500), st.integers(1, 50), st.integers(0, 30), st.integers(0, 4))
def test_a_range_is_every_step_from_its_start(start, step, steps, places):
    """Against whole numbers of the smallest unit."""
    unit = 10**places
    stop = start + steps * step
    text = ":".join(
        f"{value // unit}.{value % unit:0{places}d}" if places else str(value) for value in (start, stop, step)
    )
    assert rates(text) == [(start + index * step) / unit for index in range(steps + 1)]
