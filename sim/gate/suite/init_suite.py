"""The first suite of a project: `tokencake check --init`."""

from __future__ import annotations

from pathlib import Path

from ....traces.errors import TokencakeError
from ....traces.files.outputs import prepare_folder, write_whole
from ....traces.format.header import Header
from ....traces.format.writer import write_trace
from ....traces.generate.workloads import code_writer
from .suite_file import SUITE_FILE

TRACE = "traces/code-writer.jsonl"
APPLICATIONS = 6

TEXT = f"""\
# What must not become worse: `tokencake check` runs these cases and compares them with baselines/.
# After a change that is meant: `tokencake check --update`, and review the diff of baselines/.

budget_s = 120 # wall time of the whole check
confidence = 0.95 # of a verdict on repeated cases, for all of their metrics together

[defaults] # what holds for every case that does not say otherwise
machine = "h100-llama-3.1-8b" # see `tokencake machines`; or a TOML file
settings = {{ gpu_blocks = 2000 }} # so few that agents compete for them
policy = "tokencake" # see `tokencake policies`; a class in a file: "policies/mine.py:Mine:least_s=2"
seed = 0

[metrics] # how much worse is too much; all metrics: docs/metrics.md
app_latency_s.mean = [
    {{ relative = 0.02 }}, # than the baseline
    {{ not_worse_than = "vllm" }}, # than another policy that plays the same
]
app_latency_s.p95 = {{ relative = 0.05 }}
makespan_s = {{ relative = 0.02 }}
prefill_tokens.computed = {{ relative = 0.02 }}
preemptions = {{ relative = 0.05, absolute = 3 }} # whichever tolerates more

[cases.code-writer] # one run: the same whenever it is run again
trace = "{TRACE}"

[cases.code-writer-varied] # many runs, as on other days: verdicts by paired statistics
trace = "{TRACE}"
repeats = 10
vary = "arrivals,tools"
metrics.app_latency_s.p95 = [] # not gated here
"""


def start_suite(folder: Path) -> list[str]:
    """Writes a suite and a small trace. The lines to print. Raises TokencakeError if one of them is there already."""
    suite, trace = folder / SUITE_FILE, folder / TRACE
    for file in (suite, trace):
        if file.exists():
            raise TokencakeError(f"{file}: is there already: --init overwrites nothing")
    prepare_folder(trace.parent)
    applications = code_writer(apps=APPLICATIONS, qps=1.0, seed=0, spread=0.3)
    header = Header(name="code-writer", source="tokencake check --init", applications=APPLICATIONS)
    write_trace(trace, applications, header)
    write_whole(suite, TEXT)
    return [f"wrote {suite} and {trace}", "next: tokencake check --update, then commit baselines/"]
