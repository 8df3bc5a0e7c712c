"""Names and errors of others, in each place where they are shown: they are read there, and do nothing."""

import csv
import io
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.table import Table
from rich.text import Text

from tokencake.sim.gate.formats.github import github
from tokencake.sim.gate.formats.junit import junit
from tokencake.sim.gate.formats.markdown import markdown
from tokencake.sim.gate.formats.text import plain_text
from tokencake.sim.gate.formats.words import details
from tokencake.sim.machine.files import machine_toml
from tokencake.sim.machine.presets import presets
from tokencake.traces.console.printing import printing
from tokencake.traces.files.escaping import (
    for_annotation,
    for_annotation_property,
    for_markdown,
    for_markdown_block,
    for_markdown_code,
    for_terminal,
    for_xml,
    one_line,
)
from tokencake.traces.results.csv_table import csv_table

# What does something somewhere: escape sequences, directions, no width, markup, formulas, ends of lines.
DANGEROUS = "\x1b[31m\x07\x00\x7f\x9b\u202e\u2066\u200b\u200d\ufeff\u2028\u3164\ud800"
MARKUP = "![](<a>)*_`|~$#@&:/.-+=%,;'\"\\\n\r\t 1wx"
texts = st.text(st.one_of(st.sampled_from(DANGEROUS + MARKUP), st.characters()))
NASTY = f"{DANGEROUS}![i](http://a.b/c.png) @team #12 [red]x[/] a|b `c` <img src=x> www.a.b\n::error::=1+1 $x^$ _y_"


def harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


# -- a terminal


@given(texts)
@example(DANGEROUS)
def test_a_terminal_gets_text_alone(text: str):
    safe = for_terminal(text)
    assert harmless(safe)
    assert for_terminal(safe) == safe
    if harmless(text) and "\u3164" not in text:
        assert safe == text


def test_what_cannot_be_seen_is_shown():
    assert for_terminal("a\x1b]0;t\x07\u202eb\u200b\ud800") == r"a\x1b]0;t\x07\u202eb\u200b\ud800"
    assert for_terminal("±…é日本") == "±…é日本"
    assert one_line("a\n b\x85c") == "a b c"


@given(texts)
@example(NASTY)
def test_tables_and_lines_are_text_alone_wherever_it_stands(text: str):
    file = io.StringIO()
    console = printing(file=file, width=50)
    table = Table(text, "")
    table.add_row(text, Text(text, style="red"))
    console.print(text)
    console.print(Text(text), soft_wrap=True)
    console.print(table)
    assert harmless(file.getvalue())


def test_markup_is_no_markup():
    file = io.StringIO()
    printing(file=file, width=80).print("[red]a[/red] [/] :smile:")
    assert file.getvalue() == "[red]a[/red] [/] :smile:\n"


# -- XML, annotations, CSV, TOML


@given(texts)
@example(NASTY)
def test_xml_can_hold_it(text: str):
    element = ElementTree.Element("a", name=for_xml(text))
    element.text = for_xml(text)
    read = ElementTree.fromstring(ElementTree.tostring(element, encoding="unicode"))
    assert (read.text or "") == read.get("name") == for_terminal(text)


@given(texts)
@example(NASTY)
def test_an_annotation_stays_one(text: str):
    message, title = for_annotation(text), for_annotation_property(text)
    assert message.isprintable()
    assert title.isprintable()
    assert not {":", ","} & set(title)
    read = message.replace("%0A", "\n").replace("%25", "%")
    assert read == for_terminal(text)


@given(st.lists(texts, min_size=1))
@example(["=1+1", "-2", "+3", "@SUM(A1)", "\t=1", "\r=1", "plain", "a,b", 'a"b', "a\nb"])
def test_a_cell_of_a_spreadsheet_is_no_formula(cells: list[str]):
    names, row = csv.reader(io.StringIO(csv_table(cells, [cells]), newline=""))
    assert names == row
    assert [cell.removeprefix("'") for cell in row] == [for_terminal(cell).removeprefix("'") for cell in cells]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row)


def test_figures_stay_figures():
    assert csv_table(["policy", "change"], [["-a", -0.5], ["b", None]]) == "policy,change\n'-a,-0.5\nb,\n"


def test_a_comment_stays_a_comment():
    text = machine_toml(presets()["h100-llama-3.1-8b"], [f"model {NASTY}\ngpu_blocks = 1"])
    first = text.splitlines()[0]
    assert first.startswith("# model ")
    assert first.endswith("gpu_blocks = 1")
    assert harmless(text)


# -- markdown


def rendered(line: str) -> list[str]:
    """The kinds of what stands in a line, and its text."""
    found = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(line)
    inside = [token for token in found if token.type == "inline"]
    return [child.type for token in inside for child in token.children or ()] + [
        "".join(child.content for token in inside for child in token.children or ()).replace("\u200b", "")
    ]


@given(texts)
@example(NASTY)
@example("1. a")
@example("a\\|b")
@example("__a__ _b_ a_b_")
def test_markdown_is_text_alone(text: str):
    safe = for_markdown(text)
    assert "\n" not in safe
    *kinds, read = rendered(f"x {safe}")
    assert set(kinds) <= {"text", "text_special"}
    assert read == f"x {one_line(text)}".rstrip()
    *kinds, read = rendered(safe)  # at the begin of a line, too
    assert set(kinds) <= {"text", "text_special"}
    assert read == one_line(text)


@given(texts)
@example(NASTY)
def test_a_cell_of_a_table_stays_one(text: str):
    row = f"| | a | b |\n|---|---|---|\n| x | {for_markdown(text)} | y |"
    found = MarkdownIt("commonmark").enable("table").parse(row)
    cells = [token.content for token in found if token.type == "inline"]
    assert len(cells) == 6
    assert (cells[3], cells[5]) == ("x", "y")


@pytest.mark.parametrize("text", ["@team", "a @b c", "see #12", "a@b.c", "http://a.b", "https://a.b", "WWW.a.b"])
def test_nobody_is_called_and_nothing_becomes_a_link(text: str):
    safe = for_markdown(text)
    assert not any(sign in safe.lower() for sign in ("@team", "@b", "#1", "http:/", "https:/", "www."))


@given(texts)
@example("a`b`c ``` |")
def test_code_stays_code(text: str):
    *kinds, _ = rendered(f"`{for_markdown_code('x' + text + 'x')}`")
    assert kinds == ["code_inline"]
    block = MarkdownIt("commonmark").parse(f"```\n{for_markdown_block(text)}\n```\n\nend")
    assert [token.type for token in block] == ["fence", "paragraph_open", "inline", "paragraph_close"]


# -- the reports of the gate, whatever its names are


def gate_report(name: str) -> dict[str, object]:
    finding = {
        "metric": name,
        "higher_is_better": False,
        "against": name,
        "base": 1.0,
        "value": 2.0,
        "change": 1.0,
        "interval": None,
        "relative": 0.1,
        "absolute": 0.0,
        "allowed": 0.1,
        "verdict": "regressed",
        "lacks": None,
    }
    first = {"decision": 1, "at_s": 1.0, "old_at_s": None, "agent": name, "call": name, "old": None, "new": {name: 1}}
    case = {
        "name": name,
        "line": 3,
        "policy": name,
        "machine": name,
        "repeats": 1,
        "state": "regressed",
        "fails": True,
        "causes": [name],
        "behaviour": "changed",
        "repeats_changed": 1,
        "same_decisions": False,
        "error": None,
        "missing_file": name,
        "first_difference": first,
        "metrics": [finding],
    }
    failed = case | {"state": "failed", "error": name, "metrics": [], "first_difference": None}
    return {
        "suite": name.replace("/", ""),
        "good": False,
        "strict": False,
        "wall_s": 1.0,
        "budget_s": 1.0,
        "over_budget": False,
        "cases": [case, failed],
    }


METRIC_TEXTS = texts.map(lambda text: f"m{text}")


FORGED = "x\nregressed forged\n::error::forged\n```\n| forged |\n]]></testcase>\n## forged"


@given(texts)
@example(FORGED)
@example(NASTY)
@example("x" * 100_000)
def test_what_a_plan_or_a_baseline_says_begins_no_line_of_its_own(said: str):
    case: Any = gate_report("m")["cases"][0]  # type: ignore[index]
    old, new = {"admit": said, "hold": [said]}, {"admit": None, "hold": None}
    first = {**case["first_difference"], "agent": said, "call": said, "old": old, "new": new}
    told = details({**case, "causes": [said], "first_difference": first})
    assert all("\n" not in line and harmless(line) for line in told)
    starts = [line.lstrip(" ").partition(" ")[0] for line in told]
    assert starts == ["cause:", "behaviour", "first", "admit:", "new", "hold:", "new", "m"]


@given(METRIC_TEXTS)
@example(f"m{NASTY}")
def test_the_reports_of_the_gate_stay_what_they_are(name: str):
    report = gate_report(name)
    tests = ElementTree.fromstring(junit(report).encode())
    assert tests.get("tests") == "4"
    assert harmless(plain_text(report, 100))
    annotations = github(report).splitlines()
    assert [line.partition(" ")[0] for line in annotations] == ["::error", "::error", "2"]
    found = MarkdownIt("commonmark").enable("table").parse(markdown(report))
    tables = [token.type for token in found]
    assert tables.count("table_open") == 2
    assert tables.count("tr_open") == 5
    assert {"html_block", "bullet_list_open", "blockquote_open"}.isdisjoint(tables)
    inline = {child.type for token in found for child in token.children or ()}
    assert {"image", "link_open", "html_inline"}.isdisjoint(inline)
