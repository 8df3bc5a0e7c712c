"""Traces that others recorded, as applications: one function, and one row a format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ..apps import Application
from ..errors import TraceError
from ..generate.arrivals import ArrivalProcess, retime
from .agentic_coding import CONVERSATION, REQUEST, SUBAGENT, from_agentic_coding
from .azure import FIELDS as AZURE_FIELDS
from .azure import csv_rows, from_azure
from .conversion import Conversion, FieldLists, number_of
from .foreign import Entry
from .foreign_json import json_objects
from .mooncake import FIELDS as MOONCAKE_FIELDS
from .mooncake import from_mooncake

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
COMPRESSED_SUFFIXES = (".gz", ".xz", ".zst")


class Format(NamedTuple):
    """How recordings of one kind are read."""

    suffixes: tuple[str, ...]  # of the files of a folder that are read
    entries: Callable[[Path], Iterator[Entry]]  # of one file
    applications: Callable[[Iterable[Entry], Conversion], Iterator[Application]]
    fields: tuple[FieldLists, ...]  # of each kind of object
    blocks: bool = True  # whether content is given by the ids of blocks


FORMATS: Mapping[str, Format] = {
    "agentic-coding": Format(
        JSON_SUFFIXES,
        partial(json_objects, file_is_first=True),
        from_agentic_coding,
        (CONVERSATION, REQUEST, SUBAGENT),
    ),
    "mooncake": Format(JSON_SUFFIXES, json_objects, from_mooncake, (MOONCAKE_FIELDS,)),
    "azure": Format((".csv",), csv_rows, from_azure, (AZURE_FIELDS,), blocks=False),
}

# Recordings that say nothing about when conversations begin get one a minute. A conversation of the public coding
# traces keeps its model busy for 433 s on average, so about 7 calls are then in flight.
DEFAULT_RATES: Mapping[str, float] = {"agentic-coding": 1 / 60}


def convert(
    path: str | Path,
    source_format: str,
    rate: float | None = None,
    arrivals: ArrivalProcess = "even",
    seed: int = 0,
    conversion: Conversion | None = None,
) -> Iterator[Application]:
    """The applications of a recorded trace, in order of arrival, as a stream.

    `path` is a file, compressed or not, `-` for standard input, or a folder, whose files are read in the order of their
    names. `source_format` is a key of `FORMATS`. With a `rate` (applications a second) they arrive evenly or as a
    Poisson process instead of as recorded; coding conversations, whose starts were not recorded, arrive at
    `DEFAULT_RATES`. `conversion` says what to do with rows that are not plain, and hears what became of them.

    Raises TraceError, also while the result is consumed: it names the file, the line or entry, the field, and what was
    expected there.
    """
    if source_format not in FORMATS:
        raise TraceError(f"unknown trace format {source_format!r}: expected one of {', '.join(FORMATS)}")
    conversion = conversion or Conversion()
    _check(FORMATS[source_format], source_format, conversion)
    applications = _applications(Path(path), FORMATS[source_format], conversion)
    if rate is None and source_format in DEFAULT_RATES:
        rate = DEFAULT_RATES[source_format]
        conversion.assume(f"arrivals are {60 * rate:g} a minute (they are not recorded; --rate says otherwise)")
    return applications if rate is None else retime(applications, rate, arrivals, seed)


def _check(asked_of: Format, source_format: str, conversion: Conversion) -> None:
    """Raises TraceError if something is asked that means nothing here."""
    if conversion.options.block_tokens is not None and not asked_of.blocks:
        raise TraceError(f"--block-tokens: {source_format} has no blocks")
    for name in sorted(conversion.options.ignored_fields):
        if any(name in lists.understood for lists in asked_of.fields):
            raise TraceError(f"--ignore-field {name}: {source_format} has this field, and it says what a row means")


def _applications(path: Path, read_as: Format, conversion: Conversion) -> Iterator[Application]:
    entries = (entry for file in _files(path, read_as.suffixes, conversion) for entry in read_as.entries(file))
    none = True
    for application in read_as.applications(entries, conversion):
        none = False
        yield application
    if none:
        left_out = [number_of(kind, found) for kind, found in conversion.left_out.items()]
        only = f"only {', '.join(left_out)}" if left_out else "none"
        raise TraceError(f"{path}: expected at least one request, got {only}")


def _files(path: Path, suffixes: tuple[str, ...], conversion: Conversion) -> list[Path]:
    """The file itself, or the files of a folder that are of this kind, by name."""
    if not path.is_dir():
        return [path]
    try:
        found = sorted(path.iterdir(), key=lambda file: file.name)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
    files = [file for file in found if _kind(file) in suffixes and not file.is_dir()]
    if not files:
        raise TraceError(f"{path}: expected a directory with {suffixes[0]} files, found none")
    conversion.unread += [file.name for file in found if file not in files]
    return files


def _kind(file: Path) -> str:
    """The suffix of a name, without that of a compression."""
    return Path(file.stem).suffix if file.suffix in COMPRESSED_SUFFIXES else file.suffix
