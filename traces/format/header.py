"""The first line of a trace: which format it is in, and what it says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import TypeAlias

from ..files.fields import WrongField, members, shown, text, whole

FORMAT = "tokencake.trace"
VERSION = 1

HEADER_FIELDS = frozenset({"format", "version", "name", "source", "applications", "about"})

About: TypeAlias = Mapping[str, str | float | bool | None]


@dataclass(frozen=True, slots=True)
class Header:
    """What a trace says about itself. All of it may be left out."""

    name: str | None = None
    source: str | None = None  # where it comes from
    applications: int | None = None  # how many there are; the reader counts along
    about: About = field(default_factory=dict)  # free: how it was made


def parse_header(value: object) -> Header:
    """The header that the first line's JSON `value` describes. Raises WrongField."""
    if type(value) is not dict or value.get("format") != FORMAT:
        raise WrongField(
            "format", f'expected a header {{"format": "{FORMAT}", …}} in the first line, got {shown(value)}'
        )
    if "version" in value and type(value["version"]) is int and value["version"] != VERSION:
        raise WrongField("version", f"expected {VERSION}, the version that is known here, got {value['version']}")
    fields = members(value, HEADER_FIELDS, ("version",))
    whole(fields["version"], "version", VERSION, VERSION)
    return Header(
        text(fields["name"], "name") if "name" in fields else None,
        text(fields["source"], "source") if "source" in fields else None,
        whole(fields["applications"], "applications", 0) if "applications" in fields else None,
        _about(fields["about"]) if "about" in fields else {},
    )


def _about(value: object) -> About:
    if type(value) is not dict:
        raise WrongField("about", f"expected an object, got {shown(value)}")
    for key, entry in value.items():
        if isinstance(entry, dict | list) or not f"{key}{entry}".isprintable():
            raise WrongField(
                "about", f"expected printable text, numbers, true, false or null, got {shown(entry)} at {shown(key)}"
            )
        if isinstance(entry, float) and not isfinite(entry):
            raise WrongField("about", f"expected a finite number at {shown(key)}")
    return value


def header_json(header: Header) -> dict[str, object]:
    """The object that the first line holds; what is not said is left out."""
    said = {"name": header.name, "source": header.source, "applications": header.applications}
    line: dict[str, object] = {"format": FORMAT, "version": VERSION}
    line.update((field, value) for field, value in said.items() if value is not None)
    if header.about:
        line["about"] = dict(header.about)
    return line
