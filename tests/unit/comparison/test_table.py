"""Methods against sizes: seeds put together, paired significance, tables, the paper's figures."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path

import pytest
import rich.console

from omnisparse.comparison import plot, report
from omnisparse.comparison.markdown import certainty_notes, difference_table, to_markdown, wer_table
from omnisparse.comparison.plot import plot_comparison
from omnisparse.comparison.reference import load_reference
from omnisparse.comparison.report import write_comparison
from omnisparse.comparison.rows import METHODS, ROWS, TableRows
from omnisparse.comparison.table import (
    Measurement,
    RowCost,
    make_cells,
    mean_differences,
    sizes_of,
)
from omnisparse.console import Console
from omnisparse.evaluation.account import TrainingAccount
from omnisparse.evaluation.confidence import mean_relative_difference, paired_difference
from omnisparse.evaluation.wer import ErrorCounts, corpus_wer

WORDS = [4 + index % 5 for index in range(200)]
SPEAKERS = tuple(f"voice {index % 12}" for index in range(200))


def counts(rate: float, seed: int) -> tuple[ErrorCounts, ...]:
    generator = random.Random(seed)
    return tuple(
        ErrorCounts(substitutions=sum(generator.random() < rate for _ in range(n)), words=n)
        for n in WORDS
    )


def model(row: str, size: str, nonzero: int, rate: float, seed: int = 0) -> Measurement:
    errors = counts(rate, len(row) + 7 * len(size) + seed)
    letters = tuple(ErrorCounts(deletions=one.errors, words=5 * one.words) for one in errors)
    return Measurement(
        row=row, size=size, test="books-test", run=f"{row}-{seed}", parameters=1000,
        nonzero=nonzero, bytes=4 * nonzero, counts=errors, characters=letters,
        speakers=SPEAKERS,
        account=TrainingAccount(utterance_passes=50.0, device_seconds=2.0, seed=seed, commit="c"),
    )  # fmt: skip


def cost(row: str, trainings: int = 1, teachers: float = 0.0) -> RowCost:
    return RowCost(
        row=row, models=2, trainings=trainings, utterance_passes=12_000.0 * trainings,
        optimizer_steps=10, device_seconds=1234.5, search_evaluations=0,
        teacher_utterance_passes=teachers, teacher_device_seconds=0.0,
    )  # fmt: skip


MODELS = [
    model("supernet", "25%", 250, 0.10),
    model("supernet", "100%", 1000, 0.05),
    model("pruned", "25%", 250, 0.30),
    model("pruned", "25%", 251, 0.34, seed=1),
    model("base", "100%", 1000, 0.06),
]


def test_seeds_are_put_together_and_rows_ordered() -> None:
    cells = make_cells(MODELS)
    assert [(cell.row, cell.size) for cell in cells] == [
        ("base", "100%"), ("pruned", "25%"), ("supernet", "100%"), ("supernet", "25%"),
    ]  # fmt: skip
    pruned = cells[1]
    assert (pruned.seeds, pruned.nonzero, pruned.utterance_passes) == ((0, 1), 251, 100.0)
    rates = [corpus_wer(item.counts) for item in MODELS[2:4]]
    assert pruned.wer_of_seeds == tuple(rates)
    assert pruned.wer == pytest.approx(sum(rates) / 2)
    assert pruned.wer_low < pruned.wer < pruned.wer_high
    assert sizes_of(cells) == ["100%", "25%"]


def test_the_supernet_is_paired_with_pruning_of_the_same_size_and_nothing_else() -> None:
    cells = {(cell.row, cell.size): cell for cell in make_cells(MODELS)}
    small = cells["supernet", "25%"]
    expected = paired_difference(
        [MODELS[2].counts, MODELS[3].counts], [MODELS[0].counts], speakers=SPEAKERS
    )
    assert (small.difference, small.p_value) == (expected.difference, expected.p_value)
    rival = cells["pruned", "25%"].wer
    assert small.difference == pytest.approx(small.wer - rival)
    assert small.relative == pytest.approx(100 * (small.wer / rival - 1))
    assert small.difference_low < small.difference < small.difference_high
    assert small.significant is False  # of one seed
    assert cells["supernet", "100%"].difference is None
    assert cells["pruned", "25%"].difference is None


def test_other_utterances_are_refused() -> None:
    shorter = ErrorCounts(words=9)
    other = replace(MODELS[0], counts=(shorter, *MODELS[0].counts[1:]))
    with pytest.raises(ValueError, match="different utterances"):
        make_cells([*MODELS, other])


def test_markdown_has_the_figures_and_marks_what_differs() -> None:
    cells = make_cells(MODELS)
    text = to_markdown(cells, [cost("base"), cost("pruned", 3, 12_000.0), cost("supernet")])
    lines = text.splitlines()
    assert "| method | 100% | 25% | trainings | utterance passes | device s |" in lines
    row = next(line for line in lines if line.startswith("| Supernet | ") and "12.0k" in line)
    small = cells[3]
    assert f"{small.wer:.2f} ({small.wer_low:.2f} - {small.wer_high:.2f}) |" in row
    assert "Intervals and p are one seed's in some cells" in text
    assert any(line.startswith("| Sparsity (S) | - | ") and "36.0k" in line for line in lines)
    compared = next(line for line in lines if line.startswith("| Supernet | 25% | "))
    assert f" | {small.difference:+.2f} | " in compared
    assert f" | {small.relative:+.1f} % | " in compared
    assert "| Supernet | 1,000 / 4,000 | 250 / 1,000 | 1 |" in lines
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


@pytest.mark.parametrize("reference", [None, "pang2018"])
def test_plot_appears_whole(tmp_path: Path, reference: str | None) -> None:
    paper = None if reference is None else load_reference(reference)
    path = tmp_path / "compare.png"
    costs = [cost("base"), cost("pruned", 3, 12_000.0), cost("supernet")]
    plot_comparison(make_cells(MODELS), costs, path, test="books-test", reference=paper)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [item.name for item in tmp_path.iterdir()] == ["compare.png"]
    with pytest.raises(ValueError, match="at least one model"):
        plot_comparison([], costs, path, test="none")


ARMS = {
    "reference": (0.20, 0.10),
    "method.divergence=alpha": (0.21, 0.10),
    "method.label_weight=0, method.distillation_weight=2": (0.30, 0.14),
    r"method.prunable=[weight_(ih|hh)_l\d+$,weight_hr_l\d+$]": (0.12, 0.10),
}
CONFIGURATIONS = TableRows(
    heading="configuration",
    labels={arm: arm for arm in ARMS},
    rival="reference",
    compared=frozenset(ARMS) - {"reference"},
    picture="differences",
    note="reference: arm-one, with method.label_weight=0.3",
)
ABLATION = [
    model(arm, size, nonzero, rate, seed)
    for arm, rates in ARMS.items()
    for size, nonzero, rate in zip(("12%", "50%"), (120, 500), rates, strict=True)
    for seed in (0, 1, 2)
]


def test_configurations_are_paired_with_the_reference_at_every_size() -> None:
    cells = make_cells(ABLATION, CONFIGURATIONS)
    assert [cell.label for cell in cells[::2]] == list(ARMS)
    assert all((cell.difference is None) == (cell.row == "reference") for cell in cells)
    assert all(cell.seeds == (0, 1, 2) for cell in cells)
    places = {(cell.row, cell.size): cell for cell in cells}
    worse, rival = places[list(ARMS)[2], "12%"], places["reference", "12%"]
    assert worse.difference == pytest.approx(worse.wer - rival.wer)
    assert worse.difference_low > 0
    assert places[list(ARMS)[3], "12%"].difference_high < 0


def test_the_mean_over_sizes_is_that_of_the_relative_differences() -> None:
    cells = make_cells(ABLATION, CONFIGURATIONS)
    means = mean_differences(ABLATION, CONFIGURATIONS)
    assert [mean.row for mean in means] == list(ARMS)[1:]
    for mean in means:
        own = [cell.relative for cell in cells if cell.row == mean.row]
        assert mean.relative == pytest.approx(sum(own) / 2)
        assert mean.relative_low < mean.relative < mean.relative_high
        assert mean.sizes == ("50%", "12%")
    pairs = [
        tuple(
            [item.counts for item in ABLATION if (item.row, item.size) == (row, size)]
            for row in ("reference", means[0].row)
        )
        for size in means[0].sizes
    ]
    found = mean_relative_difference(pairs, speakers=SPEAKERS)
    assert (means[0].relative_low, means[0].p_value) == (found.low, found.p_value)
    assert mean_differences(MODELS) == []  # one shared size is no mean
    shared = [*MODELS, model("pruned", "100%", 1000, 0.07), model("supernet_double", "25%", 250, 0)]
    (mean,) = mean_differences(shared)
    assert (mean.row, mean.label, mean.sizes) == ("supernet", "Supernet", ("100%", "25%"))


def test_a_rival_without_errors_has_no_relative_difference() -> None:
    pair = [model("pruned", "25%", 250, 0.0), model("supernet", "25%", 250, 0.1)]
    cells = make_cells(pair)
    assert cells[1].difference > 0
    assert cells[1].relative is None
    assert "| - |" in to_markdown(cells, [])


def test_configurations_as_text_and_picture(tmp_path: Path) -> None:
    cells, means = make_cells(ABLATION, CONFIGURATIONS), mean_differences(ABLATION, CONFIGURATIONS)
    costs = [cost(arm) for arm in ARMS]
    text = to_markdown(cells, costs, rows=CONFIGURATIONS, means=means)
    lines = text.splitlines()
    assert lines[0] == CONFIGURATIONS.note
    assert "| configuration | 50% | 12% | trainings | utterance passes | device s |" in lines
    assert "| minus reference | size | WER points | 95 % interval | relative | p |" in lines
    assert "| minus reference | mean over sizes | relative | 95 % interval | p |" in lines
    assert "| CER in % | 50% | 12% |" in lines
    assert sum(line.startswith("| method.divergence=alpha | ") for line in lines) == 6
    assert any(r"weight_(ih\|hh)_l\d+$" in line for line in lines)
    assert "differs from reference of the same size" in text
    assert "by chance" not in text
    assert "Of 24 comparisons about 1 have p < 0.05 by chance alone" in to_markdown(
        cells * 4, costs, rows=CONFIGURATIONS
    )
    assert wer_table(cells, costs, CONFIGURATIONS)[1][3][0] == list(ARMS)[3]
    columns, shown = difference_table(cells, costs, CONFIGURATIONS, means)
    assert columns == ["configuration", "50%", "12%", "mean relative", "passes"]
    assert shown[0] == ["reference", f"{cells[0].wer:.2f}", f"{cells[1].wer:.2f}", "-", "12.0k"]
    assert shown[2][2:4] == [
        f"{cells[5].wer:.2f} *",
        f"{means[1].relative:+.1f} % "
        f"({means[1].relative_low:+.1f} to {means[1].relative_high:+.1f}) *",
    ]
    small = [cell for cell in cells if cell.size == "12%"]
    _, shown = difference_table(small, costs, CONFIGURATIONS, [])
    assert shown[2][2] == f"{small[2].relative:+.1f} %"
    path = tmp_path / "compare.png"
    plot_comparison(cells, costs, path, test="books-test", rows=CONFIGURATIONS)
    both = path.read_bytes()
    alone = [cell for cell in cells if cell.row == "reference"]
    plot_comparison(alone, costs, path, test="books-test", rows=CONFIGURATIONS)
    assert both.startswith(b"\x89PNG")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_star_marks_what_differs_from_the_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr(plot, "save_figure", lambda figure, path: figures.append(figure))
    models = [
        model(row, size, nonzero, rate, seed)
        for row, rates in (("pruned", (0.1, 0.1)), ("supernet", (0.1, 0.6)))
        for size, nonzero, rate in zip(("50%", "25%"), (500, 250), rates, strict=True)
        for seed in (0, 1, 2)
    ]
    cells = make_cells(models)
    plot_comparison(cells, [cost("pruned"), cost("supernet")], Path("x.png"), test="t")
    (axes,) = [axes for axes in figures[0].axes if "WER against size" in axes.get_title("left")]
    stars = [text for text in axes.texts if text.get_text() == "*"]
    clear = [cell for cell in cells if cell.significant]
    assert [cell.size for cell in clear] == ["25%"]
    assert [text.xy[1] for text in stars] == [clear[0].wer_high]
    assert "differs from sparsity (S)" in axes.get_legend().get_title().get_text()


def test_why_there_is_no_star() -> None:
    assert certainty_notes(make_cells(ABLATION, CONFIGURATIONS)) == []
    two = make_cells([item for item in ABLATION if item.account.seed != 2], CONFIGURATIONS)
    assert "of two seeds" in certainty_notes(two)[0]
    eight = [replace(item, speakers=tuple(f"{i % 8}" for i in range(200))) for item in ABLATION]
    (note,) = certainty_notes(make_cells(eight, CONFIGURATIONS))
    assert "names 8 speakers; below 10 no difference gets a star" in note
    (note,) = certainty_notes(
        make_cells([replace(item, speakers=None) for item in ABLATION], CONFIGURATIONS)
    )
    assert "names no speaker" in note
    assert "Intervals are over utterances" in note
    assert "*" not in to_markdown(two, [], rows=CONFIGURATIONS).replace("(ih|hh)", "")


def test_a_narrow_table_has_rates_without_intervals() -> None:
    cells = make_cells(MODELS)
    wide, narrow = (wer_table(cells, [], with_intervals=with_) for with_ in (True, False))
    assert wide[0] == narrow[0]
    for one, other in zip(wide[1], narrow[1], strict=True):
        for cell, short in zip(one[1:], other[1:], strict=True):
            assert short.split()[:1] == cell.split()[:1]
            assert "(" not in short


def test_a_screen_of_80_columns_shows_every_rate_and_the_cost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = [("100%", 1000), ("50%", 500), ("25%", 250), ("12.5%", 125)]
    rows = ["pruned", "supernet", "supernet_double"]
    models = [
        model(row, size, nonzero, 0.3 + 0.1 * place)
        for place, row in enumerate(rows)
        for size, nonzero in sizes
    ]
    cells = make_cells(models)
    shown = {}
    for width in (80, 200):
        screen = io.StringIO()
        monkeypatch.setattr(Console, "_rich", rich.console.Console(file=screen, width=width))
        report._show(Console(), "t", cells, [], [cost(row) for row in rows], METHODS)
        shown[width] = screen.getvalue()
    for text in shown.values():
        assert all(f"{cell.wer:.2f}" in text for cell in cells)
        assert "Supernet, twice the budget" in text
        assert "passes" in text
        assert "12.0k" in text
        assert "…" not in text
    assert f"({cells[0].wer_low:.2f} - {cells[0].wer_high:.2f})" in shown[200]
    assert "no room for: device s" not in shown[200]


def test_the_papers_tables_agree_with_each_other_and_with_our_rows() -> None:
    """Figures that the paper prints twice must be the same here."""
    tables = load_reference("pang2018").tables
    assert list(tables) == [1, 2, 3, 4]
    for table in tables.values():
        assert all(len(row) == len(table.columns) for row in table.rows)
    third = {
        row[0]: dict(zip(tables[3].columns[1:], row[1:], strict=True)) for row in tables[3].rows
    }
    assert list(third) == [row for row in ROWS if row in third]
    first = {row[0]: row[1] for row in tables[1].rows}
    assert third["base"]["16M"] == first["no distillation"]
    assert third["distilled"]["16M"] == first["top beam + student init."]
    for size in ("16M", "32M", "57M"):
        rows = [row for row in tables[2].rows if row[3] == size]
        assert third["base"][size] == next(row[4] for row in rows if row[1] is None)
        assert third["factored"][size] == min(row[4] for row in rows if row[1] is not None)
    assert {row[0]: row[3] for row in tables[4].rows} == {
        "E1": 8.6, "E2": 8.3, "E3": 7.3, "E4": 7.2, "E5": 7.1, "E6": 7.1, "E7": 6.4, "E8": 6.1,
    }  # fmt: skip
    with pytest.raises(ValueError, match="legal: pang2018"):
        load_reference("pang2019")


def test_one_utterance_gives_neither_intervals_nor_p(tmp_path: Path) -> None:
    one = [
        replace(item, counts=item.counts[:1], characters=item.characters[:1], speakers=("a",))
        for item in (model("supernet", "25%", 250, 0.9), model("pruned", "25%", 250, 0.1),
                     model("supernet", "50%", 500, 0.9), model("pruned", "50%", 500, 0.1))
    ]  # fmt: skip
    cells, means = make_cells(one), mean_differences(one)
    for cell in cells:
        assert (cell.wer_low, cell.wer_high, cell.interval, cell.p_value) == (None,) * 4
        assert (cell.cer_low, cell.difference_low, cell.difference_high) == (None,) * 3
    document = write_comparison(
        tmp_path, one, [cost("supernet"), cost("pruned")], rows=METHODS, reference=None,
        wandb="off", console=Console(quiet=True),
    )  # fmt: skip
    assert document["rows"][0]["p_value"] is None
    assert all(mean.p_value is None for mean in means)
    text = (tmp_path / "compare.md").read_text()
    assert " (-) |" in text
    assert "None" not in text
