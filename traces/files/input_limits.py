"""How large the files may be that are read, so that a hostile one costs little before it is refused.

A line or a file of JSON takes up to some fifty times its bytes as Python objects (lists in lists in lists), and lines
are read whole: `LINE_BYTES` and `PARTS` together keep that below 512 MB. docs/trace-format.md has the table, with what
was measured.
"""

from __future__ import annotations

LINE_BYTES = 16_000_000  # of a line after decompression, its end included; also of a file that is one JSON value
PARTS = 2_000_000  # lists and objects of a line, or of a file that is one JSON value
BLANK_BYTES = 10_000_000  # of all blank lines of a file together, their ends included
TOML_BYTES = 1_000_000  # of a machine or a suite: pages of text

CALLS = 20_000  # of an application: what each call waits for is a bit set of its predecessors
EDGES = 1_000_000  # of an application: the entries of all its calls' `after`
SEGMENTS = 100_000  # of a prompt
ANSWER_TOKENS = 10_000_000  # of a call's answer: the simulator needs some 7 bytes for each while it is generated
APPLICATIONS = 1_000_000  # of a trace that is generated: minutes, and gigabytes on the disk
