"""What is asked of a conversion, and what became of the rows: nothing is left out, ignored or assumed in silence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ..errors import TraceError
from ..files.fields import shown
from .fidelity import Fidelity
from .foreign import Entry
from .recorded_times import TimeUnit

MOST_NAMED = 20  # fields, and words on what was assumed
MOST_FIELDS = 1_000  # that are counted

BadRows: TypeAlias = Literal["skip", "keep", "fail"]


@dataclass(frozen=True, slots=True)
class ConversionOptions:
    """What the user says about a recording, where it does not say so itself, or wants done with its rows."""

    block_tokens: int | None = None  # of a block that has an id
    time_unit: TimeUnit | None = None
    ignored_fields: Set[str] = frozenset()
    bad_rows: BadRows = "skip"

    def about(self) -> dict[str, str | float | bool | None]:
        """What was said, for the header of the trace."""
        said: dict[str, str | float | bool | None] = {}
        if self.block_tokens is not None:
            said["block_tokens"] = self.block_tokens
        if self.time_unit is not None:
            said["time_unit"] = self.time_unit
        if self.ignored_fields:
            said["ignored_fields"] = " ".join(spelled(name) for name in sorted(self.ignored_fields))
        if self.bad_rows != "skip":
            said["bad_rows"] = self.bad_rows
        return said


@dataclass(frozen=True, slots=True)
class FieldLists:
    """What is known of an object's fields. Any other may change what a row means."""

    understood: Set[str]
    harmless: Set[str] = frozenset()


@dataclass(slots=True)
class Counted:
    """How many rows are so, and the first of them."""

    first: str
    rows: int = 1


@dataclass(slots=True)
class Conversion:
    """One conversion: what is asked of it, and what became of the rows that were read so far."""

    options: ConversionOptions = field(default_factory=ConversionOptions)
    rows: int = 0  # requests
    left_out: dict[str, Counted] = field(default_factory=dict)  # by what they are
    kept: dict[str, Counted] = field(default_factory=dict)  # bad rows whose prompts were kept
    ignored: dict[str, Counted] = field(default_factory=dict)  # by field
    unread: list[str] = field(default_factory=list)  # what lies in a folder and is no recording
    strangers: dict[str, Counted] = field(default_factory=dict)  # by field that is in no list
    models: set[str] = field(default_factory=set)
    assumed: dict[str, None] = field(default_factory=dict)  # in words, each once, as they came up
    fidelity: Fidelity = field(default_factory=Fidelity)

    def assume(self, words: str) -> None:
        """Takes note of how the recording was read, where it does not say so itself."""
        if len(self.assumed) < MOST_NAMED:
            self.assumed[words] = None

    def look_at(self, entry: Entry, known: FieldLists) -> None:
        """Counts the fields of `entry` that are in no list; `null` says nothing and counts as absent."""
        harmless = known.harmless - self.options.ignored_fields
        for name in sorted(entry.values.keys() - known.understood - harmless):
            if entry.has(name):
                counts = self.ignored if name in self.options.ignored_fields else self.strangers
                _count(counts, spelled(name), entry.place(spelled(name)))

    def refuse_strangers(self, source_format: str) -> None:
        """Raises TraceError for the fields that were counted and are not to be ignored."""
        if not self.strangers:
            return
        first, *others = sorted(self.strangers, key=lambda name: (-self.strangers[name].rows, name))
        found = self.strangers[first]
        named = ", ".join(f"{name} ({_rows(self.strangers[name])})" for name in others[:MOST_NAMED])
        also = f"; also {named}" if others else ""
        also += f" and {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
        raise TraceError(
            f"{found.first}: unknown field of {source_format}, which may change what a row means, in"
            f" {_rows(found)}{also}; --ignore-field NAME goes on without it"
        )

    def bad(self, kind: str, entry: Entry, name: str, expected: str, keep: bool = True) -> bool:
        """Takes note of a row that is no answered request: whether its prompt is to be kept, if there is one to keep.

        Raises TraceError if such rows are not wanted: `name` is the field that says so, `expected` what it should be.
        """
        if self.options.bad_rows == "fail":
            entry.refuse(name, f"{expected} (--bad-rows skip leaves such a row out)")
        keep = keep and self.options.bad_rows == "keep"
        _count(self.kept if keep else self.left_out, kind, entry.where)
        return keep

    def words(self) -> list[str]:
        """What became of the rows, a line each."""
        lines = list(self.assumed)
        if len(self.models) > 1:
            lines.append(f"{len(self.models)} models are taken for one, which serves all requests")
        for what, counts in (
            ("left out", self.left_out),
            ("kept, with one token of answer where none is recorded", self.kept),
        ):
            lines += [f"{what}: {number_of(kind, found)}" for kind, found in counts.items()]
        lines += [f"ignored: the field {name} in {_rows(found)}" for name, found in sorted(self.ignored.items())]
        unmet = sorted({spelled(name) for name in self.options.ignored_fields} - self.ignored.keys())
        lines += [f"ignored: the field {name}, which no row has" for name in unmet]
        if self.unread:
            lines.append(f"not read: {len(self.unread):,} other names in the folder (first: {self.unread[0]})")
        return lines + self.fidelity.words()


def known_entries(
    entries: Iterable[Entry], source_format: str, conversion: Conversion, look_at: Callable[[Entry], None]
) -> Iterator[Entry]:
    """The entries, as long as all their fields are known; the others are only counted, and then refused.

    `look_at` gives an entry, and what is inside it, to `Conversion.look_at`. Raises TraceError.
    """
    try:
        for entry in entries:
            look_at(entry)
            if not conversion.strangers:
                yield entry
    except TraceError:
        conversion.refuse_strangers(source_format)  # they came first
        raise
    conversion.refuse_strangers(source_format)


def answer_tokens(
    conversion: Conversion, entry: Entry, prompt: str, answer: str, failure: str | None = None
) -> int | None:
    """The tokens that a request answered; None if it is to be left out.

    `prompt` and `answer` are the fields of the two lengths, `failure` a field that says that the request failed. Raises
    TraceError for lengths that are none.
    """
    if _nothing(entry, prompt) and entry.has(prompt):
        conversion.bad("requests without a prompt", entry, prompt, "at least one token", keep=False)
        return None
    if failure is None and not _nothing(entry, answer):
        return entry.whole(answer, low=1)
    if failure is None:
        keep = conversion.bad("requests without an answer", entry, answer, "at least one token")
    else:
        keep = conversion.bad("failed or cancelled requests", entry, failure, "a request that was answered")
    return (1 if _nothing(entry, answer) else entry.whole(answer, low=1)) if keep else None


def _nothing(entry: Entry, field: str) -> bool:
    value = entry.values.get(field)
    return value is None or (type(value) is int and value == 0)


def number_of(kind: str, found: Counted) -> str:
    """How many rows are of a kind, and the first of them."""
    return f"{kind}: {found.rows:,} (first: {found.first})"


def spelled(name: str) -> str:
    """The name of a field as it fits into a line."""
    return name if name.isprintable() and 0 < len(name) <= 60 else shown(name)


def _count(counts: dict[str, Counted], name: str, place: str) -> None:
    if name in counts:
        counts[name].rows += 1
    elif len(counts) < MOST_FIELDS:
        counts[name] = Counted(place)


def _rows(found: Counted) -> str:
    return "1 row" if found.rows == 1 else f"{found.rows:,} rows"
