"""The routes on vLLM's server, with questions that no client sends: in front of our control, on an engine that idles.

    OMP_NUM_THREADS=1 .venv-vllm/bin/python tests/helpers/fuzz_routes.py 10000 [FIRST SEED]

What is refused has a status of 400 or more and one line; after each question the server has its own run or a client's.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient
from fuzz_mutations import mutated
from idle_engine import IdleEngine

from tokencake.live.engine.control.protocol import RUN_HEADER
from tokencake.live.route import Routes

TOKEN, RUN = "t" * 32, "r" * 32
CONFIG = {"tokencake": {"policy": "tokencake", "control_token_env": "FUZZED_TOKEN"}}
ROUTES = ("events", "info", "run", "end", "facts")
BODIES: dict[str, bytes] = {
    "run": b'{"policy": "tokencake", "seed": 7, "steps": false, "keep_facts": true, "app_timeout_s": 9.5, "costs":'
    b' {"copy_s": 0.1, "copy_block_s": 0.1, "prefill_token_s": 0.1, "attention_s": 0.1}}',
    "events": b'{"events": [{"event": "app_started", "app": "a", "at_s": 0.5}, {"event": "tool_returned", "app": "a",'
    b' "agent": "g", "call": "c"}, {"event": "app_finished", "app": "a"}]}',
}
EXPECTED = (200, 202, 400, 401, 405, 413, 415, 423)


class FuzzedServer:
    """The routes, and what is behind them."""

    def __init__(self) -> None:
        self.engine = IdleEngine()
        self.engine_core = self
        self.vllm_config = SimpleNamespace(additional_config=CONFIG)
        self.model_config = SimpleNamespace(get_vocab_size=lambda: 99)
        app, routes = FastAPI(), Routes()
        routes.attach_router(app)
        os.environ["FUZZED_TOKEN"] = TOKEN
        asyncio.run(routes.init_state(self, app.state, Namespace(api_key=None)))
        self.client = TestClient(app)

    async def call_utility_async(self, method: str, op: str, payload: Any) -> Any:
        return self.engine.control.handle(op, payload)

    def ask(self, seed: int) -> int:
        """One question. Returns the status of the answer."""
        rng = random.Random(seed)
        name = rng.choice(ROUTES)
        method = "GET" if name in ("info", "facts") else "POST"
        query = rng.choice(("", f"?from={rng.choice(ODD)}", f"?from=0&limit={rng.choice(ODD)}", "?wait=false"))
        headers = {"Authorization": f"Bearer {rng.choice((TOKEN, TOKEN, TOKEN, 'wrong'))}"}
        if rng.random() < 0.8:
            headers[RUN_HEADER] = rng.choice((RUN, RUN, RUN, "s" * 40, "short", "\x7f" * 40))
        body = BODIES.get(name, b"{}")
        if rng.random() < 0.7:
            body = mutated(rng.choice(("json", "json", "text")), seed, (body,))
        answer = self.client.request(method, f"/tokencake/{name}{query}", headers=headers, content=body)
        assert answer.status_code in EXPECTED, (seed, answer.status_code, answer.text[:300])
        said = answer.json()
        if answer.status_code >= 400:
            assert "\n" not in said["error"], (seed, said)
        self.engine.check()
        if rng.random() < 0.05:
            self.engine.becomes(rng.choice(("busy", "idle", "time passes", "step")))
        return int(answer.status_code)


ODD = ("0", "1", "7", "-1", "x", "9" * 40, "1e3", "", "%00", "0x10")


def main() -> None:
    count, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    server = FuzzedServer()
    statuses: dict[int, int] = {}
    began = time.monotonic()
    for seed in range(first, first + count):
        status = server.ask(seed)
        statuses[status] = statuses.get(status, 0) + 1
    print(json.dumps({"questions": count, "statuses": dict(sorted(statuses.items()))}))
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
