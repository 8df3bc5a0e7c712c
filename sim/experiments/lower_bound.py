"""How fast an application could be at best: alone on the machine, with everything cached.

Its critical path, by true durations: each call computes of its prompt what prefix caching can never hit (the tokens
after the last whole block that lies before the last token), in one step, and then one answer token a step, with nobody
beside it. No policy comes below, not one that sees the future: what it can do is to avoid waiting and computing twice,
and here is neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...traces.apps import Application, Call, CallId
from ...traces.results.distribution import Distribution
from ..engine.scheduling.pace import paced
from ..machine.machine import Machine
from ..machine.timing import Timing, ps, seconds
from .run import Outcome, RunSpec, applications_of, attempt

BOUNDED = ("app_latency_s.", "makespan_s")  # the metrics that have a lower bound, or begin so


def has_bound(path: str) -> bool:
    """Whether a metric has a lower bound."""
    return path.startswith(BOUNDED)


def lower_bounds(applications: Sequence[Application], machine: Machine) -> Mapping[str, Any]:
    """Metrics as those of a run that no policy can better: `app_latency_s` and `makespan_s`."""
    latency_s, last_s = Distribution(), 0.0
    for application in applications:
        bound_s = latency_bound_s(application, machine)
        latency_s.add(bound_s)
        latency_s.fold()
        last_s = max(last_s, application.arrival_s + bound_s)
    return {"app_latency_s": latency_s.summary(), "makespan_s": last_s - applications[0].arrival_s}


def attempt_with_bound(policy: str, spec: RunSpec) -> Outcome:
    """As `attempt`; the outcome under this policy has the run's lower bounds, too, whose applications are at hand."""
    outcome = attempt(spec)
    if spec.policy != policy or outcome.error is not None:
        return outcome
    return outcome._replace(lower=lower_bounds_of(spec))


def lower_bounds_of(spec: RunSpec) -> Mapping[str, Any]:
    """Of a run, whatever its policy: see `lower_bounds`."""
    applications, _ = applications_of(spec)
    return lower_bounds(applications, spec.machine)


def latency_bound_s(application: Application, machine: Machine) -> float:
    """Seconds from the application's arrival to its end, at the least."""
    timing = machine.timing()
    ends_ps: dict[CallId, int] = {}  # of a call and its tools
    for call in application.calls:
        begins_ps = max((ends_ps[awaited] for awaited in call.after), default=0)
        tools_ps = ps(max((tool.duration_s for tool in call.tools), default=0.0))
        served_ps = _served_ps(call, timing, machine.block_tokens)
        ends_ps[call.id] = begins_ps + ps(call.pause_s) + timing.client_ps + served_ps + tools_ps
    return seconds(max(ends_ps.values(), default=0))


def _served_ps(call: Call, timing: Timing, block_tokens: int) -> int:
    """Picoseconds from a call's arrival to its end."""
    cached_tokens = (call.prompt_tokens - 1) // block_tokens * block_tokens
    first_ps = timing.of_step([(call.prompt_tokens - cached_tokens, cached_tokens)], [], admitted=1, completed=1)
    return first_ps + _decoding_ps(timing, call.prompt_tokens, call.output_tokens - 1)


def _decoding_ps(timing: Timing, context_tokens: int, tokens: int) -> int:
    """Picoseconds of so many decoding steps of a call that is alone."""
    host_ps = timing.of_host(0, 1)
    total_ps = 0
    while tokens:
        turn = 0 if timing.window is None else timing.window.until_turn(context_tokens)
        steps = min(tokens, turn) if turn else tokens
        growth_ps = timing.context_token_ps + (timing.window_context_token_ps if turn else 0)
        device_ps = timing.of_device([], [context_tokens])
        total_ps += paced(device_ps, growth_ps, host_ps, asynchronous=timing.asynchronous).total_ps(steps)
        context_tokens += steps
        tokens -= steps
    return total_ps
