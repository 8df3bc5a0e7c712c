"""What vLLM is about to make when it makes a cache policy: its connector, and with it all that a policy is not given.

A `CachePolicy` is told its capacity, keys, and the names of requests. Which requests these are, and what the engine
was told, the connector knows, in whose constructor the policy is made: so it is found in the frames above.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, NamedTuple

from ...traces.errors import EngineError
from ..engine.vllm_surface import VllmConfiguration, VllmKVCacheConfig
from .offload_surface import VllmOffloadScheduler
from .run import TierSizes


class Making(NamedTuple):
    """The scheduler's side of the connector in the middle of its constructor, and what that was given."""

    side: VllmOffloadScheduler
    spec: Any  # an OffloadingSpec
    vllm_config: VllmConfiguration
    kv_cache_config: VllmKVCacheConfig

    def sizes(self, capacity: int) -> TierSizes:
        """Of a tier of so many chunks."""
        config = self.side.config
        full = (at for at, group in enumerate(config.kv_group_configs) if group.sliding_window_size_in_chunks is None)
        group = next(full, 0)
        return TierSizes(
            group,
            int(config.kv_group_configs[group].tokens_per_chunk),
            int(getattr(self.spec, "kv_bytes_per_chunk", 0)),
            (int(self.kv_cache_config.num_blocks) - 1) // int(config.blocks_per_chunk),
            capacity,
            int(self.vllm_config.scheduler_config.max_num_seqs),
        )


def making() -> Making:
    """Raises `EngineError` if it is no connector of vLLM's that makes the policy."""
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import OffloadingConnectorScheduler

    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        known = frame.f_locals
        if frame.f_code.co_name == "__init__" and isinstance(known.get("self"), OffloadingConnectorScheduler):
            return Making(known["self"], known["spec"], known["vllm_config"], known["kv_cache_config"])
        frame = frame.f_back
    raise EngineError("TokencakeCachePolicy: expected to be made by vLLM's OffloadingConnector")
