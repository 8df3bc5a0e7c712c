"""Property tests repeat exactly, everywhere: a red build can be reproduced, and a green one does not turn red by luck.

`HYPOTHESIS_PROFILE=explore pytest …` searches with fresh random seeds and ten times the examples instead.
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tokencake.traces import core_build
from tokencake.traces.files import source_file

# The suite is about the sources, even where they are compiled, too; so are the processes that it starts. With
# `TOKENCAKE_PURE=0` it is about what is compiled: but for the tests that are marked `sources`.
os.environ.setdefault(core_build.PURE, "1")
core_build.choose()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if core_build.running == core_build.COMPILED:
        for item in items:
            if item.get_closest_marker("sources") is not None:
                item.add_marker(pytest.mark.skip(reason="looks into the core, which is compiled"))


@pytest.fixture(autouse=True)
def nothing_at_hand() -> Iterator[None]:
    """A process keeps what it can read only once for others to read: here that may be a device without an end."""
    yield
    source_file.forget()


settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,  # a busy machine is not a bug
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.register_profile(
    "explore",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    max_examples=1000,
    print_blob=True,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
