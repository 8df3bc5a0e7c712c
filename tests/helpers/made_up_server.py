"""A server that looks like vLLM with our plugin, made up for tests of its client: it answers at once and logs it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tokencake import __version__
from tokencake.live.engine.control.metadata import from_extra_args
from tokencake.traces import events as e
from tokencake.traces.format.events_file import encode

TOKEN = "c" * 32  # that opens the control routes; a client takes it from TOKENCAKE_CONTROL_TOKEN

MODEL = "made-up"
VOCABULARY = 1000

Answer = tuple[int, object]


class MadeUpServer:
    """Its state, which tests look into and change: `info`, `served`, and `before`, called with each request's path and
    body; what that returns is answered instead."""

    def __init__(self) -> None:
        self.info: dict[str, object] = {
            "tokencake": __version__,
            "vllm": "0.32.0",
            "block_tokens": 16,
            "gpu_blocks": 1000,
            "max_context_tokens": 5000,
            "vocabulary": VOCABULARY,
        }
        self.served = ["other", MODEL]
        self.before: Callable[[str, Any], Answer | None] = lambda path, body: None
        self.published = True  # whether there are counters
        self.unseen_tokens = 0  # that vLLM's counters have and the facts have not
        self.answer_tokens_short = 0
        self.log: list[tuple[str, Any]] = []  # what came, in order: `run`, `end`, events by name, and calls
        self.records: list[e.Fact | e.Planned] = []
        self.keys: set[str] = set()  # that requests had
        self.runs: list[str] = []  # names of runs, in the order in which they began
        self.under_way = False
        self.stalled: object = None  # what it says of its engine
        self.fetched = 0  # records that the client has for sure, since it asked for those behind them
        self._prompt_tokens = 0
        self._answer_tokens = 0
        self._start_s = 0.0
        self._lock = threading.Lock()
        self.url = ""

    def answer(self, path: str, query: Mapping[str, list[str]], body: Any, headers: Any) -> Answer:
        instead = self.before(path, body)
        if instead is not None:
            return instead
        if path in ("/tokencake/run", "/tokencake/end", "/tokencake/facts"):
            if headers["Authorization"] != f"Bearer {TOKEN}":
                return 401, {"error": "expected the server's control token"}
            run = headers["Tokencake-Run"]
            if path == "/tokencake/run":
                self.runs.append(run)
                self.under_way = True
            elif run not in self.runs[-1:]:
                return 400, {"error": "no run of that name is under way"}
        with self._lock:
            return self._answers(path, query, body)

    def _answers(self, path: str, query: Mapping[str, list[str]], body: Any) -> Answer:
        if path == "/tokencake/info":
            return 200, self.info
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.served]}
        if path == "/metrics":
            return 200, self._metrics() if self.published else "# nothing\n"
        if path == "/tokencake/run":
            return self._run(body)
        if path == "/tokencake/end":
            self.log.append(("end", None))
            self.under_way = False
            self.records.append(e.Occupied(self.now_s(), 0.0, 0.0, 0.0, 0.0, steps=7))
            return 200, {"policy_s": 0.25, "errors": ["a policy raised"]}
        if path == "/tokencake/events":
            self.log += [(event["event"], event) for event in body["events"]]
            return 202, {}
        if path == "/tokencake/facts":
            first = self.fetched = int(query["from"][0])
            lines = [encode(record) for record in self.records[first : first + 5]]
            told = {"lines": lines, "next": first + len(lines), "under_way": self.under_way}
            return 200, {**told, "stalled": self.stalled}
        if path == "/v1/completions":
            ids = self._serve(body, len(body["prompt"]))
            return 200, {
                "id": "1",
                "object": "text_completion",
                "choices": [{"index": 0, "text": "", "token_ids": ids}],
            }
        if path == "/v1/chat/completions":
            words = sum(len(message["content"].split()) for message in body["messages"])
            text = " ".join(f"w{token}" for token in self._serve(body, words))
            message = {"role": "assistant", "content": text}
            return 200, {"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": message}]}
        return 404, {"error": {"message": "Not Found"}}

    def _run(self, settings: Any) -> Answer:
        self.log.append(("run", settings))
        self._start_s = time.monotonic()
        self.records = [e.RunStarted(0.0, 16, 1000, 0, 1), e.Planned(0.0, {})]
        return 200, {}

    def _serve(self, body: Any, prompt_tokens: int) -> list[int]:
        told = from_extra_args(body["vllm_xargs"], "request", prompt_tokens, body["max_tokens"])
        assert told is not None
        request, tokens = told.request, body["max_tokens"] - self.answer_tokens_short
        self.log.append(("call", {"call": request.id, "last": told.last, **body}))
        at_s = self.now_s()
        self.records += [
            e.CallArrived(at_s, request),
            e.CallAdmitted(at_s, request.id, 0, 0, 0),
            e.FirstToken(at_s, request.id),
            e.CallFinished(at_s, request.id, tokens, 0),
        ]
        self._prompt_tokens += prompt_tokens
        self._answer_tokens += tokens
        return [(len(self.log) + token) % VOCABULARY for token in range(tokens)]

    def _metrics(self) -> str:
        counted = {
            'prompt_tokens_total{model_name="made-up"}': self._prompt_tokens + self.unseen_tokens * len(self.calls),
            'prompt_tokens_by_source_total{source="local_compute"}': self._prompt_tokens,
            'prompt_tokens_by_source_total{source="local_cache_hit"}': 0,
            'prompt_tokens_by_source_total{source="external_kv_transfer"}': 0,
            'generation_tokens_total{model_name="made-up"}': self._answer_tokens,
            'num_preemptions_total{model_name="made-up"}': 0,
        }
        return "".join(f"# TYPE {name} counter\nvllm:{name} {float(value)}\n" for name, value in counted.items())

    def now_s(self) -> float:
        return time.monotonic() - self._start_s

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The calls that came: their names, and all that was sent."""
        return [what for kind, what in self.log if kind == "call"]

    def places(self) -> dict[str, int]:
        """Where in the log things are: calls by name, events by kind and whom they are about, the run and its end."""
        named = {"call": lambda what: what["call"], "run": lambda what: "", "end": lambda what: ""}
        found = {}
        for place, (kind, what) in enumerate(self.log):
            about = named.get(kind, lambda event: f"{event['app']}/{event.get('call', '')}".rstrip("/"))(what)
            found[f"{kind} {about}".strip()] = place
        return found


@contextmanager
def made_up_server() -> Iterator[MadeUpServer]:
    server = MadeUpServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # an answer is one packet: two would cost the client 40 ms, until it acknowledges the first

        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: Any) -> None:
            parts = urlsplit(self.path)
            server.keys.add(self.headers["Authorization"] or "")
            status, answer = server.answer(parts.path, parse_qs(parts.query), body, self.headers)
            if status == 0:  # the server dies
                self.close_connection = True
                return
            text = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: object) -> None:
            """Tests look into `server.log`."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    server.url = f"http://127.0.0.1:{listening.server_port}"
    try:
        yield server
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()
