"""The example of docs/trace-format.md is a trace, and means what the page says of it."""

import re
from pathlib import Path

import pytest

from tokencake.traces.apps import Application, Hints
from tokencake.traces.format import header, parser
from tokencake.traces.format.reader import read_trace
from tokencake.traces.inspect.inspection import inspect_trace

PAGE = (Path(__file__).parents[3] / "docs" / "trace-format.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    return str(found[0])


@pytest.fixture
def example(tmp_path: Path) -> list[Application]:
    (tmp_path / "example.jsonl").write_text(block("jsonl"), encoding="utf-8")
    return list(read_trace(tmp_path / "example.jsonl"))


def test_the_prompts_have_the_lengths_that_the_page_says(example: list[Application]):
    fix, chat = example
    lengths = {call.id: call.prompt_tokens for call in fix.calls}
    assert lengths == {
        "fix-42/plan": 850,
        "fix-42/look": 420,
        "fix-42/sum-up": 1380,
        "fix-42/edit": 1170,
        "fix-42/finish": 1665,
    }
    for tokens in lengths.values():
        assert f"{tokens:,}" in PAGE
    assert chat.calls[0].prompt.segments[0] == fix.calls[0].prompt.segments[0]


def test_the_example_has_no_errors(example: list[Application], tmp_path: Path):
    found = inspect_trace(read_trace(tmp_path / "example.jsonl"))
    assert (found.applications, found.calls, found.agents, found.errors) == (2, 6, 3, ())


def test_the_python_of_the_page_runs(example: list[Application], tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(block("python"), {})
    assert capsys.readouterr().out == "fix-42 5\nchat-1 1\n"
    assert list(read_trace("copy.jsonl.gz")) == example


def test_every_field_is_described():
    described = set(re.findall(r"`(\w+)`", PAGE))
    known = header.HEADER_FIELDS | parser.APPLICATION_FIELDS | parser.CALL_FIELDS | parser.TOOL_FIELDS
    assert known | parser.HINT_FIELDS.keys() <= described
    assert parser.HINT_FIELDS.keys() == set(Hints._fields)
