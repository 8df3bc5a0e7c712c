"""vLLM's engine core, from the scheduler's side: how others reach the adapter, and how an idle engine is woken.

There is no supported way from a scheduler to the engine that made it. But the engine makes its scheduler in its own
constructor, so it is found in the frames above.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from .control import Control

CONTROL = "tokencake_control"  # the engine core's attribute that its clients call as a utility


class EngineHandle:
    """Wakes an engine that runs in a process of its own. In the caller's process nobody sleeps but the caller."""

    def __init__(self, input_queue: Any) -> None:
        self._input_queue = input_queue
        self._armed_s: float | None = None
        self._timer: threading.Timer | None = None

    @property
    def has_own_process(self) -> bool:
        return self._input_queue is not None

    @classmethod
    def find(cls, control: Control) -> EngineHandle:
        """The engine whose constructor is being run, told how its clients reach ours."""
        core = _engine_core()
        if core is None:
            return cls(None)
        setattr(core, CONTROL, control.handle)
        return cls(getattr(core, "input_queue", None))

    def wake_at(self, wake_s: float | None, now_s: Callable[[], float]) -> None:
        """Have the engine look at its scheduler again at that time, even if nothing happens."""
        if self._input_queue is None or wake_s == self._armed_s:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._armed_s = wake_s
        if wake_s is not None:
            self._timer = threading.Timer(max(0.0, wake_s - now_s()), self._wake)
            self._timer.daemon = True
            self._timer.start()

    def _wake(self) -> None:
        from vllm.v1.engine import EngineCoreRequestType

        self._input_queue.put_nowait((EngineCoreRequestType.WAKEUP, None))


def _engine_core() -> Any:
    from vllm.v1.engine.core import EngineCore

    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        core = frame.f_locals.get("self")
        if isinstance(core, EngineCore):
            return core
        frame = frame.f_back
    return None
