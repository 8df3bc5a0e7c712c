"""The pytest plugin: the fixture `simulate`, and the marker `tokencake_slow`. See docs/check.md.

Installed with the package (entry point `pytest11`), so it is loaded by every pytest of its environment: nothing of the
simulator is imported before a test asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import Simulation

MARKER = "tokencake_slow"
OPTION = "--tokencake-slow"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tokencake")
    group.addoption(OPTION, action="store_true", help=f"run tests that are marked {MARKER}, too")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARKER}: simulates for long; left out unless {OPTION} is given (tokencake)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption(OPTION):
        return
    slow = [item for item in items if item.get_closest_marker(MARKER) is not None]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item.get_closest_marker(MARKER) is None]


@pytest.fixture(scope="session")
def simulate(pytestconfig: pytest.Config) -> Callable[..., Simulation]:
    """Plays a trace under a policy: see `tokencake.sim.gate.testing.simulate`. Paths are told from pytest's rootdir."""
    from .testing import simulate as play

    return partial(play, folder=pytestconfig.rootpath)
