"""Which part of the house knows which: a table in which every row knows only rows above it."""

from collections.abc import Mapping

from house import circles, imports, modules

# A part is a folder of a layer with all below it, or what lies in the layer's own folder. Of `policies`, what needs to
# know every policy by name is a part of its own: the others are known by it. Everybody above `traces` may know all of
# it (see test_layers.py), so that is not said again.
CHOICE = ("policies.registry", "policies.foreign_code")

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
    "traces.options": {"traces.console", "traces.generate", "traces.results", "traces.variants"},
    "policies": set(),
    "policies.execution": {"policies"},
    "policies.parts": {"policies"},
    "policies.tokencake": {"policies", "policies.parts"},
    "policies.field": {"policies", "policies.parts", "policies.tokencake"},
    "policies.registry": {"policies"},  # it names the modules of the others, and loads those that are asked for
    "policies.replay": {"policies", "policies.registry"},
    "policies.runs": {"policies", "policies.registry"},
    "sim.machine": {"policies", "policies.registry"},
    "sim.engine": {"policies", "policies.execution", "sim.machine"},
    "sim.calibration": {"policies", "policies.field", "policies.runs", "sim.engine", "sim.machine"},
    "sim.experiments": {"policies", "policies.registry", "policies.replay", "sim.engine", "sim.machine"},
    "sim.fidelity": {
        "policies",
        "policies.registry",
        "policies.replay",
        "policies.runs",
        "sim.calibration",
        "sim.engine",
        "sim.experiments",
        "sim.machine",
    },
    "sim.gate": {
        "policies",
        "policies.registry",
        "policies.replay",
        "policies.runs",
        "sim.calibration",
        "sim.engine",
        "sim.experiments",
        "sim.machine",
    },
    "live.copier": set(),
    "live.engine": {"live.copier", "policies", "policies.execution", "policies.registry", "policies.replay"},
    "live.host_tier": {"live.engine", "policies", "policies.execution", "policies.registry", "policies.replay"},
    "live": {"live.copier", "live.engine", "live.host_tier", "policies"},
    "live.client": {"live.copier", "live.engine", "live.host_tier", "policies", "policies.registry", "policies.runs"},
    "cli": {
        "live.client",
        "policies",
        "policies.registry",
        "policies.replay",
        "sim.calibration",
        "sim.experiments",
        "sim.fidelity",
        "sim.gate",
        "sim.machine",
    },
}


def part(module: str) -> str:
    if module in CHOICE:
        return "policies.registry"
    names = module.split(".")
    return ".".join(names[:2]) if len(names) > 2 else names[0]


def arrows() -> Mapping[str, set[str]]:
    found: dict[str, set[str]] = {part(module): set() for module in modules()}
    for module, others in imports().items():
        name = part(module)
        inside = name.partition(".")[0] == "traces"
        found[name] |= {part(other) for other in others if inside or not other.startswith("traces.")} - {name}
    return found


def test_no_module_is_in_a_circle_of_imports() -> None:
    assert circles(imports()) == []


def test_a_circle_is_found() -> None:
    graph = {"a": frozenset("b"), "b": frozenset("ca"), "c": frozenset("d"), "d": frozenset[str]()}
    assert circles(graph) == [["a", "b"]]
    assert circles({**graph, "d": frozenset("a")}) == [["a", "b", "c", "d"]]


def test_every_part_knows_those_that_it_says_and_no_others() -> None:
    assert {name: sorted(known) for name, known in arrows().items()} == {
        name: sorted(known) for name, known in KNOWS.items()
    }


def test_nobody_knows_what_stands_below_in_the_table() -> None:
    above: set[str] = set()
    for name, known in KNOWS.items():
        assert known <= above, name
        above.add(name)
