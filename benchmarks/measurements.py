"""Measurements of real engines, as a folder has them that `measured/README.md` describes.

Whatever is wrong with a folder is said with the file, the line or the field, and what was expected there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tokencake.sim.machine.derivation.gpus import GPUS, Gpu
from tokencake.sim.machine.derivation.roofline import derive
from tokencake.sim.machine.machine import RULES, Machine
from tokencake.sim.machine.models.published import PUBLISHED_MODELS, published_model
from tokencake.traces.apps import Application, Call, Prompt, Segment
from tokencake.traces.errors import MachineError, TraceError
from tokencake.traces.files.fields import MAX_SECONDS, MAX_TOKENS, WrongField, flag, name, text
from tokencake.traces.files.input_limits import LINE_BYTES
from tokencake.traces.files.schema import (
    Check,
    free,
    list_of,
    map_of,
    number_from,
    one_of,
    printable,
    record,
    ruled,
    whole_from,
)
from tokencake.traces.files.source_file import check_file, lines, whole
from tokencake.traces.files.strict_json import strict_json
from tokencake.traces.format.reader import read_trace
from tokencake.traces.limits import problem

RUNS = "runs.json"
QUANTITIES = ("ttft", "tpot", "latency")
THROUGHPUT = "output_tokens_per_s"  # from the first call's arrival to the last one's end
QUANTILES = (50, 90, 99)

Figures = dict[str, dict[str, float]]  # quantity -> mean, p50, p90, p99 in seconds
Factors = tuple[float, float, float, float]  # on a GPU's fixed cost, arithmetic, weights' and contexts' bandwidth
AS_THEY_ARE: Factors = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Run:
    """A measurement: the engine's settings, what it was asked for, and what came out."""

    name: str
    gpu: str
    model: str
    gpus: int
    step_budget_tokens: int
    max_running: int
    engine: str
    source: str
    seen: bool  # the presets' constants were chosen with this run in sight
    applications: tuple[Application, ...] = field(repr=False)
    measured: Figures
    over_http: bool = False  # the clock was the client's
    blocks: int | None = None  # KV blocks that the engine printed, the null block among them
    others: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def machine(self, factors: Factors = AS_THEY_ARE) -> Machine:
        return derive(
            scaled(GPUS[self.gpu], factors),
            published_model(self.model),
            self.gpus,
            self.name,
            step_budget_tokens=self.step_budget_tokens,
            max_running=self.max_running,
        )


def scaled(gpu: Gpu, factors: Factors) -> Gpu:
    """The GPU with other constants."""
    fixed, arithmetic, weights, contexts = factors
    return replace(
        gpu,
        engine_s=fixed * gpu.engine_s,
        layer_s=fixed * gpu.layer_s,
        tflops=arithmetic * gpu.tflops,
        weights_tbps=weights * gpu.weights_tbps,
        context_tbps=contexts * gpu.context_tbps,
    )


def read(folders: Sequence[Path]) -> list[Run]:
    """The measurements of folders. Raises TraceError."""
    found: dict[str, Run] = {}
    for folder in folders:
        path = folder / RUNS
        for index, row in enumerate(_json(path, RUNS_FILE)["runs"]):
            place = f"{path}: runs[{index}]"
            try:
                run = _run(folder, row)
            except (WrongField, MachineError) as wrong:
                raise TraceError(f"{place}: {wrong}") from None
            if run.name in found:
                raise TraceError(f"{place}: name: expected one that no other run has, got {run.name!r} again")
            found[run.name] = run
    return list(found.values())


def _json(path: Path, check: Check[Any]) -> Any:
    check_file(path)
    try:
        return check(strict_json(whole(path, LINE_BYTES)), "")
    except WrongField as wrong:
        raise TraceError(f"{path}: {wrong}") from None


def _run(folder: Path, row: Mapping[str, Any]) -> Run:
    kind = OF_REQUESTS if "requests" in row else STEADY
    found = kind(row, "")
    if "requests" in row:
        path = folder / found.pop("requests")
        requests = list(_requests(path))
        applications = tuple(_arriving(folder / found.pop("trace"), path, requests))
        run = Run(applications=applications, measured=_measured(requests), **found)
    else:
        workload = {key: found.pop(key) for key in LOAD}
        if workload["shared_tokens"] >= workload["prompt_tokens"]:
            raise WrongField("shared_tokens", f"expected fewer than prompt_tokens, {workload['prompt_tokens']}")
        if workload["output_tokens"] == 1 and "tpot" in found["measured"]:
            raise WrongField("measured.tpot", "expected none of calls of one token")
        run = Run(applications=tuple(steady(**workload)), **found)
    machine = run.machine()
    for application in run.applications:
        if said := problem(application, machine):
            raise WrongField("", said)
    return run


def _requests(path: Path) -> Iterator[Mapping[str, Any]]:
    """The requests of a file, in the order of their arrivals."""
    check_file(path)
    arrived_s = 0.0
    for number, line in lines(path):
        try:
            request = REQUEST(strict_json(line), "")
            _rising(request, arrived_s)
        except WrongField as wrong:
            raise TraceError(f"{path}:{number}: {wrong}") from None
        arrived_s = request["arrival_time"]
        yield request


def _rising(request: Mapping[str, Any], arrived_s: float) -> None:
    if request["arrival_time"] < arrived_s:
        raise WrongField("arrival_time", f"expected no earlier than the line before, {arrived_s}")
    if request["first_token_ts"] <= request["queued_ts"]:
        raise WrongField("first_token_ts", f"expected later than queued_ts, {request['queued_ts']}")
    several = request["output_toks"] > 1
    if request["last_token_ts"] < request["first_token_ts"] or (
        several and request["last_token_ts"] == request["first_token_ts"]
    ):
        than = "later than" if several else "no earlier than"
        raise WrongField("last_token_ts", f"expected {than} first_token_ts, {request['first_token_ts']}")


def _arriving(trace: Path, path: Path, requests: Sequence[Mapping[str, Any]]) -> Iterator[Application]:
    """The trace's applications, each of the call that a request was, when it arrived."""
    check_file(trace)
    count = 0
    for count, application in enumerate(read_trace(trace), start=1):
        if len(application.calls) != 1:
            raise TraceError(
                f"{trace}: application {application.id!r}: expected one call, got {len(application.calls)}"
            )
        if count > len(requests):
            break
        request, tokens = requests[count - 1], application.calls[0].output_tokens
        if request["output_toks"] != tokens:
            expected = f"output_toks: expected {tokens} as application {application.id!r} of {trace.name}"
            raise TraceError(f"{path}: request {count}: {expected}, got {request['output_toks']}")
        yield application._replace(arrival_s=request["arrival_time"] - requests[0]["arrival_time"])
    if count != len(requests) or not requests:
        raise TraceError(f"{path}: expected a request for each application of {trace.name}, got {len(requests)}")


def _measured(requests: Sequence[Mapping[str, Any]]) -> Figures:
    """Of an engine's own times of each request, counted from when it was queued."""
    first = [request["first_token_ts"] - request["queued_ts"] for request in requests]
    latency = [request["last_token_ts"] - request["queued_ts"] for request in requests]
    tokens = [request["output_toks"] for request in requests]
    span_s = max(request["last_token_ts"] for request in requests) - min(request["queued_ts"] for request in requests)
    return {**figures(first, latency, tokens), THROUGHPUT: {"mean": sum(tokens) / span_s}}


def steady(
    rate: float, calls: int, shared_tokens: int, prompt_tokens: int, output_tokens: int
) -> Iterable[Application]:
    """Applications of one call at a steady rate: a system prompt that all share, and a question of one's own."""
    system = (Segment("/system", 0, shared_tokens),) if shared_tokens else ()
    for n in range(calls):
        question = Segment(f"a{n}/question", 0, prompt_tokens - shared_tokens)
        prompt = Prompt((*system, question), tokens=prompt_tokens)
        call = Call(f"a{n}/call", f"a{n}", f"a{n}/main", "main", prompt, output_tokens, output_tokens)
        yield Application(f"a{n}", n / rate, (call,))


def figures(ttft_s: Sequence[float], latency_s: Sequence[float], output_tokens: Sequence[int]) -> Figures:
    """Means and quantiles over calls; the time between tokens of those of more than one token, if there are some."""
    ttft, latency, tokens = np.array(ttft_s), np.array(latency_s), np.array(output_tokens)
    several = tokens > 1
    tpot = (latency - ttft)[several] / (tokens - 1)[several]
    values = zip(QUANTITIES, (ttft, tpot, latency), strict=True)
    return {quantity: _summary(found) for quantity, found in values if len(found)}


def _summary(values: Any) -> dict[str, float]:
    return {"mean": float(values.mean())} | {f"p{q}": float(np.percentile(values, q)) for q in QUANTILES}


# -- what the files may hold

_SECONDS = number_from(0, MAX_SECONDS, above=True)
_ERROR = number_from(-1e6, 1e6)
_OF_ENGINE: Mapping[str, Check[Any]] = {
    "name": text,
    "gpu": one_of(*GPUS),
    "model": one_of(*PUBLISHED_MODELS),
    "gpus": whole_from(1, 1024),
    "step_budget_tokens": ruled(RULES["step_budget_tokens"].problem),
    "max_running": ruled(RULES["max_running"].problem),
    "engine": text,
    "source": printable(2000),
    "seen": flag,
}
_MORE: Mapping[str, Check[Any]] = {
    "over_http": flag,
    "blocks": whole_from(2),
    "others": map_of(map_of(_ERROR, one_of(*QUANTITIES)), text),
}
LOAD: Mapping[str, Check[Any]] = {
    "rate": number_from(1e-6, 1e6),
    "calls": whole_from(1, 100_000),
    "shared_tokens": whole_from(0, MAX_TOKENS),
    "prompt_tokens": whole_from(1, MAX_TOKENS),
    "output_tokens": whole_from(1, MAX_TOKENS),
}
_FIGURES = record({"mean": _SECONDS}, {f"p{q}": _SECONDS for q in QUANTILES})


def _some(check: Check[Any]) -> Callable[[object, str], Any]:
    def checked(value: object, place: str) -> Any:
        if not (found := check(value, place)):
            raise WrongField(place, f"expected one of {', '.join(QUANTITIES)} at least, got none")
        return found

    return checked


_MEASURED = _some(record({}, {**dict.fromkeys(QUANTITIES, _FIGURES), THROUGHPUT: record({"mean": _SECONDS})}))
STEADY = record({**_OF_ENGINE, **LOAD, "measured": _MEASURED}, _MORE)
OF_REQUESTS = record({**_OF_ENGINE, "trace": name, "requests": name}, _MORE)
RUNS_FILE = record({"runs": list_of(map_of(free), 1, 10_000)}, {"about": printable(2000)})
REQUEST = record(
    {
        "arrival_time": number_from(0, 1e12),
        "queued_ts": number_from(0, 1e12),
        "first_token_ts": number_from(0, 1e12),
        "last_token_ts": number_from(0, 1e12),
        "output_toks": whole_from(1, MAX_TOKENS),
    },
    others=free,
)
