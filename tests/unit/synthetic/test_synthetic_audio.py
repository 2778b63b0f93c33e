"""espeak-ng, voices, resampling and noise of the embedded corpus."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile

from omnisparse.errors import DataError
from omnisparse.synthetic import espeak
from omnisparse.synthetic.audio import (
    SAMPLING_RATE,
    Acoustics,
    Renderer,
    Utterance,
    colored_noise,
    resample,
    trim_silence,
)
from omnisparse.synthetic.text import GRAMMARS, SPLITS
from omnisparse.synthetic.voices import ACCENTS, FAMILIES, split_voices, usable_variants

CLEAN = Acoustics(
    snr_db=(20.0, 20.0),
    rate_wpm=(175, 175),
    pitch=(50, 50),
    pitch_range=(50, 50),
    babble_share=0.0,
)


def test_speaking_carries_no_state() -> None:
    voices = [f"en-us+{variant}" for variant in usable_variants()[::5]]
    alone = {voice: espeak.speak("good morning", voice=voice).samples for voice in voices}
    for voice in reversed(voices):
        espeak.speak("something else entirely", voice="en+f2", rate_wpm=230, pitch=80)
        again = espeak.speak("good morning", voice=voice).samples
        np.testing.assert_array_equal(again, alone[voice], err_msg=voice)


def test_parameters_are_heard() -> None:
    slow = espeak.speak("good morning to all", voice="en-us+m1", rate_wpm=120)
    fast = espeak.speak("good morning to all", voice="en-us+m1", rate_wpm=240)
    high = espeak.speak("good morning to all", voice="en-us+m1", rate_wpm=120, pitch=90)
    assert slow.sampling_rate == 22050
    assert len(slow.samples) > 1.4 * len(fast.samples)
    num_shared = min(len(slow.samples), len(high.samples))
    assert np.abs(slow.samples[:num_shared] - high.samples[:num_shared]).max() > 0.01


def test_every_accent_speaks() -> None:
    for accent in ACCENTS:
        samples = espeak.speak("water", voice=f"{accent}+m3").samples
        assert 0.2 * 22050 < len(samples) < 2 * 22050
        assert 0.05 < np.abs(samples).max() < 0.999


def test_unknown_voice_is_named() -> None:
    with pytest.raises(DataError, match="xx-nowhere"):
        espeak.speak("hello", voice="xx-nowhere")


def test_a_long_data_path_is_reached_by_a_link(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = espeak.speak("hello", voice="en-us").samples
    monkeypatch.setattr(espeak, "MAX_DATA_PATH", 3)
    np.testing.assert_array_equal(espeak.speak("hello", voice="en-us").samples, plain)


def test_at_least_sixty_variants_and_all_accents_in_training() -> None:
    assert len(usable_variants()) >= 60
    voices = split_voices("assistant", 0)["train"]
    assert {voice.partition("+")[0] for voice in voices} == set(ACCENTS)


@pytest.mark.parametrize("preset", GRAMMARS)
@pytest.mark.parametrize("seed", range(5))
def test_no_person_is_heard_in_two_splits(preset: str, seed: int) -> None:
    voices = split_voices(preset, seed)
    people = {}
    for split in SPLITS:
        variants = {voice.partition("+")[2] for voice in voices[split]}
        people[split] = {FAMILIES.get(variant, variant) for variant in variants}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not people[one] & people[other]


def test_easy_preset_has_the_pilot_sizes() -> None:
    voices = split_voices("assistant-easy", 0)
    assert {split: len(names) for split, names in voices.items()} == {
        "train": 24,
        "dev": 4,
        "test": 8,
    }


def test_many_test_voices_are_as_many_people() -> None:
    for seed in range(5):
        voices = split_voices("assistant-voices", seed)
        assert {split: len(names) for split, names in voices.items()} == {
            "train": 40, "dev": 6, "test": 16,
        }  # fmt: skip
        variants = {voice.partition("+")[2] for voice in voices["test"]}
        assert len(variants) == 16
        assert {voice.partition("+")[0] for voice in voices["test"]} == {"en-us", "en-gb-x-rp"}
        assert variants <= set(usable_variants())
    assert GRAMMARS["assistant-voices"] is GRAMMARS["assistant-easy"]


def test_strangers_are_heard_in_no_split_of_the_corpus_with_many_voices() -> None:
    known, strangers = (split_voices(f"assistant-{name}", 0) for name in ("voices", "strangers"))
    assert {**strangers, "test": ()} == {**known, "test": ()}
    variants = [voice.partition("+")[2] for voice in strangers["test"]]
    assert len(variants) == len({FAMILIES.get(name, name) for name in variants}) == 24
    heard = {voice.partition("+")[2] for voices in known.values() for voice in voices}
    assert not {FAMILIES.get(name, name) for name in variants} & {
        FAMILIES.get(name, name) for name in heard
    }


@pytest.mark.parametrize("frequency", [100.0, 1000.0, 6500.0])
def test_resampling_keeps_a_tone(frequency: float) -> None:
    def tone(rate: int) -> np.ndarray:
        time = np.arange(rate) / rate
        return np.sin(2 * np.pi * frequency * time) * np.hanning(rate)

    resampled = resample(tone(22050), 22050)
    assert len(resampled) == SAMPLING_RATE
    np.testing.assert_allclose(resampled, tone(SAMPLING_RATE), atol=1e-3)


def test_resampling_removes_what_would_alias() -> None:
    time = np.arange(22050) / 22050
    tone = np.sin(2 * np.pi * 9000.0 * time) * np.hanning(22050)
    assert np.abs(resample(tone, 22050)).max() < 1e-3


@pytest.mark.parametrize("num_samples", [0, 1, 17, 4409])
def test_resampling_short_signals(num_samples: int) -> None:
    resampled = resample(np.ones(num_samples), 22050)
    assert len(resampled) == -(-num_samples * 320 // 441)


def test_trim_silence() -> None:
    samples = np.array([0.0, 0.001, 0.5, 0.0, -0.4, 0.0])
    np.testing.assert_array_equal(trim_silence(samples), [0.5, 0.0, -0.4])
    assert len(trim_silence(np.zeros(5))) == 0


def test_noise_has_unit_power_and_its_slope() -> None:
    for exponent in (0.0, 1.0, 2.0):
        noise = colored_noise(np.random.default_rng(0), 63999, exponent)
        assert len(noise) == 63999
        assert np.mean(noise**2) == pytest.approx(1.0, rel=1e-6)
        power = np.abs(np.fft.rfft(noise)) ** 2
        octave = [power[int(f * 4) : int(2 * f * 4)].mean() for f in (250, 500, 1000, 2000)]
        slope = np.diff(np.log2(octave)).mean()
        assert slope == pytest.approx(-exponent, abs=0.2)


def _utterance(index: int = 0, text: str = "good morning everyone") -> Utterance:
    return Utterance(split="train", index=index, text=text, voice="en-us+Mr serious", seed=1)


def test_rendered_file_has_the_signal_to_noise_ratio(tmp_path: Path) -> None:
    quiet = Acoustics(
        **{
            **{name: getattr(CLEAN, name) for name in Acoustics.__dataclass_fields__},
            "snr_db": (10.0, 10.0),
            "padding_seconds": (0.5, 0.5),
        }
    )
    line = Renderer(tmp_path, quiet, []).render(_utterance())
    samples, rate = soundfile.read(tmp_path / line["audio_filepath"])
    assert rate == SAMPLING_RATE
    assert line["duration"] == len(samples) / rate
    assert line["speaker"] == "en-us+Mr_serious"
    noise = np.mean(np.concatenate([samples[:8000], samples[-8000:]]) ** 2)
    speech = np.mean(samples[8000:-8000] ** 2) - noise
    assert 10 * np.log10(speech / noise) == pytest.approx(10.0, abs=1.5)
    assert line["snr_db"] == 10.0
    assert np.abs(samples).max() < 0.99


def test_rendering_does_not_depend_on_the_order(tmp_path: Path) -> None:
    babble = [("hello there", "en+m1"), ("how are you", "en+f1"), ("fine thanks", "en+m2")]
    noisy = Acoustics(
        snr_db=(0.0, 10.0),
        rate_wpm=(130, 215),
        pitch=(20, 80),
        pitch_range=(20, 80),
        babble_share=0.5,
    )
    contents = []
    for name, order in (("one", (0, 1, 2, 3)), ("other", (3, 1, 0, 2))):
        renderer = Renderer(tmp_path / name, noisy, babble)
        paths = {i: renderer.render(_utterance(i))["audio_filepath"] for i in order}
        contents.append([(tmp_path / name / paths[i]).read_bytes() for i in range(4)])
    assert contents[0] == contents[1]
    assert len(set(contents[0])) == 4


def test_nothing_to_say_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="produces no sound"):
        Renderer(tmp_path, CLEAN, []).render(_utterance(text=" "))
