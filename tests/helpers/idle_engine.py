"""An engine as far as control calls look at one: without vLLM, and it never steps."""

from __future__ import annotations

from types import SimpleNamespace

from tokencake.live.engine.adapter import Adapter
from tokencake.live.engine.control.control import Control
from tokencake.live.engine.control.stall import Watch
from tokencake.live.engine.memory.page_rules import PageRule
from tokencake.policies.interface import Policy
from tokencake.policies.registry import load_policy
from tokencake.policies.run_settings import RunSettings

OWN = RunSettings(policy="tokencake", app_timeout_s=10.0)


class IdleEngine:
    """As much of vLLM's scheduler as control calls look at."""

    def __init__(self) -> None:
        self.requests: dict[str, object] = {}
        self.max_num_running_reqs = 1024
        self.emptied = True
        pool = SimpleNamespace(num_gpu_blocks=11, get_num_free_blocks=lambda: 10, enable_kv_cache_events=False,
                               get_cached_block=lambda content, groups: None)  # fmt: skip
        self.kv_cache_manager = SimpleNamespace(block_pool=pool, reset_prefix_cache=lambda: self.emptied)
        self.now_s = 0.0
        self.watch = Watch(30.0)
        self.adapter = Adapter(self, (PageRule("full", 16),), 10, {"block_bytes": 1})  # type: ignore[arg-type]
        self.adapter.clock.read = lambda: self.now_s
        self.adapter.load_policy = loaded
        self.control = Control(self.adapter, self.watch, 60.0, lambda: self.now_s)
        self.control.begin_own(OWN)

    def check(self) -> None:
        """The server has its own run, or a client's."""
        client = self.control._client
        assert self.adapter.settings is (OWN if client is None else client.settings)
        assert self.adapter.session is not None

    def becomes(self, what: str) -> None:
        if what == "busy":
            self.requests["one"] = object()
        elif what == "idle":
            self.requests.clear()
        elif what == "time passes":
            self.now_s += 45.0
        elif what == "step":
            self.control.look()
            self.adapter.boundary()
        else:
            self.emptied = what == "blocks are free"


def loaded(spec: str, *, seed: int, registered_only: bool = False) -> Policy:
    if spec == "raises":
        raise MemoryError("no\nroom")
    if spec == "exits":
        raise SystemExit(0)
    return load_policy(spec, seed=seed, registered_only=registered_only)
