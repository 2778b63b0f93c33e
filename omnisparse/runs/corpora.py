"""What a run was trained on, in words, for the model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


def told_in_card(run: Path) -> dict[str, str]:
    """``data`` and ``license`` of a run, as far as its ``config.yaml`` names them.

    The data is the corpora without any path, such as ``embedded corpus assistant (spoken by
    espeak-ng), 2 h; train.jsonl``.
    """
    try:
        document = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    if not isinstance(document, dict):
        return {}
    told = {"data": _corpora(document.get("corpus")), "license": document.get("license")}
    return {key: str(value) for key, value in told.items() if value}


def _corpora(corpus: Any) -> str:
    if not isinstance(corpus, dict):
        return ""
    synthetic, train = corpus.get("synthetic"), corpus.get("train")
    found = [_embedded(synthetic)] if isinstance(synthetic, dict) else []
    found += [Path(str(name)).name for name in train] if isinstance(train, list) else []
    return "; ".join(found)


def _embedded(synthetic: Mapping[str, Any]) -> str:
    what = synthetic.get("preset", "assistant")
    if synthetic.get("text"):
        what = f"of {Path(str(synthetic['text'])).name}"
    return f"embedded corpus {what} (spoken by espeak-ng), {synthetic.get('hours', '?')} h"
