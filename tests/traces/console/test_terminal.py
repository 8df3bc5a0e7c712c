"""What is printed: on terminals that are narrow, that lack signs, and that obey what they are sent."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tokencake.cli import run
from tokencake.traces.console import progress

TOKENCAKE = str(Path(sys.executable).with_name("tokencake"))


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    assert run(["trace", "generate", "code-writer", "--apps", "1", "-o", "t.jsonl"]) == 0
    return "t.jsonl"


def printed(command: str, **environment: str) -> bytes:
    """What a command prints, on both ways together; it must end well."""
    done = subprocess.run(
        [TOKENCAKE, *command.split()],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize(
    "command",
    [
        "simulate t.jsonl",
        "compare t.jsonl --repeat 2 --policy vllm --policy tokencake --workers 1",
        "check",
        "machines",
    ],
)
def test_signs_that_an_encoding_lacks_cost_nothing(trace: str, command: str):
    if command == "check":
        suite = f'[cases.one]\ntrace = "{trace}"\npolicy = "vllm"\n'
        Path("tokencake.toml").write_text(suite)
        printed("check --update")
    out = printed(command, PYTHONIOENCODING="ascii")
    assert out.isascii()
    if "compare" in command:
        assert b"+/-" in out
    assert len(out) >= len(printed(command).decode()) - 2  # times may differ by a digit


def test_in_a_locale_without_utf_8_too(trace: str):
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    out = printed(f"compare {trace} --repeat 2 --policy vllm --policy tokencake --workers 1", **locale)
    assert out.isascii()
    assert b"+/-" in out
    printed("simulate --help", **locale)


def test_files_and_data_are_in_utf_8_whatever_a_terminal_can_show(trace: str):
    Path("mïne.py").write_text("from tokencake.policies.field.vllm import Vllm\nclass Mine(Vllm):\n    pass\n")
    out = printed(f"simulate {trace} --policy mïne.py:Mine --csv -", PYTHONIOENCODING="ascii")
    assert "mïne.py:Mine" in out.decode()


@pytest.mark.parametrize("width", [40, 60, 200])
def test_rows_have_names_and_no_column_is_lost(trace: str, width: int, capsys: pytest.CaptureFixture[str]):
    out = printed(f"simulate {trace} --policy vllm --policy tokencake", COLUMNS=str(width)).decode()
    *lines, _ = out.splitlines()
    assert all(len(line) <= width for line in lines)
    parts = [line for line in lines if line.startswith("application latency, s")]
    assert len(parts) == (3 if width == 40 else 2 if width == 60 else 1)
    named = [line for line in lines if line.startswith("  tokencake ")]
    assert len(named) == 4 * len(parts)
    assert sum(len(line.split()) - 1 for line in named) == 4 * 6
    (makespan,) = (line for line in lines if line.startswith("makespan"))
    assert makespan.endswith("%")


def test_rankings_have_names_in_each_of_their_parts(trace: str):
    def table(width: int) -> list[str]:
        out = printed(f"compare {trace} --repeat 2 --policy vllm --policy tokencake --workers 1", COLUMNS=str(width))
        return out.decode().splitlines()

    wide = next(line for line in table(200) if line.startswith("tokencake")).split()
    narrow = [line for line in table(40) if line.startswith("tokencake")]
    assert all(len(line) <= 40 for line in narrow)
    assert [cell for line in narrow[:2] for cell in line.split()[1:]] == wide[1:]


def test_a_check_that_fails_says_by_how_much_however_narrow(trace: str):
    suite = f'metrics.makespan_s = {{ relative = 0.02 }}\n[cases.one]\ntrace = "{trace}"\npolicy = "vllm"\n'
    Path("tokencake.toml").write_text(suite)
    printed("check --update")
    baseline = Path("baselines/one.json")
    baseline.write_text(re.sub(r'"makespan_s": [0-9.]+', '"makespan_s": 10.0', baseline.read_text()))

    def lines(width: int) -> list[str]:
        command = [TOKENCAKE, "check"]
        done = subprocess.run(command, env=os.environ | {"COLUMNS": str(width)}, capture_output=True, text=True)
        assert done.returncode == 1
        return [line for line in done.stdout.splitlines() if line.startswith("  makespan_s")]

    assert "10.00 s" in lines(100)[0]
    assert "regressed: " in lines(40)[0]
    assert "baseline 10.00 s, +" in lines(40)[0]


def test_what_comes_from_files_does_nothing_to_a_terminal(trace: str, capfd: pytest.CaptureFixture[str]):
    title, bell, backwards = "\x1b]0;TITLE\x07", "\x07", "\u202e"
    Path("e.jsonl").write_text(
        '{"fact":"Began","policy":"\\u001b]0;TITLE\\u0007.py:X","seed":0,"costs":{"offload_setup_s":0,'
        '"offload_block_s":0,"upload_setup_s":0,"upload_block_s":0,"prefill_s":0}}\n'
    )
    Path("raises.py").write_text(
        f"from tokencake.policies.field.vllm import Vllm\nclass Mine(Vllm):\n    def plan(self, view):\n"
        f"        raise ValueError({title + backwards!r})\n"
    )
    Path("suite.toml").write_text(f'[cases.a]\n"{backwards}{title!r}" = 1\n')
    Path("m.toml").write_text('"\\u001b[31m" = 1\n')
    for command in (
        ["simulate", f"{title}.jsonl"],
        ["simulate", trace, "--policy", f"{title}{backwards}"],
        ["simulate", trace, "--policy", "raises.py:Mine"],
        ["simulate", trace, "--machine", "./m.toml"],
        ["simulate", trace, "--machine", f"{bell}.toml"],
        ["replay", "e.jsonl"],
        ["check", "--suite", "suite.toml"],
        ["trace", "convert", trace, f"{title}/o", "--from", f"{title}"],
        ["trace", "inspect", f"{title}"],
        ["trace", "generate", "code-writer", "--apps", "1", "-o", f"{title}.jsonl"],
        ["trace", f"{title}"],
    ):
        run(command)
        out, err = capfd.readouterr()
        assert (out + err).replace("\n", "").isprintable(), command
        assert out + err, command


def test_progress_shows_names_as_they_are(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "QUIET_S", -1.0)
    with progress.progress_bar(forced=True) as bar:
        bar("[red]x[/red] \x1b]0;TITLE\x07", 1, 2, "[/]")
    err = capfd.readouterr().err
    assert r"[red]x[/red] \x1b]0;TITLE\x07" in err
    assert "\x07" not in err


def test_a_checkout_with_line_ends_of_windows_is_the_same(trace: str):
    Path("mine.py").write_text("from tokencake.policies.field.vllm import Vllm\n\n\nclass Mine(Vllm):\n    pass\n")
    Path("m.toml").write_text('base = "h100-llama-3.1-8b"\ngpu_blocks = 3000\n')
    suite = f'[cases.one]\ntrace = "{trace}"\npolicy = "mine.py:Mine"\nmachine = "./m.toml"\n'
    Path("tokencake.toml").write_text(suite)
    printed("check --update")
    for name in ("mine.py", "m.toml", "tokencake.toml", trace, "baselines/one.json"):
        Path(name).write_bytes(Path(name).read_bytes().replace(b"\n", b"\r\n"))
    out = printed("check --strict").decode()
    assert "1 good" in out
    assert "another" not in out
