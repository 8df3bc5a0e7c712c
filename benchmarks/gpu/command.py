"""The command line of `benchmarks/gpu_session.py`."""

from __future__ import annotations

import argparse
import fcntl
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from exits import refused

from tokencake.traces.files.outputs import prepare_folder

from . import results, summary
from .plan import PROCESSES, phases_of
from .runner import Runner, Session, machine_has_gpu

DEADLINE_S = 780.0
POLL_S = 0.5
PHASES = tuple(phases_of(PROCESSES))


def main() -> int:
    arguments = parse()
    out: Path = arguments.out.resolve()
    if arguments.collect:
        if not out.is_dir():
            return refused(f"--out {arguments.out}: expected the folder of a session, there is none")
        return collect(out, arguments.wait)
    if not arguments.dry and not machine_has_gpu():
        return refused("no GPU was found: --dry plays all phases on a CPU, with stand-ins")
    only = tuple(arguments.only or ())
    if lacking := not_installed(only):
        return refused(f"{', '.join(lacking)}: not installed; CONTRIBUTING.md says how")
    prepare_folder(out)
    if (before := summary.was_dry(out)) not in (None, arguments.dry):
        kind = "a dry session" if before else "a session that is not dry"
        return refused(f"--out {arguments.out}: expected another folder, {kind} has its results there")
    if arguments.detach:
        return detach(out)
    with only_one(out) as alone:
        if not alone:
            return refused(f"--out {arguments.out}: a session plays there already: --collect waits for it")
        command = "python benchmarks/gpu_session.py " + shlex.join(sys.argv[1:])
        Runner(Session(out, arguments.dry, arguments.deadline, command, only)).play()
    return shown(out, only)


def parse() -> argparse.Namespace:
    about = "What holds on one GPU, in fifteen minutes. benchmarks/gpu_session.py says more."
    parser = argparse.ArgumentParser(prog="gpu_session.py", description=about, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the results, read when resumed")
    text = f"after which it has stopped by itself; {DEADLINE_S:.0f}"
    parser.add_argument("--deadline", type=seconds, default=DEADLINE_S, metavar="SECONDS", help=text)
    parser.add_argument("--dry", action="store_true", help="on a CPU, with a tiny model and an imitated CUDA driver")
    parser.add_argument("--only", action="append", choices=PHASES, metavar="PHASE", help=f"of {', '.join(PHASES)}")
    parser.add_argument("--detach", action="store_true", help="return at once; the session goes on by itself")
    parser.add_argument("--collect", action="store_true", help="play nothing, show what is there")
    parser.add_argument("--wait", type=seconds, default=0.0, metavar="SECONDS", help="with --collect: for its end")
    arguments = parser.parse_args()
    if arguments.wait and not arguments.collect:
        parser.error("--wait: expected with --collect")
    if arguments.collect and (arguments.detach or arguments.dry or arguments.only):
        parser.error("--collect plays nothing: expected without --detach, --dry and --only")
    return arguments


def seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text!r}")
    return number


def not_installed(only: tuple[str, ...]) -> list[str]:
    """The modules that the phases asked for need, and that are not there; found without loading them."""
    asked = [process for process in PROCESSES if not only or any(phase.name in only for phase in process.phases)]
    return [name for name in dict.fromkeys(name for process in asked for name in process.needs) if not find_spec(name)]


def detach(out: Path) -> int:
    """Start the same command in a process session of its own, which outlives this one."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--detach"]
    with (out / "session.log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, str(Path(__file__).parents[1] / "gpu_session.py"), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    while child.poll() is None and not is_playing(out):  # a --collect right behind this must find it
        time.sleep(0.05)
    print(f"process {child.pid} plays; --collect --wait SECONDS shows what it came to; log: {out / 'session.log'}")
    return 0 if child.poll() is None else int(child.returncode)


@contextmanager
def only_one(out: Path) -> Iterator[bool]:
    """Hold the folder while a session plays in it. Whether nobody else does."""
    with (out / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def is_playing(out: Path) -> bool:
    if not (out / "lock").exists():
        return False
    with only_one(out) as alone:
        return not alone


def collect(out: Path, wait_s: float) -> int:
    """Show what there is, once the session has ended or the time is over."""
    end_s = time.monotonic() + wait_s
    while is_playing(out) and time.monotonic() < end_s:
        time.sleep(POLL_S)
    if is_playing(out):
        print("it still plays")
    return shown(out)


def shown(out: Path, only: tuple[str, ...] = ()) -> int:
    found = [result for result in results.all_results(out, PROCESSES) if not only or result["phase"] in only]
    print(summary.text(out, found))
    return 0 if all(result["status"] == results.DONE for result in found) else 1
