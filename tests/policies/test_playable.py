"""The port for engines that play in real time: who is behind it."""

from __future__ import annotations

import inspect

import pytest
from made_up_engine import Engine
from simulated_engine import SimulatedEngine

from tokencake.live.client.in_process import InProcess
from tokencake.live.client.remote.remote import Remote
from tokencake.policies.runs.playable import Playable

PLAYABLE: tuple[type[Playable], ...] = (InProcess, Remote, Engine, SimulatedEngine)  # of which mypy sees that they are


@pytest.mark.parametrize("engine", PLAYABLE)
def test_an_engine_plays_with_the_arguments_of_the_port(engine: type[Playable]) -> None:
    """By name and in order; a real one may take more, which have defaults."""
    asked, taken = (list(inspect.signature(one.play).parameters.values()) for one in (Playable, engine))
    assert [(one.name, one.default) for one in taken[: len(asked)]] == [(one.name, one.default) for one in asked]
    assert all(one.default is not one.empty for one in taken[len(asked) :])
