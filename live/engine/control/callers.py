"""Whose call a request is: as its metadata says, or else by vLLM's own session id, which clients send unasked.

A session is an application with one agent. It says nothing of its tools, but something happens between two of its
calls: so its agent counts as stalled then, by a tool of a kind that nobody knows. No client says that its session is
over; it ends when nothing was heard of it for long enough (`RunSettings.session_timeout_s`).
"""

from __future__ import annotations

import logging
from collections.abc import Container
from hashlib import sha256
from itertools import chain, count
from typing import NamedTuple

from ....traces.apps import NO_HINTS, CallId
from ....traces.events import Request, ToolHint
from ....traces.files.fields import WrongField, name
from ..apps import Apps
from ..requests import LiveAgent
from ..vllm_surface import VllmRequest
from .metadata import Told, from_extra_args

logger = logging.getLogger(__name__)

SESSION = "session"  # the type of a session's agent, and what the application's name begins with
AGENT = "main"
UNKNOWN_TOOL = ToolHint("unknown", None)


class Caller(NamedTuple):
    """Whose call a request is."""

    request: Request
    agent: LiveAgent
    last: bool  # no call of its application follows


def caller_of(request: VllmRequest, apps: Apps, taken: Container[CallId], at_s: float, now_s: float) -> Caller | None:
    """Take in a request that came at `at_s`: its agent has one call more. None if it is nobody's.

    `taken`: names that calls under way have; a call gets another one then.
    """
    try:
        told = told_of(request, sessions=apps.sessions)
    except WrongField as wrong:
        logger.warning("request %s is served without its metadata: %s", request.request_id, wrong)
        return None
    if told is None:
        return None
    said = told.request
    if not apps.makes_room(said.app, said.agent, at_s):
        logger.warning("request %s is served without its metadata: too many agents", request.request_id)
        return None
    if said.id in taken:  # sent again before it ended
        said = said._replace(id=_another_name(f"{said.id}#{request.request_id}", taken))
    apps.app(said.app, at_s, session=told.session)
    agent = apps.agent(said.agent, said.app)
    apps.call_came(agent, at_s, now_s)
    return Caller(said, agent, told.last)


def _another_name(name: CallId, taken: Container[CallId]) -> CallId:
    """One that no call has. Clients choose names, also those that look like ours."""
    return next(other for other in chain((name,), (f"{name}#{n}" for n in count())) if other not in taken)


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
