"""What a policy asks about the cache, as it is recorded: an answer when it is not the last one to that question.

A plan is recorded with a checksum of all questions before it. So a replay has an answer to each of them, and finds a
policy that asks others. Older records hold an answer to every question, and no checksums.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from zlib import crc32

from . import events as e
from .apps import CallId

HITS, SHARED = 1, 2  # kinds of questions
Blocks = tuple[int, int, int]  # an answer of the first kind: on the GPU, of these in nobody's use, on the host


class Questions:
    """Those of one run, with the last answer to each as long as its call waits."""

    __slots__ = ("_hits", "_shared", "checksum")

    def __init__(self) -> None:
        self.checksum = 0  # of the questions since this was last set to 0, in their order
        self._hits: dict[CallId, Blocks] = {}
        self._shared: dict[CallId, int] = {}

    def last_hits(self, call: CallId) -> Blocks | None:
        """The last answer; None if there was none."""
        return self._hits.get(call)

    def last_shared(self, call: CallId) -> int | None:
        """The last answer; None if there was none."""
        return self._shared.get(call)

    def hits(self, call: CallId, answer: Blocks) -> bool:
        """The hits of a call were asked for. Whether the answer is not the last one."""
        self._count(HITS, call)
        if self._hits.get(call) == answer:
            return False
        self._hits[call] = answer
        return True

    def shared(self, call: CallId, answer: int) -> bool:
        """A call's shared blocks were asked for. Whether the answer is not the last one."""
        self._count(SHARED, call)
        if self._shared.get(call) == answer:
            return False
        self._shared[call] = answer
        return True

    def _count(self, kind: int, call: CallId) -> None:
        self.checksum = crc32(call.encode("utf-8", "surrogatepass"), (self.checksum * 31 + kind) & 0xFFFFFFFF)

    def hear(self, fact: Any) -> None:
        """What a run reports, plans apart: who asks about a call that does not wait any more gets no answer."""
        kind = type(fact)
        if kind is e.CallAdmitted or kind is e.CallAborted:
            self._hits.pop(fact.call, None)
            self._shared.pop(fact.call, None)


def as_now_recorded(records: Iterable[Any]) -> Iterator[Any]:
    """The records of a run without answers that repeat the last one, and plans with what was asked before them.

    What was recorded so comes back as it is.
    """
    questions = Questions()
    for record in records:
        kind = type(record)
        if kind is e.Asked:
            if not questions.hits(record.call, (record.gpu_blocks, record.idle_blocks, record.host_blocks)):
                continue
        elif kind is e.AskedShared:
            if not questions.shared(record.call, record.blocks):
                continue
        elif kind is e.Polled:
            questions.checksum = 0
        elif kind is e.Planned and record.questions is None:
            record = record._replace(questions=questions.checksum)
        else:
            questions.hear(record)
        yield record
