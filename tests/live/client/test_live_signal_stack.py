"""Signals of a process with an engine in it: they are handled on a stack of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

# What an engine is started from tells where signals would be handled; no engine has to be there for that.
STARTING = """
import ctypes
from tokencake.live.client import in_process
from tokencake.live.client.engine_options import EngineOptions

class Stack(ctypes.Structure):
    _fields_ = [("begin", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

def start(options, *, stock):
    stack = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    print(stack.flags, stack.size > 4096)
    raise SystemExit

in_process.start = start
in_process.InProcess(EngineOptions())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the stack as Linux lays it out")
def test_signals_have_a_stack_of_their_own_before_an_engine_starts() -> None:
    """Ctrl-C within a kernel that keeps data in the stack pointer broke the heap: SIGABRT, or worse."""
    found = subprocess.run([sys.executable, "-c", STARTING], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "0 True\n", "")
