"""Between vLLM's scheduler and one policy: what happens becomes facts, and the policy's plan becomes what vLLM does.

The scheduler (`live.scheduler`) and the connector (`live.connector`) tell what happens; everything here happens in the
engine's own thread, at the start and the end of a step. `begin` starts a run, `end` ends it: one engine can serve
several, each under another policy. Without a run, and for requests without metadata, vLLM does what it does by itself.
What a run leaves behind when it ends, requests that vLLM still serves and copies under way, belongs to no run: no later
one hears of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ...policies.controller import Sink
from ...policies.interface import NATIVE, Plan, Policy
from ...policies.registry import load_policy
from ...policies.replay.replay import began
from ...policies.run_settings import RunSettings
from ...traces.apps import CallId
from ...traces.errors import EngineError
from ...traces.events import Fact
from ...traces.version import __version__
from ..copier.jobs import CopyJob
from .control.client_events import ClientEvent, event_from_record
from .memory.copies import Copies
from .memory.grouped_copies import copies_of
from .memory.grouped_gpu_pool import gpu_pool
from .memory.host_pool import HostPool
from .memory.page_rules import Rules
from .requests import EngineCall
from .session import RunClock, Session, UnloadingScheduler
from .steps import Steps
from .vllm_surface import VllmBlock, VllmOutputs, VllmRequest, VllmSchedulerOutput


class Adapter:
    """One engine's. What it hears goes to the session of the run under way, if there is one.

    `scheduler` is vLLM's, with our methods on it; `rules` are those of the model's KV cache groups; `about` says what
    the engine is, as plain data.
    """

    def __init__(
        self, scheduler: UnloadingScheduler, rules: Rules, host_slots: int, about: Mapping[str, object]
    ) -> None:
        self._scheduler = scheduler
        self._host_slots = host_slots
        self._about = dict(about)
        self._gpu = gpu_pool(scheduler.kv_cache_manager.block_pool, rules)
        self.copies = self._empty_copies()
        self.clock = RunClock()
        self.session: Session | None = None  # of the run under way
        self.errors: list[str] = []  # of the latest run
        self.load_policy: Callable[..., Policy] = load_policy
        self._steps = Steps(scheduler, self.clock)

    def _empty_copies(self) -> Copies:
        return copies_of(self._gpu, HostPool(self._host_slots), _unheard)

    # -- runs

    def begin(
        self,
        settings: RunSettings,
        sinks: Sequence[Sink] = (),
        journal: Sink | None = None,
        *,
        policy: Policy | None = None,
        on_empty_cache: bool = True,
    ) -> None:
        """Start a run at time 0, on an empty cache, with a fresh policy: `policy`, or the one that `settings` name.

        Raises `PolicyError` for a policy that is not there, and `EngineError` while a run or a request is under way.
        A run that needs no empty cache begins whatever is under way: it knows nothing of requests that came before it.
        When anything is raised, no run is under way.
        """
        if self.session is not None:
            raise EngineError("a run is under way: end it first")
        if policy is None:
            policy = self.load_policy(settings.policy, seed=settings.seed)
        if on_empty_cache:
            if not self.at_rest:
                raise EngineError("the engine has requests or copies under way: expected an idle one")
            if not self._scheduler.kv_cache_manager.reset_prefix_cache():
                raise EngineError("vLLM could not empty its prefix cache: some blocks are still held")
            self.copies = self._empty_copies()
        self.copies.refusing = False
        self._steps.schedules_in_vain = 0
        self.errors = []
        self.clock.restart()
        if journal is not None:
            journal(began(settings.policy, settings.seed, settings.costs))
        session = Session(self._scheduler, self._gpu, self.copies, self.clock, settings, policy, sinks, journal)
        block_bytes = self._about["block_bytes"]
        assert isinstance(block_bytes, int)
        session.begin(self._host_slots, block_bytes)
        self.session = session
        self.errors = session.errors
        self.copies.report = session.report
        self._steps.report = session.report if settings.steps else None

    def end(self, *, cut_off: bool = False) -> None:
        """Give up all that is held, and report what the blocks were used for.

        `cut_off`: the run came to no end of its own. Applications under way have not finished, and none is said to.
        Calls that vLLM has not finished are aborted as far as the run knows; vLLM goes on with their requests. Copies
        under way end by themselves. Whatever a sink raises, no run is under way then.
        """
        session = self.session
        if session is None:
            raise EngineError("no run is under way")
        try:
            session.end(cut_off=cut_off, computing=self.computing)
        finally:
            self.session = None
            self.copies.report = _unheard
            self._steps.report = None

    @property
    def settings(self) -> RunSettings | None:
        """Those of the run under way."""
        return None if self.session is None else self.session.settings

    @property
    def at_rest(self) -> bool:
        """Whether vLLM has no request, and nothing is being copied."""
        return not (self._scheduler.requests or self.copies.under_way)

    @property
    def computing(self) -> bool:
        """Whether a step is under way that computes something."""
        return self._steps.computing

    @property
    def policy_s(self) -> float:
        """Wall time that the policy took."""
        return 0.0 if self.session is None else self.session.controller.policy_s

    @property
    def broken(self) -> bool:
        """Whether the policy raised: the engine goes on without it."""
        return bool(self.errors)

    def now_s(self) -> float:
        """Engine time: seconds since the run began."""
        return self.clock.now_s()

    def wake_s(self) -> float | None:
        """When the engine must be stepped although it has no request."""
        return None if self.session is None else self.session.wake_s()

    def has_work(self) -> bool:
        """Whether the engine must be stepped now although it may have no request."""
        return bool(self.copies.under_way) or (self.session is not None and self.session.has_work())

    def info(self) -> dict[str, object]:
        """What this engine is, as plain data."""
        return {
            "tokencake": __version__,
            **self._about,
            "gpu_blocks": self._gpu.blocks,
            "host_blocks": self._host_slots,
            "policy": None if self.settings is None else self.settings.policy,
        }

    # -- what a client says

    def tell(self, event: Mapping[str, object]) -> None:
        """Take in what a client says of an application or a tool. Raises `EngineError` for what means nothing."""
        self.hear(event_from_record(event))

    def hear(self, event: ClientEvent) -> None:
        """The same, of an event that was looked at."""
        session, now_s = self.session, self.now_s()
        if session is None:
            raise EngineError("no run is under way")
        session.apps.hear(event, session.news_s(now_s if event.at_s is None else event.at_s, now_s), now_s)

    # -- what happens to requests

    def arrived(self, request: VllmRequest) -> None:
        """vLLM took in a request."""
        session = self.session
        if session is not None:
            now_s = self.now_s()
            at_s = session.news_s(request.arrival_time - self.clock.start_wall_s, now_s)
            session.calls.arrived(request, at_s, now_s)

    def matched(self, request: VllmRequest, hit_tokens: int) -> tuple[int | None, bool]:
        """How many tokens of a waiting request to load from the host behind those that hit on the GPU, as vLLM asks.

        None: not now.
        """
        session = self.session
        call = None if session is None else session.calls.by_request.get(request.request_id)
        if session is None or call is None:
            return 0, False
        return session.prompts.to_load(call, hit_tokens, session.laid.skip)

    def allocated(self, request: VllmRequest, blocks: Sequence[Sequence[VllmBlock]], external_tokens: int) -> None:
        """vLLM gave blocks, by KV cache group, to a waiting request: it starts, or the host's are loaded first."""
        if self.session is not None:
            self.session.calls.allocated(request, blocks, external_tokens, self.session.now_s)

    def preempted(self, request: VllmRequest, generated_tokens: int) -> None:
        """A running request lost its blocks and waits again."""
        if self.session is not None:
            self.session.calls.preempted(request, generated_tokens, self.session.now_s)

    def aborted(self, requests: Iterable[VllmRequest]) -> None:
        """Requests were given up by their clients, or failed."""
        if self.session is not None:
            self.session.calls.aborted(requests, self.now_s())

    # -- a step

    def boundary(self) -> Plan:
        """vLLM is about to schedule: take in what is due, ask the policy, and do at once what it wants done at once.

        The plan that holds for this step.
        """
        return self._steps.boundary(self.session)

    @property
    def laid(self) -> Plan:
        """The plan that holds for the latest step."""
        return NATIVE if self.session is None else self.session.laid

    def scheduled(self, output: VllmSchedulerOutput, idle_calls: bool) -> None:
        """vLLM has scheduled a step. `idle_calls`: whether calls wait and none runs."""
        self._steps.scheduled(output, idle_calls, self.session, self.copies)

    def take_jobs(self) -> list[CopyJob]:
        """The copies that the workers are to begin with this step."""
        jobs, self.copies.submitted = self.copies.submitted, []
        return jobs

    def acknowledge(self, jobs: Mapping[int, float | None]) -> None:
        """The workers have done these copies, in so many seconds, if known; they are booked at the end of the step."""
        self._steps.acknowledge(jobs)

    def came(self) -> None:
        """A step's outcome came from the workers, and vLLM is about to take it in."""
        self._steps.came()

    def stepped(self, output: VllmSchedulerOutput, outputs: Mapping[int, VllmOutputs]) -> None:
        """vLLM has taken a step's outcome in."""
        self._steps.stepped(output, outputs, self.session, self.copies)

    def forget_contents(self) -> bool:
        """Give up everything that was copied: it has no value any more. False while copies are under way."""
        if self.copies.under_way:
            return False
        if self.session is not None:
            self.session.forget_contents()
        self.copies.clear()
        return True

    # -- which requests are calls

    def call_of(self, request_id: str) -> EngineCall | None:
        return None if self.session is None else self.session.calls.by_request.get(request_id)

    @property
    def knows_all(self) -> bool:
        """Whether every request that vLLM has is a call of ours."""
        known = 0 if self.session is None else len(self.session.calls.by_request)
        return known == len(self._scheduler.requests)

    def request_of(self, call: CallId) -> VllmRequest | None:
        """vLLM's request of a call that it has not finished."""
        found = None if self.session is None else self.session.calls.by_id.get(call)
        return None if found is None else found.vllm

    def shared_blocks(self, call: CallId) -> int:
        """Blocks of a waiting call's prompt that are held."""
        return 0 if self.session is None else self.session.prompts.shared_blocks(call)


def _unheard(fact: Fact) -> None:
    """What happens without a run, nobody hears."""
