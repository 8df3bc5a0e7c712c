"""Where the bytes of a KV block lie: views of vLLM's cache tensors in which one row is one block.

vLLM gives each attention backend the layout that it likes: blocks outermost, or K and V, or groups of heads before
them; a storage for each layer, or one for all, layer after layer or block after block; pages with padding; blocks that
a kernel sees as several smaller ones. All of that shows in a tensor's shape and strides, so those are what is read
here, and no version or backend is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import NamedTuple, TypeAlias

import torch

from ...traces.errors import EngineError

Kept: TypeAlias = torch.Tensor | Sequence[torch.Tensor]  # by a layer


class _Part(NamedTuple):
    """A layer's stretch of bytes in block 0 of one storage. That of block n begins `n x stride_bytes` later."""

    layer: str
    shape: tuple[int, ...]  # of the layer's tensor: for messages
    storage: torch.UntypedStorage
    start: int  # bytes from the beginning of the storage
    end: int
    stride_bytes: int


def block_views(kv_caches: Mapping[str, Kept], blocks: int) -> list[torch.Tensor]:
    """Views of uint8, each of shape (`blocks`, bytes). Row n of all of them together is block n, each byte of it once.

    `kv_caches` are the layers' tensors as vLLM registers them, in its logical order of dimensions; `blocks` counts all
    blocks, with vLLM's null block. The rows of a view lie back to back, padding included. Layers that share bytes are
    in one view. Raises `EngineError`, with layer and shape, where shape and strides do not tell what a block is.
    """
    parts = [
        part
        for layer, kept in kv_caches.items()
        for tensor in _tensors(layer, kept)
        for part in _parts(layer, tensor, blocks)
    ]
    if not parts:
        raise EngineError("the model has no KV cache whose blocks could be copied to the host")
    parts.sort(key=lambda part: (part.storage.data_ptr(), part.start, -part.end))
    firsts: list[_Part] = []
    for part in parts:
        last = firsts[-1] if firsts and firsts[-1].storage.data_ptr() == part.storage.data_ptr() else None
        if last is None or not _same_row(last, part):
            _check_apart(last, part, blocks)
            firsts.append(part)
    return [_rows(part, blocks) for part in firsts]


def row_bytes(views: Sequence[torch.Tensor]) -> int:
    """Bytes of one block in all of its views."""
    return sum(view.shape[1] for view in views)


def _tensors(layer: str, kept: object) -> Sequence[torch.Tensor]:
    """What a layer keeps: keys and values together, or the parts of a Mamba layer's state."""
    tensors = kept if isinstance(kept, list | tuple) else (kept,)
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        raise EngineError(f"layer {layer!r} keeps something other than tensors: its blocks cannot be copied")
    return tensors


def _parts(layer: str, tensor: torch.Tensor, blocks: int) -> Iterator[_Part]:
    shape, item = tuple(tensor.shape), tensor.element_size()
    at = _block_dimension(layer, tensor, blocks)
    pieces = shape[at] // blocks  # kernels may see a block as several
    stride = tensor.stride(at) * item * pieces
    others = [(size, step * item) for size, step in zip(shape, tensor.stride(), strict=True)]
    others[at] = (pieces, tensor.stride(at) * item)
    inside = [(size, step) for size, step in others if step < stride]
    outside = [(size, step) for size, step in others if step >= stride and size > 1]
    length = item + sum((size - 1) * step for size, step in inside)
    if length > stride:
        raise _unclear(layer, tensor, blocks)
    for indices in product(*(range(size) for size, _ in outside)):
        start = tensor.storage_offset() * item
        start += sum(index * step for index, (_, step) in zip(indices, outside, strict=True))
        yield _Part(layer, shape, tensor.untyped_storage(), start, start + length, stride)


def _block_dimension(layer: str, tensor: torch.Tensor, blocks: int) -> int:
    """The dimension that counts blocks, or the equal pieces into which kernels divide them.

    In vLLM's order of dimensions only K and V come before it. In memory it lies outside of all other dimensions whose
    size could be taken for it: tokens of a block, heads, their width.
    """
    fitting = [at for at, size in enumerate(tensor.shape) if size and size % blocks == 0]
    if len(fitting) == 1:
        return fitting[0]
    exact = [at for at in fitting if tensor.shape[at] == blocks]
    told = (
        blocks > 2  # or K and V could be the blocks
        and bool(fitting)
        and fitting[0] in (exact or fitting)
        and all(tensor.stride(at) < tensor.stride(fitting[0]) for at in fitting[1:])
    )
    if not told:
        raise _unclear(layer, tensor, blocks)
    return fitting[0]


def _same_row(first: _Part, part: _Part) -> bool:
    """Whether `part` lies within the rows that begin with `first`."""
    return part.stride_bytes == first.stride_bytes and part.end <= first.start + first.stride_bytes


def _check_apart(last: _Part | None, part: _Part, blocks: int) -> None:
    """Refuse rows that would run into those before them or out of their storage: what is a block would be a guess."""
    if last is not None and part.start < last.start + blocks * last.stride_bytes:
        raise EngineError(
            f"layers {last.layer!r} and {part.layer!r}, of shapes {last.shape} and {part.shape}, are entangled in"
            " memory: it cannot be told which bytes make up a block"
        )
    if part.start + blocks * part.stride_bytes > part.storage.nbytes():
        raise EngineError(
            f"layer {part.layer!r}, of shape {part.shape}: {blocks} blocks of {part.stride_bytes} bytes do not fit into"
            f" its {part.storage.nbytes()} bytes"
        )


def _rows(part: _Part, blocks: int) -> torch.Tensor:
    rows = torch.empty(0, dtype=torch.uint8, device=part.storage.device)
    return rows.set_(part.storage, part.start, (blocks, part.stride_bytes), (part.stride_bytes, 1))


def _unclear(layer: str, tensor: torch.Tensor, blocks: int) -> EngineError:
    return EngineError(
        f"layer {layer!r}, of shape {tuple(tensor.shape)} and strides {tuple(tensor.stride())}: it cannot be told which"
        f" bytes make up one of its {blocks} blocks"
    )
