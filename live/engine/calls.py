"""The calls of a run inside vLLM, from arrival to end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ...traces import events as e
from ...traces.apps import CallId
from ...traces.events import Fact
from .apps import Apps
from .control.callers import caller_of
from .memory.copies import Copies
from .memory.page_rules import Rules
from .requests import EngineCall
from .stores import Stores
from .vllm_surface import VllmBlock, VllmOutput, VllmOutputs, VllmRequest, VllmScheduler


class Calls:
    """Calls that vLLM has not finished, by their names and by vLLM's names for their requests. All of it is of one run.

    Requests without metadata, and those of a run before, are strangers: nothing is done or reported for them.
    """

    def __init__(
        self,
        scheduler: VllmScheduler,
        rules: Rules,
        copies: Copies,
        apps: Apps,
        stores: Stores,
        report: Callable[[Fact], None],
    ) -> None:
        self._scheduler = scheduler
        self._copies = copies
        self._apps = apps
        self._stores = stores
        self._report = report
        self._rules = rules
        self._block_tokens = rules[0].block_tokens
        self.by_id: dict[CallId, EngineCall] = {}
        self.by_request: dict[str, EngineCall] = {}
        self._unseen: set[str] = set()  # requests that started, and whose first token has not come
        self._holding: dict[CallId, EngineCall] = {}  # got blocks; those that lost them hold 0 by vLLM's count

    # -- what happens to requests

    def arrived(self, request: VllmRequest, at_s: float, now_s: float) -> None:
        """vLLM took in a request, which arrived at `at_s`."""
        caller = caller_of(request, self._apps, self.by_id, at_s, now_s)
        if caller is None:
            return
        said, agent, last = caller
        agent.waiting += 1
        call = EngineCall(said, request, agent, at_s, self._block_tokens)
        call.last = last
        self.by_id[said.id] = call
        self.by_request[request.request_id] = call
        self._report(e.CallArrived(at_s, said))

    def allocated(
        self, request: VllmRequest, blocks: Sequence[Sequence[VllmBlock]], external_tokens: int, now_s: float
    ) -> None:
        """vLLM gave blocks to a waiting request: it starts, or what the host has of it is loaded first."""
        call = self.by_request.get(request.request_id)
        if call is None:
            return
        agent = call.agent
        self._holding[call.id] = call
        hits, call.matched_blocks = call.matched_blocks, None
        if hits is not None:
            call.gpu_hit_tokens, call.host_hit_tokens = hits * self._block_tokens, external_tokens
        if external_tokens:
            first = call.gpu_hit_tokens // self._block_tokens
            end = first + external_tokens // self._block_tokens
            self._copies.load(call, blocks, first, end, now_s, lambda: self._filled(request))
        else:
            agent.waiting -= 1
            resumed = request.num_tokens if call.started else 0
            call.started = True
            call.target = request.num_tokens
            self._stores.call_started(call)
            if not call.seen:
                self._unseen.add(request.request_id)
            self._report(e.CallAdmitted(now_s, call.id, call.gpu_hit_tokens, call.host_hit_tokens, resumed))
        if agent.uploads:
            self._copies.taken(agent, call.arrived_s, now_s)
        self._copies.unpin(agent)

    def _filled(self, request: VllmRequest) -> None:
        """A waiting request's blocks were loaded: they can be hit, though vLLM looks at it only when it schedules."""
        self._scheduler.kv_cache_manager.cache_blocks(request, request.num_computed_tokens)

    def preempted(self, request: VllmRequest, generated_tokens: int, now_s: float) -> None:
        """A running request lost its blocks and waits again."""
        call = self.by_request.get(request.request_id)
        if call is None:
            return
        call.agent.waiting += 1
        self._holding.pop(call.id, None)
        self._stores.call_stopped(call)
        self._copies.stops(call)
        if self._copies.held_blocks:
            self._copies.refusing = True
        self._report(e.CallPreempted(now_s, call.id, generated_tokens))

    def came(self, outputs: Mapping[int, VllmOutputs], ended: bool, at_s: float) -> None:
        """A step brought tokens to the requests of these clients and, where `ended` says so, ends."""
        unseen = self._unseen
        if not ended and not unseen:
            return
        for of_client in outputs.values():
            outs = of_client.outputs
            if unseen:
                news = [out for out in outs if out.finish_reason is not None or out.request_id in unseen]
            else:
                news = [out for out in outs if out.finish_reason is not None]
            for out in news:
                self._came(out, at_s)

    def _came(self, out: VllmOutput, at_s: float) -> None:
        call = self.by_request.get(out.request_id)
        if call is None:
            return
        if out.new_token_ids and not call.seen:
            call.seen = True
            self._unseen.discard(out.request_id)
            self._report(e.FirstToken(at_s, call.id))
        if out.finish_reason is not None:
            self._finished(call, at_s)

    # -- ends

    def aborted(self, requests: Iterable[VllmRequest], at_s: float) -> None:
        """Requests were given up by their clients, or failed."""
        for request in requests:
            call = self.by_request.get(request.request_id)
            if call is not None:
                self.abort(call, at_s)
                self._apps.end_if_over(call.agent.app, at_s)

    def abort(self, call: EngineCall, at_s: float) -> None:
        """A call comes to nothing, as far as its run knows."""
        call.loading = False
        self._report(e.CallAborted(at_s, call.id))
        self._leave(call, at_s)

    def _finished(self, call: EngineCall, at_s: float) -> None:
        request, agent = call.vllm, call.agent
        output_tokens = int(request.num_output_tokens)
        context_blocks = (request.num_prompt_tokens + output_tokens - 1) // self._block_tokens
        self._copies.remember(agent, request, context_blocks)
        self._stores.call_finished(call)
        self._report(e.CallFinished(at_s, call.id, output_tokens, agent.context_blocks))
        self._leave(call, at_s)
        if call.request.tools:
            self._apps.stall(agent, call.id, at_s)
        self._apps.end_if_over(agent.app, at_s)

    def _leave(self, call: EngineCall, at_s: float) -> None:
        """A call is over."""
        request_id, agent = call.vllm.request_id, call.agent
        del self.by_id[call.id], self.by_request[request_id]
        self._unseen.discard(request_id)
        self._holding.pop(call.id, None)
        self._stores.call_stopped(call)
        self._copies.stops(call)
        self._apps.call_went(agent, at_s, last=call.last)
        agent.waiting = min(agent.waiting, agent.calls)
        self._copies.refusing = False

    def growth_blocks(self) -> int:
        """Blocks that running and loading calls will yet take until their declared budgets."""
        if len(self._rules) > 1:
            return sum(self._growth_pages(call) for call in self._holding.values())
        growth, block_tokens = 0, self._block_tokens
        for call in self._holding.values():
            computed = call.vllm.num_computed_tokens
            if computed:
                left = call.final_blocks + -computed // block_tokens  # without what it has, rounded up
                if left > 0:
                    growth += left
        return growth

    def _growth_pages(self, call: EngineCall) -> int:
        """The same of one call of a model with several KV cache groups: a window's pages come and go."""
        computed = call.vllm.num_computed_tokens
        if not computed:
            return 0
        final = call.request.prompt_tokens + call.request.max_output_tokens
        return sum(max(0, rule.held_pages(final) - rule.held_pages(computed)) for rule in self._rules)
