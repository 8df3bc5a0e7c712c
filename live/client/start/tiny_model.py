"""A tiny model with random weights: runs anywhere, needs no network, and its answers depend on its whole context.

Weights that an engine makes up by itself (`load_format="dummy"`) are nearly zero, so the answers do not depend on what
is in the KV cache and prove nothing about it. These are a real checkpoint: the same bytes whenever they are written.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....traces.errors import EngineError
from ....traces.files.whole_file import replacing

Tensors = dict[str, NDArray[np.float32]]

LAYERS = 4
WIDTH = 256
HEADS = 4
KV_HEADS = 2
HEAD_WIDTH = 64
INNER_WIDTH = 512
VOCABULARY = 4096
LONGEST_CONTEXT_TOKENS = 131_072
SHARPNESS = 2.0  # of attention: with less, it averages over the whole context, and no single token matters

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": INNER_WIDTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_WIDTH,
    "num_hidden_layers": LAYERS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": LONGEST_CONTEXT_TOKENS,
    "rope_theta": 500_000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": None,
    "eos_token_id": None,
}
_VERSION = 1  # of what is written: a new one for other weights


def tiny_model(folder: Path | None = None) -> Path:
    """The folder of the model, which is written first if it is not there: by default in the user's cache.

    Raises `EngineError` if it cannot be written.
    """
    place = folder or _cache() / f"tiny-{_VERSION}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "config.json").exists():  # it is written last
            with replacing(place / "model.safetensors") as file:
                file.write(_safetensors(_weights()))
            with replacing(place / "config.json") as file:
                file.write(json.dumps(CONFIG, indent=2).encode())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise EngineError(f"{place}: the tiny model cannot be written: {reason}") from None
    return place


def _cache() -> Path:
    """The user's folder for what can be made again, or a temporary one for who has none."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    except RuntimeError:  # nobody's home
        base = tempfile.gettempdir()
    return Path(base) / "tokencake"


def _weights() -> Tensors:
    """Normally distributed, so that every layer keeps the size of what flows through it."""
    random = np.random.Generator(np.random.PCG64(0))

    def drawn(rows: int, columns: int, scale: float = 1.0) -> NDArray[np.float32]:
        return (random.standard_normal((rows, columns), np.float32) * np.float32(scale / columns**0.5)).astype("<f4")

    weights: Tensors = {"model.embed_tokens.weight": drawn(VOCABULARY, WIDTH, WIDTH**0.5)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        weights |= {
            name + "input_layernorm.weight": np.ones(WIDTH, "<f4"),
            name + "self_attn.q_proj.weight": drawn(HEADS * HEAD_WIDTH, WIDTH, SHARPNESS),
            name + "self_attn.k_proj.weight": drawn(KV_HEADS * HEAD_WIDTH, WIDTH, SHARPNESS),
            name + "self_attn.v_proj.weight": drawn(KV_HEADS * HEAD_WIDTH, WIDTH),
            name + "self_attn.o_proj.weight": drawn(WIDTH, HEADS * HEAD_WIDTH),
            name + "post_attention_layernorm.weight": np.ones(WIDTH, "<f4"),
            name + "mlp.gate_proj.weight": drawn(INNER_WIDTH, WIDTH),
            name + "mlp.up_proj.weight": drawn(INNER_WIDTH, WIDTH),
            name + "mlp.down_proj.weight": drawn(WIDTH, INNER_WIDTH),
        }
    return weights | {"model.norm.weight": np.ones(WIDTH, "<f4"), "lm_head.weight": drawn(VOCABULARY, WIDTH)}


def _safetensors(tensors: Tensors) -> bytes:
    """A file in the safetensors format: the header's length, the header in JSON, then the data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(tensor.tobytes() for tensor in tensors.values())
