"""A machine that is written down reads back equal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokencake.sim.machine.files import load_machine, machine_toml
from tokencake.sim.machine.kv_groups import LONGEST_WINDOW, WINDOWED, KvGroup
from tokencake.sim.machine.machine import RULES, Name, Real
from tokencake.sim.machine.presets import presets
from tokencake.traces.files.fields import MAX_NAME


@pytest.mark.parametrize("name", presets())
def test_every_preset(name, tmp_path):
    machine = load_machine(name, ["beliefs.attention_s=1e-9", "beliefs.link_gbps=3"])
    path = tmp_path / "mine.toml"
    path.write_text(machine_toml(machine, ["why:", "two\nlines = one comment"]))

    assert load_machine(str(path)) == machine
    assert path.read_text().startswith("# why:\n# two lines = one comment\nname = ")


def test_every_group_has_a_table(tmp_path):
    machine = load_machine(settings=["kv_groups=full+2*sliding_window:1024+mamba"])
    path = tmp_path / "mine.toml"
    path.write_text(machine_toml(machine))

    assert load_machine(str(path)) == machine
    assert path.read_text().count("[[kv_groups]]") == 4
    assert path.read_text().count("window_tokens = 1024") == 2


names = st.text(min_size=1, max_size=MAX_NAME).filter(lambda text: Name().problem(text) is None)
costs = {
    field: st.floats(rule.low, rule.high)
    for field, rule in RULES.items()
    if isinstance(rule, Real) and field != "step_s"
}

groups = st.lists(
    st.one_of(
        st.sampled_from((KvGroup("full"), KvGroup("mamba"))),
        st.builds(KvGroup, st.sampled_from(WINDOWED), st.integers(1, LONGEST_WINDOW // 16).map(lambda n: 16 * n)),
    ),
    max_size=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(names, st.fixed_dictionaries({}, optional=costs), groups)
def test_any_machine(tmp_path, name, values, groups):
    window_tokens = max((group.window_tokens for group in groups), default=0) or 128
    mixture: dict[str, Any] = {"experts": 8, "experts_per_token": 2, "window_tokens": window_tokens}
    machine = replace(load_machine(), name=name, kv_groups=(KvGroup("full"), *groups), **mixture, **values)
    path = tmp_path / "mine.toml"
    path.write_text(machine_toml(machine), encoding="utf-8")

    assert load_machine(str(path)) == machine
