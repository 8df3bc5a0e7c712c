"""Writes a trace, in the format that docs/trace-format.md describes.

Whatever is written can be read: each line is read back, by the code that reads traces, before it goes to the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sized
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from ..apps import Application, Call, Hints, Prompt, Segment, Tool
from ..errors import TraceError
from ..files.fields import WrongField
from ..files.input_limits import LINE_BYTES
from ..files.strict_json import strict_json
from ..files.whole_file import written
from .application_line import ApplicationLines
from .derive import derive_hints
from .header import Header, header_json, parse_header
from .stream_checks import ApplicationOrder

Json: TypeAlias = "str | float | bool | list[Json] | dict[str, Json] | None"

_HINTS = Hints._fields
_encode: Callable[[object], str] = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def write_trace(path: str | Path, applications: Iterable[Application], header: Header | None = None) -> int:
    """Writes `applications` as a trace and returns how many there were.

    The file appears when it is complete: a trace that could not be written leaves nothing, and a file of that name
    stays as it was; see `written` for compression and for `-`. Equal traces make equal files. The header's count is
    filled in where `applications` has a length, and checked otherwise. Hints that the reader derives are left out.

    Raises TraceError for an application that no trace can hold, and if `path` cannot be written.
    """
    path = Path(path)
    header = header or Header()
    if header.applications is None and isinstance(applications, Sized):
        header = replace(header, applications=len(applications))
    order = ApplicationOrder()
    with written(path) as file:
        file.write(_header_line(path, header))
        lines = ApplicationLines()
        for application in applications:
            file.write(_application_line(path, application, order, lines.read))
        if header.applications not in (None, order.applications):
            raise TraceError(f"{path}: header.applications: expected {order.applications}, got {header.applications}")
    return order.applications


def application_json(application: Application) -> dict[str, Json]:
    """The object that an application's line holds, with names local to the application.

    Raises WrongField for calls that wait for unknown calls, or extend them.
    """
    local = _Local(application)
    derived = derive_hints(application.calls)
    calls: list[Json] = [local.call(call, hints) for call, hints in zip(application.calls, derived, strict=True)]
    return {"id": application.id, "arrival_s": application.arrival_s, "calls": calls}


class _Local:
    """Takes the application's part out of ids that are unique in the trace."""

    def __init__(self, application: Application) -> None:
        self._prefix = f"{application.id}/"
        self._context_tokens: dict[str, int] = {}
        for call in application.calls:
            unknown = [one for one in (*call.after, call.prompt.extends) if one not in self._context_tokens]
            if any(one is not None for one in unknown):
                raise WrongField(call.id, f"expected only calls that come before it in the application, got {unknown}")
            self._context_tokens[call.id] = call.prompt.tokens + call.output_tokens

    def call(self, call: Call, derived: Hints) -> Json:
        name = self._name(call.id)
        agent = self._name(call.agent)
        line: dict[str, Json] = {"id": name}
        if agent != name:
            line["agent"] = agent
        if call.agent_type != agent:
            line["type"] = call.agent_type
        if call.after:
            line["after"] = [self._name(awaited) for awaited in call.after]
        line.update(self._prompt(call.prompt))
        line["output"] = call.output_tokens
        if call.max_output_tokens != call.output_tokens:
            line["max_output"] = call.max_output_tokens
        if call.pause_s:
            line["pause_s"] = call.pause_s
        if call.tools:
            line["tools"] = [_tool(tool) for tool in call.tools]
        if call.hints != derived:
            line["hints"] = _different(call.hints, derived)
        return line

    def _prompt(self, prompt: Prompt) -> dict[str, Json]:
        line: dict[str, Json] = {}
        if prompt.extends is not None:
            line["extends"] = self._name(prompt.extends)
            if prompt.keep_tokens != self._context_tokens[prompt.extends]:
                line["keep"] = prompt.keep_tokens
        if prompt.segments or prompt.extends is None:
            line["prompt"] = [self._segment(segment) for segment in prompt.segments]
        return line

    def _segment(self, segment: Segment) -> Json:
        source = segment.source if segment.source.startswith("/") else self._name(segment.source)
        return [source, segment.start, segment.tokens] if segment.start else [source, segment.tokens]

    def _name(self, name: str) -> str:
        if not name.startswith(self._prefix):
            raise WrongField(name, f"expected a name that starts with {self._prefix}")
        return name[len(self._prefix) :]


def _tool(tool: Tool) -> Json:
    line: dict[str, Json] = {"kind": tool.kind, "duration_s": tool.duration_s}
    if tool.declared_s is not None:
        line["declared_s"] = tool.declared_s
    if tool.result_tokens:
        line["result"] = tool.result_tokens
    return line


def _different(hints: Hints, derived: Hints) -> dict[str, Json]:
    said = {name: (getattr(hints, name), getattr(derived, name)) for name in _HINTS}
    return {name: stated for name, (stated, otherwise) in said.items() if stated != otherwise}


def _header_line(path: Path, header: Header) -> bytes:
    try:
        return _line(header_json(header), header, lambda data: parse_header(strict_json(data)))
    except WrongField as wrong:
        raise TraceError(f"{path}: header: {wrong}") from None


def _application_line(
    path: Path, application: Application, order: ApplicationOrder, read: Callable[[bytes], Application]
) -> bytes:
    try:
        line = _line(application_json(application), application, read)
        order.check(application)
    except WrongField as wrong:
        raise TraceError(f"{path}: application {application.id!r}: {wrong}") from None
    return line


def _line(value: object, said: object, read: Callable[[bytes], object]) -> bytes:
    """The line for what is `said`. Raises WrongField if a reader would refuse it or understand something else."""
    try:
        line = _encode(value)
        data = line.encode()
    except (TypeError, ValueError) as error:  # NaN, half a surrogate pair, or no JSON type at all
        raise WrongField("", f"expected values that JSON in UTF-8 can hold: {error}") from None
    if len(data) >= LINE_BYTES:
        raise WrongField("", f"expected a line of at most {LINE_BYTES} bytes, got {len(data) + 1}")
    if read(data) != said:
        raise WrongField("", f"expected what its line says, but the line means something else: {line[:200]}")
    return data + b"\n"
