"""Whose call a request is: as its metadata says, or else by vLLM's own session id, which clients send unasked.

A session is an application with one agent. It says nothing of its tools, but something happens between two of its
calls: so its agent counts as stalled then, by a tool of a kind that nobody knows. No client says that its session is
over; it ends when nothing was heard of it for long enough (`RunSettings.session_timeout_s`).
"""

from __future__ import annotations

from hashlib import sha256

from ....traces.apps import NO_HINTS
from ....traces.events import Request, ToolHint
from ....traces.files.fields import WrongField, name
from ..vllm_surface import VllmRequest
from .metadata import Told, from_extra_args

SESSION = "session"  # the type of a session's agent, and what the application's name begins with
AGENT = "main"
UNKNOWN_TOOL = ToolHint("unknown", None)


def told_of(request: VllmRequest, *, sessions: bool) -> Told | None:
    """What is told of a request; None if nothing is, as of all that generate nothing.

    `sessions`: whether vLLM's session ids count. Raises `WrongField` for metadata that means nothing.
    """
    sampling = request.sampling_params
    if sampling is None:
        return None
    prompt_tokens, max_tokens = request.num_prompt_tokens, request.max_tokens
    told = from_extra_args(sampling.extra_args, request.request_id, prompt_tokens, max_tokens)
    if told is not None or not sessions:
        return told
    session = getattr(request, "session_id", None)  # since vLLM 0.28
    return _of_session(session, request.request_id, prompt_tokens, max_tokens) if session else None


def session_app(session: str) -> str:
    """The name of a session's application. A session id that cannot be a name goes by its digest."""
    try:
        return f"{SESSION}:{name(session, SESSION)}"
    except WrongField:
        return f"{SESSION}:{sha256(session.encode(errors='surrogatepass')).hexdigest()}"


def _of_session(session: str, request_id: str, prompt_tokens: int, max_tokens: int) -> Told:
    app = session_app(session)
    request = Request(
        f"{app}/{request_id}", app, f"{app}/{AGENT}", SESSION, prompt_tokens, max_tokens, (UNKNOWN_TOOL,), NO_HINTS
    )
    return Told(request, last=False, session=True)
