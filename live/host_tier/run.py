"""A policy's run in the tier: it hears of calls, is asked when a call has ended and when room is needed, and its plan
says what stays and what goes.

If it raises, that is said once, and the tier goes on as vLLM's own.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from ...policies.boundary import told
from ...policies.controller import Controller, Sink
from ...policies.execution.carry_out import carry_out, wake_time
from ...policies.interface import NATIVE, Policy
from ...policies.run_settings import RunSettings
from ...traces import events as e
from ...traces.errors import FactError, PolicyError, PolicyFault
from ...traces.events import Fact
from ..engine.apps import Apps
from ..engine.session import SECONDS, RunClock
from ..engine.vllm_surface import VllmRequest
from .calls import TierCalls
from .chunks import Chunks
from .copies import TierCopies
from .offload_surface import Evicted, Key, VllmOffloadScheduler

logger = logging.getLogger(__name__)


class TierSizes(NamedTuple):
    """Of the engine and the tier. A block is a chunk: what the connector stores at once, of one KV cache group."""

    group: int  # the KV cache group that blocks are of: the first of full attention
    block_tokens: int
    block_bytes: int
    gpu_blocks: int
    host_blocks: int
    max_running: int


class TierRun:
    """One run, for as long as the engine lasts."""

    def __init__(
        self,
        side: VllmOffloadScheduler,
        chunks: Chunks,
        sizes: TierSizes,
        settings: RunSettings,
        policy: Policy,
        journal: Sink | None = None,
        clock: RunClock | None = None,
    ) -> None:
        self._chunks = chunks
        self._sizes = sizes
        self._clock = clock or RunClock()
        self._now_s = 0.0
        self._told_s = 0.0  # when the latest fact was told
        self._wake_s: float | None = None
        self._asked = 0
        self.errors: list[str] = []  # what the policy raised
        self._copies = TierCopies(chunks, sizes.group, self._report)
        self._apps = Apps(self._copies, self._report, settings.app_timeout_s, settings.session_timeout_s)
        self._calls = TierCalls(side, sizes.group, chunks, self._copies, self._apps, self._report)
        self._controller = Controller(policy, settings.costs, self._calls, (), journal)
        self._report(e.RunStarted(0.0, sizes.block_tokens, sizes.gpu_blocks, sizes.host_blocks, sizes.block_bytes))

    def _report(self, fact: Fact) -> None:
        self._told_s = fact.at_s
        try:
            self._controller.hear(fact)
        except FactError as error:  # a bug of ours; clients get their answers all the same
            self._give_up(error)

    def _tick(self) -> float:
        self._now_s = max(self._now_s, self._clock.now_s())
        self._calls.meet(self._due_s, self._now_s)
        return self._now_s

    def _due_s(self, request: VllmRequest) -> float:
        return min(max(self._told_s, request.arrival_time - self._clock.start_wall_s), self._now_s)

    # -- what vLLM tells

    def stores(self, request_id: str) -> None:
        """A request is about to store something that the tier lacks."""
        self._calls.looked_at(request_id, self._tick())

    def ended(self, request_id: str) -> None:
        """A request has ended."""
        self._calls.ended(request_id, self._tick())
        self._ask_if_due()

    def evict(self, n: int, protected: set[Key]) -> Evicted | None:
        """`n` chunks have to go."""
        self._tick()
        self._ask_if_due()
        return self._chunks.evict(n, protected, lambda: self._copies.give_up_oldest(self._now_s))

    def cleared(self) -> None:
        """vLLM empties the tier."""
        now_s = self._tick()
        self._copies.forget_all(now_s)
        self._calls.forget_contents()
        self._chunks.clear()

    # -- the plan

    def _ask_if_due(self) -> None:
        now_s = self._now_s
        self._apps.end_silent(now_s)
        due = self._controller.due or (self._wake_s is not None and self._wake_s <= now_s)
        if not due or self.errors:
            return
        self._asked += 1
        sizes, (taken, growth) = self._sizes, self._calls.running_blocks()
        free, host_free = max(0, sizes.gpu_blocks - taken), max(0, sizes.host_blocks - self._chunks.num_held)
        try:
            plan = self._controller.poll(e.Polled(now_s, self._asked, free, growth, host_free, sizes.max_running))
        except PolicyError as error:
            self._give_up(error)
            return
        self._wake_s = wake_time(plan, now_s, SECONDS)
        self._chunks.evict_first(())
        try:
            if plan is not NATIVE:
                carry_out(plan, self._apps.agents, self._copies, now_s, SECONDS)
        except Exception as error:  # whoever is to blame, clients get their answers
            logger.exception("a plan could not be carried out")
            self._give_up(PolicyFault(f"a plan at {now_s:.6f} s could not be carried out: {told(error)}"))

    def _give_up(self, error: PolicyError | FactError) -> None:
        """The policy did something wrong, or knows something wrong: say so once, and go on as vLLM would."""
        self._controller.give_up()
        self.errors.append(str(error))
        logger.error("%s; vLLM's CPU tier goes on without it", error)
        self._wake_s = None
        self._chunks.evict_first(())
        self._copies.forget_all(self._now_s)
