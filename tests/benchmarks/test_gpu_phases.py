"""A session on a GPU: whatever becomes of a phase, its result is there, the others are played, and time is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from exits import exit_code
from gpu import command, results, summary
from gpu.plan import PLAYED, PROCESSES, phases_of
from gpu.runner import Runner, Session
from gpu.shape import machine_of

from tokencake.sim.machine.files import load_machine
from tokencake.traces.results.metrics import Metrics

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
SCRIPT = BENCHMARKS / "gpu_session.py"


@pytest.fixture(autouse=True, scope="module")
def python_path() -> Iterator[None]:
    """What a worker finds: the package of the session, and the plan of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (BENCHMARKS, ROOT / "tests" / "helpers"))))
        yield


def session(out: Path, deadline_s: float = 60.0, only: tuple[str, ...] = (), command: str = "played") -> Session:
    return Session(out, False, deadline_s, command, only, plan="gpu_plan")


def played(out: Path, *only: str) -> dict[str, Any]:
    Runner(session(out, only=only)).play()
    return {name: results.read(out, name) for name in only}


QUICK = ("good", "bad", "behind-bad", "dead", "behind-dead", "late", "never", "on-nothing", "long")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a session that played all that takes no time."""
    out = tmp_path_factory.mktemp("session")
    assert not Runner(session(out, only=QUICK, command="first")).play()
    return out


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return {name: results.read(folder, name) for name in QUICK}


def test_a_phase_that_is_done_says_what_it_found(found: dict[str, Any]) -> None:
    good = found["good"]
    assert (good["status"], good["found"]["said"]) == ("done", "all is well")
    assert 0 <= good["seconds"] < 20
    assert good["found"]["by"] != os.getpid()


def test_a_phase_that_fails_leaves_its_traceback_and_the_next_is_played_in_its_process(found: dict[str, Any]) -> None:
    assert found["bad"]["status"] == "failed"
    assert found["bad"]["error"] == "ValueError: three of four"
    assert 'raise ValueError("three of four' in found["bad"]["traceback"]
    assert found["bad"]["found"] == {"halfway": 1}
    assert found["behind-bad"]["status"] == "done"


def test_a_phase_whose_process_dies_leaves_the_end_of_its_log(found: dict[str, Any]) -> None:
    assert (found["dead"]["status"], found["dead"]["error"]) == ("failed", "its process ended with signal SIGKILL")
    assert found["dead"]["log"][-1] == "the last words"
    assert found["behind-dead"]["status"] == "done"


def test_a_phase_that_stops_itself_keeps_what_it_has(found: dict[str, Any]) -> None:
    late = found["late"]
    assert (late["status"], late["error"], late["found"]) == ("out of time", "stopped after 3 s", {"halfway": 1})


def test_what_stands_on_an_engine_that_never_comes_up_is_left_out(found: dict[str, Any]) -> None:
    assert found["never"]["status"] == "failed"
    assert (found["on-nothing"]["status"], found["on-nothing"]["error"]) == ("left out", "never failed")


def test_a_phase_for_which_no_time_is_left_is_left_out(found: dict[str, Any]) -> None:
    assert found["long"]["status"] == "left out"
    assert "s were left" in found["long"]["error"]


def test_what_is_done_is_not_repeated_and_what_is_not_is_played_again(folder: Path, found: dict[str, Any]) -> None:
    again = played(folder, "good", "bad", "behind-bad")
    assert again["good"] == found["good"]
    assert again["behind-bad"] == found["behind-bad"]
    assert again["bad"]["began"] > found["bad"]["began"]


def test_the_summary_has_every_phase_and_every_call_of_the_command(folder: Path) -> None:
    Runner(session(folder, only=("late",), command="second")).play()
    content = json.loads((folder / summary.FILE).read_text())
    commands = [call["command"] for call in content["commands"]]
    assert (commands[0], commands[-1]) == ("first", "second")
    status = {entry["phase"]: entry["status"] for entry in content["phases"]}
    assert (status["good"], status["late"], status["up"]) == ("done", "out of time", "left out")


@pytest.mark.slow
def test_a_phase_that_hangs_is_ended_and_the_next_is_played_in_another_process(tmp_path: Path) -> None:
    found = played(tmp_path, "stuck", "behind-stuck")
    assert found["stuck"]["status"] == "out of time"
    assert found["stuck"]["error"] == "it took more than 5 s"
    assert found["stuck"]["found"] == {"halfway": 1}
    assert any("in hangs" in line for line in found["stuck"]["log"]), "where it was"
    assert found["behind-stuck"]["status"] == "done"


@pytest.mark.slow
def test_an_engine_is_brought_up_one_way_after_another_and_again_after_its_process_was_ended(tmp_path: Path) -> None:
    found = played(tmp_path, "up", "on-it", "stuck-on-it", "still-on-it")
    assert [found[name]["status"] for name in found] == ["done", "done", "out of time", "done"]
    assert (tmp_path / "ups").read_text().split() == ["first", "second", "third", "third"]
    assert found["on-it"]["found"]["by"] != found["still-on-it"]["found"]["by"] == found["up"]["found"]["by"]
    attempts = [json.loads((tmp_path / f"up.attempt-{number}.json").read_text()) for number in (1, 2)]
    assert [attempt["error"] for attempt in attempts] == [
        f"RuntimeError: cannot start {way}" for way in ("first", "second")
    ]


@pytest.mark.slow
def test_after_a_way_that_takes_too_long_the_quick_one_is_tried(tmp_path: Path) -> None:
    found = played(tmp_path, "slowly-up", "on-slow")
    assert [entry["status"] for entry in found.values()] == ["done", "done"]
    assert (tmp_path / "ups").read_text().split() == ["first", "third"]


@pytest.mark.slow
def test_the_deadline_ends_a_phase_before_its_limit_and_all_is_written(tmp_path: Path) -> None:
    began_s = time.monotonic()
    assert not Runner(session(tmp_path, 9.0, ("endless", "behind-endless"))).play()
    assert time.monotonic() - began_s < 9.0
    content = json.loads((tmp_path / summary.FILE).read_text())
    found = {entry["phase"]: entry for entry in content["phases"]}
    assert (found["endless"]["status"], found["endless"]["error"]) == ("out of time", "the session's time was spent")
    assert found["endless"]["found"] == {"halfway": 1}
    assert (found["behind-endless"]["status"], found["behind-endless"]["error"]) == ("left out", "0 s were left")


@pytest.mark.slow
def test_a_phase_on_an_engine_brings_the_engine_up_again(tmp_path: Path) -> None:
    played(tmp_path, "up", "on-it")
    still = played(tmp_path, "still-on-it")["still-on-it"]
    assert still["status"] == "done"
    assert (tmp_path / "ups").read_text().split()[3:] == ["first", "second", "third"]


def test_a_half_written_result_is_none(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text('{"phase": "go')
    assert results.read(tmp_path, "good") is None
    assert played(tmp_path, "good")["good"]["status"] == "done"


def test_the_documents_name_every_phase_and_its_limit() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    told = {name.strip("`"): row[-1].removesuffix(" each") for row in rows for name in row[0].split(", ")}
    assert told == {name: f"{phase.limit_s:.0f}" for name, phase in phases_of(PROCESSES).items()}


# -- the command


def called(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["gpu_session.py", *arguments])
    try:
        return exit_code(command.main)
    except SystemExit as exit:
        return int(exit.code or 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--out"),
        (["--deadline", "0"], "expected seconds above 0, got '0'"),
        (["--deadline", "soon"], "expected seconds above 0, got 'soon'"),
        (["--only", "everything"], "invalid choice: 'everything'"),
        (["--wait", "3"], "--wait: expected with --collect"),
        (["--collect", "--dry"], "--collect plays nothing"),
        (["--det"], "unrecognized arguments: --det"),
    ],
)
def test_a_wrong_call_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    out = [] if not arguments else ["--out", str(tmp_path)]
    assert called(monkeypatch, *out, *arguments) == 2
    assert said in capsys.readouterr().err


def test_without_a_gpu_nothing_is_played_but_dry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "machine_has_gpu", lambda: False)
    assert called(monkeypatch, "--out", str(tmp_path)) == 2
    assert capsys.readouterr().err == "error: no GPU was found: --dry plays all phases on a CPU, with stand-ins\n"


def test_what_is_not_installed_is_told_before_anything_is_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(command, "find_spec", lambda name: None if name in ("vllm", "pytest") else object())
    assert called(monkeypatch, "--out", str(out), "--dry") == 2
    assert capsys.readouterr().err == "error: vllm, pytest: not installed; CONTRIBUTING.md says how\n"
    assert called(monkeypatch, "--out", str(out), "--dry", "--only", "machine", "--only", "canary") == 2
    assert capsys.readouterr().err == "error: vllm: not installed; CONTRIBUTING.md says how\n"
    assert not out.exists()
    assert command.not_installed(("machine",)) == []


@pytest.mark.parametrize(
    ("before", "arguments", "said"),
    [
        (True, (), "expected another folder, a dry session has its results there"),
        (False, ("--dry",), "expected another folder, a session that is not dry has its results there"),
    ],
)
def test_a_dry_session_and_one_on_a_gpu_do_not_share_a_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    before: bool,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.setattr(command, "machine_has_gpu", lambda: True)
    summary.write(tmp_path, PROCESSES, command="played", dry=before, began="now")
    assert called(monkeypatch, "--out", str(tmp_path), "--only", "machine", *arguments) == 2
    assert capsys.readouterr().err == f"error: --out {tmp_path}: {said}\n"


def test_a_folder_that_cannot_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert called(monkeypatch, "--out", str(tmp_path / "file" / "out"), "--dry", "--only", "machine") == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'file' / 'out'}: cannot be written: not a directory\n"


def test_what_was_never_begun_is_not_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, "--out", str(tmp_path / "out"), "--collect") == 2
    assert (
        capsys.readouterr().err == f"error: --out {tmp_path / 'out'}: expected the folder of a session, there is none\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"phase": "machine"}',
        '{"phase": "machine", "title": "t", "status": "well"}',
        '{"phase": "machine", "title": "t", "status": "done", "seconds": "long"}',
        '{"phase": "machine", "title": "t", "status": "done", "found": [1]}',
        '{"phase": "machine", "title": "t", "status": "done", "found": {"warnings": [1]}}',
        '{"predictions": {"preset": {"vllm": 1}}, "written": "", "machines": {}}',
        '{"commands": [1]}',
        '{"commands": [], "dry": "no"}',
    ],
)
def test_what_no_session_wrote_is_as_if_it_were_not_there(tmp_path: Path, content: str) -> None:
    for name in ("machine.json", "predictions.json", summary.FILE):
        (tmp_path / name).write_text(content)
    summary.write(tmp_path, PROCESSES, command="collect", dry=False, began="now")
    assert json.loads((tmp_path / summary.FILE).read_text())["phases"][0]["status"] == "left out"
    assert summary.text(tmp_path, results.all_results(tmp_path, PROCESSES)).startswith("machine ")


@pytest.mark.parametrize("dry", [False, True])
def test_the_text_has_the_warnings_and_of_a_dry_session_no_verdicts(tmp_path: Path, dry: bool) -> None:
    """What was predicted and what came are the same for all policies: a verdict is that nobody wins."""
    same = Metrics().result() | {"makespan_s": 10.0}
    expected = {"calibrated": dict.fromkeys(PLAYED, same)}
    results.write_json(tmp_path / "predictions.json", {"predictions": expected, "written": "now", "machines": {}})
    counts = ("plans", "different", "not_replayed", "admissions", "admissions_different", "records")
    parity = {**dict.fromkeys(counts, 3), "records_different": 0, "ended": None}
    run = {"live": same, "parity": parity, "stats": {"failed": None}}
    found = {f"live-{policy}": run for policy in PLAYED} | {"calibrated": {"warnings": ["the host\nwas loaded"]}}
    for name, entries in found.items():
        results.write(tmp_path, results.fresh(phases_of(PROCESSES)[name], results.DONE, found=entries))
    summary.write(tmp_path, PROCESSES, command="played", dry=dry, began="now")

    lines = summary.text(tmp_path, results.all_results(tmp_path, PROCESSES)).splitlines()
    phases = len(phases_of(PROCESSES))
    assert lines[phases : phases + 2] == ["", "warning: calibrated: the host was loaded"]
    assert sum(line.startswith("vllm: 3 plans of 1 live run replayed") for line in lines) == 1
    assert any("verdicts" in line for line in lines) is not dry
    assert any("tokencake against vllm" in line for line in lines) is not dry
    assert (lines[-1] == summary.DRY) is dry
    verdict = json.loads((tmp_path / summary.FILE).read_text())["validation"]["verdict"]
    assert set(verdict["live"]) == set(PLAYED[1:]), "the file keeps them"


def test_an_empty_folder_is_collected_too(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path), "--collect")
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(phases_of(PROCESSES))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.slow
def test_a_detached_session_outlives_its_command_and_is_waited_for(tmp_path: Path) -> None:
    """Its only phase needs torch, and fails where there is none: that is enough here."""
    started = run("--out", str(tmp_path), "--dry", "--only", "machine", "--detach")
    assert started.returncode == 0, started.stderr
    assert "--collect --wait SECONDS" in started.stdout
    collected = run("--out", str(tmp_path), "--collect", "--wait", "50")
    assert "it still plays" not in collected.stdout
    result = results.read(tmp_path, "machine")
    assert result is not None
    assert result["status"] in results.ENDED
    assert result["phase"] in collected.stdout


def test_nobody_plays_beside_a_session(tmp_path: Path) -> None:
    with command.only_one(tmp_path) as alone:
        beside = run("--out", str(tmp_path), "--dry", "--only", "machine")
    assert alone
    assert beside.returncode == 2
    assert "a session plays there already" in beside.stderr


@pytest.mark.parametrize("name", ["h200-llama-3.1-8b", "h100-gpt-oss-120b"])
def test_a_machine_is_made_of_what_was_written_of_it(name: str) -> None:
    machine = load_machine(name, ("beliefs.copy_s=1",))
    assert machine_of(json.loads(json.dumps(machine.settings()))) == machine
