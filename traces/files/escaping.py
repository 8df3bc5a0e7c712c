"""Text that somebody else wrote, made safe for the place where it is shown: it says something there and does nothing.

Ids, policies, files' names and errors come from traces, suites, reports and code of others. Each function is for one
place. What cannot be seen (control characters, changes of direction, text of no width) is shown as Python writes it:
`\\x1b`, `\\u202e`.
"""

from __future__ import annotations

import re

_SEEN_AS_NOTHING = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")  # printable, says Unicode


def for_terminal(text: str) -> str:
    """Keeps the ends of lines, and nothing else that a terminal would obey."""
    if text.isprintable() and _SEEN_AS_NOTHING.isdisjoint(text):
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character == "\n" or (character.isprintable() and character not in _SEEN_AS_NOTHING):
        return character
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def one_line(text: str) -> str:
    """As `for_terminal`, in one line."""
    return for_terminal(" ".join(text.split()))


def for_xml(text: str) -> str:
    """What XML 1.0 can hold; the markup is escaped by whoever writes the document."""
    return for_terminal(text)


def for_annotation(text: str) -> str:
    """The message of a GitHub annotation (`::error …::MESSAGE`), which may have several lines."""
    return for_terminal(text).replace("%", "%25").replace("\n", "%0A")


def for_annotation_property(text: str) -> str:
    """A property of one: its title, its file."""
    return for_annotation(text).replace(":", "%3A").replace(",", "%2C")


_MARKDOWN = re.compile(
    r"""(?P<sign>[\\`*\[\]~$!]|(?<![^\W_])_|_(?![^\W_]))  # emphasis, code, links, images, formulas
    |(?P<html>[<>&|])
    |(?P<mention>[@\#](?=\w))                               # a person, an issue
    |(?P<address>(?<=\w):(?=//)|(?<=www)\.)                  # which would become a link""",
    re.VERBOSE | re.IGNORECASE,
)
_BLOCK_BEGINS = re.compile(r"^(\d*)([-+#=.)])")  # a heading, an item of a list, a line below a heading
_NO_WIDTH = "&#8203;"


def for_markdown(text: str) -> str:
    """A piece of a line or of a cell, as it is written: no link, no image, no markup, and nobody is called."""
    return _BLOCK_BEGINS.sub(r"\1\\\2", _MARKDOWN.sub(_markdown, one_line(text)))


def _markdown(found: re.Match[str]) -> str:
    text = found[0]
    if found["html"]:
        return {"<": "&lt;", ">": "&gt;", "&": "&amp;", "|": "&#124;"}[text]
    return f"{text}{_NO_WIDTH}" if found["mention"] else f"\\{text}"


def for_markdown_code(text: str) -> str:
    """Between two backticks, also in a table."""
    return one_line(text).replace("`", "'").replace("|", "\\|")


def for_markdown_block(text: str) -> str:
    """Lines between two fences of backticks."""
    return for_terminal(text).replace("```", "'''")


def for_csv(value: object) -> object:
    """A cell that a spreadsheet does not take for a formula: text that would be one begins with an apostrophe."""
    if not isinstance(value, str):
        return value
    text = for_terminal(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
