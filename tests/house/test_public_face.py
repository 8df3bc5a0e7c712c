"""`import tokencake` offers what the documents name, loads none of it before it is asked for, and all of it exists."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tokencake

ROOT = Path(__file__).parents[2]
FACE = [
    "EngineOptions",
    "Header",
    "InProcess",
    "Machine",
    "Metrics",
    "Move",
    "Plan",
    "Policy",
    "RunSettings",
    "Simulation",
    "TokencakeError",
    "View",
    "__version__",
    "assert_not_worse",
    "facts",
    "load_machine",
    "load_policy",
    "read_trace",
    "simulate",
    "write_trace",
]


def loaded_after(statement: str) -> set[str]:
    """The modules of a new process after this statement."""
    script = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_the_public_names_are_these() -> None:
    assert tokencake.__all__ == FACE
    assert set(FACE) <= set(dir(tokencake))


@pytest.mark.parametrize("name", FACE)
def test_each_can_be_imported(name: str) -> None:
    here: dict[str, Any] = {}
    exec(f"from tokencake import {name}", here)
    assert here[name] is getattr(tokencake, name)


def test_what_type_checkers_read_is_what_a_program_gets() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    declared = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert declared.pop("facts") == ("traces", "events")
    assert tokencake.facts is sys.modules["tokencake.traces.events"]
    assert declared == {name: (module, name) for name, module in tokencake._MODULES.items()}


def test_the_import_loads_nothing_but_the_version() -> None:
    before, after = loaded_after(""), loaded_after("import tokencake")
    loaded = {name for name in after - before if name.partition(".")[0] not in sys.stdlib_module_names}
    assert loaded == {"tokencake", "tokencake.traces", "tokencake.traces.core_build", "tokencake.traces.version"}


def test_an_engine_is_not_loaded_with_its_options() -> None:
    after = loaded_after("from tokencake import EngineOptions, InProcess, RunSettings")
    assert not after & {"torch", "vllm", "scipy", "pandas", "matplotlib"}


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'tokencake' has no attribute 'Plans'"):
        tokencake.__getattr__("Plans")


def test_what_policies_have_imported_so_far_is_the_same() -> None:
    from tokencake.policies.interface import Move, Plan, Policy, View
    from tokencake.traces import events

    assert (tokencake.Move, tokencake.Plan, tokencake.Policy, tokencake.View) == (Move, Plan, Policy, View)
    assert tokencake.facts is events
