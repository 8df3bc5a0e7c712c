"""Whether what a policy returned is a plan, in every field. What is as it was in the last plan is not looked at."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import fields
from numbers import Integral
from types import MappingProxyType
from typing import Any, get_args

from ..traces.errors import PolicyFault
from .interface import EMPTY, NATIVE, Extent, Move, Plan, QueueOrder
from .ledger import Ledger
from .names import Names

EXTENTS = (*get_args(Extent), None)
LARGEST = 10**12  # of a number of blocks, and of a time in seconds: whatever is more is a mistake
LONGEST_SHOWN = 60  # characters of a value
PLAN_FIELDS = tuple(field.name for field in fields(Plan))
_PLAIN = frozenset({float, int, bool, type(None)})


def plain_plan(wanted: object) -> object:
    """A plan that nobody can change behind the engine's back: with a copy of its pins, and nothing of subclasses.

    What is no plan comes back as it is. Runs the policy's code: properties of subclasses, mappings, times.
    """
    if type(wanted) is Plan:
        if _is_plain(wanted):
            return wanted
    elif not isinstance(wanted, Plan):
        return wanted
    values = {name: getattr(wanted, name) for name in PLAN_FIELDS}
    values["wake_at_s"] = _plain_time(values["wake_at_s"])
    values["offload"] = _plain_moves(values["offload"])
    values["upload"] = _plain_moves(values["upload"])
    if isinstance(values["pin"], Mapping):
        pins = dict(values["pin"])
        if not _PLAIN.issuperset(map(type, pins.values())):
            pins = {name: _plain_time(until_s) for name, until_s in pins.items()}
        values["pin"] = MappingProxyType(pins)
    return Plan(**values)


def _is_plain(plan: Any) -> bool:
    return (
        plan.pin is EMPTY
        and type(plan.wake_at_s) in _PLAIN
        and (plan.offload is NATIVE.offload or _plain_moves(plan.offload) is plan.offload)
        and (plan.upload is NATIVE.upload or _plain_moves(plan.upload) is plan.upload)
    )


def _plain_time(value: object) -> object:
    """A time that is of a subclass (numpy has one), as Python's own float."""
    return float(value) if type(value) not in _PLAIN and isinstance(value, (float, int)) else value


def _plain_moves(moves: object) -> object:
    """Moves whose numbers of blocks are Python's own, where they are whole numbers of another kind (numpy's)."""
    if type(moves) is not tuple or all(type(move) is not Move or type(_blocks(move)) in _PLAIN for move in moves):
        return moves
    return tuple(map(_plain_move, moves))


def _blocks(move: Any) -> object:
    return move.blocks


def _plain_move(move: object) -> object:
    if type(move) is not Move:
        return move
    blocks = _blocks(move)
    return move._replace(blocks=int(blocks)) if type(blocks) not in _PLAIN and isinstance(blocks, Integral) else move


class PlanCheck:
    """Checks the plans of one policy. Raises `PolicyFault`, naming the field, what was expected and what was found."""

    def __init__(self, name: str, ledger: Ledger) -> None:
        self._name = name
        self._ledger = ledger
        self._last = NATIVE  # found to be right

    def check(self, plan: object, at_s: float) -> Plan:
        """The plan, if it is one. Calls and agents that it names must have been in the view once, if not now."""
        try:
            return self._checked(plan)
        except _Wrong as wrong:
            raise PolicyFault(f"policy {self._name}: at {at_s:.6f} s: {wrong}") from None

    def _checked(self, wanted: object) -> Plan:
        if not isinstance(wanted, Plan):
            raise _Wrong(f"plan() returned {_kind(wanted)}, expected a Plan")
        plan: Any = wanted  # nothing is known of its fields
        ledger = self._ledger
        last = NATIVE if plan is self._last else self._last  # the same plan again may have been written into
        view = ledger.view
        if plan.admit is not last.admit and plan.admit is not None and type(plan.admit) is not QueueOrder:
            _check_names("admit", plan.admit, view.waiting, ledger.calls_seen, "a call")
            if len(set(plan.admit)) != len(plan.admit):
                raise _Wrong(f"admit: expected each call once, got {_shown(_twice(plan.admit))} twice")
        if plan.preempt is not last.preempt:
            _check_names("preempt", plan.preempt, view.running, ledger.calls_seen, "a call")
        if plan.evict is not last.evict:
            _check_names("evict", plan.evict, view.agents, ledger.agents_seen, "an agent")
        if plan.offload is not last.offload:
            _check_moves("offload", plan.offload, view.agents, ledger.agents_seen)
        if plan.upload is not last.upload:
            _check_moves("upload", plan.upload, view.agents, ledger.agents_seen)
        if plan.cancel is not last.cancel:
            _check_names("cancel", plan.cancel, view.agents, ledger.agents_seen, "an agent")
        if plan.forget is not last.forget:
            _check_names("forget", plan.forget, view.agents, ledger.agents_seen, "an agent")
        if plan.pin is not EMPTY:
            _check_pins(plan.pin, view.agents, ledger.agents_seen)
        if plan.write_through is not last.write_through:
            _check_extent(plan.write_through)
        if plan.skip is not True and plan.skip is not False:
            raise _Wrong(f"skip: expected True or False, got {_shown(plan.skip)}")
        if plan.wake_at_s is not None and not _is_time(plan.wake_at_s):
            raise _Wrong(f"wake_at_s: expected a time in seconds or None, got {_shown(plan.wake_at_s)}")
        self._last = wanted
        return wanted


class _Wrong(Exception):
    """What is wrong with a plan."""


def _check_names(field: str, names: object, there: Mapping[str, object], seen: Names, what: str) -> None:
    """A tuple of ids. Most are in the view now; of the others, only what never was there is a mistake."""
    if type(names) is not tuple:
        raise _Wrong(f"{field}: expected a tuple of ids, got {_kind(names)}")
    for name in names:
        if type(name) is not str or (name not in there and name not in seen):
            raise _Wrong(f"{field}: expected {what} that was in the view, got {_shown(name)}")


def _check_moves(field: str, moves: object, there: Mapping[str, object], seen: Names) -> None:
    if type(moves) is not tuple:
        raise _Wrong(f"{field}: expected a tuple of Moves, got {_kind(moves)}")
    for place, move in enumerate(moves):
        where = f"{field}[{place}]"
        if type(move) is not Move:
            raise _Wrong(f"{where}: expected a Move, got {_shown(move)}")
        _check_move(where, move, there, seen)


def _check_move(where: str, move: Any, there: Mapping[str, object], seen: Names) -> None:
    _check_agent(f"{where}.agent", move.agent, there, seen)
    if type(move.blocks) is not int or not 0 <= move.blocks <= LARGEST:
        raise _Wrong(f"{where}.blocks: expected a number of blocks, got {_shown(move.blocks)}")
    if type(move.keep) is not bool:
        raise _Wrong(f"{where}.keep: expected True or False, got {_shown(move.keep)}")


def _check_pins(pins: object, there: Mapping[str, object], seen: Names) -> None:
    if not isinstance(pins, Mapping):
        raise _Wrong(f"pin: expected a mapping of agents' ids to times, got {_kind(pins)}")
    for name, until_s in pins.items():
        _check_agent("pin", name, there, seen)
        if not _is_time(until_s):
            raise _Wrong(f"pin[{_shown(name)}]: expected a time in seconds, got {_shown(until_s)}")


def _check_extent(extent: object) -> None:
    if extent is not None and not (type(extent) is str and extent in EXTENTS):
        raise _Wrong(f"write_through: expected {' or '.join(map(repr, EXTENTS))}, got {_shown(extent)}")


def _check_agent(where: str, name: object, there: Mapping[str, object], seen: Names) -> None:
    if type(name) is not str or (name not in there and name not in seen):
        raise _Wrong(f"{where}: expected an agent that was in the view, got {_shown(name)}")


def _is_time(value: object) -> bool:
    return isinstance(value, (float, int)) and value is not True and value is not False and -LARGEST <= value <= LARGEST


def _twice(names: tuple[str, ...]) -> str:
    return next(name for place, name in enumerate(names) if name in names[:place])


def _shown(value: object) -> str:
    """A value in a few characters. Nothing of the policy's own runs for it: of its types, only the name is shown."""
    if type(value) not in (str, int, float, bool, type(None)):
        return _kind(value)
    if isinstance(value, int) and abs(value) > LARGEST:
        return "a number that is too large"
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def _kind(value: object) -> str:
    kind = type(value)
    ours = kind.__module__ == "builtins" or not hasattr(builtins, kind.__name__)
    return kind.__name__ if ours else f"{kind.__module__}.{kind.__name__}"  # numpy's bool is not Python's
