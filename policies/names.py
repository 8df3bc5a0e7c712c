"""Whether a name was there, in memory that does not grow: for what a run of weeks has seen."""

from __future__ import annotations

from zlib import crc32

PLACES = 1 << 20  # 128 KB


class Names:
    """Never says no of a name that was added. Says yes of one that was not as often as its place is taken: of a million
    places, one in a hundred after 10,000 names."""

    __slots__ = ("_bits", "count")

    def __init__(self) -> None:
        self._bits = bytearray(PLACES // 8)
        self.count = 0  # how often one was added

    def add(self, name: str) -> None:
        self.count += 1
        place = crc32(name.encode("utf-8", "surrogatepass")) % PLACES
        self._bits[place >> 3] |= 1 << (place & 7)

    def __contains__(self, name: str) -> bool:
        place = crc32(name.encode("utf-8", "surrogatepass")) % PLACES
        return bool(self._bits[place >> 3] & 1 << (place & 7))
