#!/usr/bin/env bash
# lhotse's mix(snr=10) gives 10 dB only if both sides are single cuts; else noise is off by up to tens of dB.
#
# `mix` says that the SNR is "of the right_cut w.r.t. the left_cut". But where the left one is several
# cuts, as CutConcatenate makes them (recipes of icefall put it before CutMix, so that noise fills
# the gaps), only the FIRST of them counts: after a quiet utterance a loud one gets next to no noise,
# and the other way round a quiet one drowns. Where the right one is several cuts (noise of two sources,
# or one put behind the other), EACH is brought to that SNR by itself: together they are louder, and a
# faint noise that was mixed in becomes as loud as the main one. No warning is given.
#
# Way out: write each side to a file of its own (`save_audio`) before they are mixed.
#
# Seen with lhotse 1.33.0, torch 2.11.0 (CPU), soundfile 0.14.0, Python 3.11, Linux x86-64; 2026-12-01.
# PYTHON=... uses an environment that is there. Exits non-zero if the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${PYTHON:-}
if [ -z "$python" ]; then
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" install -q lhotse==1.33.0 torch==2.11.0 soundfile==0.14.0 numpy==2.4.6 \
    urllib3==2.8.0  # lhotse imports it and does not ask for it
  python="$folder/venv/bin/python"
fi
cd "$folder"
"$python" - <<'PYTHON'
import lhotse, numpy as np, soundfile, torch
from lhotse import CutSet, Recording
from lhotse.dataset import CutConcatenate, CutMix

print("lhotse", lhotse.__version__, "torch", torch.__version__, "soundfile", soundfile.__version__)
RATE = 16000


def cut(name, level, seconds, seed):
    samples = level * np.random.default_rng(seed).standard_normal(int(seconds * RATE))
    soundfile.write(f"{name}.wav", samples.astype(np.float32), RATE, subtype="FLOAT")
    return Recording.from_file(f"{name}.wav").to_cut()


def power(samples):
    return float(np.mean(np.square(samples, dtype=np.float64)))


def measured(left, mixed):
    """SNR of a mix in dB, over all that is left of it."""
    clean = left.load_audio()
    return 10 * np.log10(power(clean) / power(mixed.load_audio()[:, : clean.shape[1]] - clean))


def saved(one, name):
    one.save_audio(f"{name}.wav", encoding="FLOAT")
    return Recording.from_file(f"{name}.wav").to_cut()


quiet, loud = cut("quiet", 0.01, 4, 1), cut("loud", 0.1, 4, 2)
hum, hiss = cut("hum", 0.2, 9, 3), cut("hiss", 0.01, 9, 4)
room = hum.mix(hiss)  # the hiss is 26 dB below the hum
found = {
    "one cut, one noise": measured(loud, loud.mix(hum, snr=10)),
    "a quiet utterance, then a loud one": measured(
        quiet.append(loud), quiet.append(loud).mix(hum, snr=10)
    ),
    "a loud utterance, then a quiet one": measured(
        loud.append(quiet), loud.append(quiet).mix(hum, snr=10)
    ),
    "one cut, noise of two sources": measured(loud, loud.mix(room, snr=10)),
    "both saved before": measured(
        saved(quiet.append(loud), "utterances"),
        saved(quiet.append(loud), "utterances").mix(saved(room, "room"), snr=10),
    ),
}
shorter = CutSet.from_cuts([quiet, loud.truncate(duration=3.9)])
(joined,) = CutConcatenate(gap=0.1, duration_factor=2)(shorter)
(noisy,) = CutMix(CutSet.from_cuts([hum]), snr=10, p=1.0)(CutSet.from_cuts([joined]))
found["CutConcatenate, then CutMix"] = measured(joined, noisy)
for name, value in found.items():
    print(f"asked for 10 dB, {name + ':':38} {value:5.1f} dB")

hum_level, hiss_level = (
    np.linalg.lstsq(
        np.stack([hum.load_audio()[0, : 4 * RATE], hiss.load_audio()[0, : 4 * RATE]], 1),
        (loud.mix(room, snr=10).load_audio()[:, : 4 * RATE] - loud.load_audio())[0],
        rcond=None,
    )[0] * (0.2, 0.01)
)
below = 20 * np.log10(hum_level / hiss_level)
print(f"the hiss, 26 dB below the hum before, is {abs(below):.1f} dB from it in the mix")
expected = [10, 27, 7, 7, 10, 27]
if not np.allclose(list(found.values()), expected, atol=0.3) or abs(below) > 0.3:
    raise SystemExit("the behaviour has changed")
print("as described")
PYTHON
