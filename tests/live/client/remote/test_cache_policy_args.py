"""The arguments of a server whose own CPU tier asks a policy; and what is refused in one line."""

from __future__ import annotations

import json

import pytest

from tokencake.cli import run
from tokencake.live.client.engine_options import EngineOptions
from tokencake.live.client.remote import cache_policy_args as written
from tokencake.live.client.remote.cache_policy_args import cache_policy_args
from tokencake.policies.costs import LinearCosts
from tokencake.policies.run_settings import RunSettings, server_settings
from tokencake.traces.errors import EngineError, PolicyError

COSTS = LinearCosts(0.1, 0.01, 0.001, 0.0)


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is installed where the tests run."""
    monkeypatch.setattr(written, "installed_vllm", lambda: "0.32.0")


def args(policy: str = "tokencake", **options: object) -> list[str]:
    made = EngineOptions(model="m", host_gib=2.0, **options)  # type: ignore[arg-type]
    return cache_policy_args(made, RunSettings(policy=policy, seed=3, costs=COSTS))


def test_the_tier_is_vllms_and_is_told_whom_to_ask() -> None:
    said = args()
    transfer = json.loads(said[said.index("--kv-transfer-config") + 1])
    assert transfer["kv_connector"] == "OffloadingConnector"
    assert transfer["kv_connector_extra_config"] == {
        "cpu_bytes_to_use": 2 * 2**30,
        "offload_prompt_only": False,
        "eviction_policy": "TokencakeCachePolicy",
        "cache_policy_module_path": "tokencake.live.cache_policy",
    }
    settings = server_settings(json.loads(said[said.index("--additional-config") + 1])).run
    assert settings == RunSettings(policy="tokencake", seed=3, costs=COSTS)
    assert not {"--scheduler-cls", "--async-scheduling", "--no-async-scheduling"} & set(said)


def test_what_is_said_of_any_engine_is_said_of_this_one() -> None:
    said = args(gpu_blocks=100, block_tokens=16, max_running=9, tensor_parallel_size=2, asynchronous=False)
    given = {"--num-gpu-blocks-override": "101", "--block-size": "16", "--max-num-seqs": "9"}
    given |= {"--tensor-parallel-size": "2", "--max-model-len": "auto"}
    assert {name: said[said.index(name) + 1] for name in given} == given
    assert "--no-async-scheduling" in said


@pytest.mark.parametrize("policy", ["tokencake-space", "continuum", "autellix", "saga", "thunderagent"])
def test_a_policy_that_says_nothing_of_the_host_is_refused(policy: str) -> None:
    with pytest.raises(PolicyError, match=f"policy {policy}: its plans say nothing of what the host keeps"):
        args(policy)


@pytest.mark.parametrize("policy", ["vllm", "native-offload", "tokencake-time:upload=demand", "mine.py:Mine"])
def test_others_are_taken(policy: str) -> None:
    assert args(policy)


@pytest.mark.parametrize("version", ["0.26.0", "0.30.0"])
def test_a_vllm_that_tells_of_no_ends_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "installed_vllm", lambda: version)
    with pytest.raises(EngineError, match=f"vLLM {version} does not tell a cache policy .*: expected vllm>=0.31"):
        args()


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(EngineError, match="expected no --link-gbps"):
        args(link_gbps=5.0)
    with pytest.raises(EngineError, match="vLLM has its CPU tier on GPUs only, and this one is for CPUs"):
        cache_policy_args(EngineOptions(model="m", host_gib=2.0), RunSettings(), on_cpu=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--print-serve-args", "--as", "cache-policy", "--control"], "--control: expected no --as cache-policy"),
        (["t.jsonl", "--as", "cache-policy"], "--as: expected --print-serve-args, too"),
        (["--print-serve-args", "--as", "cache-policy", "--policy", "saga"], "policy saga: its plans say nothing"),
        (["--print-serve-args", "--as", "cache-policy", "--policy", "oracle"], "policy oracle: sees the future"),
    ],
)
def test_the_command_line_says_in_one_line_what_it_refuses(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["live", "--model", "m", "--host-gib", "2", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")
