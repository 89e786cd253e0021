"""A store on disk for what encoders say, under keys that hold everything that could change it.

One SQLite file in a folder: several processes may read and write it at once. An entry whose bytes have changed on disk
is taken for missing, and a file that is no database any more is set aside and begun anew: what is lost is computed again.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import warnings
import zlib
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path

from palate.errors import UserError

_AT_ONCE = 500  # SQLite takes so many parameters in a statement everywhere
_PATIENCE = 120.0  # seconds to wait for another process that writes


def key(*parts: str) -> bytes:
    """Return the 16 bytes that stand for these parts and no others."""
    total = blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        total.update(len(encoded).to_bytes(8, "little") + encoded)
    return total.digest()


class Cache:
    """Bytes by key, in `folder`/rewards.sqlite. UserError if the folder cannot be written."""

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder).expanduser() / "rewards.sqlite"
        self._local = threading.local()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection()
        except (OSError, sqlite3.OperationalError) as error:
            raise UserError(
                f"The cache {self.path} cannot be used: {error}. Name a folder that can be written."
            ) from None

    def get(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return the entries that are there and whole."""
        wanted = list(keys)
        found: dict[bytes, bytes] = {}
        try:
            for start in range(0, len(wanted), _AT_ONCE):
                part = wanted[start : start + _AT_ONCE]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, sum, value FROM entries WHERE key IN ({marks})"
                found |= {k: v for k, total, v in self._connection().execute(query, part) if zlib.crc32(v) == total}
        except sqlite3.OperationalError as error:  # locked for minutes, or the disk fails
            warnings.warn(f"The cache {self.path} cannot be read ({error}); computing instead.", stacklevel=2)
        except sqlite3.DatabaseError as error:
            self._begin_anew(error)
            return {}
        return found

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Keep entries. A cache that cannot be written costs time, not the run: it warns."""
        rows = [(k, zlib.crc32(v), v) for k, v in entries.items()]
        try:
            with self._connection() as connection:
                connection.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", rows)
        except sqlite3.OperationalError as error:
            warnings.warn(f"{len(rows)} entries could not be kept in {self.path}: {error}.", stacklevel=2)
        except sqlite3.DatabaseError as error:
            self._begin_anew(error)

    def _connection(self) -> sqlite3.Connection:
        """Return this thread's connection; a forked process opens its own."""
        if getattr(self._local, "process", None) != os.getpid():
            self._local.connection = self._open()
            self._local.process = os.getpid()
        return self._local.connection

    def _open(self) -> sqlite3.Connection:
        try:
            return self._opened()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            self._set_aside(error)
            return self._opened()

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=_PATIENCE)
        # No write-ahead log: it needs shared memory, which network folders lack. No waiting for the disk either: a
        # power cut may cost the cache, and the cache may always be lost.
        connection.execute("PRAGMA journal_mode=TRUNCATE")
        connection.execute("PRAGMA synchronous=OFF")
        with connection:
            connection.execute("CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, sum INTEGER, value BLOB)")
        return connection

    def _begin_anew(self, error: sqlite3.DatabaseError) -> None:
        if connection := getattr(self._local, "connection", None):
            connection.close()
        self._local.process = None
        self._set_aside(error)

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        aside = self.path.with_suffix(f".broken-{os.getpid()}")
        warnings.warn(
            f"The cache {self.path} is broken ({error}). It is begun anew; the old file is {aside}.", stacklevel=4
        )
        if self.path.exists():
            os.replace(self.path, aside)
