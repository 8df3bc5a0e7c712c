"""Facts are told to whoever handles their kind, in order."""

from __future__ import annotations

from collections.abc import Mapping

from tokencake.policies.parts.dispatch import Handler, merged, tell
from tokencake.traces import events as e


class Diary:
    """Writes down what it is told, under its own name."""

    def __init__(self, name: str, pages: list[str], *kinds: type) -> None:
        self._name = name
        self._pages = pages
        self.handlers: Mapping[type, Handler] = dict.fromkeys(kinds, self._write)

    def _write(self, fact: e.CallAborted, step: int) -> None:
        self._pages.append(f"{self._name}: {type(fact).__name__} of {fact.call} in step {step}")


def test_each_listener_hears_of_a_fact_before_anybody_hears_of_the_next_one():
    pages: list[str] = []
    listeners = (Diary("first", pages, e.CallAborted, e.FirstToken), Diary("second", pages, e.CallAborted))
    facts = (e.CallAborted(1.0, "a"), e.FirstToken(2.0, "b"), e.AppFinished(3.0, "c"), e.CallAborted(4.0, "d"))
    tell(facts, merged(listeners), 7)
    assert pages == [
        "first: CallAborted of a in step 7",
        "second: CallAborted of a in step 7",
        "first: FirstToken of b in step 7",
        "first: CallAborted of d in step 7",
        "second: CallAborted of d in step 7",
    ]


def test_a_fact_that_nobody_handles_is_passed_over():
    tell((e.AppFinished(3.0, "c"),), merged(()))
    assert merged(()) == {}
