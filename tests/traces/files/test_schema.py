"""What is said of a value that is wrong: one short line with its place, whatever the value is."""

from datetime import date, datetime, time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencake.traces.files.fields import SHOWN, WrongField, shown, whole
from tokencake.traces.files.schema import (
    digest,
    free,
    inner,
    list_of,
    map_of,
    measured,
    nullable,
    number_from,
    one_of,
    printable,
    record,
    string,
    whole_from,
)

RUN = record(
    {"policy": printable(200), "metrics": map_of(nullable(measured)), "errors": list_of(string())},
    optional={"repeat": whole_from(1), "order": one_of("even", "poisson"), "sha256": digest(4)},
)
REPORT = record({"runs": list_of(RUN, least=1)})
GOOD = {"policy": "vllm", "metrics": {"ttft_s": 0.5, "steps": None}, "errors": [], "repeat": 2, "sha256": "00ff"}


def told(value: object) -> str:
    with pytest.raises(WrongField) as wrong:
        REPORT(value, "")
    return str(wrong.value)


def test_a_good_value_comes_back_as_it_is() -> None:
    assert REPORT({"runs": [GOOD]}, "") == {"runs": [GOOD]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"policy": ""}, 'runs[0].policy: expected 1 to 200 printable characters, got ""'),
        ({"policy": None}, "runs[0].policy: expected 1 to 200 printable characters, got null"),
        ({"metrics": []}, "runs[0].metrics: expected an object, got a list"),
        (
            {"metrics": {"ttft_s": -1}},
            "runs[0].metrics.ttft_s: expected 0 or a number from 1e-30 to 9.22337e+18, got -1",
        ),
        ({"metrics": {"ttft_s": float("nan")}}, "runs[0].metrics.ttft_s: expected 0 or a number from 1e-30"),
        ({"metrics": {"ttft_s": True}}, "runs[0].metrics.ttft_s: expected 0 or a number from 1e-30"),
        ({"metrics": {"\n" * 9: "x"}}, 'runs[0].metrics."\\n\\n\\n\\n\\n\\n\\n\\n\\n": expected 0 or'),
        ({"errors": "none"}, 'runs[0].errors: expected a list, got "none"'),
        ({"errors": ["a", 3]}, "runs[0].errors[1]: expected text of at most 10000 characters, got 3"),
        ({"errors": ["\ud800"]}, 'runs[0].errors[0]: expected text of at most 10000 characters, got "\\ud800"'),
        ({"repeat": 0}, "runs[0].repeat: expected a whole number from 1 to 9223372036854775807, got 0"),
        ({"repeat": 1.0}, "runs[0].repeat: expected a whole number"),
        ({"order": "odd"}, 'runs[0].order: expected even or poisson, got "odd"'),
        ({"sha256": "00fg"}, 'runs[0].sha256: expected 4 hexadecimal digits, got "00fg"'),
        ({"repaet": 1}, 'runs[0]: unknown field "repaet" (did you mean "repeat"?); known are errors, metrics, order'),
    ],
)
def test_what_is_wrong_is_told_with_its_place(change: dict[str, object], said: str) -> None:
    assert told({"runs": [GOOD | change]}).startswith(said)


def test_what_is_missing_or_too_few_is_told() -> None:
    assert told({"runs": []}) == "runs: expected a list of 1 to 1000000 values, got 0"
    assert told({}) == "runs: is missing"
    assert told({"runs": [{}]}) == "runs[0].policy: is missing"


def test_numbers_have_open_and_closed_ends() -> None:
    assert number_from(0.5, 1, below=True)(0.5, "x") == 0.5
    with pytest.raises(WrongField, match=r"^x: expected a number, at least 0.5 and below 1, got 1$"):
        number_from(0.5, 1, below=True)(1, "x")
    with pytest.raises(WrongField, match=r"^x: expected a number, above 0 and at most 1, got 0$"):
        number_from(0, 1, above=True)(0, "x")


def test_a_value_without_a_schema_has_a_depth_and_finite_numbers() -> None:
    assert free({"a": [1, 2.5, "x", None, True]}, "") == {"a": [1, 2.5, "x", None, True]}
    deep: object = 1
    for _ in range(30):
        deep = [deep]
    with pytest.raises(WrongField, match="expected at most 20 levels of lists and objects, got more"):
        free(deep, "x")
    for odd in (float("inf"), float("nan"), 10**5000, date(2020, 1, 1), "\udfff"):
        with pytest.raises(WrongField, match=r"^x.a: expected "):
            free({"a": odd}, "x")


ODD_VALUES = (
    date(2020, 1, 1),
    datetime(2020, 1, 1, 12, 30),
    time(1, 2),
    10**5000,
    -(10**5000),
    float("nan"),
    b"\0" * 999,
    "\0\x1b[31m" * 99,
    "ü\u202e" * 999,
    "\ud800",
    {"a": 10**5000},
    [10**5000],
    object(),
    None,
)


@pytest.mark.parametrize("value", ODD_VALUES, ids=range(len(ODD_VALUES)))
def test_every_value_has_a_short_printable_text(value: object) -> None:
    text = shown(value)
    assert len(text) <= SHOWN
    assert text.isascii()
    assert text.isprintable()


@given(st.one_of(st.text(), st.integers(), st.floats(), st.dates(), st.binary()))
def test_every_value_has_a_short_printable_text_whatever_it_is(value: object) -> None:
    text = shown(value)
    assert len(text) <= SHOWN
    assert text.isascii()
    assert text.isprintable()
    with pytest.raises(WrongField) as wrong:
        whole(value, inner("x", str(value)), 1, 0)
    assert str(wrong.value).isprintable()
