"""The core: the modules that are compiled, by mypyc, from their sources as they are.

Python finds a compiled module before its source. `tokencake/traces/core_build.py` says when the sources are used.
"""

from __future__ import annotations

import ast
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from setuptools import Extension

ROOT = Path(__file__).parents[1]
LIBRARY = "core"  # all modules are in tokencake/core__mypyc, so that they call each other as C functions do
STAGE = ROOT / "build" / "core"
# What is not compiled need not be right here: where a wheel is built, most of what it imports is not installed.
MYPY_OPTIONS = ("--config-file=", "--no-namespace-packages", "--follow-imports=silent", "--ignore-missing-imports")

COMPILED = (
    "live/engine/apps.py",
    "live/engine/calls.py",
    "live/engine/memory/*.py",
    "live/engine/prompt_cache.py",
    "live/engine/requests.py",
    "live/engine/session.py",
    "live/engine/steps.py",
    "live/engine/stores.py",
    "policies/*.py",
    "policies/execution/*.py",
    "policies/parts/*.py",
    "policies/tokencake/**/*.py",
    "sim/engine/**/*.py",
    "sim/fidelity/record*.py",
    "sim/fidelity/stepped_engine.py",
    "sim/machine/timing.py",
    "sim/machine/window.py",
    "traces/agreement.py",
    "traces/arithmetic.py",
    "traces/dag_run.py",
    "traces/files/fields.py",
    "traces/format/application_line.py",
    "traces/format/derive.py",
    "traces/format/stream_checks.py",
    "traces/format/well_formed_calls.py",
    "traces/questions.py",
    "traces/results/distribution.py",
    "traces/results/metrics.py",
)
INTERPRETED = (
    "policies/costs.py",  # its fields are read by name, from files
    "policies/execution/carry_out.py",  # times of either engine's kind: mypyc has no such thing
    "policies/execution/copy_rules.py",  # as above
    "policies/foreign_code.py",  # looks at frames of the interpreter
    "policies/interface.py",  # a user's mistakes must get a PolicyError, not a TypeError of a compiled function
    "policies/registry.py",  # imports by name
    "policies/run_settings.py",  # its fields are read by name
    "policies/tokencake/options.py",  # as above
    "policies/tokencake/policy.py",  # people derive from it, and its docstring is shown: a compiled class has none
    "sim/fidelity/record_steps.py",  # cold
)


def modules() -> list[str]:
    """The modules to compile, as paths below the root."""
    found = {path.relative_to(ROOT).as_posix() for pattern in COMPILED for path in ROOT.glob(pattern)}
    return sorted(path for path in found - {*INTERPRETED} if not path.endswith("__init__.py"))


def sources() -> list[str]:
    """The modules whose text is in the compiled ones: themselves, and what they import, for its constants."""
    found = {*modules()}
    for path in modules():
        for node in ast.walk(ast.parse((ROOT / path).read_bytes())):
            if isinstance(node, ast.ImportFrom) and node.level:
                folder = (ROOT / path).parents[node.level - 1] / (node.module or "").replace(".", "/")
                near = [folder.with_suffix(".py"), *(folder / f"{alias.name}.py" for alias in node.names)]
                found |= {source.relative_to(ROOT).as_posix() for source in near if source.exists()}
    return sorted(found)


def extensions() -> list[Extension]:
    """What setuptools compiles. Needs mypy; raises SystemExit if it finds fault with the sources."""
    from mypyc.build import mypycify

    stage = _staged()
    here = Path.cwd()
    os.chdir(stage)
    try:
        found: list[Extension] = mypycify(
            [*(f"tokencake/{path}" for path in modules()), *MYPY_OPTIONS],
            opt_level=os.environ.get("TOKENCAKE_OPT_LEVEL", "2"),
            debug_level="0",
            target_dir=str(stage / "c"),
            group_name=f"tokencake.{LIBRARY}",
        )
    finally:
        os.chdir(here)
    for extension in found:  # setuptools takes no absolute paths
        extension.sources = [os.path.relpath(stage / source, here) for source in extension.sources]
        extension.depends = [os.path.relpath(stage / source, here) for source in extension.depends]
    return found


def _staged() -> Path:
    """A folder that holds the package under its name: the root, which is the package, has any name."""
    package = STAGE / "tokencake"
    shutil.rmtree(package, ignore_errors=True)
    for top in (".", "live", "policies", "sim", "traces"):
        for source in (ROOT / top).glob("*.py" if top == "." else "**/*.py"):
            if source.name != "setup.py":
                copy = package / source.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, copy)
    (package / "py.typed").touch()
    return STAGE
