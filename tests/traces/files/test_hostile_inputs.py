"""What a hostile trace costs before it is refused: at most 512 MB and 20 s, compressed or not."""

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

READING = """\
import sys
from pathlib import Path
from tokencake.traces.errors import TraceError
from tokencake.traces.format.reader import read_trace

try:
    list(read_trace(sys.argv[1]))
except TraceError as error:
    print(error)
status = Path("/proc/self/status").read_text()
print(status.partition("VmHWM:")[2].split()[0])
"""
HEADER = b'{"format": "tokencake.trace", "version": 1}\n'
NEST = b"[" * 300 + b"]" * 300 + b","
CALL = b'{"id": "c", "output": 1, "prompt": [%s["q",1]]}'
HOSTILE: dict[str, Callable[[], bytes]] = {
    "a line of 99 MB of empty objects": lambda: b"[" + b"{}," * 33_000_000 + b"{}]",
    "a line of empty objects": lambda: b"[" + b"{}," * 5_000_000 + b"{}]",
    "lists in lists in lists": lambda: b"[" + NEST * 6_600 + b'"a",' * 2_900_000 + b"1]",
    "100 million blank lines": lambda: b"\n" * 100_000_000,
    "long lines of blanks": lambda: (b" " * 15_000_000 + b"\n") * 5,
    "millions of segments": lambda: (
        b'{"id": "a", "arrival_s": 0, "calls": [' + CALL % (b'["q",1],' * 1_900_000) + b"]}"
    ),
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to tell memory")
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_trace_costs_little(tmp_path: Path, name: str, compressed: bool) -> None:
    data = HEADER + HOSTILE[name]() + b"\n"
    file = tmp_path / "t.jsonl"
    file.write_bytes(gzip.compress(data, 1) if compressed else data)
    command = [sys.executable, "-c", READING, str(file)]
    played = subprocess.run(command, timeout=20, capture_output=True, text=True, check=False)
    assert played.returncode == 0, played.stderr[-500:]
    message, kilobytes = played.stdout.splitlines()
    assert message.startswith(f"{file}:")
    assert int(kilobytes) < 512_000
