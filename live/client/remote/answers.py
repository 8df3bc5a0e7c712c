"""What a server answers, looked at before anybody reckons with it: at the address may be anything that speaks HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ....traces.files.fields import MAX_TOKENS, WrongField, flag, items, members, number, seconds, shown, text, whole
from ....traces.files.schema import string

LONGEST_SAID = 500  # characters of a server's text in a message
MOST_SHOWN = 10  # models, and errors of a policy, that a message names
MOST_FACTS = 10**15
LONGEST_POLICY_S = 1e12


class Stalled(NamedTuple):
    """An engine with calls that wait, which has done nothing for `after_s` or longer."""

    said: str  # which call waits, and for what
    after_s: float


class Facts(NamedTuple):
    """What happened since a number was asked for."""

    lines: list[str]  # of an events file
    following: int  # the number of the next one
    under_way: bool  # whether the run still is
    stalled: Stalled | None


class RunEnd(NamedTuple):
    """What a server says of a run, when it has ended, that is in no fact."""

    policy_s: float
    errors: list[str]  # what the policy raised


def version_in(info: Mapping[str, object], name: str) -> str:
    """A version of something. Raises `WrongField`, as all of these do."""
    return text(info.get(name), name)


def count_in(info: Mapping[str, object], name: str, low: int = 1) -> int:
    return whole(info.get(name), name, low, MAX_TOKENS)


def models(answer: object) -> list[str]:
    """The names of the models that are served."""
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list) or not all(isinstance(model, dict) and "id" in model for model in data):
        raise WrongField("", "expected a list of models")
    return [str(model["id"]) for model in data]


def facts(answer: Mapping[str, object], first: int) -> Facts:
    """What was asked for from the `first`-th on. One that is left out, or told twice, would be measured so."""
    lines = items(answer.get("lines"), "lines")
    for index, line in enumerate(lines):
        if type(line) is not str or not line.isascii():
            raise WrongField(f"lines[{index}]", f"expected a fact in ASCII, got {shown(line)}")
    if answer.get("next") != first + len(lines):
        raise WrongField("next", f"expected {first + len(lines)}, got {shown(answer.get('next'))}")
    following = whole(answer.get("next"), "next", 0, MOST_FACTS)
    under_way, stalled = flag(answer.get("under_way"), "under_way"), answer.get("stalled")
    return Facts([str(line) for line in lines], following, under_way, None if stalled is None else _stalled(stalled))


def _stalled(said: object) -> Stalled:
    try:
        told = members(said, frozenset({"said", "after_s"}), ("said", "after_s"))
        return Stalled(brief(string()(told["said"], "said")), seconds(told["after_s"], "after_s"))
    except WrongField as wrong:
        raise wrong.inside("stalled") from None


def ended(answer: Mapping[str, object]) -> RunEnd:
    """A run that the server ended by itself may have nothing to tell."""
    errors = items(answer.get("errors", []), "errors")
    said = [brief(error) for error in errors[:MOST_SHOWN]]
    if len(errors) > MOST_SHOWN:
        said.append(f"{len(errors) - MOST_SHOWN} more errors")
    return RunEnd(number(answer.get("policy_s", 0.0), "policy_s", LONGEST_POLICY_S), said)


def token_ids(answer: object, tokens: int) -> list[int]:
    """So many ids. Whether the vocabulary has them is the server's to know."""
    if not isinstance(answer, list) or len(answer) != tokens:
        found = f"{len(answer)} token ids" if isinstance(answer, list) else "no token ids"
        raise WrongField("", f"expected {tokens} token ids, got {found}")
    for index, token in enumerate(answer):
        if type(token) is not int or not 0 <= token <= MAX_TOKENS:
            raise WrongField(f"token_ids[{index}]", f"expected the id of a token, got {shown(token)}")
    return answer


def brief(said: object) -> str:
    """What a server says, as part of a message of one line."""
    line = " ".join(str(said).split())
    return line if len(line) <= LONGEST_SAID else f"{line[: LONGEST_SAID - 3]}..."
