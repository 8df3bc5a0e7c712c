"""What the live half imports from vLLM, read from its sources, and what of it is not there."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

LIVE = Path(__file__).parents[3] / "live"


class Imported(NamedTuple):
    file: str
    module: str
    name: str | None  # of the module, or none if it is imported as such


def missing_imports(files: Iterable[Path] | None = None) -> list[str]:
    """A line for each import of these files, or of the live half, that fails; one for each package that vLLM lacks."""
    found = sorted(LIVE.rglob("*.py")) if files is None else files
    lines = (problem(one) for file in found for one in imported_by(file))
    return list(dict.fromkeys(line for line in lines if line is not None))


def imported_by(file: Path) -> Iterator[Imported]:
    """What is imported of vLLM anywhere in a file, in functions, too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level and of_vllm(node.module or ""):
            yield from (Imported(file.name, str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (Imported(file.name, alias.name, None) for alias in node.names if of_vllm(alias.name))


def of_vllm(module: str) -> bool:
    return module.partition(".")[0] == "vllm"


def problem(one: Imported) -> str | None:
    """Why it cannot be imported."""
    try:
        module = import_module(one.module)
    except ImportError as error:
        return f"{one.module}, of {one.file}: {error}" if of_vllm(error.name or "") else str(error)
    if one.name is None or hasattr(module, one.name):
        return None
    try:
        import_module(f"{one.module}.{one.name}")
    except ImportError:
        return f"{one.module}.{one.name}, of {one.file}"
    return None
