"""What a run came to: the one fold over facts, by which a simulated and a real engine are measured alike.

All times are engine time in seconds. A value that has no meaning for a run (the time between tokens where every answer
is one token long) is None, never NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from ..apps import AppId, CallId
from ..errors import TraceError
from ..events import (
    AppFinished,
    AppStarted,
    CallAborted,
    CallAdmitted,
    CallArrived,
    CallFinished,
    CallPreempted,
    FirstToken,
    LoadStarted,
    Occupied,
    OffloadStarted,
    RunStarted,
    StoreStarted,
    UploadCancelled,
    UploadStarted,
    UploadTaken,
)
from .distribution import EXACT_VALUES, Distribution

EARLY_S = 0.1  # an upload that lay ready longer than this before its call arrived came too early


class _LiveCall:
    """A call that arrived and has not finished."""

    __slots__ = ("arrived_s", "critical", "first_token_s", "prompt_tokens", "running")

    def __init__(self, arrived_s: float, prompt_tokens: int, critical: bool) -> None:
        self.arrived_s = arrived_s
        self.prompt_tokens = prompt_tokens
        self.critical = critical
        self.first_token_s: float | None = None
        self.running = False


class Metrics:
    """Folds facts, one at a time, into the metrics of a report. Memory grows with the calls in flight, not with all.

    * `makespan_s`: from the first application's start to the last one's end.
    * `app_latency_s`: from an application's start to its end. `ttft_s`: from a call's arrival to its first token.
      `tpot_s`: (finish − first token) / (output tokens − 1) of each call of more than one token. `queue_s`: from a
      call's arrival to its first admission. Each is a mapping of mean, p50, p90, p95, p99 and max.
    * `prefill_tokens`: where the prompt tokens of first admissions came from, as vLLM's own statistics count;
      `recomputed_tokens`: what calls had to compute again after preemptions.
    * `gpu_usage_mean`: blocks in use over all blocks, averaged over time; `effective_utilisation`: the same without
      blocks held for agents that have no running call; `stalled_share`: blocks that belong to agents whose tool runs,
      held or merely cached.
    * `offload_bytes`, `offload_jobs`: copies to the host that were begun. `upload_bytes`: copies from the host that
      were begun, ahead of a call (`upload_jobs`) or on its demand (`load_jobs`).
    * `uploads`: `late` if the call had to wait for its copy, else `early` if the copy lay ready for more than 0.1 s
      before the call arrived, else `on_time`; `cancelled` if no call took it. `upload_idle_block_s`: block-seconds
      for which uploaded blocks lay ready before their calls arrived, or until they were given up.
    * `critical_inversions`: admissions of a call that is off its application's critical path while one that is on the
      critical path of its own, and arrived earlier, still waits for room; and preemptions of a critical call while a
      call that is not runs on.
    """

    def __init__(self) -> None:
        self._handlers: dict[type, Callable[[Any], None]] = {
            RunStarted: self._run_started,
            AppStarted: self._app_started,
            AppFinished: self._app_finished,
            CallArrived: self._call_arrived,
            CallAdmitted: self._call_admitted,
            FirstToken: self._first_token,
            CallPreempted: self._call_preempted,
            CallFinished: self._call_finished,
            CallAborted: self._call_aborted,
            LoadStarted: self._load_started,
            OffloadStarted: self._offload_started,
            StoreStarted: self._store_started,
            UploadStarted: self._upload_started,
            UploadTaken: self._upload_taken,
            UploadCancelled: self._upload_cancelled,
            Occupied: self._occupied,
        }
        self._gpu_blocks = 0
        self._block_bytes = 0
        self._started_s: float | None = None
        self._finished_s: float | None = None
        self._apps: dict[AppId, float] = {}
        self._calls: dict[CallId, _LiveCall] = {}
        self._app_latency_s = Distribution()
        self._ttft_s = Distribution()
        self._tpot_s = Distribution()
        self._queue_s = Distribution()
        self._applications = 0
        self._finished_calls = 0
        self._aborted_calls = 0
        self._computed_tokens = 0
        self._gpu_hit_tokens = 0
        self._host_hit_tokens = 0
        self._recomputed_tokens = 0
        self._preemptions = 0
        self._offload_blocks = 0
        self._offload_jobs = 0
        self._upload_blocks = 0
        self._upload_jobs = 0
        self._load_jobs = 0
        self._uploads = {"early": 0, "on_time": 0, "late": 0, "cancelled": 0}
        self._upload_idle_block_s = 0.0
        self._occupancy: Occupied | None = None
        self._inversions = 0
        self._running_other = 0  # running calls off their critical paths
        self._waiting_critical: dict[CallId, int] = {}  # by call, the number of its entry
        self._queued_critical = 0  # entries so far
        # heap of arrivals; entries of calls that wait no more linger
        self._oldest_critical: list[tuple[float, int, CallId]] = []

    def add(self, fact: object) -> None:
        """Takes the next fact; kinds that no metric needs cost one look-up.

        Raises `TraceError` if a fact is about an application or a call that is not there.
        """
        handler = self._handlers.get(type(fact))
        if handler is not None:
            try:
                handler(fact)
            except KeyError as missing:
                name = type(fact).__name__
                raise TraceError(
                    f"{name}: {missing.args[0]!r} is not in flight: expected its start before this, and no end"
                ) from None

    def result(self) -> dict[str, Any]:
        """The metrics so far, ready for JSON, in the order of a report. See the class for their meanings."""
        return {
            "applications": self._applications,
            "calls": self._finished_calls,
            "aborted_calls": self._aborted_calls,
            "makespan_s": self._makespan_s(),
            "app_latency_s": self._app_latency_s.summary(),
            "ttft_s": self._ttft_s.summary(),
            "tpot_s": self._tpot_s.summary(),
            "queue_s": self._queue_s.summary(),
            "prefill_tokens": {
                "computed": self._computed_tokens,
                "gpu_hit": self._gpu_hit_tokens,
                "host_hit": self._host_hit_tokens,
            },
            "recomputed_tokens": self._recomputed_tokens,
            "preemptions": self._preemptions,
            **self._occupancy_shares(),
            "offload_bytes": self._offload_blocks * self._block_bytes,
            "upload_bytes": self._upload_blocks * self._block_bytes,
            "offload_jobs": self._offload_jobs,
            "upload_jobs": self._upload_jobs,
            "load_jobs": self._load_jobs,
            "uploads": dict(self._uploads),
            "upload_idle_block_s": self._upload_idle_block_s,
            "critical_inversions": self._inversions,
            "steps": self._occupancy.steps if self._occupancy else None,
        }

    def _makespan_s(self) -> float | None:
        if self._started_s is None or self._finished_s is None:
            return None
        return self._finished_s - self._started_s

    def _occupancy_shares(self) -> dict[str, float | None]:
        """Time averages over what the last `Occupied` covers, from the first application's start on."""
        seen = self._occupancy
        names = ("gpu_usage_mean", "effective_utilisation", "stalled_share")
        if seen is None or self._started_s is None or seen.at_s <= self._started_s or not self._gpu_blocks:
            return dict.fromkeys(names)
        block_s = self._gpu_blocks * (seen.at_s - self._started_s)
        parts = (seen.used_block_s, seen.used_block_s - seen.held_block_s, seen.stalled_block_s)
        return {name: part / block_s for name, part in zip(names, parts, strict=True)}

    def _run_started(self, fact: RunStarted) -> None:
        self._gpu_blocks = fact.gpu_blocks
        self._block_bytes = fact.block_bytes

    def _app_started(self, fact: AppStarted) -> None:
        if self._started_s is None:
            self._started_s = fact.at_s
        self._apps[fact.app] = fact.at_s

    def _app_finished(self, fact: AppFinished) -> None:
        self._finished_s = fact.at_s
        self._applications += 1
        self._app_latency_s.add(fact.at_s - self._apps.pop(fact.app))
        if self._applications % EXACT_VALUES == 0:
            self._app_latency_s.fold()

    def _call_arrived(self, fact: CallArrived) -> None:
        at_s, request = fact
        critical = request.hints.critical_path
        self._calls[request.id] = _LiveCall(at_s, request.prompt_tokens, critical)
        if critical:
            self._queue_critical(at_s, request.id)

    def _call_admitted(self, fact: CallAdmitted) -> None:
        at_s, call_id, gpu_hit_tokens, host_hit_tokens, resumed_tokens = fact
        call = self._calls[call_id]
        call.running = True
        if resumed_tokens:
            self._recomputed_tokens += resumed_tokens - gpu_hit_tokens - host_hit_tokens
        else:
            self._queue_s.add(at_s - call.arrived_s)
            self._computed_tokens += call.prompt_tokens - gpu_hit_tokens - host_hit_tokens
            self._gpu_hit_tokens += gpu_hit_tokens
            self._host_hit_tokens += host_hit_tokens
        self._waiting_critical.pop(call_id, None)
        critical_since_s = self._oldest_waiting_critical_s()
        if not call.critical:
            self._running_other += 1
            self._inversions += critical_since_s is not None and critical_since_s < call.arrived_s

    def _first_token(self, fact: FirstToken) -> None:
        at_s, call_id = fact
        call = self._calls[call_id]
        if call.first_token_s is None:
            call.first_token_s = at_s
            self._ttft_s.add(at_s - call.arrived_s)

    def _call_preempted(self, fact: CallPreempted) -> None:
        self._preemptions += 1
        call = self._calls[fact.call]
        call.running = False
        if call.critical:
            self._inversions += self._running_other > 0
            self._queue_critical(call.arrived_s, fact.call)
        else:
            self._running_other -= 1

    def _call_finished(self, fact: CallFinished) -> None:
        at_s, call_id, output_tokens, _ = fact
        call = self._calls.pop(call_id)
        if call.first_token_s is not None and output_tokens > 1:
            self._tpot_s.add((at_s - call.first_token_s) / (output_tokens - 1))
        self._waiting_critical.pop(call_id, None)
        if call.running and not call.critical:  # else: its last token came after a preemption
            self._running_other -= 1
        self._finished_calls += 1
        if self._finished_calls % EXACT_VALUES == 0:
            for distribution in (self._ttft_s, self._tpot_s, self._queue_s):
                distribution.fold()

    def _call_aborted(self, fact: CallAborted) -> None:
        call = self._calls.pop(fact.call)
        self._waiting_critical.pop(fact.call, None)
        if call.running and not call.critical:
            self._running_other -= 1
        self._aborted_calls += 1

    def _load_started(self, fact: LoadStarted) -> None:
        self._load_jobs += 1
        self._upload_blocks += fact.blocks
        self._waiting_critical.pop(fact.call, None)  # it has its room: it waits for a copy, not for other calls

    def _offload_started(self, fact: OffloadStarted) -> None:
        self._offload_jobs += 1
        self._offload_blocks += fact.blocks

    def _store_started(self, fact: StoreStarted) -> None:
        self._offload_jobs += 1
        self._offload_blocks += fact.blocks

    def _upload_started(self, fact: UploadStarted) -> None:
        self._upload_jobs += 1
        self._upload_blocks += fact.blocks

    def _upload_taken(self, fact: UploadTaken) -> None:
        kind = "late" if fact.late_s > 0 else "early" if fact.held_s > EARLY_S else "on_time"
        self._uploads[kind] += 1
        self._upload_idle_block_s += fact.blocks * fact.held_s

    def _upload_cancelled(self, fact: UploadCancelled) -> None:
        self._uploads["cancelled"] += 1
        self._upload_idle_block_s += fact.blocks * fact.held_s

    def _occupied(self, fact: Occupied) -> None:
        self._occupancy = fact

    def _queue_critical(self, arrived_s: float, call: CallId) -> None:
        self._queued_critical += 1
        self._waiting_critical[call] = self._queued_critical
        heappush(self._oldest_critical, (arrived_s, self._queued_critical, call))

    def _oldest_waiting_critical_s(self) -> float | None:
        oldest = self._oldest_critical
        while oldest and self._waiting_critical.get(oldest[0][2]) != oldest[0][1]:
            heappop(oldest)  # it waits no more: each entry is pushed and popped once
        return oldest[0][0] if oldest else None
