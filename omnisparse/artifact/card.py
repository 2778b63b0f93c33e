"""The model card: ``README.md`` of an artifact, with the front matter that model hubs read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnisparse.artifact.contents import MODULE_KIND, files_of
from omnisparse.artifact.inspection import recount
from omnisparse.artifact.reading import read_config
from omnisparse.artifact.untrained import untrained_warnings
from omnisparse.atomic import replaced_file, write_synced
from omnisparse.console import format_interval
from omnisparse.errors import FormatError, OmnisparseError
from omnisparse.sparsity.report import SizeReport

CARD = "README.md"
_WER_ROW = re.compile(
    r"\| WER (?P<name>[^|]+) \| (?P<wer>[\d.]+)"
    r"(?: \((?:95 % interval (?P<wer_low>[\d.]+) to (?P<wer_high>[\d.]+)|no interval), "
    r"(?P<utterances>[\d,]+) utterances?\))? \|"
)
_LATENCY_ROW = re.compile(r"\| latency (?P<name>[^|]+) \| (?P<text>[^|]+) \|")
_USE_TRANSDUCER = """\
omnisparse export . --format sherpa --out sherpa
sherpa-onnx --tokens=sherpa/tokens.txt --encoder=sherpa/encoder.onnx \\
  --decoder=sherpa/decoder.onnx --joiner=sherpa/joiner.onnx speech.wav"""


def update_card(artifact: Path, name: str, wer: Mapping[str, float | None]) -> None:
    """Write a word error rate into an artifact's card; the other files are not changed.

    Rates of other test sets in the card stay; a rate of the same test set is replaced.

    Args:
        artifact: Artifact directory.
        name: The test set.
        wer: ``wer``, ``wer_low``, ``wer_high`` in percent (the last two may be None), and
            ``utterances``.

    Raises:
        FormatError: If ``artifact`` is not a valid artifact.
        OmnisparseError: If the card was edited by hand, so that a new card would lose text, or
            writing fails; nothing has changed then.
    """
    _write_anew(artifact, "wer", _plain_name(name), dict(wer))


def add_latency(artifact: Path, name: str, text: str) -> None:
    """Write a measured latency into an artifact's card, as :func:`update_card` does a rate.

    Args:
        artifact: Artifact directory.
        name: Machine and runtime that it was measured with.
        text: What was measured, such as ``1.9 ms for 80 ms of speech, real-time factor 0.024``.

    Raises:
        FormatError: If ``artifact`` is no sound artifact.
        OmnisparseError: If the card was edited by hand, or the disk refuses.
    """
    _write_anew(artifact, "latency", _plain_name(name), _plain_name(text))


def _write_anew(artifact: Path, what: str, name: str, value: Any) -> None:
    """Write the card with one measurement more."""
    ours, problems = read_config(artifact)
    if problems:
        raise FormatError(f"{artifact}: {problems[0]}")
    path = artifact / CARD
    old = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
    known = _measured(ours, old or "")
    try:
        report = recount(artifact)
        if old not in {None, _render(artifact, ours, report, known)}:
            raise OmnisparseError(
                f"{path}: it was edited by hand, and a new card would lose this; move it away first"
            )
        new = {**known, what: {**known[what], name: value}}
        text = _render(artifact, ours, report, new)
    except (KeyError, TypeError, IndexError) as error:
        raise FormatError(f"{artifact}: config.json lacks entries of a card ({error})") from error
    with replaced_file(path) as partial:
        write_synced(partial, text.encode())


def _measured(ours: Mapping[str, Any], card: str) -> dict[str, dict[str, Any]]:
    """What an artifact and its card know of word error rates and latencies."""
    known = ours.get("wer") if isinstance(ours.get("wer"), dict) else {}
    matches = map(_LATENCY_ROW.fullmatch, card.splitlines())
    return {
        "wer": {**(known or {}), **_rates_of(card)},
        "latency": {match["name"]: match["text"] for match in matches if match is not None},
    }


def _render(
    artifact: Path, ours: Mapping[str, Any], report: SizeReport, known: Mapping[str, Any]
) -> str:
    size = sum((artifact / file).stat().st_size for file in files_of(ours["model"]))
    return render_card({**ours, **known}, report, size_bytes=size)


def _plain_name(name: str) -> str:
    """A name that is legal in a cell of a table."""
    return " ".join(name.replace("|", " ").split()) or "test"


def _rates_of(card: str) -> dict[str, Any]:
    """The word error rates in a card that :func:`render_card` wrote."""
    found: dict[str, Any] = {}
    for match in map(_WER_ROW.fullmatch, card.splitlines()):
        if match is None:
            continue
        if match["utterances"] is None:
            found[match["name"]] = json.loads(match["wer"])
        else:
            ends = {key: match[key] for key in ("wer_low", "wer_high")}
            found[match["name"]] = {
                "wer": float(match["wer"]),
                **{key: None if end is None else float(end) for key, end in ends.items()},
                "utterances": int(match["utterances"].replace(",", "")),
            }
    return found


def _rate_text(value: Any) -> str:
    if not isinstance(value, Mapping) or not {"wer", "wer_low", "wer_high"} <= set(value):
        return json.dumps(value)
    low, high, number = value["wer_low"], value["wer_high"], value.get("utterances", 0)
    interval = "no interval"
    if low is not None and high is not None:
        interval = f"95 % interval {format_interval(low, high, between=' to ')}"
    return f"{value['wer']:.2f} ({interval}, {number:,} utterance{'s' * (number != 1)})"


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


def _blocks(block: Mapping[str, Any]) -> str:
    """The blocks of the masks in words."""
    size = f"{block['block'][0]}x{block['block'][1]}"
    single = len(block.get("single") or ())
    return f"{size}, single weights in {single} matrices" if single else size


def render_card(block: Mapping[str, Any], report: SizeReport, *, size_bytes: int) -> str:
    """The text of the card.

    Args:
        block: The ``omnisparse`` block of ``config.json``; ``latency`` in it is a text for each
            machine.
        report: Counts of the net.
        size_bytes: Bytes of the artifact's files without this card.
    """
    largest = report.largest_layer
    kind = str(block["model"].get("kind", "speech"))
    wer = block.get("wer") or {}
    source = block.get("source")
    known = source if isinstance(source, Mapping) else {}
    licence = str(known.get("license") or "")
    front = [
        "---",
        *([f"license: {licence}"] if licence else ["license: other", "license_name: not-stated"]),
        "library_name: omnisparse",
        *([] if kind == MODULE_KIND else ["pipeline_tag: automatic-speech-recognition"]),
        "tags:",
        *([] if kind == MODULE_KIND else ["- automatic-speech-recognition"]),
        "- sparse",
        *([] if kind == MODULE_KIND else ["metrics:", "- wer", *_metric_lines(wer, kind)]),
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
        ("layout", f"{block['format']}, blocks {_blocks(block)}"),
    ]
    rows += [(f"WER {name}", _rate_text(value)) for name, value in wer.items()]
    rows += [(f"latency {name}", text) for name, text in (block.get("latency") or {}).items()]
    rows += [
        ("training data", _plain_name(str(known.get("data") or "not stated"))),
        ("licence", licence or "not stated; whoever trained it decides"),
    ]
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    usage = (
        _use_of_module(block["model"])
        if kind == MODULE_KIND
        else [
            "```bash",
            "omnisparse transcribe . speech.wav",
            "omnisparse inspect .          # recounts from the files",
            *_use_elsewhere(block["model"], block.get("features") or {}).splitlines(),
            "```",
            "",
            "```python",
            "from omnisparse import Recognizer",
            'recognizer = Recognizer.from_path(".")',
            'print(recognizer.transcribe("speech.wav").text)',
            "```",
        ]
    )
    warnings = [f"> **Warning:** {line}." for line in untrained_warnings(report.nonzero, known)]
    name = str(block["model"].get("class")) if kind == MODULE_KIND else f"{kind} speech recogniser"
    title = [f"# {_plain_name(name)}", ""]
    told = [text for line in warnings for text in (line, "")]
    return "\n".join([*front, "", *title, *told, *table, "", *usage, ""])


def _use_of_module(model: Mapping[str, Any]) -> list[str]:
    """How a net that is no recogniser is loaded."""
    name = _plain_name(str(model.get("class"))).rpartition(".")[2]
    return [
        "```python",
        "import omnisparse",
        f'model = omnisparse.load_packed(".", {name}())  # a model of the same shape',
        "```",
    ]


def _use_elsewhere(model: Mapping[str, Any], features: Mapping[str, Any]) -> str:
    """How other runtimes load the net: sherpa-onnx, where it has a place for such a one."""
    if model.get("family", "omnisparse") != "omnisparse":
        return ""  # no export knows its layers
    is_transducer, has_states = model.get("kind") == "transducer", model.get("predictor_layers")
    if features.get("type", "kaldi-fbank") == "kaldi-fbank":
        if is_transducer and has_states == 0:
            return _USE_TRANSDUCER
        return "omnisparse export . --format onnx --out onnx   # files for onnxruntime"
    hears_nemo = features.get("type") == "nemo-log-mel" and not features.get("per_utterance")
    if is_transducer and hears_nemo and has_states and model.get("encoder", "lstm") == "lstm":
        return _USE_TRANSDUCER
    return ""
