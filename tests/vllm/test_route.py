"""The routes on vLLM's server, on an application of their own: what reaches the engine, and what is refused."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs what vLLM's server is made of: .ci/install-vllm")

from fastapi import FastAPI
from fastapi.testclient import TestClient

from tokencake.live import route
from tokencake.live.engine.control.protocol import RUN_HEADER
from tokencake.live.route import LARGEST_BODY, MOST_FACTS, MOST_UNHEARD, Routes
from tokencake.traces.errors import EngineError

EVENT = {"event": "tool_returned", "app": "a", "agent": "main"}
TOKEN = "t" * 32
RUN = "r" * 32
CONFIG = {"tokencake": {"policy": "vllm", "control_token_env": "A_TOKEN"}}
CONTROLS = {"Authorization": f"Bearer {TOKEN}", RUN_HEADER: RUN}


class Engine:
    """Stands for vLLM's engine client: keeps what it is asked, and answers as it is told."""

    def __init__(self, answer: Callable[[str, Any], Any]) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.heard: list[str] = []
        self._answer = answer
        self.engine_core = self
        self.vllm_config = SimpleNamespace(additional_config=CONFIG)
        self.model_config = SimpleNamespace(get_vocab_size=lambda: 99)

    async def call_utility_async(self, method: str, op: str, payload: Any) -> Any:
        assert method == "tokencake_control"
        self.asked.append((op, payload))
        await asyncio.sleep(0.05)  # the engine is in a step
        self.heard.append(op)
        return self._answer(op, payload)


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", TOKEN)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


def served(
    answer: Callable[[str, Any], Any] = lambda op, payload: {"op": op},
    api_key: list[str] | None = None,
    config: dict[str, Any] = CONFIG,
) -> tuple[TestClient, Engine]:
    """The client of somebody who has the control token, and began the run `RUN`."""
    app, routes, engine = FastAPI(), Routes(), Engine(answer)
    engine.vllm_config.additional_config = config
    routes.attach_router(app)
    asyncio.run(routes.init_state(engine, app.state, Namespace(api_key=api_key)))
    return TestClient(app, headers=CONTROLS), engine


def raising(error: Exception) -> Callable[[str, Any], Any]:
    def answer(op: str, payload: Any) -> Any:
        raise error

    return answer


def test_each_route_asks_the_scheduler_for_its_operation() -> None:
    client, engine = served()
    answers = [
        client.get("/tokencake/info"),
        client.post("/tokencake/run", json={"policy": "vllm"}),
        client.post("/tokencake/events", json={"events": [EVENT]}),
        client.get("/tokencake/facts?from=7&limit=5"),
        client.post("/tokencake/end"),
    ]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert engine.asked == [
        ("info", {}),
        ("begin", {"run": RUN, "settings": {"policy": "vllm"}}),
        ("tell", {"events": [EVENT]}),
        ("facts", {"run": RUN, "from": 7, "limit": 5}),
        ("end", {"run": RUN}),
    ]
    assert answers[0].json() == {"op": "info", "vocabulary": 99}


def test_facts_are_asked_for_from_the_first_on_and_not_all_at_once() -> None:
    client, engine = served()
    client.get("/tokencake/facts")
    client.get(f"/tokencake/facts?limit={MOST_FACTS + 1}")
    assert engine.asked == [("facts", {"run": RUN, "from": 0, "limit": MOST_FACTS})] * 2


def test_events_that_need_no_answer_are_on_their_way_when_it_comes() -> None:
    client, engine = served()
    with client:
        answer = client.post("/tokencake/events?wait=false", json={"events": [EVENT]})
        assert answer.status_code == 202
        assert engine.asked == [("tell", {"events": [EVENT]})]
        assert engine.heard == []  # the engine has not taken them in
        client.get("/tokencake/info")
        assert engine.heard == ["tell", "info"]


def test_what_nobody_waits_for_is_refused_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    logger = SimpleNamespace(warning=lambda text, *args: said.append(text % args))
    monkeypatch.setattr("tokencake.live.route._logger", lambda: logger)
    client, _ = served(lambda op, payload: {"error": "no such agent"})
    with client:
        assert client.post("/tokencake/events?wait=false", json={"events": [EVENT]}).status_code == 202
        client.get("/tokencake/info")
    assert said == ["tokencake: events were refused: no such agent"]


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("events", b"{", "expected JSON: "),
        ("events", b"\xff", "expected text in UTF-8, got byte 0xff in column 1"),
        ("events", b"[" * 100_000, "expected at most a few levels of lists and objects"),
        ("events", b"[]", "expected a JSON object"),
        ("events", b"{}", 'expected {"events": '),
        ("events", b'{"events": [3]}', "event: expected an object, got 3"),
        ("events", b'{"events": [{"event": "app_started"}]}', 'event: the field "app" is missing'),
        (
            "events",
            b'{"events": [{"event": "app_started", "app": "a\\u0000"}]}',
            "event: app: expected 1 to 200 printable",
        ),
        (
            "events",
            b'{"events": [{"event": "app_started", "app": "\\ud800"}]}',
            "event: app: expected 1 to 200 printable",
        ),
        (
            "events",
            b'{"events": [{"event": "app_started", "app": "a", "at_s": NaN}]}',
            "expected JSON, which has no NaN",
        ),
        (
            "events",
            b'{"events": [{"event": "app_started", "app": "a", "at_s": 1' + b"0" * 400 + b"}]}",
            "event: at_s: ",
        ),
        (
            "events",
            b'{"events": [{"event": "app_started", "app": "a", "at_s": 1' + b"0" * 5000 + b"}]}",
            "expected numbers of at most 4300 digits, got ",
        ),
        ("events", b'{"events": [{"event": "tool_returned", "app": "a"}]}', "event: agent: expected the name"),
        ("run", b'{"policy": "vllm", "events": "/etc/passwd"}', 'tokencake settings: unknown field "events"'),
        ("run", b'{"policy": "vllm\\u0000"}', "tokencake settings: policy: expected 1 to 1000 printable"),
        ("run", b'{"app_timeout_s": NaN}', "expected JSON, which has no NaN"),
        ("run", b'{"app_timeout_s": -1}', "tokencake settings: app_timeout_s: expected seconds"),
        ("run", b'{"seed": -5}', "tokencake settings: seed: expected a whole number from 0 to "),
        ("run", b'{"seed": 1' + b"0" * 400 + b"}", "tokencake settings: seed: expected a whole number from 0 to "),
        ("run", b'{"seed": true}', "tokencake settings: seed: expected a whole number from 0 to "),
        ("run", b'{"costs": {"copy_s": 1}}', "tokencake settings: costs: the field "),
        ("run", b'{"settings": {}}', 'tokencake settings: unknown field "settings"'),
        ("run", b"", "expected JSON: "),
        ("run", b'{"policy": "vllm", "policy": "tokencake"}', 'expected each field once, got "policy" twice'),
        ("run", '{"policy": "vllm"}'.encode("utf-16"), "expected text in UTF-8, got byte 0xff"),
        ("events", b'{"events": [{"event": "app_started", "app": "a", "app": "b"}]}', "expected each field once"),
        ("events", b'{"events": [{"event": "app_started", "app": "a"', "expected JSON: "),
    ],
)
def test_a_wrong_body_is_refused_in_one_line(path: str, body: bytes, said: str) -> None:
    client, engine = served()
    answer = client.post(f"/tokencake/{path}", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(said)
    assert "\n" not in answer.json()["error"]
    assert "cut off" not in answer.json()["error"]  # that is for files
    assert engine.asked == []


@pytest.mark.parametrize("query", ["from=x", "from=-1", "from=1e3", "limit=٣", "from=" + "9" * 30])
def test_a_wrong_number_is_refused(query: str) -> None:
    client, engine = served()
    answer = client.get(f"/tokencake/facts?{query}")
    assert (answer.status_code, engine.asked) == (400, [])
    assert "expected a whole number, got" in answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "said"),
    [
        ("POST", "events?wiat=false", 'unknown parameter "wiat": known are wait'),
        ("POST", "events?wait=no", 'wait: expected true or false, got "no"'),
        ("POST", "events?wait=false&wait=true", "expected the parameter wait once, got it twice"),
        ("GET", "facts?FROM=3", 'unknown parameter "FROM": known are from, limit'),
        ("GET", "facts?from=3&from=4", "expected the parameter from once, got it twice"),
        ("POST", "run?policy=vllm", 'unknown parameter "policy": known are none'),
    ],
)
def test_a_parameter_that_is_none_is_not_dropped(method: str, path: str, said: str) -> None:
    client, engine = served()
    answer = client.request(method, f"/tokencake/{path}", json={"events": [EVENT]})
    assert (answer.status_code, answer.json(), engine.asked) == (400, {"error": said}, [])


def test_blanks_around_the_length_of_a_body_are_no_part_of_it() -> None:
    client, engine = served()
    answer = client.post("/tokencake/run", content=b"{}", headers={"Content-Length": "2 "})
    assert (answer.status_code, len(engine.asked)) == (200, 1)


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (lambda op, payload: {"error": "no policy 'x'\nis known"}, 400, "no policy 'x' is known"),
        (
            raising(Exception("Call to … failed: 'EngineCoreProc' object has no attribute 'tokencake_control'")),
            409,
            "the engine does not run Tokencake's scheduler: see `tokencake live --print-serve-args`",
        ),
        (raising(RuntimeError("EngineCore died")), 503, "EngineCore died"),
        (raising(RuntimeError()), 503, "RuntimeError"),
    ],
)
def test_what_the_engine_refuses(answer: Callable[[str, Any], Any], status: int, said: str) -> None:
    client, _ = served(answer)
    refused = client.post("/tokencake/run", json={})
    assert (refused.status_code, refused.json()) == (status, {"error": said})


def test_the_servers_keys_guard_these_routes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    client, engine = served(api_key=["one", "two"])
    client.headers.pop("Authorization")
    for header in ({}, {"Authorization": "Bearer three"}, {"Authorization": "Basic one"}, {"Authorization": "one"}):
        refused = client.get("/tokencake/info", headers=header)
        assert (refused.status_code, refused.json(), engine.asked) == (401, {"error": "unauthorized"}, [])
    assert client.get("/tokencake/info", headers={"Authorization": "Bearer two"}).status_code == 200

    monkeypatch.setenv("VLLM_API_KEY", "four")
    client, _ = served()
    client.headers.pop("Authorization")
    assert client.get("/tokencake/info").status_code == 401
    assert client.get("/tokencake/info", headers={"Authorization": "bearer four"}).status_code == 200


# -- who controls runs


CONTROL_ROUTES = [("POST", "run"), ("POST", "end"), ("GET", "facts")]


@pytest.mark.parametrize(("method", "path"), CONTROL_ROUTES)
def test_a_server_that_was_not_asked_for_control_routes_has_none(method: str, path: str) -> None:
    for config in ({}, {"tokencake": {"policy": "vllm"}}):
        client, engine = served(config=config)
        refused = client.request(method, f"/tokencake/{path}", json={})
        assert (refused.status_code, engine.asked) == (403, [])
        assert "started without control routes" in refused.json()["error"]
        assert client.get("/tokencake/info").status_code == 200


@pytest.mark.parametrize("header", ["", "Bearer ", "Bearer one", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN[:-1]}"])
@pytest.mark.parametrize(("method", "path"), CONTROL_ROUTES)
def test_nobody_controls_runs_without_the_token_and_the_api_key_is_none(method: str, path: str, header: str) -> None:
    client, engine = served(api_key=["one"])
    refused = client.request(method, f"/tokencake/{path}", headers={"Authorization": header}, json={})
    assert (refused.status_code, engine.asked) == (401, [])
    assert refused.json() == {"error": "expected the server's control token, which is not the API key"}


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("", "at least 32 characters in that environment variable, found none"),
        ("short", "found one of 5"),
        ("t" * 31, "found one of 31"),
        ("é" * 40, "expected a token of ASCII"),
        ("t" * 40 + " ", "expected a token of ASCII"),
        ("k" * 32, "expected a token of its own, found the API key that users have"),
    ],
)
def test_a_token_that_is_none_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, token: str, said: str) -> None:
    monkeypatch.setenv("A_TOKEN", token)
    with pytest.raises(EngineError, match=said) as caught:
        served(api_key=["k" * 32])
    assert "control_token_env: A_TOKEN: " in str(caught.value)


def test_a_run_has_a_name_that_nobody_guesses_unless_its_client_gives_it_one() -> None:
    client, engine = served()
    client.headers.pop(RUN_HEADER)
    for _ in range(2):
        client.post("/tokencake/run", json={})
    names = [payload["run"] for _, payload in engine.asked]
    assert len(set(names)) == 2
    assert all(len(name) >= 32 for name in names)
    for method, path in CONTROL_ROUTES[1:]:
        refused = client.request(method, f"/tokencake/{path}")
        assert (refused.status_code, len(engine.asked)) == (400, 2)
        assert "expected the header Tokencake-Run" in refused.json()["error"]


def test_what_the_engine_cannot_do_now_has_a_status_of_its_own() -> None:
    client, _ = served(lambda op, payload: {"error": "busy", "status": 423})
    refused = client.post("/tokencake/run", json={})
    assert (refused.status_code, refused.json()) == (423, {"error": "busy"})


# -- what comes is bounded, in bytes and in time


@pytest.mark.parametrize("path", ["events", "run"])
def test_a_body_that_is_too_long_is_not_read_to_its_end(path: str) -> None:
    client, engine = served()
    whole = client.post(f"/tokencake/{path}", content=b" " * (LARGEST_BODY + 1))
    assert (whole.status_code, whole.json()) == (413, {"error": f"expected a body of at most {LARGEST_BODY} bytes"})
    compressed = client.post(f"/tokencake/{path}", content=b"x", headers={"Content-Encoding": "gzip"})
    assert (compressed.status_code, engine.asked) == (415, [])


def test_of_a_body_in_chunks_no_more_is_read_than_is_allowed() -> None:
    """By ASGI itself: a test client would first gather the whole body."""
    app, routes, engine = FastAPI(), Routes(), Engine(lambda op, payload: {})
    routes.attach_router(app)
    asyncio.run(routes.init_state(engine, app.state, Namespace(api_key=None)))
    taken, sent = asyncio.run(asked(app, [b" " * 2**16] * 1000))
    assert sent == 413
    assert taken == LARGEST_BODY // 2**16 + 1
    assert engine.asked == []


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "BODY_S", 0.05)
    app, routes, engine = FastAPI(), Routes(), Engine(lambda op, payload: {})
    routes.attach_router(app)
    asyncio.run(routes.init_state(engine, app.state, Namespace(api_key=None)))
    taken, sent = asyncio.run(asked(app, [b"{"]))
    assert (taken, sent, engine.asked) == (1, 408, [])


async def asked(app: FastAPI, chunks: list[bytes]) -> tuple[int, int]:
    """POSTs a body in chunks that never ends: how many were taken, and the status of the answer."""
    left, statuses = list(chunks), []

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": left.pop(0), "more_body": True}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    headers = [(b"authorization", f"Bearer {TOKEN}".encode()), (b"transfer-encoding", b"chunked")]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
             "path": "/tokencake/run", "raw_path": b"/tokencake/run", "query_string": b"", "root_path": "",
             "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2)}  # fmt: skip
    await app(scope, receive, send)
    return len(chunks) - len(left), statuses[0]


def test_an_engine_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "ANSWER_S", 0.05)
    client, engine = served()

    async def hang(*asked: object) -> None:
        await asyncio.sleep(60)

    engine.call_utility_async = hang  # type: ignore[method-assign,assignment]
    for method, path in [*CONTROL_ROUTES, ("GET", "info")]:
        refused = client.request(method, f"/tokencake/{path}", json={})
        assert refused.status_code == 503
        assert refused.json()["error"].startswith("the engine has not answered for 0.05 s")


def test_messages_to_an_engine_that_does_not_listen_are_not_gathered_for_ever() -> None:
    client, engine = served()

    async def hang(*asked: object) -> None:
        await asyncio.sleep(60)

    engine.call_utility_async = hang  # type: ignore[method-assign,assignment]
    with client:
        statuses = [
            client.post("/tokencake/events?wait=false", json={"events": [EVENT]}).status_code
            for _ in range(MOST_UNHEARD + 1)
        ]
    assert statuses == [202] * MOST_UNHEARD + [503]


def test_questions_that_no_client_sends_leave_a_server_that_has_a_run() -> None:
    """`tests/helpers/fuzz_routes.py` asks more."""
    from fuzz_routes import FuzzedServer

    server = FuzzedServer()
    statuses = {server.ask(seed) for seed in range(1500)}
    assert statuses >= {200, 202, 400, 401, 423}
