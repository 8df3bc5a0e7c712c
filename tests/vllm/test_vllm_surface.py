"""The installed vLLM has each attribute that `live.engine.vllm_surface` names, and takes what methods are given."""

from __future__ import annotations

import inspect
import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from types import NoneType, UnionType
from typing import Annotated, Any, Protocol, Union, get_args, get_origin, get_type_hints

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from random_clients import machine
from virtual_engine import Virtual
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.core_client import AsyncMPClient
from vllm.v1.metrics.loggers import StatLoggerManager
from vllm.v1.metrics.stats import IterationStats
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.simple_kv_offload import cuda_mem_ops

from tokencake.live.client.engine_options import EngineOptions
from tokencake.live.client.in_process import InProcess
from tokencake.live.engine import vllm_surface as surface
from tokencake.live.engine.control.versions import check_vllm

PROTOCOLS = {kind for kind in vars(surface).values() if inspect.isclass(kind) and Protocol in kind.__bases__}
NOT_MEMBERS = {"__init__", "__subclasshook__"}  # every Protocol has these
Version = tuple[int, ...]


class Walk:
    """Looks at vLLM's objects as their Protocols say, and at those that they hold. `missing` is what is not there."""

    def __init__(self, version: str) -> None:
        self.missing: list[str] = []
        self.seen: set[type] = set()
        self._version = numbers(version)

    def look(self, protocol: type, found: Any) -> None:
        """`found` is to be such an object, or a class of which the Protocol names methods alone."""
        self.seen.add(protocol)
        hints = get_type_hints(protocol, include_extras=True)
        for name in members(protocol):
            method = inspect.getattr_static(protocol, name, None)
            if isinstance(method, property):
                hints |= {name: get_type_hints(method.fget, include_extras=True)["return"]}
            hint = hints.get(name)
            if self._expected(hint) not in (None, hasattr(found, name)):
                self.missing.append(f"{name_of(found)}.{name}, of {protocol.__name__}")
            elif inspect.isfunction(method):
                self._check_arguments(protocol, name, method, found)
            elif hasattr(found, name) and not inspect.isclass(found):
                for held, value in held_by(hint, getattr(found, name)):
                    self.look(held, value)

    def _expected(self, hint: Any) -> bool | None:
        """Whether this version has it; None if that is not known."""
        if get_origin(hint) is not Annotated:
            return True
        version, having, lacking = self._version, *map(numbers, get_args(hint)[1])
        newer = having > lacking
        if version == having or (version > having) == newer:
            return True
        if version == lacking or (version < lacking) == newer:
            return False
        return None

    def _check_arguments(self, protocol: type, name: str, method: Any, found: Any) -> None:
        """vLLM's method takes what the Protocol's takes."""
        try:
            theirs = inspect.signature(getattr(found, name))
        except ValueError:  # of a method that is written in C, it is not known
            return
        ours = list(inspect.signature(method).parameters.values())[0 if inspect.isclass(found) else 1 :]
        positional = [one for one in ours if one.kind is one.POSITIONAL_ONLY]
        named = {one.name: None for one in ours if one.kind is one.POSITIONAL_OR_KEYWORD and one.name != "self"}
        try:
            theirs.bind(*([None] if inspect.isclass(found) else []), *[None for _ in positional], **named)
        except TypeError as error:
            self.missing.append(f"{name_of(found)}.{name}, of {protocol.__name__}: {error}")


def members(protocol: type) -> list[str]:
    """The names that a Protocol's own body has, those of attributes and those of methods."""
    methods = [
        name for name, value in vars(protocol).items() if inspect.isfunction(value) or isinstance(value, property)
    ]
    return [name for name in (*protocol.__annotations__, *methods) if name not in NOT_MEMBERS]


def held_by(hint: Any, value: Any) -> Iterator[tuple[type, Any]]:
    """The Protocols in a type, each with an object that it is about, as far as there is one."""
    if hint in PROTOCOLS:
        yield hint, value
    elif get_origin(hint) in (Union, UnionType):
        for one in get_args(hint):
            if value is not None and one is not NoneType:
                yield from held_by(one, value)
    elif get_origin(hint) is Annotated:
        yield from held_by(get_args(hint)[0], value)
    elif isinstance(value, Collection) and not isinstance(value, str):
        elements = value.values() if isinstance(value, Mapping) else value
        for element in list(elements)[:1]:
            yield from held_by(get_args(hint)[-1] if get_args(hint) else None, element)


def name_of(found: Any) -> str:
    """That of vLLM's class."""
    return found.__name__ if inspect.isclass(found) else type(found).__name__


def numbers(version: str) -> Version:
    return tuple(int(part) for part in version.split(".")[:2])


@pytest.fixture(scope="module")
def walk() -> Walk:
    """Through everything that is named."""
    walk = Walk(check_vllm())
    through_a_scheduler(walk)
    through_an_engine(walk)
    through_classes(walk)
    return walk


def through_a_scheduler(walk: Walk) -> None:
    """One that has a request running, and one waiting."""
    engine = Virtual(replace(machine(random.Random(0), asynchronous=True), max_running=1))
    for name in ("r1", "r2"):
        engine.add(name, [1, 2, 3], 2, 0.0, {})
    engine._schedule()
    walk.look(surface.VllmScheduler, engine.scheduler)
    walk.look(surface.VllmKVCacheBlocks, engine.scheduler.kv_cache_manager.get_blocks("r1"))
    walk.look(surface.VllmConnectorOutput, KVConnectorOutput())
    flight = engine.flights.popleft()
    walk.look(surface.VllmSchedulerOutput, flight.output)
    (of_client,) = engine.scheduler.update_from_output(flight.output, engine._run(flight)).values()
    walk.look(surface.VllmOutputs, of_client)


def through_an_engine(walk: Walk) -> None:
    """A tiny one, which answers a request."""
    with InProcess(EngineOptions(model="tiny", gpu_blocks=8)) as engine:
        llm = engine._engine.llm
        walk.look(surface.VllmKVCacheConfig, engine.scheduler.kv_cache_config)
        walk.look(surface.VllmLLMEngine, llm)
        engine._engine.add("r1", [1, 2, 3], 1, {}, 0.0)
        (answer,) = [output for _ in range(2) for output in llm.step()]
        walk.look(surface.VllmRequestOutput, answer)


def through_classes(walk: Walk) -> None:
    """Methods of ours that vLLM has to call, and what no engine without workers has."""
    walk.look(surface.VllmSchedulerHooks, AsyncScheduler)
    walk.look(surface.VllmConnectorHooks, KVConnectorBase_V1)
    walk.look(surface.VllmStatsHooks, StatLoggerManager)
    walk.look(surface.VllmIterationStats, IterationStats())
    walk.look(surface.VllmAsyncCoreClient, AsyncMPClient)
    walk.look(surface.VllmCudaMemOps, cuda_mem_ops)
    made = dict.fromkeys(inspect.unwrap(EngineCoreProc.__init__).__code__.co_names)
    walk.look(surface.VllmEngineCoreProcess, type("EngineCoreProc", (), made))


@pytest.mark.slow
def test_vllm_has_what_is_leaned_on(walk: Walk) -> None:
    assert not walk.missing


@pytest.mark.slow
def test_the_walk_comes_to_everything_that_is_named(walk: Walk) -> None:
    assert {kind.__name__ for kind in PROTOCOLS - walk.seen} == set()


class Renamed(Protocol):
    there: int
    gone: int
    new: Annotated[int, surface.Varies(having="0.31", lacking="0.29")]
    old: Annotated[int, surface.Varies(having="0.29", lacking="0.31")]

    def takes(self, one: int, other: int, /) -> None: ...


class Vllm:
    there = new = 1

    def takes(self, one: int) -> None: ...


def test_what_vllm_renames_is_found_by_its_name() -> None:
    walk = Walk("0.32.0")
    walk.look(Renamed, Vllm())
    gone, takes = walk.missing
    assert gone == "Vllm.gone, of Renamed"
    assert takes.startswith("Vllm.takes, of Renamed: too many positional arguments")


@pytest.mark.parametrize(("version", "missing"), [("0.28.1", ["new", "old"]), ("0.30", []), ("0.32", [])])
def test_versions_differ(version: str, missing: list[str]) -> None:
    """`new` is there and `old` is not: as in 0.31 and later. Of 0.30 it is not known."""
    walk = Walk(version)
    walk.look(Renamed, Vllm())
    assert [f"Vllm.{name}, of Renamed" for name in missing] == [line for line in walk.missing if "gone" not in line][
        :-1
    ]
