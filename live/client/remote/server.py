"""A vLLM server with our plugin, as a client sees it: what it is, what it is told, and what it answers.

Over HTTP with the `openai` client, which is all that a client needs beside this package: neither vLLM nor torch.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from ....policies.run_settings import RunSettings, to_server
from ....traces.apps import Call
from ....traces.errors import EngineError, RunError
from ....traces.events import Request
from ....traces.files.fields import WrongField, shown
from ....traces.version import __version__
from ...engine.control.metadata import KEY, to_metadata
from ...engine.control.protocol import BUSY, RUN_HEADER
from ...engine.control.versions import check_version
from ..counters import Counters, read_counters
from . import answers
from .address import (
    API_KEY,
    CONTROL_TOKEN,
    certificates,
    is_here,
    key_from,
    proxy_variable,
    proxy_variables,
    server_address,
)
from .answers import brief

ANSWER_S = 60.0  # a server that says nothing for so long, to a question that takes no work, hangs
PAUSES_S = (0.25, 0.5, 1.0, 2.0)  # before a question that may be asked twice is asked again
BUSY_S = 15.0  # a server that serves others, or still copies what a run before this one left, is asked for so long
IDLE_CONNECTION_S = 2.0  # vLLM closes connections that were idle for 5 s, maybe just when we use one
LARGEST_MESSAGE = 2**19  # bytes of events at once; the server takes twice as many
Message = dict[str, str]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class About:
    """What a server is. It bounds the calls that it can serve (`traces.limits.Limits`)."""

    vllm: str
    model: str
    block_tokens: int
    gpu_blocks: int
    max_context_tokens: int
    vocabulary: int  # ids from 0 to one less; one beyond kills a server without a tokenizer
    everything: Mapping[str, object]  # that it says of itself


class Server:
    """One server. Every method raises `EngineError` for what the user can mend, `RunError` if the server gave way.

    Questions that may be asked twice are, a few times, if no answer comes or the server fails (`asked_again` counts
    them). Calls are not: one that was sent twice would be measured twice.
    """

    def __init__(self, url: str, model: str, control_token: str | None = None) -> None:
        """Opens nothing yet. The API key, if the server wants one, is taken from OPENAI_API_KEY; the token that begins
        and ends runs, unless it is given, from TOKENCAKE_CONTROL_TOKEN."""
        self.url = server_address(url)
        self.model = model
        self.asked_again = 0
        self._token = control_token or key_from(CONTROL_TOKEN)
        self._proxy = proxy_variable(self.url)
        openai = _openai()
        limits = type(openai.DEFAULT_CONNECTION_LIMITS)(max_connections=None, keepalive_expiry=IDLE_CONNECTION_S)
        self._openai = openai
        trusted = certificates(self.url)
        told: dict[str, Any] = {"limits": limits, "trust_env": not is_here(self.url)}
        if trusted is not None:
            told["verify"] = trusted
        try:
            self._root = openai.AsyncOpenAI(
                base_url=self.url,
                api_key=key_from(API_KEY) or "none",
                max_retries=0,
                timeout=ANSWER_S,
                http_client=openai.DefaultAsyncHttpxClient(**told),
            )
        except Exception as error:  # whatever the client finds wrong in the environment, of several kinds
            told_by = " and ".join(proxy_variables()) or "the environment"
            raise EngineError(f"{self.url}: no connection can be opened as {told_by} says: {brief(error)}") from None
        self._calls = self._root.with_options(timeout=None)  # a call may wait for hours

    @property
    def _way(self) -> str:
        return "" if self._proxy is None else f" through the proxy of {self._proxy}"

    async def close(self) -> None:
        await self._root.close()

    async def about(self) -> About:
        """What the server is, if it is one that can be played against."""
        info = await self._patiently(lambda: self._asked("GET", "info"))
        served = await self._patiently(self._models)
        if self.model not in served:
            known = brief(", ".join(served[: answers.MOST_SHOWN]) or "none")
            raise EngineError(f"{self.url}: model {self.model!r} is not served: expected one of {known}")
        if info.get("tokencake") != __version__:
            found = info.get("tokencake")
            found = brief(found) if isinstance(found, str) else shown(found)
            raise EngineError(f"{self.url}: runs tokencake {found}, but here is {__version__}")
        with self._reading("info"):
            vllm = answers.version_in(info, "vllm")
            block_tokens = answers.count_in(info, "block_tokens")
            gpu_blocks = answers.count_in(info, "gpu_blocks")
            max_context_tokens = answers.count_in(info, "max_context_tokens")
            vocabulary = answers.count_in(info, "vocabulary", 2)  # with a single id all prompts would be alike
        try:
            vllm = check_version(vllm)
        except EngineError as error:
            raise EngineError(f"{self.url}: {error}") from None
        return About(vllm, self.model, block_tokens, gpu_blocks, max_context_tokens, vocabulary, info)

    async def begin(self, run: str, settings: RunSettings) -> None:
        """A new run of that name, on an empty cache; engine time starts at 0."""
        limit_s = time.monotonic() + BUSY_S
        while True:
            try:
                await self._controlled("POST", "run", run, to_server(settings))
            except _Busy as busy:
                if time.monotonic() > limit_s:
                    raise EngineError(str(busy)) from None
                await asyncio.sleep(PAUSES_S[0])
            else:
                return

    async def end(self, run: str) -> answers.RunEnd:
        """The run is over. Returns what the engine says of it that is in no fact."""
        answer = await self._controlled("POST", "end", run, {})
        with self._reading("end"):
            return answers.ended(answer)

    async def tell(self, events: Sequence[Mapping[str, object]], *, wait: bool = False) -> None:
        """Events of applications and tools. When this returns they are ahead of every later call, on their way; if
        `wait`, the engine has heard them."""
        query = {"wait": "true" if wait else "false"}
        for some in _batches(events):
            await self._patiently(lambda some=some: self._asked("POST", "events", {"events": some}, query))  # type: ignore[misc]

    async def facts(self, run: str, first: int) -> answers.Facts:
        """What happened in a run since the `first`-th record. Those before it are forgotten by the server."""
        answer = await self._controlled("GET", "facts", run, query={"from": str(first)})
        with self._reading("facts"):
            return answers.facts(answer, first)

    async def counters(self) -> Counters | None:
        """What vLLM itself has counted since the server started. None if the server was told to count nothing."""

        async def ask() -> str:
            try:
                return str(await self._root.get("/metrics", cast_to=str))
            except self._openai.APIError as error:
                raise self._trouble(error, "metrics") from None

        with self._reading("metrics"):
            return read_counters(await self._patiently(ask))

    async def complete(self, call: Call, request: Request, token_ids: Iterable[int], last: bool) -> list[int]:
        """Sends a call as token ids, and returns the ids of its answer, which has the length that the trace says."""
        body = {"prompt": list(token_ids), "return_token_ids": True}
        choice = await self._served("completions", body, call, request, last)
        with self._reading(f"call {call.id!r}"):
            return answers.token_ids(choice.get("token_ids"), call.output_tokens)

    async def chat(self, call: Call, request: Request, messages: Sequence[Message], last: bool) -> str:
        """Sends a call as messages, and returns the text of its answer."""
        choice = await self._served("chat/completions", {"messages": messages}, call, request, last)
        message = choice.get("message")
        content = message.get("content") if isinstance(message, dict) else None
        return str(content or "").encode(errors="replace").decode()  # half a character cannot be sent again

    async def _served(
        self, route: str, prompt: Mapping[str, object], call: Call, request: Request, last: bool
    ) -> Mapping[str, Any]:
        """What the model chose to answer.

        By the client's plain `post`: its `completions.create` looks at each token id by itself, which takes 12 µs each.
        """
        body = {
            "model": self.model,
            "max_tokens": call.output_tokens,
            "min_tokens": call.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "vllm_xargs": {KEY: json.dumps(to_metadata(request, last))},  # which takes no objects, but text
            **prompt,
        }
        what = f"call {call.id!r}"
        try:
            with self._reading(what):
                answer = await self._calls.post(f"/v1/{route}", cast_to=object, body=body)
        except self._openai.APIError as error:
            raise self._trouble(error, what) from None
        try:
            (choice,) = answer["choices"]
        except (KeyError, TypeError, ValueError):
            choice = None
        if not isinstance(choice, dict):
            raise RunError(f"{self.url}: {what}: expected an answer with one choice")
        return choice

    async def _models(self) -> list[str]:
        try:
            with self._reading("models"):
                return answers.models(await self._root.get("/v1/models", cast_to=object))
        except self._openai.APIError as error:
            raise self._trouble(error, "models") from None

    async def _controlled(
        self,
        method: str,
        name: str,
        run: str,
        body: Mapping[str, object] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Mapping[str, Any]:
        """The plugin's answer to somebody who controls runs. Each of these may be asked twice."""
        if self._token is None:
            raise EngineError(
                f"{self.url}: {name}: expected the server's control token in {CONTROL_TOKEN}, or in the file of"
                " --control-token-file"
            )
        headers = {"Authorization": f"Bearer {self._token}", RUN_HEADER: run}
        return await self._patiently(lambda: self._asked(method, name, body, query, headers))

    async def _asked(
        self,
        method: str,
        name: str,
        body: Mapping[str, object] | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Mapping[str, Any]:
        """The plugin's answer."""
        options: dict[str, Any] = {"params": query} if query else {}
        if headers:
            options["headers"] = headers
        try:
            with self._reading(name):
                if method == "GET":
                    answer = await self._root.get(f"/tokencake/{name}", cast_to=object, options=options)
                else:
                    answer = await self._root.post(f"/tokencake/{name}", cast_to=object, body=body, options=options)
        except self._openai.NotFoundError:
            raise EngineError(
                f"{self.url}: has no routes of Tokencake: start vLLM as `tokencake live --print-serve-args` says"
            ) from None
        except self._openai.APIError as error:
            raise self._trouble(error, name, CONTROL_TOKEN if headers else API_KEY) from None
        if not isinstance(answer, dict):
            raise EngineError(f"{self.url}: {name}: expected the answer of a vLLM server, got something else")
        return answer

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """An answer that came, and is none that a vLLM server gives: `EngineError`, in one line."""
        try:
            yield
        except WrongField as wrong:
            raise EngineError(f"{self.url}: {what}: {wrong}") from None
        except (ValueError, RecursionError):  # the client does not look at what it decodes
            raise EngineError(f"{self.url}: {what}: expected JSON of a vLLM server, got something else") from None

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask again if the server gave way, a few times."""
        for pause_s in PAUSES_S:
            try:
                return await ask()
            except RunError:
                self.asked_again += 1
                await asyncio.sleep(pause_s)
        try:
            return await ask()
        except RunError as error:
            raise RunError(f"{error} (asked {len(PAUSES_S) + 1} times in {sum(PAUSES_S):g} s)") from None

    def _trouble(self, error: Any, what: str, key: str = API_KEY) -> EngineError | RunError:
        """What went wrong, in one line. `key`: the variable that has the key for that."""
        if isinstance(error, self._openai.APIConnectionError):  # a timeout is one, too
            return RunError(f"{self.url}: {what}: no answer from the server{self._way}: {_cause(error)}")
        status = getattr(error, "status_code", 0)
        said = error.body.get("message") if isinstance(error.body, dict) else error.body
        line = brief(said or error)
        if status == 401 or (status == 403 and key == API_KEY):
            noun = "the control token" if key == CONTROL_TOKEN else "the API key"
            return Unauthorized(f"{self.url}: {what}: the server refuses {noun} in {key}: {line}")
        if status == BUSY:
            return _Busy(f"{self.url}: {what}: {line}")
        if 400 <= status < 500:
            return EngineError(f"{self.url}: {what}: {line}")
        return RunError(f"{self.url}: {what}: the server failed{self._way}: {line}")


class Unauthorized(EngineError):
    """A key is wrong: no call will be served."""


class _Busy(EngineError):
    """Not now."""


def _batches(events: Sequence[Mapping[str, object]]) -> Iterator[list[Mapping[str, object]]]:
    """All events, in order, as many at once as a server takes."""
    batch: list[Mapping[str, object]] = []
    size = 0
    for event in events:
        length = len(json.dumps(event)) + 2
        if batch and size + length > LARGEST_MESSAGE:
            yield batch
            batch, size = [], 0
        batch.append(event)
        size += length
    if batch:
        yield batch


def _openai() -> Any:
    try:
        import openai
    except ImportError:
        raise EngineError(
            "the openai package is not installed: expected openai>=1.60, as in tokencake[connect]"
        ) from None
    return openai


def _cause(error: BaseException) -> str:
    """The innermost reason: `openai` says no more than that there was a connection error."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return brief(error) or type(error).__name__
