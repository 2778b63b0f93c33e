"""Nested files behind Python's own web server, which knows nothing of ranges, and behind others."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from omnisparse.errors import FormatError, OmnisparseError
from omnisparse.nested import (
    NestedFile,
    grow_from,
    inspect_header,
    inspect_nested,
    read_nested,
    write_nested,
    write_prefix,
)
from omnisparse.nested.sources import HttpSource

KEYS = ("model", "tokenizer", "tokens_txt", "features", "prunable", "source", "buffers")


@contextmanager
def python_server(folder: Path, handler: type | None = None) -> Iterator[tuple[str, list[int]]]:
    """What ``python -m http.server`` runs; the list collects the bytes of each answer."""
    sent: list[int] = []

    class Handler(handler or http.server.SimpleHTTPRequestHandler):  # type: ignore[misc]
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def copyfile(self, source: Any, outputfile: Any) -> None:
            sent.append(0)
            while piece := source.read(1 << 16):
                try:
                    outputfile.write(piece)
                except OSError:
                    return  # the reader has gone
                sent[-1] += len(piece)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", sent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _WithoutLength(http.server.SimpleHTTPRequestHandler):
    def send_header(self, keyword: str, value: str) -> None:
        if keyword != "Content-Length":
            super().send_header(keyword, value)


class _Breaking(http.server.SimpleHTTPRequestHandler):
    def send_header(self, keyword: str, value: str) -> None:
        more = 1000 if keyword == "Content-Length" else 0
        super().send_header(keyword, str(int(value) + more) if more else value)


@pytest.fixture
def whole(net_with: Callable[..., Any], tmp_path: Path) -> Path:
    net = net_with(sparsity=0.0)
    path = tmp_path / "net.omni"
    write_nested(path, state=net.state, **{key: net.contents[key] for key in KEYS})
    return path


def test_a_plain_server_gives_every_size(whole: Path) -> None:
    band = NestedFile(whole).bands[2]
    expected = read_nested(whole, band.nonzero).state
    with python_server(whole.parent) as (url, sent):
        nested = NestedFile(f"{url}/net.omni")
        assert nested.source.size_bytes == whole.stat().st_size
        state = nested.read(band.nonzero).state
        nested.close()
        assert len(sent) == 1  # one answer served the header and the net
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_plain_download_is_cut_off(tmp_path: Path) -> None:
    total = 64 << 20
    with (tmp_path / "large").open("wb") as file:
        file.truncate(total)
        file.seek(0)
        file.write(b"begin")
    with python_server(tmp_path) as (url, sent):
        source = HttpSource(f"{url}/large")
        assert not source.has_ranges
        assert bytes(source.read(0, 5)) == b"begin"
        assert bytes(source.read(3, 70_000))[:4] == b"in\0\0"
        assert bytes(source.read(0, 2)) == b"be"
        source.close()
    # What the system's buffers took on the way is all that was sent beyond the 70,000.
    assert len(sent) == 1
    assert sent[0] < total / 2


def test_prefixes_from_a_plain_server(whole: Path, tmp_path: Path) -> None:
    data, part, grown = whole.read_bytes(), tmp_path / "part.omni", tmp_path / "grown.omni"
    small, middle = NestedFile(whole).bands[1], NestedFile(whole).bands[3]
    with python_server(tmp_path) as (url, _):
        assert write_prefix(part, NestedFile(f"{url}/net.omni"), small.nonzero) == small[1]
        assert part.read_bytes() == data[: small.prefix_bytes]
        grow_from(part, f"{url}/net.omni", middle.nonzero)
        assert part.read_bytes() == data[: middle.prefix_bytes]
        grow_from(grown, f"{url}/net.omni", "100%")
    assert grown.read_bytes() == data


def test_a_prefix_by_its_bytes(whole: Path, tmp_path: Path) -> None:
    nested, part = NestedFile(whole), tmp_path / "part.omni"
    bands = nested.bands
    for limit, band in (
        (bands[0].prefix_bytes, bands[0]),
        (bands[2].prefix_bytes - 1, bands[1]),
        (bands[2].prefix_bytes, bands[2]),
        (10**9, bands[-1]),
    ):
        assert write_prefix(part, nested, f"{limit}B") == band.prefix_bytes == part.stat().st_size
        assert [one["present"] for one in inspect_nested(part)["bands"]].count(True) == (
            bands.index(band) + 1
        )
        assert nested.read(f"{limit}B").state.keys() == nested.read(band.nonzero).state.keys()
    with pytest.raises(ValueError, match=rf"too small for any model .* legal: from {bands[0][1]}B"):
        write_prefix(part, nested, f"{bands[0].prefix_bytes - 1}B")
    with pytest.raises(ValueError, match="out of range"):
        write_prefix(part, nested, "1")


def test_a_prefix_is_checked_and_replaces_nested_files_only(whole: Path, tmp_path: Path) -> None:
    notes, part = tmp_path / "notes.txt", tmp_path / "part.omni"
    notes.write_text("mine")
    with pytest.raises(OmnisparseError, match="exists and is not a nested file"):
        write_prefix(notes, NestedFile(whole), "100%")
    assert notes.read_text() == "mine"
    data = bytearray(whole.read_bytes())
    data[NestedFile(whole).stops[1] - 3] ^= 1
    damaged = tmp_path / "damaged.omni"
    damaged.write_bytes(data)
    with pytest.raises(FormatError, match="checksum does not match"):
        write_prefix(part, NestedFile(damaged), "50%")
    small = NestedFile(whole).bands[0]
    write_prefix(part, NestedFile(whole), small.nonzero)
    with pytest.raises(FormatError, match="grow it"):
        write_prefix(tmp_path / "more.omni", NestedFile(part), "100%")
    assert {path.name for path in tmp_path.iterdir()} == {
        "net.omni", "notes.txt", "damaged.omni", "part.omni",
    }  # fmt: skip


def test_the_header_tells_the_sizes(whole: Path, tmp_path: Path) -> None:
    local = inspect_nested(whole)
    with python_server(tmp_path) as (url, _):
        remote = inspect_header(f"{url}/net.omni")
    assert remote["has_ranges"] is False
    for key in ("kind", "model_kind", "precision", "parameters", "nonzero", "bytes"):
        assert remote[key] == local[key], key
    assert [band["bytes"] for band in remote["bands"]] == [b["bytes"] for b in local["bands"]]
    assert [layer["shape"] for layer in remote["layers"]] == [
        layer["shape"] for layer in local["layers"]
    ]


def test_the_largest_model_that_is_there(whole: Path, tmp_path: Path) -> None:
    part = tmp_path / "part.omni"
    band = NestedFile(whole).bands[1]
    part.write_bytes(whole.read_bytes()[: band.prefix_bytes + 7])
    found, expected = read_nested(part).state, read_nested(whole, band.nonzero).state
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    part.write_bytes(whole.read_bytes()[: NestedFile(whole).bands[0].prefix_bytes - 1])
    with pytest.raises(FormatError, match="grow it"):
        read_nested(part)


def test_servers_that_cannot_serve_are_named(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"OMNI")
    with python_server(tmp_path) as (url, _):
        with pytest.raises(FormatError, match="ends at byte 4, 48 are needed"):
            NestedFile(f"{url}/short")
        with pytest.raises(OmnisparseError, match="the server answered 404"):
            NestedFile(f"{url}/none")
    with (
        python_server(tmp_path, _WithoutLength) as (url, _),
        pytest.raises(
            OmnisparseError, match="supports no range requests and does not state the size"
        ),
    ):
        NestedFile(f"{url}/net.omni")
    size = whole.stat().st_size
    with (
        python_server(tmp_path, _Breaking) as (url, _),
        pytest.raises(OmnisparseError, match=rf"stopped at byte {size} of {size + 1000}"),
    ):
        HttpSource(f"{url}/net.omni").read(0, size + 1)
