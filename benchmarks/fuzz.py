"""Does every reader refuse in a line what it cannot read? A table reader by reader, of as many inputs as wanted.

    python benchmarks/fuzz.py [--inputs 1000] [--seed 0] [--readers A,B] [--jobs 2] [--failures FOLDER] [--json FILE]

The readers, and what is done to their inputs, are those of `tests/helpers/fuzz_readers.py`. Each input is read in a
worker process that may take `--limit-s` seconds of its CPU and `--limit-mb` megabytes: past these the kernel ends it,
that is counted, and another worker goes on behind that input. Inputs have the seeds from `--seed` on; those that fail
are kept under `--failures`, each with what happened, and `tests/helpers/fuzz_readers.py` reads one again. An interrupt,
or SIGTERM, ends it with a table of what was read until then.
Needs Linux or macOS.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing.context import ForkContext, ForkProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from exits import exit_code
from fuzz_readers import READERS, mutants, tried

from tokencake.traces.files.outputs import check_outputs, outputs_of, write_whole

BLOCK = 50  # inputs of a reader before the next one's turn
WAITING = 6  # a worker that waits, and computes nothing, is ended after so many times the limit
FIELDS = ("inputs", "refused", "accepted", "tracebacks", "hangs", "deaths", "slowest_s", "peak_mb")
ENDED_BY_LIMIT = (-signal.SIGPROF, -signal.SIGALRM)


@dataclass(slots=True)
class Row:
    """What became of a reader's inputs."""

    reader: str
    inputs: int = 0
    refused: int = 0  # in a line: a TokencakeError
    accepted: int = 0
    tracebacks: int = 0  # any other exception, out of memory among them, or a message that is no line
    hangs: int = 0
    deaths: int = 0  # of the process, by whatever else
    slowest_s: float = 0.0  # CPU time of an input
    peak_mb: float = 0.0  # of the whole worker, interpreter included


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be read, and within which limits."""

    readers: tuple[str, ...]
    inputs: int  # of each reader
    seed: int
    jobs: int
    limit_s: float
    limit_mb: int
    failures: Path | None

    def of_job(self, job: int) -> Iterator[tuple[int, int]]:
        """What a worker reads: (which reader, which of its inputs), the readers in turns."""
        for start in range(job * BLOCK, self.inputs, self.jobs * BLOCK):
            for reader in range(len(self.readers)):
                for number in range(start, min(start + BLOCK, self.inputs)):
                    yield reader, number

    def input(self, reader: int, number: int) -> bytes:
        """The same for the same seed."""
        (data,) = mutants(self.readers[reader], [self.seed + number])
        return data

    def keep(self, reader: int, number: int, what: str) -> None:
        """Writes down an input that failed."""
        if self.failures is None:
            return
        self.failures.mkdir(parents=True, exist_ok=True)
        name = f"{self.readers[reader].replace(' ', '-').strip('-')}-{self.seed + number}"
        (self.failures / f"{name}.input").write_bytes(self.input(reader, number))
        (self.failures / f"{name}.txt").write_text(what, errors="backslashreplace")


class Board:
    """Counts in memory that workers share with who started them, so that a worker's end loses none."""

    def __init__(self, context: ForkContext, asked: Asked) -> None:
        self._cells = [[context.Array("d", len(FIELDS), lock=False) for _ in asked.readers] for _ in range(asked.jobs)]
        self.begun = [context.Value("Q", 0, lock=False) for _ in range(asked.jobs)]  # inputs that a job has begun
        self._readers = asked.readers

    def add(self, job: int, reader: int, field: str, count: int = 1) -> None:
        self._cells[job][reader][FIELDS.index(field)] += count

    def at_least(self, job: int, reader: int, field: str, value: float) -> None:
        cells, at = self._cells[job][reader], FIELDS.index(field)
        cells[at] = max(cells[at], value)

    def rows(self) -> list[Row]:
        """The jobs together."""
        rows = []
        for at, name in enumerate(self._readers):
            values: dict[str, Any] = {}
            for index, field in enumerate(FIELDS):
                of_jobs = [cells[at][index] for cells in self._cells]
                values[field] = max(of_jobs) if "_" in field else int(sum(of_jobs))
            rows.append(Row(name, **values))
        return rows


def work(asked: Asked, board: Board, job: int, done: int, folder: Path) -> None:
    """Reads a worker's inputs, but for the first `done`."""
    for stops in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stops, signal.SIG_IGN)  # who started this one ends it
    for stops in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(stops, signal.SIG_DFL)
    soft = asked.limit_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (soft, resource.getrlimit(resource.RLIMIT_AS)[1]))
    folder.mkdir(exist_ok=True)
    os.chdir(folder)  # for what is read beside a file, and by a name that a mutation made up
    current = -1
    for reader, number in islice(asked.of_job(job), done, None):
        if reader != current:
            current = reader
            forget_peak()
        board.begun[job].value += 1
        read(asked, board, job, reader, number, folder)
        if number % BLOCK == BLOCK - 1 or number == asked.inputs - 1:
            board.at_least(job, reader, "peak_mb", peak_mb())


def read(asked: Asked, board: Board, job: int, reader: int, number: int, folder: Path) -> None:
    """Reads one input, within the limits of time."""
    data = asked.input(reader, number)
    surprise: BaseException | None = None
    refused = None
    began_s = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, asked.limit_s)
    signal.setitimer(signal.ITIMER_REAL, WAITING * asked.limit_s)
    try:
        refused, surprise = tried(READERS[asked.readers[reader]], data, folder)
    except BaseException as error:
        surprise = error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
    board.at_least(job, reader, "slowest_s", time.process_time() - began_s)
    board.add(job, reader, "inputs")
    if surprise is not None:
        board.add(job, reader, "tracebacks")
        asked.keep(reader, number, "".join(traceback.format_exception(surprise)))
    else:
        board.add(job, reader, "accepted" if refused is None else "refused")


def forget_peak() -> None:
    """Lets the peak of memory start anew, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_mb() -> float:
    """The most memory that this process has had since its peak was forgotten."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1e3
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def play(asked: Asked, board: Board, context: ForkContext, folder: Path) -> None:
    """Has all inputs read; a worker that ends on the way has a successor, which goes on behind its last input."""
    running: dict[int, ForkProcess] = {}
    try:
        for job in range(asked.jobs):
            running[job] = start(asked, board, context, job, folder)
        while running:
            multiprocessing.connection.wait([process.sentinel for process in running.values()], timeout=60)
            progress(asked, board)
            for job, process in list(running.items()):
                if process.exitcode is None:
                    continue
                del running[job]
                if process.exitcode:
                    ended(asked, board, job, process.exitcode)
                    running[job] = start(asked, board, context, job, folder)
    finally:
        for process in running.values():
            process.kill()
            process.join()


def start(asked: Asked, board: Board, context: ForkContext, job: int, folder: Path) -> ForkProcess:
    process = context.Process(target=work, args=(asked, board, job, board.begun[job].value, folder / str(job)))
    process.start()
    return process


def ended(asked: Asked, board: Board, job: int, exitcode: int) -> None:
    """A worker ended in the middle of an input."""
    reader, number = next(islice(asked.of_job(job), board.begun[job].value - 1, None))
    hung = exitcode in ENDED_BY_LIMIT
    board.add(job, reader, "inputs")
    board.add(job, reader, "hangs" if hung else "deaths")
    what = f"not read within {asked.limit_s:g} s" if hung else f"the process ended with {exitcode}"
    asked.keep(reader, number, f"{what}\n")


def progress(asked: Asked, board: Board) -> None:
    done, of = sum(int(begun.value) for begun in board.begun), asked.inputs * len(asked.readers)
    print(f"{done:,} of {of:,} inputs", file=sys.stderr, flush=True)


def table(rows: Sequence[Row]) -> str:
    """As markdown."""
    lines = ["| reader | inputs | refused | accepted | tracebacks | hangs | deaths | slowest | peak MB |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    total = Row("all")
    for row in rows:
        for field in FIELDS:
            mine, its = getattr(total, field), getattr(row, field)
            setattr(total, field, max(mine, its) if "_" in field else mine + its)
    lines += [
        f"| {row.reader} | {row.inputs:,} | {row.refused:,} | {row.accepted:,} | {row.tracebacks:,} | {row.hangs:,}"
        f" | {row.deaths:,} | {row.slowest_s:.2f} s | {row.peak_mb:.0f} |"
        for row in [*rows, total]
    ]
    return "\n".join(lines)


def split(names: str) -> tuple[str, ...]:
    """At commas, but for those within a name, which a blank follows."""
    return tuple(re.split(",(?! )", names))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000, metavar="N", help="of each reader")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--readers", default=",".join(READERS), metavar="A,B", help="[default: all]")
    parser.add_argument("--jobs", type=int, default=2, metavar="N")
    parser.add_argument("--limit-s", type=float, default=10.0, metavar="S")
    parser.add_argument("--limit-mb", type=int, default=2_000, metavar="MB", help="of address space")
    parser.add_argument("--failures", type=Path, metavar="FOLDER")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    if unknown := set(split(given.readers)) - set(READERS):
        parser.error(f"--readers: expected some of {', '.join(READERS)}, got {', '.join(sorted(unknown))}")
    return given


def main() -> None:
    """Read, and print what became of it. Exit code 1 if anything but a refusal or a result came out."""
    given = arguments()
    check_outputs(outputs_of(json=given.json))
    readers = split(given.readers)
    failures = None if given.failures is None else given.failures.resolve()  # workers are elsewhere
    asked = Asked(readers, given.inputs, given.seed, given.jobs, given.limit_s, given.limit_mb, failures)
    context = multiprocessing.get_context("fork")
    for name in readers:
        READERS[name].good()  # what they are made of is made once
    board = Board(context, asked)
    for stops in (signal.SIGINT, signal.SIGTERM):  # shells have what they start in the background ignore the first
        signal.signal(stops, signal.default_int_handler)
    began_s = time.monotonic()
    code = 0
    try:
        with TemporaryDirectory() as folder:
            play(asked, board, context, Path(folder))
    except KeyboardInterrupt:
        code = 130
    rows = board.rows()
    print(table(rows))
    print(f"\nseed {asked.seed}, {asked.jobs} jobs, {time.monotonic() - began_s:.0f} s")
    if given.json is not None:
        write_whole(given.json, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    bad = sum(row.tracebacks + row.hangs + row.deaths for row in rows)
    sys.exit(code or (1 if bad else 0))


if __name__ == "__main__":
    sys.exit(exit_code(main))
