"""vLLM's own counters, out of the text that its server publishes for Prometheus at `/metrics`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ...traces.files.fields import WrongField, shown
from .counters import Counters

# a name, maybe labels, and the value since the server started
_SAMPLE = re.compile(r"^(vllm:\w+_total)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_FIELDS: Mapping[tuple[str, str], str] = {  # by name, and by a label that it must have
    ("vllm:prompt_tokens_total", ""): "prompt_tokens",
    ("vllm:prompt_tokens_by_source_total", 'source="local_cache_hit"'): "gpu_hit_tokens",
    ("vllm:prompt_tokens_by_source_total", 'source="external_kv_transfer"'): "host_hit_tokens",
    ("vllm:generation_tokens_total", ""): "output_tokens",
    ("vllm:num_preemptions_total", ""): "preemptions",
}


def read_counters(text: str) -> Counters | None:
    """The sums over all models and engines of the server; None if something is not published. Raises `WrongField`."""
    sums: dict[str, int] = {}
    for name, labels, value in _SAMPLE.findall(text):
        for (wanted, label), field in _FIELDS.items():
            if name == wanted and label in labels:
                sums[field] = sums.get(field, 0) + _count(name, value)
    return Counters(**sums) if len(sums) == len(_FIELDS) else None


def _count(name: str, value: str) -> int:
    try:
        return int(float(value))
    except (ValueError, OverflowError):  # text, NaN or infinity
        raise WrongField(name, f"expected a number, got {shown(value)}") from None


def since(before: Counters, after: Counters) -> Counters:
    """What was counted between two readings."""
    earlier = before.record()
    return Counters(**{name: value - earlier[name] for name, value in after.record().items()})
