"""A model's KV cache groups as vLLM tells them, and those that cannot be kept on the host."""

from __future__ import annotations

from typing import Any, Final

from ....traces.errors import EngineError
from ..memory.page_rules import Kind, PageRule, Rules
from ..vllm_surface import VllmScheduler
from .versions import numbers_of

KINDS: Final[dict[str, Kind]] = {  # by the names of vLLM's classes
    "FullAttentionSpec": "full",
    "MLAAttentionSpec": "full",
    "SlidingWindowSpec": "sliding_window",
    "ChunkedLocalAttentionSpec": "chunked_local",
    "MambaSpec": "mamba",
}
FIRST = (0, 32)  # vLLM of which several groups are supported


def page_rules(scheduler: VllmScheduler, version: str) -> Rules:
    """What a hit needs of each group. Raises `EngineError` for groups whose blocks cannot be moved by hashes alone."""
    specs = [group.kv_cache_spec for group in scheduler.kv_cache_config.kv_cache_groups]
    names = [type(spec).__name__ for spec in specs]
    if not all(name in KINDS for name in names) or "full" not in map(KINDS.get, names):
        raise EngineError(
            "this model's KV cache is not supported: expected groups of full attention, with sliding windows, chunks or"
            f" Mamba states beside them, got {', '.join(names)}"
        )
    rules = tuple(_rule(scheduler, KINDS[name], spec) for name, spec in zip(names, specs, strict=True))
    if len(rules) > 1:
        if (numbers_of(version) or FIRST) < FIRST:
            raise EngineError(
                f"this model has {len(rules)} KV cache groups: expected vLLM {'.'.join(map(str, FIRST))} or later, got"
                f" {version}"
            )
        if scheduler.vllm_config.speculative_config is not None:
            raise EngineError(f"speculative decoding: expected none, for a model with {len(rules)} KV cache groups")
    return rules


def _rule(scheduler: VllmScheduler, kind: Kind, spec: Any) -> PageRule:
    """`spec` is vLLM's, whose fields are those of its kind."""
    tokens = int(scheduler.block_size)
    if spec.block_size != tokens:
        raise EngineError(f"a KV cache group with blocks of {spec.block_size} tokens: expected {tokens} in all groups")
    if kind == "sliding_window":
        return PageRule(kind, tokens, int(spec.sliding_window))
    if kind == "chunked_local":
        chunk = int(spec.attention_chunk_size)
        if chunk % tokens:
            raise EngineError(f"attention chunks of {chunk} tokens: expected a multiple of the block size, {tokens}")
        return PageRule(kind, tokens, chunk)
    if kind == "mamba" and spec.mamba_cache_mode != "align":
        raise EngineError(f"Mamba cache mode {spec.mamba_cache_mode!r}: expected align, with prefix caching")
    return PageRule(kind, tokens)
