"""traces <- policies <- sim, live <- cli: who may import whom, and what `simulate` may load."""

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = {
    "traces": set[str](),
    "policies": {"traces"},
    "sim": {"traces", "policies"},
    "live": {"traces", "policies"},
    "cli": {"traces", "policies", "sim", "live"},
}
EXTRAS = {  # the one file of each
    "sim/gate/pytest_plugin.py": {"pytest"},
    "sim/experiments/ray_executor.py": {"ray"},
    "sim/experiments/sweep/plot.py": {"matplotlib"},
}
ONLY_LIVE = {"fastapi", "openai", "starlette", "torch", "vllm"}  # what engines, their servers and clients bring


class Imports(NamedTuple):
    """What one file imports, anywhere in it: layers of ours, and top-level modules of others."""

    layers: set[str]
    others: set[str]


def targets(tree: ast.Module, package: tuple[str, ...]) -> Iterator[str]:
    """Absolute dotted names that a module in `package` imports; of `from a import b` also `a.b`, maybe a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imports(source: str, file: Path) -> Imports:
    """Imports of `source`, a file at `file` below the root of the repository."""
    names = [name.split(".") for name in targets(ast.parse(source), ("tokencake", *file.parts[:-1]))]
    ours = {name[1] for name in names if name[0] == "tokencake" and len(name) > 1}
    return Imports(ours & LAYERS.keys(), {name[0] for name in names} - {"tokencake", "__future__"})


def files_of(layer: str) -> list[Path]:
    """Python files of a layer, relative to the root; none of a layer that is not written yet."""
    file = ROOT / f"{layer}.py"
    found = [file] if file.exists() else sorted((ROOT / layer).rglob("*.py"))
    return [path.relative_to(ROOT) for path in found]


PACKAGE_FILES = [(layer, file) for layer in LAYERS for file in files_of(layer)]
each_file = pytest.mark.parametrize(("layer", "file"), PACKAGE_FILES, ids=[str(file) for _, file in PACKAGE_FILES])


def test_every_form_of_an_import_is_seen() -> None:
    source = (
        "import vllm.v1\nfrom . import kv\nfrom ...policies import x\nfrom ... import traces\ndef f():\n import simpy"
    )
    found = imports(source, Path("sim/engine/engine.py"))
    assert found == Imports({"sim", "policies", "traces"}, {"vllm", "simpy"})


def test_the_layers_are_those_of_the_tree() -> None:
    assert {layer for layer, _ in PACKAGE_FILES} >= {"traces", "policies", "sim", "cli"}


@each_file
def test_a_layer_imports_only_layers_below_it(layer: str, file: Path) -> None:
    above = imports((ROOT / file).read_text(encoding="utf-8"), file).layers - LAYERS[layer] - {layer}
    assert not above, f"{file} imports {sorted(above)}"


@each_file
def test_only_live_imports_what_an_engine_brings(layer: str, file: Path) -> None:
    if layer != "live":
        assert not imports((ROOT / file).read_text(encoding="utf-8"), file).others & ONLY_LIVE


@each_file
def test_everything_imported_is_the_standard_library_or_a_declared_dependency(layer: str, file: Path) -> None:
    others = imports((ROOT / file).read_text(encoding="utf-8"), file).others - sys.stdlib_module_names
    extras = EXTRAS.get(file.as_posix(), set())
    assert extras <= optional_dependencies()
    assert others <= base_dependencies() | extras | (ONLY_LIVE if layer == "live" else set())


def test_policies_run_without_an_engine() -> None:
    """They import neither the simulator's event kernel nor vLLM: the same file is loaded in both worlds."""
    for file in files_of("policies"):
        assert not imports((ROOT / file).read_text(encoding="utf-8"), file).others & {"simpy", "torch", "vllm"}, file


def base_dependencies() -> set[str]:
    return {requirement.split(">")[0] for requirement in project()["dependencies"]}


def optional_dependencies() -> set[str]:
    groups = project()["optional-dependencies"].values()
    return {requirement.split(">")[0] for requirements in groups for requirement in requirements}


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What a whole `simulate` of the default policies has loaded at its end."""
    trace = ROOT / "examples" / "code-writer.jsonl"
    return loaded_by(["simulate", str(trace), "--json", "-"], tmp_path_factory.mktemp("loaded"))


def loaded_by(arguments: Sequence[str], folder: Path, exit_code: int = 0) -> set[str]:
    """What a command has loaded at its end."""
    script = (
        "import json, sys\n"
        "from tokencake.cli import main\n"
        f"sys.argv = {['tokencake', *arguments]!r}\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        f"    assert end.code == {exit_code}, end.code\n"
        f"print(json.dumps(sorted(sys.modules)), file=open({str(folder / 'modules')!r}, 'w'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads((folder / "modules").read_text()))


def test_simulate_loads_nothing_heavy(loaded: set[str]) -> None:
    assert "tokencake.traces.format.reader" in loaded
    assert not loaded & {"torch", "vllm", "scipy", "pandas", "matplotlib", "pytest", "hypothesis"}


def test_simulate_starts_with_no_more_than_it_needs(loaded: set[str]) -> None:
    """A small trace is played in less time than it takes to load modules: those that tables, other commands, other
    options or other policies need are not there.
    """
    for unneeded in ("rich", "multiprocessing", "concurrent", "logging", "tomllib", "secrets", "gzip", "numpy"):
        assert unneeded not in loaded
    ours = {name for name in loaded if name.split(".")[0] == "tokencake"}
    assert {name for name in ours if name.startswith("tokencake.policies.field.")} == {"tokencake.policies.field.vllm"}
    assert not {name for name in ours if name.startswith("tokencake.policies.replay")}
    assert len(ours) < 172
    assert len(loaded) < 400


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "none.jsonl"],
        ["sweep", "none.jsonl", "--rate", "1", "-o", "cells.csv"],
        ["check", "--suite", str(ROOT / "tokencake.toml"), "--case", "none"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_numpy_is_not_loaded_before_the_runs(arguments: list[str], tmp_path: Path) -> None:
    """Its threads would keep the processes that play from being copies of the command."""
    loaded = loaded_by(arguments, tmp_path, exit_code=2)
    assert "tokencake.sim.experiments.processes.workers" in loaded
    assert not loaded & {"numpy", "scipy"}
