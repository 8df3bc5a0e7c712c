"""The commands of docs/determinism.md, run as they stand there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/determinism.md").read_text(encoding="utf-8")
TOKENCAKE = f"tokencake() {{ {sys.executable} -c 'from tokencake.cli import main; main()' \"$@\"; }}\n"


def test_two_runs_are_equal_byte_for_byte(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (block,) = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    command = ["bash", "-ec", TOKENCAKE + block]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, two = (tmp_path / name / "1-tokencake.jsonl" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes() != b""
