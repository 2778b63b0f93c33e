"""A cache of facts about audio files: the digest of their content, and the result of decoding it.

All corpora and commands share one small database in the user's cache folder, because corpora may be
read-only, and an imported corpus names the files of the original corpus. A file is read again only
when its size or time has changed. Facts about a content are valid for all files with this content.
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

from omnisparse.data.members import DIGEST_BYTES, parse_member

ENVIRONMENT = "OMNISPARSE_CACHE"
"""Environment variable that names the cache folder."""

_FILE = "audio.sqlite"
_FORMAT_VERSION = 1
_READ_BYTES = 1 << 20
_ROWS = 500  # per database query
_WAIT_SECONDS = 10.0  # for another process to finish writing
# A file that is written twice within one clock tick keeps its time, so new times are not trusted.
_SETTLED_NS = 100_000_000

State = tuple[int, int, int]
"""Size of a file in bytes, and the times of the last change of content and inode, in ns."""


def cache_folder() -> Path | None:
    """Folder of the cache: ``$OMNISPARSE_CACHE``, or ``omnisparse`` in the user's cache folder.

    Returns:
        The folder, which may not exist yet; None if the user has no home folder.
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
    """The state of a file, or of the archive that holds it; None if it does not exist."""
    member = parse_member(path)
    try:
        status = os.stat(path if member is None else member.tar)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def digest_file(path: str) -> str:
    """Hash of the content of a file; that of a member of an archive is in its name.

    Raises:
        OSError: If it cannot be read.
    """
    member = parse_member(path)
    if member is not None:
        return member.digest
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with open(path, "rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


class ContentCache:
    """Digests of files, and a document about each content, on disk.

    A cache that cannot be written or is damaged costs only time: missing facts are computed again.

    Args:
        folder: Folder of the database; None for the user's cache folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = cache_folder() if folder is None else folder
        self.problem: str | None = None
        """The reason why nothing can be stored, one line; None if there is no problem."""

    def digests(self, paths: Iterable[str]) -> dict[str, str]:
        """Digest of each file, by its path; files that cannot be read are not in it."""
        every = {path: parse_member(path) for path in dict.fromkeys(paths)}
        inside = {path: member.digest for path, member in every.items() if member is not None}
        wanted = {path: str(Path(path).absolute()) for path in every if path not in inside}
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
        return inside | {path: known[full] for path, full in wanted.items() if full in known}

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
        """The stored document about each content, by its digest."""
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
        """Store new facts.

        Args:
            files: State, taken before the file was read, and digest, by absolute path.
            documents: Document about each content, by its digest; replaces an earlier document.
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
        """The open database; None if it cannot be opened."""
        try:
            database = self._open()
        except (sqlite3.Error, OSError) as error:
            self.problem = f"facts about audio cannot be stored in {self._folder}: {_why(error)}"
            yield None
            return
        try:
            with closing(database) as connection:
                yield connection
        except sqlite3.Error as error:
            self.problem = f"facts about audio cannot be stored in {self._folder}: {_why(error)}"

    def _open(self) -> sqlite3.Connection:
        if self._folder is None:
            raise OSError("no home folder")
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / _FILE
        try:
            return _connect(path)
        except sqlite3.OperationalError:
            raise  # locked, or the disk is full: the file is not damaged
        except sqlite3.DatabaseError:
            path.unlink(missing_ok=True)  # damaged; its content can be computed again
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
        # Names of columns and tables are constants; keys are bound parameters.
        query = f"SELECT {columns} FROM {table} WHERE {key} IN ({marks})"
        yield database.execute(query, part).fetchall()


def _why(error: Exception) -> str:
    """A short description of an error."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, sqlite3.OperationalError):
        return "another process uses it, or it cannot be written"
    return "it is damaged"
