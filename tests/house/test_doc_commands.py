"""The commands that documents show can be typed: there are such commands, and they have these options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest
from documented import ROOT

from tokencake.cli import cli

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands(cli))


def shown(page: str) -> Iterator[str]:
    """What follows `tokencake` in the code blocks of a page, fenced or indented; continued lines joined."""
    text = (ROOT / page).read_text(encoding="utf-8")
    fenced = "".join(re.findall(r"^```(?:sh|text)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    indented = "\n".join(re.findall(r"^    (\S.*)$", text, re.MULTILINE))
    joined = re.sub(r"\\\n\s*", "", f"{fenced}\n{indented}")
    yield from re.findall(r"^(?:\$ |\w+=\S+ )?tokencake (?!wins)(.+?)(?:\s+#.*)?$", joined, re.MULTILINE)


def resolved(words: list[str]) -> click.Command | None:
    return next((COMMANDS[path] for path in (tuple(words[:2]), tuple(words[:1])) if path in COMMANDS), None)


@pytest.mark.parametrize("page", PAGES)
def test_commands_can_be_typed(page: str) -> None:
    wrong = []
    for line in shown(page):
        words = shlex.split(line)
        command = resolved(words)
        known = {"--help"} if command is None else {name for option in command.params for name in option.opts}
        given = {word.partition("=")[0] for word in words if word.startswith("-") and word != "-"}
        if command is None or not given <= known:
            wrong.append(line)
    assert wrong == []


def test_most_pages_show_some() -> None:
    assert sum(len(list(shown(page))) for page in PAGES) >= 40
