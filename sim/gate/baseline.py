"""Baselines: what each case came to when somebody looked at it last and said that it is good.

`NAME.json` is for people, who review it as a diff: sorted, a value a line. `NAME.decisions.gz` beside it holds the
decisions of the first repeat, compressed, so that a check can show what was decided before: plans in full would make
the first file too long to be read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ...traces.console.interrupts import uninterrupted
from ...traces.errors import TokencakeError
from ...traces.files.fields import MAX_NAME, WrongField, flag
from ...traces.files.json_file import read_json
from ...traces.files.schema import (
    digest,
    inner,
    list_of,
    map_of,
    measured,
    nullable,
    one_of,
    plain_value,
    printable,
    record,
    ruled,
    whole_from,
)
from ...traces.files.source_file import check_file
from ...traces.files.whole_file import replacing, unwritable
from ...traces.format.reader import trace_digest
from ...traces.results.metric import metric_names
from ...traces.version import __version__
from ..machine.files import REQUIRED
from ..machine.machine import BELIEVABLE, RULES, Machine
from .case_run import DIGITS, CaseRun, Digests
from .decisions import StoredDecisions, packed, read_text, unpacked, write_bytes
from .suite.suite import Case, Suite

SCHEMA = "tokencake.baseline/1"
NOTHING_WRITTEN = "no baseline was written"  # what an interrupt has come before
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
    decisions: StoredDecisions | None = None  # of the first repeat; None if the file is not there


def inputs_of(suite: Suite, case: Case, machine: Machine) -> Inputs:
    """Raises TokencakeError if a file cannot be read."""
    file = suite.paths.policy_file(case.policy)
    policy = None if file is None else trace_digest(file)
    return Inputs(__version__, trace_digest(suite.paths.path(case.trace)), _as_read(machine.settings()), policy)


def baseline_of(case: Case, inputs: Inputs, repeats: Sequence[CaseRun]) -> Baseline:
    """What the repeats of a case, all of them well, came to.

    Of a single run all metrics are kept; of more, those that are gated.
    """
    paths = flat(repeats[0].metrics or {}) if case.repeats == 1 else [gate.metric for gate in case.gates]
    flattened = [flat(one.metrics or {}) for one in repeats]
    metrics = {path: tuple(one.get(path) for one in flattened) for path in paths}
    digests = tuple(one.digests for one in repeats if one.digests is not None)
    made = repeats[0].decisions
    return Baseline(_as_read(case.definition()), inputs, digests, metrics, StoredDecisions(len(made), made))


def flat(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float | None]:
    """Metrics by dotted paths."""
    found: dict[str, float | None] = {}
    for key, value in metrics.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def _as_read(table: Mapping[str, object]) -> dict[str, Any]:
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
    check_baseline_files(suite, case)
    path = baseline_file(suite, case)
    if not path.exists():
        raise TokencakeError(f"{path}: there is no baseline yet: `tokencake check --update` writes it")
    try:
        return old_baseline(suite, case)
    except TokencakeError as error:
        raise TokencakeError(f"{error}: {MEND}") from None


def check_baseline_files(suite: Suite, case: Case) -> None:
    """Raises TokencakeError for what lies in their places and is no file: to read it could take for ever."""
    for path in (baseline_file(suite, case), decisions_file(suite, case)):
        check_file(path, TokencakeError)


def old_baseline(suite: Suite, case: Case) -> Baseline:
    """As `read_baseline`; what it raises says what is wrong, and not how to mend it."""
    path, beside = baseline_file(suite, case), decisions_file(suite, case)
    found = read_json(path, _checked, TokencakeError)
    inputs, digests = Inputs(**found["inputs"]), tuple(Digests(**one) for one in found["digests"])
    baseline = Baseline(found["case"], inputs, digests, found["metrics"])
    _check_fresh(path, baseline, case)
    text = read_text(beside)
    if text is None:
        return baseline
    kept = unpacked(text, str(beside))
    if sha256(text.encode()).hexdigest() != found["decisions_sha256"]:
        raise TokencakeError(f"{beside}: is not the one that {path.name} was written with")
    return replace(baseline, decisions=kept)


def _known(path: object, field: str) -> None:
    if path not in metric_names():
        raise WrongField(field, "there is no such metric")


def _values(value: object, field: str) -> tuple[float | None, ...]:
    """A value for each repeat; of a single one, the value itself."""
    return tuple(_each(value, field)) if isinstance(value, list) else (_figure(value, field),)


_figure = nullable(measured)
_each = list_of(_figure)
_words = printable(4096)
_CASE = record(
    {
        **dict.fromkeys(("trace", "machine", "policy", "vary"), _words),
        "settings": list_of(_words),
        "repeats": whole_from(1),
        "seed": whole_from(0),
        "rate": _figure,
        "arrivals": one_of("even", "poisson"),
        "skip_oversized": flag,
    }
)
_MACHINE = record(  # the settings of an older version are fewer, and it may have had others
    {key: ruled(RULES[key].problem) for key in ("name", *REQUIRED)},
    {
        **{key: ruled(rule.problem) for key, rule in RULES.items()},
        "beliefs": record({}, {key: ruled(RULES[key].problem) for key in BELIEVABLE}),
    },
    others=plain_value,
)
_INPUTS = record(
    {
        "tokencake": _words,
        "trace_sha256": digest(64),
        "machine": _MACHINE,
        "policy_sha256": nullable(digest(64)),
    }
)
_RECORD = record(
    {
        "schema": one_of(SCHEMA),
        "case": _CASE,
        "inputs": _INPUTS,
        "digests": list_of(record(dict.fromkeys(Digests._fields, digest(DIGITS))), least=1),
        "decisions_sha256": digest(64),
        "metrics": map_of(_values, key=_known),
    }
)


def _checked(value: object, field: str) -> dict[str, Any]:
    """A check, see `traces.files.schema`: a baseline."""
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise WrongField(field, f"expected a baseline of schema {SCHEMA}")
    found: dict[str, Any] = _RECORD(value, field)
    repeats = found["case"]["repeats"]
    lists = {"digests": found["digests"], **{f"metrics.{path}": values for path, values in found["metrics"].items()}}
    for place, values in lists.items():
        if len(values) != repeats:
            raise WrongField(inner(field, place), f"expected a value for each of {repeats} repeats, got {len(values)}")
    return found


def _check_fresh(path: Path, baseline: Baseline, case: Case) -> None:
    definition = _as_read(case.definition())
    for key, value in definition.items():
        if (was := baseline.definition.get(key)) != value:
            _stale(path, f"{key} was {_told(was)} and is {_told(value)} in the suite")
    for gate in case.gates:
        if gate.than is None and gate.metric not in baseline.metrics:
            _stale(path, f"it has no {gate.metric}")


def _told(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= MAX_NAME else f"{text[:MAX_NAME]}..."


def _stale(path: Path, why: str) -> NoReturn:
    raise TokencakeError(f"{path}: stale: {why}")


def write_baselines(suite: Suite, baselines: Sequence[tuple[Case, Baseline]]) -> None:
    """Put all of them into the suite's folder at once: an interrupt leaves those that were there.

    Decisions that are the same stay in the file that holds them. Raises TokencakeError if a file cannot be written.
    """
    path, placed = suite.baselines_folder, False
    try:
        path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as placing, ExitStack() as writing:
            for path, content in _files(suite, baselines):
                writing.enter_context(replacing(path)).write(content)
            placing.enter_context(uninterrupted())
            placed = True
    except KeyboardInterrupt as interrupt:
        interrupt.add_note("all baselines were written" if placed else NOTHING_WRITTEN)
        raise
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
