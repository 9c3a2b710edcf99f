"""C2SP tlog-tiles: a log as static files, 256 hashes wide; names, layouts, a reader of them, no I/O.

Tile (l, n) holds the hashes of complete subtrees n * 256 ... of 256**l leaves; hashes in between are
recomputed. Entry bundles hold the entries themselves, 256 to a file, each behind its length in two bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from auditor.errors import EntrySizeError, TileError
from auditor.merkle.hashing import HASH_BYTES, parent_hashes

WIDTH = 256
_HEIGHT = 8
MAX_ENTRY_BYTES = 65_535
ENTRIES = -1
"""The `level` of entry bundles."""

_PATH = re.compile(r"tile/(entries|[0-9]{1,2})/((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([0-9]{1,3}))?")


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """One file of a log.

    Args:
        level: 0 for leaf hashes, l for subtrees of 256**l leaves; `ENTRIES` for an entry bundle.
        index: position in its level.
        width: hashes or entries in it, 1 to 256; below 256 it is partial.
    """

    level: int
    index: int
    width: int = WIDTH

    def path(self) -> str:
        """File name below the log's prefix."""
        digits = f"{self.index:03d}"
        digits = digits.zfill(-(-len(digits) // 3) * 3)
        groups = [digits[i : i + 3] for i in range(0, len(digits), 3)]
        name = "/".join([*("x" + group for group in groups[:-1]), groups[-1]])
        level = "entries" if self.level == ENTRIES else str(self.level)
        return f"tile/{level}/{name}" + ("" if self.width == WIDTH else f".p/{self.width}")


def parse_tile_path(path: str) -> Tile:
    """Read a tile's file name.

    Raises:
        TileError: not written as `Tile.path` writes it.
    """
    match = _PATH.fullmatch(path)
    if match:
        level = ENTRIES if match[1] == "entries" else int(match[1])
        tile = Tile(level, int(match[2].replace("x", "").replace("/", "")), int(match[3] or WIDTH))
        if level < 64 and tile.width and tile.path() == path:
            return tile
    raise TileError(f"{path[:80]!r} is no tile's name")


def tiles_of(size: int, level: int) -> Iterator[Tile]:
    """Tiles of one level in a tree of `size` leaves, left to right; the last may be partial."""
    count = size >> (_HEIGHT * max(level, 0))
    for index in range(-(-count // WIDTH)):
        yield Tile(level, index, min(WIDTH, count - index * WIDTH))


def levels_of(size: int) -> range:
    """Tile levels that a tree of `size` leaves has."""
    return range(-(-size.bit_length() // _HEIGHT))


def new_tiles(old_size: int, new_size: int) -> Iterator[Tile]:
    """Hash tiles that a tree of `new_size` leaves has and one of `old_size` has not, lowest level first."""
    for level in levels_of(new_size):
        have, want = (size >> (_HEIGHT * level) for size in (old_size, new_size))
        if want == have:
            continue
        for index in range(have // WIDTH, -(-want // WIDTH)):
            yield Tile(level, index, min(WIDTH, want - index * WIDTH))


class TileReader:
    """Stored nodes of a tree of `size` leaves, read from its tiles as `nodes.NodeReader` asks.

    Args:
        fetch: bytes of a tile; raises `TileError` when there is none.
        size: leaves of the tree: which partial tiles there are follows from it.
        kept: tiles held in memory.
    """

    def __init__(self, fetch: Callable[[Tile], bytes], size: int, *, kept: int = 64) -> None:
        self._size = size
        self._fetch = fetch
        self._rows = lru_cache(kept)(self._load)

    def _load(self, level: int, index: int) -> tuple[bytes, ...]:
        """Rows of nodes inside a tile, its own hashes first; incomplete pairs are left out."""
        count = self._size >> (_HEIGHT * level)
        tile = Tile(level, index, min(WIDTH, count - index * WIDTH))
        data = self._fetch(tile)
        check_tile(tile, data)
        rows = [data]
        while len(rows[-1]) >= 2 * HASH_BYTES:
            pairs = len(rows[-1]) // (2 * HASH_BYTES)
            rows.append(parent_hashes(rows[-1][: pairs * 2 * HASH_BYTES]))
        return tuple(rows)

    def __call__(self, level: int, index: int) -> bytes:
        """Hash of complete subtree `index` of 2**level leaves.

        Raises:
            TileError: its tile is missing or has another length.
        """
        tile_level, inside = divmod(level, _HEIGHT)
        per_tile = WIDTH >> inside
        rows = self._rows(tile_level, index // per_tile)
        place = index % per_tile * HASH_BYTES
        return rows[inside][place : place + HASH_BYTES]


def check_tile(tile: Tile, data: bytes) -> None:
    """Refuse a hash tile whose length is not its width.

    Raises:
        TileError: it is not.
    """
    if len(data) != tile.width * HASH_BYTES:
        raise TileError(f"{len(data)} bytes instead of {tile.width} hashes", where=tile.path())


def tile_root(data: bytes) -> bytes:
    """Hash above a full tile: its place in the level above."""
    for _ in range(_HEIGHT):
        data = parent_hashes(data)
    return data


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """An entry bundle.

    Raises:
        EntrySizeError: an entry longer than 65,535 bytes.
    """
    for entry in entries:
        if len(entry) > MAX_ENTRY_BYTES:
            raise EntrySizeError(
                f"an entry of {len(entry)} bytes; a log holds up to {MAX_ENTRY_BYTES}",
                fix="log the digest and keep the bytes elsewhere",
            )
    return b"".join([len(entry).to_bytes(2, "big") + entry for entry in entries])


def decode_bundle(data: bytes, width: int, where: str = "") -> list[bytes]:
    """Entries of a bundle.

    Raises:
        TileError: truncated, or not as many entries as its name says.
    """
    entries = []
    place, total = 0, len(data)
    while place < total:
        end = place + 2 + int.from_bytes(data[place : place + 2], "big")
        if place + 2 > total or end > total:
            raise TileError("the entry bundle is truncated", where=where)
        entries.append(data[place + 2 : end])
        place = end
    if len(entries) != width:
        raise TileError(f"{len(entries)} entries instead of {width}", where=where)
    return entries
