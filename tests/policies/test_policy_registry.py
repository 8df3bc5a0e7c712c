"""Policies by name and by file, their options, and what is said when something is wrong."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from adversary import hard_workload
from runs import play

from tokencake.policies.boundary import listening
from tokencake.policies.field.vllm import Vllm
from tokencake.policies.registry import is_bound, load_policy, policy_lines
from tokencake.policies.tokencake.options import PRESETS
from tokencake.policies.tokencake.policy import Tokencake
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.files import load_machine
from tokencake.traces.apps import Application, Call, Prompt, Segment
from tokencake.traces.errors import PolicyError
from tokencake.traces.events import CallArrived, Planned

MINE = """
from typing import Literal

class Mine:
    listens_to = frozenset()

    def __init__(self, share: float = 0.5, turns: int = 3, mode: Literal["a", "b"] = "a", most: int | None = None,
                 on: bool = False, note="", seed: int = 7, sizes: list[int] = []):
        self.given = (share, turns, mode, most, on, note, seed)

    def plan(self, view):
        raise NotImplementedError

class Deaf:
    def plan(self, view):
        raise NotImplementedError

class Planless:
    listens_to = frozenset()

class Hearing:
    listens_to = frozenset({int})

    def plan(self, view):
        raise NotImplementedError

class Later(Deaf):
    listens_to: frozenset

    def __init__(self):
        self.listens_to = frozenset()

class Broken(Mine):

    def __init__(self, x: int = 0):
        raise KeyError("two\\nlines")
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return str(path)


def test_every_policy_has_one_line_and_loads():
    lines = policy_lines()
    assert [name for name, _ in lines][:4] == ["vllm", "tokencake", "tokencake-space", "tokencake-time"]
    for name, line in lines:
        assert line
        assert "\n" not in line
        assert load_policy(name, applications=()).listens_to is not None


def test_names_stand_for_halves():
    assert isinstance(load_policy("vllm"), Vllm)
    halves = {}
    for name in ("tokencake", "tokencake-space", "tokencake-time"):
        policy = load_policy(name)
        assert isinstance(policy, Tokencake)
        halves[name] = (policy.options.space, policy.options.time)
    assert halves == {"tokencake": (True, True), "tokencake-space": (True, False), "tokencake-time": (False, True)}


def test_the_class_by_itself_is_what_the_name_stands_for():
    applications, machine = hard_workload(3)
    records = play(applications, lambda: load_policy("tokencake"), machine)
    assert play(applications, Tokencake, machine) == records
    assert any(record.plan.get("offload") for record in records if isinstance(record, Planned))


def test_options_change_the_rules():
    policy = load_policy("tokencake:rules=published,upload=demand,lend=off,lead_s=0.2,offload_retry_steps=4")
    assert isinstance(policy, Tokencake)
    assert policy.options == replace(
        PRESETS["published"], upload="demand", lend=False, lead_s=0.2, offload_retry_steps=4
    )


def test_two_loads_share_nothing():
    assert load_policy("tokencake") is not load_policy("tokencake")


def test_a_file_brings_a_class_and_its_annotations_type_the_options(mine):
    policy = load_policy(f"{mine}:Mine:share=0.25,turns=4,mode=b,most=9,on=yes,note=x=y", seed=11)
    assert vars(policy)["given"] == (0.25, 4, "b", 9, True, "x=y", 11)
    assert vars(load_policy(f"{mine}:Mine:seed=3", seed=11))["given"][-1] == 3


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("", "unknown policy ''"),
        ("tokencak", "unknown policy 'tokencak' (near: tokencake"),
        ("nope", "known are vllm, tokencake, tokencake-space, tokencake-time"),
        ("vllm:x=1", "policy vllm: unknown option 'x': known are none"),
        ("tokencake:uplod=demand", "unknown option 'uplod' (near: upload)"),
        ("tokencake:upload=later", "option upload: expected predictive or pause or demand, got 'later'"),
        ("tokencake:lend=maybe", "option lend: expected on or off, got 'maybe'"),
        ("tokencake:lead_s=soon", "option lead_s: expected a number, got 'soon'"),
        ("tokencake:lead_s=nan", "option lead_s: expected a number at least 0, got nan"),
        ("tokencake:lead_s=-1", "option lead_s: expected a number at least 0, got -1.0"),
        ("tokencake:reserve_max_share=2", "option reserve_max_share: expected a number from 0 to 1, got 2.0"),
        ("tokencake:reserve_min_share=0.5", "reserve_min_share: expected at most reserve_max_share"),
        ("tokencake:offload_retry_steps=0", "option offload_retry_steps: expected at least 1, got 0"),
        ("tokencake:offload_retry_steps=1.5", "option offload_retry_steps: expected a whole number, got '1.5'"),
        ("tokencake:lend=on,lend=off", "option 'lend': given twice"),
        ("tokencake:lend", "option 'lend': expected key=value"),
        ("tokencake:=on", "option '=on': expected key=value"),
        ("tokencake:upload=demand,", "option '': expected key=value"),
        ("tokencake:space=off,time=off", "expected at least one half"),
        ("nowhere.py", "expected nowhere.py:Class"),
        ("nowhere.py:Mine", "there is no file 'nowhere.py'"),
    ],
)
def test_a_wrong_spec_is_told_in_one_line(spec, said):
    with pytest.raises(PolicyError) as error:
        load_policy(spec)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("Mime", "no class 'Mime' in the file (near: Mine): it has Mine, Deaf, Planless, Hearing, Later, Broken"),
        ("", "no class '' in the file"),
        ("Mine:turns=x", "option turns: expected a whole number, got 'x'"),
        ("Mine:most=x", "option most: expected a whole number, got 'x'"),
        ("Mine:sizes=1", "option sizes: expected nothing from the command line"),
        (
            "Deaf",
            "listens_to: expected in the class itself, Deaf has none: write `listens_to = frozenset({CallArrived})`",
        ),
        ("Planless", "expected a method plan(view), Planless has none"),
        ("Hearing", "listens_to: expected a frozenset of facts, got frozenset({<class 'int'>})"),
        ("Broken", "KeyError: 'two"),
        ("Broken:x=1", "KeyError: 'two"),
    ],
)
def test_a_wrong_class_is_told_in_one_line(mine, rest, said):
    with pytest.raises(PolicyError) as error:
        load_policy(f"{mine}:{rest}")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["import nothing_of_this_name", "def (", "raise SystemExit(3)", "\0", "x = 1 / 0"])
def test_a_file_that_cannot_be_imported_is_told_in_one_line(tmp_path, text):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(PolicyError) as error:
        load_policy(f"{path}:Mine")
    assert str(error.value).startswith(f"policy file {path}: import raised ")
    assert "\n" not in str(error.value)


SET_BY_INIT = """
from tokencake.policies.interface import Plan
from tokencake.traces.events import CallArrived, Planned


class Mine:
    {line}
    def __init__(self):
        self.listens_to = frozenset({{CallArrived}})

    def plan(self, view):
        return Plan()
"""


def test_what_is_set_by_the_constructor_alone_is_refused_and_what_the_line_says_to_write_is_taken(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SET_BY_INIT.format(line=""))
    with pytest.raises(PolicyError, match="listens_to: expected in the class itself, Mine has none: write") as error:
        load_policy(f"{path}:Mine")
    lines = [line for line in re.findall("`([^`]+)`", str(error.value)) if line.startswith("listens_to")]
    assert len(lines) == 2
    for number, line in enumerate(lines):
        path = tmp_path / f"mine_{number}.py"
        path.write_text(SET_BY_INIT.format(line=line))
        assert load_policy(f"{path}:Mine").listens_to == {CallArrived}


def test_what_is_heard_may_be_set_by_the_constructor_if_the_class_declares_it(mine):
    assert load_policy(f"{mine}:Later").listens_to == frozenset()


BEFORE = """
from tokencake.policies.interface import Plan
from tokencake.traces.events import CallArrived, Planned


class Mine:
    hears{line}

    def __init__(self):
        self.hears = frozenset({{CallArrived}})
        self.asked_at_s = []

    def plan(self, view):
        self.asked_at_s.append(view.now_s)
        return Plan()
"""


def asked_at_s(path: Path) -> list[float]:
    """When the policy of this file is asked, while one application has three calls, one after another."""
    policy = load_policy(f"{path}:Mine")
    prompt = Prompt((Segment("a/x", 0, 16),), tokens=16)
    calls = [Call(f"a/{n}", "a", "a/main", "main", prompt, 1, 1, after=(f"a/{n - 1}",) if n else ()) for n in range(3)]
    simulate([Application("a", 1.0, tuple(calls))], policy, load_machine("a800-qwen2.5-14b"))
    return list(vars(policy)["asked_at_s"])


@pytest.mark.parametrize("line", [" = frozenset()", ": frozenset[type]"])
def test_a_policy_that_says_hears_is_asked_as_before(tmp_path, line):
    old, new = tmp_path / "old.py", tmp_path / "new.py"
    old.write_text(BEFORE.format(line=line))
    new.write_text(BEFORE.format(line=line).replace("hears", "listens_to"))
    assert len(asked_at_s(old)) == 4, "at the start, and after each arrival"
    assert asked_at_s(old) == asked_at_s(new)


def test_the_new_name_counts_where_a_policy_has_both():
    class Both:
        listens_to = frozenset({CallArrived})
        hears: frozenset[type] = frozenset()

    assert listening(Both()) == "listens_to"


DERIVED = """
from tokencake.policies.field.vllm import Vllm
from tokencake.traces.events import CallArrived


class Mine(Vllm):
    {line}

    def plan(self, view):
        self.__dict__.setdefault("asked_at_s", []).append(view.now_s)
        return super().plan(view)
"""


@pytest.mark.parametrize(
    "line", ["hears = frozenset({CallArrived})", "def __init__(self): self.hears = frozenset({CallArrived})"]
)
def test_hears_in_a_class_derived_from_one_of_ours_counts(tmp_path, line):
    mine = tmp_path / "mine.py"
    mine.write_text(DERIVED.format(line=line))
    assert len(asked_at_s(mine)) == 4


def test_the_nearer_name_counts():
    class Old:
        hears = frozenset({CallArrived})

    class New(Old):
        listens_to = frozenset({CallArrived})

    class Slotted(New):
        __slots__ = ()
        hears = frozenset({CallArrived})

    assert [listening(made) for made in (Old, New, Slotted)] == ["hears", "listens_to", "hears"]
    assert [listening(made()) for made in (Old, New, Slotted)] == ["hears", "listens_to", "hears"]


def test_data_may_name_registered_policies_only(mine):
    assert isinstance(load_policy("vllm", registered_only=True), Vllm)
    assert is_bound("oracle", registered_only=True)
    for ask in (load_policy, is_bound):
        for spec in (f"{mine}:Mine", mine):
            with pytest.raises(
                PolicyError, match=r"data may name registered policies only: give this one with --policy"
            ):
                ask(spec, registered_only=True)


@pytest.mark.parametrize(
    "text",
    [
        "from pathlib import Path as Mine",
        "from os import system as Mine",
        "def Mine(command='x'): open(PROOF, 'w')",
        "class Mine:\n    listens_to = frozenset()\n    def __init__(self, command=''): open(PROOF, 'w')",
        "class Mine:\n    def __new__(cls): open(PROOF, 'w')\n    def plan(self, view): pass",
    ],
)
def test_what_is_no_class_of_the_file_or_no_policy_is_never_called(tmp_path, text):
    proof = tmp_path / "was called"
    path = tmp_path / "tool.py"
    path.write_text(f"PROOF = {str(proof)!r}\n{text}\n")
    with pytest.raises(PolicyError, match=r"no class 'Mine' in the file|Mine has none"):
        load_policy(f"{path}:Mine")
    assert not proof.exists()


def test_a_library_is_no_policy_file():
    with pytest.raises(PolicyError, match="no class 'system' in the file"):
        load_policy(f"{os.__file__}:system:command=exit")
