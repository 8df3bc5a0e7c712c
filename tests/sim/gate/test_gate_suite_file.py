"""Suite files: what they may say, and how what they may not say is refused."""

from pathlib import Path

import pytest
from gate_suites import SUITE

from tokencake.live.client.engine_options import EngineOptions
from tokencake.sim.gate.suite.suite import Gate
from tokencake.sim.gate.suite.suite_file import DEFAULT_GATES, LIVE_KEYS, LIVE_RUN_KEYS, find_suite, load_suite
from tokencake.traces.errors import TokencakeError
from tokencake.traces.results.metric import check_judged
from tokencake.traces.variants.vary import AS_IT_IS, parse_variation

FULL = """\
baselines = "gate/baselines"
budget_s = 90
confidence = 0.99

[defaults]
trace = "a.jsonl"
machine = "m.toml"
settings = { gpu_blocks = 900, asynchronous = false }
policy = "tokencake"

[metrics]
"makespan_s" = { relative = 0.05 }
app_latency_s.p95 = [{ absolute = 3 }, { not_worse_than = "vllm", relative = 0.01 }]
uploads.on_time = {}

[cases.one]

[cases.two]
trace = "b.jsonl"
settings = ["gpu_blocks=1000"]
policy = "policies/mine.py:Mine:least_s=2"
repeats = 10
vary = "arrivals,tools=0.3"
seed = 7
rate = 0.5
arrivals = "poisson"
skip_oversized = true
live = { model = "tiny", gpu_blocks = 200, repeats = 2 }

[cases.two.metrics]
makespan_s = []
stalled_share = { direction = "higher", absolute = 0.1 }
"""


def written(folder: Path, text: str, name: str = "tokencake.toml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_a_case_takes_what_it_does_not_say_from_the_defaults(tmp_path: Path) -> None:
    suite = load_suite(written(tmp_path, FULL))
    one, two = suite.cases
    assert (suite.baselines_folder, suite.budget_s, suite.confidence) == (tmp_path / "gate/baselines", 90.0, 0.99)
    assert (one.name, one.trace, one.policy, one.repeats, one.variation) == ("one", "a.jsonl", "tokencake", 1, AS_IT_IS)
    assert one.settings == ("gpu_blocks=900", "asynchronous=false")
    assert (two.trace, two.settings, two.machine) == ("b.jsonl", ("gpu_blocks=1000",), "m.toml")
    assert (two.repeats, two.seed, two.rate, two.arrivals, two.skip_oversized) == (10, 7, 0.5, "poisson", True)
    assert two.variation == parse_variation("arrivals,tools=0.3")
    assert two.live == {"model": "tiny", "gpu_blocks": 200, "repeats": 2}


def test_metrics_have_one_rule_or_several_and_a_case_replaces_those_that_it_names(tmp_path: Path) -> None:
    one, two = load_suite(written(tmp_path, FULL)).cases
    latency = (
        Gate("app_latency_s.p95", False, 0.0, 3.0),
        Gate("app_latency_s.p95", False, 0.01, 0.0, than="vllm"),
    )
    on_time = Gate("uploads.on_time", True, 0.02)  # nothing was said of a tolerance
    assert one.gates == (Gate("makespan_s", False, 0.05), *latency, on_time)
    assert two.gates == (*latency, on_time, Gate("stalled_share", True, 0.0, 0.1))
    assert one.rivals == ("vllm",)


def test_a_suite_without_metrics_has_the_default_ones(tmp_path: Path) -> None:
    (case,) = load_suite(written(tmp_path, '[cases.x]\ntrace = "t"\npolicy = "vllm"\n')).cases
    assert {gate.metric: (gate.relative, gate.absolute) for gate in case.gates} == DEFAULT_GATES
    assert [check_judged(gate.metric) for gate in case.gates] == list(DEFAULT_GATES)


def test_only_gates_of_repeated_cases_leave_something_to_chance(tmp_path: Path) -> None:
    suite = load_suite(written(tmp_path, FULL))
    assert suite.comparisons == len(suite.cases[1].gates) == 4
    assert suite.only(("one",)).comparisons == 4  # a verdict does not depend on what else is run


def test_cases_are_chosen_as_a_shell_chooses_files(tmp_path: Path) -> None:
    suite = load_suite(written(tmp_path, FULL))
    assert [case.name for case in suite.only(("t*",)).cases] == ["two"]
    assert [case.name for case in suite.only(()).cases] == ["one", "two"]
    with pytest.raises(TokencakeError, match=r"--case 'three': .*no such case: expected one of one, two"):
        suite.only(("t*", "three"))


def test_a_pyproject_holds_a_suite_as_well(tmp_path: Path) -> None:
    text = FULL.replace("[defaults]", "[tool.tokencake.defaults]").replace("[metrics]", "[tool.tokencake.metrics]")
    text = "[tool.tokencake]\n" + text.replace("[cases.", "[tool.tokencake.cases.")
    file = written(tmp_path, text, "pyproject.toml")
    assert find_suite(tmp_path) == file
    suite = load_suite(file)
    assert [case.name for case in suite.cases] == ["one", "two"]
    assert [text.splitlines()[case.line - 1] for case in suite.cases] == [
        "[tool.tokencake.cases.one]",
        "[tool.tokencake.cases.two]",
    ]


def test_the_suite_is_looked_for_in_the_folders_above(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    file = written(tmp_path, SUITE)
    written(tmp_path / "a", "[tool.other]\n", "pyproject.toml")
    assert find_suite(inner) == file


def test_paths_are_told_from_the_folder_of_the_suite(tmp_path: Path) -> None:
    paths = load_suite(written(tmp_path, SUITE)).paths
    assert paths.policy("mine.py:Mine:a=1") == f"{tmp_path}/mine.py:Mine:a=1"
    assert paths.policy("tokencake:upload=demand") == "tokencake:upload=demand"
    assert paths.policy_file("mine.py:Mine") == tmp_path / "mine.py"
    assert paths.policy_file("vllm") is None
    (tmp_path / "m.toml").write_text('base = "h100-llama-3.1-8b"\ngpu_blocks = 900\n')
    assert paths.machine("m.toml").gpu_blocks == 900


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("budget_s = 90", "budgets = 90"),
            "budgets: unknown key (did you mean budget_s?): ",
        ),
        (("budget_s = 90", "budget_s = 0"), "budget_s: expected a number, above 0 and at most 1e+09, got 0"),
        (("confidence = 0.99", "confidence = 95"), "confidence: expected a number, at least 0.5 and below 1, got 95"),
        (("repeats = 10", "repeat = 10"), "cases.two.repeat: unknown key (did you mean repeats?)"),
        (("repeats = 10", "repeats = 1.5"), "cases.two.repeats: expected a whole number from 1 to 1000, got 1.5"),
        (("repeats = 10", "repeats = true"), "cases.two.repeats: expected a whole number from 1 to 1000, got true"),
        (('"makespan_s"', '"makespan"'), "metrics.makespan: unknown metric 'makespan': near are makespan_s"),
        (
            ("app_latency_s.p95", "app_latency_s"),
            "metrics.app_latency_s: unknown metric 'app_latency_s': near are app_l",
        ),
        (
            ("relative = 0.05", "relative = -1"),
            "metrics.makespan_s.relative: expected a number, at least 0 and at most 1e+18, got -1",
        ),
        (("relative = 0.05", "relativ = 1"), "metrics.makespan_s.relativ: unknown key (did you mean relative?)"),
        (("{ relative = 0.05 }", "0.05"), "metrics.makespan_s: expected a table, got 0.05"),
        (
            ('direction = "higher", ', ""),
            "cases.two.metrics.stalled_share: metric stalled_share: neither more nor less",
        ),
        (('"higher"', '"up"'), 'cases.two.metrics.stalled_share.direction: expected lower or higher, got "up"'),
        (("tools=0.3", "tool"), "cases.two.vary: vary: unknown 'tool' (near: tools)"),
        (('trace = "a.jsonl"\n', ""), "cases.one.trace: missing: expected it here or under [defaults]"),
        (('"poisson"', '"bursts"'), 'cases.two.arrivals: expected even or poisson, got "bursts"'),
        (("[cases.one]", '[cases."a/b"]'), "cases.a/b: expected a name of letters, digits, dots"),
        (("[cases.one]", "[cases]\none = 1"), "cases.one: expected a table, got 1"),
        (('"tiny"', '"tiny", gpus = 1'), "cases.two.live.gpus: unknown key"),
        (
            ("gpu_blocks = 200, ", "gpu_blocks = '200', "),
            "cases.two.live.gpu_blocks: expected a whole number from 1 to 10",
        ),
        (("repeats = 2 }", "repeats = 1 }"), "cases.two.live.repeats: expected a whole number from 2 to 1000, got 1"),
        (('model = "tiny", ', ""), "cases.two.live.model: missing: expected a model's name or folder, or tiny"),
        (('settings = ["gpu_blocks=1000"]', "settings = { gpu_block = 3 }"), "cases.two.settings: unknown setting"),
        (
            ('trace = "b.jsonl"', "trace = 2020-01-01"),
            "cases.two.trace: expected 1 to 4096 printable characters, got 2",
        ),
        (
            ("rate = 0.5", f"rate = 0x{'F' * 400}"),
            "cases.two.rate: expected a whole number of 64 bits, got a number of",
        ),
        (("seed = 7", f"seed = 0x{'F' * 9000}"), "cases.two.seed: expected a whole number of 64 bits, got a number of"),
        (("rate = 0.5", "rate = nan"), "cases.two.rate: expected a number, at least 1e-06 and at most 1e+06, got NaN"),
        (("repeats = 10", "repeats = 99_999_999"), "cases.two.repeats: expected a whole number from 1 to 1000, got"),
        (("{ absolute = 3 }", "{ absolute = [] }"), "metrics.app_latency_s.p95[0].absolute: expected a number"),
    ],
)
def test_what_is_wrong_is_one_line_with_file_key_and_what_was_expected(
    tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    text = FULL.replace(*change)
    assert text != FULL
    file = written(tmp_path, text)
    with pytest.raises(TokencakeError) as raised:
        load_suite(file)
    assert str(raised.value).startswith(f"{file}: {said}")
    assert "\n" not in str(raised.value)


def test_a_suite_without_a_case_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokencakeError, match=r"cases: expected 1 to 1000 tables \[cases.NAME\], got 0"):
        load_suite(written(tmp_path, "[defaults]\n"))


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokencakeError, match=r"none.toml: cannot be read: No such file"):
        load_suite(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(TokencakeError, match=r"bytes.toml:1: expected TOML in UTF-8, got byte 0xff"):
        load_suite(tmp_path / "bytes.toml")
    with pytest.raises(TokencakeError, match=r"cut.toml:4: not TOML: "):
        load_suite(written(tmp_path, "[cases.x]\na = 1\nb = 2\n[metrics\n", "cut.toml"))
    with pytest.raises(TokencakeError, match=r"pyproject.toml: expected a table \[tool.tokencake\]"):
        load_suite(written(tmp_path, "[project]\n", "pyproject.toml"))
    for odd in ("tool = []", "tool = 1", "[tool]\ntokencake = 1"):
        with pytest.raises(TokencakeError, match=r"pyproject.toml: expected a table \[tool.tokencake\]"):
            load_suite(written(tmp_path, odd, "pyproject.toml"))


def test_the_keys_of_a_live_engine_are_its_options() -> None:
    assert set(LIVE_KEYS) <= set(EngineOptions.__dataclass_fields__)
    assert not set(LIVE_RUN_KEYS) & set(EngineOptions.__dataclass_fields__)
