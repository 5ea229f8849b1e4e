"""How many bytes the bridge holds for one client: bounded, whatever the client sends and however slowly it reads."""

from __future__ import annotations

from dspex_pipelines.wire.codec import FRAME_TRIALS

LARGE_BYTES = 2_048
MOST_HELD_BYTES = 256 << 20
"""Of a client's large trials in flight; while there are more, it is not read from."""
MOST_UNREAD_BYTES = 64 << 20
"""Of large outcomes that a client has not read; while there are more, its trials wait."""
_FEW = 8


def is_large(size: int, items: int) -> bool:
    """Return whether a frame of *size* bytes holds anything that is worth an account.

    Of a frame that does not, none is larger than a few hundredths of what a message may have, and as many as credit
    allows are a few hundred MiB.
    """
    return size > LARGE_BYTES * max(_FEW, min(items, FRAME_TRIALS))


class Held:
    """The sizes of large things, by a key of their owner's."""

    __slots__ = ("_bytes", "_most", "sizes")

    def __init__(self, most: int) -> None:
        self._most = most
        self._bytes = 0
        self.sizes: dict[int, int] = {}

    @property
    def is_full(self) -> bool:
        """Whether they are more than there should be."""
        return self._bytes > self._most

    @property
    def is_half_empty(self) -> bool:
        """Whether there is room for many more."""
        return self._bytes * 2 < self._most

    def add(self, key: int, size: int) -> None:
        """Hold one more."""
        self.sizes[key] = size
        self._bytes += size

    def drop(self, key: int) -> None:
        """Hold it no more, if it was held."""
        self._bytes -= self.sizes.pop(key, 0)
