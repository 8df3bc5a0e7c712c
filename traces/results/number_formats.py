"""Numbers as people read them: few digits, and the unit."""

from __future__ import annotations

SAME = 0.0005  # relative changes below this show as 0.0 %: nobody wins by them


def seconds(value: float) -> str:
    return f"{value:,.0f} s" if value >= 10_000 else f"{significant(value)} s"


def milliseconds(value: float) -> str:
    return f"{significant(1000 * value)} ms"


def number(value: float) -> str:
    return f"{value:,.0f}" if value < 1e6 else scaled(value)


def scaled(value: float) -> str:
    """Four digits and a thousands prefix: 5.871 M."""
    for prefix, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{significant(value / factor)} {prefix}"
    return f"{value:,.0f} "


def size(value: float) -> str:
    return f"{scaled(value)}B"


def share(value: float) -> str:
    return f"{value:.3f}"


def significant(value: float) -> str:
    return f"{value:,.1f}" if value >= 100 else f"{value:.2f}" if value >= 10 else f"{value:.3f}"


def percent(difference: float) -> str:
    """A change, in 7 characters unless it is ten thousand fold."""
    if abs(difference) < SAME:
        return "0.0%"
    return f"{100 * difference:+.1f}%" if difference < 9 else f"x{difference + 1:.1f}"
