"""What the spatial half knows of each agent type: its live calls, its history, and the score that ranks it."""

from __future__ import annotations

from math import log, log1p

from ....traces.events import Request


class AgentType:
    """Running sums over the live calls of one agent type; `score` is O(1).

    Waits and elapsed times are kept as sums of starting points, so nothing changes while time passes.
    """

    __slots__ = (
        "_deferrals", "_depth", "_duration_s", "_finished", "_importance", "_in", "_out", "_remaining", "_settled_step",
        "_since_s", "_started_s", "_tokens", "live", "name", "preemptions", "running", "used_blocks", "waiting",
    )  # fmt: skip

    def __init__(self, name: str, step: int) -> None:
        self.name = name
        self.live = 0  # calls that arrived and have not finished
        self.waiting = 0  # of these, in the queue and not being loaded
        self.running = 0  # of these, running
        self.preemptions = 0
        self.used_blocks = 0  # charged to running and loading calls
        self._importance = 0.0
        self._depth = 0
        self._out = 0
        self._in = 0
        self._remaining = 0
        self._tokens = 0
        self._started_s = 0.0
        self._since_s = 0.0
        self._deferrals = 0
        self._settled_step = step
        self._finished = 0
        self._duration_s = 0.0

    def enter(self, request: Request, app_started_s: float) -> None:
        """A call arrived."""
        self._count(request, app_started_s, 1)

    def leave(self, request: Request, app_started_s: float, duration_s: float) -> None:
        """A call finished, `duration_s` after it was first admitted."""
        self._count(request, app_started_s, -1)
        self._finished += 1
        self._duration_s += duration_s

    def _count(self, request: Request, app_started_s: float, sign: int) -> None:
        hints = request.hints
        self.live += sign
        self._importance += sign * hints.importance
        self._depth += sign * hints.depth
        self._out += sign * hints.out_degree
        self._in += sign * hints.in_degree
        self._remaining += sign * hints.remaining_depth
        self._tokens += sign * (request.prompt_tokens + request.max_output_tokens)
        self._started_s += sign * app_started_s

    def wait(self, since_s: float, step: int) -> None:
        """A call joined the queue."""
        self._settle(step)
        self.waiting += 1
        self._since_s += since_s

    def stop_waiting(self, since_s: float, step: int) -> None:
        """A call that joined the queue at `since_s` left it."""
        self._settle(step)
        self.waiting -= 1
        self._since_s -= since_s

    def run(self, step: int) -> None:
        """A call became a running one."""
        self._settle(step)
        self.running += 1

    def stop_running(self, step: int) -> None:
        """A running call finished or was preempted."""
        self._settle(step)
        self.running -= 1

    def _settle(self, step: int) -> None:
        """Deferrals up to this step: each waiting call adds one a step, each running one takes one, never below 0.

        The policy is not asked every step; between two changes of these numbers the steps are taken at once.
        """
        if step > self._settled_step:
            self._deferrals = max(0, self._deferrals + (step - self._settled_step) * (self.waiting - self.running))
            self._settled_step = step

    def score(self, now_s: float, step: int) -> float:
        """Published type score, at least 1: importance, urgency, cost and place in the graph, means over live calls."""
        self._settle(step)
        calls = max(1, self.live)
        mean_wait_s = max(0.0, now_s - self._since_s / self.waiting) if self.waiting else 0.0
        urgency = log1p(mean_wait_s) + log1p(self.waiting) + log1p(self._deferrals) + 1.5 * log1p(self.preemptions)
        tokens = self._tokens / calls
        cost = log1p(tokens)
        if self._finished and self._duration_s > 0:
            duration_s = self._duration_s / self._finished
            cost += log1p(duration_s) + log(1 + tokens / duration_s)
        elapsed_s = max(0.0, now_s - self._started_s / calls) if self.live else 0.0
        graph = (0.7 * self._depth + 0.5 * self._out + 0.25 * self._in + 0.20 * self._remaining) / calls + 0.10 * min(
            elapsed_s, 180.0
        )
        return max(1.0, 2 * self._importance / calls + urgency + 0.5 * cost + graph)
