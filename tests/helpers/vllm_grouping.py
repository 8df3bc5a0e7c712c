"""vLLM's functions that make KV cache groups of layers, from where this version has them: 0.33 moved them."""

from __future__ import annotations

try:
    from vllm.v1.core import kv_cache_planning as module
except ImportError:  # up to 0.32
    from vllm.v1.core import kv_cache_utils as module

get_kv_cache_groups = module.get_kv_cache_groups
get_kv_cache_config_from_groups = module.get_kv_cache_config_from_groups
