"""KV cache groups and pages, as vLLM makes them of a model's layers (`get_kv_cache_groups`).

Layers of one rule are divided among groups of equally many layers, so that the pages of all groups have one size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ....traces.arithmetic import div_ceil
from ....traces.errors import MachineError
from ..kv_groups import CHUNKED_LOCAL, FULL, MAMBA, KvGroup
from ..models.shapes import Mixer

BLOCK_TOKENS = 16  # vLLM's default, and what its attention kernels want multiples of
INDEXED_BLOCK_TOKENS = 64  # of layers with a sparse indexer
CONV_BYTES = 2  # an element of a convolution's state
PADDED_UP_TO = 1.5  # rules whose numbers of layers differ by less share the larger number


class Pages(NamedTuple):
    """What the pool is made of: groups in vLLM's order, tokens a page, and bytes a token of a page on one GPU."""

    groups: tuple[KvGroup, ...]
    block_tokens: int
    token_bytes: int

    def of_one_request(self, context_tokens: int, step_budget_tokens: int) -> int:
        """Pages that a request of so many tokens holds at most, as vLLM counts before it starts."""
        return sum(self._of_group(group, context_tokens, step_budget_tokens) for group in self.groups)

    def _of_group(self, group: KvGroup, context_tokens: int, step_budget_tokens: int) -> int:
        if group.kind == MAMBA:
            return 2  # the state that is read, and the one that is written
        if group.kind == FULL:
            return div_ceil(context_tokens, self.block_tokens)
        held_tokens = min(group.window_tokens + step_budget_tokens, context_tokens)
        return div_ceil(held_tokens, self.block_tokens) + (group.kind != CHUNKED_LOCAL)


def pages_of(mixers: Sequence[Mixer], gpus: int, kv_bytes: int, block_tokens: int = BLOCK_TOKENS) -> Pages:
    """The pool of layers on so many GPUs. Raises MachineError if the layers are of no kind that is simulated."""
    layers: dict[tuple[str, int], list[int]] = {}  # bytes a token of each layer, by the rule that it follows
    for mixer in mixers:
        layers.setdefault((mixer.kind, mixer.window_tokens), []).append(token_bytes(mixer, gpus, kv_bytes))
    if (FULL, 0) not in layers:
        raise MachineError("kv_groups: expected a layer of full attention: no other model is simulated")
    if any(mixer.chosen_tokens for mixer in mixers):
        block_tokens = max(block_tokens, INDEXED_BLOCK_TOKENS)
    if len(layers) == 1:
        return Pages((KvGroup(FULL),), block_tokens, sum(layers[FULL, 0]))
    sizes = {size for (kind, _), found in layers.items() if kind != MAMBA for size in found}
    if len(sizes) > 1:
        raise MachineError("kv_groups: expected layers whose tokens take equally many bytes, got several sizes")
    (size,) = sizes
    state_bytes = max((state_bytes_of(mixer, gpus) for mixer in mixers), default=0)
    block_tokens *= max(1, div_ceil(state_bytes, block_tokens * size))
    per_group = _layers_per_group([len(found) for found in layers.values()])
    groups = [KvGroup(*rule) for rule, found in layers.items() for _ in range(div_ceil(len(found), per_group))]
    return Pages(tuple(groups), block_tokens, per_group * size)


def token_bytes(mixer: Mixer, gpus: int, kv_bytes: int) -> int:
    """Bytes of a token in a layer, on one GPU: it holds one KV head at least."""
    return max(1, mixer.kv_heads // gpus) * mixer.kv_elements * kv_bytes + mixer.index_bytes


def state_bytes_of(mixer: Mixer, gpus: int) -> int:
    """Bytes of a layer's state, on one GPU."""
    return (mixer.conv_elements * CONV_BYTES + mixer.state_elements * mixer.state_bytes) // gpus


def _layers_per_group(counts: Sequence[int]) -> int:
    least, most = min(counts), max(counts)
    return most if most < least * PADDED_UP_TO else least
