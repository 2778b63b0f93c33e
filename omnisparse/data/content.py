"""What is known of audio files from before: the digest of their content, what decoding it showed.

One small database in the user's cache serves every corpus and every command: corpora may be
read-only, and an imported corpus names the files of the one it was imported from. A file is read
again only when its size or time has changed; what is known of a content holds wherever it lies.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

ENVIRONMENT = "OMNISPARSE_CACHE"
"""Environment variable that names the cache folder."""

_FILE = "audio.sqlite"
_FORMAT_VERSION = 1
_READ_BYTES = 1 << 20
_DIGEST_BYTES = 20
_ROWS = 500  # of one question to the database
_WAIT_SECONDS = 10.0  # for another process to finish writing
# A file that is written twice within one tick of the clock keeps its time: it is not trusted yet.
_SETTLED_NS = 100_000_000

State = tuple[int, int, int]
"""Size of a file in bytes, and when its content and its entry last changed, in ns."""


def cache_folder() -> Path | None:
    """Where verdicts are kept: ``$OMNISPARSE_CACHE``, or ``omnisparse`` in the user's cache.

    Returns:
        The folder, whether it exists or not; None where the user has no home.
    """
    if named := os.environ.get(ENVIRONMENT):
        return Path(named)
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "omnisparse"
    try:
        return Path.home() / ".cache" / "omnisparse"
    except RuntimeError:
        return None


def file_state(path: str) -> State | None:
    """The state of a file; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def digest_file(path: str) -> str:
    """Hash of the content of a file.

    Raises:
        OSError: If it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    with open(path, "rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


class ContentCache:
    """Digests of files, and a document about each content, on disk.

    A cache that cannot be written or is damaged costs time only: what it cannot tell is found out
    again.

    Args:
        folder: Folder of the database; None for that of the user.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = cache_folder() if folder is None else folder
        self.problem: str | None = None
        """Why nothing is kept, if so; one line."""

    def digests(self, paths: Iterable[str]) -> dict[str, str]:
        """Digest of each file, by its path; files that cannot be read are not in it."""
        wanted = {path: str(Path(path).absolute()) for path in dict.fromkeys(paths)}
        known = self.known_digests(wanted.values())
        found: dict[str, tuple[State, str]] = {}
        for path in wanted.values():
            state = None if path in known else file_state(path)
            if state is not None and path not in found:
                try:
                    found[path] = (state, digest_file(path))
                except OSError:
                    continue
        self.keep(found, {})
        known |= {path: digest for path, (_, digest) in found.items()}
        return {path: known[full] for path, full in wanted.items() if full in known}

    def known_digests(self, paths: Iterable[str]) -> dict[str, str]:
        """Digests, by absolute path, of the files that have not changed since they were taken."""
        known: dict[str, str] = {}
        with self._database() as database:
            for rows in _in_parts(database, "path, size, time, changed, digest", "files", paths):
                for path, *state, digest in rows:
                    if file_state(path) == tuple(state):
                        known[path] = digest
        return known

    def documents(self, digests: Iterable[str]) -> dict[str, dict[str, Any]]:
        """What is known of each content, by its digest."""
        documents: dict[str, dict[str, Any]] = {}
        with self._database() as database:
            for rows in _in_parts(database, "digest, document", "contents", digests):
                for digest, text in rows:
                    try:
                        document = json.loads(text)
                    except ValueError:
                        continue
                    if isinstance(document, dict):
                        documents[digest] = document
        return documents

    def keep(
        self,
        files: Mapping[str, tuple[State, str]],
        documents: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Keep what was found out.

        Args:
            files: State, taken before the file was read, and digest, by absolute path.
            documents: What is known of each content, by its digest; replaces what was known.
        """
        if not files and not documents:
            return
        with self._database() as database:
            if database is None:
                return
            now = time.time_ns()
            rows = [
                (path, *state, digest)
                for path, (state, digest) in files.items()
                if now - max(state[1:]) > _SETTLED_NS
            ]
            texts = [(digest, json.dumps(document)) for digest, document in documents.items()]
            with database:
                database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)
                database.executemany("INSERT OR REPLACE INTO contents VALUES (?, ?)", texts)

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection | None]:
        """The open database; None where there can be none."""
        try:
            database = self._open()
        except (sqlite3.Error, OSError) as error:
            self.problem = f"what is known of audio cannot be kept in {self._folder}: {_why(error)}"
            yield None
            return
        try:
            with closing(database) as connection:
                yield connection
        except sqlite3.Error as error:
            self.problem = f"what is known of audio cannot be kept in {self._folder}: {_why(error)}"

    def _open(self) -> sqlite3.Connection:
        if self._folder is None:
            raise OSError("no home folder")
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / _FILE
        try:
            return _connect(path)
        except sqlite3.OperationalError:
            raise  # locked, or no room: the file is sound
        except sqlite3.DatabaseError:
            path.unlink(missing_ok=True)  # damaged, and worth no more than the time to fill it
            return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=_WAIT_SECONDS)
    try:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version != _FORMAT_VERSION:
            with database:
                database.execute("DROP TABLE IF EXISTS files")
                database.execute("DROP TABLE IF EXISTS contents")
                database.execute(
                    "CREATE TABLE files (path TEXT PRIMARY KEY, size INTEGER, time INTEGER, "
                    "changed INTEGER, digest TEXT) WITHOUT ROWID"
                )
                database.execute(
                    "CREATE TABLE contents (digest TEXT PRIMARY KEY, document TEXT) WITHOUT ROWID"
                )
                database.execute(f"PRAGMA user_version = {_FORMAT_VERSION}")
    except BaseException:
        database.close()
        raise
    return database


def _in_parts(
    database: sqlite3.Connection | None, columns: str, table: str, keys: Iterable[str]
) -> Iterator[Sequence[Any]]:
    """Rows of a table by their first column, some at a time."""
    if database is None:
        return
    listed = list(dict.fromkeys(keys))
    key = columns.partition(",")[0]
    for first in range(0, len(listed), _ROWS):
        part = listed[first : first + _ROWS]
        marks = ", ".join("?" * len(part))
        # Names of columns and tables are ours; keys are bound.
        query = f"SELECT {columns} FROM {table} WHERE {key} IN ({marks})"
        yield database.execute(query, part).fetchall()


def _why(error: Exception) -> str:
    """What went wrong, in words of our own."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, sqlite3.OperationalError):
        return "another process holds it, or it cannot be written"
    return "it is damaged"
