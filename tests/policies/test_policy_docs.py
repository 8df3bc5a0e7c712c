"""The guide's example is the shipped file, and both run."""

import re
from dataclasses import fields
from pathlib import Path

from views import Story

from tokencake.policies.interface import Move, Plan
from tokencake.policies.registry import load_policy
from tokencake.traces.apps import NO_HINTS
from tokencake.traces.events import ToolHint

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/writing-a-policy.md").read_text()
EXAMPLE = ROOT / "examples/my_policy.py"


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def test_the_guide_shows_the_shipped_example():
    shipped = EXAMPLE.read_text().split('"""', 2)[2].strip()
    assert snippets()[0].strip() == shipped


def test_the_guides_python_runs():
    names: dict[str, object] = {}
    for snippet in snippets():
        exec(snippet, names)
    assert len(snippets()) == 2


def test_the_example_saves_what_takes_long():
    policy = load_policy(f"{EXAMPLE}:ShortestFirst:least_s=3")
    story = Story()
    for name, declared_s in (("short", 1.0), ("long", 4.0), ("unknown", None)):
        tools = (ToolHint("fetch", declared_s),)
        story.runs(f"a/{name}", prompt_tokens=320, max_output_tokens=16, tools=tools, hints=NO_HINTS)
        story.tool_starts(f"a/{name}")
    assert policy.plan(story.view()).offload == (Move("a/long", 20),)
    assert policy.plan(story.view()).offload == ()


def test_every_field_of_a_plan_is_in_the_guide():
    assert [field.name for field in fields(Plan) if f"`{field.name}`" not in GUIDE] == []
