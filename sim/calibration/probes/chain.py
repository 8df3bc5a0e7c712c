"""An application in which probes follow one another, each when the one before it has ended."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from typing import NamedTuple

from ....traces.apps import AppId, Application, Call, CallId, Prompt, Segment, Tool

JOINING_TOKENS = 16  # that a call computes before it decodes behind a cached context


class Probe(NamedTuple):
    """Prompts that are computed one after another, while `calls` calls decode behind contexts of their own."""

    context_tokens: int  # cached, that the calls follow on
    calls: int
    steps: int  # that the calls decode
    prompts_tokens: tuple[int, ...]
    before_tokens: int = 0  # cached, that the prompts follow on; 0: none
    contexts: int = 0  # that all of them share; 0: each has its own

    def context_of(self, index: int) -> int:
        """The number of the context that a call continues; the prompts are the one behind the last call."""
        return index % self.contexts if self.contexts else index

    def cached_tokens(self) -> list[int]:
        """By the number of a context, how many of its tokens are continued."""
        longest: dict[int, int] = {}
        for index, tokens in enumerate((*(self.context_tokens for _ in range(self.calls)), self.before_tokens)):
            longest[self.context_of(index)] = max(tokens, longest.get(self.context_of(index), 0))
        return [tokens for _, tokens in sorted(longest.items())]


class Chain:
    """An application in the making: sets of calls, each of which waits for the set before it."""

    def __init__(self, app: AppId) -> None:
        self._app = app
        self.calls: list[Call] = []
        self._after: tuple[CallId, ...] = ()  # the calls that end last in the set before
        self._contexts: dict[int, CallId] = {}  # by the number of an agent, who computed it

    def application(self) -> Application:
        return Application(self._app, 0.0, tuple(self.calls))

    def cache(self, probes: Iterable[Probe]) -> None:
        """Compute a context for each agent, as long as the longest that any probe continues of it."""
        longest = [max(tokens) for tokens in zip_longest(*(probe.cached_tokens() for probe in probes), fillvalue=0)]
        for index, tokens in enumerate(longest):
            if tokens:
                self._contexts[index] = self._add(_agent(index), tokens, 1)
                self._then(self._contexts[index])

    def play(self, probe: Probe) -> None:
        calls = [
            self._behind(probe.context_of(index), probe.context_tokens, JOINING_TOKENS, probe.steps + 1)
            for index in range(probe.calls)
        ]
        last: tuple[CallId, ...] = (calls[0], calls[-1]) if calls else ()
        waits = self._after
        for tokens in probe.prompts_tokens:
            if probe.before_tokens:
                context = probe.context_of(probe.calls)
                prompt = self._behind(context, probe.before_tokens, tokens, 1, after=waits)
            else:
                prompt = self._add("prefill", tokens, 1, after=waits)
            waits = (prompt,)
        self._then(*last, *(waits if probe.prompts_tokens else ()))

    def stall(self, agent_type: str, tokens: int, wait_s: float) -> None:
        """A call, a tool that runs for `wait_s`, and a call that continues the context."""
        agent = f"{agent_type}-{len(self.calls)}"
        first = self._add(agent, tokens, 1, agent_type=agent_type, tools=(Tool("copy", wait_s, wait_s),))
        self._then(first)
        self._then(self._add(agent, JOINING_TOKENS, 1, agent_type=agent_type, extends=first, keep_tokens=tokens))

    def _behind(
        self, index: int, context_tokens: int, tokens: int, output_tokens: int, after: tuple[CallId, ...] | None = None
    ) -> CallId:
        """A call that continues the first tokens of an agent's context, or none if there are to be none."""
        extended = self._contexts[index] if context_tokens else None
        return self._add(
            _agent(index), tokens, output_tokens, extends=extended, keep_tokens=context_tokens, after=after
        )

    def _add(
        self,
        agent: str,
        tokens: int,
        output_tokens: int,
        *,
        agent_type: str = "probe",
        extends: CallId | None = None,
        keep_tokens: int = 0,
        tools: tuple[Tool, ...] = (),
        after: tuple[CallId, ...] | None = None,
    ) -> CallId:
        """One more call, of `tokens` prompt tokens that no other call has; it waits for the set before it."""
        call = f"{self._app}/{len(self.calls)}"
        self.calls.append(
            Call(
                id=call,
                app=self._app,
                agent=f"{self._app}/{agent}",
                agent_type=agent_type,
                prompt=Prompt((Segment(f"{call}.prompt", 0, tokens),), extends, keep_tokens, keep_tokens + tokens),
                output_tokens=output_tokens,
                max_output_tokens=output_tokens,
                after=self._after if after is None else after,
                tools=tools,
            )
        )
        return call

    def _then(self, *ends: CallId) -> None:
        self._after = tuple(dict.fromkeys(ends))


def _agent(index: int) -> str:
    return f"context-{index}"
