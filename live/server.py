"""A vLLM server with our plugin, as a client sees it: what it is, what it is told, and what it answers.

Over HTTP with the `openai` client, which is all that a client needs beside this package: neither vLLM nor torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import __version__
from ..traces.apps import Call
from ..traces.errors import EngineError, RunError
from ..traces.events import Request
from .counters import Counters
from .metadata import KEY, to_metadata
from .prometheus import read_counters
from .settings import RunSettings
from .versions import check_version

ANSWER_S = 60.0  # a server that says nothing for so long, to a question that takes no work, hangs
IDLE_CONNECTION_S = 2.0  # vLLM closes connections that were idle for 5 s, maybe just when we use one
Message = dict[str, str]


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
    """One server. Every method raises `EngineError` for what the user can mend, `RunError` if the server gave way."""

    def __init__(self, url: str, model: str) -> None:
        """Opens nothing yet. The API key, if the server wants one, is taken from OPENAI_API_KEY."""
        self.url = url.rstrip("/").removesuffix("/v1")
        self.model = model
        if not self.url.startswith(("http://", "https://")):
            raise EngineError(f"{url}: expected the address of a server, such as http://localhost:8000")
        openai = _openai()
        limits = type(openai.DEFAULT_CONNECTION_LIMITS)(max_connections=None, keepalive_expiry=IDLE_CONNECTION_S)
        self._openai = openai
        self._root = openai.AsyncOpenAI(
            base_url=self.url,
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            max_retries=0,  # a call that is sent twice is measured twice
            timeout=ANSWER_S,
            http_client=openai.DefaultAsyncHttpxClient(limits=limits),
        )
        self._calls = self._root.with_options(timeout=None)  # a call may wait for hours

    async def close(self) -> None:
        await self._root.close()

    async def about(self) -> About:
        """What the server is, if it is one that can be played against."""
        info = await self._asked("GET", "info")
        served = await self._models()
        if self.model not in served:
            raise EngineError(f"{self.url}: model {self.model!r} is not served: expected one of {', '.join(served)}")
        if info.get("tokencake") != __version__:
            raise EngineError(f"{self.url}: runs tokencake {info.get('tokencake')}, but here is {__version__}")
        try:
            return About(
                check_version(str(info.get("vllm"))),
                self.model,
                _count(info, "block_tokens"),
                _count(info, "gpu_blocks"),
                _count(info, "max_context_tokens"),
                _count(info, "vocabulary"),
                info,
            )
        except EngineError as error:
            raise EngineError(f"{self.url}: {error}") from None

    async def begin(self, settings: RunSettings) -> None:
        """A new run, on an empty cache; engine time starts at 0."""
        await self._asked("POST", "run", settings.as_record())

    async def end(self) -> Mapping[str, object]:
        """The run is over. Returns what the engine says of it that is in no fact."""
        return await self._asked("POST", "end", {})

    async def tell(self, events: Sequence[Mapping[str, object]], *, wait: bool = False) -> None:
        """Events of applications and tools. When this returns they are ahead of every later call, on their way; if
        `wait`, the engine has heard them."""
        await self._asked("POST", "events", {"events": events}, {"wait": "true" if wait else "false"})

    async def facts(self, first: int) -> tuple[list[str], int]:
        """What happened since the `first`-th record: lines of an events file, and the number of the next record."""
        answer = await self._asked("GET", "facts", query={"from": str(first)})
        lines, following = answer.get("lines"), answer.get("next")
        if not isinstance(lines, list) or not isinstance(following, int):
            raise EngineError(f"{self.url}: facts: expected lines, and the number of the next one")
        return lines, following

    async def counters(self) -> Counters | None:
        """What vLLM itself has counted since the server started. None if the server was told to count nothing."""
        try:
            text = await self._root.get("/metrics", cast_to=str)
        except self._openai.APIError as error:
            raise self._trouble(error, "metrics") from None
        return read_counters(text)

    async def complete(self, call: Call, request: Request, token_ids: Iterable[int], last: bool) -> list[int]:
        """Sends a call as token ids, and returns the ids of its answer, which has the length that the trace says."""
        body = {"prompt": list(token_ids), "return_token_ids": True}
        choice = await self._served("completions", body, call, request, last)
        answer = choice.get("token_ids")
        if not isinstance(answer, list) or len(answer) != call.output_tokens:
            found = f"{len(answer)} token ids" if isinstance(answer, list) else "no token ids"
            raise RunError(f"{self.url}: call {call.id!r}: expected {call.output_tokens} token ids, got {found}")
        return answer

    async def chat(self, call: Call, request: Request, messages: Sequence[Message], last: bool) -> str:
        """Sends a call as messages, and returns the text of its answer."""
        choice = await self._served("chat/completions", {"messages": messages}, call, request, last)
        message = choice.get("message")
        return str(message.get("content") or "") if isinstance(message, dict) else ""

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
        try:
            answer = await self._calls.post(f"/v1/{route}", cast_to=object, body=body)
        except self._openai.APIError as error:
            raise self._trouble(error, f"call {call.id!r}") from None
        try:
            (choice,) = answer["choices"]
        except (KeyError, TypeError, ValueError):
            choice = None
        if not isinstance(choice, dict):
            raise RunError(f"{self.url}: call {call.id!r}: expected an answer with one choice")
        return choice

    async def _models(self) -> list[str]:
        try:
            answer = await self._root.get("/v1/models", cast_to=object)
            return [str(model["id"]) for model in answer["data"]]
        except self._openai.APIError as error:
            raise self._trouble(error, "models") from None
        except (KeyError, TypeError):
            raise EngineError(f"{self.url}: models: expected a list of models") from None

    async def _asked(
        self, method: str, name: str, body: Mapping[str, object] | None = None, query: Mapping[str, str] | None = None
    ) -> Mapping[str, Any]:
        """The plugin's answer."""
        options = {"params": query} if query else {}
        try:
            if method == "GET":
                answer = await self._root.get(f"/tokencake/{name}", cast_to=object, options=options)
            else:
                answer = await self._root.post(f"/tokencake/{name}", cast_to=object, body=body, options=options)
        except self._openai.NotFoundError:
            raise EngineError(
                f"{self.url}: has no routes of Tokencake: start vLLM as `tokencake live --print-serve-args` says"
            ) from None
        except self._openai.APIError as error:
            raise self._trouble(error, name) from None
        if not isinstance(answer, dict):
            raise EngineError(f"{self.url}: {name}: expected the answer of a vLLM server, got something else")
        return answer

    def _trouble(self, error: Any, what: str) -> EngineError | RunError:
        """What went wrong, in one line."""
        if isinstance(error, self._openai.APIConnectionError):  # a timeout is one, too
            return RunError(f"{self.url}: {what}: no answer from the server: {_cause(error)}")
        status = getattr(error, "status_code", 0)
        said = error.body.get("message") if isinstance(error.body, dict) else error.body
        line = " ".join(str(said or error).split())
        if status in (401, 403):
            return EngineError(f"{self.url}: {what}: the server refuses the API key in OPENAI_API_KEY: {line}")
        if 400 <= status < 500:
            return EngineError(f"{self.url}: {what}: {line}")
        return RunError(f"{self.url}: {what}: the server failed: {line}")


def _openai() -> Any:
    try:
        import openai
    except ImportError:
        raise EngineError(
            "the openai package is not installed: expected openai>=1.60, as in tokencake[connect]"
        ) from None
    return openai


def _count(info: Mapping[str, object], name: str) -> int:
    value = info.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise EngineError(f"info: {name}: expected a whole number, got {value!r}")
    return value


def _cause(error: BaseException) -> str:
    """The innermost reason: `openai` says no more than that there was a connection error."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return " ".join(str(error).split()) or type(error).__name__
