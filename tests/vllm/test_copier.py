"""Copies between an engine's blocks and the host: what arrives, when, and what the engine hears of it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Event, Timer
from time import monotonic, sleep

import pytest

pytest.importorskip("torch", reason="needs torch: .ci/install-vllm puts it into an environment of its own")

import torch

from tokencake.live.copier.copier import Copier, block_bytes, make_copier
from tokencake.live.copier.jobs import CopyJob, Ended
from tokencake.traces.errors import EngineError

BLOCKS, SLOTS = 23, 31
SOON_S = 20.0  # far more than any copy here takes: a busy machine is not a bug
ON_CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))
each_device = pytest.mark.parametrize("device", ["cpu", ON_CUDA])


def filled(
    shape: Sequence[int], dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> torch.Tensor:
    """A tensor of random bytes: some of them are no numbers, which must not matter."""
    size = torch.Size(shape).numel() * dtype.itemsize
    made = torch.randint(256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return made.view(dtype).view(*shape).to(device)


def caches(device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, tuple[torch.Tensor, int]]:
    """Layers of several layouts, each with the dimension that counts its blocks."""
    return {
        "k and v first": (filled((2, BLOCKS, 16, 2, 8), dtype, device, 1), 1),
        "blocks first": (filled((BLOCKS, 2, 16, 2, 8), dtype, device, 2), 0),
        "packed": (filled((BLOCKS, 4, 16, 16), dtype, device, 3), 0),
        "tokens outside": (filled((BLOCKS, 16, 4, 16), dtype, device, 4).permute(0, 2, 1, 3), 0),
        "heads outside": (filled((4, BLOCKS, 16, 16), dtype, device, 5).permute(1, 0, 2, 3), 0),
        "divided": (filled((BLOCKS * 2, 4, 8, 16), dtype, device, 6).unflatten(0, (BLOCKS, 2)), 0),
    }


def as_registered(layers: Mapping[str, tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
    return {name: layer.flatten(0, 1) if name == "divided" else layer for name, (layer, _) in layers.items()}


def content(layers: Mapping[str, tuple[torch.Tensor, int]], block: int) -> bytes:
    """All bytes of a block, in an order that depends on the layers alone."""
    parts = [layer.select(dimension, block).contiguous().cpu() for layer, dimension in layers.values()]
    return b"".join(part.view(torch.uint8).numpy().tobytes() for part in parts)


@contextmanager
def copier_of(kv_caches: Mapping[str, torch.Tensor], link_gbps: float | None = None) -> Iterator[Copier]:
    made = make_copier(kv_caches, BLOCKS, SLOTS, link_gbps)
    try:
        yield made
    finally:
        made.close()


def store(id: int, blocks: Sequence[int], slots: Sequence[int]) -> CopyJob:
    return CopyJob(id, True, tuple(blocks), tuple(slots), None)


def load(id: int, blocks: Sequence[int], slots: Sequence[int]) -> CopyJob:
    return CopyJob(id, False, tuple(blocks), tuple(slots), None)


def finish(copier: Copier, jobs: int) -> list[int]:
    """Ids of the next `jobs` jobs to end, in the order in which they are told."""
    ids: list[int] = []
    while len(ids) < jobs:
        ids += finish_some(copier)
    assert len(ids) == jobs
    return ids


def finish_some(copier: Copier) -> list[int]:
    """Wait until something ended, and say what."""
    copier.wait(SOON_S)
    ids = [ended.job for ended in copier.finished()]
    assert ids, f"no copy ended within {SOON_S} s"
    return ids


@each_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_blocks_come_back_from_the_host_as_they_were(device: str, dtype: torch.dtype) -> None:
    layers = caches(device, dtype)
    before = {block: content(layers, block) for block in range(BLOCKS)}
    with copier_of(as_registered(layers)) as copier:
        copier.submit([store(1, [3, 4, 5, 17, 0, 22], [30, 8, 9, 10, 11, 0])])
        assert finish(copier, 1) == [1]
        copier.submit([load(2, [7, 6, 21], [9, 10, 30]), load(3, [2], [0])])
        assert finish(copier, 2) == [2, 3]
    expected = before | {7: before[5], 6: before[17], 21: before[3], 2: before[22]}
    assert {block: content(layers, block) for block in range(BLOCKS)} == expected


@each_device
def test_what_is_stored_is_the_content_at_submission(device: str) -> None:
    layers = caches(device)
    with copier_of(as_registered(layers)) as copier:
        before = content(layers, 4)
        copier.submit([store(1, [4], [4])])
        finish(copier, 1)
        for layer, _ in layers.values():
            layer.zero_()
        copier.submit([load(2, [5], [4])])
        finish(copier, 1)
    assert content(layers, 4) == bytes(len(before))
    assert content(layers, 5) == before


class Model:
    """What each place must hold, and who may copy where, if copies are entries of dictionaries."""

    def __init__(self, gpu: dict[int, bytes]) -> None:
        self.gpu = gpu
        self.host: dict[int, bytes] = {}
        self.under_way: dict[int, CopyJob] = {}

    def random_job(self, rng: random.Random, id: int) -> CopyJob | None:
        """A job that the scheduler could give now, if there is one. Sources may be shared, targets may not."""
        stores = [job for job in self.under_way.values() if job.to_host]
        loads = [job for job in self.under_way.values() if not job.to_host]
        loaded, stored = blocks_of(loads), slots_of(stores)
        to_host = rng.random() < 0.5
        blocks = set(range(BLOCKS)) - loaded if to_host else set(range(BLOCKS)) - loaded - blocks_of(stores)
        slots = set(range(SLOTS)) - stored - slots_of(loads) if to_host else self.host.keys() - stored
        count = min(len(blocks), len(slots), rng.randint(1, 8))
        if not count:
            return None
        chosen = [tuple(rng.sample(sorted(places), count)) for places in (blocks, slots)]
        return CopyJob(id, to_host, chosen[0], chosen[1], None)

    def end(self, id: int) -> None:
        job = self.under_way.pop(id)
        for block, slot in zip(job.gpu_blocks, job.host_slots, strict=True):
            if job.to_host:
                self.host[slot] = self.gpu[block]
            else:
                self.gpu[block] = self.host[slot]


def blocks_of(jobs: Sequence[CopyJob]) -> set[int]:
    return {block for job in jobs for block in job.gpu_blocks}


def slots_of(jobs: Sequence[CopyJob]) -> set[int]:
    return {slot for job in jobs for slot in job.host_slots}


@each_device
@pytest.mark.parametrize("link_gbps", [None, 10.0])
def test_thousands_of_random_jobs_leave_what_dictionaries_hold(device: str, link_gbps: float | None) -> None:
    if device == "cuda" and link_gbps is not None:
        pytest.skip("a GPU has a link of its own")
    rng = random.Random(5)
    layers = caches(device, torch.bfloat16)
    model = Model({block: content(layers, block) for block in range(BLOCKS)})
    with copier_of(as_registered(layers), link_gbps) as copier:
        for id in range(3000):
            job = model.random_job(rng, id)
            if job is not None:
                model.under_way[id] = job
                copier.submit([job])
            while len(model.under_way) > rng.randrange(8):
                for ended in finish_some(copier):
                    model.end(ended)
        for ended in finish(copier, len(model.under_way)):
            model.end(ended)
    assert {block: content(layers, block) for block in range(BLOCKS)} == model.gpu


def one_layer(bytes_a_block: int = 1 << 20) -> dict[str, torch.Tensor]:
    return {"layer": filled((BLOCKS, bytes_a_block), torch.uint8)}


def test_a_link_is_no_faster_than_it_says() -> None:
    """Blocks of 1 MiB over 0.0524288 GB a second: 20 ms each."""
    with copier_of(one_layer(), link_gbps=0.0524288) as copier:
        begun_s = monotonic()
        copier.submit([store(1, range(5), range(5)), store(2, [7], [7])])
        assert finish(copier, 1) == [1]
        assert 0.1 <= monotonic() - begun_s < 5.0
        assert finish(copier, 1) == [2]
        assert 0.12 <= monotonic() - begun_s < 5.0


def test_a_copy_says_how_long_it_was_on_the_link_itself() -> None:
    """Blocks of 1 MiB take 20 ms each. The second job waits for the first: that is not its own time."""
    with copier_of(one_layer(), link_gbps=0.0524288) as copier:
        copier.submit([store(1, range(5), range(5)), store(2, [7], [7])])
        ended: list[Ended] = []
        while len(ended) < 2:
            copier.wait(SOON_S)
            ended += copier.finished()
        assert [one.job for one in ended] == [1, 2]
        first, second = (one.seconds for one in ended)
        assert first > 0.099
        assert 0.019 < second < 0.1  # with the wait it would be 0.12; a busy machine takes longer than 0.02


def test_a_link_saves_no_time_up_while_it_is_idle() -> None:
    with copier_of(one_layer(), link_gbps=0.0524288) as copier:
        sleep(0.5)
        begun_s = monotonic()
        copier.submit([store(1, [0], [0])])
        finish(copier, 1)
        assert monotonic() - begun_s >= 0.02


def test_a_load_does_not_wait_behind_stores() -> None:
    with copier_of(one_layer(), link_gbps=0.0524288) as copier:
        copier.submit([store(1, [0], [0])])
        finish(copier, 1)
        copier.submit([store(2, range(20), range(1, 21)), load(3, [22], [0])])  # 400 ms and 20 ms
        assert finish(copier, 2) == [3, 2]


def test_jobs_of_a_direction_end_in_the_order_of_submission() -> None:
    with copier_of(one_layer()) as copier:
        copier.submit([store(id, range(id % 7 + 1), range(id % 7 + 1)) for id in range(300)])
        assert finish(copier, 300) == list(range(300))


def test_a_job_without_blocks_ends_too() -> None:
    with copier_of(one_layer(), link_gbps=1.0) as copier:
        copier.submit([store(1, [], []), load(2, [], [])])
        assert sorted(finish(copier, 2)) == [1, 2]


def test_the_engine_goes_on_while_a_copy_is_under_way() -> None:
    with copier_of(one_layer(), link_gbps=1e-4) as copier:
        copier.submit([store(1, [0], [0]), load(2, [1], [1])])  # ten seconds each
        copier.wait(0.05)
        assert copier.finished() == []


def test_waiting_ends_with_the_timeout_where_nothing_ends() -> None:
    with copier_of(one_layer()) as copier:
        begun_s = monotonic()
        copier.wait(0.05)
        assert 0.05 <= monotonic() - begun_s < 5.0
        assert copier.finished() == []


def test_waiting_ends_at_once_where_something_has_ended() -> None:
    with copier_of(one_layer()) as copier:
        copier.submit([store(1, [0], [0])])
        copier.wait(SOON_S)
        begun_s = monotonic()
        copier.wait(SOON_S)
        assert monotonic() - begun_s < 1.0
        assert [ended.job for ended in copier.finished()] == [1]
        assert copier.finished() == []


def test_closing_does_not_wait_for_the_link() -> None:
    with copier_of(one_layer(), link_gbps=1e-4) as copier:
        copier.submit([store(1, [0], [0]), store(2, [1], [1])])  # ten seconds each
        copier.wait(0.2)
        begun_s = monotonic()
        copier.close()
        assert monotonic() - begun_s < 5.0
        assert copier.finished() == []


def test_closing_drops_what_was_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = one_layer()
    begun, go_on = Event(), Event()

    def slow_copy(self: object, job: CopyJob) -> None:
        begun.set()
        assert go_on.wait(SOON_S)

    monkeypatch.setattr("tokencake.live.copier.cpu.CpuCopier._copy", slow_copy)
    with copier_of(layers) as copier:
        copier.submit([store(id, [id], [id]) for id in range(5)])
        assert begun.wait(SOON_S)
        Timer(0.1, go_on.set).start()
        copier.close()
        assert [ended.job for ended in copier.finished()] == [0]


@pytest.mark.parametrize("to_host", [True, False])
def test_a_copy_that_fails_is_told_instead_of_waited_for(monkeypatch: pytest.MonkeyPatch, to_host: bool) -> None:
    def failing(*arguments: object) -> None:
        raise RuntimeError("the disk of the tape is full\nand much more about it")

    with copier_of(one_layer()) as copier:
        copier.submit([store(1, [0], [0])])
        finish(copier, 1)
        monkeypatch.setattr("tokencake.live.copier.cpu.CpuCopier._copy", failing)
        copier.submit([CopyJob(2, to_host, (0,), (1,), None), CopyJob(3, to_host, (1,), (2,), None)])
        begun_s = monotonic()
        copier.wait(SOON_S)
        assert monotonic() - begun_s < SOON_S
        for _ in range(2):  # and it stays so
            with pytest.raises(EngineError, match=r"^a copy of KV blocks failed: the disk of the tape is full$"):
                copier.finished()


@pytest.mark.parametrize(
    "job",
    [store(1, [BLOCKS], [0]), store(1, [0], [SLOTS]), load(1, [-1], [0]), load(1, [0], [-1]), store(1, [0, 1], [0])],
)
def test_a_job_beyond_the_engines_memory_is_a_bug_of_ours(job: CopyJob) -> None:
    with copier_of(one_layer()) as copier, pytest.raises(AssertionError):
        copier.submit([job])


def test_bytes_of_a_block_are_those_of_all_layers() -> None:
    layers = as_registered(caches())
    total = sum(layer.untyped_storage().nbytes() for layer in layers.values())
    assert block_bytes(layers, BLOCKS) * BLOCKS == total
    make_copier(layers, BLOCKS, SLOTS, None, total // BLOCKS).close()
    with pytest.raises(EngineError, match=rf"{total // BLOCKS} bytes in the engine's tensors and 4096 in its"):
        make_copier(layers, BLOCKS, SLOTS, None, 4096)


def test_a_pool_beyond_all_memory_is_refused() -> None:
    with pytest.raises(EngineError, match=r"no memory for a host pool of .* GiB: ask for less host_gib"):
        make_copier(one_layer(), BLOCKS, 1 << 40, None)


def test_other_devices_are_refused() -> None:
    with pytest.raises(EngineError, match="'meta'"):
        make_copier({"layer": torch.empty(BLOCKS, 64, device="meta")}, BLOCKS, SLOTS, None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_not_slowed_down() -> None:
    with pytest.raises(EngineError, match="link_gbps"):
        make_copier({"layer": torch.empty(BLOCKS, 64, device="cuda")}, BLOCKS, SLOTS, 1.0)
