"""Which part of the house knows which: a table in which every row knows only rows above it."""

from collections import defaultdict
from collections.abc import Mapping

from house import circles, imports, modules

# A part is a folder of a layer with all below it, or what lies in the layer's own folder. Of `policies`, what needs to
# know every policy by name is a part of its own: the others are known by it.
CHOICE = ("policies.registry", "policies.replay", "policies.replay_report", "policies.foreign_code")

KNOWS: Mapping[str, set[str]] = {
    "traces": set(),
    "traces.files": {"traces"},
    "traces.console": {"traces", "traces.files"},
    "traces.format": {"traces", "traces.console", "traces.files"},
    "traces.generate": {"traces", "traces.files", "traces.format"},
    "traces.variants": {"traces", "traces.files", "traces.format", "traces.generate"},
    "traces.convert": {"traces", "traces.console", "traces.files", "traces.format", "traces.generate"},
    "traces.results": {
        "traces",
        "traces.console",
        "traces.files",
        "traces.format",
        "traces.generate",
        "traces.variants",
    },
    "traces.inspect": {"traces", "traces.console", "traces.format", "traces.results"},
    "policies": {"traces", "traces.files"},
    "policies.execution": {"policies", "traces"},
    "policies.parts": {"policies", "traces"},
    "policies.tokencake": {"policies", "policies.parts", "traces"},
    "policies.field": {"policies", "policies.parts", "policies.tokencake", "traces", "traces.format"},
    "policies.registry": {
        "policies",
        "policies.field",
        "policies.tokencake",
        "traces",
        "traces.console",
        "traces.files",
        "traces.format",
        "traces.results",
    },
    "policies.runs": {"policies", "policies.registry", "traces", "traces.format", "traces.results", "traces.variants"},
    "sim.machine": {"policies", "policies.registry", "traces", "traces.files"},
    "sim.engine": {"policies", "policies.execution", "sim.machine", "traces"},
    "sim.calibration": {
        "policies",
        "policies.field",
        "policies.runs",
        "sim.engine",
        "sim.machine",
        "traces",
        "traces.console",
        "traces.files",
        "traces.format",
        "traces.results",
        "traces.variants",
    },
    "sim.experiments": {
        "policies",
        "policies.registry",
        "sim.engine",
        "sim.machine",
        "traces",
        "traces.console",
        "traces.files",
        "traces.format",
        "traces.generate",
        "traces.results",
        "traces.variants",
    },
    "sim.fidelity": {
        "policies",
        "policies.registry",
        "policies.runs",
        "sim.calibration",
        "sim.engine",
        "sim.experiments",
        "sim.machine",
        "traces",
        "traces.console",
        "traces.files",
        "traces.format",
        "traces.results",
        "traces.variants",
    },
    "sim.gate": {
        "policies",
        "policies.registry",
        "policies.runs",
        "sim.engine",
        "sim.experiments",
        "sim.fidelity",
        "sim.machine",
        "traces",
        "traces.console",
        "traces.files",
        "traces.format",
        "traces.generate",
        "traces.results",
        "traces.variants",
    },
    "live.copier": {"traces"},
    "live.engine": {
        "live.copier",
        "policies",
        "policies.execution",
        "policies.registry",
        "traces",
        "traces.files",
        "traces.format",
    },
    "live": {"live.copier", "live.engine", "policies", "traces", "traces.files"},
    "live.client": {
        "live.copier",
        "live.engine",
        "policies",
        "policies.registry",
        "policies.runs",
        "traces",
        "traces.console",
        "traces.files",
        "traces.format",
        "traces.results",
        "traces.variants",
    },
    "cli_options": {
        "live.client",
        "sim.machine",
        "traces.console",
        "traces.generate",
        "traces.results",
        "traces.variants",
    },
    "cli": {
        "cli_options",
        "live.client",
        "policies",
        "policies.registry",
        "sim.calibration",
        "sim.experiments",
        "sim.fidelity",
        "sim.gate",
        "sim.machine",
        "traces",
        "traces.console",
        "traces.convert",
        "traces.generate",
        "traces.inspect",
        "traces.results",
        "traces.variants",
    },
}

CIRCLES = [["sim.engine.memory.blocks", "sim.engine.memory.context_tree"]]  # for types alone


def part(module: str) -> str:
    if module in CHOICE:
        return "policies.registry"
    names = module.split(".")
    return ".".join(names[:2]) if len(names) > 2 else names[0]


def arrows() -> Mapping[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for module, others in imports().items():
        found[part(module)] |= {part(other) for other in others} - {part(module)}
    return found


def test_no_module_is_in_a_circle_of_imports() -> None:
    assert circles(imports()) == CIRCLES


def test_a_circle_is_found() -> None:
    graph = {"a": frozenset("b"), "b": frozenset("ca"), "c": frozenset("d"), "d": frozenset[str]()}
    assert circles(graph) == [["a", "b"]]
    assert circles({**graph, "d": frozenset("a")}) == [["a", "b", "c", "d"]]


def test_every_part_knows_those_that_it_says_and_no_others() -> None:
    found = arrows()
    assert {name: sorted(found[name]) for name in KNOWS} == {name: sorted(known) for name, known in KNOWS.items()}
    assert {part(module) for module in modules()} == set(KNOWS)


def test_nobody_knows_what_stands_below_in_the_table() -> None:
    above: set[str] = set()
    for name, known in KNOWS.items():
        assert known <= above, name
        above.add(name)
