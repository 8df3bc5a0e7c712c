"""Routes of a vLLM server: what agents and clients tell the engine's scheduler beside their requests.

An endpoint plugin of vLLM, loaded where `VLLM_PLUGINS` names `tokencake`:

    POST /tokencake/events   {"events": [{"event": "tool_returned", "app": "fix-42", "agent": "main"}]}
    GET  /tokencake/info     versions, model and limits of the engine
    POST /tokencake/run      a new run: a fresh policy, an empty cache, time starts at 0; the settings are its body
    POST /tokencake/end      the run is over: what it held is given up
    GET  /tokencake/facts    ?from=N[&limit=M]: what happened since the N-th fact, as lines of an events file

A wrong request is answered with a status of 400 or more and `{"error": "one line"}`. `?wait=false` on events answers as
soon as they are on their way to the engine, ahead of every request that is sent after the answer: an engine listens
only between two steps. The keys that guard the server's own API guard these routes, too.
"""

from __future__ import annotations

import asyncio
import hmac
import os
from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

Answer = Mapping[str, object]

MOST_FACTS = 20_000  # an answer: some MB, which an engine writes in less time than it takes for a step
CONTROL = "tokencake_control"  # the attribute of the engine core that the scheduler sets


class Routes:
    """The plugin, as `vllm.plugins.endpoint_plugins` wants it."""

    name = "tokencake"
    required_tasks = ("generate",)  # nothing to tell to an engine that only embeds

    def __init__(self) -> None:
        self._engine: Any = None  # vLLM's EngineClient
        self._keys: Sequence[str] = ()
        self._unheard: set[asyncio.Task[Any]] = set()  # tasks live only as long as somebody knows them

    def attach_router(self, app: FastAPI) -> None:
        self._add(app, "POST", "events", self._events)
        self._add(app, "GET", "info", self._info)
        self._add(app, "POST", "run", self._run)
        self._add(app, "POST", "end", self._end)
        self._add(app, "GET", "facts", self._facts)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        self._engine = engine_client
        given = args.api_key or [os.environ.get("VLLM_API_KEY")]
        self._keys = [key for key in given if key]

    def _add(self, app: FastAPI, method: str, name: str, handle: Callable[[Request], Awaitable[Response]]) -> None:
        async def handled(request: Request) -> Response:
            try:
                self._authorize(request)
                return await handle(request)
            except Refused as refused:
                return JSONResponse({"error": str(refused)}, refused.status)

        app.add_api_route(f"/tokencake/{name}", handled, methods=[method], response_model=None)

    async def _events(self, request: Request) -> Response:
        events = (await _body(request)).get("events")
        if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
            raise Refused('expected {"events": [{"event": …}, …]}')
        tell = asyncio.create_task(self._ask("tell", {"events": events}))
        if request.query_params.get("wait") == "false":
            self._unheard.add(tell)
            tell.add_done_callback(self._heard)
            await asyncio.sleep(0)  # the task puts its message into the socket before it waits for the first time
            return JSONResponse({}, 202)
        return JSONResponse(await tell)

    async def _info(self, _: Request) -> Response:
        vocabulary = self._engine.model_config.get_vocab_size()
        return JSONResponse({**await self._ask("info", {}), "vocabulary": vocabulary})

    async def _run(self, request: Request) -> Response:
        return JSONResponse(await self._ask("begin", await _body(request)))

    async def _end(self, _: Request) -> Response:
        return JSONResponse(await self._ask("end", {}))

    async def _facts(self, request: Request) -> Response:
        wanted = {"from": _whole(request, "from", 0), "limit": min(_whole(request, "limit", MOST_FACTS), MOST_FACTS)}
        return JSONResponse(await self._ask("facts", wanted))

    async def _ask(self, op: str, payload: Answer) -> Answer:
        """Has the scheduler's adapter do something, between two steps of the engine."""
        try:
            answer: Answer = await self._engine.engine_core.call_utility_async(CONTROL, op, payload)
        except Exception as error:  # vLLM passes on what went wrong in the engine as a bare Exception
            raise _refused(error) from None
        if (reason := answer.get("error")) is not None:
            raise Refused(str(reason))
        return answer

    def _heard(self, tell: asyncio.Task[Any]) -> None:
        self._unheard.discard(tell)
        if not tell.cancelled() and (error := tell.exception()) is not None:
            _logger().warning("tokencake: events were refused: %s", error)

    def _authorize(self, request: Request) -> None:
        """vLLM guards its own paths only."""
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        known = [hmac.compare_digest(key.encode(), expected.encode()) for expected in self._keys]
        if known and not (scheme.lower() == "bearer" and any(known)):
            raise Refused("unauthorized", 401)


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise Refused(f"expected JSON: {error}") from None
    if not isinstance(body, dict):
        raise Refused("expected a JSON object")
    return body


def _whole(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise Refused(f"{name}: expected a whole number, got {text!r}")
    return int(text)


def _refused(error: Exception) -> Refused:
    if f"no attribute {CONTROL!r}" in str(error):
        return Refused("the engine does not run Tokencake's scheduler: see `tokencake live --print-serve-args`", 409)
    return Refused(str(error) or type(error).__name__, 503)


def _logger() -> Any:
    from vllm.logger import init_logger

    return init_logger("vllm.tokencake")
