"""vLLM's server on a CPU, whose engine schedules asynchronously: `asynchronous_server.py ARGUMENTS`.

The engine's process is another one, which imports this module first.
"""

from __future__ import annotations

import runpy
from contextlib import ExitStack

from asynchronous_engine import schedules_asynchronously

until_the_end = ExitStack()
until_the_end.enter_context(schedules_asynchronously())

if __name__ == "__main__":
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
