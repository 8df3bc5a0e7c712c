"""Policies and the engine do the same whenever they are run: see docs/determinism.md. A lint holds them to it."""

import pytest
from determinism import problems, set_attributes
from house import ROOT, modules

HELD = [file for part in ("policies", "sim/engine") for file in sorted((ROOT / part).rglob("*.py"))]
SETS = set_attributes(file.read_text(encoding="utf-8") for file in modules().values())

ALLOWED = {  # by file and rule, and why nothing that is decided depends on it
    ("policies/boundary.py", "clock"): "since when a policy has been thinking, for who ends those that think too long",
    ("policies/controller.py", "clock"): "how long plans took: a figure of the report",
    ("policies/runs/workload_runs.py", "clock"): "how long a run on a real engine took: a figure of the report",
    ("sim/engine/hybrid/hybrid_pool.py", "identity"): "as in the pool of one group: a check, in no order",
    ("sim/engine/memory/block_pool.py", "identity"): "whether two lists hold the same runs: a check, in no order",
    ("sim/engine/simulate.py", "clock"): "how long the run took: a figure of the report",
}

CAUGHT = {
    "clock": [
        "import time\nt = time.time()",
        "import time as clock\nclock.monotonic_ns()",
        "from time import perf_counter\nperf_counter()",
        "from time import perf_counter as now\nclass A:\n    read = now",
        "import datetime\ndatetime.datetime.now()",
        "from datetime import date, datetime\ndatetime.utcnow()\n",
        "from datetime import date\nd = date.today()",
    ],
    "random": [
        "import random\nrandom.random()",
        "import random\nrandom.shuffle([1, 2])",
        "from random import choice\nchoice([1, 2])",
        "import random\nr = random.Random()",
        "import random\nr = random.Random(None)",
        "import numpy as np\nnp.random.default_rng()",
        "import numpy as np\nnp.random.normal(3)",
        "from numpy.random import default_rng\ndefault_rng(seed=None)",
        "import uuid\nuuid.uuid4()",
        "import secrets\nsecrets.token_hex()",
        "import os\nos.urandom(4)",
    ],
    "identity": [
        "def f(a, b): return hash(a) < hash(b)",
        "def f(calls): return sorted(calls, key=id)",
    ],
    "set": [
        "for x in {1, 2}: print(x)",
        "for x in set('ab'): print(x)",
        "def f(s: set[str]): return [x for x in s]",
        "def f(s: frozenset[str] | None): return list(s)",
        "def f(s: 'set[str]'): return tuple(s)",
        "def f(s: set[str]): return next(iter(s))",
        "def f(s: set[str]): return s.pop()",
        "def f(s: set[str]): return ', '.join(s)",
        "def f(s: set[str]): return {x: 0 for x in s}",
        "def f(s: set[str]): return dict.fromkeys(s)",
        "def f(s: set[str]): return [*s]",
        "def f(s: set[str]): print(*s)",
        "def f(s: set[str]): a, b = s",
        "def f(s: set[str]): yield from s",
        "def f(s: set[str]): return min(s, key=len)",
        "def f(s: set[str]): return sorted(s, key=len)",
        "def f(s: set[str]):\n    for n, x in enumerate(s): print(n, x)",
        "def f(s, t):\n    both = set(s) & t\n    for x in both: print(x)",
        "def f(a: dict, b: dict):\n    for x in a.keys() - b.keys(): print(x)",
        "def f(a: dict, b: dict):\n    gone = a.keys() - b\n    return list(gone.union(b))",
        "def f(a: dict[str, set[str]]):\n    for x in a['b']: print(x)",
        "def f(a: dict[str, set[str]]):\n    for x in a.get('b', ()): print(x)",
        "def f(a: dict[str, set[str]]):\n    for s in a.values():\n        for x in s: print(x)",
        "def f(a: dict[str, set[str]]):\n    for k, s in a.items():\n        for x in s: print(x)",
        "def f(a: list[set[str]]): return [x for s in a for x in s]",
        "class A:\n    def __init__(self): self.s = set()\n    def f(self): return list(self.s)",
        "class A:\n    s: set[str]\n    def f(self): return list(self.s)",
        "class A:\n    def __init__(self): self.s: set[str] = empty()\n    def f(self):\n        for x in self.s: pass",
        "class A:\n    def g(self) -> set[str]: return x\n    def f(self): return list(self.g())",
        "def g() -> frozenset[int]: return x\ndef f(): return [*g()]",
        "s = set[str]()\nprint(list(s))",
        "def f(view): return list(view.kept)",
    ],
}

PASSES = [
    "import time_machine\ntime_machine.time()",
    "def f(clock): return clock.time()",
    "def f(time): return time.time()",
    "import datetime\ndatetime.timedelta(seconds=1)",
    "import random\nr = random.Random(3)\nr.random()",
    "import random\nclass A:\n    def __init__(self, seed): self.r = random.Random(seed)",
    "import numpy as np\nr = np.random.default_rng(seed=4)\nr.normal()",
    "import numpy as np\ndef f(r: np.random.Generator): return r.normal()",
    "def f(call): return call.id",
    "def f(id): return id",
    "def f(s: set[str]): return sorted(s)",
    "def f(s: set[str]): return min(s), max(s), len(s), any(s), 'a' in s",
    "def f(s: set[int]): return sum(x * 2 for x in s), all(x for x in s)",
    "def f(s: set[int]): return sorted(x * 2 for x in s)",
    "def f(s: set[int]): return {x * 2 for x in s}",
    "def f(s: set[int], t: set[int]): return set(s) | t, frozenset(t), s.union(t)",
    "def f(s: set[int]): s.update(x for x in s)",
    "def f(s: set[int]):\n    s = sorted(s)\n    for x in s: print(x)",
    "def f(a: dict[str, int]):\n    for x in a: print(x)\n    for x in a.keys(): print(x)",
    "def f(a: dict[str, set[str]]):\n    for x in a: print(x)\n    for x, s in a.items(): print(x, len(s))",
    "def f(a: dict[frozenset[str], list[str]]):\n    for s in a.values(): print(list(s))",
    "def f(view): return list(view.waiting)",
]


@pytest.mark.parametrize(
    ("rule", "source"), [(rule, source) for rule, sources in CAUGHT.items() for source in sources], ids=str
)
def test_what_differs_from_run_to_run_is_found(rule: str, source: str) -> None:
    assert {problem.rule for problem in problems(source, {"kept"})} == {rule}


@pytest.mark.parametrize("source", PASSES)
def test_what_does_not_is_passed(source: str) -> None:
    assert problems(source, {"kept"}) == []


def test_a_problem_says_where_and_what() -> None:
    (problem,) = problems("import time\n\n\ndef f():\n    return time.time()\n")
    assert problem == ("clock", 5, "time.time reads a clock")


def test_attributes_of_others_are_sets_if_all_declare_them_so() -> None:
    one = "class A:\n    a: set[int]\n    b: set[int]\n    def __init__(self):\n        self.c: frozenset[int] = d"
    other = "class B:\n    b: list[int]\n    @property\n    def e(self) -> set[str]: ..."
    assert set_attributes([one, other]) == {"a", "c", "e"}


@pytest.mark.parametrize("file", HELD, ids=[file.relative_to(ROOT).as_posix() for file in HELD])
def test_policies_and_engine_do_the_same_whenever_they_are_run(file) -> None:
    name = file.relative_to(ROOT).as_posix()
    found = problems(file.read_text(encoding="utf-8"), SETS)
    assert [problem for problem in found if (name, problem.rule) not in ALLOWED] == []
    assert {(name, problem.rule) for problem in found} >= {allowed for allowed in ALLOWED if allowed[0] == name}


def test_what_is_allowed_is_there() -> None:
    assert {name for name, _ in ALLOWED} <= {file.relative_to(ROOT).as_posix() for file in HELD}
