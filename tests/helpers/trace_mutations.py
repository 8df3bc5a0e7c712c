"""A trace of which every part is there, and what may become of its values and bytes on the way."""

import copy
import json
import re
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

PAGE = Path(__file__).parents[2] / "docs" / "trace-format.md"
VALID = re.findall(r"^```jsonl\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[0].encode()

TOKENS = [
    b"null",
    b"NaN",
    b"1e999",
    b"-1",
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b'"',
    b"\n",
    b"\\ud800",
    b"9" * 5000,
    b'"id":',
]

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["plan", "look", "edit", "main", "/system", "extends", "keep", 2**31 - 1, 1e9, 0, -0.0, 10**400])
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))
KEYS = st.sampled_from(["extends", "keep", "after", "agent", "tools", "hints", "prompt", "pause_s", "max_output", "x"])


@st.composite
def other_bytes(draw: st.DrawFn) -> bytes:
    """Bytes deleted, replaced and inserted."""
    mutant = bytearray(VALID)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(mutant)))
        end = draw(st.integers(start, min(len(mutant), start + 20)))
        mutant[start:end] = draw(st.binary(max_size=6) | st.sampled_from(TOKENS))
    return bytes(mutant)


@st.composite
def other_values(draw: st.DrawFn) -> bytes:
    """Values replaced, deleted and copied."""
    lines = [json.loads(line) for line in VALID.splitlines()]
    for _ in range(draw(st.integers(1, 3))):
        if _places(lines):
            _mutate(draw, lines)
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in [(value, key), *_places(value[key])]]


def _mutate(draw: st.DrawFn, root: list[Any]) -> None:
    container, key = draw(st.sampled_from(_places(root)))
    other, other_key = draw(st.sampled_from(_places(root)))
    match draw(st.sampled_from(["replace", "delete", "copy", "insert"])):
        case "replace":
            container[key] = draw(VALUES)
        case "delete":
            del container[key]
        case "copy":
            container[key] = copy.deepcopy(other[other_key])
        case "insert" if isinstance(container, dict):
            container[draw(KEYS)] = draw(VALUES)
        case "insert":
            container.insert(key, copy.deepcopy(container[key]))
