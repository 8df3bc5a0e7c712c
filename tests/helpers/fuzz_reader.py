"""Coverage-guided fuzzing of the trace reader, for a longer run than the tests': it stops at the first surprise.

    pip install atheris
    python tests/helpers/fuzz_reader.py -max_total_time=600 [FOLDER OF SEEDS]

Only TraceError may come out. Libfuzzer's options work: `-help=1` tells them.
"""

import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

with atheris.instrument_imports(include=["tokencake"]):
    from tokencake.traces.errors import TraceError
    from tokencake.traces.format.reader import read_trace
    from tokencake.traces.inspect.inspection import inspect_trace

HEADER = b'{"format": "tokencake.trace", "version": 1}\n'


def read(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        inspect_trace(read_trace(path))
    except TraceError as error:
        if not str(error).isprintable():
            raise AssertionError("an error has to be one line") from error


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.jsonl"

        def read_as_file_and_as_line(data: bytes) -> None:
            read(path, data)
            read(path, HEADER + data)

        atheris.Setup(sys.argv, read_as_file_and_as_line)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
