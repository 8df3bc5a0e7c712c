"""vLLM's own counters of a run, and whether the facts say the same.

vLLM counts where each request's prompt came from, and how often one lost its blocks, for its own metrics. The facts
are counted here in the same way; if the two disagree, one of them is wrong, and no figure of the run can be trusted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ...traces.apps import CallId
from ...traces.events import CallAborted, CallAdmitted, CallArrived, CallFinished, CallPreempted, Fact, FirstToken
from ...traces.files.fields import WrongField, shown
from ..engine.vllm_surface import VllmIterationStats

# of what a server publishes for Prometheus at `/metrics`: a name, maybe labels, and the value since the server started
_SAMPLE = re.compile(r"^(vllm:\w+_total)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_FIELDS: Mapping[tuple[str, str], str] = {  # by name, and by a label that it must have
    ("vllm:prompt_tokens_total", ""): "prompt_tokens",
    ("vllm:prompt_tokens_by_source_total", 'source="local_cache_hit"'): "gpu_hit_tokens",
    ("vllm:prompt_tokens_by_source_total", 'source="external_kv_transfer"'): "host_hit_tokens",
    ("vllm:generation_tokens_total", ""): "output_tokens",
    ("vllm:num_preemptions_total", ""): "preemptions",
}


@dataclass(slots=True)
class Counters:
    """Prompt tokens of the calls that came to their first token, by where they came from; and preemptions."""

    prompt_tokens: int = 0
    gpu_hit_tokens: int = 0
    host_hit_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0

    def record(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


class EngineCounters:
    """Takes the place of what vLLM hands its statistics to (`StatLoggerManager`), which is then spared the work."""

    def __init__(self) -> None:
        self.counted = Counters()

    def reset(self) -> None:
        self.counted = Counters()

    def record(self, scheduler_stats: Any, iteration_stats: VllmIterationStats | None, **_: Any) -> None:
        """Called by vLLM after each step that had an outcome."""
        if iteration_stats is None:
            return
        prompts, counted = iteration_stats.prompt_token_stats, self.counted
        counted.prompt_tokens += prompts.total
        counted.gpu_hit_tokens += prompts.local_cache_hit
        counted.host_hit_tokens += prompts.external_kv_transfer
        counted.output_tokens += iteration_stats.num_generation_tokens
        counted.preemptions += iteration_stats.num_preempted_reqs

    def log(self) -> None:
        """Called by vLLM now and then: there is nobody to tell."""

    def log_engine_initialized(self) -> None:
        """Called by vLLM once."""


class FactCounters:
    """The same, counted from facts. Its `add` is a sink."""

    def __init__(self) -> None:
        self.counted = Counters()
        self._prompts: dict[CallId, int] = {}
        self._hits: dict[CallId, tuple[int, int]] = {}  # of calls whose first token has not come: on GPU and host
        self._handlers = {
            CallArrived: self._arrived,
            CallAdmitted: self._admitted,
            FirstToken: self._first_token,
            CallPreempted: self._preempted,
            CallFinished: self._finished,
            CallAborted: self._aborted,
        }

    def add(self, fact: Fact) -> None:
        """Takes the next fact."""
        handler: Any = self._handlers.get(type(fact))
        if handler is not None:
            handler(fact)

    def _arrived(self, fact: CallArrived) -> None:
        self._prompts[fact.request.id] = fact.request.prompt_tokens

    def _admitted(self, fact: CallAdmitted) -> None:
        if not fact.resumed_tokens:
            self._hits[fact.call] = (fact.gpu_hit_tokens, fact.host_hit_tokens)

    def _first_token(self, fact: FirstToken) -> None:
        hits = self._hits.pop(fact.call, None)
        if hits is not None:
            self.counted.prompt_tokens += self._prompts[fact.call]
            self.counted.gpu_hit_tokens += hits[0]
            self.counted.host_hit_tokens += hits[1]

    def _preempted(self, fact: CallPreempted) -> None:
        self.counted.preemptions += 1

    def _finished(self, fact: CallFinished) -> None:
        self.counted.output_tokens += fact.output_tokens
        del self._prompts[fact.call]

    def _aborted(self, fact: CallAborted) -> None:
        del self._prompts[fact.call]
        self._hits.pop(fact.call, None)


def disagreements(vllm: Counters, facts: Counters) -> list[str]:
    """Where vLLM's counters and the facts differ, a line each."""
    return [
        f"{name}: {said:,} by vLLM, {facts.record()[name]:,} by the facts"
        for name, said in vllm.record().items()
        if said != facts.record()[name]
    ]


def read_counters(text: str) -> Counters | None:
    """The sums over all models and engines of the server; None if something is not published. Raises `WrongField`."""
    sums: dict[str, int] = {}
    for name, labels, value in _SAMPLE.findall(text):
        for (wanted, label), field in _FIELDS.items():
            if name == wanted and label in labels:
                sums[field] = sums.get(field, 0) + _count(name, value)
    return Counters(**sums) if len(sums) == len(_FIELDS) else None


def _count(name: str, value: str) -> int:
    try:
        return int(float(value))
    except (ValueError, OverflowError):  # text, NaN or infinity
        raise WrongField(name, f"expected a number, got {shown(value)}") from None


def since(before: Counters, after: Counters) -> Counters:
    """What was counted between two readings."""
    earlier = before.record()
    return Counters(**{name: value - earlier[name] for name, value in after.record().items()})
