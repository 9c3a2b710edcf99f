"""An append-only log in a folder of static tiles (C2SP tlog-tiles), whose leaves are opaque entries.

    DIR/checkpoint              the newest signed head
    DIR/tile/...                hashes and entries; any web server or object store can serve the folder
    DIR/.log                    origin and number of leaves integrated, not signed
    KEY.head                    beside the key: the last (size, root) it signed

Invariants:

1. entries and hashes are on disk before the size that counts them, and the size before a head is signed;
2. the signer stores (size, root) beside its *key* before it signs, so that restoring an old copy of the log
   cannot make it sign a shorter or another tree;
3. full tiles never change, and a partial tile has its width in its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from auditor.durable_files import locked, write_durably
from auditor.errors import (
    LeafIndexError,
    LogForkError,
    LogShrinkError,
    LogStateError,
    NoteSyntaxError,
    OriginUnknownError,
    TileError,
    TraceSyntaxError,
)
from auditor.merkle.checkpoints import Checkpoint, parse_checkpoint, sign_checkpoint, verify_checkpoint
from auditor.merkle.hashing import EMPTY_ROOT, HASH_BYTES, leaf_hash
from auditor.merkle.keys import PublicKey, Signer
from auditor.merkle.nodes import consistency_path, inclusion_path, range_hash
from auditor.merkle.notes import MAX_NOTE_BYTES, SignedNote, parse_signature_lines
from auditor.merkle.policy import Policy
from auditor.merkle.receipts import Receipt
from auditor.merkle.tiles import (
    ENTRIES,
    WIDTH,
    Tile,
    TileReader,
    check_tile,
    decode_bundle,
    encode_bundle,
    levels_of,
    new_tiles,
    tile_root,
    tiles_of,
)
from auditor.merkle.tree import Tree
from auditor.merkle.witness import WitnessRequest
from auditor.strict_json import load_object

_STATE = ".log"
_MAX_TILE_BYTES = WIDTH * (2 + 65_535)


@dataclass(frozen=True, slots=True)
class Head:
    """A size and its root."""

    size: int
    root: bytes


def read_head(path: Path) -> Head | None:
    """The (size, root) stored in a file; None when there is no such file.

    Raises:
        LogStateError: the file is no head. It is never treated as missing.
    """
    try:
        state = load_object(path.read_bytes(), where=str(path), max_bytes=1000)
        size, root = state["size"], bytes.fromhex(state["root"])
    except FileNotFoundError:
        return None
    except (OSError, KeyError, ValueError, TypeError, TraceSyntaxError) as error:
        raise LogStateError(f"cannot be read: {error}", where=str(path)) from None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0 or len(root) != HASH_BYTES:
        raise LogStateError("is no size and root", where=str(path))
    return Head(size, root)


def write_head(path: Path, head: Head) -> None:
    """Store a (size, root); on disk when this returns."""
    write_durably(path, json.dumps({"size": head.size, "root": head.root.hex()}).encode() + b"\n", mode=0o600)


class TransparencyLog:
    """A log in a folder.

    Args:
        folder: made by `create`.

    Raises:
        LogStateError: no log is there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        state_file = folder / _STATE
        try:
            state = load_object(state_file.read_bytes(), where=str(state_file), max_bytes=10_000)
        except OSError as error:
            fix = "make one with `audit log init`"
            raise LogStateError(f"no log: {error.strerror}", where=str(folder), fix=fix) from None
        origin, size = state.get("origin"), state.get("size")
        if not isinstance(origin, str) or type(size) is not int or size < 0:
            raise LogStateError("names no origin and size", where=str(state_file))
        self.origin, self.size = origin, size

    @classmethod
    def create(cls, folder: Path, origin: str) -> TransparencyLog:
        """An empty log.

        Raises:
            LogStateError: there is one already.
            CheckpointSyntaxError: no possible origin.
        """
        Checkpoint(origin, 0, EMPTY_ROOT)
        if (folder / _STATE).exists():
            raise LogStateError("there is a log already", where=str(folder))
        _write_state(folder, origin, 0)
        return cls(folder)

    def append(self, entries: Iterable[bytes]) -> range:
        """Add entries; returns their indices. They count once a checkpoint covers them.

        Raises:
            EntrySizeError: one is longer than 65,535 bytes; none was added.
            TileError, LogStateError: the folder is damaged.
        """
        fresh = list(entries)
        encode_bundle(fresh)
        with locked(self.folder / ".lock"):
            self.size = TransparencyLog(self.folder).size  # somebody else may have added some
            old, new = self.size, self.size + len(fresh)
            self._write_bundles(fresh, old, new)
            self._write_tiles([leaf_hash(entry) for entry in fresh], old, new)
            _write_state(self.folder, self.origin, new)
            self.size = new
        return range(old, new)

    def _write_bundles(self, fresh: Sequence[bytes], old: int, new: int) -> None:
        for index in range(old // WIDTH, -(-new // WIDTH)):
            start = index * WIDTH
            kept = self._bundle(Tile(ENTRIES, index, old - start)) if start < old else []
            first = start + len(kept) - old
            entries = [*kept, *fresh[first : first + WIDTH - len(kept)]]
            tile = Tile(ENTRIES, index, len(entries))
            write_durably(self.folder / tile.path(), encode_bundle(entries))

    def _write_tiles(self, leaves: Sequence[bytes], old: int, new: int) -> None:
        made: dict[Tile, bytes] = {}
        joined = b"".join(leaves)
        for tile in new_tiles(old, new):  # lowest level first: those above are made of those below
            start = tile.index * WIDTH
            kept = max(0, (old >> 8 * tile.level) - start)
            data = self._fetch(Tile(tile.level, tile.index, kept)) if kept else b""
            if tile.level == 0:
                data += joined[(start + kept - old) * HASH_BYTES : (start + tile.width - old) * HASH_BYTES]
            else:
                below = [Tile(tile.level - 1, i) for i in range(start + kept, start + tile.width)]
                data += b"".join([tile_root(made.get(t) or self._fetch(t)) for t in below])
            check_tile(tile, data)
            made[tile] = data
            write_durably(self.folder / tile.path(), data)

    def _fetch(self, tile: Tile) -> bytes:
        return fetch_tile(self.folder, tile)

    def _bundle(self, tile: Tile) -> list[bytes]:
        return decode_bundle(self._fetch(tile), tile.width, str(self.folder / tile.path()))

    def reader(self) -> TileReader:
        """Stored nodes of the integrated tree."""
        return TileReader(self._fetch, self.size)

    def entry(self, index: int) -> bytes:
        """One entry.

        Raises:
            LeafIndexError: beyond the log.
        """
        if not 0 <= index < self.size:
            raise LeafIndexError(f"the log has {self.size} entries, not {index}", where=str(self.folder))
        start = index // WIDTH * WIDTH
        return self._bundle(Tile(ENTRIES, index // WIDTH, min(WIDTH, self.size - start)))[index - start]

    def sign(self, signers: Sequence[Signer], head_file: Path, timestamp: int) -> SignedNote:
        """Sign the integrated tree and publish the checkpoint.

        Args:
            signers: the log's keys; several while one replaces another.
            head_file: where the last signed (size, root) is kept, beside the key and not in the log's folder.
            timestamp: POSIX seconds, for kinds of signature that have one.

        Raises:
            LogShrinkError: the tree is smaller than what was signed before.
            LogForkError: it does not continue what was signed before.
            OriginUnknownError: a key has another name than the log.
        """
        for signer in signers:
            if signer.public.name != self.origin:
                raise OriginUnknownError(f"the key is of {signer.public.name}, the log is {self.origin}")
        with locked(self.folder / ".lock"), locked(head_file.with_name(head_file.name + ".lock")):
            self.size = TransparencyLog(self.folder).size
            read = self.reader()
            head = Head(self.size, range_hash(read, 0, self.size))
            last = read_head(head_file)
            if last is not None and last.size > head.size:
                raise LogShrinkError(
                    f"{last.size} leaves were signed before, the log has {head.size}",
                    where=str(self.folder),
                    fix="an old copy? restore the newest one",
                )
            if last is not None and range_hash(read, 0, last.size) != last.root:
                raise LogForkError(
                    f"the first {last.size} leaves are not those that were signed", where=str(self.folder)
                )
            write_head(head_file, head)
            checkpoint = Checkpoint(self.origin, head.size, head.root)
            note = SignedNote(
                checkpoint.text(), tuple(sign_checkpoint(checkpoint, s, timestamp) for s in signers)
            )
            write_durably(self.folder / "checkpoint", note.serialize())
        return note

    def checkpoint(self) -> tuple[SignedNote, Checkpoint]:
        """The published checkpoint, not verified.

        Raises:
            LogStateError: nothing was signed yet.
        """
        return read_checkpoint(self.folder)

    def cosign(self, signatures: SignedNote) -> SignedNote:
        """Publish a checkpoint with further signature lines; the text must be the published one.

        Raises:
            LogForkError: another text.
        """
        with locked(self.folder / ".lock"):
            note, _ = self.checkpoint()
            if note.text != signatures.text:
                raise LogForkError("the signatures are of another checkpoint", where=str(self.folder))
            merged = note.with_signatures(signatures.signatures)
            write_durably(self.folder / "checkpoint", merged.serialize())
        return merged

    def prove(self, index: int) -> Receipt:
        """A receipt for one entry, in the published checkpoint.

        Raises:
            LeafIndexError: the checkpoint does not cover it.
            LogStateError: nothing was signed yet.
        """
        note, head = self.checkpoint()
        return Receipt(index, tuple(inclusion_path(self.reader(), index, head.size)), note)

    def witness_request(self, old_size: int) -> WitnessRequest:
        """What to send to a witness that last saw `old_size` leaves.

        Raises:
            TreeSizeError: it saw more than the checkpoint has.
            LogStateError: nothing was signed yet.
        """
        note, head = self.checkpoint()
        return WitnessRequest(
            old_size, tuple(consistency_path(self.reader(), old_size, head.size)), note, head
        )


def attach_cosignatures(log: TransparencyLog, answer: bytes, keys: Sequence[PublicKey]) -> int:
    """Publish those lines of a witness's answer that known keys made; returns how many.

    Raises:
        NoteSyntaxError: no signature lines.
        SignatureInvalidError: a line of a known key does not verify; nothing was added.
        KeyUnknownError: no line is of a known key.
    """
    note, head = log.checkpoint()
    try:
        lines = parse_signature_lines(answer.decode("utf-8"))
    except UnicodeDecodeError:
        raise NoteSyntaxError("the witness's answer is not UTF-8") from None
    known = tuple(line for line in lines if any(line.is_of(key) for key in keys))
    verify_checkpoint(SignedNote(note.text, known), head, keys)
    log.cosign(SignedNote(note.text, known))
    return len(known)


def _write_state(folder: Path, origin: str, size: int) -> None:
    write_durably(folder / _STATE, json.dumps({"origin": origin, "size": size}).encode() + b"\n")


def fetch_tile(folder: Path, tile: Tile) -> bytes:
    """Bytes of a tile file.

    Raises:
        TileError: it is not there.
    """
    path = folder / tile.path()
    try:
        with path.open("rb") as stream:
            return stream.read(_MAX_TILE_BYTES + 1)
    except OSError as error:
        raise TileError(f"cannot be read: {error.strerror}", where=str(path)) from None


def read_checkpoint(folder: Path) -> tuple[SignedNote, Checkpoint]:
    """A folder's checkpoint, not verified.

    Raises:
        LogStateError: there is none.
        NoteSyntaxError, CheckpointSyntaxError: it is none.
    """
    path = folder / "checkpoint"
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_NOTE_BYTES + 1)
    except OSError as error:
        fix = "sign one with `audit log checkpoint`"
        raise LogStateError(f"no checkpoint: {error.strerror}", where=str(path), fix=fix) from None
    return parse_checkpoint(raw, str(path))


def verify_log(folder: Path, policy: Policy) -> Checkpoint:
    """Walk a whole log, read-only and offline: signatures, quorum, every entry, every tile, the root.

    Raises:
        KeyUnknownError, SignatureInvalidError, OriginUnknownError, QuorumMissingError: the checkpoint.
        TileError: a file is missing or misshapen.
        LogForkError: entries, tiles and root do not fit together.
    """
    note, head = read_checkpoint(folder)
    policy.check(note, head, str(folder / "checkpoint"))
    tree = Tree(b"".join(_leaf_rows(folder, head.size)))
    if tree.root() != head.root:
        raise LogForkError("the entries do not give the signed root", where=str(folder))
    for level in levels_of(head.size):
        for tile in tiles_of(head.size, level):
            data = fetch_tile(folder, tile)
            check_tile(tile, data)
            if data != tree.nodes(8 * level, tile.index * WIDTH, tile.width):
                raise LogForkError(
                    "the tile's hashes are not those of the entries", where=str(folder / tile.path())
                )
    return head


def _leaf_rows(folder: Path, size: int) -> Iterator[bytes]:
    for tile in tiles_of(size, ENTRIES):
        entries = decode_bundle(fetch_tile(folder, tile), tile.width, str(folder / tile.path()))
        yield b"".join([leaf_hash(entry) for entry in entries])
