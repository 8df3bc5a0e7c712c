"""What a command writes is whole or not there, goes nowhere else, and never takes the place of what it reads."""

import gzip
import io
import lzma
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zstandard

from tokencake.cli import run
from tokencake.traces.console.interrupts import Terminated, heed, uninterrupted
from tokencake.traces.errors import TokencakeError, TraceError
from tokencake.traces.events import AppStarted
from tokencake.traces.files.outputs import Output, check_apart, check_outputs, write_whole
from tokencake.traces.files.source_file import whole
from tokencake.traces.files.whole_file import replacing, written
from tokencake.traces.format.events_file import EventsWriter, read_events

TOKENCAKE = str(Path(sys.executable).with_name("tokencake"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trace(here: Path) -> str:
    assert run(["trace", "generate", "code-writer", "--apps", "1", "-o", "t.jsonl"]) == 0
    return "t.jsonl"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- one file


def test_a_file_is_there_when_it_is_whole(here: Path):
    with replacing(here / "f") as file:
        file.write(b"new")
        (temporary,) = names(here)
        assert temporary.startswith(".tokencake-")
    assert names(here) == ["f"]
    assert (here / "f").read_bytes() == b"new"


def test_what_went_wrong_leaves_what_was_there(here: Path):
    (here / "f").write_bytes(b"old")

    def failed() -> None:
        with replacing(here / "f") as file:
            file.write(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failed()
    assert names(here) == ["f"]
    assert (here / "f").read_bytes() == b"old"


def test_nobody_can_know_the_name_beforehand(here: Path):
    seen = set[str]()
    for _ in range(20):
        with replacing(here / "f"):
            seen |= {name for name in names(here) if name != "f"}
    assert len(seen) == 20


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_whoever_may_read_new_files_may_read_it(here: Path, umask: int):
    before = os.umask(umask)
    try:
        write_whole(here / "f", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((here / "f").stat().st_mode) == 0o666 & ~umask


def test_a_link_stays_a_link(here: Path):
    (here / "there").mkdir()
    (here / "link").symlink_to("there/f")
    write_whole(here / "link", "x")
    assert (here / "link").is_symlink()
    assert (here / "there/f").read_text() == "x"


KILLED = """
import os, signal, sys
from pathlib import Path
from tokencake.traces.files.whole_file import replacing
with replacing(Path("f")) as file:
    file.write(b"half")
    file.flush()
    print(flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_has_left_is_removed_and_what_others_write_is_not(here: Path):
    def writer() -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    with writer() as killed:
        killed.kill()
    assert len(names(here)) == 1
    with writer() as alive:
        assert len(names(here)) == 1  # the new one's: it has cleared first
        write_whole(here / "g", "x")
        assert len(names(here)) == 2
        alive.communicate()
    assert names(here) == ["f", "g"]


def test_an_empty_temporary_file_may_be_somebodys_until_it_is_old(here: Path):
    left = here / ".tokencake-0123456789abcdef.part"
    left.touch()
    write_whole(here / "f", "x")
    assert left.exists()
    os.utime(left, (time.time() - 100, time.time() - 100))
    write_whole(here / "f", "x")
    assert not left.exists()


def test_nothing_else_is_removed(here: Path):
    for name in (".tokencake-notes", "x.part", ".tokencake.part"):
        (here / name).write_text("mine")
    (here / ".tokencake-link.part").symlink_to("x.part")
    before = names(here)
    write_whole(here / "f", "x")
    assert names(here) == sorted([*before, "f"])


@pytest.mark.parametrize(
    ("ending", "unpack"),
    [(".gz", gzip.decompress), (".xz", lzma.decompress), (".zst", lambda data: zstandard.decompress(data, 100))],
)
def test_the_ending_says_how_it_is_compressed(here: Path, ending: str, unpack):
    content = b"some text\n" * 9
    for name in ("one", "other"):
        with written(here / (name + ending)) as file:
            file.write(content)
    assert unpack((here / f"one{ending}").read_bytes()) == content == whole(here / f"one{ending}", 100)
    assert (here / f"one{ending}").read_bytes() == (here / f"other{ending}").read_bytes()


def test_standard_output_gets_the_bytes_and_no_file_gets_its_name(here: Path, monkeypatch: pytest.MonkeyPatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    out.write("before ")
    write_whole("-", "±\n")
    assert out.buffer.getvalue() == "before ±\n".encode()
    assert names(here) == []
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(TraceError, match="-: cannot be written: standard output is closed"):
        write_whole("-", "x")


def test_a_pipe_is_written_to(here: Path):
    os.mkfifo(here / "pipe")
    check_outputs([Output("-o", here / "pipe")])
    with subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE) as reader:
        write_whole(here / "pipe", "x")
        assert reader.communicate()[0] == b"x"


# -- several files


def test_files_are_compared_and_not_names(here: Path):
    (here / "t").write_text("trace")
    os.link(here / "t", here / "hard")
    (here / "soft").symlink_to("t")
    (here / "folder").symlink_to(".")
    for name in ("t", "./t", "hard", "soft", "folder/t", str(here / "t"), "folder/./t"):
        with pytest.raises(TokencakeError, match="cannot be written: it is the input"):
            check_apart([Output("--json", Path(name))], [Path("t")])


def test_files_that_are_not_there_yet_are_compared_too(here: Path):
    (here / "folder").symlink_to(".")
    (here / "dangling").symlink_to("new")
    for name in ("new", "folder/new", "NEW", "dangling", str(here / "new")):
        with pytest.raises(TokencakeError, match="--json and --csv: expected two files, got "):
            check_apart([Output("--json", Path("new")), Output("--csv", Path(name))])
    check_apart([Output("--json", Path("new")), Output("--csv", Path("newer")), Output("-o", here.parent / "new")])
    assert names(here) == ["dangling", "folder"]


def test_a_folder_that_is_read_is_not_written_into(here: Path):
    (here / "recorded").mkdir()
    (here / "link").symlink_to("recorded")
    for name in ("recorded/a.json", "link/new", "recorded/../recorded/a"):
        with pytest.raises(TokencakeError, match="would lie in the folder that is read, recorded"):
            check_apart([Output("-o", Path(name))], [Path("recorded")])
    check_apart([Output("-o", Path("out.jsonl"))], [Path("recorded")])


def test_a_sweep_does_not_empty_what_a_link_leads_to(trace: str, here: Path, capsys: pytest.CaptureFixture[str]):
    (here / "victim").write_text("precious")
    (here / "s.csv.cells.jsonl").symlink_to("victim")
    assert run(["sweep", trace, "--rate", "1", "--fresh", "-o", "s.csv"]) == 2
    assert "s.csv.cells.jsonl: is in the way: expected no link" in capsys.readouterr().err
    assert (here / "victim").read_text() == "precious"


def test_standard_output_holds_one(here: Path):
    with pytest.raises(TokencakeError, match="-o and --json: expected two files, got - twice"):
        check_apart([Output("-o", Path("-")), Output("--json", Path("-"))])


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="there is no /dev/fd")
@pytest.mark.parametrize(
    "command",
    [
        "simulate - --policy vllm --json t.jsonl <t.jsonl",
        "simulate /dev/fd/7 --policy vllm --csv hard 7<t.jsonl",
        "simulate t.jsonl --policy vllm --json /dev/fd/8 8>>t.jsonl",
        "simulate t.jsonl --policy vllm --json - >>t.jsonl",
        "simulate t.jsonl --policy vllm --json - --csv out >>out",
    ],
)
def test_what_a_shell_has_opened_is_compared_too(trace: str, here: Path, command: str):
    os.link(trace, "hard")
    before = (here / trace).read_bytes()
    done = subprocess.run(f"{TOKENCAKE} {command}", shell=True, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "cannot be written: it is the input" in done.stderr or "expected two files, got " in done.stderr
    assert (here / trace).read_bytes() == before


MACHINE = 'base = "h100-llama-3.1-8b"\ngpu_blocks = 3000\n'
POLICY = "from tokencake.policies.field.vllm import Vllm\nclass Mine(Vllm):\n    pass\n"


@pytest.mark.parametrize(
    "command",
    [
        "simulate d/1-vllm.jsonl --policy vllm --events d",
        "simulate d/1-vllm.jsonl.partial --policy vllm --events d",
        "simulate t.jsonl --policy vllm --events d --json d/1-vllm.jsonl",
        "simulate t.jsonl --policy vllm --events d --csv d/../d/1-vllm.jsonl.partial",
        "simulate t.jsonl --json ./t.jsonl",
        "simulate t.jsonl --json a.json --csv ./a.json",
        "simulate t.jsonl --json a.json --csv A.JSON",
        "simulate t.jsonl --machine ./m.toml --json m.toml",
        "simulate t.jsonl --policy mine.py:Mine --csv mine.py",
        "compare t.jsonl --repeat 1 --json link.jsonl",
        "compare t.jsonl --repeat 1 --machine ./m.toml --csv m.toml",
        "compare --live t.jsonl m.toml --csv m.toml",
        "replay e.jsonl --json ./e.jsonl",
        "replay e.jsonl --policy mine.py:Mine --json mine.py",
        "sweep t.jsonl --rate 1 -o link.jsonl",
        "sweep t.jsonl --rate 1 -o s.csv --json ./s.csv",
        "sweep t.jsonl --rate 1 -o s.csv --json s.csv.cells.jsonl",
        "sweep t.jsonl --rate 1 -o t --json t.jsonl",
        "sweep t.jsonl --rate 1 -o s.csv --policy vllm --policy mine.py:Mine --json mine.py",
        "sweep t.jsonl --rate 1 --machine ./m.toml -o m.toml",
        "sweep t.jsonl --rate 1 -o - --json -",
        "calibrate --from e.jsonl -o ./e.jsonl",
        "calibrate --from e.jsonl -o m2.toml --json ./m2.toml",
        "trace convert t.jsonl link.jsonl --from mooncake",
        "check --format junit -o tokencake.toml",
        "check --format junit -o t.jsonl",
        "check --format junit -o mine.py",
        "check --format junit -o m.toml",
        "check --format junit -o baselines/one.json",
        "check --format junit --format markdown -o r.txt -o ./r.txt",
    ],
)
def test_no_command_writes_over_what_it_reads_or_writes(
    trace: str, here: Path, command: str, capsys: pytest.CaptureFixture[str]
):
    (here / "d").mkdir()
    for name in ("d/1-vllm.jsonl", "d/1-vllm.jsonl.partial", "e.jsonl"):
        (here / name).write_bytes((here / trace).read_bytes())
    (here / "m.toml").write_text(MACHINE)
    (here / "mine.py").write_text(POLICY)
    (here / "link.jsonl").symlink_to(trace)
    suite = '[cases.one]\ntrace = "t.jsonl"\npolicy = "mine.py:Mine"\nmachine = "./m.toml"\n'
    (here / "tokencake.toml").write_text(suite)
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(command.split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "cannot be written: it is the input" in said.err or "expected two files, got " in said.err
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_baselines_do_not_take_the_place_of_what_the_suite_reads(trace: str, here: Path):
    (here / "t.json").write_bytes((here / trace).read_bytes())
    (here / "tokencake.toml").write_text('baselines = "."\n[cases.t]\ntrace = "t.json"\npolicy = "vllm"\n')
    assert run(["check", "--update"]) == 2
    assert (here / "t.json").read_bytes() == (here / trace).read_bytes()


def test_no_folder_is_called_as_standard_output_is(trace: str, here: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["simulate", trace, "--events", "-"]) == 2
    assert "-: cannot be written: expected a folder" in capsys.readouterr().err
    assert names(here) == [trace]


# -- events

FACT = AppStarted(0.0, "a")


def test_events_do_not_follow_a_link(here: Path):
    (here / "victim").write_text("precious")
    (here / "run.jsonl.partial").symlink_to("victim")
    with pytest.raises(TraceError, match=r"run.jsonl.partial: is in the way: expected no link"):
        EventsWriter(here / "run.jsonl").__enter__()
    assert (here / "victim").read_text() == "precious"


def test_events_take_the_place_of_those_of_an_interrupted_run_alone(here: Path):
    partial = here / "run.jsonl.partial"
    for content in (b"my notes\n", b'{"format":"tokencake.trace"}\n'):
        partial.write_bytes(content)
        with pytest.raises(TraceError, match="is in the way: expected nothing, or events of a run that was inter"):
            EventsWriter(here / "run.jsonl").__enter__()
        assert partial.read_bytes() == content
    for content in (b"", b'{"fact":"AppStarted","at_s":0', b'{"fa'):
        partial.write_bytes(content)
        with EventsWriter(here / "run.jsonl") as writer:
            writer.add(FACT)
        assert names(here) == ["run.jsonl"]


def test_two_runs_do_not_write_the_same_events(here: Path):
    with EventsWriter(here / "run.jsonl") as writer:
        with pytest.raises(TraceError, match=r"run.jsonl.partial: another run is writing it"):
            EventsWriter(here / "run.jsonl").__enter__()
        writer.add(FACT)
    assert list(read_events(here / "run.jsonl")) == [FACT]


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_events_are_compressed_as_their_name_says_also_those_of_an_interrupted_run(here: Path, ending: str):
    path = here / f"run.jsonl{ending}"

    def interrupted() -> None:
        with EventsWriter(path) as writer:
            writer.add(FACT)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    partial = here / f"run.jsonl{ending}.partial"
    assert list(read_events(partial)) == [FACT]
    with EventsWriter(path) as writer:
        writer.add(FACT)
    assert list(read_events(path)) == [FACT]
    assert not partial.exists()


# -- signals, and streams that are closed

SLOW = "trace generate code-writer --apps 1000000 -o big.jsonl"


def ended_by(number: int, folder: Path, command: str) -> int:
    """The exit code of a command that is sent a signal once it writes."""
    process = subprocess.Popen([TOKENCAKE, *command.split()], cwd=folder, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size for path in folder.glob(".*.part")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    return process.wait(30)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_who_is_asked_to_end_clears_away(here: Path, number: int, code: int):
    assert ended_by(number, here, SLOW) == code
    assert len(names(here)) == (number == signal.SIGKILL)
    write_whole(here / "f", "x")
    assert names(here) == ["f"]


def test_a_signal_waits_for_what_must_not_be_interrupted():
    done: list[str] = []

    def asked() -> None:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            done.append("whole")

    before = signal.getsignal(signal.SIGTERM)
    heed()
    try:
        with pytest.raises(Terminated):
            asked()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done == ["whole"]


@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-"])
def test_a_closed_stderr_changes_nothing(trace: str, here: Path, closed: str):
    def code(command: str) -> int:
        return subprocess.run(["bash", "-c", f"{TOKENCAKE} {command} {closed}"], capture_output=True).returncode

    assert code(f"simulate {trace} --quiet --json r.json") == 0
    assert code(f"trace convert {trace} o.jsonl --from mooncake") == 2
    assert code("simulate none.jsonl") == 2
    assert names(here) == ["r.json", trace]


# -- pipes


def shell(command: str, folder: Path) -> str:
    """What a command prints, which must end well. `T` is the program."""
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; T() {{ {TOKENCAKE} "$@"; }}; {command}'],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "command",
    [
        "T simulate <(cat t.jsonl) --quiet",
        "cat t.jsonl | T simulate - --quiet",
        "T simulate /dev/stdin --quiet < t.jsonl",
        "gzip < t.jsonl | T simulate - --quiet",
        "T trace generate code-writer --apps 1 -o - | T simulate - --quiet",
    ],
)
def test_a_trace_comes_through_a_pipe(trace: str, here: Path, command: str):
    assert shell(command, here) == shell("T simulate t.jsonl --quiet", here)
    assert "-" not in names(here)


def test_worker_processes_read_what_came_through_a_pipe(trace: str, here: Path):
    options = "--repeat 2 --policy vllm --policy tokencake --workers 2"
    out = shell(f"T compare - {options} --csv - < t.jsonl", here)
    assert out == shell(f"T compare t.jsonl {options} --csv -", here)
    swept = shell(f"cat t.jsonl | T sweep /dev/stdin --rate 0.5,1 {options} -o -", here)
    shell(f"T sweep t.jsonl --rate 0.5,1 {options} -o s.csv", here)
    assert swept == (here / "s.csv").read_text()
    assert names(here) == ["s.csv", "s.csv.cells.jsonl", trace]


def test_other_inputs_come_through_a_pipe_too(trace: str, here: Path):
    shell("T simulate t.jsonl --policy tokencake --events d", here)
    assert "all equal" in shell("T replay - < d/1-tokencake.jsonl", here)
    assert "all equal" in shell("T replay <(xz < d/1-tokencake.jsonl)", here)
    (here / "m.toml").write_text(MACHINE)
    assert shell("T simulate t.jsonl --machine - --quiet < m.toml", here)
    assert "applications" in shell(
        "zstd -q < t.jsonl | T trace inspect -" if zstd_there() else "T trace inspect - < t.jsonl", here
    )


def zstd_there() -> bool:
    return subprocess.run(["bash", "-c", "command -v zstd"], capture_output=True).returncode == 0
