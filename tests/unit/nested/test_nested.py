"""Nested files: every prefix is exactly the net that the supernet's own masks give."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omnisparse.artifact import write_artifact
from omnisparse.errors import FormatError, OmnisparseError
from omnisparse.nested import NestedFile, grow, grow_from, missing_range, read_nested, write_nested
from omnisparse.nested.gaps import CodedPositions, decode_positions, encode_positions
from omnisparse.nested.sources import HttpSource
from omnisparse.sparsity.masks import apply_mask, mask_from_count

KEYS = ("model", "tokenizer", "tokens_txt", "features", "prunable", "source", "buffers")


def write(path: Path, net: Any, **options: Any) -> Any:
    contents = {key: net.contents[key] for key in KEYS}
    return write_nested(path, state=net.state, **contents, **options)


@settings(max_examples=100)
@given(
    st.integers(1, 3000),
    st.sampled_from([0.0, 0.001, 0.03, 0.2, 0.5, 0.9, 1.0]),
    st.integers(0, 99),
)
def test_positions_restore(places, density, seed):
    taken = np.random.default_rng(seed).random(places) < density
    positions = np.flatnonzero(taken)
    coded = encode_positions(positions, places)
    restored = decode_positions(coded, positions.size, places)
    assert np.array_equal(restored, positions)


@pytest.mark.parametrize("density", [0.02, 0.05, 0.1, 0.2, 0.4, 0.5])
def test_positions_cost_little_more_than_their_entropy(density):
    places = 200_000
    taken = np.random.default_rng(0).random(places) < density
    coded = encode_positions(np.flatnonzero(taken), places)
    entropy = -(density * np.log2(density) + (1 - density) * np.log2(1 - density))
    assert 8 * (coded.low.size + coded.unary.size) / places < 1.05 * entropy


def test_false_positions_are_refused():
    coded = encode_positions(np.array([3, 70, 71, 600]), 1000)
    assert coded.low_bits > 0
    for changed, count, places in (
        (coded, 3, 1000),
        (coded, 4, 600),
        (coded._replace(low=coded.low[:-1]), 4, 1000),
        (coded._replace(unary=np.append(coded.unary, np.uint8(0))), 4, 1000),
        (CodedPositions(0, coded.low, coded.unary), 4, 4),
    ):
        with pytest.raises(FormatError):
            decode_positions(changed, count, places)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_any_size_is_the_supernets_own(tmp_path, net_with, precision):
    net = net_with(sparsity=0.0)
    write(tmp_path / "net.omni", net, precision=precision)
    nested = NestedFile(tmp_path / "net.omni")
    low, high = nested.budget.nonzero_range()
    dense = nested.read(high).state
    limit = {"fp32": 0.0, "fp16": 2**-11, "bf16": 2**-8, "int8": 1 / 127}[precision]
    for name, tensor in net.state.items():
        assert (dense[name] - tensor).abs().max() <= limit * tensor.abs().max(), name
    sizes = {low, low + 1, high // 3, high // 2, high - 1, high}
    for size in sorted(sizes | {band.nonzero for band in nested.bands}):
        counts = nested.budget.allocate_uniform(nested.budget.solve(size))
        state = nested.read(size).state
        assert list(state) == list(net.state)
        for name, tensor in state.items():
            expected = dense[name]
            if name in counts:
                expected = apply_mask(expected, mask_from_count(expected, counts[name]))
            assert torch.equal(tensor, expected), (size, name)


def test_a_fp32_file_equals_direct_extraction_into_an_artifact(tmp_path, net_with):
    net = net_with(sparsity=0.0)
    write(tmp_path / "net.omni", net)
    artifact = read_nested(tmp_path / "net.omni", "40%")
    budget = NestedFile(tmp_path / "net.omni").budget
    counts = budget.allocate_uniform(budget.solve("40%"))
    direct = {
        name: apply_mask(tensor, mask_from_count(tensor, counts[name]))
        if name in counts
        else tensor
        for name, tensor in net.state.items()
    }
    one = write_artifact(tmp_path / "one", state=direct, **net.contents)
    two = write_artifact(tmp_path / "two", state=artifact.state, **net.contents)
    assert one.nonzero == two.nonzero == round(0.4 * budget.dense_parameters)
    weights = "model.safetensors"
    assert (tmp_path / "one" / weights).read_bytes() == (tmp_path / "two" / weights).read_bytes()
    assert artifact.tokenizer == net.contents["tokenizer"]
    assert artifact.tokens_txt == net.contents["tokens_txt"]
    assert artifact.features == net.contents["features"]
    assert artifact.config["dense_parameters"] == net.contents["dense_parameters"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_the_whole_file_costs_at_most_8_percent(tmp_path, precision):
    state = {"lstm.weight_hh_l0": torch.randn(700, 512), "b": torch.zeros(9)}
    contents = {"model": {}, "tokenizer": b"", "tokens_txt": "", "features": {}, "source": {}}
    contents["prunable"] = ["lstm.weight_hh_l0"]
    info = write_nested(tmp_path / "n", state=state, precision=precision, **contents)
    dense = write_artifact(
        tmp_path / "d",
        state=state,
        precision=precision,
        format="dense",
        dense_parameters=info.parameters,
        **contents,
    )
    assert info.bytes <= 1.08 * dense.bytes
    assert [band.prefix_bytes for band in info.bands][-1] == info.bytes


def test_a_prefix_serves_its_sizes_and_grows(tmp_path, net_with):
    net = net_with(sparsity=0.0)
    info = write(tmp_path / "net.omni", net)
    whole = (tmp_path / "net.omni").read_bytes()
    small, middle = info.bands[1], info.bands[3]
    part = tmp_path / "part.omni"
    part.write_bytes(whole[: small.prefix_bytes])
    expected = read_nested(tmp_path / "net.omni", small.nonzero).state
    state = read_nested(part, small.nonzero).state
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    with pytest.raises(FormatError, match="grow it"):
        read_nested(part, small.nonzero + 1)

    start, stop = missing_range(part, middle.nonzero)
    assert (start, stop) == (small.prefix_bytes, middle.prefix_bytes)
    for wrong in (whole[start : stop - 1], whole[start - 1 : stop - 1], b"x" * (stop - start)):
        with pytest.raises(FormatError):
            grow(part, wrong)
        assert part.read_bytes() == whole[:start]
    # An unfinished download does no harm and is replaced.
    part.write_bytes(whole[: start + 5])
    assert missing_range(part, middle.nonzero) == (start, stop)
    assert grow(part, whole[start:stop]) == stop
    assert part.read_bytes() == whole[:stop]
    (tmp_path / "rest").write_bytes(whole[stop:])
    grow(part, tmp_path / "rest")
    assert part.read_bytes() == whole
    assert missing_range(part, "100%") == (len(whole), len(whole))


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """A real server on this machine; the list collects the byte ranges it sent."""
    sent: list[tuple[int, int]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = (folder / self.path.strip("/")).read_bytes()
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            if int(first) >= len(data):
                self.send_error(416)
                return
            stop = min(int(last) + 1, len(data))
            body = data[int(first) : stop]
            self.send_response(206)
            sent.append((int(first), stop))
            self.send_header("Content-Range", f"bytes {first}-{stop - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

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


def test_a_server_sends_no_byte_that_is_not_needed(tmp_path, net_with):
    net = net_with(sparsity=0.0)
    info = write(tmp_path / "net.omni", net)
    band = info.bands[2]
    with serving(tmp_path) as (url, sent):
        state = read_nested(f"{url}/net.omni", band.nonzero).state
        assert sum(stop - start for start, stop in sent) == band.prefix_bytes
        assert max(stop for _, stop in sent) == band.prefix_bytes
        expected = read_nested(tmp_path / "net.omni", band.nonzero).state
        assert all(torch.equal(state[name], expected[name]) for name in expected)

        sent.clear()
        part = tmp_path / "part.omni"
        assert grow_from(part, f"{url}/net.omni", info.bands[0].nonzero)
        assert part.stat().st_size == info.bands[0].prefix_bytes
        sent.clear()
        grow_from(part, f"{url}/net.omni", band.nonzero)
        assert (info.bands[0].prefix_bytes, band.prefix_bytes) in sent
        grow_from(part, f"{url}/net.omni", "100%")
    assert part.read_bytes() == (tmp_path / "net.omni").read_bytes()


def test_servers_that_fail_are_named(tmp_path, net):
    (tmp_path / "short").write_bytes(b"OMNI")
    with serving(tmp_path) as (url, _), pytest.raises(FormatError, match="ends"):
        NestedFile(f"{url}/short")
    with pytest.raises(OmnisparseError, match="cannot be read"):
        NestedFile(f"{url}/short")
    with pytest.raises(ValueError, match="http"):
        HttpSource("file:///short")


def test_a_file_of_another_net_is_not_grown_from(tmp_path, net_with):
    one = write(tmp_path / "one.omni", net_with(sparsity=0.0))
    write(tmp_path / "two.omni", net_with(sparsity=0.0, seed=1))
    part = tmp_path / "part.omni"
    part.write_bytes((tmp_path / "one.omni").read_bytes()[: one.bands[0].prefix_bytes])
    with pytest.raises(FormatError, match="not a prefix"):
        grow_from(part, tmp_path / "two.omni", "100%")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"densities": []}, "densities"),
        ({"densities": [0.001]}, "densities"),
        ({"densities": [0.5, 0.2]}, "rise"),
        ({"precision": "fp8"}, "precision"),
        ({"floor": 2.0}, "floor"),
    ],
)
def test_illegal_arguments_leave_nothing(tmp_path, net, options, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "net.omni", net, **options)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_version_is_refused_by_name(tmp_path, net):
    write(tmp_path / "net.omni", net)
    data = bytearray((tmp_path / "net.omni").read_bytes())
    data[8] = 9
    (tmp_path / "net.omni").write_bytes(data)
    with pytest.raises(FormatError, match="version 9 is not known"):
        NestedFile(tmp_path / "net.omni")


def test_only_a_nested_file_is_replaced(net, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    for place in (notes, tmp_path):
        with pytest.raises(OmnisparseError, match="exists and is not a nested file"):
            write(place, net)
    with pytest.raises(FormatError):
        grow_from(notes, write(tmp_path / "n", net).path, "50%")
    assert notes.read_text() == "mine"
    before = (tmp_path / "n").stat().st_size
    write(tmp_path / "n", net, precision="int8")
    assert (tmp_path / "n").stat().st_size < before
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "n"}
