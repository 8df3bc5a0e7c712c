"""Which bytes a block is made of, for the layouts that vLLM's backends use and for some that cannot be told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("torch", reason="needs torch: .ci/install-vllm puts it into an environment of its own")

import torch

from tokencake.live.copier.block_views import block_views, row_bytes
from tokencake.traces.errors import EngineError

BLOCKS, HEADS, TOKENS, WIDTH = 7, 2, 16, 8


def numbered(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """A tensor that owns its storage, with an element for each number from 0 on."""
    return torch.arange(torch.Size(shape).numel(), dtype=dtype).view(shape)


def elements(views: list[torch.Tensor], block: int) -> list[int]:
    """All elements that the views hold of a block, sorted."""
    return sorted(element for view in views for element in view[block].clone().view(torch.int32).tolist())


def assert_each_block(views: list[torch.Tensor], tensors: list[torch.Tensor], block_dimension: int) -> None:
    """Row n of the views is block n of the tensors, and no byte comes twice."""
    assert all(view.dtype == torch.uint8 and view.shape[0] == BLOCKS for view in views)
    for block in range(BLOCKS):
        expected = [
            element for tensor in tensors for element in tensor.select(block_dimension, block).flatten().tolist()
        ]
        assert elements(views, block) == sorted(expected)


def layouts() -> Iterator[tuple[str, torch.Tensor, int]]:
    """Name, tensor in vLLM's logical order, and which dimension is the block's."""
    yield "blocks, heads, tokens, K and V packed", numbered(BLOCKS, HEADS, TOKENS, 2 * WIDTH), 0
    yield "the same, tokens outside of heads", numbered(BLOCKS, TOKENS, HEADS, 2 * WIDTH).permute(0, 2, 1, 3), 0
    yield "the same, heads outside of blocks", numbered(HEADS, BLOCKS, TOKENS, 2 * WIDTH).permute(1, 0, 2, 3), 0
    yield "K and V, blocks", numbered(2, BLOCKS, TOKENS, HEADS, WIDTH), 1
    yield "blocks, K and V", numbered(BLOCKS, 2, TOKENS, HEADS, WIDTH), 0
    yield "K and V before blocks, but inside in memory", numbered(BLOCKS, 2, TOKENS, HEADS, WIDTH).transpose(0, 1), 1
    yield "blocks before K and V, but inside in memory", numbered(2, BLOCKS, TOKENS, HEADS, WIDTH).transpose(0, 1), 0
    yield "one latent vector a token", numbered(BLOCKS, TOKENS, 9), 0
    yield "as many heads as blocks", numbered(BLOCKS, BLOCKS, TOKENS, WIDTH), 0
    yield "as many tokens as blocks", numbered(2, BLOCKS, BLOCKS, HEADS, WIDTH), 1
    yield "as many tokens as twice the blocks", numbered(BLOCKS, HEADS, 2 * BLOCKS, WIDTH), 0


@pytest.mark.parametrize(("tensor", "dimension"), [layout[1:] for layout in layouts()], ids=[i[0] for i in layouts()])
def test_a_row_is_a_block(tensor: torch.Tensor, dimension: int) -> None:
    views = block_views({"layer": tensor}, BLOCKS)
    assert_each_block(views, [tensor], dimension)
    assert row_bytes(views) * BLOCKS == tensor.numel() * 4


def test_blocks_that_a_kernel_divides_are_put_together() -> None:
    tensor = numbered(BLOCKS * 4, HEADS, TOKENS, 2 * WIDTH)
    assert_each_block(block_views({"layer": tensor}, BLOCKS), [tensor.unflatten(0, (BLOCKS, 4))], 0)


def test_divided_blocks_are_put_together_behind_k_and_v() -> None:
    tensor = numbered(2, BLOCKS * 4, TOKENS, HEADS, WIDTH)
    assert_each_block(block_views({"layer": tensor}, BLOCKS), [tensor.unflatten(1, (BLOCKS, 4))], 1)


def test_layers_of_their_own_storage_follow_each_other() -> None:
    tensors = [numbered(BLOCKS, HEADS, TOKENS, WIDTH), numbered(2, BLOCKS, TOKENS, 3)]
    views = block_views({"a": tensors[0], "b": tensors[1]}, BLOCKS)
    assert row_bytes(views) == 4 * (HEADS * TOKENS * WIDTH + 2 * TOKENS * 3)
    for block in range(BLOCKS):
        of_both = [*tensors[0][block].flatten().tolist(), *tensors[1][:, block].flatten().tolist()]
        assert elements(views, block) == sorted(of_both)


def test_layers_behind_each_other_in_one_storage() -> None:
    layers = list(numbered(3, BLOCKS, HEADS, TOKENS, WIDTH))
    views = block_views({f"layer.{index}": layer for index, layer in enumerate(layers)}, BLOCKS)
    assert len(views) == 3
    assert_each_block(views, layers, 0)


def test_layers_beside_each_other_in_each_block_are_one_row() -> None:
    together = numbered(BLOCKS, 3, HEADS, TOKENS, WIDTH)
    layers = [together[:, index] for index in range(3)]
    views = block_views({f"layer.{index}": layers[index] for index in (2, 0, 1)}, BLOCKS)
    assert [view.shape for view in views] == [(BLOCKS, 3 * HEADS * TOKENS * WIDTH * 4)]
    assert_each_block(views, layers, 0)


def test_layers_that_are_the_same_are_copied_once() -> None:
    tensor = numbered(BLOCKS, HEADS, TOKENS, WIDTH)
    views = block_views({"a": tensor, "b": tensor, "c": tensor.transpose(1, 2)}, BLOCKS)
    assert_each_block(views, [tensor], 0)


def test_padding_at_the_end_of_a_page_belongs_to_the_block() -> None:
    pages = numbered(BLOCKS, 100)
    tensor = pages[:, :96].view(BLOCKS, 3, 16, 2)
    assert_each_block(block_views({"layer": tensor}, BLOCKS), [pages], 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_bytes_are_counted_in_the_tensors_type(dtype: torch.dtype) -> None:
    tensor = torch.zeros(2, BLOCKS, TOKENS, HEADS, WIDTH, dtype=dtype)
    assert row_bytes(block_views({"layer": tensor}, BLOCKS)) == 2 * TOKENS * HEADS * WIDTH * dtype.itemsize


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(numbered(5, HEADS, TOKENS, WIDTH), id="no dimension fits"),
        pytest.param(numbered(BLOCKS, BLOCKS, 2, 3).transpose(0, 1), id="two fit and the inner one comes first"),
        pytest.param(
            numbered(BLOCKS, BLOCKS, BLOCKS, 3).transpose(0, 1), id="three fit and one is outside of the first"
        ),
        pytest.param(numbered(2 * BLOCKS, BLOCKS, TOKENS, WIDTH), id="blocks, or divided blocks"),
        pytest.param(numbered(1, TOKENS, WIDTH).expand(BLOCKS, TOKENS, WIDTH), id="one block under all numbers"),
        pytest.param(torch.zeros(()), id="no dimension at all"),
    ],
)
def test_a_layout_that_does_not_tell_is_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(EngineError, match=r"^layer 'model\.3', of shape .* cannot be told") as refused:
        block_views({"model.3": tensor}, BLOCKS)
    assert str(tuple(tensor.shape)) in str(refused.value)


def test_two_blocks_could_be_k_and_v() -> None:
    with pytest.raises(EngineError, match="cannot be told"):
        block_views({"layer": numbered(2, 2, TOKENS, HEADS, WIDTH)}, 2)


def test_a_layer_may_keep_the_parts_of_a_state_in_the_memory_of_another_ones_blocks() -> None:
    """A Mamba layer's page has two parts and padding; what an attention layer keeps lies over it."""
    page = 2 * TOKENS * WIDTH
    storage = numbered(BLOCKS * page)
    convolution = storage.as_strided((BLOCKS, 3, 5), (page, 5, 1))
    state = storage.as_strided((BLOCKS, HEADS, WIDTH), (page, WIDTH, 1), 15)
    views = block_views({"mamba": [convolution, state], "attention": storage.view(BLOCKS, 2, TOKENS, WIDTH)}, BLOCKS)
    assert_each_block(views, [storage.view(BLOCKS, page)], 0)
    assert row_bytes(views) == 4 * page


def test_what_is_no_tensor_is_refused() -> None:
    with pytest.raises(EngineError, match=r"^layer 'mamba\.0' keeps something other"):
        block_views({"mamba.0": "a state"}, BLOCKS)


def test_layers_that_overlap_in_part_are_refused() -> None:
    storage = numbered(BLOCKS * 12)
    layers = {"a": storage.view(BLOCKS, 12), "b": storage[6 : 6 + BLOCKS * 9].view(BLOCKS, 9)}
    with pytest.raises(EngineError, match=r"layers 'a' and 'b'.*entangled"):
        block_views(layers, BLOCKS)


def test_rows_that_would_leave_the_storage_are_refused() -> None:
    with pytest.raises(EngineError, match=r"layer 'a'.*do not fit"):
        block_views({"a": numbered(BLOCKS, 12)[:, 4:]}, BLOCKS)


def test_no_layer_is_refused() -> None:
    with pytest.raises(EngineError, match="no KV cache"):
        block_views({}, BLOCKS)
