"""Imported first by a benchmark that needs vLLM: where there is none, it ends in one line."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from exits import refused

if find_spec("vllm") is None:
    sys.exit(refused("vLLM is not installed: expected it in the environment of this interpreter"))
