"""`tokencake trace convert`: a file or a folder that others recorded, written as a trace."""

from __future__ import annotations

from pathlib import Path

from ..console.terminal import say
from ..files.source_file import is_read_once
from ..format.header import Header
from ..format.publish_trace import publish_trace
from ..generate.arrivals import ArrivalOptions
from .conversion import Conversion, ConversionOptions
from .formats import convert


def convert_file(
    source: Path,
    output: Path,
    source_format: str,
    options: ConversionOptions,
    arrivals: ArrivalOptions,
    progress: bool = False,
) -> Conversion:
    """Write the trace, and say on stderr what was assumed and left out. What became of the rows is returned.

    `progress`: shown even if stderr is no terminal. Errors as `publish_trace` and `convert`.
    """
    conversion = Conversion(options)
    applications = convert(source, source_format, *arrivals, conversion)
    process = None if arrivals.rate is None else arrivals.process
    about = {"rate": arrivals.rate, "arrivals": process, "seed": arrivals.seed}
    header = Header(
        name=None if is_read_once(source) else source.stem, source=source_format, about={**about, **options.about()}
    )
    publish_trace(output, applications, header, source=source, progress=progress)
    for line in conversion.words():
        say(line, err=True)
    return conversion
