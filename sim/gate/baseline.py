"""Baselines: what each case came to when somebody looked at it last and said that it is good.

`NAME.json` is for people, who review it as a diff: sorted, a value a line. `NAME.decisions.gz` beside it holds the
decisions of the first repeat, compressed, so that a check can show what was decided before: plans in full would make
the first file too long to be read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ... import __version__
from ...traces.errors import TokencakeError
from ...traces.reader import trace_digest
from ...traces.replacing import replacing, unwritable
from ..interrupts import uninterrupted
from ..machine import Machine
from .decisions import Kept, packed, read_text, unpacked, write_bytes
from .suite import Case, Suite
from .witness import Digests, Witness

SCHEMA = "tokencake.baseline/1"
MEND = "`tokencake check --update` writes it anew"


class Inputs(NamedTuple):
    """What a run depends on beside its definition. When it changes, the figures may."""

    tokencake: str  # the version
    trace_sha256: str
    machine: Mapping[str, object]  # all of its settings
    policy_sha256: str | None  # of the policy's file, if it is the user's own


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a case came to."""

    definition: Mapping[str, object]
    inputs: Inputs
    digests: tuple[Digests, ...]  # of each repeat
    metrics: Mapping[str, tuple[float | None, ...]]  # by dotted path, a value a repeat
    decisions: Kept | None = None  # of the first repeat; None if the file is not there


def inputs_of(suite: Suite, case: Case, machine: Machine) -> Inputs:
    """Raises TokencakeError if a file cannot be read."""
    file = suite.place.policy_file(case.policy)
    policy = None if file is None else trace_digest(file)
    return Inputs(__version__, trace_digest(suite.place.path(case.trace)), _plain(machine.settings()), policy)


def baseline_of(case: Case, inputs: Inputs, repeats: Sequence[Witness]) -> Baseline:
    """What the repeats of a case, all of them well, came to.

    Of a single run all metrics are kept; of more, those that are gated.
    """
    paths = flat(repeats[0].metrics or {}) if case.repeats == 1 else [gate.metric for gate in case.gates]
    flattened = [flat(one.metrics or {}) for one in repeats]
    metrics = {path: tuple(one.get(path) for one in flattened) for path in paths}
    digests = tuple(one.digests for one in repeats if one.digests is not None)
    made = repeats[0].decisions
    return Baseline(_plain(case.definition()), inputs, digests, metrics, Kept(len(made), made))


def flat(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float | None]:
    """Metrics by dotted paths."""
    found: dict[str, float | None] = {}
    for key, value in metrics.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def _plain(table: Mapping[str, object]) -> dict[str, Any]:
    """As it is read back from a file."""
    plain: dict[str, Any] = json.loads(json.dumps(table))
    return plain


# -- files


def baseline_file(suite: Suite, case: Case) -> Path:
    return suite.baselines_folder / f"{case.name}.json"


def decisions_file(suite: Suite, case: Case) -> Path:
    return suite.baselines_folder / f"{case.name}.decisions.gz"


def read_baseline(suite: Suite, case: Case) -> Baseline:
    """The baseline of a case. Raises TokencakeError if there is none, or it is damaged, or of another case."""
    path = baseline_file(suite, case)
    record = _record(path)
    try:
        baseline = _parsed(record, case)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise TokencakeError(f"{path}: expected a baseline of schema {SCHEMA}: {MEND}") from None
    _check_fresh(path, baseline, case)
    text = read_text(decisions_file(suite, case))
    if text is None:
        return baseline
    if sha256(text.encode()).hexdigest() != record["decisions_sha256"]:
        raise TokencakeError(f"{decisions_file(suite, case)}: is not the one that {path.name} was written with: {MEND}")
    kept = unpacked(text, str(decisions_file(suite, case)))
    return Baseline(baseline.definition, baseline.inputs, baseline.digests, baseline.metrics, kept)


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TokencakeError(f"{path}: there is no baseline yet: `tokencake check --update` writes it") from None
    except OSError as error:
        raise TokencakeError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, RecursionError) as error:
        raise TokencakeError(f"{path}: not JSON: {error}: {MEND}") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise TokencakeError(f"{path}: expected a baseline of schema {SCHEMA}: {MEND}")
    return record


def _parsed(record: Mapping[str, Any], case: Case) -> Baseline:
    inputs = Inputs(**record["inputs"])
    repeats = record["case"]["repeats"]
    metrics = {path: _values(value) for path, value in record["metrics"].items()}
    digests = tuple(Digests(**one) for one in record["digests"])
    if len(digests) != repeats or any(len(values) != repeats for values in metrics.values()):
        raise ValueError
    if not isinstance(inputs.machine, dict) or not isinstance(record["decisions_sha256"], str):
        raise ValueError
    return Baseline(dict(record["case"]), inputs, digests, metrics)


def _values(value: object) -> tuple[float | None, ...]:
    values = value if isinstance(value, list) else [value]
    if all(one is None or (isinstance(one, int | float) and not isinstance(one, bool)) for one in values):
        return tuple(values)
    raise ValueError


def _check_fresh(path: Path, baseline: Baseline, case: Case) -> None:
    definition = _plain(case.definition())
    for key, value in definition.items():
        if (was := baseline.definition.get(key)) != value:
            _stale(path, f"{key} was {json.dumps(was)} and is {json.dumps(value)} in the suite")
    for gate in case.gates:
        if gate.than is None and gate.metric not in baseline.metrics:
            _stale(path, f"it has no {gate.metric}")


def _stale(path: Path, why: str) -> NoReturn:
    raise TokencakeError(f"{path}: stale: {why}: {MEND}")


def write_baselines(suite: Suite, baselines: Sequence[tuple[Case, Baseline]]) -> None:
    """Put all of them into the suite's folder at once: an interrupt leaves those that were there.

    Decisions that are the same stay in the file that holds them. Raises TokencakeError if a file cannot be written.
    """
    path = suite.baselines_folder
    try:
        path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as placing, ExitStack() as writing:
            for path, content in _files(suite, baselines):
                writing.enter_context(replacing(path)).write(content)
            placing.enter_context(uninterrupted())
    except OSError as error:
        raise unwritable(path, error) from None


def _files(suite: Suite, baselines: Sequence[tuple[Case, Baseline]]) -> Iterator[tuple[Path, bytes]]:
    for case, baseline in baselines:
        assert baseline.decisions is not None
        text = packed(baseline.decisions.decisions)
        if _text_or_none(decisions_file(suite, case)) != text:
            yield decisions_file(suite, case), write_bytes(text)
        yield baseline_file(suite, case), _record_text(baseline, sha256(text.encode()).hexdigest()).encode()


def _text_or_none(path: Path) -> str | None:
    """The text of a decisions file, None if there is none that can be read."""
    try:
        return read_text(path)
    except TokencakeError:
        return None


def _record_text(baseline: Baseline, decisions_sha256: str) -> str:
    record = {
        "schema": SCHEMA,
        "case": baseline.definition,
        "inputs": baseline.inputs._asdict(),
        "digests": [one._asdict() for one in baseline.digests],
        "decisions_sha256": decisions_sha256,
        "metrics": {
            path: values[0] if len(baseline.digests) == 1 else list(values) for path, values in baseline.metrics.items()
        },
    }
    return _pretty(record) + "\n"


def _pretty(value: object, indent: str = "") -> str:
    """JSON with sorted keys: a field a line, and what a list holds without line breaks in it."""
    if isinstance(value, Mapping) and value:
        inner = indent + "  "
        lines = (f"{inner}{json.dumps(key)}: {_pretty(value[key], inner)}" for key in sorted(value))
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        inner = indent + "  "
        lines = (inner + json.dumps(item, sort_keys=True) for item in value)
        return "[\n" + ",\n".join(lines) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)
