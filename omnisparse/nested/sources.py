"""Sources of the bytes of a nested file: a local file, or any HTTP server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from omnisparse.errors import FormatError, OmnisparseError

_PIECE_BYTES = 1 << 16
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


class Source(Protocol):
    """Random access to bytes."""

    name: str

    @property
    def size_bytes(self) -> int:
        """Bytes there are."""
        ...

    def read(self, start: int, stop: int) -> memoryview:
        """Exactly the bytes [start, stop)."""
        ...

    def close(self) -> None:
        """Closes the source; nothing can be read afterwards."""
        ...


class FileSource:
    """A local file, mapped into memory."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            empty = path.stat().st_size == 0
            self._bytes = (
                np.zeros(0, np.uint8) if empty else np.memmap(path, dtype=np.uint8, mode="r")
            )
        except OSError as error:
            raise FormatError(f"{path}: cannot be read ({error.strerror})") from None

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return int(self._bytes.size)

    def read(self, start: int, stop: int) -> memoryview:
        """Exactly the bytes [start, stop).

        Raises:
            FormatError: If the file is shorter.
        """
        if stop > self.size_bytes:
            raise FormatError(f"{self.name}: ends at byte {self.size_bytes}, {stop} are needed")
        return np.asarray(self._bytes[start:stop]).data

    def read_all(self) -> memoryview:
        """All bytes."""
        return self.read(0, self.size_bytes)

    def close(self) -> None:
        """Nothing to close: the memory map ends with the last view of it."""


class HttpSource:
    """A file at an ``http(s)://`` address; only the needed bytes are transferred.

    A server that supports range requests sends only the requested bytes. Any other server sends the
    file from its beginning: reading stops after the last needed byte, earlier bytes are kept in
    memory, and later bytes are read from the same response.

    Args:
        url: Its address.
        timeout: Seconds to wait for the server.
    """

    def __init__(self, url: str, *, timeout: float = 30.0) -> None:
        if not is_url(url):
            raise ValueError(f"url {url!r} must start with http:// or https://")
        self.name = url
        self._timeout = timeout
        self._size: int | None = None
        self._whole: Any = None
        self._received = bytearray()

    @property
    def size_bytes(self) -> int:
        """Bytes of the file, as stated by the server."""
        if self._size is None:
            self.read(0, 1)
        assert self._size is not None
        return self._size

    @property
    def has_ranges(self) -> bool:
        """Whether the server supports range requests; found by a request, unless known already."""
        assert self.size_bytes >= 0
        return self._whole is None

    def read(self, start: int, stop: int) -> memoryview:
        """Exactly the bytes [start, stop), by a range request if the server supports it.

        Raises:
            FormatError: If the file is shorter.
            OmnisparseError: If the server fails, or supports no ranges and does not state the size
                of the file.
        """
        # Imported here, because this import takes longer than opening a local file.
        import http.client
        import urllib.error

        if stop <= start:
            return memoryview(b"")
        try:
            if self._whole is None:
                data = self._read_range(start, stop)
                if data is not None:
                    return memoryview(data)
            return memoryview(self._read_on(start, stop))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:
                raise FormatError(f"{self.name}: ends before byte {stop}") from None
            raise OmnisparseError(f"{self.name}: the server answered {error.code}") from None
        except (OSError, http.client.HTTPException) as error:
            raise OmnisparseError(f"{self.name}: cannot be read ({error})") from None

    def _read_range(self, start: int, stop: int) -> bytes | None:
        """The bytes [start, stop); None if the server sends the whole file instead."""
        import urllib.request

        request = urllib.request.Request(
            self.name, headers={"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        )
        response = urllib.request.urlopen(request, timeout=self._timeout)
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status == 200:
            self._begin(response)
            return None
        with response:
            if response.status != 206 or match is None:
                raise OmnisparseError(f"{self.name}: the server answered {response.status}")
            first, last, total = (int(number) for number in match.groups())
            data: bytes = response.read(stop - start + 1)
        self._size = total
        if (first, last) != (start, stop - 1) or len(data) != stop - start:
            raise FormatError(f"{self.name}: ends at byte {total}, {stop} are needed")
        return data

    def _begin(self, response: Any) -> None:
        """Stores the response that holds the whole file; nothing of it is read yet."""
        length = response.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 18:
            response.close()
            raise OmnisparseError(
                f"{self.name}: the server supports no range requests and does not state the size "
                "of the file; download it first"
            )
        self._whole, self._size = response, int(length)

    def _read_on(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop) of the response that holds the whole file."""
        total = self.size_bytes
        if stop > total:
            raise FormatError(f"{self.name}: ends at byte {total}, {stop} are needed")
        while len(self._received) < stop:
            piece = self._whole.read(min(_PIECE_BYTES, stop - len(self._received)))
            if not piece:
                raise OmnisparseError(
                    f"{self.name}: the server stopped at byte {len(self._received)} of {total}"
                )
            self._received += piece
        return bytes(self._received[start:stop])

    def close(self) -> None:
        """Ends a transfer that is still running."""
        if self._whole is not None:
            self._whole.close()


def is_url(place: str | Path) -> bool:
    """Whether a place is an ``http(s)://`` address."""
    return str(place).startswith(("http://", "https://"))


def open_source(place: str | Path) -> Source:
    """A file path, or an ``http(s)://`` address."""
    return HttpSource(str(place)) if is_url(place) else FileSource(Path(place))
