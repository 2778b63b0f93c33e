"""A local page on which people speak, and several models recognise them side by side.

Only the standard library serves it. It is for one person at one computer: it binds to loopback
unless told otherwise, answers no other site's pages, and bounds what it takes.

A recording is a session: the page sends pieces of sound (``POST /push``), or a whole file
(``POST /file``), and is told what each model has found; ``POST /finish`` ends it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from omnisparse.deploy.serve_session import FloatArray, ServedModel, Session, read_upload
from omnisparse.errors import DataError
from omnisparse.version import __version__

MAX_SESSIONS = 8
"""Recordings at a time; the one that was silent longest makes room for another."""

READ_TIMEOUT = 20.0
"""Seconds that a client may let the server wait for bytes."""

DISCARDED = 4
"""Times the limit that an upload may be for the server to read on and throw it away."""

PIECE_SECONDS = 0.32
"""Sound of a file that is recognised between two answers."""

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the server takes."""

    max_bytes: int = 20_000_000
    """Of one upload."""

    max_seconds: float = 120.0
    """Of sound in one recording."""

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or not self.max_seconds > 0:
            raise ValueError("limits of uploads must be above 0")


class RefusedError(Exception):
    """A request that is not served: a status of HTTP and one line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


class PageServer(ThreadingHTTPServer):
    """The page and its models.

    Args:
        models: Smallest first is what the slider shows; they are sorted here.
        host: Address to bind to.
        port: Port; 0 for any that is free.
        limits: What is taken.
        log: Told of each request that failed, in one line.

    Raises:
        ValueError: If there is no model.
        OSError: If the address cannot be bound to.
    """

    daemon_threads = True

    def __init__(
        self,
        models: Sequence[ServedModel],
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        limits: Limits | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        if not models:
            raise ValueError("there is no model to serve")
        self.models = sorted(models, key=lambda model: model.bytes)
        self.limits = limits or Limits()
        self.log = log
        self.is_local = _is_loopback(host)
        self.page = files("omnisparse.deploy").joinpath("serve_page.html").read_text("utf-8")
        # One recording is recognised at a time, so that what is measured is one model's time.
        self.working = threading.Lock()
        self._sessions: dict[str, Session] = {}
        self._sessions_lock = threading.Lock()
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def open_session(self, rate: int) -> str:
        """Begin a recording; returns its name."""
        session = Session(self.models, rate, max_seconds=self.limits.max_seconds)
        name = secrets.token_urlsafe(12)
        with self._sessions_lock:
            while len(self._sessions) >= MAX_SESSIONS:
                del self._sessions[min(self._sessions, key=lambda key: self._sessions[key].used)]
            self._sessions[name] = session
        return name

    def session(self, name: str) -> Session:
        """The recording of a name.

        Raises:
            RefusedError: If there is none.
        """
        with self._sessions_lock:
            session = self._sessions.get(name)
        if session is None:
            raise RefusedError(404, "this recording is not known (any more); start a new one")
        session.used = time.monotonic()
        return session

    def close_session(self, name: str) -> None:
        """Forget a recording."""
        with self._sessions_lock:
            self._sessions.pop(name, None)


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: PageServer
    server_version = f"omnisparse/{__version__}"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = READ_TIMEOUT

    def do_GET(self) -> None:
        """The page, and what it asks about the models."""
        self._answer({"/": self._page, "/models": self._models})

    def do_POST(self) -> None:
        """Sound."""
        self._answer(
            {
                "/open": self._open,
                "/push": self._push,
                "/finish": self._finish,
                "/file": self._file,
            }
        )

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: who served the page need not read of every request."""

    def _answer(self, routes: dict[str, Callable[[dict[str, str]], None]]) -> None:
        url = urlsplit(self.path)
        try:
            self._check_origin()
            if url.path not in routes:
                raise RefusedError(404, f"there is no {url.path[:80]} here")
            given = {key: values[0] for key, values in parse_qs(url.query).items()}
            routes[url.path](given)
        except (RefusedError, DataError, ValueError) as error:
            status = error.status if isinstance(error, RefusedError) else 400
            self._refuse(status, " ".join(str(error).split()))
        except TimeoutError:
            self._refuse(408, f"nothing arrived for {READ_TIMEOUT:g} s")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # whoever asked has gone

    def _refuse(self, status: int, line: str) -> None:
        self.server.log(f"{self.command} {urlsplit(self.path).path[:80]}: {line}")
        self.close_connection = True  # what was sent with the request may not have been read
        with contextlib.suppress(OSError):  # the connection may be gone
            self._send(status, json.dumps({"error": line}).encode(), "application/json")

    def _check_origin(self) -> None:
        """Serve only this page: no other site's, and no other name for this computer."""
        host = self.headers.get("Host", "")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if self.server.is_local and name not in LOCAL_NAMES:
            raise RefusedError(403, f"this page is at {self.server.url}, not at {name[:80]!r}")
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            raise RefusedError(403, f"pages of {origin[:80]} may not use this server")

    def _body(self) -> bytes:
        limit = self.server.limits.max_bytes
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            raise RefusedError(411, "the request does not say how long it is")
        if int(length) > limit:
            # Heard out where that is not much more: a browser that is cut off tells no reason.
            if int(length) <= DISCARDED * limit:
                self._read(int(length), keep=False)
            raise RefusedError(
                413, f"an upload of {int(length):,} bytes is over the limit of {limit:,}"
            )
        return self._read(int(length), keep=True)

    def _read(self, missing: int, *, keep: bool) -> bytes:
        deadline = time.monotonic() + 3 * READ_TIMEOUT
        parts = []
        while missing:
            part = self.rfile.read1(min(missing, 1 << 16))
            if not part or time.monotonic() > deadline:
                raise RefusedError(408, "the upload stopped or took too long")
            missing -= len(part)
            if keep:
                parts.append(part)
        return b"".join(parts)

    def _send(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self._headers(kind)
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def _headers(self, kind: str, nonce: str = "") -> None:
        source = f"'nonce-{nonce}'" if nonce else "'none'"
        policy = (
            f"default-src 'none'; script-src {source}; style-src {source}; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        for name, value in (
            ("Content-Type", f"{kind}; charset=utf-8"),
            ("Content-Security-Policy", policy),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)

    def _json(self, document: Any) -> None:
        self._send(200, json.dumps(document, allow_nan=False).encode(), "application/json")

    def _page(self, given: dict[str, str]) -> None:
        nonce = secrets.token_urlsafe(12)
        data = self.server.page.replace("NONCE", nonce).encode()
        self.send_response(200)
        self._headers("text/html", nonce)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _models(self, given: dict[str, str]) -> None:
        limits = self.server.limits
        self._json(
            {
                "models": [model.to_dict() for model in self.server.models],
                "max_seconds": limits.max_seconds,
                "max_bytes": limits.max_bytes,
            }
        )

    def _open(self, given: dict[str, str]) -> None:
        self._body()
        rate = given.get("rate", "")
        if not rate.isdigit() or not 8000 <= int(rate) <= 384_000:
            raise RefusedError(400, f"rate is {rate[:20]!r}; 8000 to 384000 Hz")
        self._json({"session": self.server.open_session(int(rate))})

    def _push(self, given: dict[str, str]) -> None:
        data = self._body()
        session = self.server.session(given.get("session", ""))
        if len(data) % 4:
            raise RefusedError(400, "samples are float32, four bytes each")
        samples = np.frombuffer(data, dtype="<f4")
        with self.server.working:
            self._json({"found": session.accept(samples)})

    def _finish(self, given: dict[str, str]) -> None:
        self._body()
        name = given.get("session", "")
        session = self.server.session(name)
        self.server.close_session(name)
        with self.server.working:
            self._json({"found": session.finish()})

    def _file(self, given: dict[str, str]) -> None:
        """Recognise a file; one line of JSON after each piece."""
        samples, rate, note = read_upload(
            self._body(), self.server.limits.max_seconds, self.server.models[0].rate
        )
        session = Session(self.server.models, rate, max_seconds=self.server.limits.max_seconds)
        self.close_connection = True  # so that the answer needs no length
        self.send_response(200)
        self._headers("application/x-ndjson")
        self.send_header("Connection", "close")
        self.end_headers()
        with self.server.working:
            self._lines(samples, rate, note, session)

    def _lines(self, samples: FloatArray, rate: int, note: str, session: Session) -> None:
        step = max(1, round(PIECE_SECONDS * rate))
        self._line({"note": note, "found": []})
        try:
            for start in range(0, len(samples), step):
                self._line({"found": session.accept(samples[start : start + step])})
            self._line({"found": session.finish(), "final": True})
        except (DataError, ValueError) as error:
            self._line({"error": " ".join(str(error).split()), "found": []})

    def _line(self, document: Any) -> None:
        self.wfile.write(json.dumps(document, allow_nan=False).encode() + b"\n")
        self.wfile.flush()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
