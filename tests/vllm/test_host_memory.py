"""The host's room for blocks: how it is laid out, taken and pinned, and what becomes of it when that goes wrong."""

from __future__ import annotations

from io import StringIO
from time import monotonic

import pytest

pytest.importorskip("torch", reason="needs torch: .ci/install-vllm puts it into an environment of its own")

import torch

from tokencake.live.copier.host_memory import PAGE_BYTES, HostMemory, telling
from tokencake.traces.errors import EngineError

BLOCKS = [torch.zeros((5, size), dtype=torch.uint8) for size in (96, 4096, 10_000)]
SLOTS = 7


def test_every_view_has_a_row_for_each_slot_and_pages_of_its_own() -> None:
    memory = HostMemory(BLOCKS, SLOTS)
    assert memory.bytes == SLOTS * (96 + 4096 + 10_000)
    pages: set[int] = set()
    for view, block in zip(memory.views, BLOCKS, strict=True):
        assert view.shape == (SLOTS, block.shape[1])
        assert view.is_contiguous()
        assert not view.any()
        assert view.data_ptr() % PAGE_BYTES == 0
        own = set(range(view.data_ptr() // PAGE_BYTES, -(-(view.data_ptr() + view.nbytes) // PAGE_BYTES)))
        assert not pages & own  # a page that is registered twice is refused by the driver
        pages |= own


def test_every_byte_is_pinned_once_and_given_back_once() -> None:
    memory = HostMemory(BLOCKS, SLOTS)
    pinned: list[tuple[int, int]] = []
    memory.pin(
        lambda part: pinned.append((part.data_ptr(), part.nbytes)),
        lambda part: pinned.remove((part.data_ptr(), part.nbytes)),
    )
    assert pinned == [(view.data_ptr(), view.nbytes) for view in memory.views]
    memory.unpin()
    memory.unpin()
    assert pinned == []


def test_a_driver_that_refuses_a_part_gets_the_others_back() -> None:
    memory = HostMemory(BLOCKS, SLOTS)
    pinned: list[int] = []

    def register(part: torch.Tensor) -> None:
        if len(pinned) == 2:
            raise RuntimeError("cudaHostRegister failed")
        pinned.append(part.data_ptr())

    with pytest.raises(RuntimeError, match="cudaHostRegister failed"):
        memory.pin(register, lambda part: pinned.remove(part.data_ptr()))
    assert pinned == []


def test_no_memory_is_no_memory() -> None:
    memory = HostMemory(BLOCKS, 0)
    memory.pin(lambda part: pytest.fail("nothing is there to be pinned"), lambda part: None)
    assert [view.shape for view in memory.views] == [(0, 96), (0, 4096), (0, 10_000)]
    with pytest.raises(EngineError, match=r"there is no memory for a host pool of .* GiB: ask for less host_gib"):
        HostMemory(BLOCKS, 2**48)


def test_what_takes_too_long_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=r"^host pool: 0\.0 of .* GiB were taken after -?0 s: ask for less host_gib$"):
        HostMemory(BLOCKS, SLOTS, limit_s=-0.1)
    memory = HostMemory(BLOCKS, SLOTS, limit_s=60.0)
    given_back: list[int] = []
    now_s = monotonic()
    monkeypatch.setattr("tokencake.live.copier.host_memory.monotonic", lambda: now_s)

    def slow(part: torch.Tensor) -> None:
        nonlocal now_s
        now_s += 61.0

    with pytest.raises(EngineError, match=r"^host pool: 0\.0 of 0\.0 GiB were pinned after 60 s: ask for less"):
        memory.pin(slow, lambda part: given_back.append(part.nbytes))
    assert given_back == [memory.views[0].nbytes]


def test_how_far_it_is_is_told_every_two_seconds_where_somebody_reads_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = HostMemory(BLOCKS, SLOTS)
    now_s = 0.0

    def slow(part: torch.Tensor) -> None:
        nonlocal now_s
        now_s += 1.5

    memory._until_s = 100.0
    monkeypatch.setattr("tokencake.live.copier.host_memory.monotonic", lambda: now_s)
    memory.pin(slow, lambda part: None)
    assert capsys.readouterr().err == ""  # so little, on a busy machine
    monkeypatch.setattr("tokencake.live.copier.host_memory.TOLD_BYTES", 0)
    heard = StringIO()
    with telling(heard):  # as while an engine starts, when stderr is hushed
        memory.pin(slow, lambda part: None)
    assert heard.getvalue() == "host pool: 0.0 of 0.0 GiB pinned, 3 s\n"
    memory.pin(slow, lambda part: None)
    assert capsys.readouterr().err == "host pool: 0.0 of 0.0 GiB pinned, 3 s\n"
