"""The same work in less time, or in more: applications whose waits are shortened or stretched alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..apps import Application, Call, Tool
from ..errors import TraceError

LEAST_FACTOR, MOST_FACTOR = 1e-6, 1e6


def scaled(applications: Iterable[Application], factor: float) -> Iterator[Application]:
    """The same applications; arrivals, tools' durations, what was declared of them, and pauses last `factor` times as
    long. Lazy. Prompts and answers stay as they are.

    Raises TraceError if the factor is not from `LEAST_FACTOR` to `MOST_FACTOR`.
    """
    if not LEAST_FACTOR <= factor <= MOST_FACTOR:
        raise TraceError(f"time scale: expected a number from {LEAST_FACTOR:g} to {MOST_FACTOR:g}, got {factor!r}")
    if factor == 1.0:
        return iter(applications)
    return (_application(application, factor) for application in applications)


def _application(application: Application, factor: float) -> Application:
    calls = tuple(_call(call, factor) for call in application.calls)
    return application._replace(arrival_s=factor * application.arrival_s, calls=calls)


def _call(call: Call, factor: float) -> Call:
    return call._replace(pause_s=factor * call.pause_s, tools=tuple(_tool(tool, factor) for tool in call.tools))


def _tool(tool: Tool, factor: float) -> Tool:
    declared_s = None if tool.declared_s is None else factor * tool.declared_s
    return tool._replace(duration_s=factor * tool.duration_s, declared_s=declared_s)
