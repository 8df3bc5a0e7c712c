"""Engines that are asked for something particular: real ones, which say what they have become."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from tokencake.live.client.engine_options import MODEL_RUNNER, EngineOptions
from tokencake.live.client.in_process import InProcess
from tokencake.live.client.start.launch import start
from tokencake.live.engine.control.versions import for_cpus
from tokencake.traces.errors import EngineError

SMALL = EngineOptions(gpu_blocks=20, block_tokens=32, host_gib=0.01)

pytestmark = pytest.mark.skipif(not for_cpus(), reason="what a vLLM for CPUs takes and refuses")


def test_an_engine_is_what_was_asked_for_and_the_next_one_hears_nothing_of_it() -> None:
    asked = replace(SMALL, asynchronous=False, model_runner="v1", max_running=3, step_budget_tokens=64)
    with InProcess(asked) as engine:
        info = engine.info()
        assert os.environ[MODEL_RUNNER] == "0"
    assert (info["asynchronous"], info["model_runner"]) == (False, "v1")
    assert (info["max_running"], info["step_budget_tokens"]) == (3, 64)
    assert MODEL_RUNNER not in os.environ


def test_a_captured_standard_output_keeps_no_engine_from_starting(capsys: pytest.CaptureFixture[str]) -> None:
    with InProcess(SMALL) as engine:
        assert engine.info()["gpu_blocks"] == 20
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"asynchronous": True}, "this vLLM schedules synchronously, and cannot do so asynchronously"),
        ({"compile": "graphs"}, "--compile graphs: this vLLM is for machines without a GPU"),
        ({"attention_backend": "NO_SUCH"}, "cannot start: "),
    ],
)
def test_what_it_cannot_be_is_said_in_one_line(asked: dict[str, object], said: str) -> None:
    with pytest.raises(EngineError) as caught:
        start(replace(SMALL, **asked))  # type: ignore[arg-type]
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
