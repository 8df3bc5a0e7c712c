"""Live runs once more without an engine, and in the simulator: the same plans, the same steps, the same admissions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from tokencake.cli import run
from tokencake.live.client.engine_options import EngineOptions
from tokencake.live.client.in_process import InProcess
from tokencake.policies.replay.replay import replay_file
from tokencake.policies.run_settings import RunSettings
from tokencake.sim.calibration.engine_info import limits_of, with_limits
from tokencake.sim.fidelity.rerun import play_recorded
from tokencake.sim.machine.presets import PUBLISHED
from tokencake.traces.apps import Application
from tokencake.traces.format.events_file import EventsWriter, read_events
from tokencake.traces.format.header import Header
from tokencake.traces.format.reader import read_trace
from tokencake.traces.format.writer import write_trace
from tokencake.traces.variants.scale import scaled
from tokencake.traces.variants.shrink import shrunk

ROOT = Path(__file__).parents[2]
BLOCKS = 60  # fewer than the applications' contexts take together
POLICIES = (
    "vllm",
    "tokencake-space",
    "tokencake-time:gate=off",
    "tokencake-time:gate=off,upload=pause",
    "tokencake-time:gate=off,upload=demand",
    "tokencake:gate=off",
    "native-offload",
    "prefetch-at-pause",
)


def workload() -> list[Application]:
    """Code writers with a 24th of their tokens, and tools of a fiftieth of their time."""
    return list(shrunk(scaled(read_trace(ROOT / "examples" / "code-writer.jsonl"), 0.02), 24))[:5]


@pytest.fixture(scope="module")
def engine() -> Iterator[InProcess]:
    with InProcess(EngineOptions(model="tiny", gpu_blocks=BLOCKS, host_gib=0.05, link_gbps=0.05)) as running:
        yield running


@pytest.fixture(scope="module")
def recorded(engine: InProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The events of a live run under each policy."""
    folder = tmp_path_factory.mktemp("events")
    files = {}
    for index, policy in enumerate(POLICIES):
        files[policy] = folder / f"{index}.jsonl"
        with EventsWriter(files[policy]) as writer:
            engine.play(workload(), RunSettings(policy=policy, steps=True), journal=writer.add)
    return files


@pytest.mark.parametrize("policy", POLICIES)
def test_a_live_run_replays_to_equal_plans(policy: str, recorded: dict[str, Path]) -> None:
    setup, parity = replay_file(recorded[policy])
    assert setup.policy == policy
    assert parity.equal, parity.first
    assert parity.plans > 0


@pytest.mark.parametrize("policy", POLICIES)
def test_the_simulator_does_what_vllm_did(policy: str, engine: InProcess, recorded: dict[str, Path]) -> None:
    """Given the times of the live run: admissions, hits, preemptions, copies, the tokens of each step, every plan."""
    machine = with_limits(PUBLISHED, limits_of(engine.info()))
    agreement = play_recorded(recorded[policy], workload(), machine)
    assert agreement.ended is None
    assert agreement.same_admissions
    for kind, tally in agreement.tallies.items():
        assert tally.equal, f"{kind}: {tally}"
    assert agreement.tallies["CallAdmitted"].recorded >= sum(len(app.calls) for app in workload())
    assert agreement.tallies["Stepped"].recorded > 100


def test_the_recorded_runs_are_about_something(recorded: dict[str, Path]) -> None:
    """Without copies and preemptions in them, equal runs would say little."""
    kinds = Counter(type(record).__name__ for file in recorded.values() for record in read_events(file))
    for kind in (
        "CallPreempted",
        "OffloadFinished",
        "LoadFinished",
        "UploadFinished",
        "HostDropped",
        "StoreFinished",
    ):
        assert kinds[kind], f"{kind}: {kinds}"
    assert kinds["UploadTaken"] + kinds["UploadCancelled"], kinds  # on a busy machine every call may come too early


def test_the_command_validates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_trace(tmp_path / "t.jsonl", workload()[:2], Header(name="small", source="test"))
    (tmp_path / "m.toml").write_text('base = "a800-qwen2.5-14b"\n')
    arguments = ["validate", "t.jsonl", "--model", "tiny", "--gpu-blocks", "60", "--host-gib", "0.05"]
    arguments += ["--machine", "m.toml", "--repeat", "2", "--json", "v.json", "--events", "e"]
    arguments += ["--long-prefill-token-threshold", "48"]
    assert run(arguments) == 0
    report = json.loads((tmp_path / "v.json").read_text())
    assert report["schema"] == "tokencake.validation/1"
    assert report["machine"]["long_prefill_token_threshold"] == 48  # what the engine tells; the file says nothing
    prompts = max(call.prompt_tokens for app in workload()[:2] for call in app.calls)
    assert prompts > 48
    assert [found["policy"] for found in report["runs"]] == ["vllm", "tokencake"]
    for found in report["runs"]:
        assert found["parity"]["plans"] > 0
        assert found["parity"]["admissions"] >= 2 * sum(len(app.calls) for app in workload()[:2])
        assert len(found["repeats"]) == 2
        assert found["simulated"]["calls"] == found["live"]["calls"] == sum(len(app.calls) for app in workload()[:2])
        assert found["error"]["makespan_s"] is not None
    assert set(report["verdict"]["live"]) == {"tokencake"}
    assert len(list((tmp_path / "e").iterdir())) == 4
