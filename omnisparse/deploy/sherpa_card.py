"""The page beside the files for sherpa-onnx: sizes, and how they are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omnisparse.deploy.onnx_export import Source


_HOTWORDS = """\
* Hotwords: `decoding_method="modified_beam_search", modeling_unit="bpe", bpe_vocab="bpe.vocab",
  hotwords_file="hotwords.txt"`."""

_NEMO = """\
* **Put {lead:g} ms of silence before** a recording, as above: sherpa-onnx's frames are that much
  later than NeMo's, which the net was trained with.
* The layout is NeMo's: greedy search only, no hotwords."""


def render_sherpa_card(
    source: Source, files: Mapping[str, bytes], *, layout: str, precision: str,
    tail: float, lead: float,
) -> str:  # fmt: skip
    """The text of ``README.md``.

    Args:
        source: The net.
        files: All other files of the folder.
        layout: How weights are stored.
        precision: Of the weights.
        tail: Seconds of silence to append to a recording.
        lead: Seconds of silence to put before it; above 0 in NeMo's layout.
    """
    extractor = source.extractor
    rows = [f"| `{name}` | {len(data):,} |" for name, data in files.items()]
    parts = "\n".join(f'    {part}="{part}.onnx",' for part in ("encoder", "decoder", "joiner"))
    flags = " ".join(f"--{part}={part}.onnx" for part in ("encoder", "decoder", "joiner"))
    before, notes = "", _HOTWORDS
    if lead:
        silence = f"np.zeros(int({lead:g} * rate), np.float32)"
        before = f"stream.accept_waveform(rate, {silence})  # see below\n"
        notes = _NEMO.format(lead=1000 * lead)
    return f"""---
library_name: sherpa-onnx
pipeline_tag: automatic-speech-recognition
tags:
- automatic-speech-recognition
- sparse
- streaming
---

# {source.name}, for sherpa-onnx

A streaming transducer, {layout} weights in {precision}. An unmodified sherpa-onnx (2.0.1 or newer)
loads the files as they are.

| file | bytes |
|---|---|
{chr(10).join(rows)}

```bash
sherpa-onnx --tokens=tokens.txt {flags} \\
  --feat-dim={extractor.num_bins} --sample-rate={extractor.sampling_rate} speech.wav
```

```python
import numpy as np, sherpa_onnx, soundfile

recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
    tokens="tokens.txt",
{parts}
    sample_rate={extractor.sampling_rate}, feature_dim={extractor.num_bins},
)
samples, rate = soundfile.read("speech.wav", dtype="float32")
stream = recognizer.create_stream()
{before}stream.accept_waveform(rate, samples)
stream.accept_waveform(rate, np.zeros(int({tail:g} * rate), np.float32))  # see below
stream.input_finished()
while recognizer.is_ready(stream):
    recognizer.decode_stream(stream)
print(recognizer.get_result(stream))
```

* **Append {tail:g} s of silence** to a recording, as above: sherpa-onnx 2.0.1 decodes a chunk only
  when more frames than that have arrived, so a complete last chunk would be left out.
{notes}
* Files are small on the disk only: while loading, weights become dense float32 again, so memory and
  speed are those of the dense net.
"""
