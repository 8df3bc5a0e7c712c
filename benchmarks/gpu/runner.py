"""Plays the phases that are not done yet, each in its process, within its limit, until the session's time is spent."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from . import results, summary
from .plan import Phase, Process, phases_of

POLL_S = 0.1
STACKS_S = 0.5  # for a process that is about to be ended to write where it is
ENDING_S = 4.0  # for a process whose phases are through to end by itself
LOG_LINES = 30  # of the log, in the result of a phase whose process died
RESERVE_S = 3.0  # before the deadline: everything is written by then

# Engines on a machine without a network; what the user has set holds.
ENVIRONMENT = {
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    "VLLM_USE_DEEP_GEMM": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}


def machine_has_gpu() -> bool:
    """Whether there is an NVIDIA GPU, found without loading anything."""
    if any(Path(place).exists() for place in ("/dev/nvidia0", "/proc/driver/nvidia/version")):
        return True
    return shutil.which("nvidia-smi") is not None


@dataclass(frozen=True, slots=True)
class Session:
    """What was asked for. `plan` is a module that has PROCESSES."""

    out: Path
    dry: bool
    deadline_s: float
    command: str
    only: tuple[str, ...] = ()  # phases; empty: all
    plan: str = "gpu.plan"

    @property
    def processes(self) -> tuple[Process, ...]:
        found: tuple[Process, ...] = importlib.import_module(self.plan).PROCESSES
        return found

    def asked(self, process: Process) -> list[Phase]:
        """The phases of a process that have to be played; with them its first one, if the others stand on it."""
        open_ = [phase for phase in process.phases if not results.is_done(self.out, phase.name)]
        open_ = [phase for phase in open_ if not self.only or phase.name in self.only]
        opening = process.opening
        if open_ and opening is not None and opening not in open_:
            return [opening, *open_]
        return open_


class Runner:
    """One call of the command."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._end_s = time.monotonic() + session.deadline_s - RESERVE_S
        self._began = results.utc()

    def play(self) -> bool:
        """All phases. Whether all that were asked for are done."""
        for process in self._session.processes:
            if phases := self._session.asked(process):
                self._play(process, phases)
            self._write_summary()
        names = self._session.only or tuple(phases_of(self._session.processes))
        return all(results.is_done(self._session.out, name) for name in names)

    def _play(self, process: Process, phases: list[Phase]) -> None:
        """Play phases of one process, in one more each time that one was ended, in one variant after another."""
        opening, rest = process.opening, phases
        variants = list(process.variants)
        for number, variant in enumerate(variants):
            while rest:
                left_s = self._end_s - time.monotonic()
                if left_s < sum(phase.least_s for phase in rest[: 2 if rest[0] is opening else 1]):
                    self._leave_out(rest, f"{max(0.0, left_s):.0f} s were left")
                    return
                rest = rest[self._in_process(process, variant, rest) :]
                if opening is not None and rest:
                    rest = [opening, *rest]  # a fresh process needs its engine
                    if not results.is_done(self._session.out, opening.name):
                        break
            else:
                return
            assert opening is not None
            if self._keep_attempt(opening, number) == results.OUT_OF_TIME and process.hasty in variants[number + 1 :]:
                del variants[number + 1 : variants.index(process.hasty)]
        self._leave_out(rest[1:], f"{rest[0].name} failed")

    def _in_process(self, process: Process, variant: str, phases: Sequence[Phase]) -> int:
        """Play phases in one process, which is ended if one overruns. How many came to an end, in whatever way."""
        out = self._session.out
        for phase in phases:
            results.path_of(out, phase.name).unlink(missing_ok=True)
        with (out / f"{process.name}.log").open("ab") as log:
            mark = log.tell()
            child = self._started(process, variant, phases, log.fileno())
            try:
                for number, phase in enumerate(phases):
                    self._say(f"{phase.title} {f'({variant})' if variant else ''}".rstrip())
                    if not self._waited(child, phase):
                        self._close(phase, child, out / f"{process.name}.log", mark)
                        return number + 1
                    if self._failed_opening(process, phase):
                        return number + 1
                with suppress(subprocess.TimeoutExpired):  # all is written: it is ended if it takes its time
                    child.wait(min(ENDING_S, max(0.1, self._end_s - time.monotonic())))
            finally:
                _end(child)
        return len(phases)

    def _failed_opening(self, process: Process, phase: Phase) -> bool:
        return phase is process.opening and not results.is_done(self._session.out, phase.name)

    def _started(self, process: Process, variant: str, phases: Sequence[Phase], log: int) -> subprocess.Popen[bytes]:
        session = self._session
        environment = {**ENVIRONMENT, **os.environ}
        if process.batch_invariant and not session.dry:
            environment["VLLM_BATCH_INVARIANT"] = "1"
        how = [variant, repr(self._end_s), "dry" if session.dry else "gpu"]
        names = [phase.name for phase in phases]
        return subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker", session.plan, str(session.out), process.name, *how, *names],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # so that it can be ended with all that it started
        )

    def _waited(self, child: subprocess.Popen[bytes], phase: Phase) -> bool:
        """Whether the phase came to an end by itself, before its limit, the session's end, or its process's."""
        end_s = min(time.monotonic() + phase.at_most_s(self._session.dry), self._end_s)
        while True:
            gone = child.poll() is not None  # asked first: what it wrote last is read afterwards
            result = results.read(self._session.out, phase.name)
            if result is not None and result["status"] in results.ENDED:
                self._say(results.table([result]))
                return True
            if gone or time.monotonic() > end_s:
                return False
            time.sleep(POLL_S)

    def _close(self, phase: Phase, child: subprocess.Popen[bytes], log: Path, mark: int) -> None:
        """Write down how a phase ended that did not say so itself."""
        code = child.poll()
        if code is None:
            os.killpg(child.pid, signal.SIGUSR1)
            time.sleep(STACKS_S)
            spent = time.monotonic() > self._end_s
            why = (
                "the session's time was spent"
                if spent
                else f"it took more than {phase.at_most_s(self._session.dry):.0f} s"
            )
            status = results.OUT_OF_TIME
        else:
            why, status = f"its process ended with {_named(code)}", results.FAILED
        _end(child)
        result = results.read(self._session.out, phase.name) or results.fresh(phase, status)
        content = log.read_bytes()[mark:].decode(errors="replace").splitlines()
        result |= {"status": status, "error": why, "log": content[-LOG_LINES:]}
        results.write(self._session.out, result)
        self._say(results.table([result]))

    def _leave_out(self, phases: Sequence[Phase], why: str) -> None:
        for phase in phases:
            before = results.read(self._session.out, phase.name)
            if before is None or before["status"] not in results.ENDED:
                results.write(self._session.out, results.fresh(phase, results.LEFT_OUT, error=why))
                self._say(f"left out: {phase.title}: {why}")

    def _keep_attempt(self, phase: Phase, number: int) -> str:
        """Keep what an attempt came to that another one follows. Its status."""
        result = results.read(self._session.out, phase.name)
        assert result is not None
        results.write_json(self._session.out / f"{phase.name}.attempt-{number + 1}.json", result)
        return str(result["status"])

    def _write_summary(self) -> None:
        session = self._session
        summary.write(session.out, session.processes, command=session.command, dry=session.dry, began=self._began)

    def _say(self, text: str) -> None:
        print(f"[{self._end_s + RESERVE_S - time.monotonic():5.0f} s left] {text}", flush=True)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _named(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
