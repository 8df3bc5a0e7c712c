"""Whatever is sent to a server's routes, or said beside a request: an answer in a line, and the engine goes on.

Routes, control and adapter are the real ones, and so is vLLM's scheduler, in virtual time; between the routes and the
engine lies the encoding that vLLM has there.
"""

from __future__ import annotations

import asyncio
import json
import random
from argparse import Namespace
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from fastapi import FastAPI
from fastapi.testclient import TestClient
from fuzz_mutations import mutated
from random_clients import LONGEST_TOKENS, Clients, machine
from seeds import seeds
from virtual_engine import VOCABULARY, Virtual
from vllm.exceptions import VLLMValidationError
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from tokencake.live.engine.control.metadata import KEY
from tokencake.live.engine.control.protocol import RUN_HEADER
from tokencake.live.route import Routes
from tokencake.policies.run_settings import RunSettings
from tokencake.sim.machine.timing import PS_PER_S

OPERATIONS = 250
TOKEN, USERS_KEY = "t" * 32, "k" * 10
RUN = "r" * 32
CONFIG = {"tokencake": {"policy": "tokencake", "control_token_env": "A_TOKEN"}}
# Not among them: 422, with which fastapi would refuse what it looked at before us, and 5xx, for what broke.
EXPECTED = {200, 202, 400, 401, 404, 405, 408, 409, 413, 415, 423}

EVENTS = {
    "events": [
        {"event": "app_started", "app": "a1", "at_s": 0.5},
        {"event": "tool_started", "app": "a1", "agent": "g1", "call": "r1"},
        {"event": "tool_returned", "app": "a1", "agent": "g1"},
        {"event": "app_finished", "app": "a1"},
    ]
}
SETTINGS = {
    "policy": "native-offload",
    "seed": 3,
    "costs": {"copy_s": 0.001, "copy_block_s": 0.0001, "prefill_token_s": 0.0001, "attention_s": 0.0},
    "steps": True,
    "keep_facts": True,
    "app_timeout_s": 5.0,
    "session_timeout_s": 50.0,
}
METADATA = {
    "app": "a1", "agent": "g1", "type": "coder", "call": "edit", "max_output": 5,
    "tools": [{"kind": "test", "declared_s": 1.5}], "hints": {"critical_path": True}, "last": False,
}  # fmt: skip
ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("POST", "events", EVENTS),
    ("POST", "run", SETTINGS),
    ("POST", "end", {}),
    ("GET", "facts", None),
    ("GET", "info", None),
)
QUERIES = (
    *("", "", "?from=0", "?from=3&limit=2", "?limit=0", "?wait=false", "?from=-1", "?from=%00", "?wait=%ff"),
    *("?limit=99999999999999999", "?from=٣", "?from=1&from=2"),
)
AUTHORIZATIONS = ("", "Bearer", "Basic x", f"Bearer {TOKEN}t", "Bearer é", "bearer  ")
RUNS = ("", "short", "r" * 201, "é" * 40, " " * 40, "r" * 31 + "\t", "s" * 32)


class Socket:
    """Stands for vLLM's client of its engine core: what is asked crosses to the engine and back as bytes."""

    def __init__(self, engine: Virtual) -> None:
        self._control = engine.scheduler._tokencake_control
        self.engine_core = self
        self.vllm_config = SimpleNamespace(additional_config=CONFIG)
        self.model_config = SimpleNamespace(get_vocab_size=lambda: VOCABULARY)

    async def call_utility_async(self, method: str, op: str, payload: Any) -> Any:
        assert method == "tokencake_control"
        await asyncio.sleep(0)
        return self._crossed(self._control.handle(op, self._crossed(payload)))

    def _crossed(self, value: Any) -> Any:
        return MsgpackDecoder().decode(MsgpackEncoder().encode(value))


class Everybody(Clients):
    """Clients of whom some say nonsense, and somebody who sends anything to the routes."""

    def __init__(self, engine: Virtual, rng: random.Random, http: TestClient) -> None:
        super().__init__(engine, rng)
        self._http = http
        self.answers: Counter[int] = Counter()
        self.operations |= {self.say_nonsense: 2, self.ask: 12, self.begin: 1, self.end: 0.3}

    def say_nonsense(self) -> None:
        """Beside a request that is right otherwise: it is served."""
        self.count += 1
        name = f"n{self.count}"
        text = self._mutant(METADATA).decode(errors="replace")
        prompt = [self.rng.randrange(1, VOCABULARY) for _ in range(self.rng.randint(1, LONGEST_TOKENS - 3))]
        try:
            said = json.loads(text) if self.rng.random() < 0.7 else text
            self.engine.add(name, prompt, 2, self.engine.adapter.now_s(), {KEY: said})
        except (ValueError, RecursionError, VLLMValidationError):
            return  # nobody can send that, or vLLM refuses it
        self.sent[name] = ((f"nonsense{self.count}", "g"), prompt, 2)

    def begin(self) -> None:
        """A run that is in order, so that there are such."""
        self._answered(self._http.post("/tokencake/run", json=SETTINGS, headers=controls()))

    def end(self) -> None:
        self._answered(self._http.post("/tokencake/end", headers=controls()))

    def ask(self) -> None:
        rng = self.rng
        method, name, value = rng.choice(ROUTES)
        if rng.random() < 0.05:
            method = rng.choice(("GET", "POST", "PUT", "DELETE", "HEAD"))
        content = None if value is None else json.dumps(value).encode()
        if content is not None and rng.random() < 0.8:
            content = self._mutant(value)
        query = rng.choice(QUERIES) if name == "facts" or rng.random() < 0.1 else ""  # elsewhere any is refused
        url = f"/tokencake/{name}{query}"
        self._answered(self._http.request(method, url, content=content, headers=self._headers(name)))

    def _mutant(self, value: object) -> bytes:
        return mutated("json", self.rng.randrange(2**32), (json.dumps(value).encode(),))

    def _headers(self, name: str) -> dict[str, bytes]:
        rng = self.rng
        users = name in ("events", "info") if rng.random() < 0.9 else rng.random() < 0.5
        headers = {"Authorization": f"Bearer {USERS_KEY}"} if users else controls()
        if rng.random() < 0.15:
            headers["Authorization"] = rng.choice(AUTHORIZATIONS)
        if rng.random() < 0.15:
            headers[RUN_HEADER] = rng.choice(RUNS)
        if rng.random() < 0.05:
            headers["Content-Encoding"] = rng.choice(("gzip", "identity", "", "x"))
        return {name: value.encode() for name, value in headers.items()}

    def _answered(self, answer: Any) -> None:
        self.answers[answer.status_code] += 1
        assert answer.status_code in EXPECTED, (answer.status_code, answer.text)
        if answer.status_code >= 400 and answer.content and answer.status_code not in (404, 405):
            error = answer.json()["error"]
            assert error
            assert "\n" not in error
            assert len(error) < 2_000


def controls() -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKEN}", RUN_HEADER: RUN}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
@seeds(4, 40)
def test_whatever_is_sent(seed: int, asynchronous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", TOKEN)
    rng = random.Random(f"routes {seed}")
    engine = Virtual(machine(rng, asynchronous))
    control = engine.scheduler._tokencake_control
    control._clock = lambda: engine.now_ps / PS_PER_S
    control.begin_own(RunSettings(policy="tokencake", costs=engine.machine.beliefs()))
    app, routes = FastAPI(), Routes()
    routes.attach_router(app)
    asyncio.run(routes.init_state(Socket(engine), app.state, Namespace(api_key=[USERS_KEY])))
    with TestClient(app) as http:
        everybody = Everybody(engine, rng, http)
        for _ in range(OPERATIONS):
            everybody.operate()
            assert engine.adapter.settings is not None
        everybody.come_to_an_end()
    assert everybody.answers[200] > 5
    assert sum(count for status, count in everybody.answers.items() if status >= 400) > 10
    engine.now_ps += round(2 * control._timeout_s) * PS_PER_S  # who has not been heard of has left
    control.look()
    assert engine.adapter.settings is control._own
    assert not engine.adapter.errors
    engine.adapter.end()
    engine.come_to_rest()
    assert engine.leaked_blocks() == 0
