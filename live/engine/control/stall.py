"""An engine with calls that wait, which computes nothing and copies nothing: for how long, and for what they wait."""

from __future__ import annotations

from collections.abc import Mapping

from ....policies.run_settings import LONGEST_COPY_S
from ....traces.arithmetic import div_ceil
from ..adapter import Adapter
from ..requests import EngineCall
from ..vllm_surface import VllmRequest, VllmScheduler

NOBODYS: Mapping[str, str] = {}


class Watch:
    """Says once, when for `limit_s` nothing has happened. While something is copied, it waits for the longest copy.

    `said` is what it said, until something happens.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.said: str | None = None
        self._since_s = 0.0
        self._copied = 0

    def happened(self, now_s: float) -> None:
        """Something was computed, came, or is still to come by itself."""
        self._since_s = now_s
        self.said = None

    def look(
        self, now_s: float, scheduler: VllmScheduler, adapter: Adapter | None, requests: Mapping[str, str] = NOBODYS
    ) -> str | None:
        """Nothing was computed just now. Returns what there is to say, if that is so for too long, and was not said.

        `adapter` is the engine's, if it has one. `requests`: vLLM's names for them, by call.
        """
        if not self._is_over(now_s, adapter) or self.said is not None:
            return None
        self.said = _words(now_s - self._since_s, scheduler, adapter, requests)
        return self.said

    def _is_over(self, now_s: float, adapter: Adapter | None) -> bool:
        limit_s = self.limit_s
        if adapter is not None:
            copies = adapter.copies
            if copies.ended != self._copied:
                self._copied = copies.ended
                self.happened(now_s)
            if copies.under_way:
                limit_s = max(limit_s, LONGEST_COPY_S)
        return now_s >= self._since_s + limit_s


def _words(idle_s: float, scheduler: VllmScheduler, adapter: Adapter | None, requests: Mapping[str, str]) -> str:
    """Which call has waited longest, and for what."""
    running = set(map(id, scheduler.running))
    waiting = [request for request in scheduler.requests.values() if id(request) not in running]
    if not waiting:
        return f"nothing was computed or copied for {idle_s:.0f} s, though {len(running)} calls run"
    request = min(waiting, key=lambda request: request.arrival_time)  # of equals, the one that came first
    call = None if adapter is None else adapter.call_of(request.request_id)
    names = [name for name, of_call in requests.items() if of_call == request.request_id]
    name = call.id if call is not None else (names or [request.request_id])[0]
    others = f" (as {len(waiting) - 1} more)" if len(waiting) > 1 else ""
    what = _block(request, scheduler, adapter) if adapter is None or call is None else _what(call, scheduler, adapter)
    return f"call {name!r} waits{others}, and nothing was computed or copied for {idle_s:.0f} s: {what}"


def _what(call: EngineCall, scheduler: VllmScheduler, adapter: Adapter) -> str:
    if call.loading:
        return "its blocks are being loaded from the host, and that does not end"
    if call.stores or adapter.copies.uploading(call.agent):
        return "its blocks are being copied, and that does not end"
    admit = adapter.laid.admit
    if admit is not None and call.id not in admit:
        return f"the policy's plan holds it back; {_block(call.vllm, scheduler, adapter)}"
    return _block(call.vllm, scheduler, adapter)


def _block(request: VllmRequest, scheduler: VllmScheduler, adapter: Adapter | None) -> str:
    """The room that a request needs, and the room that there is."""
    size: int = scheduler.block_size
    needed = div_ceil(request.num_tokens, size)
    if adapter is not None and (call := adapter.call_of(request.request_id)) is not None:
        needed -= adapter.shared_blocks(call.id)
    pool = scheduler.kv_cache_manager.block_pool
    free, usable = pool.get_num_free_blocks(), pool.num_gpu_blocks - 1
    held = 0 if adapter is None else adapter.copies.held_blocks
    kept = f", {held} are held for agents without a call" if held else ""
    return f"it needs {needed} blocks, and of {usable} blocks {free} are free{kept}"
