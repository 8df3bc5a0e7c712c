"""The tests of the copier, on the device that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .work import Work

TESTS = Path(__file__).parents[2] / "tests" / "vllm"
FILES = ("test_copier.py",)
DRY_FILES = ("test_copier_cuda.py",)  # these imitate the driver


class _Counting:
    """What pytest reports of each test."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.passed and report.when == "call":
            self.passed.append(report.nodeid)


def passed(work: Work) -> dict[str, Any]:
    import pytest

    counting = _Counting()
    files = [str(TESTS / name) for name in (DRY_FILES if work.dry else FILES)]
    options = ["-q", "-W", "default", "-p", "no:cacheprovider", "--rootdir", str(TESTS.parents[1])]
    code = pytest.main([*options, *files], plugins=[counting])
    on_cuda = [name for name in counting.passed if "[cuda" in name or "-cuda" in name]
    work.note(passed=len(counting.passed), on_cuda=len(on_cuda), failed=counting.failed, exit_code=int(code))
    if counting.failed or code != 0:
        raise AssertionError(f"{len(counting.failed)} tests failed, pytest ended with {int(code)}")
    if not (on_cuda or work.dry):
        raise AssertionError("no test ran on CUDA")
    return {"said": f"{len(counting.passed)} tests passed, {len(on_cuda)} of them on CUDA"}
