"""Docstrings and comments that name a module, or something in one: it is there."""

import ast
import re

import pytest
from house import LAYERS, ROOT, modules, packages, tree

MODULES = modules()
PACKAGES = {".".join(package.relative_to(ROOT).parts) for package in packages()}
NAMED = re.compile(rf"`((?:{'|'.join(LAYERS)})(?:\.\w+)+)`")


def defined(module: str) -> set[str]:
    """Names at the top of a module."""
    found: set[str] = set()
    for node in tree(MODULES[module]).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def members(module: str, name: str) -> set[str]:
    """What a class at the top of a module has: methods, fields, and what is assigned to `self`."""
    found: set[str] = set()
    for node in tree(MODULES[module]).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            found.update(inner.name for inner in ast.walk(node) if isinstance(inner, ast.FunctionDef))
            found.update(inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute))
            found.update(
                inner.target.id
                for inner in node.body
                if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name)
            )
    return found


def is_there(name: str) -> bool:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module, rest = ".".join(parts[:length]), parts[length:]
        if module in MODULES:
            of_class = rest[1:]
            named = not rest or rest[0] in defined(module)
            return named and (not of_class or (len(of_class) == 1 and of_class[0] in members(module, rest[0])))
        if module in PACKAGES:
            return not rest
    return False


@pytest.mark.parametrize("module", sorted(MODULES))
def test_what_a_docstring_names_is_there(module: str) -> None:
    named = NAMED.findall(MODULES[module].read_text(encoding="utf-8"))
    assert [name for name in named if not is_there(name)] == []


def test_what_is_not_there_is_found() -> None:
    assert is_there("policies.runs.playable.Playable")
    assert is_there("traces.results")
    assert is_there("policies.runs.playable.Playable.limits")
    assert not is_there("policies.runs.playable.Playable.nonesuch")
    assert not is_there("policies.runs.playable.Playing")
    assert not is_there("live.adapter.Adapter")
