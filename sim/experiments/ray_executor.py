"""Runs on a Ray cluster. The one file that imports Ray, which is an extra: `pip install 'tokencake[ray]'`.

A worker needs Tokencake and nothing else. Trace and policy files lie in Ray's object store, and a worker has a copy of
them while it plays: it need not see the disk of this machine, and what it plays is what was read here. A worker whose
Tokencake has other code refuses, since its figures would be another simulator's.
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from ...policies.registry import is_ours, policy_file
from ...traces.errors import TokencakeError
from ...traces.files.source_file import at_hand
from .identity import code_digest
from .run import Outcome, RunSpec, attempt, lost

RETRIES = 1  # Ray's own, of a run whose worker died; the next sweep tries again
AHEAD = 2  # runs a worker that are handed out before their turn, so that no worker waits
CLEARING_S = 5.0  # for workers to stop
ANSWER_S = 10.0  # for a cluster to answer at all


def check_ray() -> None:
    """Raises TokencakeError if Ray is not installed."""
    _ray()


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise TokencakeError("--ray: Ray is not installed: pip install 'tokencake[ray]'") from None
    return ray


def on_ray(address: str | None, count: int | None, todo: Sequence[RunSpec]) -> Generator[Outcome, None, None]:
    """On the cluster at `address`, else at RAY_ADDRESS, else on one that is started on this machine for this.

    `count` runs at a time; None: as many as the cluster has CPUs. Raises TokencakeError if there is no such cluster.
    """
    with _connected(address, count) as ray:
        workers = count or max(1, int(ray.cluster_resources().get("CPU", 1)))
        pool = RayExecutor(ray, _contents(todo))
        try:
            yield from _run_on(pool, todo, workers)
        finally:
            pool.shutdown()


def _run_on(pool: RayExecutor, specs: Iterable[RunSpec], workers: int) -> Iterator[Outcome]:
    """Hand runs to the pool, never many more than it can work on, and give back what is finished."""
    coming = iter(specs)
    waiting = {pool.submit(attempt, spec) for spec in islice(coming, AHEAD * workers)}
    while waiting:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            waiting |= {pool.submit(attempt, spec) for spec in islice(coming, 1)}
            yield future.result()


@contextmanager
def _connected(address: str | None, count: int | None) -> Iterator[Any]:
    ray = _ray()
    _check_answers(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody was asked
    local = address is None and "RAY_ADDRESS" not in os.environ
    options: dict[str, Any] = {"num_cpus": count, "include_dashboard": False} if local else {"address": address}
    try:
        ray.init(logging_level="error", log_to_driver=False, **options)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise TokencakeError(f"--ray: no cluster{f' at {address}' if address else ''}: {error}") from None
    try:
        yield ray
    finally:
        ray.shutdown()  # and with it whatever is still being played


def _check_answers(address: str | None) -> None:
    """Ray itself would try for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return  # a word of Ray's, such as auto
    try:
        socket.create_connection((host, int(port)), ANSWER_S).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TokencakeError(f"--ray: no cluster at {address}: {reason}") from None


def _contents(todo: Sequence[RunSpec]) -> dict[str, bytes]:
    """Every file that the runs need, by its path as the runs have it."""
    paths = {str(spec.trace) for spec in todo}
    paths |= {str(file) for policy in {spec.policy for spec in todo} if (file := policy_file(policy)) is not None}
    try:
        return {path: at_hand(path).read_bytes() for path in sorted(paths)}
    except OSError as error:
        raise TokencakeError(f"{error.filename}: cannot be read: {error.strerror or error}") from None


class RayExecutor(Executor):
    """`submit` as a task of Ray. A task that Ray gives up is an outcome, too."""

    def __init__(self, ray: Any, contents: Mapping[str, bytes]) -> None:
        self._ray = ray
        self._pending: dict[Any, None] = {}  # references to what is not there yet
        self._contents = ray.put(dict(contents))
        self._ours = ray.remote(max_retries=RETRIES)(_play_there)
        # A worker is gone after it: what other people's code changes in its process reaches no other run.
        self._theirs = ray.remote(max_retries=RETRIES, max_calls=1)(_play_there)

    def submit(self, act: Callable[[RunSpec], Outcome], spec: RunSpec, /) -> Future[Outcome]:  # type: ignore[override]
        settled: Future[Outcome] = Future()
        # In a list Ray hands over the reference and not the files, which most calls of a worker do not need.
        task = self._ours if is_ours(spec.policy) else self._theirs
        reference = task.remote([self._contents], code_digest(), act, spec)
        self._pending[reference] = None
        reference.future().add_done_callback(partial(self._settle, reference, settled, spec))
        return settled

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Gives up what is still being played, and leaves workers the time to remove their copies."""
        if pending := list(self._pending):
            for reference in pending:
                self._ray.cancel(reference)
            self._ray.wait(pending, num_returns=len(pending), timeout=CLEARING_S)

    def _settle(self, reference: Any, settled: Future[Outcome], spec: RunSpec, done: Future[Outcome]) -> None:
        error = done.exception()
        settled.set_result(done.result() if error is None else lost(spec, _reason(error)))
        self._pending.pop(reference, None)


def _reason(error: BaseException) -> str:
    """Ray's messages go on for pages; the first sentence says it, and without addresses and times it is repeatable."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"the Ray worker that played it failed: {type(error).__name__}: {first.partition('. ')[0]}"


# -- on the worker


def _play_there(contents: Sequence[Any], code: str, act: Callable[[RunSpec], Outcome], spec: RunSpec) -> Outcome:
    if code_digest() != code:
        return lost(spec, "the Ray worker has another Tokencake: expected the same one as on the machine that asks")
    with ExitStack() as stack:
        copies = {path: stack.enter_context(_copy(path, data)) for path, data in _fetched(contents[0]).items()}
        outcome = act(_at(copies, spec))
    error = outcome.error
    for path, copy in copies.items():  # a place in a policy file is told by its name alone
        error = error and error.replace(copy, path).replace(Path(copy).name, Path(path).name)
    return outcome._replace(spec=spec, error=error)


@lru_cache(maxsize=1)
def _fetched(contents: Any) -> Mapping[str, bytes]:
    files: Mapping[str, bytes] = _ray().get(contents)
    return files


@lru_cache(maxsize=1)
def _mark() -> str:
    """The process's own: nobody can have put a file of that name there. The same for each of its runs."""
    return secrets.token_hex(16)


@contextmanager
def _copy(path: str, data: bytes) -> Iterator[str]:
    """A file of this content, as long as it is needed. It keeps its ending, by which policies are known."""
    copy = Path(tempfile.gettempdir()) / f"tokencake-{_mark()}-{Path(path).name}"
    try:
        with copy.open("xb") as file:
            file.write(data)
        os.utime(copy, ns=(0, 0))  # it is the file that the worker has read already, if it has
        yield str(copy)
    finally:
        copy.unlink(missing_ok=True)


def _at(copies: Mapping[str, str], spec: RunSpec) -> RunSpec:
    """The run as it is played here."""
    policy = spec.policy
    if (file := policy_file(policy)) is not None:
        policy = copies[str(file)] + policy.removeprefix(str(file))
    return replace(spec, trace=Path(copies[str(spec.trace)]), policy=policy)
