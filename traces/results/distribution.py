"""The distribution of a quantity that may be seen a million times, in bounded memory."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from math import ceil, exp, floor, fsum, log

EXACT_VALUES = 65_536  # up to so many, percentiles are exact
RELATIVE_ERROR = 0.001  # of a percentile beyond that
SMALLEST = 1e-9  # values below are counted as 0: a nanosecond, where times are meant
PERCENTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}

_LOG_GROWTH = log((1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR))


class Distribution:
    """Values that are not negative: their mean and maximum exactly, their percentiles exactly while they are few.

    The first 65,536 values are kept as they are. When there are more, all are counted in buckets whose bounds grow by
    (1 + e) / (1 − e), each answered for by the value that is within e = 0.1 % of everything in it (DDSketch, Masson,
    Rim and Lee 2019). Percentiles interpolate linearly between neighbours, as numpy's default does.
    """

    __slots__ = ("_bucketed", "_buckets", "_largest", "_smallest", "_total", "_values", "add")

    def __init__(self) -> None:
        self._values = array("d")
        self._buckets: Counter[int | None] = Counter()  # None counts the values that are 0
        self._bucketed = 0
        self._total = 0.0  # of those in buckets
        self._smallest = float("inf")
        self._largest = 0.0
        self.add: Callable[[float], None] = self._values.append
        """Takes one value. The owner calls `fold` now and then: a value costs no more than the append of an array."""

    def fold(self) -> None:
        """Moves the values into the buckets if they are more than may be kept."""
        if len(self._values) > EXACT_VALUES:
            self._fill_buckets()

    def summary(self) -> dict[str, float | None]:
        """`mean`, `p50`, `p90`, `p95`, `p99`, `max`; all None if no value was seen."""
        self.fold()
        if self._bucketed and self._values:
            self._fill_buckets()
        count = self._bucketed + len(self._values)
        if not count:
            return dict.fromkeys(("mean", *PERCENTILES, "max"))
        nth = self._nth_bucketed() if self._bucketed else sorted(self._values).__getitem__
        total = self._total if self._bucketed else fsum(self._values)
        result: dict[str, float | None] = {"mean": total / count}
        result.update((name, percentile(nth, count, share)) for name, share in PERCENTILES.items())
        result["max"] = self._largest if self._bucketed else max(self._values)
        return result

    def _fill_buckets(self) -> None:
        values = self._values
        self._total = fsum((self._total, *values))
        self._smallest = min(self._smallest, min(values))
        self._largest = max(self._largest, max(values))
        self._bucketed += len(values)
        self._buckets.update(map(bucket_of, values))
        del values[:]

    def _nth_bucketed(self) -> Callable[[int], float]:
        ranked = sorted(self._buckets.items(), key=lambda item: (item[0] is not None, item[0] or 0))

        def nth(rank: int) -> float:
            passed = 0
            for bucket, count in ranked:
                passed += count
                if rank < passed:
                    return min(max(value_of(bucket), self._smallest), self._largest)
            raise IndexError(rank)

        return nth


def percentile(nth: Callable[[int], float], count: int, share: float) -> float:
    """The value below which `share` of `count` values lie; `nth(i)` is the i-th smallest, from 0."""
    rank = share * (count - 1)
    below = nth(floor(rank))
    return below + (nth(ceil(rank)) - below) * (rank - floor(rank))


def bucket_of(value: float) -> int | None:
    return ceil(log(value) / _LOG_GROWTH) if value >= SMALLEST else None


def value_of(bucket: int | None) -> float:
    """The value within 0.1 % of all that fall into a bucket."""
    if bucket is None:
        return 0.0
    return exp(bucket * _LOG_GROWTH) * (1 - RELATIVE_ERROR)
