"""Plots of sweeps: which panels there are, what is drawn in them, and that the same report is the same file."""

import sys

import pytest

from tokencake.cli import run
from tokencake.sim.experiments.sweep.grid import Axis
from tokencake.sim.experiments.sweep.plot import Panel, axis_label, check_plot, metric_label, plotted, rows_of, series
from tokencake.traces.errors import TokencakeError

pytest.importorskip("matplotlib")

QPS = Axis("qps", (0.5, 1.0, 2.0))
BLOCKS = Axis("gpu_blocks", (1000, 2000, 3000, 4000, 9000))
ASYNCHRONOUS = Axis("asynchronous", (True, False))
METRIC = "app_latency_s.mean"


def policy(name, mean, interval=None, bound=False):
    return {"policy": name, "bound": bound, "metrics": {METRIC: {"mean": mean, "interval": interval}}}


def report(*axes):
    """Latency is 10 s times the load, 1 s more or less; the second policy takes half, the third is a bound."""
    points: list[dict[str, object]] = [{}]
    for axis in axes:
        points = [{**at, axis.key: value} for at in points for value in axis.values]
    return {
        "trace": {"path": "folder/t.jsonl"},
        "machine": {"name": "m", "block_tokens": 16, "kv_bytes_per_token": 131072},
        "repeats": 2,
        "confidence": 0.95,
        "metric": METRIC,
        "axes": [{"key": axis.key, "values": list(axis.values)} for axis in axes],
        "points": [
            {
                "at": at,
                "policies": [_timed(name, at, part) for name, part in (("vllm", 1), ("half", 0.5), ("oracle", 0.1))],
            }
            for at in points
        ],
    }


def _timed(name, at, part):
    mean = 10.0 * at.get("qps", 1.0) * part
    return policy(name, mean, [mean - 1, mean + 1], name == "oracle")


def test_each_axis_of_numbers_is_a_row_and_each_combination_of_the_others_a_panel():
    load, memory = rows_of([QPS, Axis("gpu_blocks", (1000, 2000))])
    assert [panel.axis.key for panel in (*load, *memory)] == ["qps"] * 2 + ["gpu_blocks"] * 3
    assert [panel.title() for panel in load] == ["gpu_blocks = 1000", "gpu_blocks = 2000"]
    assert [panel.fixed for panel in memory] == [{"qps": 0.5}, {"qps": 1.0}, {"qps": 2.0}]


def test_of_many_combinations_four_are_shown_from_the_first_to_the_last():
    load, _ = rows_of([QPS, BLOCKS])
    assert [panel.fixed["gpu_blocks"] for panel in load] == [1000, 2000, 3000, 9000]


def test_a_switch_is_an_axis_only_where_there_are_no_numbers():
    (row,) = rows_of([QPS, ASYNCHRONOUS])
    assert [panel.title() for panel in row] == ["asynchronous = true", "asynchronous = false"]
    assert rows_of([ASYNCHRONOUS]) == [[Panel(ASYNCHRONOUS, {})]]


def test_a_line_has_the_means_of_its_panel_and_bars_as_long_as_the_intervals():
    found = series(report(QPS, BLOCKS), Panel(QPS, {"gpu_blocks": 2000}), 1)
    assert found == ([0.5, 1.0, 2.0], [2.5, 5.0, 10.0], [1.0] * 3, [1.0] * 3)


def test_what_has_failed_is_no_point_of_a_line_and_one_repeat_has_no_bar():
    made = report(QPS)
    made["points"][1]["policies"][0] = policy("vllm", None)
    made["points"][2]["policies"][0] = policy("vllm", 7.0)
    assert series(made, Panel(QPS, {}), 0) == ([0.5, 2.0], [5.0, 7.0], [1.0, 0.0], [1.0, 0.0])


def test_labels_have_units():
    assert metric_label("app_latency_s.p95") == "application latency, p95 (s)"
    assert metric_label("prefill_tokens.computed") == "prompt tokens computed"
    assert metric_label("offload_bytes") == "offload_bytes (bytes)"
    assert metric_label("upload_idle_block_s") == "upload_idle_block_s (block-s)"
    assert axis_label("qps", report(QPS)) == "load (applications a second)"
    assert axis_label("gpu_blocks", report(BLOCKS)) == "GPU blocks (1,000 are 1.95 GiB)"
    assert axis_label("gpu_blocks", report(BLOCKS, Axis("block_tokens", (16, 32)))) == "GPU blocks"
    assert axis_label("beliefs.link_gbps", report()) == "believed link (GB/s)"


@pytest.mark.parametrize(
    ("ending", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF"), (".PNG", b"\x89PNG")]
)
def test_the_same_report_is_the_same_file(ending, begins):
    made = report(QPS, Axis("gpu_blocks", (1000, 9000)))
    content = plotted(made, ending)
    assert content.startswith(begins)
    assert plotted(made, ending) == content


def test_everything_that_was_played_is_in_the_picture():
    drawn = plotted(report(QPS, ASYNCHRONOUS), ".svg").decode()
    assert drawn.count("<!-- asynchronous = ") == 2
    for text in ("t.jsonl on m: means of 2 repeats, 95 % intervals", "vllm", "half", "oracle (bound)"):
        assert f"<!-- {text} -->" in drawn


def test_policies_differ_without_their_colours():
    """Ten of them: line, marker and filling together are never the same."""
    made = report(QPS)
    for point in made["points"]:
        point["policies"] = [policy(f"p{index}", 1.0 + index) for index in range(10)]
    from tokencake.sim.experiments.sweep import plot as sweep_plot

    lines = sweep_plot._figure(made).axes[0].containers
    looks = {(one[0].get_linestyle(), one[0].get_marker(), one[0].get_markerfacecolor() == "white") for one in lines}
    assert len(looks) == 10


def test_what_cannot_be_drawn_is_refused_before_anything_is_played(tmp_path, monkeypatch):
    with pytest.raises(TokencakeError, match=r"^--plot x.gif: expected a file that ends in .png, .svg, .pdf$"):
        check_plot(tmp_path.relative_to(tmp_path) / "x.gif", [QPS])
    with pytest.raises(TokencakeError, match=r"^--plot: expected something that is swept"):
        check_plot(tmp_path / "x.png", [])
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    with pytest.raises(TokencakeError, match=r"^--plot: matplotlib is not installed: pip install 'tokencake\[plot\]'$"):
        check_plot(tmp_path / "x.png", [QPS])


def test_the_command_draws_and_draws_again_without_playing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["trace", "generate", "code-writer", "--apps", "2", "-o", "t.jsonl"]) == 0
    sweep = ["sweep", "t.jsonl", "--rate", "1,2", "--repeat", "2", "-o", "s.csv", "--quiet"]
    assert run([*sweep, "--plot", "s.png"]) == 0
    kept = (tmp_path / "s.csv.cells.jsonl").read_bytes()
    assert run([*sweep, "--plot", "again.png"]) == 0
    assert (tmp_path / "s.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    assert (tmp_path / "s.csv.cells.jsonl").read_bytes() == kept


@pytest.mark.parametrize("ending", [".svg", ".png"])
def test_names_are_no_formulas_and_none_is_left_out(ending):
    names = ("$x^$", "_hidden", "\x1b[31m\nred")
    made = report(QPS)
    made["trace"]["path"] = "$\\frac$\u202e.jsonl"
    for point in made["points"]:
        for one, name in zip(point["policies"], names, strict=True):
            one["policy"] = name
    drawn = plotted(made, ending)
    if ending == ".svg":
        comments = drawn.decode()
        assert all(f"<!-- {shown} -->" in comments for shown in ("$x^$", " _hidden", "\\x1b[31m red (bound)"))
