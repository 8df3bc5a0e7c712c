"""Looks whether objects have what the Protocols of `live.engine.vllm_surface` name, and take what methods are given."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Protocol, Union, get_args, get_origin, get_type_hints

from tokencake.live.engine import vllm_surface as surface

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
