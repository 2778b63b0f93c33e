#!/usr/bin/env bash
# The gradient of torchaudio's rnnt_loss drifts on a long, unlikely utterance in float32.
#
# With log-probabilities as input (fused_log_softmax=False), minus the gradient at a node's blank is the
# expected number of times that alignments take it, so each frame's sum over the labels is exactly 1,
# whatever the model says. For 3,000 frames and 199 labels at e^-12 a step the sums reach 3.7: alpha,
# beta and the total are large float32 numbers, and their small differences are exponentiated. For
# utterances of usual length the sums are 1 to 1e-4. Whoever reads occupancies from this
# gradient should divide each frame by its sum of blanks.
#
# torch 2.11.0 + torchaudio 2.11.0 (CPU), 2026-11-30. Exits non-zero if the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.11.0" "torchaudio==2.11.0" "numpy<3"
"$folder/venv/bin/python" - <<'PYTHON'
import torch
import torchaudio

print("torch", torch.__version__, "torchaudio", torchaudio.__version__)


def blanks(frames, labels, value):
    scores = torch.full((1, frames, labels + 1, 2), value, requires_grad=True)
    lengths = [torch.tensor([n], dtype=torch.int32) for n in (frames, labels)]
    targets = torch.zeros(1, labels, dtype=torch.int32)
    torchaudio.functional.rnnt_loss(
        scores, targets, *lengths, blank=1, reduction="sum", fused_log_softmax=False
    ).backward()
    return -scores.grad[0, :, :, 1].sum(1)


short, long = blanks(50, 20, -0.7), blanks(3000, 199, -12.0)
print(f"blanks a frame: usual utterance {short.min():.5f} to {short.max():.5f}, "
      f"long unlikely one {long.min():.5f} to {long.max():.5f}")
assert (short - 1).abs().max() < 1e-3
assert (long - 1).abs().max() > 0.5, "the gradient no longer drifts"
PYTHON
