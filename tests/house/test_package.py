"""The root of the repository is the package `tokencake`: what is listed is shipped, nothing else, and works."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import tokencake

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LISTED = PYPROJECT["tool"]["setuptools"]["packages"]
NOT_PACKAGES = {"tests", "benchmarks", "docs", "examples", "packaging", "build", "dist", "runs"}
BUILD = """
import sys
sys.path.insert(0, "packaging")  # as `backend-path` says
import backend
out = sys.argv[1]  # each build puts its own command line there
backend.build_sdist(out)
backend.build_wheel(out)
"""


def folders_with_python() -> set[Path]:
    """Folders below the root, and the root, that hold Python files of the package."""
    tops = [
        top
        for top in ROOT.iterdir()
        if top.is_dir() and top.name not in NOT_PACKAGES and not top.name.startswith((".", "__"))
    ]
    return {ROOT} | {file.parent for top in tops for file in top.rglob("*.py")}


def package_name(folder: Path) -> str:
    return ".".join(("tokencake", *folder.relative_to(ROOT).parts))


def shipped_files() -> set[str]:
    """Files of the package as the wheel should name them."""
    code = {file for folder in folders_with_python() for file in folder.glob("*.py")} - {ROOT / "setup.py"}
    data = {ROOT / "py.typed"} | set((ROOT / "traces" / "generate" / "data").glob("*.json"))
    return {"tokencake/" + file.relative_to(ROOT).as_posix() for file in code | data}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this tree, some clutter in it."""
    copy = tmp_path_factory.mktemp("copy") / "a-folder-of-any-name"
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "*.so")
    )
    (copy / "scratch").mkdir()
    (copy / "scratch" / "notes.py").write_text("")
    (copy / "traces" / "notes.txt").write_text("")
    return copy


def build(copy: Path, out: Path, **environment: str) -> list[str]:
    """Build into the folder; what was said of Tokencake meanwhile."""
    command = [sys.executable, "-W", "ignore", "-c", BUILD, str(out)]
    changed = os.environ | environment
    done = subprocess.run(command, cwd=copy, env=changed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("tokencake: ")]


@pytest.fixture(scope="module")
def built(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution."""
    out = tmp_path_factory.mktemp("dist")
    assert build(copy, out, TOKENCAKE_COMPILE="0") == []
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> list[str]:
    return wheel.read(f"tokencake-{tokencake.__version__}.dist-info/METADATA").decode().splitlines()


def test_the_root_holds_two_python_files_and_the_one_that_builds_it() -> None:
    """And the policy that README has its readers save."""
    assert {file.name for file in ROOT.glob("*.py")} - {"my_policy.py"} == {"__init__.py", "cli.py", "setup.py"}


def test_every_folder_with_python_is_a_listed_package_and_the_other_way_round() -> None:
    assert sorted(package_name(folder) for folder in folders_with_python()) == sorted(LISTED)


def test_every_package_says_that_it_is_one() -> None:
    missing = [folder for folder in folders_with_python() if not (folder / "__init__.py").exists()]
    assert not missing


def test_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    about = {name for name in names if name.startswith(f"tokencake-{tokencake.__version__}.dist-info/")}
    assert names - about == shipped_files()


def test_source_distribution_holds_the_package_its_tests_and_its_documents(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {name.removeprefix("tokencake/") for name in shipped_files()} <= inside
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "tests/conftest.py"} <= inside
    assert {"setup.py", "packaging/backend.py", "packaging/core.py"} <= inside
    assert not {"scratch/notes.py", "traces/notes.txt"} & inside
    assert not [name for name in inside if "__pycache__" in name or name.startswith(".")]


def test_without_a_compiler_the_wheel_is_pure_python_and_one_line_says_so(copy: Path, tmp_path: Path) -> None:
    (line,) = build(copy, tmp_path, CC="no-such-compiler")
    assert line.startswith("tokencake: there is no C compiler: installed as pure Python")
    assert [path.name for path in tmp_path.glob("*.whl")] == [f"tokencake-{tokencake.__version__}-py3-none-any.whl"]


@pytest.mark.slow
def test_nor_with_one_that_fails(copy: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypyc")
    (line,) = build(copy, tmp_path, CC="/bin/false")
    assert line.startswith("tokencake: the core could not be compiled (`pip install -v` says why): ")
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]


def test_a_plain_install_is_light(metadata: list[str]) -> None:
    required = [line.removeprefix("Requires-Dist: ") for line in metadata if line.startswith("Requires-Dist: ")]
    always = {name.split(">")[0] for name in required if "extra ==" not in name}
    assert always == {"click", "numpy", "rich", "scipy", "simpy", "zstandard"}


def test_metadata_states_licence_python_and_version(metadata: list[str]) -> None:
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert f"Version: {tokencake.__version__}" in metadata


def test_the_licence_is_the_whole_apache_licence() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_wheel_runs_without_the_checkout(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Unpacked elsewhere it generates a trace (which needs the packaged data) and simulates it."""
    wheel.extractall(tmp_path / "site")
    script = f"import tokencake.cli as c; assert c.__file__.startswith({str(tmp_path)!r}), c.__file__; c.main()"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    for arguments in (
        ["trace", "generate", "code-writer", "--apps", "2", "--rate", "1", "--seed", "0", "-o", "two.jsonl"],
        ["simulate", "two.jsonl"],
    ):
        command = [sys.executable, "-P", "-c", script, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_wheel_names_the_command(wheel: zipfile.ZipFile) -> None:
    entries = wheel.read(f"tokencake-{tokencake.__version__}.dist-info/entry_points.txt").decode()
    assert "[console_scripts]\ntokencake = tokencake.cli:main" in entries


def test_the_changelog_tells_of_this_version() -> None:
    section = "Unreleased" if ".dev" in tokencake.__version__ else tokencake.__version__
    assert f"## [{section}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
