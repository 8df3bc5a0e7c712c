"""What a model is made of, as far as memory and time go: of each layer, weights, cached bytes and arithmetic.

FLOPs are of all GPUs together, two for a multiplication and an addition.
"""

from __future__ import annotations

from typing import NamedTuple

from ..kv_groups import CHUNKED_LOCAL, FULL, MAMBA, SLIDING_WINDOW

INDEX_SCALE_BYTES = 4  # an indexer keeps its keys in FP8, a scale for each 128 elements beside them


class Mixer(NamedTuple):
    """What mixes the tokens of a layer: attention, or a state that goes from token to token."""

    kind: str  # of its KV cache group
    params: int
    heads: int  # that are divided among GPUs
    window_tokens: int = 0  # of a sliding window or a local chunk
    kv_heads: int = 0  # of which each GPU holds its share, and at least one
    kv_elements: int = 0  # of a token and such a head: keys and values, or an MLA layer's latent
    pair_flops: int = 0  # a prompt token x a token that it attends to
    context_flops: int = 0  # a token of a decoding call's context
    latent_flops: int = 0  # a token before a chunk of a prompt, whose latent becomes keys and values again
    index_bytes: int = 0  # a token's keys of a sparse indexer, on every GPU
    index_flops: int = 0  # a token x a token that the indexer looks at
    chosen_tokens: int = 0  # that the indexer leaves to attention
    conv_elements: int = 0  # of a state: a convolution's
    state_elements: int = 0  # of a state: what is in higher precision
    state_bytes: int = 2  # an element of these
    state_flops: int = 0  # a token that goes through the state

    @property
    def sees_tokens(self) -> int:
        """The most tokens that attention looks at; 0: the whole context."""
        return self.window_tokens or self.chosen_tokens


class FeedForward(NamedTuple):
    """A layer's MLP, or its mixture of experts."""

    params: int  # that every token is multiplied with: an MLP, shared experts, a router
    expert_params: int = 0  # one expert
    expert_width: int = 0
    experts: int = 0
    experts_per_token: int = 0


class Layer(NamedTuple):
    """Either part may be missing."""

    mixer: Mixer | None
    feed_forward: FeedForward | None


class Model(NamedTuple):
    """A decoder of text."""

    title: str
    hidden: int
    vocab: int
    layers: tuple[Layer, ...]
    max_context_tokens: int
    tied: bool = False  # the output head is the embedding
    weights: str = "bf16"  # the format of the released ones
    stated_params: float | None = None  # where the weights' bytes are to be those of a stated number

    @property
    def mixers(self) -> list[Mixer]:
        return [layer.mixer for layer in self.layers if layer.mixer]

    @property
    def feed_forwards(self) -> list[FeedForward]:
        return [layer.feed_forward for layer in self.layers if layer.feed_forward]

    @property
    def dense_params(self) -> int:
        """Weights of the layers that every step reads, and every token is multiplied with."""
        return sum(mixer.params for mixer in self.mixers) + sum(part.params for part in self.feed_forwards)

    @property
    def expert_params(self) -> int:
        """Weights of all experts of all layers."""
        return sum(part.experts * part.expert_params for part in self.feed_forwards)

    @property
    def chosen_params(self) -> int:
        """Weights of the experts that a token is multiplied with."""
        return sum(part.experts_per_token * part.expert_params for part in self.feed_forwards)

    @property
    def head_params(self) -> int:
        """Weights of the output head: read in every step, but multiplied only with tokens that are sampled."""
        return self.hidden * self.vocab

    @property
    def embedding_params(self) -> int:
        """Of the embedding, where it is not the head."""
        return 0 if self.tied else self.head_params

    @property
    def params(self) -> int:
        """All weights, without norms and biases."""
        return self.dense_params + self.expert_params + self.head_params + self.embedding_params

    @property
    def active_params(self) -> int:
        """Weights that a token meets, without the embedding's."""
        return self.dense_params + self.chosen_params + self.head_params

    @property
    def experts(self) -> tuple[int, int]:
        """How many experts a layer has, and how many of them a token chooses; 0 and 0 of a dense model."""
        return max(((part.experts, part.experts_per_token) for part in self.feed_forwards), default=(0, 0))


def attention(
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    sliding: int = 0,
    chunk: int = 0,
    gated: bool = False,
) -> Mixer:
    """Grouped-query attention, of `sliding` or `chunk` tokens; a projection like the query's may gate its output."""
    return Mixer(
        kind=SLIDING_WINDOW if sliding else CHUNKED_LOCAL if chunk else FULL,
        params=(2 * hidden * (heads + kv_heads) + (hidden * heads if gated else 0)) * head_dim,
        heads=heads,
        window_tokens=sliding or chunk,
        kv_heads=kv_heads,
        kv_elements=2 * head_dim,
        pair_flops=4 * heads * head_dim,
    )


class LatentDims(NamedTuple):
    """Of multi-head latent attention."""

    query: int  # its latent's; 0: queries are projected at once
    latent: int
    nope: int  # of a head's key, without position
    rope: int  # with position
    value: int


class Indexer(NamedTuple):
    """Of sparse attention: what chooses the tokens that are attended to."""

    heads: int
    dim: int
    chosen_tokens: int


def latent_attention(hidden: int, heads: int, dims: LatentDims, indexer: Indexer | None) -> Mixer:
    """Multi-head latent attention. Prompts use keys and values, decoding and sparse attention the latent itself."""
    key = dims.nope + dims.rope
    query = dims.query * (hidden + heads * key) if dims.query else hidden * heads * key
    down = hidden * (dims.latent + dims.rope)
    up = dims.latent * heads * (dims.nope + dims.value)
    absorbed_flops = 2 * heads * (2 * dims.latent + dims.rope)
    extra = 0
    if indexer:
        extra = (dims.query or hidden) * indexer.heads * indexer.dim + hidden * (indexer.dim + indexer.heads)
    return Mixer(
        kind=FULL,
        params=query + down + up + heads * dims.value * hidden + extra,
        heads=heads,
        kv_heads=1,
        kv_elements=dims.latent + dims.rope,
        pair_flops=absorbed_flops if indexer else 2 * heads * (key + dims.value),
        context_flops=absorbed_flops,
        latent_flops=0 if indexer else 2 * up,
        index_bytes=indexer.dim + indexer.dim // 128 * INDEX_SCALE_BYTES if indexer else 0,
        index_flops=2 * indexer.heads * indexer.dim if indexer else 0,
        chosen_tokens=indexer.chosen_tokens if indexer else 0,
    )


def gated_delta_net(
    hidden: int, key_heads: int, value_heads: int, key_dim: int, value_dim: int, kernel: int, state_bytes: int
) -> Mixer:
    """Linear attention of Qwen3-Next: a state of keys x values a value head, and a short convolution."""
    keys, values = key_heads * key_dim, value_heads * value_dim
    channels = 2 * keys + values
    return Mixer(
        kind=MAMBA,
        params=hidden * (channels + values + 2 * value_heads) + channels * kernel + values * hidden,
        heads=value_heads,
        conv_elements=channels * (kernel - 1),
        state_elements=value_heads * key_dim * value_dim,
        state_bytes=state_bytes,
        state_flops=8 * value_heads * key_dim * value_dim,
    )


def mamba2(hidden: int, heads: int, head_dim: int, groups: int, state: int, kernel: int, state_bytes: int) -> Mixer:
    """A Mamba-2 layer."""
    inner = heads * head_dim
    channels = inner + 2 * groups * state
    return Mixer(
        kind=MAMBA,
        params=hidden * (inner + channels + heads) + channels * kernel + inner * hidden,
        heads=heads,
        conv_elements=channels * (kernel - 1),
        state_elements=inner * state,
        state_bytes=state_bytes,
        state_flops=6 * inner * state,
    )


def mamba1(hidden: int, inner: int, state: int, kernel: int, step_rank: int, state_bytes: int) -> Mixer:
    """A Mamba layer of the first kind."""
    return Mixer(
        kind=MAMBA,
        params=inner * (3 * hidden + kernel + 2 * step_rank + 3 * state),
        heads=inner,
        conv_elements=inner * (kernel - 1),
        state_elements=inner * state,
        state_bytes=state_bytes,
        state_flops=6 * inner * state,
    )


def lightning_attention(hidden: int, heads: int, head_dim: int, state_bytes: int) -> Mixer:
    """Linear attention of MiniMax-Text-01, its output gated."""
    return Mixer(
        kind=MAMBA,
        params=5 * hidden * heads * head_dim,
        heads=heads,
        state_elements=heads * head_dim * head_dim,
        state_bytes=state_bytes,
        state_flops=4 * heads * head_dim * head_dim,
    )


def mlp(hidden: int, width: int, *, gated: bool = True) -> FeedForward:
    return FeedForward(params=(3 if gated else 2) * hidden * width)


def mixture(
    hidden: int, width: int, experts: int, experts_per_token: int, shared_width: int = 0, *, gated: bool = True
) -> FeedForward:
    """Experts of which a token chooses some, and shared ones that all tokens use."""
    matrices = 3 if gated else 2
    return FeedForward(
        params=hidden * experts + matrices * hidden * shared_width,
        expert_params=matrices * hidden * width,
        expert_width=width,
        experts=experts,
        experts_per_token=experts_per_token,
    )
