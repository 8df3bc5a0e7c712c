"""The arguments that `vllm serve` is given."""

from __future__ import annotations

import json
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from tokencake.cli import run
from tokencake.live.client.engine_options import EngineOptions, settled
from tokencake.live.client.remote.serve_args import ENVIRONMENT, additional_config, serve_args, serve_command
from tokencake.live.client.start.launch import _arguments
from tokencake.policies.costs import LinearCosts
from tokencake.policies.run_settings import (
    RunSettings,
    control_token,
    from_client,
    from_record,
    server_settings,
    to_server,
)
from tokencake.traces.errors import EngineError

ROOT = Path(__file__).parents[4]
MODEL = "Qwen/Qwen2.5-14B-Instruct"


def options(args: list[str]) -> dict[str, str | None]:
    """Each option's value; None of those that have none."""
    found: dict[str, str | None] = {}
    for arg in args[1:]:
        if arg.startswith("--"):
            found[arg] = None
        else:
            found[next(reversed(found))] = arg
    return found


def test_the_model_comes_first_and_nothing_is_said_that_nobody_asked_for() -> None:
    args = serve_args(EngineOptions(model=MODEL), RunSettings(policy="tokencake"))
    assert args[0] == MODEL
    assert options(args).keys() == {
        "--async-scheduling",
        "--scheduler-cls",
        "--kv-transfer-config",
        "--additional-config",
        "--host",
    }


def test_scheduler_connector_and_policy() -> None:
    given = options(serve_args(EngineOptions(model=MODEL, host_gib=64.0, link_gbps=20.0), RunSettings(policy="p.py:P")))
    assert given["--scheduler-cls"] == "tokencake.live.scheduler.TokencakeAsyncScheduler"
    connector, added = (json.loads(given[name] or "") for name in ("--kv-transfer-config", "--additional-config"))
    assert connector == {
        "kv_connector": "TokencakeConnector",
        "kv_connector_module_path": "tokencake.live.connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"host_gib": 64.0, "link_gbps": 20.0},
    }
    assert added == {"tokencake": {"policy": "p.py:P"}}


def test_without_asynchronous_scheduling_both_sides_are_told() -> None:
    given = options(serve_args(EngineOptions(model=MODEL, asynchronous=False), RunSettings()))
    assert given["--scheduler-cls"] == "tokencake.live.scheduler.TokencakeScheduler"
    assert "--no-async-scheduling" in given
    assert "--async-scheduling" not in given


def test_every_limit_that_was_asked_for_is_passed_on() -> None:
    asked = EngineOptions(
        model=MODEL,
        gpu_blocks=200,
        block_tokens=32,
        max_context_tokens=4096,
        step_budget_tokens=512,
        max_running=7,
        long_prefill_token_threshold=128,
        dtype="float32",
        load_format="dummy",
        seed=5,
        tensor_parallel_size=2,
        gpu_memory_utilization=0.8,
        attention_backend="TRITON_ATTN",
        compile="none",
    )
    given = options(serve_args(asked, RunSettings()))
    assert {
        "--num-gpu-blocks-override": "201",  # vLLM's null block is one of its blocks
        "--block-size": "32",
        "--max-model-len": "4096",
        "--max-num-batched-tokens": "512",
        "--max-num-seqs": "7",
        "--long-prefill-token-threshold": "128",
        "--dtype": "float32",
        "--load-format": "dummy",
        "--seed": "5",
        "--tensor-parallel-size": "2",
        "--gpu-memory-utilization": "0.8",
        "--attention-backend": "TRITON_ATTN",
        "--enforce-eager": None,
    }.items() <= given.items()


@pytest.mark.parametrize(
    "settings",
    [
        RunSettings(),
        RunSettings(policy="tokencake:upload=demand", seed=4, costs=LinearCosts(0.1, 0.2, 0.3, 0.4), events="e.jsonl"),
    ],
)
def test_the_scheduler_reads_the_settings_back(settings: RunSettings) -> None:
    travelled = json.loads(json.dumps(additional_config(settings)))
    assert from_record(travelled["tokencake"]) == settings


@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize(
    "asked",
    [
        EngineOptions(model=MODEL),
        EngineOptions(model="tiny", gpu_blocks=150),
        EngineOptions(model=MODEL, gpu_blocks=9, block_tokens=64, dtype="float16", max_running=3, seed=5),
        EngineOptions(model=MODEL, max_context_tokens=128, step_budget_tokens=96, long_prefill_token_threshold=7),
        EngineOptions(model=MODEL, compile="full", host_gib=2.0),
    ],
)
def test_the_server_is_the_engine_that_is_started_here(asked: EngineOptions, on_cpu: bool) -> None:
    """Blocks of 128 tokens, vLLM's choice on CPUs, against 32 here: no figure of the two could be compared."""
    asked = settled(asked, on_cpu=on_cpu)
    here = _arguments(asked, "folder", stock=True)
    there = options(serve_args(asked, RunSettings(), on_cpu=on_cpu))
    usual = _arguments(EngineOptions(model=MODEL), "folder", stock=True)
    names = ("block_size", "num_gpu_blocks_override", "max_num_batched_tokens", "max_num_seqs", "seed", "dtype")
    for name in (*names, "long_prefill_token_threshold"):
        wanted = None if here.get(name) == usual.get(name) else str(here[name])
        assert there.get(f"--{name.replace('_', '-')}") == wanted, name
    assert here.get("enforce_eager", False) == ("--enforce-eager" in there)
    assert json.dumps(here.get("compilation_config")) == (there.get("--compilation-config") or "null")
    assert there.get("--block-size") == (str(asked.block_tokens or 32) if on_cpu else there.get("--block-size"))


def test_a_server_on_a_cpu_gets_the_memory_and_the_threads_that_an_engine_here_gets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OMP_NUM_THREADS", "VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND"):
        monkeypatch.delenv(name, raising=False)
    args = serve_args(EngineOptions(model=MODEL), RunSettings(), on_cpu=True)
    begin = "VLLM_PLUGINS=tokencake OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind python "
    assert serve_command(args, on_cpu=True).startswith(begin)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")  # which an engine here would take, too
    assert "VLLM_CPU_KVCACHE_SPACE=4 " in serve_command(args, on_cpu=True)
    assert serve_command(args).startswith("VLLM_PLUGINS=tokencake vllm serve ")


def test_the_server_listens_to_its_own_machine_only() -> None:
    assert options(serve_args(EngineOptions(model=MODEL), RunSettings()))["--host"] == "127.0.0.1"


def test_clients_control_runs_only_if_that_was_asked_for_and_the_token_is_in_no_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOKENCAKE_CONTROL_TOKEN", "s" * 40)
    for control, added in ((False, {}), (True, {"control_token_env": "TOKENCAKE_CONTROL_TOKEN"})):
        args = serve_args(EngineOptions(model=MODEL), RunSettings(policy="vllm"), control=control)
        told = json.loads(options(args)["--additional-config"] or "")
        assert told == {"tokencake": {"policy": "vllm", **added}}
        assert "sss" not in " ".join(args)
        assert control_token(server_settings(told), []) == ("s" * 40 if control else None)


def test_a_server_with_few_blocks_can_start() -> None:
    """The model's own context may be more than they hold, which vLLM refuses: it is told to take what they do."""
    few = EngineOptions(model=MODEL, gpu_blocks=200)
    assert options(serve_args(few, RunSettings()))["--max-model-len"] == "auto"
    with pytest.raises(EngineError, match="--max-context 6401: expected at most 6400, as 200 blocks of 32 tokens"):
        serve_args(replace(few, block_tokens=32, max_context_tokens=6401), RunSettings())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (3, "expected an object, got 3"),
        ({"polcy": "vllm"}, 'unknown field "polcy" (did you mean "policy"?)'),
        ({"policy": ""}, "policy: expected 1 to 1000 printable characters"),
        ({"policy": "x\0"}, "policy: expected 1 to 1000 printable characters"),
        ({"seed": 10**400}, "seed: expected a whole number from 0 to 9223372036854775807, got "),
        ({"seed": -5}, "seed: expected a whole number"),
        ({"seed": True}, "seed: expected a whole number"),
        ({"steps": 1}, "steps: expected true or false, got 1"),
        ({"app_timeout_s": float("nan")}, "app_timeout_s: expected seconds"),
        ({"app_timeout_s": -1}, "app_timeout_s: expected seconds"),
        ({"app_timeout_s": 0}, "app_timeout_s: expected seconds above 0"),
        ({"app_timeout_s": 10**400}, "app_timeout_s: expected seconds"),
        ({"session_timeout_s": 0}, "session_timeout_s: expected seconds above 0"),
        ({"events": "a\0b"}, "events: expected 1 to 4096 printable characters"),
        ({"costs": {}}, "costs: the field "),
        ({"costs": 5}, "costs: expected an object, got 5"),
        ({"client_timeout_s": 0}, "client_timeout_s: expected seconds above 0"),
        ({"stall_s": 0}, "stall_s: expected seconds above 0"),
        ({"control_token_env": "a b"}, "control_token_env: expected the name of an environment variable"),
    ],
)
def test_settings_that_mean_nothing_are_refused_in_one_line(wrong: object, said: str) -> None:
    with pytest.raises(EngineError) as caught:
        server_settings({"tokencake": wrong})
    assert str(caught.value).startswith(f"tokencake settings: {said}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_clients_name_no_files() -> None:
    with pytest.raises(EngineError, match='unknown field "events"'):
        from_client({"events": "/etc/passwd"})
    with pytest.raises(EngineError, match="a server writes no file for its clients"):
        to_server(RunSettings(events="x"))
    assert from_client(to_server(RunSettings(seed=3, app_timeout_s=2.0))) == RunSettings(seed=3, app_timeout_s=2.0)


def test_a_shell_reads_the_command_as_it_was_meant() -> None:
    args = serve_args(EngineOptions(model="my models/it's one", seed=3), RunSettings(policy="a b.py:C:x=1"))
    told = 'vllm() { printf "%s\\0" "$VLLM_PLUGINS" "$@"; }\n' + serve_command(args)
    words = subprocess.run(["sh", "-c", told], capture_output=True, check=True, text=True).stdout.split("\0")
    assert words == [ENVIRONMENT["VLLM_PLUGINS"], "serve", *args, ""]


def test_the_tiny_model_is_made_and_needs_no_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    args = serve_args(EngineOptions(model="tiny"), RunSettings())
    assert (Path(args[0]) / "config.json").exists()
    assert Path(args[0]).is_relative_to(tmp_path)
    assert options(args)["--served-model-name"] == "tiny"
    assert "--skip-tokenizer-init" in args


def test_the_routes_are_the_plugin_that_is_named_in_the_environment() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["vllm.endpoint_plugins"] == {
        ENVIRONMENT["VLLM_PLUGINS"]: "tokencake.live.route:Routes"
    }
    assert "class Routes:" in (ROOT / "live" / "route.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("on_cpu", [False, True])
def test_the_command_line_prints_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], on_cpu: bool
) -> None:
    monkeypatch.setattr("tokencake.live.client.command.for_cpus", lambda: on_cpu)
    monkeypatch.setattr("tokencake.live.client.start.available_memory.available_bytes", lambda: 64 << 30)
    assert (
        run(["live", "--print-serve-args", "--model", MODEL, "--policy", "tokencake-time", "--max-running", "9"]) == 0
    )
    asked = settled(EngineOptions(model=MODEL, max_running=9), on_cpu=on_cpu)
    args = serve_args(asked, RunSettings(policy="tokencake-time"), on_cpu=on_cpu)
    assert capsys.readouterr().out == serve_command(args, on_cpu=on_cpu) + "\n"
    start = "python -m vllm.entrypoints.openai.api_server --model" if on_cpu else "vllm serve"
    assert f" {start} {MODEL} " in serve_command(args, on_cpu=on_cpu)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policy", "nope"], "unknown policy 'nope'"),
        (["--policy", "vllm", "--policy", "tokencake"], "expected one --policy"),
    ],
)
def test_what_cannot_be_printed(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert run(["live", "--print-serve-args", "--model", MODEL, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
