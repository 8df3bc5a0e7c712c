"""What a client says about a call, beside its prompt: how it travels to the engine, and back into a `Request`.

It rides in the request's `extra_args`, which HTTP clients fill through `vllm_xargs`, under the key `tokencake`: an
object, or JSON text of one (`vllm_xargs` takes no objects). All of its fields are optional but `agent`:

    {"app": "fix-42", "agent": "main", "type": "coder", "call": "edit", "max_output": 512,
     "tools": [{"kind": "test", "declared_s": 12.5}], "hints": {"critical_path": true}, "last": false}

The names are those of trace files. `tools` are the ones that the call is going to start: its agent is stalled from the
end of the call until its next call arrives, or until the client says that they returned. `last` tells that no call of
the application follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ....traces.apps import NO_HINTS, Hints
from ....traces.events import Request, ToolHint
from ....traces.files.fields import WrongField, flag, items, members, name, seconds, text, whole
from ....traces.files.strict_json import strict_json
from ....traces.format.parser import parse_hints

KEY = "tokencake"
_FIELDS = frozenset({"app", "agent", "type", "call", "max_output", "tools", "hints", "last"})
_TOOL_FIELDS = frozenset({"kind", "declared_s"})


class Told(NamedTuple):
    """A call as its client describes it."""

    request: Request
    last: bool  # of its application
    session: bool = False  # whether the application is a session of vLLM's


def to_metadata(request: Request, last: bool = False) -> dict[str, Any]:
    """What a client sends with a call so that the engine comes to this very `Request`."""
    said: dict[str, Any] = {
        "app": request.app,
        "agent": request.agent.removeprefix(f"{request.app}/"),
        "type": request.agent_type,
        "call": request.id.removeprefix(f"{request.app}/"),
        "max_output": request.max_output_tokens,
    }
    if request.tools:
        said["tools"] = [_tool_record(tool) for tool in request.tools]
    defaults = Hints._field_defaults
    hints = {name: hint for name, hint in request.hints._asdict().items() if hint != defaults[name]}
    if hints:
        said["hints"] = hints
    if last:
        said["last"] = True
    return said


def from_extra_args(
    extra_args: Mapping[str, Any] | None, request_id: str, prompt_tokens: int, max_tokens: int
) -> Told | None:
    """What is told of a call. None if the request carries no metadata. Raises `WrongField` if it means nothing.

    An agent without an application is an application of its own. `max_tokens` is the request's own limit: the
    declared budget where the metadata names none.
    """
    said = (extra_args or {}).get(KEY)
    if said is None:
        return None
    try:
        return _told(_object(said), request_id, prompt_tokens, max_tokens)
    except WrongField as wrong:
        raise wrong.inside(KEY) from None


def _told(said: Mapping[str, object], request_id: str, prompt_tokens: int, max_tokens: int) -> Told:
    agent = name(said["agent"], "agent")
    app = name(said["app"], "app") if "app" in said else agent
    call = name(said["call"], "call") if "call" in said else request_id
    request = Request(
        f"{app}/{call}",
        app,
        f"{app}/{agent}",
        text(said["type"], "type") if "type" in said else agent,
        prompt_tokens,
        whole(said["max_output"], "max_output", 1) if "max_output" in said else max_tokens,
        _tools(said.get("tools", [])),
        NO_HINTS._replace(**parse_hints(said["hints"])) if "hints" in said else NO_HINTS,  # type: ignore[arg-type]
    )
    return Told(request, flag(said["last"], "last") if "last" in said else False)


def _object(said: object) -> Mapping[str, object]:
    if isinstance(said, str):
        try:
            said = strict_json(said.encode(errors="surrogatepass") + b"\n")
        except WrongField as wrong:
            raise WrongField("", f"expected an object, or JSON text of one: {wrong}") from None
    return members(said, _FIELDS, ("agent",))


def _tools(said: object) -> tuple[ToolHint, ...]:
    tools = []
    for index, entry in enumerate(items(said, "tools")):
        try:
            tool = members(entry, _TOOL_FIELDS, ("kind",))
            declared_s = tool.get("declared_s")
            tools.append(
                ToolHint(text(tool["kind"], "kind"), None if declared_s is None else seconds(declared_s, "declared_s"))
            )
        except WrongField as wrong:
            raise wrong.inside(f"tools[{index}]") from None
    return tuple(tools)


def _tool_record(tool: ToolHint) -> dict[str, Any]:
    return {"kind": tool.kind} if tool.declared_s is None else {"kind": tool.kind, "declared_s": tool.declared_s}
