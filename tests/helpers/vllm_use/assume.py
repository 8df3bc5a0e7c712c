"""vLLM, whichever version it is, is taken for one that is known: to find out what the next one has otherwise.

`pytest -p vllm_use.assume` runs tests so.
"""

from __future__ import annotations

from tokencake.live.engine.control import versions
from tokencake.sim.machine.engine_versions import ENGINE_VERSIONS
from tokencake.traces.errors import EngineError


def as_known() -> tuple[str, str]:
    """The installed version, and what it is taken for from now on: itself if supported, else the newest that is."""
    installed = versions.installed_vllm()
    if installed is None:
        raise EngineError("vLLM is not installed")
    try:
        known = versions.check_version(installed)
    except EngineError:
        known = f"{ENGINE_VERSIONS[-1]}.0"
        versions.installed_vllm = lambda: known
    return installed, known


def pytest_configure() -> None:
    as_known()
