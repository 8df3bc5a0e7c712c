"""A trace in less time: everything that waits waits shorter, nothing else changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from trace_files import dags

from tokencake.traces.apps import Application, Call
from tokencake.traces.errors import TraceError
from tokencake.traces.variants.scale import scaled


def waits(application: Application) -> list[float]:
    """Every time in an application."""
    tools = [tool for call in application.calls for tool in call.tools]
    declared = [tool.declared_s for tool in tools if tool.declared_s is not None]
    pauses = [call.pause_s for call in application.calls]
    return [application.arrival_s, *(tool.duration_s for tool in tools), *declared, *pauses]


def timeless(application: Application) -> Application:
    """An application as if nothing took any time."""

    def call(one: Call) -> Call:
        tools = tuple(
            tool._replace(duration_s=0.0, declared_s=None if tool.declared_s is None else 0.0) for tool in one.tools
        )
        return one._replace(pause_s=0.0, tools=tools)

    return application._replace(arrival_s=0.0, calls=tuple(map(call, application.calls)))


@given(dags(arrival_s=8.0))
def test_all_waits_are_scaled_and_nothing_else(application: Application) -> None:
    (made,) = scaled([application], 0.25)
    assert waits(made) == [0.25 * wait for wait in waits(application)]
    assert timeless(made) == timeless(application)


@given(dags())
def test_a_scale_of_one_changes_nothing(application: Application) -> None:
    assert list(scaled([application], 1.0)) == [application]


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_means_nothing_is_refused(factor: float) -> None:
    with pytest.raises(TraceError, match="time scale: expected a number from"):
        scaled([], factor)
