"""Policies by name: our own, those that other packages bring, and classes in a user's file.

A new policy is one file and one row of `ROWS`.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, ModuleType, NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Union

from ..traces.apps import Application
from ..traces.errors import PolicyError
from ..traces.files.fields import MAX_NAME
from .boundary import CONSTRUCTOR, IMPORT, LISTENS_TO, Turn, listening, told
from .interface import EVERYTHING, Policy

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = "tokencake.policies"
DEFAULT_POLICIES = ("vllm", "tokencake")  # what is compared where nobody asks for others
FUTURE = "applications"  # the parameter of a constructor that takes the applications, true durations and all


class _Found(NamedTuple):
    """A policy, loaded."""

    made: Callable[..., Any]  # the first line of its docstring says what the policy does
    make: Callable[..., Any]
    options: Sequence[Callable[..., Any]]  # their annotated parameters are the options that `make` takes by name


def _plain(made: Callable[..., Any]) -> _Found:
    """A policy whose constructor takes its options."""
    return _Found(made, made, (made,))


class PolicyRow(NamedTuple):
    """A policy that has a name: a module of this package, which is loaded when it is asked for, and what is in it."""

    module: str
    made: str
    make: str | None = None  # None: the class itself, which takes its options
    options: tuple[str, ...] = ()

    def load(self) -> _Found:
        module = import_module(f".{self.module}", __package__)
        made = getattr(module, self.made)
        if self.make is None:
            return _plain(made)
        return _Found(made, getattr(module, self.make), [getattr(module, name) for name in self.options])


def _tokencake(make: str, made: str = "") -> PolicyRow:
    return PolicyRow("tokencake.policy", made or make, make, ("tokencake", "Options"))


ROWS: Mapping[str, PolicyRow] = MappingProxyType(
    {
        "vllm": PolicyRow("field.vllm", "Vllm"),
        "tokencake": _tokencake("tokencake", made="Tokencake"),
        "tokencake-space": _tokencake("tokencake_space"),
        "tokencake-time": _tokencake("tokencake_time"),
        "native-offload": PolicyRow("field.native_offload", "NativeOffload"),
        "prefetch-at-pause": PolicyRow("field.prefetch_at_pause", "PrefetchAtPause"),
        "infercept": PolicyRow("field.infercept", "InferCept"),
        "continuum": PolicyRow("field.continuum", "Continuum"),
        "autellix": PolicyRow("field.autellix", "Autellix"),
        "kvflow": PolicyRow("field.kvflow", "KvFlow"),
        "saga": PolicyRow("field.saga", "Saga"),
        "thunderagent": PolicyRow("field.thunderagent", "ThunderAgent"),
        "mori": PolicyRow("field.mori", "Mori"),
        "oracle": PolicyRow("field.oracle", "Oracle"),
    }
)


def policy_lines() -> list[tuple[str, str]]:
    """Name and one line about each policy: our own, then those of installed packages."""
    own = [(name, (row.load().made.__doc__ or "").partition("\n")[0].removesuffix(".")) for name, row in ROWS.items()]
    return own + [(name, f"{point.value} (installed)") for name, point in sorted(_installed().items())]


def load_policy(
    spec: str, *, seed: int = 0, applications: Sequence[Application] | None = None, registered_only: bool = False
) -> Policy:
    """A fresh policy from `NAME[:key=value,…]` or `path/to/file.py:Class[:key=value,…]`.

    A name is a row of `ROWS` or an entry point of group `tokencake.policies`. Options are parameters of the
    constructor, typed by its annotations: bool (on/off), int, float, str, a Literal's words, any of them or None. A
    constructor that has a parameter `seed` gets `seed`. One that has a parameter `applications` sees the future (see
    `is_bound`) and gets what will be played.

    With `registered_only` a file is refused: that is for specs that a file or a request brings, for data must not say
    which code runs. Raises `PolicyError`, in one line that names the culprit.
    """
    name, found, written = _find(spec, registered_only)
    options = _options(name, found, written)
    parameters = _parameters(name, found)
    if "seed" in parameters and "seed" not in options:
        options["seed"] = seed
    if FUTURE in parameters:
        if applications is None:
            raise PolicyError(f"policy {name}: sees the future: expected a simulation of a trace, there is none here")
        options[FUTURE] = applications
    with Turn(name, CONSTRUCTOR):
        policy = found.make(**options)
        plan, listens_to = getattr(policy, "plan", None), getattr(policy, listening(policy), None)
    if not callable(plan):
        raise PolicyError(f"policy {name}: expected a method plan(view), {type(policy).__name__} has none")
    if type(listens_to) is not frozenset or not listens_to <= EVERYTHING:
        raise PolicyError(f"policy {name}: listens_to: expected a frozenset of facts, got {listens_to!r}")
    return typing.cast(Policy, policy)


def is_bound(spec: str, registered_only: bool = False) -> bool:
    """Whether the policy sees the future: then it shows what could be gained, and nobody can run it."""
    name, found, _ = _find(spec, registered_only)
    return FUTURE in _parameters(name, found)


def is_ours(spec: str) -> bool:
    """Whether the policy is this package's own code, and nobody else's."""
    return not is_file(spec) and spec.partition(":")[0] in ROWS


def owner(spec: str) -> str:
    """Whose code the policy is: a file or a package; empty for this package's own."""
    if is_ours(spec):
        return ""
    file, mark, _ = spec.partition(".py:")
    return file + ".py" if mark else spec.partition(":")[0]


def is_file(spec: str) -> bool:
    """Whether the policy is a class in a user's file."""
    return ".py:" in spec


def policy_file(spec: str) -> Path | None:
    """The file of `path/to/file.py:Class`."""
    file, mark, _ = spec.partition(".py:")
    return Path(f"{file}.py") if mark else None


def options_of(spec: str) -> dict[str, str]:
    """A policy's options as they were asked for: `{"upload": "demand"}` of `tokencake:upload=demand`."""
    named = spec.rpartition(".py:")[2]  # a path may have colons, too
    written = named.partition(":")[2]
    pairs = (option.partition("=") for option in written.split(",") if option)
    return {key: value for key, _, value in pairs}


# -- finding


def _find(spec: str, registered_only: bool) -> tuple[str, _Found, str]:
    """The policy that a spec means, and its options as they are written."""
    if registered_only and (is_file(spec) or spec.endswith(".py")):
        raise PolicyError(f"policy {spec}: data may name registered policies only: give this one with --policy")
    file, colon, rest = _split_file(spec)
    if colon:
        name, _, written = rest.partition(":")
        made = _class_in(Path(file), name)
        return f"{file}:{name}", _plain(made), written
    name, _, written = spec.partition(":")
    row = ROWS.get(name)
    if row is not None:
        return name, row.load(), written
    point = _installed().get(name)
    if point is not None:
        made = _loaded(point)
        return name, _plain(made), written
    known = [known for known, _ in policy_lines()]
    raise PolicyError(
        f"unknown policy {name[:MAX_NAME]!r}{_near(name, known)}: known are {', '.join(known)}, and file.py:Class"
    )


def _split_file(spec: str) -> tuple[str, str, str]:
    """`path/file.py`, a colon, what follows; without a file the colon is empty."""
    if spec.endswith(".py"):
        raise PolicyError(f"policy {spec}: expected {spec}:Class, the name of a class in the file")
    file, mark, rest = spec.partition(".py:")
    return (file + ".py", ":", rest) if mark else (spec, "", "")


def _class_in(path: Path, name: str) -> Callable[..., Any]:
    """A class that is defined in the file: what the file only imports is none of it, and is never called."""
    if not path.is_file():
        raise PolicyError(f"policy {path}:{name}: there is no file {str(path)!r}")
    module = _module(path)
    with Turn(f"{path}:{name}", IMPORT):  # a metaclass may have its say
        classes = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module.__name__
        }
    if name not in classes:
        known = f"it has {', '.join(classes)}" if classes else "it has no class"
        raise PolicyError(f"policy {path}:{name}: no class {name!r} in the file{_near(name, list(classes))}: {known}")
    _check_class(f"{path}:{name}", classes[name])
    return classes[name]


def _check_class(name: str, made: Callable[..., Any]) -> None:
    """Looks at a class before anything of it is called. What makes a policy and is no class is looked at afterwards."""
    if not isinstance(made, type):
        return
    if not callable(inspect.getattr_static(made, "plan", None)):
        raise PolicyError(f"policy {name}: expected a method plan(view), {made.__name__} has none")
    annotated = {attribute for base in made.__mro__ for attribute in inspect.get_annotations(base)}
    declared = not annotated.isdisjoint(LISTENS_TO)
    if not declared and inspect.getattr_static(made, listening(made), None) is None:
        raise PolicyError(
            f"policy {name}: listens_to: expected in the class itself, {made.__name__} has none: write"
            " `listens_to = frozenset({CallArrived})`, with the facts that it is asked after, right below"
            f" `class {made.__name__}`, or `listens_to: frozenset[type]` there if __init__ sets it"
        )


def _module(path: Path) -> ModuleType:
    name = f"tokencake_policy_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        with Turn(f"file {path}", IMPORT):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _installed() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points  # what only names of others need

    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name not in ROWS}


def _loaded(point: EntryPoint) -> Callable[..., Any]:
    with Turn(f"{point.name} ({point.value})", IMPORT):
        made: Any = point.load()
    if not callable(made):
        raise PolicyError(f"policy {point.name}: {point.value}: expected a class, got {type(made).__name__}")
    _check_class(point.name, made)
    return typing.cast(Callable[..., Any], made)


# -- options


def _parameters(name: str, found: _Found) -> dict[str, Any]:
    """What can be given by name, and its type."""
    try:
        signatures = [inspect.signature(made, eval_str=True) for made in found.options]
    except (ValueError, NameError, TypeError, SyntaxError) as error:
        raise PolicyError(f"policy {name}: its constructor's annotations cannot be read: {told(error)}") from error
    parameters = [parameter for signature in signatures for parameter in signature.parameters.values()]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {parameter.name: parameter.annotation for parameter in parameters if parameter.kind in named}


def _options(name: str, found: _Found, written: str) -> dict[str, Any]:
    if not written:
        return {}
    known = {key: kind for key, kind in _parameters(name, found).items() if key != FUTURE}
    options: dict[str, Any] = {}
    for item in written.split(","):
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise PolicyError(f"policy {name}: option {item!r}: expected key=value")
        if key not in known:
            listed = ", ".join(known) if known else "none"
            raise PolicyError(f"policy {name}: unknown option {key!r}{_near(key, list(known))}: known are {listed}")
        if key in options:
            raise PolicyError(f"policy {name}: option {key!r}: given twice")
        options[key] = _value(name, key, text, known[key])
    return options


def _value(name: str, key: str, text: str, kind: Any) -> object:
    """The text as a value of this type."""
    read, expected = _reader(kind)
    try:
        return read(text)
    except ValueError:
        raise PolicyError(f"policy {name}: option {key}: expected {expected}, got {text!r}") from None


SWITCH = MappingProxyType(
    {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}
)


def _reader(kind: Any) -> tuple[Callable[[str], object], str]:
    """How to read a value of this type, and what to call it. A parameter without an annotation is text."""
    if kind is bool:
        return _switch, "on or off"
    if kind is int:
        return int, "a whole number"
    if kind is float:
        return float, "a number"
    if kind is str or kind is inspect.Parameter.empty:
        return str, "text"
    if typing.get_origin(kind) is Literal:
        words = typing.get_args(kind)
        return partial(_word, words), " or ".join(str(word) for word in words)
    if typing.get_origin(kind) in (Union, UnionType):
        kinds = [part for part in typing.get_args(kind) if part is not NoneType]
        readers = [_reader(part) for part in kinds]
        return partial(_any, [read for read, _ in readers]), " or ".join(expected for _, expected in readers)
    return _unreadable, f"nothing from the command line (it is a {getattr(kind, '__name__', kind)})"


def _switch(text: str) -> bool:
    if text.lower() not in SWITCH:
        raise ValueError
    return SWITCH[text.lower()]


def _word(words: tuple[object, ...], text: str) -> object:
    for word in words:
        if str(word) == text:
            return word
    raise ValueError


def _any(readers: list[Callable[[str], object]], text: str) -> object:
    for read in readers:
        try:
            return read(text)
        except ValueError:
            continue
    raise ValueError


def _unreadable(text: str) -> object:
    raise ValueError


# -- words


def _near(name: str, known: list[str]) -> str:
    from difflib import get_close_matches  # only an error needs it

    near = get_close_matches(name, known, n=3)
    return f" (near: {', '.join(near)})" if near else ""
