"""Writes the tables of packages into the documents, from the one sentence that each `__init__.py` is.

    python .ci/package_table.py            # DESIGN.md and docs/architecture.md
    python .ci/package_table.py --check    # exit code 1 if a document has another table

A table stands between `<!-- packages: NAME -->` and `<!-- end -->`: of all packages (`all`), or of those of one layer.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = ("traces", "policies", "sim", "live")
DOCUMENTS = ("DESIGN.md", "docs/architecture.md")


def packages(layer: str) -> Iterator[tuple[str, str]]:
    """Each package of a layer, outer ones first, with its sentence."""
    for file in sorted((ROOT / layer).rglob("__init__.py"), key=lambda file: file.parent.parts):
        yield file.parent.relative_to(ROOT).as_posix(), ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""


def table(name: str) -> str:
    """The rows of a table."""
    rows = [row for layer in (LAYERS if name == "all" else (name,)) for row in packages(layer)]
    return "\n".join(
        ["| package | |", "|---|---|", *(f"| `{package}/` | {' '.join(said.split())} |" for package, said in rows)]
    )


def filled(text: str) -> str:
    """The document with its tables as they should be."""

    def block(found: re.Match[str]) -> str:
        return f"<!-- packages: {found[1]} -->\n{table(found[1])}\n<!-- end -->"

    return re.sub(r"<!-- packages: (\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def main() -> int:
    """Write the tables, or look whether they are right."""
    texts = {ROOT / document: (ROOT / document).read_text("utf-8") for document in DOCUMENTS}
    stale = {document: filled(text) for document, text in texts.items() if filled(text) != text}
    if "--check" not in sys.argv[1:]:
        for document, text in stale.items():
            document.write_text(text, "utf-8")
        return 0
    for document in stale:
        print(f"{document.relative_to(ROOT)}: its table of packages is old: python .ci/package_table.py")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
