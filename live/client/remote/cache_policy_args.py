"""What `vllm serve` is told so that its own CPU tier asks a policy what goes: stock vLLM, with its own scheduler."""

from __future__ import annotations

import json

from ....policies.run_settings import RunSettings
from ....traces.errors import EngineError
from ...engine.control.versions import check_version, installed_vllm
from ...host_tier.abilities import check_host_half, check_tier
from ..engine_options import EngineOptions
from .serve_args import ASYNCHRONOUS, additional_config, engine_args


def cache_policy_args(options: EngineOptions, settings: RunSettings, *, on_cpu: bool = False) -> list[str]:
    """The arguments that follow `vllm serve`: the model first, then options with their values.

    Raises `EngineError` for a vLLM that has no such tier, and `PolicyError` for a policy that has no host half.
    """
    check_host_half(settings.policy)
    if on_cpu:
        raise EngineError("--as cache-policy: vLLM has its CPU tier on GPUs only, and this one is for CPUs")
    if (found := installed_vllm()) is not None:
        check_tier(check_version(found))
    if options.link_gbps is not None:
        raise EngineError("--as cache-policy: vLLM copies by itself: expected no --link-gbps")
    chosen = [] if options.asynchronous is None else [ASYNCHRONOUS[options.asynchronous]]
    chosen += ["--kv-transfer-config", json.dumps(tier_config(options))]
    return engine_args(options, [*chosen, "--additional-config", json.dumps(additional_config(settings))])


def tier_config(options: EngineOptions) -> dict[str, object]:
    """vLLM's `kv_transfer_config`, as plain data: what it stores, answers included, and who decides what goes."""
    assert options.host_gib is not None
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "cpu_bytes_to_use": int(options.host_gib * 2**30),
            "offload_prompt_only": False,
            "eviction_policy": "TokencakeCachePolicy",
            "cache_policy_module_path": "tokencake.live.cache_policy",
        },
    }
