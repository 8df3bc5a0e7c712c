"""Tables and lines for people, of text that may be anybody's: see `terminal`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from .terminal import fitting


def printing(**options: Any) -> Console:
    """Prints text and tables as they are, without markup."""
    return _Printing(highlight=False, markup=False, emoji=False, **options)


class _Printing(Console):
    """Its text is made safe before it is laid out, so that columns stay where they are; and once more after that."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(self._safe(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text = segment.text
            if segment.control or (text.isascii() and text.isprintable()):  # nearly all, and some of them many times
                yield segment
            else:
                yield segment._replace(text=self._safe(text))

    def _safe(self, text: str) -> str:
        return fitting(text, self.encoding)
