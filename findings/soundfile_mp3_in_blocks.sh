#!/usr/bin/env bash
# An MP3 that soundfile reads block by block is not the MP3 that it reads as a whole.
#
# soundfile.SoundFile.read() seeks to where it already stands after every read ("update read & write
# position"), and libsndfile's seek in an MP3 loses the decoder's bit reservoir: the first frames of
# every block after the first are silent or wrong. A file read in blocks of 0.32 s, as a streaming
# recogniser does, differs by a third of full scale; soundfile.blocks() does, too. No error is
# raised, and other codecs (FLAC, Vorbis) are exact. A subclass whose seekable() is False never
# seeks, and gives the samples of the whole file.
#
# Versions: soundfile 0.14.0 (libsndfile 1.2.2), numpy 2.4.6. Date: 2026-11-30.
# Exit code 0 while this is so, 1 once blocks equal the whole.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet soundfile==0.14.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys

import numpy as np
import soundfile

RATE, BLOCK = 16000, 5120
time = np.arange(10 * RATE) / RATE
noise = np.random.default_rng(0).standard_normal(len(time))
tone = np.sin(2 * np.pi * (200 + 100 * np.sin(time)) * time)
samples = 0.3 * tone * (np.sin(3 * time) > 0) + 0.05 * noise * (np.cos(time) > 0)


class NeverSeeks(soundfile.SoundFile):
    def seekable(self):
        return False


def in_blocks(kind, name):
    with kind(name) as file:
        taken = [file.read(BLOCK, dtype="float32")]
        while len(taken[-1]):
            taken.append(file.read(BLOCK, dtype="float32"))
        return np.concatenate(taken)


print("soundfile", soundfile.__version__, soundfile.__libsndfile_version__, "numpy", np.__version__)
found = {}
for name in ("a.mp3", "a.flac", "a.ogg"):
    soundfile.write(name, samples, RATE)
    whole, _ = soundfile.read(name, dtype="float32")
    for kind in (soundfile.SoundFile, NeverSeeks):
        blocks = in_blocks(kind, name)
        assert len(blocks) == len(whole)
        found[name, kind] = float(np.abs(blocks - whole).max())
        print(f"{name:7} {kind.__name__:10} largest difference to the whole: {found[name, kind]:.6f}")
surprising = found["a.mp3", soundfile.SoundFile] > 0.01
others = max(value for key, value in found.items() if key != ("a.mp3", soundfile.SoundFile)) < 1e-5
sys.exit(0 if surprising and others else 1)
PYTHON
