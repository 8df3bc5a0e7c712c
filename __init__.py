"""Tokencake: write a KV-cache policy for LLM agents once, compare it in a simulator, run it inside vLLM.

What is imported from here is loaded when it is asked for, so `import tokencake` loads its version alone, and vLLM is
needed by `InProcess` alone, when it starts an engine.
"""

from typing import TYPE_CHECKING, Any

from .traces import core_build
from .traces.version import __version__

__all__ = [
    "EngineOptions",
    "Header",
    "InProcess",
    "Machine",
    "Metrics",
    "Move",
    "Plan",
    "Policy",
    "RunSettings",
    "Simulation",
    "TokencakeError",
    "View",
    "__version__",
    "assert_not_worse",
    "facts",
    "load_machine",
    "load_policy",
    "read_trace",
    "simulate",
    "write_trace",
]

if TYPE_CHECKING:
    from .live.client.engine_options import EngineOptions
    from .live.client.in_process import InProcess
    from .policies.interface import Move, Plan, Policy, View
    from .policies.registry import load_policy
    from .policies.run_settings import RunSettings
    from .sim.gate.testing import Simulation, assert_not_worse, simulate
    from .sim.machine.files import load_machine
    from .sim.machine.machine import Machine
    from .traces import events as facts
    from .traces.errors import TokencakeError
    from .traces.format.header import Header
    from .traces.format.reader import read_trace
    from .traces.format.writer import write_trace
    from .traces.results.metrics import Metrics

core_build.choose()

# Where each name is loaded from: the imports above, for a running program.
_MODULES = {
    "EngineOptions": "live.client.engine_options",
    "Header": "traces.format.header",
    "InProcess": "live.client.in_process",
    "Machine": "sim.machine.machine",
    "Metrics": "traces.results.metrics",
    "Move": "policies.interface",
    "Plan": "policies.interface",
    "Policy": "policies.interface",
    "RunSettings": "policies.run_settings",
    "Simulation": "sim.gate.testing",
    "TokencakeError": "traces.errors",
    "View": "policies.interface",
    "assert_not_worse": "sim.gate.testing",
    "load_machine": "sim.machine.files",
    "load_policy": "policies.registry",
    "read_trace": "traces.format.reader",
    "simulate": "sim.gate.testing",
    "write_trace": "traces.format.writer",
}


def __getattr__(name: str) -> Any:
    """A public name, loaded when it is first asked for."""
    from importlib import import_module

    if name == "facts":
        found: Any = import_module(".traces.events", __name__)
    elif name in _MODULES:
        found = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found  # so that it is found without this the next time
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
