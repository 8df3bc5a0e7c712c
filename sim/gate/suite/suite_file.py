"""Suite files: `tokencake.toml`, or the table `[tool.tokencake]` of a `pyproject.toml`. See docs/check.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from ....traces.errors import TokencakeError, TraceError
from ....traces.files.fields import MAX_NAME, WrongField, flag, shown
from ....traces.files.schema import Check, inner, list_of, number_from, one_of, printable, string, whole_from
from ....traces.files.source_file import check_file
from ....traces.files.toml_file import TomlFile, read_toml
from ....traces.generate.arrivals import LEAST_RATE, MOST_RATE
from ....traces.results.metric import MetricError, check_judged, check_metric, higher_is_better
from ....traces.results.run_counts import MOST_REPEATS, check_count
from ....traces.variants.scale import LEAST_FACTOR, MOST_FACTOR
from ....traces.variants.vary import AS_IT_IS, Variation, parse_variation
from ...machine.files import DEFAULT_MACHINE, flat_settings, setting_problem
from .suite import Case, Gate, Suite
from .suite_paths import as_settings

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
MOST_CASES = 1000
MOST_RULES = 100  # of a metric
MOST_SETTINGS = 100
LONGEST_TEXT = 4096  # characters: of a path, a policy with its options
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
    check_file(file, TokencakeError)
    read = read_toml(file, TokencakeError)
    table: object = read.table
    if file.name == PYPROJECT:
        tool = read.table.get("tool")
        table = tool.get("tokencake") if isinstance(tool, dict) else None
        if not isinstance(table, dict):
            raise TokencakeError(f"{file}: expected a table [tool.tokencake]")
    try:
        return _Reader(read).suite(table)
    except WrongField as wrong:
        raise TokencakeError(f"{file}: {wrong}") from None


def _has_table(file: Path) -> bool:
    tool = read_toml(file, TokencakeError).table.get("tool")
    return isinstance(tool, dict) and "tokencake" in tool


def _settings(value: object, field: str) -> tuple[str, ...]:
    """`{ gpu_blocks = 3000 }`, or `["gpu_blocks=3000"]` as on the command line."""
    if isinstance(value, list):
        return tuple(list_of(printable(LONGEST_TEXT), most=MOST_SETTINGS)(value, field))
    if not isinstance(value, dict):
        raise WrongField(
            field, f"expected a table of the machine's settings, such as {{ gpu_blocks = 3000 }}, got {shown(value)}"
        )
    settings = flat_settings(value)
    for key, one in settings.items():
        if problem := setting_problem(key, one):
            raise WrongField(field, problem)
    return as_settings(settings)


def _variation(value: object, field: str) -> Variation:
    if value == "":
        return AS_IT_IS
    try:
        return parse_variation(string(LONGEST_TEXT)(value, field))
    except TraceError as error:
        raise WrongField(field, str(error)) from None


def _metric(path: str, field: str) -> str:
    return _known_to(check_metric, path, field)


def _judged_metric(path: str, field: str) -> str:
    return _known_to(check_judged, path, field)


def _known_to(check: Callable[[str], str], path: str, field: str) -> str:
    try:
        return check(path)
    except MetricError as error:
        raise WrongField(field, str(error)) from None


class Key(NamedTuple):
    """A key of a case: the field of `Case` that it fills, and what checks its value."""

    field: str
    check: Check[object]


_text = printable(LONGEST_TEXT)
_tolerance = number_from(0, 1e18)
_above_zero = number_from(0, 1e9, above=True)

CASE_KEYS: Mapping[str, Key] = {
    "trace": Key("trace", _text),
    "machine": Key("machine", _text),
    "settings": Key("settings", _settings),
    "policy": Key("policy", _text),
    "repeats": Key("repeats", whole_from(1, MOST_REPEATS)),
    "vary": Key("variation", _variation),
    "seed": Key("seed", whole_from(0, 2**31 - 1)),
    "rate": Key("rate", number_from(LEAST_RATE, MOST_RATE)),
    "arrivals": Key("arrivals", one_of("even", "poisson")),
    "skip_oversized": Key("skip_oversized", flag),
}
RULE_KEYS: Mapping[str, Check[object]] = {
    "relative": _tolerance,
    "absolute": _tolerance,
    "not_worse_than": _text,
    "direction": one_of("lower", "higher"),
}
LIVE_KEYS: Mapping[str, Check[object]] = {  # of an engine: fields of live.client.engine_options.EngineOptions
    "model": _text,
    "gpu_blocks": whole_from(1, 10**9),
    "block_tokens": whole_from(1, 2**16),
    "host_gib": number_from(0, 1e6),
    "link_gbps": number_from(0, 1e6, above=True),
    "max_context_tokens": whole_from(2, 2**31 - 1),
    "step_budget_tokens": whole_from(1, 2**31 - 1),
    "max_running": whole_from(1, 10**6),
    "long_prefill_token_threshold": whole_from(0, 2**31 - 1),
    "dtype": _text,
    "load_format": _text,
    "tensor_parallel_size": whole_from(1, 10_000),
    "gpu_memory_utilization": number_from(0, 1, above=True),
    "attention_backend": _text,
    "asynchronous": flag,
    "compile": one_of("none", "graphs", "full"),
    "largest_graph_tokens": whole_from(1, 2**31 - 1),
    "model_runner": one_of("v1", "v2"),
    "stall_s": number_from(0, 1e9, above=True),
}
LIVE_RUN_KEYS: Mapping[str, Check[object]] = {  # what is simulated beside it, and how both are played
    "machine": _text,
    "repeats": whole_from(2, MOST_REPEATS),
    "time_scale": number_from(LEAST_FACTOR, MOST_FACTOR),
    "shrink": whole_from(1, 2**31 - 1),
}
SUITE_KEYS: Mapping[str, Check[object]] = {
    "baselines": _text,
    "budget_s": _above_zero,
    "policy_timeout_s": _above_zero,
    "confidence": number_from(0.5, 1, below=True),
}


class _Reader:
    """Checks the tables of one file. Whatever is wrong is a WrongField."""

    def __init__(self, file: TomlFile) -> None:
        self._file = file.path
        self._headers = {name.removeprefix("tool.tokencake."): line for name, line in file.headers().items()}

    def suite(self, value: object) -> Suite:
        table = _table(value, "")
        _check_known(table, (*SUITE_KEYS, "defaults", "metrics", "cases"), "")
        about: dict[str, Any] = {key: check(table[key], key) for key, check in SUITE_KEYS.items() if key in table}
        defaults = self._defaults(table)
        written = _table(table.get("cases", {}), "cases")
        if not 1 <= len(written) <= MOST_CASES:
            raise WrongField("cases", f"expected 1 to {MOST_CASES} tables [cases.NAME], got {len(written)}")
        cases = tuple(self._case(name, case, defaults) for name, case in written.items())
        runs = sum(case.repeats * (1 + len(case.rivals)) for case in cases)
        check_count(runs, "cases")
        comparisons = sum(len(case.gates) for case in cases if case.repeats > 1)
        return Suite(self._file, cases, comparisons=max(1, comparisons), **about)

    def _defaults(self, table: Mapping[str, object]) -> dict[str, Any]:
        written = _table(table.get("defaults", {}), "defaults")
        _check_known(written, CASE_KEYS, "defaults")
        gates = _gates(table["metrics"], "metrics") if "metrics" in table else _default_gates()
        return {"machine": DEFAULT_MACHINE, "gates": gates, **_fields(written, "defaults")}

    def _case(self, name: str, value: object, defaults: Mapping[str, Any]) -> Case:
        place = inner("cases", name)
        table = _table(value, place)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise WrongField(place, "expected a name of letters, digits, dots, dashes and underscores")
        _check_known(table, (*CASE_KEYS, "metrics", "live"), place)
        given = {**defaults, **_fields(table, place)}
        for needed in ("trace", "policy"):
            if needed not in given:
                raise WrongField(f"{place}.{needed}", "missing: expected it here or under [defaults]")
        gates = given["gates"] | _gates(table.get("metrics", {}), f"{place}.metrics")
        given["gates"] = tuple(gate for rules in gates.values() for gate in rules)
        live = _live(table["live"], f"{place}.live") if "live" in table else None
        return Case(name, **given, live=live, line=self._headers.get(f"cases.{name}", 1))


def _fields(table: Mapping[str, object], place: str) -> dict[str, object]:
    return {key.field: key.check(table[name], f"{place}.{name}") for name, key in CASE_KEYS.items() if name in table}


def _gates(value: object, place: str) -> dict[str, tuple[Gate, ...]]:
    """The rules of each metric, of which there may be one, or several, or none: then it is not gated."""
    gates: dict[str, tuple[Gate, ...]] = {}
    for metric, written in _metrics(_table(value, place), place):
        rules = written if isinstance(written, list) else [written]
        if len(rules) > MOST_RULES:
            raise WrongField(f"{place}.{metric}", f"expected at most {MOST_RULES} rules, got {len(rules)}")
        several = isinstance(written, list)
        places = (f"{place}.{metric}[{index}]" if several else f"{place}.{metric}" for index in range(len(rules)))
        gates[metric] = tuple(_gate(metric, rule, where) for rule, where in zip(rules, places, strict=True))
    return gates


def _metrics(table: Mapping[str, object], place: str, prefix: str = "") -> Iterator[tuple[str, object]]:
    """`"app_latency_s.p95" = {…}` and `app_latency_s.p95 = {…}` mean the same."""
    for key, value in table.items():
        path = prefix + key
        if isinstance(value, dict) and value and not value.keys() & RULE_KEYS.keys() and _only_tables(value):
            yield from _metrics(value, place, f"{path}.")
        else:
            yield _metric(path, inner(place, path)), value


def _gate(metric: str, rule: object, place: str) -> Gate:
    table = _table(rule, place)
    _check_known(table, RULE_KEYS, place)
    given: dict[str, Any] = {key: RULE_KEYS[key](value, f"{place}.{key}") for key, value in table.items()}
    if not {"relative", "absolute", "not_worse_than"} & given.keys():
        given["relative"], given["absolute"] = DEFAULT_GATES.get(metric, DEFAULT_TOLERANCE)
    said = given.get("direction")
    higher = higher_is_better(_judged_metric(metric, place)) if said is None else said == "higher"
    tolerance = (given.get("relative", 0.0), given.get("absolute", 0.0))
    return Gate(metric, higher, *tolerance, than=given.get("not_worse_than"))


def _live(value: object, place: str) -> Mapping[str, Any]:
    table = _table(value, place)
    known = {**LIVE_KEYS, **LIVE_RUN_KEYS}
    _check_known(table, known, place)
    if "model" not in table:
        raise WrongField(f"{place}.model", "missing: expected a model's name or folder, or tiny")
    return {key: known[key](one, f"{place}.{key}") for key, one in table.items()}


def _table(value: object, place: str) -> Mapping[str, object]:
    if isinstance(value, dict):
        return value
    raise WrongField(place, f"expected a table, got {shown(value)}")


def _check_known(table: Mapping[str, object], known: Collection[str], place: str) -> None:
    for key in table:
        if key not in known:
            near = get_close_matches(key[:MAX_NAME], list(known), n=1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise WrongField(inner(place, key), f"unknown key{meant}: expected one of {', '.join(known)}")


def _only_tables(table: Mapping[str, object]) -> bool:
    return all(isinstance(value, dict | list) for value in table.values())


def _default_gates() -> dict[str, tuple[Gate, ...]]:
    return {
        metric: (Gate(metric, higher_is_better(metric), relative, absolute),)
        for metric, (relative, absolute) in DEFAULT_GATES.items()
    }
