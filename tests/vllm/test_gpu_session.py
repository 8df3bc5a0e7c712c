"""All phases of the session on a GPU, played on a CPU with stand-ins: the script works, whatever its figures mean."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from gpu.plan import PLAYED, PROCESSES, phases_of

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_session.py"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=900, check=False
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a session that was played to its end."""
    folder = tmp_path_factory.mktemp("session")
    done = command("--out", str(folder), "--dry", "--deadline", "840")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def found(out: Path, phase: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / f"{phase}.json").read_text())
    return content


@pytest.mark.slow
def test_every_phase_is_done(out: Path) -> None:
    content = json.loads((out / "session.json").read_text())
    assert [(entry["phase"], entry["status"]) for entry in content["phases"]] == [
        (name, "done") for name in phases_of(PROCESSES)
    ]


@pytest.mark.slow
def test_runs_are_held_against_what_was_written_before_they_began(out: Path) -> None:
    predictions = (out / "predictions.json").read_bytes()
    content = json.loads(predictions)
    for policy in PLAYED:
        run = found(out, f"live-{policy}")["found"]
        assert run["predictions"]["sha256"] == hashlib.sha256(predictions).hexdigest()
        assert content["written"] < run["began"]
        assert run["live"]["calls"] == content["predictions"]["calibrated"][policy]["calls"] == content["calls"]
    report = json.loads((out / "session.json").read_text())["validation"]
    assert [run["policy"] for run in report["runs"]] == list(PLAYED)


@pytest.mark.slow
def test_answers_were_compared_where_blocks_moved(out: Path) -> None:
    for phase, dtype in (("answers-fp32", "float32"), ("answers-bf16", "bfloat16")):
        answers = found(out, phase)["found"]
        assert answers["engine"]["dtype"] == dtype
        assert [run["equal"] for run in answers["runs"]] == [answers["calls"]] * len(PLAYED)
        assert sum(run["LoadFinished"] + run["UploadFinished"] for run in answers["runs"]) > 0


@pytest.mark.slow
def test_copies_were_measured_in_every_size_and_way(out: Path) -> None:
    copies = found(out, "copies")["found"]
    measured = {(entry["layout"], entry["way"], entry["placed"], entry["blocks"]) for entry in copies["copies"]}
    assert len(measured) == len(copies["copies"]) == 2 * 3 * 2 * 2
    assert all(entry["gbps"] > 0 for entry in copies["copies"])
    assert set(copies["beside"]["launches"]) == {"alone", "to the host", "to the GPU", "both ways"}
    assert [entry["touched"] for entry in copies["pinned"]] == [False, True]


@pytest.mark.slow
def test_decisions_of_the_synchronous_run_came_out_again(out: Path) -> None:
    agreement = found(out, "decisions")["found"]["agreement"]
    assert agreement["admissions"] > 50
    assert (agreement["records_different"], agreement["ended"]) == (0, None)


@pytest.mark.slow
def test_called_again_it_plays_nothing(out: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.json") if path.name != "session.json"}
    again = command("--out", str(out), "--dry")
    assert again.returncode == 0, again.stdout
    assert " s left]" not in again.stdout
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.json") if path.name != "session.json"} == before
    assert command("--out", str(out), "--collect").stdout == again.stdout
