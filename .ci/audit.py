#!/usr/bin/env python3
"""Asks whether what is installed in an environment has known vulnerabilities: `audit.py PYTHON`, by pip-audit.

Exit code 0: none, or nobody could be asked, which is said; 1: some, which are listed; 2: the audit itself failed.

"Nothing known" is also what an index says that knows of no vulnerability at all: a mirror, for one. So each list that
is asked about holds two packages that are known to be bad. Only who names those is believed about the others.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

KNOWN_BAD = {"pyyaml": "5.3", "urllib3": "1.24.1"}
SERVICES = ("pypi", "osv")
LIMIT_S = 120

Audit = Callable[[Sequence[str]], Mapping[str, Any] | None]  # of requirements; None: pip-audit made no report


def main(arguments: Sequence[str]) -> int:
    (python,) = arguments
    found = installed(python)
    with tempfile.TemporaryDirectory() as folder:
        tool = install(Path(folder))
        if tool is None:
            print("audit: SKIPPED, pip-audit cannot be installed from here")
            return 0
        for service in SERVICES:
            code = judge(lambda lines, service=service: run(tool, Path(folder), service, lines), found, service)
            if code is not None:
                return code
    print(f"audit: SKIPPED, none of {', '.join(SERVICES)} can be asked about vulnerabilities from here")
    return 0


def judge(audit: Audit, found: Mapping[str, str], service: str) -> int | None:
    """Prints what a service knows of these versions, and returns the exit code. None: it cannot be asked."""
    bad = [f"{name}=={version}" for name, version in KNOWN_BAD.items()]
    if not vulnerable(audit(bad)):
        return None
    report = audit([f"{name}=={version}" for name, version in found.items()])
    if report is None:
        print(f"audit: {service} answers, but pip-audit made no report")
        return 2
    for line in (lines := vulnerable(report)):
        print(f"audit: {line}")
    unknown = [entry["name"] for entry in report["dependencies"] if "skip_reason" in entry]
    if unknown:
        print(f"audit: not known to {service}: {', '.join(unknown)}")
    print(f"audit: {len(found) - len(unknown)} packages asked about at {service}, {len(lines)} with a vulnerability")
    return 1 if lines else 0


def vulnerable(report: Mapping[str, Any] | None) -> list[str]:
    """A line for each package with a known vulnerability."""
    entries = [] if report is None else report["dependencies"]
    return [
        f"{entry['name']} {entry['version']}: {', '.join(known['id'] for known in entry['vulns'])}"
        for entry in entries
        if entry.get("vulns")
    ]


def installed(python: str) -> dict[str, str]:
    """What an environment holds beside this package itself: version by name, without marks of local builds."""
    code = "import importlib.metadata as m, json; print(json.dumps([(d.name, d.version) for d in m.distributions()]))"
    listed = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout
    return {name: version.partition("+")[0] for name, version in sorted(json.loads(listed)) if name != "tokencake"}


def install(folder: Path) -> Path | None:
    """pip-audit in an environment of its own, so that it is not among what is audited."""
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    install = [environment / "bin" / "pip", "install", "-q", "pip-audit"]
    done = subprocess.run(install, check=False, capture_output=True)
    return environment / "bin" / "pip-audit" if done.returncode == 0 else None


def run(tool: Path, folder: Path, service: str, requirements: Sequence[str]) -> Mapping[str, Any] | None:
    """pip-audit's report. Its exit code is 1 for vulnerabilities as for errors, so only the report counts."""
    asked, told = folder / "requirements.txt", folder / "report.json"
    asked.write_text("\n".join(requirements) + "\n")
    told.unlink(missing_ok=True)
    options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "-f", "json", "-o", str(told)]
    try:
        command = [str(tool), "-r", str(asked), "-s", service, *options]
        subprocess.run(command, check=False, timeout=LIMIT_S, capture_output=True)
        report: Mapping[str, Any] = json.loads(told.read_text())
        return report
    except (subprocess.TimeoutExpired, OSError, ValueError):
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
