"""Recorded facts through a fresh policy, with no engine: are its plans those that were recorded?

The facts rebuild what the policy saw, the recorded answers (`Asked`, `AskedShared`; see `traces.questions`) stand in
for the engine's cache, and the recorded plans (`Planned`) are what must come out again. Records are taken one at a
time: memory does not grow with the file.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

from ...traces import events as e
from ...traces.apps import CallId
from ...traces.errors import FactError, PolicyError, TraceError, Unanswered
from ...traces.events import Fact
from ...traces.format.events_file import Record, read_events
from ...traces.questions import Blocks, Questions
from ..controller import Controller, as_record
from ..costs import LinearCosts
from ..interface import Costs, Hits, Plan, Policy
from ..registry import load_policy

Answer = TypeVar("Answer", Blocks, int)


class Difference(NamedTuple):
    """A plan that did not come out again: what was recorded and what was replayed, where they differ.

    Of a field of the plan that was left at its default there is None. Beside the plan's fields there are `questions`,
    if the policy asked otherwise about the cache, and `error`, if it raised once and not the other time.
    """

    plan: int  # its number in the record, from 1
    at_s: float
    fields: Mapping[str, tuple[object, object]]  # recorded, replayed


@dataclass(slots=True)
class Parity:
    """What a replay came to."""

    plans: int = 0  # that are recorded
    different: int = 0
    not_replayed: int = 0  # behind one at which the replay could not go on
    first: Difference | None = None

    @property
    def equal(self) -> bool:
        return not self.different and not self.not_replayed

    def record(self) -> dict[str, int]:
        """The counts."""
        return {"plans": self.plans, "different": self.different, "not_replayed": self.not_replayed}


def began(policy: str, seed: int, costs: LinearCosts) -> e.Began:
    """The record that a run's events start with."""
    return e.Began(policy, seed, e.BelievedCosts(**asdict(costs)))


def setup_of(
    path: str | Path, records: Iterable[Record], policy: str | None, seed: int | None, costs: LinearCosts | None
) -> tuple[e.Began, Iterable[Record]]:
    """How a recorded run was set up, changed by what is not None; and all of its records.

    Raises `TraceError` if the record does not say and neither is it told.
    """
    coming = iter(records)
    first = next(coming, None)
    if first is None:
        raise TraceError(f"{path}: holds no record of a run")
    if isinstance(first, e.Began):
        said = first
    elif policy is None or costs is None:
        raise TraceError(f"{path}: does not say which policy ran, and what it believed: give both")
    else:
        said = began(policy, 0, costs)
    told = said if costs is None else began(said.policy, said.seed, costs)
    told = told._replace(
        policy=said.policy if policy is None else policy,
        seed=said.seed if seed is None else seed,
    )
    return told, chain((first,), coming)


def replay_file(
    path: str | Path, policy: str | None = None, seed: int | None = None, costs: LinearCosts | None = None
) -> tuple[e.Began, Parity]:
    """Replay an events file; what is None is as recorded. With which policy, seed and beliefs, and what it came to.

    The file may name a registered policy only: one from a user's own file has to be given. Raises `TraceError` if the
    file is none, or holds no plan, and `PolicyError` if there is no such policy.
    """
    setup, records = setup_of(path, read_events(path), policy, seed, costs)
    try:
        fresh = load_policy(setup.policy, seed=setup.seed, registered_only=policy is None)
    except PolicyError as error:
        raise error if policy is not None else type(error)(f"{path}: {error}") from None
    try:
        parity = replay(records, fresh, LinearCosts(**setup.costs._asdict()))
    except _Impossible as problem:
        raise TraceError(f"{path}: {problem}") from None
    if not parity.plans:
        raise TraceError(f"{path}: no plan is recorded")
    return setup, parity


def replay(records: Iterable[Record], policy: Policy, costs: Costs) -> Parity:
    """Tell a fresh policy what was recorded, and compare its plans. Raises `TraceError` for facts that cannot be."""
    told = _Replay(policy, costs)
    for record in records:
        told.take(record)
    return told.parity


class _Impossible(TraceError):
    """A fact about something that is not there."""


class _Unrecorded(Unanswered):
    """The policy asked the cache a question to which no answer is recorded."""


class _Answers:
    """What the engine answered: recorded for one plan, in the order of the questions, and last to each of them."""

    def __init__(self) -> None:
        self.recorded: deque[e.Asked | e.AskedShared] = deque()
        self.asked = Questions()
        self.trusting = False  # whether the last answer to a question was taken, as none is recorded for this plan
        self._every_answer_is_recorded = False

    def begin(self, every_answer_is_recorded: bool) -> None:
        """The policy is going to be asked for a plan."""
        self.asked.checksum = 0
        self.trusting = False
        self._every_answer_is_recorded = every_answer_is_recorded

    def hits(self, call: CallId) -> Hits:
        answer = self._recorded(e.Asked, call)
        if isinstance(answer, e.Asked):
            blocks = (answer.gpu_blocks, answer.idle_blocks, answer.host_blocks)
        else:
            blocks = self._trusted(self.asked.last_hits(call), e.Asked, call)
        self.asked.hits(call, blocks)
        return Hits(*blocks)

    def shared_blocks(self, call: CallId) -> int:
        answer = self._recorded(e.AskedShared, call)
        if isinstance(answer, e.AskedShared):
            blocks = answer.blocks
        else:
            blocks = self._trusted(self.asked.last_shared(call), e.AskedShared, call)
        self.asked.shared(call, blocks)
        return blocks

    def _trusted(self, last: Answer | None, kind: type, call: CallId) -> Answer:
        """The last answer to a question, if that is how the run was recorded."""
        if last is None or self._every_answer_is_recorded:
            raise _Unrecorded(f"{_QUESTIONS[kind]} {call}")
        self.trusting = True
        return last

    def _recorded(self, kind: type, call: CallId) -> e.Asked | e.AskedShared | None:
        """The next answer that is recorded, if it is to this question."""
        if self.recorded and type(self.recorded[0]) is kind and self.recorded[0].call == call:
            return self.recorded.popleft()
        return None

    @property
    def next_question(self) -> str | None:
        """What was asked next when it was recorded; None: nothing."""
        if not self.recorded:
            return None
        return f"{_QUESTIONS[type(self.recorded[0])]} {self.recorded[0].call}"


_QUESTIONS: Mapping[type, str] = {e.Asked: "hits of", e.AskedShared: "blocks shared by"}


class _Replay:
    """The state between two records."""

    def __init__(self, policy: Policy, costs: Costs) -> None:
        self.parity = Parity()
        self._answers = _Answers()
        self._controller = Controller(policy, costs, self._answers, ())
        self._asked: e.Polled | None = None  # the policy was asked, and has not answered yet
        self._over = False  # the policy's state is not the recorded one's any more

    def take(self, record: Record) -> None:
        if self._over:
            self.parity.plans += type(record) is e.Planned
            self.parity.not_replayed += type(record) is e.Planned
        elif isinstance(record, e.Asked | e.AskedShared):
            self._answers.recorded.append(record)
        elif isinstance(record, e.Planned):
            self._planned(record)
        elif self._asked is not None:
            self._raised(self._asked)
        elif isinstance(record, e.Polled):
            self._asked = record
        elif not isinstance(record, e.Began):
            self._hear(record)

    def _hear(self, fact: Fact) -> None:
        self._answers.asked.hear(fact)
        try:
            self._controller.hear(fact)
        except FactError as wrong:
            raise _Impossible(str(wrong)) from None

    def _planned(self, recorded: e.Planned) -> None:
        polled, self._asked = self._asked, None
        if polled is None:
            raise _Impossible("Planned: expected Polled before it")
        self.parity.plans += 1
        self._answers.begin(every_answer_is_recorded=recorded.questions is None)
        try:
            plan = self._controller.poll(polled)
        except _Unrecorded as asked:
            self._over = True
            self._differs(polled.at_s, {"questions": (self._answers.next_question, str(asked))})
        except PolicyError as error:
            self._over = True
            self._differs(polled.at_s, {"error": (None, str(error))})
        else:
            self._compare(recorded, plan)

    def _compare(self, recorded: e.Planned, plan: Plan) -> None:
        differences = differing(recorded.plan, as_record(plan))
        answers = self._answers
        if (question := answers.next_question) is not None:
            differences["questions"] = (question, None)
            answers.recorded.clear()
        elif recorded.questions is not None and recorded.questions != answers.asked.checksum:
            differences["questions"] = (f"checksum {recorded.questions}", f"checksum {answers.asked.checksum}")
        if "questions" in differences and answers.trusting:
            self._over = True  # to a question that was not asked then, the last answer may be an old one
        if differences:
            self._differs(recorded.at_s, differences)

    def _raised(self, polled: e.Polled) -> None:
        """No plan follows the question: the recorded policy raised, and the engine went on without it."""
        self._over = True
        self._answers.begin(every_answer_is_recorded=False)
        try:
            plan = self._controller.poll(polled)
        except PolicyError:
            return
        self._differs(polled.at_s, {"error": ("it raised", None), **differing({}, as_record(plan))})

    def _differs(self, at_s: float, fields: Mapping[str, tuple[object, object]]) -> None:
        self.parity.different += 1
        if self.parity.first is None:
            self.parity.first = Difference(self.parity.plans, at_s, fields)


def differing(recorded: Mapping[str, object], replayed: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """The fields in which two records of plans differ, as JSON knows them: what each has."""
    one, other = plain(recorded), plain(replayed)
    return {
        name: (one.get(name), other.get(name))
        for name in dict.fromkeys((*one, *other))
        if one.get(name) != other.get(name)
    }


def plain(record: Mapping[str, object]) -> dict[str, object]:
    """As it is read back from a file: lists instead of tuples."""
    plain: dict[str, object] = json.loads(json.dumps(record))
    return plain
