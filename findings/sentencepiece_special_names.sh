#!/usr/bin/env bash
# sentencepiece: a transcript that names a special piece loses characters from the vocabulary, in silence.
#
# Expected: with character_coverage=1.0 every character of the training texts is in the vocabulary, so that a training
# text comes back from encode and decode.
# Found: the names of control and unknown pieces (here <unk> and <blk>) are taken out of the training texts before
# characters are counted. Characters that stand only within such names (< and >, for example in transcripts that use
# <unk> for words nobody understood) are in no piece. Encoding the same text, however, treats the name as plain
# characters: they become unknown, and decoding gives U+2047 with spaces around it. No warning is printed.
# U+2581 in a text comes back as a space.
#
# Seen with sentencepiece 0.2.1, Python 3.11, Linux x86-64, 2026-11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "sentencepiece==0.2.1"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import io
import sys

import sentencepiece

print("sentencepiece", sentencepiece.__version__, "Python", sys.version.split()[0])


def train(texts):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=26,
        character_coverage=1.0, normalization_rule_name="identity", control_symbols=["<blk>"],
        unk_id=1, bos_id=-1, eos_id=-1, pad_id=-1, minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


named = train(["turn on the <unk> light"] * 3)
plain = train(["turn on the <unl> light"] * 3)
back = {
    "a special name": (named.decode(named.encode("the <unk> light")), "the <unk> light"),
    "no special name": (plain.decode(plain.encode("the <unl> light")), "the <unl> light"),
    "U+2581": (plain.decode(plain.encode("turn\u2581on")), "turn\u2581on"),
}
for what, (found, text) in back.items():
    print(f"{what}: {text!r} comes back as {found!r}")
pieces = [named.id_to_piece(index) for index in range(named.get_piece_size())]
print("pieces with < beside the special ones:", [p for p in pieces if "<" in p][2:])
as_seen = (
    back["no special name"][0] == "the <unl> light"
    and "\u2047" in back["a special name"][0]
    and back["U+2581"][0] == "turn on"
)
sys.exit(0 if as_seen else 1)
PYTHON
