"""Machines by name, from files, with settings; and what is said when they are wrong."""

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokencake.sim.machine.files import KEYS, load_machine
from tokencake.sim.machine.machine import Machine
from tokencake.sim.machine.preset_tables import preset_lines
from tokencake.sim.machine.presets import presets
from tokencake.traces.errors import MachineError

WHOLE = """\
gpu_blocks = 100
kv_bytes_per_token = 1000
host_gib = 1
max_context_tokens = 500
step_s = 0.01
link_gbps = 25

[beliefs]
copy_s = 2
"""


@pytest.fixture
def toml(tmp_path):
    def write(content):
        path = tmp_path / "mine.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def refusal(name, *settings):
    with pytest.raises(MachineError) as error:
        load_machine(name, settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_a_name_it_is_an_h200_with_a_small_llama():
    assert load_machine() == presets()["h200-llama-3.1-8b"]


def test_every_preset_has_a_line():
    lines = dict(preset_lines())

    assert list(lines) == list(presets())
    assert lines["a100-llama-3.3-70b-tp4"].startswith("4 x A100-SXM4-80G, Llama-3.3-70B: ")
    assert all("\n" not in line for line in lines.values())


def test_settings_change_a_preset():
    machine = load_machine("h100-llama-3.1-8b", ["gpu_blocks=20", "link_gbps=12", "asynchronous=false"])

    assert (machine.gpu_blocks, machine.link_gbps, machine.asynchronous) == (20, 12.0, False)
    assert machine.step_s == presets()["h100-llama-3.1-8b"].step_s


def test_beliefs_can_be_set_apart_from_the_truth():
    true = load_machine("a800-qwen2.5-14b", ["copy_s=0"])
    told = load_machine("a800-qwen2.5-14b", ["copy_s=0", "beliefs.link_gbps=12.5"])

    assert told.beliefs().upload_s(64) == pytest.approx(2 * true.beliefs().upload_s(64))
    assert told.timing() == true.timing()
    assert told.settings()["beliefs"] == {"link_gbps": 12.5}


def test_a_file_holds_a_whole_machine(toml):
    machine = load_machine(toml(WHOLE))

    assert (machine.name, machine.gpu_blocks, machine.block_tokens, machine.link_gbps) == ("mine", 100, 16, 25.0)
    assert machine.believed == (("copy_s", 2.0),)


def test_a_file_may_say_only_what_differs_from_a_preset(toml):
    machine = load_machine(toml('base = "h200-qwen3-32b"\nname = "larger"\nhost_gib = 500'), ["max_running=8"])

    assert machine == dataclasses.replace(presets()["h200-qwen3-32b"], name="larger", host_gib=500.0, max_running=8)


@pytest.mark.parametrize("name", presets())
def test_a_machine_written_down_reads_back_equal(name, toml):
    settings = load_machine(name, ["beliefs.attention_s=1e-9"]).settings()
    settings.pop("beliefs")
    lines = [
        f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for key, value in settings.items()
    ]

    assert load_machine(toml("\n".join(lines))) == presets()[name]


def test_a_step_has_a_token_for_every_running_call():
    with pytest.raises(MachineError, match=r"max_running: expected at most step_budget_tokens \(512\), got 1024"):
        load_machine(settings=["step_budget_tokens=512"])


def test_a_long_prompt_is_at_most_a_context():
    assert load_machine(settings=["long_prefill_token_threshold=2048"]).long_prefill_token_threshold == 2048
    with pytest.raises(MachineError, match=r"threshold: expected at most max_context_tokens \(131072\), got 131073"):
        load_machine(settings=["long_prefill_token_threshold=131073"])


def test_a_version_is_one_whose_scheduler_is_simulated(toml):
    known = r'engine_version: expected one of "0.26", .*, "0.33", got '
    with pytest.raises(MachineError, match=rf'--set {known}"0.25"'):
        load_machine(settings=["engine_version=0.25"])
    with pytest.raises(MachineError, match=rf":2: {known}0.3$"):  # a number, of which 0.3 and 0.30 are the same
        load_machine(toml('base = "h200-qwen3-32b"\nengine_version = 0.30'))


@pytest.mark.parametrize("key", ["max_num_partial_prefills", "max_long_partial_prefills"])
def test_what_vllm_itself_does_not_do_is_no_setting(key, toml):
    with pytest.raises(
        MachineError, match=rf"--set {key}: vLLM's V1 engine has no such limit, .* expected long_prefill"
    ):
        load_machine(settings=[f"{key}=2"])
    with pytest.raises(MachineError, match=rf":2: {key}: vLLM's V1 engine has no such limit"):
        load_machine(toml(f'base = "h200-qwen3-32b"\n{key} = 1'))


@pytest.mark.parametrize("key", KEYS)
def test_every_setting_can_be_set(key):
    values = {
        "name": ("mine", "mine"),
        "asynchronous": ("false", False),
        "engine_version": ("0.30", "0.30"),
        "step_budget_tokens": ("2048", 2048),
        "kv_groups": ("full+mamba", "full+mamba"),
        "prefix_cache_retention_interval": ("-1", -1),
    }
    needed = {
        "experts_s": ["experts=8", "experts_per_token=2"],
        "window_attention_s": ["window_tokens=8"],
        "window_context_token_s": ["window_tokens=8"],
    }
    text, value = values.get(key, ("1", 1))
    made = load_machine(settings=[f"{key}={text}", *needed.get(key, [])]).settings()

    table, _, belief = key.partition(".")
    assert made[table] == ({belief: value} if belief else value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("h100-llama-3.1-7b", 'unknown machine "h100-llama-3.1-7b": did you mean h100-llama-3.1-8b or '),
        ("h100-llama-3.3-70b", "h100-llama-3.3-70b-tp4"),
        ("zzz", 'unknown machine "zzz": expected one of a100-qwen2.5-14b, '),
        ("nowhere/mine.toml", "nowhere/mine.toml: cannot be read: No such file or directory"),
        ("./", "cannot be read: Is a directory"),
        ("/\0", "cannot be read: embedded null byte"),
        ("/dev/zero", "expected at most 1000000 bytes"),
    ],
)
def test_a_machine_that_is_not_there(name, said):
    assert said in refusal(name)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("gpu_blocks", '--set "gpu_blocks": expected key=value'),
        ("=3", '--set "=3": expected key=value'),
        ("gpu_block=3", '--set unknown setting "gpu_block": did you mean gpu_blocks'),
        ("beliefs.link_gps=3", "did you mean beliefs.link_gbps"),
        ("beliefs.client_s=3", '--set unknown setting "beliefs.client_s"'),
        ("gpu_blocks=many", '--set gpu_blocks: expected a whole number from 1 to 1000000000, got "many"'),
        ("gpu_blocks=1.5", 'got "1.5"'),
        (f"gpu_blocks={'9' * 5000}", 'got "9999'),
        ("step_s=nan", "--set step_s: expected 0 or a number from 1e-12 to 1000, got NaN"),
        ("link_gbps=1e999", "got Infinity"),
        ("asynchronous=maybe", '--set asynchronous: expected true or false, got "maybe"'),
        ("name=", "--set name: expected a name"),
    ],
)
def test_a_wrong_setting(setting, said):
    assert said in refusal("h200-llama-3.1-8b", setting)


def test_settings_that_are_wrong_only_together():
    assert refusal("h200-llama-3.1-8b", "step_s=0", "floor_s=0").startswith(
        '--set: machine "h200-llama-3.1-8b": step_s'
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "mine.toml: expected gpu_blocks, kv_bytes_per_token, host_gib, max_context_tokens, step_s, link_gbps, or"),
        ("gpu_blocks = 1\n", "mine.toml: expected kv_bytes_per_token, "),
        ("gpu_blocks = 1\ngpu_blocks = 2\n", "mine.toml:2: not TOML: Cannot overwrite a value"),
        ("# a\n\nstep_s = 0.1.2\n", "mine.toml:3: not TOML: "),
        ("a = 1\nb = [1,\n", "mine.toml:2: not TOML: Invalid value at its end"),
        (b"a = 1\n\xff\n", "mine.toml:2: expected TOML in UTF-8, got byte 0xff"),
        (b"\x00", "mine.toml:1: not TOML: "),
        (f"a = {'9' * 5000}", "mine.toml:1: expected numbers of at most 4300 digits, got one of 5000"),
        ("a = " + "[" * 100_000, "mine.toml: expected a table of settings, got values nested too deep"),
        (WHOLE.replace("= 100", "= -100"), "mine.toml:1: gpu_blocks: expected a whole number from 1 to"),
        (
            WHOLE.replace("= 0.01", '= "fast"'),
            'mine.toml:5: step_s: expected 0 or a number from 1e-12 to 1000, got "fast"',
        ),
        (
            WHOLE.replace("= 25", "= nan"),
            "mine.toml:6: link_gbps: expected a number from 0.001 to 1e+06, got NaN",
        ),
        (WHOLE.replace("copy_s = 2", "copy_s = -2"), "mine.toml:9: beliefs.copy_s: expected 0 or a number"),
        (WHOLE.replace("copy_s = 2", "copys = 2"), 'mine.toml:9: unknown setting "beliefs.copys": did you mean'),
        ("[a.b]\nc = 1", 'mine.toml:1: unknown setting "a"'),
        ("beliefs = 3", "mine.toml:1: beliefs: expected a table of link_gbps"),
        ("\nbeliefs = { copy_s = true }", "mine.toml:2: beliefs.copy_s: expected 0 or a number"),
        ("\nbase = 'h200-qwen3-32'", 'mine.toml:2: base: expected a preset, got "h200-qwen3-32": did you mean'),
        ("base = 3", "mine.toml:1: base: expected a preset, got 3"),
        (
            "base = 'h200-qwen3-32b'\nstep_s = 0\nfloor_s = 0",
            'mine.toml: machine "mine": step_s, floor_s: expected one',
        ),
    ],
)
def test_a_wrong_file(content, said, toml):
    assert said in refusal(toml(content))


def is_machine_or_one_line(name, settings):
    try:
        return isinstance(load_machine(name, settings), Machine)
    except MachineError as error:
        return len(str(error).splitlines()) == 1


mutations = st.lists(st.tuples(st.integers(0, len(WHOLE)), st.integers(0, 5), st.binary(max_size=4)), max_size=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(mutations)
def test_any_file_is_a_machine_or_one_line(toml, mutations):
    content = WHOLE.encode()
    for start, removed, inserted in mutations:
        content = content[:start] + inserted + content[start + removed :]
    assert is_machine_or_one_line(toml(content), ())


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.text(), st.builds("{}={}".format, st.sampled_from(KEYS), st.one_of(st.text(), st.floats(), st.integers()))
    )
)
def test_any_setting_makes_a_machine_or_one_line(setting):
    assert is_machine_or_one_line("h200-llama-3.1-8b", [setting])
