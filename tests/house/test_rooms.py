"""The house as one wants to find it: rooms of a size, a sentence at each door, one name for one thing."""

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from house import LAYERS, ROOT, modules, packages, tree

MOST_MODULES = 12  # in a folder
MOST_LINES = 400
MOST_LINES_OF_CLI = 550

# The same in both engines, which may not know each other.
TWINS = {"Copies", "EngineCall"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_folder_is_crowded() -> None:
    counts = Counter(relative(file.parent) for file in modules().values())
    assert [folder for folder, count in counts.items() if count > MOST_MODULES] == []


def test_no_module_is_long() -> None:
    lengths = {relative(file): len(file.read_text(encoding="utf-8").splitlines()) for file in modules().values()}
    limits = {"cli.py": MOST_LINES_OF_CLI}
    assert [file for file, lines in lengths.items() if lines > limits.get(file, MOST_LINES)] == []


@pytest.mark.parametrize("package", packages(), ids=relative)
def test_a_package_says_in_one_sentence_what_it_is_and_holds_nothing_else(package: Path) -> None:
    (statement,) = tree(package / "__init__.py").body
    assert isinstance(statement, ast.Expr)
    text = ast.literal_eval(statement.value)
    assert text[-1] in ".?"
    assert not any(end in text[:-1] for end in (". ", "? ", "\n"))


def public_classes() -> Iterator[tuple[str, str]]:
    for name, file in modules().items():
        for node in tree(file).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield node.name, name


def test_no_class_name_stands_for_two_things() -> None:
    places = defaultdict(set)
    for name, module in public_classes():
        places[name].add(module)
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert twice.keys() == TWINS
    engines = ("sim.engine.", "live.engine.", "policies.execution.")
    assert all(module.startswith(engines) for found in twice.values() for module in found)


# -- the tests

TESTS = ROOT / "tests"
OF_NO_WING = {
    "benchmarks",
    "differential",
    "golden",
    "helpers",
    "house",
    "vllm",
}  # what needs vLLM, and what is no test


def test_tests_lie_where_what_they_test_lies() -> None:
    folders = {file.parent.relative_to(TESTS) for file in TESTS.rglob("test_*.py")}
    of_wings = {folder for folder in folders if folder.parts and folder.parts[0] not in OF_NO_WING}
    assert {folder.parts[0] for folder in of_wings} == set(LAYERS)
    assert [str(folder) for folder in sorted(folders) if not folder.parts] == []
    assert [str(folder) for folder in sorted(of_wings) if not (ROOT / folder / "__init__.py").exists()] == []


def test_no_test_file_imports_another() -> None:
    names = {file.stem for file in TESTS.rglob("test_*.py")}
    for file in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.rpartition(".")[2] for name in imported} & names, file


def test_what_helps_tests_is_no_test() -> None:
    helpers = [file for file in TESTS.rglob("*.py") if not file.name.startswith("test_") and file.name != "conftest.py"]
    assert [file for file in helpers if (TESTS / "helpers") not in file.parents] == []
