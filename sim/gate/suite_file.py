"""Suite files: `tokencake.toml`, or the table `[tool.tokencake]` of a `pyproject.toml`. See docs/check.md."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ...traces.errors import TokencakeError
from ...traces.fields import shown
from ...traces.vary import AS_IT_IS, parse_variation
from ..machine_file import DEFAULT_MACHINE
from ..trials.metric import check_judged, check_metric, higher_is_better
from .place import as_settings
from .suite import Case, Gate, Suite

SUITE_FILE = "tokencake.toml"
PYPROJECT = "pyproject.toml"
DEFAULT_GATES: Mapping[str, tuple[float, float]] = {  # relative, absolute: for a suite that names no metrics
    "app_latency_s.mean": (0.02, 0.0),
    "app_latency_s.p95": (0.05, 0.0),
    "makespan_s": (0.02, 0.0),
    "ttft_s.mean": (0.05, 0.0),
    "prefill_tokens.computed": (0.02, 0.0),
    "recomputed_tokens": (0.05, 1000.0),
    "preemptions": (0.05, 3.0),
    "uploads.late": (0.10, 3.0),
    "upload_idle_block_s": (0.10, 100.0),
    "critical_inversions": (0.10, 5.0),
}
DEFAULT_TOLERANCE = (0.02, 0.0)  # of a metric that is named without one


def find_suite(start: Path) -> Path:
    """The suite file of a folder, or of the nearest folder above it. Raises TokencakeError if there is none."""
    for folder in (start, *start.resolve().parents):
        if (folder / SUITE_FILE).is_file():
            return folder / SUITE_FILE
        if (folder / PYPROJECT).is_file() and _has_table(folder / PYPROJECT):
            return folder / PYPROJECT
    raise TokencakeError(
        f"{SUITE_FILE}: not here, nor in a folder above, nor [tool.tokencake] in {PYPROJECT}: "
        "`tokencake check --init` writes one"
    )


def load_suite(file: Path) -> Suite:
    """The suite of a file. Raises TokencakeError, in one line: the file, the key, and what was expected."""
    text, table = _read(file)
    if file.name == PYPROJECT:
        table = table.get("tool", {}).get("tokencake")
        if not isinstance(table, dict):
            raise TokencakeError(f"{file}: expected a table [tool.tokencake]")
    return _Reader(file, text).suite(table)


def _has_table(file: Path) -> bool:
    tool = _read(file)[1].get("tool", {})
    return isinstance(tool, dict) and "tokencake" in tool


def _read(file: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except OSError as error:
        raise TokencakeError(f"{file}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise TokencakeError(f"{file}: not TOML: {error}") from None


class _Wrong(Exception):
    """What was expected instead of a value."""


def _text(value: object) -> str:
    if isinstance(value, str) and value and value.isprintable():
        return value
    raise _Wrong("text")


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise _Wrong("true or false")


def _whole(low: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and low <= value < 2**31:
            return value
        raise _Wrong(f"a whole number, at least {low}")

    return check


def _number(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return float(value)
    raise _Wrong("a number, at least 0")


def _above_zero(value: object) -> float:
    if (number := _number(value)) > 0:
        return number
    raise _Wrong("a number above 0")


def _confidence(value: object) -> float:
    if 0.5 <= (number := _number(value)) < 1:
        return number
    raise _Wrong("a number from 0.5 to below 1")


def _one_of(*words: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if isinstance(value, str) and value in words:
            return value
        raise _Wrong(" or ".join(words))

    return check


def _settings(value: object) -> tuple[str, ...]:
    """`{ gpu_blocks = 3000 }`, or `["gpu_blocks=3000"]` as on the command line."""
    if isinstance(value, dict):
        return as_settings(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise _Wrong("a table of the machine's settings, such as { gpu_blocks = 3000 }")


def _variation(value: object) -> object:
    if value == "":
        return AS_IT_IS
    if not isinstance(value, str):
        raise _Wrong('text, such as "arrivals,tools"')
    return parse_variation(value)


def _metric(path: object) -> str:
    return check_metric(str(path))


def _judged_metric(path: object) -> str:
    return check_judged(str(path))


class Key(NamedTuple):
    """A key of a case: the field of `Case` that it fills, and what checks its value."""

    field: str
    check: Callable[[object], object]


CASE_KEYS: Mapping[str, Key] = {
    "trace": Key("trace", _text),
    "machine": Key("machine", _text),
    "settings": Key("settings", _settings),
    "policy": Key("policy", _text),
    "repeats": Key("repeats", _whole(1)),
    "vary": Key("variation", _variation),
    "seed": Key("seed", _whole(0)),
    "rate": Key("rate", _above_zero),
    "arrivals": Key("arrivals", _one_of("even", "poisson")),
    "skip_oversized": Key("skip_oversized", _switch),
}
RULE_KEYS: Mapping[str, Callable[[object], object]] = {
    "relative": _number,
    "absolute": _number,
    "not_worse_than": _text,
    "direction": _one_of("lower", "higher"),
}
LIVE_KEYS: Mapping[str, Callable[[object], object]] = {  # of an engine: fields of live.engine_options.EngineOptions
    "model": _text,
    "gpu_blocks": _whole(1),
    "block_tokens": _whole(1),
    "host_gib": _number,
    "link_gbps": _above_zero,
    "max_context_tokens": _whole(2),
    "step_budget_tokens": _whole(1),
    "max_running": _whole(1),
    "long_prefill_token_threshold": _whole(0),
    "dtype": _text,
    "load_format": _text,
    "tensor_parallel_size": _whole(1),
    "gpu_memory_utilization": _above_zero,
    "enforce_eager": _switch,
}
LIVE_RUN_KEYS: Mapping[str, Callable[[object], object]] = {  # what is simulated beside it, and how both are played
    "machine": _text,
    "repeats": _whole(2),
    "time_scale": _above_zero,
    "shrink": _whole(1),
}
SUITE_KEYS: Mapping[str, Callable[[object], object]] = {
    "baselines": _text,
    "budget_s": _above_zero,
    "confidence": _confidence,
}


class _Reader:
    """Checks the tables of one file."""

    def __init__(self, file: Path, text: str) -> None:
        self._file = file
        self._lines = text.splitlines()

    def suite(self, table: Mapping[str, object]) -> Suite:
        self._known(table, (*SUITE_KEYS, "defaults", "metrics", "cases"), "")
        about = {key: self._checked(check, table[key], key) for key, check in SUITE_KEYS.items() if key in table}
        defaults = self._defaults(table)
        written = self._table(table.get("cases", {}), "cases")
        if not written:
            self._refuse("cases", "expected at least one table [cases.NAME]")
        cases = tuple(self._case(name, self._table(case, f"cases.{name}"), defaults) for name, case in written.items())
        comparisons = sum(len(case.gates) for case in cases if case.repeats > 1)
        return Suite(self._file, cases, comparisons=max(1, comparisons), **about)

    def _defaults(self, table: Mapping[str, object]) -> dict[str, Any]:
        written = self._table(table.get("defaults", {}), "defaults")
        self._known(written, CASE_KEYS, "defaults.")
        gates = self._gates(table["metrics"], "metrics") if "metrics" in table else _default_gates()
        return {"machine": DEFAULT_MACHINE, "gates": gates, **self._fields(written, "defaults.")}

    def _fields(self, table: Mapping[str, object], prefix: str) -> dict[str, object]:
        return {
            key.field: self._checked(key.check, table[name], prefix + name)
            for name, key in CASE_KEYS.items()
            if name in table
        }

    def _case(self, name: str, table: Mapping[str, object], defaults: Mapping[str, Any]) -> Case:
        prefix = f"cases.{name}."
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            self._refuse(f"cases.{name}", "expected a name of letters, digits, dots, dashes and underscores")
        self._known(table, (*CASE_KEYS, "metrics", "live"), prefix)
        given = {**defaults, **self._fields(table, prefix)}
        for needed in ("trace", "policy"):
            if needed not in given:
                self._refuse(prefix + needed, "missing: expected it here or under [defaults]")
        gates = given["gates"] | self._gates(table.get("metrics", {}), f"{prefix}metrics")
        given["gates"] = tuple(gate for rules in gates.values() for gate in rules)
        live = self._live(table["live"], f"{prefix}live") if "live" in table else None
        return Case(name, **given, live=live, line=self._line_of(f"cases.{name}"))

    def _gates(self, value: object, where: str) -> dict[str, tuple[Gate, ...]]:
        """The rules of each metric, of which there may be one, or several, or none: then it is not gated."""
        gates: dict[str, tuple[Gate, ...]] = {}
        for metric, written in self._metrics(self._table(value, where), where):
            rules = written if isinstance(written, list) else [written]
            gates[metric] = tuple(self._gate(metric, rule, f"{where}.{metric}") for rule in rules)
        return gates

    def _metrics(self, table: Mapping[str, object], where: str, prefix: str = "") -> Iterator[tuple[str, object]]:
        """`"app_latency_s.p95" = {…}` and `app_latency_s.p95 = {…}` mean the same."""
        for key, value in table.items():
            path = prefix + key
            if isinstance(value, dict) and value and not value.keys() & RULE_KEYS.keys() and _only_tables(value):
                yield from self._metrics(value, where, f"{path}.")
            else:
                self._checked(_metric, path, f"{where}.{path}")
                yield path, value

    def _gate(self, metric: str, rule: object, where: str) -> Gate:
        table = self._table(rule, where)
        self._known(table, RULE_KEYS, f"{where}.")
        given = {key: self._checked(RULE_KEYS[key], value, f"{where}.{key}") for key, value in table.items()}
        if not {"relative", "absolute", "not_worse_than"} & given.keys():
            given["relative"], given["absolute"] = DEFAULT_GATES.get(metric, DEFAULT_TOLERANCE)
        if "direction" in given:
            higher = given["direction"] == "higher"
        else:
            higher = higher_is_better(self._checked(_judged_metric, metric, where))
        tolerance = (given.get("relative", 0.0), given.get("absolute", 0.0))
        return Gate(metric, higher, *tolerance, than=given.get("not_worse_than"))

    def _live(self, value: object, where: str) -> Mapping[str, Any]:
        table = self._table(value, where)
        known = {**LIVE_KEYS, **LIVE_RUN_KEYS}
        self._known(table, known, f"{where}.")
        if "model" not in table:
            self._refuse(f"{where}.model", "missing: expected a model's name or folder, or tiny")
        return {key: self._checked(known[key], value, f"{where}.{key}") for key, value in table.items()}

    def _checked(self, check: Callable[[object], Any], value: object, where: str) -> Any:
        try:
            return check(value)
        except _Wrong as expected:
            self._refuse(where, f"expected {expected}, got {shown(value)}")
        except TokencakeError as error:
            self._refuse(where, str(error))

    def _table(self, value: object, where: str) -> Mapping[str, object]:
        if isinstance(value, dict):
            return value
        self._refuse(where, f"expected a table, got {shown(value)}")

    def _known(self, table: Mapping[str, object], known: Collection[str], prefix: str) -> None:
        for key in table:
            if key not in known:
                near = get_close_matches(key, list(known), n=1)
                meant = f" (did you mean {near[0]}?)" if near else ""
                self._refuse(prefix + key, f"unknown key{meant}: expected one of {', '.join(known)}")

    def _line_of(self, table: str) -> int:
        """The line of a table's header, else the first."""
        for number, line in enumerate(self._lines, start=1):
            header = re.match(r"\s*\[\s*(?:tool\.tokencake\.)?([^\[\]]*?)\s*\]", line)
            if header and re.sub(r"[\"'\s]", "", header[1]) == table:
                return number
        return 1

    def _refuse(self, where: str, problem: str) -> NoReturn:
        raise TokencakeError(f"{self._file}: {where}: {problem}")


def _only_tables(table: Mapping[str, object]) -> bool:
    return all(isinstance(value, dict | list) for value in table.values())


def _default_gates() -> dict[str, tuple[Gate, ...]]:
    return {
        metric: (Gate(metric, higher_is_better(metric), relative, absolute),)
        for metric, (relative, absolute) in DEFAULT_GATES.items()
    }
