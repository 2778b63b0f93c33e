"""The model card: ``README.md`` of an artifact, with the front matter that model hubs read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from omnisparse.sparsity.report import SizeReport


def _metric_lines(wer: Mapping[str, Any], kind: str) -> list[str]:
    lines = ["model-index:", f"- name: omnisparse-{kind}", "  results:"]
    for name, value in wer.items():
        percent = value.get("wer") if isinstance(value, Mapping) else value
        if not isinstance(percent, int | float) or isinstance(percent, bool):
            continue
        quoted = json.dumps(str(name))
        lines += [
            "  - task:",
            "      type: automatic-speech-recognition",
            "    dataset:",
            f"      name: {quoted}",
            f"      type: {quoted}",
            "    metrics:",
            "    - type: wer",
            f"      value: {percent:.2f}",
        ]
    return lines if len(lines) > 3 else []


def render_card(block: Mapping[str, Any], report: SizeReport, *, size_bytes: int) -> str:
    """The text of the card.

    Args:
        block: The ``omnisparse`` block of ``config.json``.
        report: Counts of the net.
        size_bytes: Bytes of the artifact's files, this card not counted.
    """
    largest = report.largest_layer
    kind = str(block["model"].get("kind", "speech"))
    wer = block.get("wer") or {}
    front = [
        "---",
        "library_name: omnisparse",
        "pipeline_tag: automatic-speech-recognition",
        "tags:",
        "- automatic-speech-recognition",
        "- sparse",
        "metrics:",
        "- wer",
        *_metric_lines(wer, kind),
        "---",
    ]
    rows = [
        ("model", kind),
        ("non-zero parameters", f"{report.nonzero:,}"),
        ("with masks, in parameters' worth", f"{report.nonzero_with_mask:,.0f}"),
        ("dense parameters", f"{report.dense_parameters:,}"),
        ("largest layer", f"{largest.layer}: {largest.nonzero:,} non-zero"),
        ("bytes", f"{size_bytes:,}"),
        ("precision", str(block["precision"])),
        ("layout", f"{block['format']}, blocks {block['block'][0]}x{block['block'][1]}"),
    ]
    rows += [(f"WER {name}", json.dumps(value)) for name, value in wer.items()]
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    usage = [
        "```bash",
        "omnisparse inspect .          # recounts from the files",
        "omnisparse transcribe . speech.wav",
        "```",
    ]
    return "\n".join([*front, "", f"# {kind} speech recogniser", "", *table, "", *usage, ""])
