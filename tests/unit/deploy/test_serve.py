"""The local page: side by side in a real browser, bounded, escaped, and deaf to other sites."""

from __future__ import annotations

import http.client
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from headless_chromium import chromium_page, find_chromium
from small_exports import make_source, recognizer

from omnisparse.deploy import serve as serving
from omnisparse.deploy.recognizer import Recognizer
from omnisparse.deploy.serve import Limits, PageServer
from omnisparse.deploy.serve_session import ServedModel, read_upload
from omnisparse.errors import DataError

RATE = 16000


def served(name: str, given: Recognizer, *, size: int) -> ServedModel:
    parameters = sum(p.numel() for p in given.model.parameters())
    nonzero = sum(int(p.count_nonzero()) for p in given.model.parameters())
    return ServedModel(
        name=name, recognizer=given, bytes=size, nonzero=nonzero, parameters=parameters,
        streams=given.model.kind == "transducer",
    )  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[ServedModel]:
    """Large first: the server sorts them."""
    folder = tmp_path_factory.mktemp("tokenizer")
    return [
        served("large", recognizer(make_source("stateless", folder, sparsity=0.5)), size=900_000),
        served("small", recognizer(make_source("stateless", folder, sparsity=0.8)), size=200_000),
        served("las", recognizer(make_source("las", folder)), size=500_000),
    ]


@contextmanager
def running(models: list[ServedModel], **options: Any) -> Iterator[PageServer]:
    with PageServer(models, port=0, **options) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server(models: list[ServedModel]) -> Iterator[PageServer]:
    with running(models, limits=Limits(max_bytes=400_000, max_seconds=6.0)) as started:
        yield started


def ask(
    server: PageServer, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, dict[str, str], list[Any]]:
    """Status, headers and the lines of JSON of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    is_json = "json" in answer.headers["Content-Type"]
    lines = [json.loads(line) for line in text.splitlines()] if is_json else [text]
    return answer.status, dict(answer.headers), lines


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


@pytest.fixture(scope="module")
def recording(speech: Path) -> Path:
    lines = (speech / "test.jsonl").read_text().splitlines()
    return speech / min(map(json.loads, lines), key=lambda item: item["duration"])["audio_filepath"]


def test_a_file_is_recognised_by_all(
    server: PageServer, models: list[ServedModel], recording: Path
) -> None:
    status, _, (known,) = ask(server, "GET", "/models")
    assert status == 200
    assert [model["name"] for model in known["models"]] == ["small", "las", "large"]
    status, _, lines = ask(server, "POST", "/file", recording.read_bytes())
    assert status == 200
    assert lines[0]["note"] == ""
    assert lines[-1]["final"]
    by_name = {model.name: model for model in models}
    for hit, name in zip(lines[-1]["found"], ("small", "las", "large"), strict=True):
        assert hit["text"] == by_name[name].recognizer.transcribe(recording).text
        assert 0 < hit["latency"] <= hit["seconds"]
    partial = lines[len(lines) // 2]["found"]
    assert partial[1]["text"] == ""  # a LAS wants the end
    assert lines[-1]["found"][2]["text"].startswith(partial[2]["text"])


def test_pieces_of_sound(server: PageServer, models: list[ServedModel], recording: Path) -> None:
    samples, _ = soundfile.read(recording, dtype="float32")
    _, _, (opened,) = ask(server, "POST", f"/open?rate={RATE}")
    name = opened["session"]
    for start in range(0, len(samples), 5000):
        status, _, (answer,) = ask(
            server, "POST", f"/push?session={name}", samples[start : start + 5000].tobytes()
        )
        assert status == 200
    status, _, (answer,) = ask(server, "POST", f"/finish?session={name}")
    assert answer["found"][2]["text"] == models[0].recognizer.transcribe(recording).text
    status, _, (answer,) = ask(server, "POST", f"/finish?session={name}")
    assert (status, answer) == (
        404, {"error": "this recording is not known (any more); start a new one"}
    )  # fmt: skip


def test_what_is_wrong_is_one_line(server: PageServer) -> None:
    port = server.server_address[1]
    tone = (0.1 * np.sin(np.arange(RATE) / 9)).astype(np.float32)
    for method, path, body, headers, status, line in (
        ("POST", "/file", bytes(400_001), {}, 413,
         "an upload of 400,001 bytes is over the limit of 400,000"),
        ("POST", "/file", wav(tone[:0]), {}, 400, "the file holds no audio (zero samples)"),
        ("POST", "/file", b"RIFF this is no sound", {}, 400,
         "the file cannot be read as audio (WAV, FLAC, OGG and MP3 can)"),
        ("POST", "/file", b"", {}, 400,
         "the file cannot be read as audio (WAV, FLAC, OGG and MP3 can)"),
        ("POST", "/file", wav(np.tile(tone, 7)), {}, 400,
         "a recording may last 6 s, and this one is longer"),
        ("POST", "/open?rate=7", b"", {}, 400, "rate is '7'; 8000 to 384000 Hz"),
        ("POST", "/push?session=none", b"", {}, 404,
         "this recording is not known (any more); start a new one"),
        ("GET", "/etc/passwd", b"", {}, 404, "there is no /etc/passwd here"),
        ("GET", "/../serve.py", b"", {}, 404, "there is no /../serve.py here"),
        ("GET", "/", b"", {"Host": "evil.example"}, 403,
         f"this page is at http://127.0.0.1:{port}/, not at 'evil.example'"),
        ("POST", "/file", b"", {"Origin": "http://evil.example"}, 403,
         "pages of http://evil.example may not use this server"),
    ):  # fmt: skip
        found, _, (answer,) = ask(server, method, path, body, **headers)
        assert (found, answer) == (status, {"error": line})
    _, _, (opened,) = ask(server, "POST", "/open?rate=16000")
    for body, line in (
        (b"123", "samples are float32, four bytes each"),
        (np.array([np.nan], np.float32).tobytes(), "the samples are not finite"),
        (np.zeros(96_001, np.float32).tobytes(), "a recording may last 6 s"),
    ):
        status, _, (answer,) = ask(server, "POST", f"/push?session={opened['session']}", body)
        assert status == 400
        assert line in answer["error"]
    status, _, (answer,) = ask(server, "POST", f"/finish?session={opened['session']}")
    assert answer == {"error": "the recording holds no sound (zero samples)"}


def test_other_rates_and_channels_are_said_once(server: PageServer) -> None:
    tone = 0.1 * np.sin(np.arange(44_100) / 9)
    status, _, lines = ask(server, "POST", "/file", wav(np.stack([tone, tone], axis=1), 44_100))
    assert status == 200
    notes = [line["note"] for line in lines if "note" in line]
    assert notes == ["2 channels mixed into one, 44,100 Hz resampled to 16,000 Hz"]
    samples, rate, note = read_upload(wav(tone[:16_000]), 6.0, RATE)
    assert (len(samples), rate, note) == (16_000, RATE, "")
    with pytest.raises(DataError, match="may last 0.5 s"):
        read_upload(wav(tone[:16_000]), 0.5, RATE)


def test_old_recordings_make_room(server: PageServer) -> None:
    names = [
        ask(server, "POST", "/open?rate=16000")[2][0]["session"]
        for _ in range(serving.MAX_SESSIONS + 1)
    ]
    answers = [ask(server, "POST", f"/push?session={name}")[0] for name in names]
    assert answers == [404] + [200] * serving.MAX_SESSIONS


def test_a_client_that_sends_nothing_is_let_go(
    models: list[ServedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving._Handler, "timeout", 0.2)
    with running(models) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
        connection.putrequest("POST", "/file")
        connection.putheader("Content-Length", "1000")
        connection.endheaders()
        assert connection.getresponse().status == 408
        connection.close()


def test_the_page_allows_nothing_from_elsewhere(server: PageServer) -> None:
    _, headers, (text,) = ask(server, "GET", "/")
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert "NONCE" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert ".innerHTML" not in text
    assert ask(server, "GET", "/")[2][0] != text  # a nonce is used once


def test_where_it_listens(models: list[ServedModel]) -> None:
    with pytest.raises(ValueError, match="no model"):
        PageServer([], port=0)
    with running(models) as server:
        assert server.is_local
        with pytest.raises(OSError, match="in use"):
            PageServer(models, port=server.server_address[1])
    with running(models, host="0.0.0.0") as server:
        assert not server.is_local  # whoever can reach it gave it a name of their own
        assert ask(server, "GET", "/models", Host="my-laptop:80")[0] == 200


class ScriptTokens:
    """Tokens of a model that writes HTML."""

    SAYS = "<script>document.title='broken'</script><img src=x onerror=document.title='broken'>"

    def decode(self, ids: list[int]) -> str:
        return self.SAYS if ids else ""


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed")
def test_in_a_browser(models: list[ServedModel], recording: Path, tmp_path: Path) -> None:
    large, small, _ = models
    parts: Any = (small.recognizer.model, ScriptTokens(), small.recognizer.extractor)
    hostile = served("hostile", Recognizer(*parts), size=300_000)
    limits = Limits(max_bytes=400_000)
    with (
        running([large, hostile], limits=limits) as server,
        chromium_page(recording, tmp_path / "profile") as page,
    ):
        page.open(server.url)
        page.wait_for("document.querySelectorAll('#rows tr').length == 2")
        title = page.run("document.title")
        status = "document.getElementById('status').textContent"
        texts = "[...document.querySelectorAll('#rows tr')].map(row => row.lastChild.textContent)"

        # A file: both sizes side by side, and what a model says stays text.
        page.choose_file("#file", recording)
        page.wait_for(f"{status}.includes('done')")
        said = large.recognizer.transcribe(recording, streaming=True).text
        assert page.run(texts) == [ScriptTokens.SAYS, said]
        page.run("slider.value = 0; slider.oninput()")
        assert page.run("chosen.textContent") == ScriptTokens.SAYS
        assert page.run("document.querySelectorAll('script').length") == 1
        assert page.run("document.images.length") == 0
        assert page.run("document.title") == title
        cells = "[...document.querySelectorAll('#rows tr')].map(row => row.innerText)"
        assert all(" ms" in row and "kB" in row for row in page.run(cells))

        # The slider chooses.
        page.run("slider.value = 1; slider.oninput()")
        assert page.run("chosen.textContent") == said
        assert "large, 900.00 kB" in page.run("label.textContent")

        # The microphone: the wav again and again, words while it speaks.
        page.run("record.click()")
        page.wait_for(f"{status}.includes('Listening')")
        page.wait_for(f"{texts}[1].length > 0")
        assert page.run("record.textContent") == "Stop"
        page.run("record.click()")
        page.wait_for(f"{status}.includes('Done')")
        assert all(page.run(texts))

        # Over the limit: the page says so, and the server where the page does not.
        big = tmp_path / "big.wav"
        big.write_bytes(bytes(400_001))
        page.choose_file("#file", big)
        page.wait_for(f"{status}.includes('over the limit of 400.00 kB')")
        page.run("limits.max_bytes = 1e9")
        bigger = tmp_path / "bigger.wav"
        bigger.write_bytes(bytes(400_002))
        page.choose_file("#file", bigger)
        page.wait_for(f"{status}.includes('400,002 bytes is over the limit of 400,000')")

        assert page.requests
        assert all(url.startswith((server.url, "data:", "blob:")) for url in page.requests)
