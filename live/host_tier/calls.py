"""The calls whose blocks vLLM's connector stores and loads, as far as it knows them: requests and their chunks.

Nobody says when a request arrives, starts or is preempted. So it is looked at when a policy of the tier is told of it
anyway: when it stores something that the tier lacks, and when it has ended. Its facts come then, in their order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from ...policies.interface import Hits
from ...traces import events as e
from ...traces.apps import CallId
from ...traces.arithmetic import div_ceil
from ...traces.events import Fact, Request
from ..engine.apps import Apps
from ..engine.control.callers import caller_of
from ..engine.requests import LiveAgent
from ..engine.vllm_surface import VllmRequest
from .chunks import Chunks
from .copies import TierCopies
from .offload_surface import Key, VllmOffloadScheduler, VllmOffloadState

GIVEN_UP = frozenset({"FINISHED_ABORTED", "FINISHED_IGNORED", "FINISHED_ERROR"})  # of vLLM's RequestStatus


class TierCall:
    """A call that has not ended, as far as the tier knows."""

    __slots__ = ("admitted", "agent", "id", "last", "preemptions", "request", "seen", "state")

    def __init__(self, request: Request, state: VllmOffloadState, agent: LiveAgent, last: bool) -> None:
        self.id: CallId = request.id
        self.request = request
        self.state = state
        self.agent = agent
        self.last = last  # no call of its application follows
        self.admitted = False
        self.seen = False  # its first token came
        self.preemptions = 0

    @property
    def vllm(self) -> VllmRequest:
        return self.state.req


class TierCalls:
    """Calls by their names and by vLLM's names for their requests. `group` is the KV cache group that blocks are of."""

    def __init__(
        self,
        side: VllmOffloadScheduler,
        group: int,
        chunks: Chunks,
        copies: TierCopies,
        apps: Apps,
        report: Callable[[Fact], None],
    ) -> None:
        self._side = side
        self._group = group
        self._block_tokens = side.config.kv_group_configs[group].tokens_per_chunk
        self._chunks = chunks
        self._copies = copies
        self._apps = apps
        self._report = report
        self.by_id: dict[CallId, TierCall] = {}
        self.by_request: dict[str, TierCall] = {}
        self._met: set[str] = set()  # requests, until the connector knows them no more
        self._leaving: deque[str] = deque()  # of these, those that have ended, in the order of their ends
        self._unsure: set[str] = set()  # requests of whose end nobody may tell

    # -- what becomes of requests

    def meet(self, due_s: Callable[[VllmRequest], float], now_s: float) -> None:
        """Requests that came since this was last asked arrive; `due_s` says when they came."""
        states, met = self._side._req_status, self._met
        new: list[str] = []
        for request_id in reversed(states):
            if request_id in met:
                break
            new.append(request_id)
        for request_id in reversed(new):
            met.add(request_id)
            self._arrived(states[request_id], due_s(states[request_id].req), now_s)
        while self._leaving and self._leaving[0] not in states:
            met.discard(self._leaving.popleft())
        for request_id in [name for name in self._unsure if name not in states]:
            self.ended(request_id, now_s)
            met.discard(request_id)

    def _arrived(self, state: VllmOffloadState, at_s: float, now_s: float) -> None:
        caller = caller_of(state.req, self._apps, self.by_id, at_s, now_s)
        if caller is not None:
            call = TierCall(caller.request, state, caller.agent, caller.last)
            self.by_id[call.id] = self.by_request[state.req.request_id] = call
            self._report(e.CallArrived(at_s, call.request))

    def looked_at(self, request_id: str, now_s: float) -> None:
        """vLLM computes this request: it was admitted, at the latest now, and again if it was preempted."""
        call = self.by_request.get(request_id)
        if call is None:
            return
        request = call.vllm
        if not call.admitted:
            call.admitted = True
            self._admitted(call, 0, now_s)
        while call.preemptions < request.num_preemptions:
            call.preemptions += 1
            self._report(e.CallPreempted(now_s, call.id, request.num_output_tokens))
            self._admitted(call, request.num_tokens, now_s)
        if request.num_output_tokens and not call.seen:
            call.seen = True
            self._report(e.FirstToken(now_s, call.id))

    def _admitted(self, call: TierCall, resumed_tokens: int, now_s: float) -> None:
        gpu_tokens = call.state.num_locally_computed_tokens
        hit_tokens = call.state.group_states[self._group].num_hit_chunks * self._block_tokens
        host_tokens = max(0, hit_tokens - gpu_tokens)
        if host_tokens:
            loaded, gpu_blocks = host_tokens // self._block_tokens, gpu_tokens // self._block_tokens
            self._report(e.LoadStarted(now_s, call.id, loaded, gpu_blocks))
            self._report(e.LoadFinished(now_s, call.id, loaded))
        self._report(e.CallAdmitted(now_s, call.id, gpu_tokens, host_tokens, resumed_tokens))

    def ended(self, request_id: str, now_s: float) -> None:
        """vLLM has ended this request, and has stored what it is going to store of it."""
        self._leaving.append(request_id)
        self._unsure.discard(request_id)
        call = self.by_request.get(request_id)
        if call is None:
            return
        request, agent = call.vllm, call.agent
        finished = request.num_output_tokens and request.status.name not in GIVEN_UP
        if finished:
            self.looked_at(request_id, now_s)
            keys = [group.offload_keys for group in call.state.group_states]
            written = (request.num_prompt_tokens + request.num_output_tokens - 1) // self._block_tokens
            agent.context_blocks = min(written, len(keys[self._group]))
            self._copies.remember(agent, keys)
            self._report(e.CallFinished(now_s, call.id, request.num_output_tokens, agent.context_blocks))
        else:
            self._report(e.CallAborted(now_s, call.id))
        del self.by_id[call.id], self.by_request[request_id]
        self._apps.call_went(agent, now_s, last=call.last)
        if finished and call.request.tools:
            self._apps.stall(agent, call.id, now_s)
        self._apps.end_if_over(agent.app, now_s)

    def forget_contents(self) -> None:
        """The tier was emptied. vLLM does not tell a policy of the ends of those that are under way."""
        self._unsure = set(self.by_request)

    # -- what a policy asks

    def hits(self, call_id: CallId) -> Hits:
        """What the tier has of a waiting call's prompt from its first block on: of the GPU nothing is known."""
        keys: Sequence[Key] = self.by_id[call_id].state.group_states[self._group].offload_keys
        return Hits(0, 0, self._chunks.prefix(keys))

    def shared_blocks(self, call_id: CallId) -> int:
        """Nobody knows what running calls hold."""
        return 0

    def running_blocks(self) -> tuple[int, int]:
        """Blocks of the calls that run, shared ones each time, and those that they will yet take for their budgets."""
        taken = growth = 0
        for call in self.by_request.values():
            if call.admitted:
                blocks = div_ceil(call.vllm.num_tokens, self._block_tokens)
                final = div_ceil(call.request.prompt_tokens + call.request.max_output_tokens, self._block_tokens)
                taken += blocks
                growth += max(0, final - blocks)
        return taken, growth
