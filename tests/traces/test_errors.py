"""The tree of errors is the one that its module draws, and commands exit with the codes that stand there."""

import inspect
import re

import pytest

from tokencake.traces import errors
from tokencake.traces.console.exit_codes import exit_code_of

ROW = re.compile(r"^ {4}([│├└─ ]*)(\w+)(?: +(\d+))?(?: .*)?$")
CLASSES = [
    kind for kind in vars(errors).values() if inspect.isclass(kind) and kind.__module__ == errors.__name__
]  # as they stand in the file


def drawn() -> dict[str, tuple[str, int]]:
    """Of each class of the drawing its base, and its exit code."""
    rows: dict[str, tuple[str, int]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if (row := ROW.match(line)) is None:
            continue
        branches, name, code = row.groups()
        del path[len(branches) // 4 :]
        if path:
            rows[name] = path[-1], int(code)
        path.append(name)
    return rows


def test_the_tree_is_the_drawn_one() -> None:
    assert {name: base for name, (base, _) in drawn().items()} == {
        kind.__name__: kind.__bases__[0].__name__ for kind in CLASSES
    }


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_command_exits_with_the_code_that_is_drawn(kind: type[Exception], monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def command() -> None:
        raise kind("it broke")

    assert exit_code_of(command, ()) == drawn()[kind.__name__][1]
