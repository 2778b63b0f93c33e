"""Where the bytes of a nested file come from: a file, or a server of range requests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

import numpy as np

from omnisparse.errors import FormatError, OmnisparseError

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
            FormatError: If the file ends before.
        """
        if stop > self.size_bytes:
            raise FormatError(f"{self.name}: ends at byte {self.size_bytes}, {stop} are needed")
        return np.asarray(self._bytes[start:stop]).data

    def read_all(self) -> memoryview:
        """All bytes."""
        return self.read(0, self.size_bytes)


class HttpSource:
    """A file behind ``http(s)://``, of which only what is asked for is transferred.

    Args:
        url: Its address.
        timeout: Seconds to wait for the server.
    """

    def __init__(self, url: str, *, timeout: float = 30.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url {url!r} must start with http:// or https://")
        self.name = url
        self._timeout = timeout
        self._size: int | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the file, as the server says."""
        if self._size is None:
            self.read(0, 1)
        assert self._size is not None
        return self._size

    def read(self, start: int, stop: int) -> memoryview:
        """Exactly the bytes [start, stop), by one range request.

        Raises:
            FormatError: If the file ends before.
            OmnisparseError: If the server fails, or cannot answer range requests.
        """
        # Not at the top: what these load takes longer than opening a local file.
        import http.client
        import urllib.error
        import urllib.request

        if stop <= start:
            return memoryview(b"")
        request = urllib.request.Request(
            self.name, headers={"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:
                match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
                if response.status != 206 or match is None:
                    raise OmnisparseError(f"{self.name}: the server does not answer range requests")
                first, last, total = (int(number) for number in match.groups())
                data = response.read(stop - start + 1)
        except urllib.error.HTTPError as error:
            if error.code == 416:
                raise FormatError(f"{self.name}: ends before byte {stop}") from None
            raise OmnisparseError(f"{self.name}: the server says {error.code}") from None
        except (OSError, http.client.HTTPException) as error:
            raise OmnisparseError(f"{self.name}: cannot be read ({error})") from None
        self._size = total
        if (first, last) != (start, stop - 1) or len(data) != stop - start:
            raise FormatError(f"{self.name}: ends at byte {total}, {stop} are needed")
        return memoryview(data)


def open_source(place: str | Path) -> Source:
    """A file path, or an ``http(s)://`` address."""
    text = str(place)
    return HttpSource(text) if text.startswith(("http://", "https://")) else FileSource(Path(place))
