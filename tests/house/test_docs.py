"""What the documents say of the code is so: links, files, the table of packages, the index."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from tokencake.traces.results.metric import metric_names

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))

spec = importlib.util.spec_from_file_location("package_table", ROOT / ".ci" / "package_table.py")
assert spec is not None
assert spec.loader is not None
package_table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package_table)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(page: str) -> set[str]:
    """What a link within a page may name, as GitHub makes it of the headings."""
    headings = re.findall(r"^#+ (.*)$", read(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        path = (ROOT / page).parent / file if file else ROOT / page
        known = not anchor or anchor in anchors(path.resolve().relative_to(ROOT.resolve()).as_posix())
        if not path.exists() or not known:
            dead.append(target)
    assert dead == []


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_files_that_a_page_names_exist(page: str) -> None:
    named = re.findall(r"`((?:traces|policies|sim|live|tests|benchmarks|docs|examples|\.ci)/[\w./-]+)`", read(page))
    assert [name for name in named if "DATE" not in name and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", package_table.DOCUMENTS)
def test_packages_are_described_by_their_own_sentences(page: str) -> None:
    assert "<!-- packages: " in read(page)
    assert package_table.filled(read(page)) == read(page), "write: python .ci/package_table.py"


def test_every_package_is_one_sentence() -> None:
    sentences = dict(row for layer in package_table.LAYERS for row in package_table.packages(layer))
    assert [name for name, said in sentences.items() if not re.fullmatch(r"[^.?!]+(\.\w[^.?!]*)*[.?!]", said)] == []


def test_every_metric_is_explained() -> None:
    explained = read("docs/metrics.md")
    assert [name for name in metric_names() if f"`{name.partition('.')[0]}" not in explained] == []


def defined(tree: ast.Module, name: str) -> bool:
    """Whether a module has a class, function or value of this dotted name."""
    bodies: list[ast.stmt] = tree.body
    for part in name.split("."):
        found = [node for node in bodies if part in names_of(node)]
        if not found:
            return False
        bodies = getattr(found[0], "body", [])
    return True


def names_of(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


@pytest.mark.parametrize(("page", "least"), [("docs/architecture.md", 60), ("DESIGN.md", 1)])
def test_functions_that_a_page_names_exist(page: str, least: int) -> None:
    named = re.findall(r"`([a-z][\w/]*\.py):([\w.]+)`", read(page))
    assert len(named) >= least
    trees = {file: ast.parse(read(file)) for file, _ in named if (ROOT / file).exists()}
    gone = [f"{file}:{name}" for file, name in named if file not in trees or not defined(trees[file], name)]
    assert gone == []


def test_how_to_add_something_names_what_is_there() -> None:
    """`NAME` of `FILE` is a class or a value of that file."""
    named = re.findall(r"`(\w+)` of `([\w/]+\.py)`", " ".join(read("CONTRIBUTING.md").split()))
    assert len(named) >= 5
    gone = [(name, file) for name, file in named if not re.search(rf"^(class )?{name}\b", read(file), re.MULTILINE)]
    assert gone == []


def test_the_index_has_every_page() -> None:
    index = set(re.findall(r"^\| \[([\w-]+\.md)\]", read("docs/README.md"), re.MULTILINE))
    assert index == {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
