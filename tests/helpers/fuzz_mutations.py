"""Changes to a good input, of its bytes or of what it says: seeded, so that what was found can be found again."""

from __future__ import annotations

import gzip
import json
import lzma
import random
from collections.abc import Callable, Mapping

Mutation = Callable[[random.Random, bytes], bytes]

# -- of bytes

ODD_BYTES = (b"\0", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\n\n", b"\x1b[31m", b"\xe2\x80\xae", b"\x80", b'"', b"{", b"[")
ODD_TEXTS = (
    *("9" * 5000, "-1", "1e999", "NaN", "-Infinity", "0x" + "F" * 400, "1e-400", "0.1" * 9, "null", "true"),
    *("[" * 2000, '{"a":' * 500, "=", ",", ":", ";", "../../x", "\u202e", "\ud7ff", "x" * 300),
)


def of_bytes(rng: random.Random, data: bytes) -> bytes:
    """Some bytes are changed, left out, put in, moved or there twice; or the end is missing."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        data = rng.choice(_BYTES)(rng, data)
    return data


def _flipped(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]


def _left_out(rng: random.Random, data: bytes) -> bytes:
    start, end = _part(rng, data)
    return data[:start] + data[end:]


def _put_in(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    new = rng.choice(ODD_BYTES) if rng.random() < 0.5 else rng.choice(ODD_TEXTS).encode()
    return data[:at] + new + data[at:]


def _twice(rng: random.Random, data: bytes) -> bytes:
    start, end = _part(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 1, 40)) + data[end:]


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _moved(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    rng.shuffle(lines)
    return b"".join(lines)


def _number_changed(rng: random.Random, data: bytes) -> bytes:
    """Digits become others: the structure stays, what it says does not."""
    places = [at for at, byte in enumerate(data) if 48 <= byte <= 57]
    if not places:
        return data
    at = rng.choice(places)
    new = rng.choice((b"-1", b"0", b"99999999999999999999", b"1e308", b"1e999", b"0.5", b"true", b'"x"', b"9" * 5000))
    return data[:at] + new + data[at + 1 :]


def _part(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 2, 5, 20, 200)))


_BYTES = (_flipped, _left_out, _put_in, _twice, _cut, _moved, _number_changed)

# -- of JSON

ODD_VALUES: tuple[object, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        -(2**63),
        10**400,
        0.5,
        -0.5,
        1e308,
        1e-320,
        float("nan"),
        float("inf"),
    ),
    *("", "x", "a/b", "../x", "vllm", "\0", "\x1b[31m", "\u202e", "\ud800", "x" * 300, "1", "NaN", "2020-01-01"),
    *([], {}, [[]], [None], {"": None}, [[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]], {"a": {"a": {"a": {}}}}),
)


def of_json(rng: random.Random, data: bytes) -> bytes:
    """One value of a JSON file, or of one of its lines, is another one, missing, there twice, or of another name."""
    lines = data.splitlines(keepends=True)
    whole = parsed(data)
    if whole is not None:
        return _dumped(_changed(rng, whole)) + b"\n"
    if not lines:
        return data
    at = rng.randrange(len(lines))
    value = parsed(lines[at])
    if value is None:
        return of_bytes(rng, data)
    change = rng.random()
    if change < 0.05:
        del lines[at]
    elif change < 0.1:
        lines.insert(rng.randrange(len(lines)), lines[at])
    else:
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            value = _changed(rng, value)
        lines[at] = _dumped(value) + b"\n"
    return b"".join(lines)


def parsed(data: bytes) -> object:
    """The JSON that it is; None if it is none."""
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value


def _dumped(value: object) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _changed(rng: random.Random, value: object) -> object:
    """The value with something else at a random place in it."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        return {**value, key: _changed(rng, value[key])} if rng.random() < 0.8 else _other_object(rng, value, key)
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        if rng.random() < 0.8:
            return [*value[:at], _changed(rng, value[at]), *value[at + 1 :]]
        return rng.choice(([*value[:at], *value[at + 1 :]], [*value, value[at]], [*value[:at], value], value[::-1], []))
    if type(value) is float and rng.random() < 0.3:
        return value * rng.choice((-1, 0.5, 2, 1e-300, 1e9))
    if type(value) is int and rng.random() < 0.3:
        return value + rng.choice((-1, 1, 1000))
    return rng.choice(ODD_VALUES)


def _other_object(rng: random.Random, value: Mapping[str, object], key: str) -> object:
    left = {name: one for name, one in value.items() if name != key}
    return rng.choice(
        (
            left,
            {**left, f"{key}x": value[key]},
            {**value, "unknown": rng.choice(ODD_VALUES)},
            {**value, key: value},
            {**value, rng.choice(list(value)): value[key]},
        )
    )


# -- of TOML

ODD_TOML = (
    *("2020-01-01", "12:30:00", "2020-01-01T12:30:00Z", "nan", "-inf", "0x" + "F" * 17, "0x" + "F" * 9000, "9" * 30),
    *("-1", "0", "1e308", "true", '""', '"x"', '"\\u0000"', "[]", "{}", "[[]]", "{ a = 1 }", "[{ a = 1 }, 1]", '"' * 3),
    *("[" * 60 + "]" * 60, "{ a.b.c.d.e.f.g.h = 1 }", '"../x"', '"\\u202e"', "'\\'", "1_000_000_000_000", "1.5"),
)


def of_toml(rng: random.Random, data: bytes) -> bytes:
    """A key of a TOML file has another value or name, a line is missing or there twice, a table is another one."""
    lines = data.decode("utf-8", "replace").splitlines()
    if not lines:
        return data
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        key, equals, value = lines[at].partition("=")
        lines[at : at + 1] = rng.choice(
            (
                [f"{key}= {rng.choice(ODD_TOML)}"],
                [f"{key}= {rng.choice(ODD_TOML)}"],
                [f"{key}= {rng.choice(ODD_TOML)}"],
                [f"{key.strip()}x {equals}{value}"],
                [f"{key.strip()}.{rng.choice(('a', 'mean', 'p95', 'x.y'))} {equals}{value}"],
                [lines[at], lines[at]],
                [],
                [f"[{key.strip()}]", lines[at]],
                [f"[[{key.strip()}]]", lines[at]],
                [lines[at], "[" + " " * 2000],
            )
        )
        lines = lines or [""]
    return ("\n".join(lines) + "\n").encode()


# -- of a line of text, as an argument is


def of_text(rng: random.Random, data: bytes) -> bytes:
    """A word of it is another one, or there twice; or its characters change."""
    text = data.decode("utf-8", "replace")
    words = [word for mark in ",=:. " for word in text.split(mark) if word]
    choice = rng.random()
    if words and choice < 0.5:
        return text.replace(rng.choice(words), rng.choice(ODD_TEXTS), 1).encode("utf-8", "surrogatepass")
    if words and choice < 0.7:
        word = rng.choice(words)
        return text.replace(word, word + rng.choice(",=: .") + word, 1).encode()
    return of_bytes(rng, data)


# -- of how a file is wrapped


def compressed(rng: random.Random, data: bytes) -> bytes:
    """A good compression of a mutated input, or a mutated compression of a good one."""
    squeeze = rng.choice((gzip.compress, lzma.compress))
    return squeeze(of_bytes(rng, data)) if rng.random() < 0.5 else of_bytes(rng, squeeze(data))


KINDS: Mapping[str, tuple[Mutation, ...]] = {  # mutations that fit an input; the likelier ones more than once
    "json": (of_json, of_json, of_json, of_bytes, compressed),
    "toml": (of_toml, of_toml, of_bytes),
    "text": (of_text,),
    "table": (of_text, of_bytes, compressed),
    "bytes": (of_bytes,),
}


def mutated(kind: str, seed: int, good: tuple[bytes, ...]) -> bytes:
    """The mutation of one of the good inputs that belongs to a seed."""
    rng = random.Random(f"{kind} {seed}")
    return rng.choice(KINDS[kind])(rng, rng.choice(good))
