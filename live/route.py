"""Routes of a vLLM server: what agents and clients tell the engine's scheduler beside their requests.

An endpoint plugin of vLLM, loaded where `VLLM_PLUGINS` names `tokencake`. For everybody who may complete:

    POST /tokencake/events   {"events": [{"event": "tool_returned", "app": "fix-42", "agent": "main"}]}
    GET  /tokencake/info     versions, model and limits of the engine

For who has the control token, if the server was started with one:

    POST /tokencake/run      a new run: a fresh policy, an empty cache, time starts at 0; the settings are its body
    POST /tokencake/end      the run is over: what it held is given up
    GET  /tokencake/facts    ?from=N[&limit=M]: what happened since the N-th fact, as lines of an events file

`run` answers a name, which `end` and `facts` want in the header `Tokencake-Run`. A wrong request is answered with a
status of 400 or more and `{"error": "one line"}`, and so is one that the engine does not answer in time. `?wait=false`
on events answers as soon as they are on their way to the engine, ahead of every request that is sent after the answer:
an engine listens only between two steps.
"""

from __future__ import annotations

import asyncio
import hmac
import os
from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from ..policies.run_settings import control_token, from_client, server_settings
from ..traces.errors import EngineError
from ..traces.files.fields import WrongField, shown
from ..traces.files.strict_json import strict_json
from .engine.control.client_events import events_from_body
from .engine.control.protocol import RUN_HEADER, new_name

Answer = Mapping[str, object]

MOST_FACTS = 20_000  # an answer: some MB, which an engine writes in less time than it takes for a step
CONTROL = "tokencake_control"  # the attribute of the engine core that the scheduler sets
LARGEST_BODY = 2**20  # bytes
BODY_S = 30.0  # a client that takes longer to send a body has gone, or wants no good
ANSWER_S = 30.0  # an engine that does not listen for so long hangs, or is dead
MOST_UNHEARD = 1000  # messages that are on their way to an engine, and nobody waits for


class Routes:
    """The plugin, as `vllm.plugins.endpoint_plugins` wants it."""

    name = "tokencake"
    required_tasks = ("generate",)  # nothing to tell to an engine that only embeds

    def __init__(self) -> None:
        self._engine: Any = None  # vLLM's EngineClient
        self._keys: Sequence[str] = ()  # of users
        self._token: str | None = None  # of who controls runs; None: nobody does
        self._unheard: set[asyncio.Task[Any]] = set()  # tasks live only as long as somebody knows them

    def attach_router(self, app: FastAPI) -> None:
        self._add(app, "POST", "events", self._authorize_user, self._events, ("wait",))
        self._add(app, "GET", "info", self._authorize_user, self._info)
        self._add(app, "POST", "run", self._authorize_control, self._run)
        self._add(app, "POST", "end", self._authorize_control, self._end)
        self._add(app, "GET", "facts", self._authorize_control, self._facts, ("from", "limit"))

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Raises `EngineError`, and with it vLLM does not start, for a control token that is none."""
        self._engine = engine_client
        given = args.api_key or [os.environ.get("VLLM_API_KEY")]
        self._keys = [key for key in given if key]
        settings = server_settings(engine_client.vllm_config.additional_config)
        self._token = control_token(settings, list(self._keys))

    def _add(
        self,
        app: FastAPI,
        method: str,
        name: str,
        authorize: Callable[[Request], None],
        handle: Callable[[Request], Awaitable[Response]],
        parameters: Sequence[str] = (),
    ) -> None:
        async def handled(request: Request) -> Response:
            try:
                authorize(request)
                _check_query(request, parameters)
                return await handle(request)
            except Refused as refused:
                return JSONResponse({"error": str(refused)}, refused.status)

        app.add_api_route(f"/tokencake/{name}", handled, methods=[method], response_model=None)

    # -- for users

    async def _events(self, request: Request) -> Response:
        wait = _flag(request, "wait", True)
        body = await _body(request)
        _checked(lambda: events_from_body(body))
        if len(self._unheard) >= MOST_UNHEARD:
            raise Refused(f"{MOST_UNHEARD} messages wait for the engine, which does not listen", 503)
        tell = asyncio.create_task(self._ask("tell", body))
        if not wait:
            self._unheard.add(tell)
            tell.add_done_callback(self._heard)
            await asyncio.sleep(0)  # the task puts its message into the socket before it waits for the first time
            return JSONResponse({}, 202)
        return JSONResponse(await tell)

    async def _info(self, _: Request) -> Response:
        vocabulary = self._engine.model_config.get_vocab_size()
        return JSONResponse({**await self._ask("info", {}), "vocabulary": vocabulary})

    # -- for who controls runs

    async def _run(self, request: Request) -> Response:
        """A client may name its run itself, and ask again if no answer came."""
        settings = await _body(request)
        _checked(lambda: from_client(settings))
        name = request.headers.get(RUN_HEADER) or new_name()
        return JSONResponse(await self._ask("begin", {"run": name, "settings": settings}))

    async def _end(self, request: Request) -> Response:
        return JSONResponse(await self._ask("end", {"run": _run_of(request)}))

    async def _facts(self, request: Request) -> Response:
        limit = min(_whole(request, "limit", MOST_FACTS), MOST_FACTS)
        wanted = {"run": _run_of(request), "from": _whole(request, "from", 0), "limit": limit}
        return JSONResponse(await self._ask("facts", wanted))

    # -- the engine

    async def _ask(self, op: str, payload: Answer) -> Answer:
        """Has the scheduler's adapter do something, between two steps of the engine."""
        try:
            async with asyncio.timeout(ANSWER_S):
                answer: Answer = await self._engine.engine_core.call_utility_async(CONTROL, op, payload)
        except TimeoutError:
            raise Refused(
                f"the engine has not answered for {ANSWER_S:g} s: it is in a long step, or dead", 503
            ) from None
        except Exception as error:  # vLLM passes on what went wrong in the engine as a bare Exception
            raise _refused(error) from None
        if (reason := answer.get("error")) is not None:
            status = answer.get("status")
            raise Refused(str(reason), status if isinstance(status, int) else 400)
        return answer

    def _heard(self, tell: asyncio.Task[Any]) -> None:
        self._unheard.discard(tell)
        if not tell.cancelled() and (error := tell.exception()) is not None:
            _logger().warning("tokencake: events were refused: %s", error)

    # -- keys: vLLM guards its own paths only

    def _authorize_user(self, request: Request) -> None:
        if self._keys and not _one_of(_bearer(request), self._keys):
            raise Refused("unauthorized", 401)

    def _authorize_control(self, request: Request) -> None:
        if self._token is None:
            raise Refused(
                "this server was started without control routes: see `tokencake live --print-serve-args --control`", 403
            )
        if not _one_of(_bearer(request), [self._token]):
            raise Refused("expected the server's control token, which is not the API key", 401)


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status


def _bearer(request: Request) -> str:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return key if scheme.lower() == "bearer" else ""


def _one_of(key: str, known: Sequence[str]) -> bool:
    """In a time that does not tell how much of a key was right."""
    return sum(hmac.compare_digest(key.encode(), expected.encode()) for expected in known) > 0


async def _body(request: Request) -> dict[str, Any]:
    """A JSON object. What is too long is not read to its end."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refused("expected a body that is not compressed", 415)
    length = request.headers.get("Content-Length", "0").strip()
    if not (length.isascii() and length.isdigit()) or len(length) > 15 or int(length) > LARGEST_BODY:
        raise _too_long()
    parts, read = [], 0
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                read += len(part)
                if read > LARGEST_BODY:
                    raise _too_long()
                parts.append(part)
    except TimeoutError:
        raise Refused(f"the body did not come within {BODY_S:g} s", 408) from None
    except ClientDisconnect:
        raise Refused("the client has gone", 400) from None
    try:
        body = strict_json(b"".join((*parts, b"\n")))  # its end is known: only files are cut off
    except WrongField as wrong:
        raise Refused(str(wrong)) from None
    if not isinstance(body, dict):
        raise Refused("expected a JSON object")
    return body


def _too_long() -> Refused:
    return Refused(f"expected a body of at most {LARGEST_BODY} bytes", 413)


def _checked(check: Callable[[], object]) -> None:
    """What is wrong is said here already: not everything that JSON can say gets to the engine."""
    try:
        check()
    except EngineError as error:
        raise Refused(str(error)) from None


def _run_of(request: Request) -> str:
    name: str | None = request.headers.get(RUN_HEADER)
    if name is None:
        raise Refused(f"expected the header {RUN_HEADER}, with the name that /tokencake/run answered")
    return name


def _check_query(request: Request, known: Sequence[str]) -> None:
    """Each parameter is one that the route has, and is there once: of two, one would be dropped in silence."""
    seen = set()
    for name, _ in request.query_params.multi_items():
        if name not in known:
            raise Refused(f"unknown parameter {shown(name)}: known are {', '.join(known) or 'none'}")
        if name in seen:
            raise Refused(f"expected the parameter {name} once, got it twice")
        seen.add(name)


def _flag(request: Request, name: str, default: bool) -> bool:
    text = request.query_params.get(name)
    if text not in (None, "true", "false"):
        raise Refused(f"{name}: expected true or false, got {shown(text)}")
    return default if text is None else text == "true"


def _whole(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise Refused(f"{name}: expected a whole number, got {text[:60]!r}")
    return int(text)


def _refused(error: Exception) -> Refused:
    if f"no attribute {CONTROL!r}" in str(error):
        return Refused("the engine does not run Tokencake's scheduler: see `tokencake live --print-serve-args`", 409)
    return Refused(str(error) or type(error).__name__, 503)


def _logger() -> Any:
    from vllm.logger import init_logger

    return init_logger("vllm.tokencake")
