"""docs/machines.md says what the code does."""

import re
from dataclasses import fields
from pathlib import Path

from tokencake.sim.machine.files import load_machine
from tokencake.sim.machine.machine import DEFAULTS, Machine
from tokencake.sim.machine.preset_tables import gpu_table, model_table, preset_table, published_table

ROOT = Path(__file__).parents[3]
DOC = (ROOT / "docs" / "machines.md").read_text(encoding="utf-8")


def marked(name):
    found = re.search(rf"<!-- {name}: .*? -->\n(.*?)<!-- end -->", DOC, re.DOTALL)
    assert found, f"docs/machines.md has no table marked {name!r}"
    return found[1]


def test_the_table_of_presets_is_the_code_s():
    assert marked("presets") == preset_table(), f"in docs/machines.md, write:\n{preset_table()}"


def test_the_table_of_models_is_the_code_s():
    assert marked("models") == model_table(), f"in docs/machines.md, write:\n{model_table()}"


def test_the_published_system_stands_beside_its_data_sheet():
    assert marked("published") == published_table(), f"in docs/machines.md, write:\n{published_table()}"


def test_every_field_is_explained_with_its_default():
    explained = dict(re.findall(r"^\| `(\w+)` \| .* \| ([^|]*?) ?\|$", DOC, re.MULTILINE))

    for field in fields(Machine):
        if field.name not in ("name", "believed"):  # a file names its machine; `beliefs` has its own chapter
            documented = explained[field.name].strip()
            defaulted = DEFAULTS.get(field.name, "")
            assert documented == (f"{defaulted:g}" if isinstance(defaulted, float) else str(defaulted).lower())


def test_the_table_of_gpus_is_the_code_s():
    assert marked("gpus") == gpu_table(), f"in docs/machines.md, write:\n{gpu_table()}"


def test_the_example_in_the_document_is_the_one_that_ships(tmp_path):
    (block,) = re.findall(r"```toml\n(.*?)```", DOC, re.DOTALL)
    copy = tmp_path / "machine.toml"
    copy.write_text(block, encoding="utf-8")

    shipped = load_machine(str(ROOT / "examples" / "machine.toml"))

    assert load_machine(str(copy)) == shipped
    assert (shipped.name, shipped.gpu_blocks, shipped.believed) == (
        "h100-llama-3.1-8b-small",
        8000,
        (("link_gbps", 12.0),),
    )
