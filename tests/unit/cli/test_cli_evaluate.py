"""What people are told of a model's errors, at every verb that counts them.

The net is a LAS whose decoder is replaced: it knows what each length of audio says.
"""

from __future__ import annotations

import faulthandler
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from omnisparse.data.features import FeatureExtractor
from omnisparse.data.tokenizer import UNKNOWN_TEXT, Tokenizer
from omnisparse.deploy.las import Las
from omnisparse.deploy.tokens import FoundToken
from omnisparse.models.las import LasModel
from omnisparse.runs.directory import load_model
from omnisparse.training.checkpoint import save_checkpoint

RATE = 16000
EXTRACTOR = FeatureExtractor(num_bins=8, stack=3)
VOCABULARY = 40


@dataclass
class World:
    """A run, what its net hears, and a place for manifests."""

    folder: Path
    run: Path
    tokenizer: Tokenizer
    heard: dict[int, str] = field(default_factory=dict)
    """Text by stacked frames."""
    decoded: list[int] = field(default_factory=list)
    """Rows of the batches that were decoded."""

    def manifest(self, said: Sequence[str], heard: Sequence[str] | None = None) -> Path:
        """Writes utterances of different lengths, each heard as asked."""
        lines = []
        generator = np.random.default_rng(0)
        for index, text in enumerate(said):
            samples = 0.1 * generator.standard_normal(480 * (10 + len(self.heard)))
            soundfile.write(self.folder / f"u{len(self.heard)}.wav", samples, RATE)
            lines.append(
                {
                    "id": f"u{index}",
                    "audio_filepath": f"u{len(self.heard)}.wav",
                    "duration": len(samples) / RATE,
                    "text": text,
                    "speaker": f"speaker{index % 2}",
                }
            )
            self.heard[10 + len(self.heard)] = text if heard is None else heard[index]
        path = self.folder / f"test{len(self.heard)}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return path

    def learn(self, texts: Sequence[str]) -> None:
        """Gives the run another tokenizer, as large as the net wants it."""
        filler = [chr(0x4E00 + n) for n in range(VOCABULARY)]
        used = set("".join(texts)) | {" "}
        extra = [c for c in filler if c not in used][: max(0, VOCABULARY - 3 - len(used))]
        self.tokenizer = Tokenizer.train([*texts, "".join(extra)], VOCABULARY, self.run)

    def describe(self, **changes: Any) -> None:
        """Changes what the run says of itself."""
        path = self.run / "model.json"
        document: Mapping[str, Any] = json.loads(path.read_text())
        path.write_text(json.dumps({**document, **changes}))


@pytest.fixture
def world(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    model = load_model_weights(run)
    shutil.rmtree(run / "checkpoints")
    record = {"record": {"row": "base", "seed": 0}}
    save_checkpoint(run / "checkpoints", step=7, tensors={"model": model}, state=record)
    made = World(tmp_path, run, Tokenizer.train(["abc abd"], 8, run))
    made.describe(features=EXTRACTOR.to_dict())

    def decode(
        self: LasModel, features: torch.Tensor, lengths: torch.Tensor, *, beam: int = 1
    ) -> list[list[int]]:
        made.decoded.append(len(lengths))
        return [made.tokenizer.encode(made.heard.get(int(n), "piece")) for n in lengths]

    def recognise(self: Las, features: np.ndarray, *, beam: int) -> list[FoundToken]:
        ids = made.tokenizer.encode(made.heard.get(len(features), "piece"))
        return [FoundToken(id_, 0.0, -0.1) for id_ in ids]

    monkeypatch.setattr(LasModel, "decode", decode)
    monkeypatch.setattr(Las, "recognise", recognise)
    return made


def load_model_weights(run: Path) -> dict[str, torch.Tensor]:
    from omnisparse.training.checkpoint import load_newest

    checkpoint = load_newest(run / "checkpoints")
    assert checkpoint is not None
    return dict(checkpoint.tensors["model"])


RunJson = Callable[..., dict[str, Any]]
Run = Callable[..., Any]


def test_a_perfect_model_is_perfect_whatever_the_texts_hold(
    world: World, run_json: RunJson
) -> None:
    texts = ["a tag <unk> b", "<blk>", "x <sos/eos>", "under\u2581score", "na\u00efve plan"]
    world.learn(texts)
    result = run_json("evaluate", world.run, "--manifest", world.manifest(texts))
    assert (result["wer"], result["cer"], result["utterances"]) == (0.0, 0.0, 5)
    assert not [line for line in result["warnings"] if "never seen" in line]


def test_an_unknown_letter_is_one_error_and_is_told(world: World, run_json: RunJson) -> None:
    world.learn(["naive plan", "never told"])
    manifest = world.manifest(["na\u00efve plan", "naive plan"])
    result = run_json("evaluate", world.run, "--manifest", manifest)
    assert (result["wer"], result["words"], result["substitutions"]) == (25.0, 4, 1)
    assert result["confusions"] == [
        {"reference": "na\u00efve", "hypothesis": f"na{UNKNOWN_TEXT}ve", "count": 1}
    ]
    (line,) = [line for line in result["warnings"] if "never seen" in line]
    assert "1 of 4 words (25.0 %" in line
    assert "\u00ef (U+00EF)" in line


def test_one_utterance_has_no_interval_and_no_p(world: World, run: Run, run_json: RunJson) -> None:
    world.learn(["all is well"])
    manifest = world.manifest(["all is well"], ["all is"])
    result = run_json("evaluate", world.run, "--manifest", manifest, "--against", world.run)
    for key in ("wer_low", "wer_high", "cer_low", "cer_high", "interval"):
        assert result[key] is None
    assert result["against"]["p_value"] is None
    assert result["against"]["low"] is None
    shown = run("evaluate", world.run, "--manifest", manifest, "--against", world.run).stderr
    assert "WER 33.33 % (no interval), 3 words in 1 utterances" in shown
    assert "(95 % interval -), no p" in shown
    assert "1 utterance with words: no interval and no p-value can be given" in shown


def test_few_utterances_without_errors_are_not_certain(world: World, run_json: RunJson) -> None:
    world.learn(["well"])
    result = run_json("evaluate", world.run, "--manifest", world.manifest(["well"] * 4))
    assert (result["wer"], result["wer_low"], result["interval"]) == (0.0, 0.0, "wilson")
    assert result["wer_high"] == pytest.approx(100 * 3.8415 / 7.8415, abs=0.01)
    assert "4 utterances are few (below 20)" in " ".join(result["warnings"])


def test_a_language_without_spaces_has_its_characters_counted(
    world: World, run: Run, run_json: RunJson, tmp_path: Path
) -> None:
    said = ["打开灯", "关灯", "天气怎么样", "打开门"]
    heard = ["打开灯", "开灯", "天气怎样", "打开门"]
    world.learn(said)
    manifest = world.manifest(said, heard)
    result = run_json("evaluate", world.run, "--manifest", manifest)
    assert (result["wer"], result["words"]) == (50.0, 4)
    assert (result["cer"], result["characters"]) == (pytest.approx(100 * 2 / 13), 13)
    note = "use the character error rate (CER)"
    assert note in " ".join(result["warnings"])

    compared = run_json("compare", world.run, "--manifest", manifest, "--out", tmp_path / "c")
    (cell,) = compared["rows"]
    assert (cell["wer"], cell["cer"]) == (50.0, pytest.approx(100 * 2 / 13))
    assert cell["cer_low"] < cell["cer"] < cell["cer_high"]
    assert "CER in %" in (tmp_path / "c" / "compare.md").read_text()
    shown = run("compare", world.run, "--manifest", manifest, "--out", tmp_path / "c").stderr
    assert note in shown
    assert "4 utterances are few" in shown

    options = ["--run", world.run, "--sizes", "60%", "--manifest", manifest, "--evaluations", "6"]
    searched = run("search", *options, "--out", tmp_path / "s", "--json")
    assert searched.exit_code == 0, searched.stderr
    (entry,) = json.loads(searched.stdout)["front"]
    assert (entry["wer"], entry["cer"]) == (50.0, pytest.approx(100 * 2 / 13))
    assert note in searched.stderr
    assert "4 utterances are few" in searched.stderr


def test_every_utterance_is_written_worst_first(
    world: World, run: Run, run_json: RunJson, tmp_path: Path
) -> None:
    said = ["one two three", "four five", ""]
    world.learn([*said, "six"])
    manifest = world.manifest(said, ["one two three", "five six", "one"])
    path = tmp_path / "out" / "all.jsonl"
    result = run_json("evaluate", world.run, "--manifest", manifest, "--transcripts", path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["id"], line["speaker"]) for line in lines] == [
        ("u1", "speaker1"), ("u2", "speaker0"), ("u0", "speaker0"),
    ]  # fmt: skip
    assert result["transcripts"] == str(path)
    assert sum(one["count"] for one in result["confusions"]) == 3
    assert [group["name"] for group in result["by_speaker"]] == ["speaker1", "speaker0"]
    assert [group["utterances"] for group in result["by_length"]] == [3]
    shown = run("evaluate", world.run, "--manifest", manifest, "--transcripts", path).stderr
    assert "Most frequent errors" in shown
    assert "By speaker" in shown
    assert f"every utterance, worst first: {path}" in shown


def test_what_is_left_out_is_counted_by_reason(world: World, run: Run, run_json: RunJson) -> None:
    world.learn(["abc"])
    manifest = world.manifest(["abc"] * 60)
    lines = manifest.read_text().splitlines()
    missing = json.dumps({**json.loads(lines[0]), "id": "gone", "audio_filepath": "gone.wav"})
    late = json.dumps({**json.loads(lines[0]), "id": "late", "offset": 500.0})
    manifest.write_text("\n".join([*lines, missing, late]) + "\n")
    result = run_json("evaluate", world.run, "--manifest", manifest)
    assert (result["utterances"], result["skipped"]) == (60, 2)
    assert sum(result["left_out"].values()) == 2
    assert result["left_out"]["missing"] == 1
    (line,) = [line for line in result["warnings"] if "left out" in line]
    assert "2 of 62 utterances are bad" in line
    assert all(f"{count}" in line and reason in line
               for reason, count in result["left_out"].items())  # fmt: skip


def test_a_transcript_file_of_another_kind_is_bad_usage(
    world: World, run: Run, tmp_path: Path
) -> None:
    manifest = world.manifest(["abc"])
    path = tmp_path / "all.csv"
    result = run("evaluate", world.run, "--manifest", manifest, "--transcripts", path)
    assert result.exit_code == 2
    assert ".txt file (for people) or a .jsonl file (for programs)" in result.stderr
    assert world.decoded == []
    assert not path.exists()


def long_recording(path: Path, sentences: int) -> float:
    """Noise of 1.5 s and silence of 1 s in turn."""
    generator = np.random.default_rng(0)
    parts = [
        part
        for _ in range(sentences)
        for part in (0.1 * generator.standard_normal(24000), np.zeros(16000))
    ]
    soundfile.write(path, np.concatenate(parts), RATE)
    return 2.5 * sentences


@pytest.mark.parametrize("seconds", [30, 120, 600])
def test_long_recordings_are_cut_at_pauses(
    world: World, run: Run, run_json: RunJson, tmp_path: Path, seconds: int
) -> None:
    world.learn(["piece"])
    sentences = round(seconds / 2.5)
    wav = tmp_path / "long.wav"
    long_recording(wav, sentences)
    manifest = tmp_path / "long.jsonl"
    text = " ".join(["piece"] * sentences)
    line = {"audio_filepath": "long.wav", "duration": seconds, "text": text}
    manifest.write_text(json.dumps(line) + "\n")

    (whole,) = run_json("transcribe", world.run, wav)["results"]
    assert (whole["text"], whole["pieces"], whole["warnings"]) == ("piece", 1, [])

    world.describe(trained_seconds=3.0)  # which older runs do not say
    (found,) = run_json("transcribe", world.run, wav)["results"]
    assert (found["text"], found["pieces"]) == (text, sentences)
    (warning,) = found["warnings"]
    assert "longer than the 3.0 s that the net was trained on" in warning
    result = run_json("evaluate", world.run, "--manifest", manifest)
    assert (result["wer"], result["words"]) == (0.0, sentences)
    assert "longer than the 3.0 s" in " ".join(result["warnings"])
    assert max(world.decoded) > 1  # pieces are decoded together

    (never,) = run_json("transcribe", world.run, wav, "--cut-above", "0")["results"]
    assert (never["text"], never["pieces"]) == ("piece", 1)
    assert "words may be lost" in never["warnings"][0]
    short = run("transcribe", world.run, wav, "--cut-above", "0.2")
    assert short.exit_code == 1
    assert "cut_above is 0.2; at least 1 second" in short.stderr


def test_long_utterances_are_cut_in_comparisons_and_searches(
    world: World, run: Run, tmp_path: Path
) -> None:
    world.learn(["piece"])
    world.describe(trained_seconds=3.0)
    long_recording(tmp_path / "long.wav", 4)
    soundfile.write(tmp_path / "short.wav", np.full(RATE, 0.1), RATE)
    lines = [
        {"audio_filepath": "long.wav", "duration": 10.0, "text": "piece piece piece piece"},
        {"audio_filepath": "short.wav", "duration": 1.0, "text": "piece"},
    ]
    manifest = tmp_path / "long.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "c"
    compared = run("compare", world.run, "--manifest", manifest, "--out", out, "--json")
    assert compared.exit_code == 0, compared.stderr
    (cell,) = json.loads(compared.stdout)["rows"]
    assert cell["wer"] == 0.0
    assert "1 of 2 utterances are longer than the 3.0 s" in compared.stderr
    options = ["--run", world.run, "--sizes", "60%", "--manifest", manifest, "--evaluations", "6"]
    searched = run("search", *options, "--out", tmp_path / "s", "--json")
    assert searched.exit_code == 0, searched.stderr
    assert json.loads(searched.stdout)["front"][0]["wer"] == 0.0
    assert "1 of 2 utterances are longer than the 3.0 s" in searched.stderr


def test_the_trained_length_goes_wherever_the_model_goes(
    world: World, run_json: RunJson, tmp_path: Path
) -> None:
    world.learn(["piece"])
    world.describe(trained_seconds=3.0)
    run_json("extract", "--run", world.run, "--size", "60%", "--out", tmp_path / "m")
    run_json("extract", "--run", world.run, "--nested", "--out", tmp_path / "n.omni")
    for place in (world.run, tmp_path / "m", tmp_path / "n.omni"):
        loaded = load_model(place)
        assert (loaded.trained_seconds, loaded.cut_above) == (3.0, 3.0)
    options = ["--manifest", world.manifest(["piece"])]
    rows = [run_json("evaluate", place, *options) for place in (world.run, tmp_path / "n.omni")]
    assert [row["wer"] for row in rows] == [0.0, 0.0]
    assert rows[0]["optimizer_steps"] == rows[1]["optimizer_steps"] == 7
    world.describe(trained_seconds=0.4)  # of single words: pieces are not as short
    assert load_model(world.run).cut_above == 1.0
    world.describe(trained_seconds=None)
    run_json("extract", "--run", world.run, "--size", "60%", "--out", tmp_path / "old")
    assert load_model(tmp_path / "old").trained_seconds is None


def test_a_broken_library_names_the_line_in_every_verb_that_recognises(
    world: World, run_json: RunJson, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enabled: list[Any] = []
    monkeypatch.setattr(faulthandler, "is_enabled", lambda: False)
    monkeypatch.setattr(faulthandler, "enable", lambda file: enabled.append(file))
    world.learn(["abc"])
    manifest = world.manifest(["abc", "abd"])
    run_json("evaluate", world.run, "--manifest", manifest)
    assert len(enabled) == 1
    run_json("compare", world.run, "--manifest", manifest, "--out", tmp_path / "c")
    assert len(enabled) == 2
    options = ["--run", world.run, "--sizes", "60%", "--manifest", manifest, "--evaluations", "6"]
    assert run("search", *options, "--out", tmp_path / "s").exit_code == 0
    assert len(enabled) == 3


def test_a_run_where_nothing_can_be_kept_is_compared(
    world: World, run: Run, tmp_path: Path
) -> None:
    world.learn(["abc"])
    (world.run / "compare").write_text("no folder can be made here, as in a read-only run")
    options = ["--manifest", world.manifest(["abc"]), "--out", tmp_path / "c", "--json"]
    compared = run("compare", world.run, *options)
    assert compared.exit_code == 0, compared.stderr
    assert json.loads(compared.stdout)["rows"][0]["wer"] == 0.0
    assert "what was recognised is not kept: " in compared.stderr
