"""What an engine is asked to be: what is chosen where nobody asked, and what contradicts itself."""

from __future__ import annotations

import json
import os
import sys
from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest

from tokencake.cli import run
from tokencake.live.client.engine_options import MODEL_RUNNER, EngineOptions, compilation, graph_sizes, settled
from tokencake.live.client.remote.serve_args import ASYNCHRONOUS_SCHEDULER, SCHEDULER, serve_args, serve_command
from tokencake.live.client.start import available_memory
from tokencake.live.client.start.available_memory import available_bytes, usual_host_gib
from tokencake.live.client.start.launch import _arguments, _choose_runner, _quiet
from tokencake.policies.run_settings import RunSettings
from tokencake.traces.errors import EngineError

MODEL = "Qwen/Qwen2.5-7B-Instruct"
GIB = 2**30


def on_gpu(**asked: object) -> EngineOptions:
    return settled(EngineOptions(model=MODEL, **{"host_gib": 1.0, **asked}), on_cpu=False)  # type: ignore[arg-type]


def test_vllm_chooses_how_it_compiles_unless_it_is_told() -> None:
    assert (
        _arguments(on_gpu(max_running=64), "folder", stock=True)
        .keys()
        .isdisjoint({"enforce_eager", "compilation_config", "async_scheduling"})
    )
    assert _arguments(on_gpu(compile="none"), "folder", stock=True)["enforce_eager"] is True
    assert not compilation(on_gpu(compile="full", max_running=64))
    assert _arguments(on_gpu(asynchronous=False), "folder", stock=True)["async_scheduling"] is False


def test_graphs_of_decode_steps_alone_reach_as_far_as_the_engine_runs_calls() -> None:
    """A decode step has one token of each running call."""
    told = compilation(on_gpu(compile="graphs", max_running=20))
    assert told == {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 20]}
    assert compilation(on_gpu(compile="graphs")) == {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
    assert compilation(on_gpu(largest_graph_tokens=5, max_running=20)) == {"cudagraph_capture_sizes": [1, 2, 4, 5]}


def test_every_size_up_to_the_largest_is_within_eight_of_one_that_has_a_graph() -> None:
    for largest in range(1, 100):
        sizes = graph_sizes(largest)
        assert sizes == sorted(set(sizes))
        assert sizes[0] == 1
        assert sizes[-1] == largest
        assert all(after - before <= 8 for before, after in pairwise(sizes))


@pytest.mark.parametrize(
    ("asked", "on_cpu", "said"),
    [
        ({"compile": "fast"}, False, "--compile fast: expected one of none, graphs, full"),
        ({"model_runner": "v3"}, True, "--model-runner v3: expected one of v1, v2"),
        ({"compile": "graphs"}, True, "--compile graphs: this vLLM is for machines without a GPU"),
        ({"largest_graph_tokens": 8}, True, "--largest-graph 8: there are no CUDA graphs in a vLLM for machines"),
        ({"largest_graph_tokens": 8, "compile": "none"}, False, "--largest-graph 8: there are no CUDA graphs with --c"),
    ],
)
def test_what_contradicts_itself_is_refused(asked: dict[str, object], on_cpu: bool, said: str) -> None:
    with pytest.raises(EngineError) as caught:
        settled(EngineOptions(**asked), on_cpu=on_cpu)  # type: ignore[arg-type]
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_an_engine_without_a_gpu_is_eager_and_takes_a_gib() -> None:
    chosen = settled(EngineOptions(), on_cpu=True)
    assert (chosen.compile, chosen.host_gib, chosen.block_tokens, chosen.dtype) == ("none", 1.0, 32, "float32")
    assert chosen.asynchronous is None  # vLLM's own choice: a build for CPUs might learn it


# -- the server


def test_the_server_gets_the_same_options() -> None:
    asked = on_gpu(asynchronous=False, compile="graphs", max_running=4, model_runner="v1")
    args = serve_args(asked, RunSettings())
    assert "--no-async-scheduling" in args
    assert args[args.index("--scheduler-cls") + 1] == SCHEDULER
    told = json.loads(args[args.index("--compilation-config") + 1])
    assert told == compilation(asked) == _arguments(asked, "folder", stock=True)["compilation_config"]
    assert f" {MODEL_RUNNER}=0 vllm serve " in serve_command(args, model_runner=asked.model_runner)
    usual = serve_args(on_gpu(), RunSettings())
    assert usual[usual.index("--scheduler-cls") + 1] == ASYNCHRONOUS_SCHEDULER


def test_no_server_on_a_cpu_is_promised_to_schedule_asynchronously(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tokencake.live.client.command.for_cpus", lambda: True)
    assert run(["live", "--print-serve-args", "--model", MODEL, "--asynchronous"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "--asynchronous: a vLLM for machines without a GPU schedules synchronously" in err


def test_a_model_runner_is_told_by_the_environment_as_long_as_the_engine_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(MODEL_RUNNER, "1")
    undo = _choose_runner("v1")
    assert os.environ[MODEL_RUNNER] == "0"
    undo()
    assert os.environ[MODEL_RUNNER] == "1"
    monkeypatch.delenv(MODEL_RUNNER)
    undo = _choose_runner("v2")
    assert os.environ[MODEL_RUNNER] == "1"
    undo()
    assert MODEL_RUNNER not in os.environ


# -- memory for copies


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 64 GiB available, in a container without a limit."""
    (tmp_path / "meminfo").write_text(f"MemTotal: {100 << 20} kB\nMemAvailable:   {64 << 20} kB\n")
    (tmp_path / "memory.max").write_text("max\n")
    monkeypatch.setattr(available_memory, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(available_memory, "GROUPS", tmp_path)
    return tmp_path


def test_copies_take_three_quarters_of_what_is_available(memory: Path) -> None:
    assert available_bytes() == 64 * GIB
    assert usual_host_gib(1) == 48
    assert settled(EngineOptions(model=MODEL), on_cpu=False).host_gib == 48
    assert settled(EngineOptions(model=MODEL, host_gib=63.5), on_cpu=False).host_gib == 63.5  # whoever asks, gets it


def test_a_container_s_limit_holds_and_what_it_only_caches_counts_as_free(memory: Path) -> None:
    (memory / "memory.max").write_text(f"{20 * GIB}\n")
    (memory / "memory.current").write_text(f"{10 * GIB}\n")
    (memory / "memory.stat").write_text(f"anon 7\ninactive_file {2 * GIB}\n")
    assert available_bytes() == 12 * GIB
    assert usual_host_gib(1) == 8  # 4 GiB are left at least


def test_nobody_pins_a_terabyte_unasked_nor_nothing(memory: Path) -> None:
    (memory / "meminfo").write_text(f"MemAvailable: {2 << 30} kB\n")
    assert usual_host_gib(1) == 100
    assert usual_host_gib(8) == 800
    (memory / "meminfo").write_text(f"MemAvailable: {3 << 20} kB\n")
    with pytest.raises(EngineError, match=r"^--host-gib: only 3\.0 GiB of memory are available: say how much"):
        settled(EngineOptions(model=MODEL), on_cpu=False)


def test_where_the_kernel_does_not_tell_all_memory_counts(memory: Path) -> None:
    (memory / "meminfo").unlink()
    assert available_bytes() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# -- the standard streams while an engine starts


def test_a_captured_standard_output_has_a_file_while_an_engine_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, or under pytest: vLLM 0.26 asks for it, and would not start."""
    captured = StringIO()
    monkeypatch.setattr(sys, "stdout", captured)
    with _quiet(verbose=True):
        os.close(os.dup(sys.stdout.fileno()))
        print("heard")
        sys.stdout.flush()
    assert sys.stdout is captured
    assert captured.getvalue() == "heard\n"
    monkeypatch.setattr(sys, "stdout", None)
    with _quiet(verbose=False):
        assert sys.stdout.fileno() == 1
        print("lost")
    assert sys.stdout is None


def test_what_libraries_say_at_a_start_is_not_heard_and_what_we_say_is(capfd: pytest.CaptureFixture[str]) -> None:
    with _quiet(verbose=False) as stderr:
        os.write(2, b"a library\n")
        print("ours", file=stderr)
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "ours\nafter\n"
