"""Which engines are not supported: found by what they are told of themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tokencake.live.engine.control.engine_limits import check_supported
from tokencake.traces.errors import EngineError


class FullAttentionSpec:
    """By this name it is known."""


def scheduler(data_parallel_size: int, data_parallel_index: int) -> Any:
    group = SimpleNamespace(kv_cache_spec=FullAttentionSpec(), layer_names=["layer"])
    parallel = SimpleNamespace(data_parallel_size=data_parallel_size, data_parallel_index=data_parallel_index)
    return SimpleNamespace(
        vllm_config=SimpleNamespace(parallel_config=parallel), kv_cache_config=SimpleNamespace(kv_cache_groups=[group]),
        hash_block_size=16, block_size=16, cache_config=SimpleNamespace(enable_prefix_caching=True),
        policy=SimpleNamespace(value="fcfs"),
    )  # fmt: skip


def test_an_engine_that_is_alone_is_taken() -> None:
    check_supported(scheduler(1, 0))


@pytest.mark.parametrize(("size", "index"), [(2, 0), (2, 1), (1, 1)])
def test_data_parallelism_is_refused_also_where_engines_are_told_that_they_are_alone(size: int, index: int) -> None:
    with pytest.raises(EngineError, match="data parallelism: expected 1"):
        check_supported(scheduler(size, index))
