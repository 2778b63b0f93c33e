"""The page of a report: HTML and SVG in one text, without scripts and without a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

from omnisparse.console import format_bytes, format_seconds
from omnisparse.pipeline.charts import COLOURS, Line, chart
from omnisparse.version import __version__

if TYPE_CHECKING:
    from omnisparse.pipeline.report_data import Result, RunReport

Utterances = Sequence[tuple[str, str, str]]
"""Id, reference and hypothesis."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --bad: #dc2626; --good: #15803d; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 84rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
h3 { font-size: .95rem; margin: 0 0 .4rem; overflow-wrap: anywhere; }
p { margin: .2rem 0 .6rem; } .hint { opacity: .7; }
.cards { display: grid; gap: 1rem; margin-bottom: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .8rem; min-width: 0; }
svg { width: 100%; height: auto; display: block; }
svg text { font-size: 11px; fill: currentColor; } svg .label { opacity: .7; }
polyline { fill: none; stroke-width: 1.6; }
.grid { stroke: var(--line); } .axis { stroke: currentColor; }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .4em; }
del { color: var(--bad); } ins { color: var(--good); text-decoration: none; font-weight: 600; }
.said { overflow-wrap: anywhere; margin: 0 0 .7rem; } .said small { opacity: .7; display: block; }
pre { overflow-x: auto; background: var(--soft); padding: .8rem; border-radius: .5rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
"""


def write_page(
    reports: Sequence[RunReport],
    transcripts: Sequence[tuple[str, Utterances]],
    *,
    refresh: int | None = None,
) -> str:
    """The page.

    Args:
        reports: The runs, side by side in this order.
        transcripts: More transcripts, each with a name.
        refresh: Seconds after which a browser reads the page again; None for never.
    """
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    title = ", ".join(report.name for report in reports)
    sections = [
        ("Losses", _cards(_losses(reports))),
        ("While training", _cards(_curves(reports))),
        ("Size and word errors", _results(reports)),
        ("Density of every layer", _densities(reports)),
        ("Transcripts", _transcripts(reports, transcripts)),
        ("Configuration", _configurations(reports)),
    ]
    body = "".join(f"<section><h2>{name}</h2>{text}</section>" for name, text in sections if text)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{again}<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1><p class=hint>omnisparse {escape(__version__)}. Everything on "
        "this page is in this file.</p>"
        f"{_overview(reports)}{body}</body></html>\n"
    )


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{lines}</table></div>'


def _overview(reports: Sequence[RunReport]) -> str:
    """State, size and cost of every run."""
    dense = next((r for r in reports if r.method == "dense" and r.throughput), None)
    rows = []
    for number, report in enumerate(reports):
        cost = report.cost
        speed = _speed(report)
        ratio = "-" if dense is None or not speed else f"{speed / _speed(dense):.2f} x"
        rows.append([
            f'<span class="dot" style="background:{_colour(number)}"></span>{escape(report.name)}',
            escape(report.method or "-"),
            escape(report.state),
            f"{report.steps:,}" + (f" / {report.max_steps:,}" if report.max_steps else ""),
            _left(report),
            "-" if report.parameters is None else f"{report.parameters:,}",
            "-" if report.dev_wer is None else f"{report.dev_wer:.2f}",
            f"{cost['utterance_passes']:,.0f}" if cost else "-",
            format_seconds(cost["device_seconds"]) if cost else "-",
            f"{cost['teacher_utterance_passes']:,.0f}" if cost else "-",
            f"{speed:,.0f}" if speed else "-",
            ratio,
            escape(str(cost.get("seed", "-"))) if cost else "-",
            escape(str(cost.get("commit") or "-")[:10]) if cost else "-",
        ])  # fmt: skip
    columns = [
        "run", "method", "state", "steps", "left", "parameters", "dev WER %", "utterance passes",
        "device time", "passes of teachers", "audio s / s", "of dense", "seed", "commit",
    ]  # fmt: skip
    told = [n for n in range(len(columns)) if any(row[n] not in ("-", "0") for row in rows)]
    return _table([columns[n] for n in told], [[row[n] for n in told] for row in rows])


def _speed(report: RunReport) -> float:
    """Median audio seconds per second; 0 where it is not known."""
    rates = sorted(rate for _, rate in report.throughput)
    return rates[len(rates) // 2] if rates else 0.0


def _left(report: RunReport) -> str:
    """Time that a training still takes, from the steps so far."""
    seconds = report.cost.get("device_seconds", 0.0) / report.processes if report.cost else 0.0
    if report.state == "finished" or not report.max_steps or not report.steps or not seconds:
        return "-"
    return format_seconds(seconds * (report.max_steps - report.steps) / report.steps)


def _cards(cards: Sequence[tuple[str, str]]) -> str:
    drawn = [
        f'<div class="card"><h3>{escape(title)}</h3>{svg}</div>' for title, svg in cards if svg
    ]
    return f'<div class="cards">{"".join(drawn)}</div>' if drawn else ""


def _losses(reports: Sequence[RunReport]) -> list[tuple[str, str]]:
    """The loss of every member, a chart for each run."""
    cards = []
    for report in reports:
        names = [name for name in report.series if name.startswith("loss/")]
        lines = [
            Line(name.removeprefix("loss/"), report.series[name], _colour(number))
            for number, name in enumerate(names[: len(COLOURS)])
        ]
        left_out = f" ({len(names) - len(COLOURS)} more)" if len(names) > len(COLOURS) else ""
        cards.append((report.name + left_out, chart(lines, x_label="step", y_label="loss")))
    return cards


def _curves(reports: Sequence[RunReport]) -> list[tuple[str, str]]:
    """What all runs have in common, each in one chart."""

    def over(pick: Callable[[RunReport], Sequence[tuple[float, float]]], **options: bool) -> str:
        lines = [
            Line(report.name, pick(report), _colour(number))
            for number, report in enumerate(reports)
        ]
        return chart(lines, x_label="step", y_label="", **options)

    def named(name: str, **options: bool) -> str:
        return over(lambda report: report.series.get(name, ()), **options)

    def unless_zero(name: str) -> str:
        return over(lambda report: _if_any(report.series.get(name, ())), from_zero=True)

    speed = over(lambda report: report.throughput, from_zero=True)
    return [
        ("WER on the dev split by size, %", _dev_rates(reports)),
        ("Weights whose mask changed at a ranking", named("mask_flip_rate", from_zero=True)),
        ("Gradient norm", named("gradient_norm", log_y=True)),
        ("Learning rate", named("learning_rate", from_zero=True)),
        ("Audio seconds per second, all processes", speed),
        ("Sparsity", named("sparsity", from_zero=True)),
        ("Skipped steps", unless_zero("skipped_steps")),
        ("Rollbacks", unless_zero("rollbacks")),
    ]


def _if_any(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    return points if any(value for _, value in points) else ()


def _dev_rates(reports: Sequence[RunReport]) -> str:
    """``dev/wer`` of the dense net and ``dev/wer@SIZE`` of its subnets."""
    found = [
        (report, name)
        for report in reports
        for name in report.series
        if name == "dev/wer" or name.startswith("dev/wer@")
    ]
    several = len(reports) > 1
    lines = []
    for number, (report, name) in enumerate(found[: 2 * len(COLOURS)]):
        size = name.partition("@")[2] or "whole"
        label = f"{report.name}: {size}" if several else size
        lines.append(Line(label, report.series[name], _colour(number), is_scatter=True))
    return chart(lines, x_label="step", y_label="", from_zero=True)


def _results(reports: Sequence[RunReport]) -> str:
    """WER against non-zeros, a chart for each test set, and the numbers."""
    every = [
        (report, number, result)
        for number, report in enumerate(reports)
        for result in report.results
    ]
    if not every:
        return ""
    cards = []
    for test in dict.fromkeys(result.test for _, _, result in every):
        lines = []
        for number, report in enumerate(reports):
            for source in ("compare", "search"):
                points = sorted(
                    (float(result.nonzero), result.wer)
                    for result in report.results
                    if result.test == test and result.source == source
                )
                label = report.name if source == "compare" else f"{report.name}, searched"
                colour = _colour(number if source == "compare" else number + len(reports))
                lines.append(Line(label, points, colour, is_scatter=True))
        svg = chart(
            lines, x_label="non-zero parameters", y_label="WER %", log_x=True, from_zero=True
        )
        cards.append((test, svg))
    return _cards(cards) + _table(
        ["run", "test set", "size", "non-zeros", "bytes", "WER %", "95 % interval"],
        [_row(report, number, result) for report, number, result in every],
    )


def _row(report: RunReport, number: int, result: Result) -> list[str]:
    has_interval = result.wer_low is not None and result.wer_high is not None
    return [
        f'<span class="dot" style="background:{_colour(number)}"></span>{escape(report.name)}',
        escape(result.test),
        escape(result.size) + (" (searched)" if result.source == "search" else ""),
        f"{result.nonzero:,}",
        "-" if result.bytes is None else format_bytes(result.bytes),
        f"{result.wer:.2f}",
        f"{result.wer_low:.2f} - {result.wer_high:.2f}" if has_interval else "-",
    ]


def _densities(reports: Sequence[RunReport]) -> str:
    """Share of non-zeros of every matrix, as a table of coloured cells."""
    parts = []
    for report in reports:
        if not report.densities:
            continue
        names = list(dict.fromkeys(name for _, layers in report.densities for name in layers))
        rows = []
        for name in names:
            cells = []
            for _, layers in report.densities:
                share = layers.get(name)
                cells.append("-" if share is None else _shaded(share))
            rows.append([escape(name), *cells])
        columns = ["matrix", *(label for label, _ in report.densities)]
        parts.append(f"<h3>{escape(report.name)}</h3>{_table(columns, rows)}")
    return "".join(parts)


def _shaded(share: float) -> str:
    share = min(1.0, max(0.0, share))
    return (
        f'<span style="background:rgb(37 99 235 / {0.75 * share:.2f});padding:.15rem .5rem">'
        f"{100 * share:.0f} %</span>"
    )


def _transcripts(reports: Sequence[RunReport], more: Sequence[tuple[str, Utterances]]) -> str:
    """The utterances with most errors; what was said and not heard, and what was heard instead."""
    shown: list[tuple[str, Utterances]] = list(more)
    for report in reports:
        for result in report.results:
            if result.utterances:
                shown.append((f"{report.name}, {result.size}, {result.test}", result.utterances))
    parts = [
        f"<details{' open' if number == 0 else ''}><summary>{escape(name)}</summary>"
        + "".join(_said(*utterance) for utterance in utterances)
        + "</details>"
        for number, (name, utterances) in enumerate(shown)
    ]
    if not parts:
        return ""
    hint = (
        "<p class=hint>Most errors first. <del>said, not heard</del> <ins>heard instead</ins></p>"
    )
    return hint + "".join(parts)


def _said(name: str, reference: str, hypothesis: str) -> str:
    from omnisparse.evaluation.alignment import align

    words = []
    for edit in align(reference, hypothesis):
        if edit.operation == "=":
            words.append(escape(edit.reference or ""))
            continue
        if edit.reference is not None:
            words.append(f"<del>{escape(edit.reference)}</del>")
        if edit.hypothesis is not None:
            words.append(f"<ins>{escape(edit.hypothesis)}</ins>")
    return f'<p class="said"><small>{escape(name)}</small>{" ".join(words)}</p>'


def _configurations(reports: Sequence[RunReport]) -> str:
    return "".join(
        f"<details><summary>{escape(report.name)}: config.yaml</summary>"
        f"<pre>{escape(report.config)}</pre></details>"
        for report in reports
    )
