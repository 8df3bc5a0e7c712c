"""KV cache groups of a machine: as text, as tables, and what is said when they are wrong."""

import pytest

from tokencake.sim.calibration.engine_info import limits_of, with_limits
from tokencake.sim.gate.suite.suite_paths import as_settings
from tokencake.sim.machine.files import load_machine
from tokencake.sim.machine.kv_groups import KvGroup, groups_text
from tokencake.sim.machine.machine import DENSE
from tokencake.traces.errors import MachineError

GEMMA = (KvGroup("full"), *[KvGroup("sliding_window", 1024)] * 6)
TABLES = """\
base = "h200-llama-3.1-8b"

[[kv_groups]]
kind = "full"

[[kv_groups]]
kind = "sliding_window"
window_tokens = 128
"""


def changed(*settings):
    return load_machine("h200-llama-3.1-8b", settings)


def test_a_machine_has_one_group_of_full_attention_unless_told():
    assert changed().kv_groups == (KvGroup("full"),)
    assert changed().settings()["kv_groups"] == "full"


def test_groups_are_written_with_a_count():
    assert changed("kv_groups=full + 6*sliding_window:1024").kv_groups == GEMMA
    assert changed("kv_groups=" + "+".join(["full"] + ["sliding_window:1024"] * 6)).kv_groups == GEMMA
    assert groups_text(GEMMA) == "full+6*sliding_window:1024"


def test_a_file_has_a_table_a_group(tmp_path):
    (tmp_path / "mine.toml").write_text(TABLES)

    assert load_machine(str(tmp_path / "mine.toml")).kv_groups == (KvGroup("full"), KvGroup("sliding_window", 128))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected full, mamba, sliding_window:TOKENS or chunked_local:TOKENS, joined by +"),
        ("full+", "joined by +"),
        ("full+ring:3", "group 2: kind: expected one of full, sliding_window, chunked_local, mamba"),
        ("full+sliding_window", "group 2: sliding_window: expected window_tokens, of at least 1"),
        ("full:8+mamba", "group 1: full: expected no window_tokens, got 8"),
        ("full+chunked_local:9999999999", "group 2: window_tokens: expected a whole number from 1 to 2147483647"),
        ("sliding_window:128", 'expected at least one group of kind "full"'),
        ("full+99*mamba", "expected 1 to 64 groups, got 100"),
    ],
)
def test_wrong_groups_on_the_command_line(text, said):
    with pytest.raises(MachineError) as error:
        changed(f"kv_groups={text}")
    assert str(error.value).startswith("--set kv_groups: ")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (TABLES.replace("128", '"wide"'), "mine.toml:3: kv_groups: group 2: window_tokens: expected a whole number"),
        (TABLES.replace("window_tokens", "window"), 'group 2: expected kind and window_tokens, got "window"'),
        (TABLES.replace('kind = "full"', ""), "group 1: kind: expected one of full, "),
        (
            'base = "h200-llama-3.1-8b"\nkv_groups = 3',
            "mine.toml:2: kv_groups: expected tables [[kv_groups]], or full,",
        ),
    ],
)
def test_wrong_groups_in_a_file(content, said, tmp_path):
    (tmp_path / "mine.toml").write_text(content)

    with pytest.raises(MachineError) as error:
        load_machine(str(tmp_path / "mine.toml"))
    assert said in str(error.value)


def test_checkpoints_are_kept_as_the_engine_s_version_does():
    assert changed().prefix_cache_retention_interval == 0
    assert changed("engine_version=0.29").prefix_cache_retention_interval == 0
    assert changed("engine_version=0.28").prefix_cache_retention_interval == DENSE
    assert changed("engine_version=0.28", "prefix_cache_retention_interval=0").prefix_cache_retention_interval == 0


def test_an_interval_is_of_whole_blocks_and_concerns_a_group():
    hybrid = "kv_groups=full+mamba"

    assert changed(hybrid, "prefix_cache_retention_interval=64").prefix_cache_retention_interval == 64
    with pytest.raises(
        MachineError, match=r"prefix_cache_retention_interval: expected a multiple of block_tokens \(16\)"
    ):
        changed(hybrid, "prefix_cache_retention_interval=65")
    with pytest.raises(MachineError, match=r"expected 0 or -1: kv_groups has no group of kind sliding_window or mamba"):
        changed("kv_groups=full+chunked_local:8192", "prefix_cache_retention_interval=64")


def test_a_suite_may_have_groups_as_tables_or_as_text():
    tables = [{"kind": "full"}, {"kind": "sliding_window", "window_tokens": 128}]

    assert as_settings({"kv_groups": tables}) == as_settings({"kv_groups": "full+sliding_window:128"})


def test_an_engine_may_tell_its_groups():
    told = {
        "gpu_blocks": 100,
        "block_tokens": 16,
        "block_bytes": 16_000,
        "host_blocks": 10,
        "asynchronous": False,
        "max_context_tokens": 1000,
        "step_budget_tokens": 512,
        "max_running": 8,
        "vllm": "0.28.0",
    }
    one, two = limits_of(told), limits_of({**told, "kv_groups": "full+sliding_window:128"})

    assert with_limits(changed(), one).kv_groups == (KvGroup("full"),)
    assert with_limits(changed(), two).kv_groups == (KvGroup("full"), KvGroup("sliding_window", 128))
    assert with_limits(changed(), two).prefix_cache_retention_interval == DENSE
    with pytest.raises(MachineError, match=r"what the engine tells of itself: kv_groups: expected at least one group"):
        limits_of({**told, "kv_groups": "mamba"})


def test_chunks_are_of_whole_blocks() -> None:
    """Else vLLM gives back a page of which a part is still needed."""
    with pytest.raises(MachineError, match="kv_groups: group 2: expected chunks of whole blocks of 16 tokens, got 100"):
        load_machine(settings=("kv_groups=full+chunked_local:100",))


def test_a_copy_is_believed_to_bring_what_a_context_needs_in_every_group():
    """gpt-oss's groups: a page of full attention a block, and the 8 pages before the next token's window of 128."""
    one, two = changed().beliefs(), changed("kv_groups=full+sliding_window:128").beliefs()

    assert two.offload_s(100) == pytest.approx(one.offload_s(108))
    assert two.prefill_s(100, 0) == one.prefill_s(100, 0)
