"""An option that would have no effect beside the others is refused: whoever gave it believes that it had one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokencake.cli import run

ARRIVALS = "--arrivals has no effect without --rate"
SERVER = "live --print-serve-args --model tiny"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert run(["trace", "generate", "code-writer", "--apps", "1", "-o", "t.jsonl"]) == 0
    return tmp_path


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("simulate t.jsonl --arrivals poisson", ARRIVALS),
        ("live t.jsonl --model tiny --arrivals even", ARRIVALS),
        ("validate t.jsonl --model tiny --arrivals even", ARRIVALS),
        ("compare t.jsonl --arrivals poisson", ARRIVALS),
        ("sweep t.jsonl --arrivals poisson -o s.csv", "--arrivals has no effect without --rate"),
        ("trace convert m.jsonl o.jsonl --from mooncake --arrivals poisson", ARRIVALS),
        ("trace convert m.jsonl o.jsonl --from azure --seed 0", "--seed has no effect without --rate"),
        ("trace convert m.jsonl o.jsonl --from agentic-coding --seed 1", "--seed has no effect without --arrivals poi"),
        (
            "trace convert m.jsonl o.jsonl --from mooncake --rate 1 --seed 1",
            "--seed has no effect without --arrivals p",
        ),
        ("calibrate --from s.jsonl --quick", "--quick has no effect with --from"),
        ("calibrate --from s.jsonl --model tiny", "--model has no effect with --from"),
        ("calibrate --from s.jsonl --compile none -o m.toml", "--compile has no effect with --from"),
        ("calibrate --from s.jsonl --shrink 2 -o m.toml", "--shrink has no effect without --for"),
        ("calibrate --from s.jsonl --for t.jsonl --arrivals poisson -o m.toml", ARRIVALS),
        ("calibrate --from s.jsonl --name mine", "--name has no effect without --output or --json"),
        ("check --init --strict", "--strict has no effect with --init"),
        ("check --init --case one", "--case has no effect with --init"),
        ("check --update --format json", "--format has no effect with --update"),
        ("check --update -o r.txt", "--output has no effect with --update"),
        ("check --update --strict", "--strict has no effect with --update"),
        ("check --live --update", "--update has no effect with --live"),
        ("check --live --workers 2", "--workers has no effect with --live"),
        ("check --live --policy-timeout 2", "--policy-timeout has no effect with --live"),
        ("compare r.json --live --repeat 3", "--repeat has no effect with --live"),
        ("compare r.json --live --set gpu_blocks=3", "--set has no effect with --live"),
        ("compare r.json --live --vary none", "--vary has no effect with --live"),
        (f"{SERVER} t.jsonl", "TRACE has no effect with --print-serve-args"),
        (f"{SERVER} --repeat 2", "--repeat has no effect with --print-serve-args"),
        (f"{SERVER} --json r.json", "--json has no effect with --print-serve-args"),
        (f"{SERVER} --connect http://127.0.0.1:1", "--connect has no effect with --print-serve-args"),
        (f"{SERVER} --shrink 2", "--shrink has no effect with --print-serve-args"),
    ],
)
def test_what_would_have_no_effect_is_refused(capsys: pytest.CaptureFixture[str], command: str, said: str) -> None:
    before = sorted(Path().iterdir())
    capsys.readouterr()
    assert run(command.split()) == 2
    streams = capsys.readouterr()
    assert streams.err.startswith(f"error: {said}")
    assert (streams.err.count("\n"), streams.out) == (1, "")
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(("option", "value"), [("--host-gib", "1.0"), ("--dtype", "auto"), ("--gpu-blocks", "9")])
def test_a_server_s_engine_cannot_be_changed_not_even_to_the_default(
    capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    capsys.readouterr()
    assert run(["live", "t.jsonl", "--model", "m", "--connect", "http://127.0.0.1:1", option, value]) == 2
    assert f"--connect: the server's engine is up already: {option} cannot be asked for" in capsys.readouterr().err


def test_what_has_an_effect_is_taken() -> None:
    short = ["simulate", "t.jsonl", "--policy", "vllm", "--quiet"]
    assert run([*short, "--rate", "1", "--arrivals", "poisson"]) == 0
    rows = '{"timestamp": 0, "input_length": 9, "output_length": 2, "hash_ids": [0]}\n'
    Path("m.jsonl").write_text(rows)
    poisson = ["--rate", "1", "--arrivals", "poisson", "--seed"]
    for seed in ("1", "2"):
        assert run(["trace", "convert", "m.jsonl", f"{seed}.jsonl", "--from", "mooncake", *poisson, seed]) == 0
    assert Path("1.jsonl").read_text().splitlines()[1:] != Path("2.jsonl").read_text().splitlines()[1:]


@pytest.mark.parametrize(
    "command", ["simulate t.jsonl", "compare t.jsonl", "sweep t.jsonl -o s.csv", "sweep t.jsonl --rate 1,2 -o s.csv"]
)
def test_a_setting_that_is_given_twice_is_refused(capsys: pytest.CaptureFixture[str], command: str) -> None:
    twice = ["--set", "gpu_blocks=4000", "--set", "host_gib=1", "--set", " gpu_blocks =5000"]
    capsys.readouterr()
    assert run([*command.split(), *twice]) == 2
    assert capsys.readouterr().err.startswith("error: --set gpu_blocks: given twice")
