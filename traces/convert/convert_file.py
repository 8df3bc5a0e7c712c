"""`tokencake trace convert`: a file or a folder that others recorded, written as a trace."""

from __future__ import annotations

from pathlib import Path

from ..console.terminal import say
from ..files.source_file import is_read_once
from ..format.header import Header
from ..format.publish_trace import publish_trace
from ..variants.workload import WorkloadOptions
from .conversion import Conversion, ConversionOptions
from .formats import convert


def convert_file(
    source: Path,
    output: Path,
    source_format: str,
    options: ConversionOptions,
    workload: WorkloadOptions,
    progress: bool = False,
) -> Conversion:
    """Write the trace, and say on stderr what was assumed and left out. What became of the rows is returned.

    Of the workload's options arrivals are asked for. `progress`: shown even if stderr is no terminal. Errors as
    `publish_trace` and `convert`.
    """
    rate, arrivals, seed = workload.rate, workload.arrivals, workload.seed
    conversion = Conversion(options)
    applications = convert(source, source_format, rate, arrivals, seed, conversion)
    about = {"rate": rate, "arrivals": arrivals if rate is not None else None, "seed": seed}
    header = Header(
        name=None if is_read_once(source) else source.stem, source=source_format, about={**about, **options.about()}
    )
    publish_trace(output, applications, header, source=source, progress=progress)
    for line in conversion.words():
        say(line, err=True)
    return conversion
