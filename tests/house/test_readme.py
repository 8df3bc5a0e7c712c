"""The README is run: its commands with what it says that they print, its policy, its links. It stays short."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUN_TOKENCAKE = [sys.executable, "-c", "import sys; from tokencake.cli import main; sys.argv[0] = 'tokencake'; main()"]


def blocks(language: str) -> list[str]:
    """Contents of the fenced code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Shell commands, continued lines joined."""
    joined = "\n".join(blocks("sh")).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line]


def tokencake_calls() -> Iterator[tuple[str, list[str]]]:
    """Each call of `tokencake`, without what sets it up: in which folder, and its arguments."""
    for command in commands():
        inside = "."
        for program, *arguments in (shlex.split(step) for step in command.split("&&")):
            if program == "cd":
                (inside,) = arguments
            elif program in ("tokencake", ".venv/bin/tokencake"):
                yield inside, arguments


def test_two_commands_set_up_and_run() -> None:
    first, second = (command.split(" && ") for command in commands()[:2])
    assert first[:2] == ["python3 -m venv .venv", ".venv/bin/pip install -q ."]
    assert first[2:] == [".venv/bin/tokencake simulate examples/code-writer.jsonl --machine a800-qwen2.5-14b"]
    assert second[0] == first[0]
    assert second[1:] == [".venv/bin/pip install -q -e '.[test]'", ".venv/bin/pytest -n auto"]


def test_continuous_integration_runs_the_same_two_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in commands()[:2]:
        assert command in script


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the README's reader is: in the checkout, with the policy saved as the text says."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "examples", folder / "examples")
    shutil.copy(ROOT / "tokencake.toml", folder)
    for made in re.findall(r"^mkdir (\w+) && ", "\n".join(commands()), re.MULTILINE):
        (folder / made).mkdir()
    (policy,) = blocks("python")
    (folder / "my_policy.py").write_text(policy, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def printed(folder: Path) -> list[tuple[list[str], str]]:
    """What each command of the page printed, run in the order of the page."""
    found = []
    for inside, arguments in tokencake_calls():
        command, place = [*RUN_TOKENCAKE, *arguments], folder / inside
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        found.append((arguments, done.stdout))
    return found


def words(text: str) -> str:
    """The text with single spaces, so that lines may be broken elsewhere."""
    return " ".join(text.split())


def test_the_page_is_short() -> None:
    """But for the table of policies, which grows with them."""
    assert len([line for line in README.splitlines() if not line.startswith("| `")]) < 141


def test_every_door_is_tried(printed: list[tuple[list[str], str]]) -> None:
    assert {arguments[0] for arguments, _ in printed} == {"simulate", "compare", "check"}
    assert all(output for _, output in printed)


def test_the_first_command_prints_what_the_page_says(printed: list[tuple[list[str], str]]) -> None:
    shown = next(block for block in blocks("text") if "24 applications" in block)
    table, verdict = shown.rsplit("\n\n", 1)
    _, output = printed[0]
    lines = [words(line) for line in output.splitlines()]
    assert [line for line in table.splitlines() if words(line) not in lines] == []
    assert words(verdict) in words(output)


def test_the_policy_of_the_page_loses_by_what_it_says(printed: list[tuple[list[str], str]]) -> None:
    (output,) = (output for arguments, output in printed if "my_policy.py:ShortestFirst" in arguments)
    latency, makespan = re.findall(r"^It loses: mean application latency (\S+) %, makespan (\S+) %", README, re.M)[0]
    assert f"loses on mean application latency ({latency}%" in words(output)
    assert f"makespan ({makespan}%" in words(output)


def test_the_default_machine_has_memory_for_the_whole_trace(folder: Path) -> None:
    command = [*RUN_TOKENCAKE, "simulate", "examples/code-writer.jsonl"]
    output = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    assert "648 calls of 24 applications on h200-llama-3.1-8b" in output
    assert "tokencake changes nothing on mean application latency" in words(output)


def test_the_table_says_of_each_policy_what_tokencake_policies_says(folder: Path) -> None:
    """Behind its line there may be options, in parentheses."""
    listed = subprocess.run([*RUN_TOKENCAKE, "policies"], cwd=folder, capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"^\| `([\w-]+)` \| (.*?)(?: \(.*\))? \|$", README, flags=re.MULTILINE)
    assert [f"{name} {line}" for name, line in rows] == [words(line) for line in listed.splitlines()]


def test_files_that_the_page_names_exist() -> None:
    links = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target]
    scripts = re.findall(r"`python (\S+\.py)`", README)
    assert links
    assert scripts
    assert [name for name in links + scripts if not (ROOT / name).exists()] == []


def test_links_within_the_page_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", README, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= headings
