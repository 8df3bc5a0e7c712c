"""TOML that nobody wrote by hand is refused soon, in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from tokencake.sim.machine.files import load_machine
from tokencake.traces.errors import MachineError, TokencakeError
from tokencake.traces.files.toml_file import header, key_of, read_toml

HEADERS = {
    "[a]": "a",
    "  [ a . b ]  # [c]": "a.b",
    '[tool."tokencake".cases."x-1"]': "tool.tokencake.cases.x-1",
    "[[runs]]": "runs",
    "[[]]": "",
    "[a": None,
    "a = [1]": None,
    "a]": None,
    "": None,
    "[[a], [b]]": "a",
    "[ [a]": None,
}


@pytest.mark.parametrize(("line", "name"), HEADERS.items())
def test_the_name_of_a_table_is_found_in_its_line(line: str, name: str | None) -> None:
    assert header(line) == name


def test_the_key_of_a_line_has_no_quotes_and_no_blanks() -> None:
    assert key_of('  "beliefs" . copy_s = "a = b"') == "beliefs.copy_s"
    assert key_of("[a]") == "[a]"


# Each took minutes: what looked for the line of a table had a cubic cost in the blanks of a line, tomllib has a
# quadratic one in the parts of a key, and in those of a header times the lines below it.
HOSTILE = {
    "blanks behind a bracket": "gpu_blocks = 'x'\nx = [" + " " * 200_000 + "\n]\n",
    "blanks in a text": 'x = """\n[' + " " * 200_000 + '\n"""\ngpu_blocks = "x"\n',
    "a key of many parts": "a" + ".a" * 200_000 + " = 1\n",
    "a header of many parts": "[a" + ".a" * 200_000 + "]\n" + "".join(f"k{at} = 1\n" for at in range(50_000)),
    "many lines with keys of many parts": "".join(f"k{at}{'.a' * 450} = 1\n" for at in range(1000)),
    "lists in lists": "x = " + "[" * 400_000,
    "tables in tables": "x = " + "{a=" * 300_000,
    "a name of a megabyte": "a" * 900_000 + " = 1\n",
    "a name of a megabyte, twice": f"{'a' * 400_000} = 1\n{'a' * 400_000} = 1\n",
}


READING = """\
import sys
from pathlib import Path
from tokencake.sim.gate.suite.suite_file import load_suite
from tokencake.sim.machine.files import load_machine
from tokencake.traces.errors import TokencakeError

for name in sys.argv[2:]:
    try:
        load_machine(name) if sys.argv[1] == "machine" else load_suite(Path(name))
    except TokencakeError as error:
        print(error)
    else:
        print("taken:", name)
"""


@pytest.mark.parametrize("reader", ["machine", "suite"])
def test_hostile_files_are_refused_soon(tmp_path: Path, reader: str) -> None:
    files = [tmp_path / f"{at}.toml" for at in range(len(HOSTILE))]
    case = '[cases.x]\ntrace = "t"\npolicy = "vllm"\n'
    for file, text in zip(files, HOSTILE.values(), strict=True):
        file.write_text(text if reader == "machine" or text.startswith("[") else f"{text}{case}", encoding="utf-8")
    command = [sys.executable, "-c", READING, reader, *map(str, files)]
    played = subprocess.run(command, timeout=20, capture_output=True, text=True, check=False)
    assert played.returncode == 0, played.stderr[-500:]
    lines = played.stdout.splitlines()
    for file, line in zip(files, lines, strict=True):
        assert line.startswith(str(file))
        assert line.isprintable()
        assert len(line) < 1000


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    file = tmp_path / "m.toml"
    file.write_bytes(b"\xef\xbb\xbfbase = 'h200-llama-3.1-8b'\ngpu_blocks = 7\n")
    assert load_machine(str(file)).gpu_blocks == 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = 0x" + "F" * 17, ": a: expected a whole number of 64 bits, got a number of more than 20 digits"),
        ("a.b = [1, 9223372036854775808]", ": a.b[1]: expected a whole number of 64 bits, got 9223372036854775808"),
        ("a" + ".b" * 60 + " = 1", ": a" + ".b" * 20 + ": expected at most 20 levels of tables and lists"),
        ("\n" + "a." * 101 + "a = 1", ":2: expected keys of at most 100 parts"),
        (
            f"# {'9' * 5000}\na = '{'9' * 5000}'\nb = {'9' * 5000}.0\nc = [\n  1{'_0' * 4500}]",
            ":5: expected numbers of at most 4300 digits, got one of 4501",
        ),
    ],
)
def test_what_not_every_reader_of_toml_takes_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "x.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(TokencakeError) as refused:
        read_toml(file, MachineError)
    assert str(refused.value) == f"{file}{said}"


def test_lines_with_many_dots_that_are_no_keys_are_none(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(f"# {'.' * 300}\na = '{'.' * 300}'\nb = [{', '.join(['0.5'] * 300)}]\n", encoding="utf-8")
    assert len(read_toml(file, TokencakeError).table["b"]) == 300
