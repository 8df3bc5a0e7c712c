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

from tokencake.live.route import MOST_FACTS, Routes

EVENT = {"event": "tool_returned", "app": "a", "agent": "main"}


class Engine:
    """Stands for vLLM's engine client: keeps what it is asked, and answers as it is told."""

    def __init__(self, answer: Callable[[str, Any], Any]) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.heard: list[str] = []
        self._answer = answer
        self.engine_core = self
        self.model_config = SimpleNamespace(get_vocab_size=lambda: 99)

    async def call_utility_async(self, method: str, op: str, payload: Any) -> Any:
        assert method == "tokencake_control"
        self.asked.append((op, payload))
        await asyncio.sleep(0.05)  # the engine is in a step
        self.heard.append(op)
        return self._answer(op, payload)


def served(
    answer: Callable[[str, Any], Any] = lambda op, payload: {"op": op}, api_key: list[str] | None = None
) -> tuple[TestClient, Engine]:
    app, routes, engine = FastAPI(), Routes(), Engine(answer)
    routes.attach_router(app)
    asyncio.run(routes.init_state(engine, app.state, Namespace(api_key=api_key)))
    return TestClient(app), engine


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
        ("begin", {"policy": "vllm"}),
        ("tell", {"events": [EVENT]}),
        ("facts", {"from": 7, "limit": 5}),
        ("end", {}),
    ]
    assert answers[0].json() == {"op": "info", "vocabulary": 99}


def test_facts_are_asked_for_from_the_first_on_and_not_all_at_once() -> None:
    client, engine = served()
    client.get("/tokencake/facts")
    client.get(f"/tokencake/facts?limit={MOST_FACTS + 1}")
    assert engine.asked == [("facts", {"from": 0, "limit": MOST_FACTS})] * 2


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
        ("events", b"\xff", "expected JSON: "),
        ("events", b"[" * 100_000, "expected JSON: "),
        ("events", b"[]", "expected a JSON object"),
        ("events", b"{}", 'expected {"events": '),
        ("events", b'{"events": [3]}', 'expected {"events": '),
        ("run", b"", "expected JSON: "),
    ],
)
def test_a_wrong_body_is_refused_in_one_line(path: str, body: bytes, said: str) -> None:
    client, engine = served()
    answer = client.post(f"/tokencake/{path}", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(said)
    assert "\n" not in answer.json()["error"]
    assert engine.asked == []


@pytest.mark.parametrize("query", ["from=x", "from=-1", "from=1e3", "limit=٣", "from=" + "9" * 30])
def test_a_wrong_number_is_refused(query: str) -> None:
    client, engine = served()
    answer = client.get(f"/tokencake/facts?{query}")
    assert (answer.status_code, engine.asked) == (400, [])
    assert "expected a whole number, got" in answer.json()["error"]


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
    for header in ({}, {"Authorization": "Bearer three"}, {"Authorization": "Basic one"}, {"Authorization": "one"}):
        refused = client.get("/tokencake/info", headers=header)
        assert (refused.status_code, refused.json(), engine.asked) == (401, {"error": "unauthorized"}, [])
    assert client.get("/tokencake/info", headers={"Authorization": "Bearer two"}).status_code == 200

    monkeypatch.setenv("VLLM_API_KEY", "four")
    client, _ = served()
    assert client.get("/tokencake/info").status_code == 401
    assert client.get("/tokencake/info", headers={"Authorization": "bearer four"}).status_code == 200
