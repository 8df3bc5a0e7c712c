"""How loaded a host was while something was measured, from what Linux counts."""

from __future__ import annotations

from pathlib import Path

from tokencake.sim.calibration.host_load import HostLoad


def told(folder: Path, scheduled: str, cpus: str) -> HostLoad:
    (folder / "schedstat").write_text(scheduled)
    (folder / "stat").write_text(cpus)
    return HostLoad.now(folder / "schedstat", folder / "stat")


def test_shares_are_of_what_came_between(tmp_path: Path) -> None:
    """The thread ran 3 s and waited 1 s for a CPU; of 400 ticks 100 were stolen."""
    before = told(tmp_path, "5000000000 7000000000 12\n", "cpu  100 0 50 800 5 0 5 40 0 0\ncpu0 1 2\n")
    after = told(tmp_path, "8000000000 8000000000 90\n", "cpu  300 0 100 850 5 0 5 140 0 0\ncpu0 1 2\n")
    assert before.until(after) == {"waited_share": 0.25, "stolen_share": 0.25}
    assert before.until(before) == {"waited_share": None, "stolen_share": None}  # no time went by


def test_a_system_that_does_not_tell_is_believed_to_know_nothing(tmp_path: Path) -> None:
    nothing = HostLoad.now(tmp_path / "no", tmp_path / "none")
    assert nothing.until(nothing) == {"waited_share": None, "stolen_share": None}
    for strange in ("", "one two three\n", "1\n"):
        assert told(tmp_path, strange, strange) == nothing


def test_this_computer_tells_shares_or_nothing() -> None:
    before = HostLoad.now()
    sum(range(1_000_000))
    for share in before.until(HostLoad.now()).values():
        assert share is None or 0 <= share <= 1
