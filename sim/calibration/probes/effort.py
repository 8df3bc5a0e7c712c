"""How much of an engine is measured: briefly on a CPU, at length on a GPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is measured. What the engine cannot hold is left out."""

    repeats: int  # of each probe
    prefill_tokens: tuple[int, ...]  # computed at once, if the budget of a step allows
    context_tokens: tuple[int, ...]  # that decoding calls attend to, or a prefill follows on
    cached_tokens: int  # the most that the contexts of one length come to
    largest_batch: int
    decode_steps: int  # of a probe
    copy_bytes: tuple[int, ...]


# Under a minute on a CPU with a tiny model.
QUICK = Effort(
    repeats=3,
    prefill_tokens=(8, 64, 256, 1024, 2048),
    context_tokens=(64, 512, 2048, 4096),
    cached_tokens=8_192,
    largest_batch=32,
    decode_steps=10,
    copy_bytes=(1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26),
)
# Under three minutes on a GPU.
FULL = Effort(
    repeats=5,
    prefill_tokens=(8, 32, 128, 512, 1024, 2048, 4096, 8192),
    context_tokens=(64, 512, 2048, 8192, 32_768),
    cached_tokens=65_536,
    largest_batch=256,
    decode_steps=16,
    copy_bytes=(1 << 20, 1 << 22, 1 << 24, 1 << 26, 1 << 28, 1 << 30),
)
