"""The examples of docs/serving.md do what the page says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from made_up_server import made_up_server

from tokencake.live.client.engine_options import EngineOptions
from tokencake.live.client.remote.cache_policy_args import cache_policy_args
from tokencake.live.client.remote.serve_args import serve_args, serve_command
from tokencake.live.engine.control.metadata import from_extra_args
from tokencake.live.host_tier.abilities import WITHOUT_HOST_HALF
from tokencake.policies.run_settings import RunSettings
from tokencake.traces.events import ToolHint

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_command_is_the_one_that_is_printed() -> None:
    options = EngineOptions(model="Qwen/Qwen2.5-14B-Instruct", host_gib=64.0)
    assert serve_command(serve_args(options, RunSettings(policy="tokencake"))) + "\n" in blocks("sh")


def test_the_command_of_vllms_own_tier_is_the_one_that_is_printed() -> None:
    options = EngineOptions(model="Qwen/Qwen2.5-14B-Instruct", host_gib=64.0)
    assert serve_command(cache_policy_args(options, RunSettings(policy="tokencake")), {}) + "\n" in blocks("sh")


def test_the_page_names_the_policies_without_a_host_half() -> None:
    listed = re.search(r"say nothing of the host\n\(([^)]*)\) are refused", PAGE)
    assert listed is not None
    assert set(re.findall(r"`([^`]*)`", listed[1])) == WITHOUT_HOST_HALF


def test_the_client_says_what_the_page_says() -> None:
    pytest.importorskip("openai", reason="the example's client: pip install tokencake[connect]")
    example, _ = blocks("python")
    with made_up_server() as server:
        names: dict[str, object] = {}
        exec(example.replace("http://localhost:8000", server.url), names)
        names["client"].close()  # type: ignore[attr-defined]
    (call,) = server.calls
    told = from_extra_args(call["vllm_xargs"], "request", 8, 400)
    assert told is not None
    assert (told.request.agent, told.request.agent_type) == ("fix-42/main", "coder")
    assert told.request.tools == (ToolHint("test", 12.5),)
    assert call["call"] == "fix-42/request"


def test_the_session_is_sent_as_the_page_says() -> None:
    openai = pytest.importorskip("openai", reason="the example's client: pip install tokencake[connect]")
    _, example = blocks("python")
    names: dict[str, object] = {"OpenAI": openai.OpenAI}
    exec(example, names)
    with names["client"] as client:  # type: ignore[attr-defined]
        assert client.default_headers["X-Session-ID"] == "chat-7"


def test_the_event_is_sent_as_the_page_says() -> None:
    (curl,) = (block for block in blocks("sh") if block.startswith("curl "))
    with made_up_server() as server:
        told = curl.replace("http://localhost:8000", server.url).replace("curl ", "curl -sS ")
        try:
            subprocess.run(["sh", "-c", told], check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            if error.returncode == 127:
                pytest.skip("curl is not installed")
            raise
    assert server.log == [("tool_returned", {"event": "tool_returned", "app": "fix-42", "agent": "main"})]
