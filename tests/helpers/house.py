"""The package as its files have it: its modules, and which module imports which, anywhere in it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAYERS = ("traces", "policies", "sim", "live")


@cache
def modules() -> Mapping[str, Path]:
    """The package's modules by dotted names, told from the root (`traces.events`), and their files; no packages."""
    files = [*ROOT.glob("cli*.py"), *(file for layer in LAYERS for file in sorted((ROOT / layer).rglob("*.py")))]
    return {_name(file): file for file in files if file.name != "__init__.py"}


def _name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def packages() -> list[Path]:
    """The folders of the package, without the root."""
    return sorted({file.parent for file in modules().values()} - {ROOT})


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def imports() -> Mapping[str, frozenset[str]]:
    """Of each module the modules that it imports: also in functions, and for types alone."""
    return {name: frozenset(_imported(name, file)) - {name} for name, file in modules().items()}


def _imported(name: str, file: Path) -> Iterator[str]:
    package = name.split(".")[:-1]
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found = [alias.name.removeprefix("tokencake.") for alias in node.names if "tokencake." in alias.name]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join((*base, *([node.module] if node.module else []))).removeprefix("tokencake.")
            found = [f"{module}.{alias.name}".lstrip(".") for alias in node.names]
        else:
            continue
        yield from (known for one in found if (known := _known(one)) is not None)


def _known(name: str) -> str | None:
    """The module that a dotted name lies in: `traces.events` of `traces.events.Fact`."""
    while name and name not in modules():
        name = name.rpartition(".")[0]
    return name or None


def circles(graph: Mapping[str, frozenset[str]]) -> list[list[str]]:
    """Sets of nodes that reach each other (Tarjan), each sorted."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], index[other])
        if lowest[node] == index[node]:
            circle = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(circle) > 1:
                found.append(sorted(circle))

    for node in graph:
        if node not in index:
            visit(node)
    return sorted(found)
