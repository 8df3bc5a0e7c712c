"""Whatever is done to an input, a reader takes it or refuses it in one line. Longer: benchmarks/fuzz.py."""

from pathlib import Path

import pytest
from fuzz_readers import READERS, mutants, tried

MUTANTS = 60
FEWER = {"samples": 6}  # each is fitted


@pytest.mark.parametrize("name", READERS)
def test_good_inputs_are_taken(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    for good in reader.good():
        assert tried(reader, good, tmp_path) == (None, None)


@pytest.mark.parametrize("name", READERS)
def test_mutants_are_taken_or_refused_in_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what an argument makes of itself stays here
    refused = 0
    for data in mutants(name, range(FEWER.get(name, MUTANTS))):
        outcome = tried(READERS[name], data, tmp_path)
        if outcome.surprise is not None:
            raise AssertionError(f"{name}: {data[:300]!r}") from outcome.surprise
        refused += outcome.refused is not None
    assert refused
