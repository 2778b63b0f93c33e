"""The verbs that make models of a size: ``extract`` and ``grow``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omnisparse.cli.group import PATH, FiniteRange, Report, reports
from omnisparse.cli.weights import takes_weights
from omnisparse.console import format_bytes, format_seconds

if TYPE_CHECKING:
    from omnisparse.sparsity.allocation import Scope
    from omnisparse.sparsity.ranking import Norm

SIZE_HELP = (
    "16M = non-zero parameters of the whole model; 16MB/16MiB = bytes of the files written; "
    "25% = of the dense net's parameters."
)

PREFIX_SIZE_HELP = (
    "16M = non-zero parameters of the whole model; 25% = of the dense net's parameters; "
    "16MB/16MiB = the first bytes of the file."
)


@click.command()
@click.option("--size", help=SIZE_HELP)
@click.option(
    "--sparsity", type=float, help="Share of zeros among the prunable weights, in [0, 1)."
)
@click.option(
    "--latency", metavar="TIME",
    help="The largest model that takes at most so long for 40 ms of audio here, such as 5ms.",
)  # fmt: skip
@click.option(
    "--rtf", type=FiniteRange(min=0, min_open=True),
    help="The same as a real-time factor: 0.05 is 2 ms for 40 ms.",
)  # fmt: skip
@click.option("--run", type=PATH, help="Run directory; runs/latest if unset.")
@click.option("--spec", type=PATH, help="Sparsity of each layer, as JSON.")
@click.option(
    "--front", type=PATH,
    help="Take the spec of --size from what `search` found (its folder, or front.json in it); of a "
    "size in bytes, or a time such as 5ms, the best that fits.",
)  # fmt: skip
@click.option("--from", "place", help="Nested file, or its http(s) address, instead of a run.")
@click.option(
    "--prefix", type=PATH, metavar="FILE",
    help="With --from and --size: write the first bytes that hold the size, a smaller nested file.",
)  # fmt: skip
@click.option("--nested", is_flag=True, help="Write every size into one file, smallest first.")
@click.option("--out", type=PATH, help="Artifact directory (or nested file) to write.")
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    help="How the weights are stored; fp32 if unset, with --from that of the file.",
)  # fmt: skip
@click.option(
    "--block", type=click.Choice(["1x1", "8x1", "16x1", "4x4"]),
    help="Weights (outputs x inputs) kept or dropped together; as in training if unset.",
)  # fmt: skip
@click.option(
    "--norm", type=click.Choice(["l1", "l2"]), default="l1", show_default=True,
    help="Score of a block: the sum of its magnitudes, or of their squares.",
)  # fmt: skip
@click.option(
    "--scope", type=click.Choice(["layer", "global", "lamp"]), default="layer", show_default=True,
    help="How matrices share the size; a supernet is trained with layer.",
)  # fmt: skip
@click.option(
    "--floor", type=float, default=0.0, show_default=True,
    help="Least share of its weights that any matrix keeps, in [0, 1]; at least one weight.",
)  # fmt: skip
@click.option(
    "--format", "format_", type=click.Choice(["bitmask", "dense"]), default="bitmask",
    show_default=True, help="Store kept weights and a bit mask, or every weight.",
)  # fmt: skip
@click.option(
    "--times", is_flag=True,
    help="Keep the CTC layer, which only training needs and which tells the word times of a LAS.",
)  # fmt: skip
@click.option(
    "--low-rank", is_flag=True,
    help="With --size: products of two factors in place of masks, by truncated SVD.",
)  # fmt: skip
@click.option("--rank-spec", type=PATH, help="Rank of each matrix that is factored, as JSON.")
@click.option(
    "--scheme", type=click.Choice(["stacked", "per_gate", "joint"]), default="stacked",
    show_default=True,
    help="With --low-rank, of LSTM layers: a product of all gates, of each gate, or a projection "
    "that two layers share.",
)  # fmt: skip
@reports
@takes_weights("run")
def extract(
    report: Report, latency: str | None, rtf: float | None, low_rank: bool,
    rank_spec: Path | None, scheme: str, **options: Any,
) -> Mapping[str, Any]:  # fmt: skip
    """Write a deployable model of any size from a trained supernet, without retraining."""
    if low_rank or rank_spec is not None:
        if latency is not None or rtf is not None:
            raise click.UsageError("--latency and --rtf do not go with --low-rank and --rank-spec")
        result = _extract_low_rank(low_rank, rank_spec, scheme, **options)
    elif scheme != "stacked":
        raise click.UsageError("--scheme goes with --low-rank")
    elif latency is not None or rtf is not None:
        result = _extract_in_time(report, latency, rtf, **options)
    else:
        if options["times"] and (options["nested"] or options["place"] or options["front"]):
            raise click.UsageError("--times does not go with --nested, --from and --front")
        _check_extract_usage(**options)
        result = _extract(report, **options)
    show_model(report, result)
    show_bands(report, result.get("prefixes") or result.get("bands") or [])
    report.note(f"written to {result['path']} in {format_seconds(result['seconds'])}")
    return result


def _extract_in_time(
    report: Report, latency: str | None, rtf: float | None, *, size: str | None,
    sparsity: float | None, spec: Path | None, front: Path | None, place: str | None,
    prefix: Path | None, nested: bool, run: Path | None, precision: str | None, format_: str,
    **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """The largest model that is fast enough on this machine."""
    if (size, sparsity, spec) != (None,) * 3 or (latency is not None and rtf is not None):
        raise click.UsageError(
            "give exactly one of --size, --sparsity, --spec, --latency and --rtf"
        )
    if (front, place, prefix) != (None,) * 3 or nested:
        raise click.UsageError(
            "--latency and --rtf do not go with --from, --prefix, --front and --nested"
        )
    from omnisparse.pipeline.extract_in_time import CHUNK_SECONDS, extract_in_time
    from omnisparse.sparsity.sizes import parse_latency

    seconds = parse_latency(latency) if latency is not None else (rtf or 0.0) * CHUNK_SECONDS
    result = extract_in_time(
        run, seconds=seconds, note=report.note, warn=report.warn,
        precision=precision or "fp32", format=format_, **options,
    )  # fmt: skip
    report.note(
        f"{result['latency_ms']:.3f} ms for 40 ms of audio, real-time factor {result['rtf']:.4f}"
    )
    return result


def _extract_low_rank(
    low_rank: bool, rank_spec: Path | None, scheme: Any, *, size: str | None, run: Path | None,
    out: Path | None, precision: str | None, **others: Any,
) -> dict[str, Any]:  # fmt: skip
    """Writes a factored model; refuses the options of masks."""
    from omnisparse.pipeline.low_rank import extract_low_rank

    defaults = {param.name: param.default for param in extract.params}
    for name, value in others.items():
        if value != defaults[name] and value not in (None, False):
            option = {"place": "from", "format_": "format"}.get(name, name)
            raise click.UsageError(
                f"--{option} does not go with --low-rank or --rank-spec: a factored model has no "
                "mask; it takes --size or --rank-spec, --run, --out and --precision"
            )
    if low_rank == (rank_spec is not None):
        raise click.UsageError("give --low-rank with --size, or --rank-spec alone")
    if rank_spec is not None and scheme != "stacked":
        raise click.UsageError('--scheme goes with --low-rank; a rank spec says "scheme" itself')
    return extract_low_rank(
        run, size=size, rank_spec=rank_spec, scheme=scheme, out=out, precision=precision or "fp32"
    )


def _check_extract_usage(
    *, size: str | None, sparsity: float | None, spec: Path | None, run: Path | None,
    front: Path | None, place: str | None, prefix: Path | None, nested: bool, out: Path | None,
    precision: str | None, block: str | None, norm: str, scope: str, floor: float, format_: str,
    **_: Any,
) -> None:  # fmt: skip
    """Refuses options of `extract` that contradict each other."""
    chosen = sum(choice is not None for choice in (size, sparsity, spec))
    plain = (block or "1x1", norm, scope) == ("1x1", "l1", "layer")
    if prefix is not None:
        alone = (sparsity, spec, run, front, out, precision) == (None,) * 6 and not nested
        if not alone or size is None or place is None or not plain or floor or format_ != "bitmask":
            raise click.UsageError("--prefix is legal only with --from and --size")
    if nested:
        if front is not None:
            raise click.UsageError(
                "--nested holds the sizes of one ranking, a front chooses anew for each size: take "
                "them one by one, --front FILE --size S without --nested"
            )
        if chosen or place is not None or not plain or format_ != "bitmask":
            raise click.UsageError(
                "--nested holds every size: give only --run, --out, --precision, --floor"
            )
        return
    if chosen != 1:
        raise click.UsageError("give exactly one of --size, --sparsity and --spec")
    if place is not None:
        alone = spec is None and run is None and front is None
        if not alone or not plain or floor:
            raise click.UsageError(
                "--from is legal with --size or --sparsity, "
                "not --run/--spec/--front/--block/--norm/--scope/--floor"
            )
        if out is None and prefix is None:
            raise click.UsageError("--from needs --out, or --prefix")


def _extract(
    report: Report, *, size: str | None, sparsity: float | None, spec: Path | None,
    run: Path | None, front: Path | None, place: str | None, prefix: Path | None, nested: bool,
    out: Path | None, precision: str | None, block: str | None, norm: Norm, scope: Scope,
    floor: float, format_: str, times: bool,
) -> dict[str, Any]:  # fmt: skip
    """Calls the function that the options of `extract` select."""
    from omnisparse.pipeline import extract as runs_extract
    from omnisparse.pipeline import nested as runs_nested

    if nested:
        return runs_nested.write_nested_run(
            run, out=out, precision=precision or "fp32", floor=floor, warn=report.warn
        )
    if place is not None and size is not None and prefix is not None:
        result = runs_nested.extract_prefix(place, size=size, out=prefix)
        report.note(
            f"a prefix ends where a band ends: {prefix} holds every model of up to "
            f"{result['nonzero']:,} non-zero parameters"
        )
        for line in result["warnings"]:
            report.warn(line)
        return result
    if place is not None and out is not None:
        return runs_nested.extract_nested(
            place, size=size, sparsity=sparsity, out=out, precision=precision, format=format_,
            warn=report.warn,
        )  # fmt: skip
    return runs_extract.extract(
        run, size=size, sparsity=sparsity, spec=spec, front=front, out=out,
        precision=precision or "fp32", block=block, norm=norm, scope=scope, floor=floor,
        format=format_, times=times, warn=report.warn,
    )  # fmt: skip


@click.command()
@click.argument("file", type=PATH)
@click.option("--from", "place", required=True, help="The whole nested file, or its address.")
@click.option("--size", required=True, help=PREFIX_SIZE_HELP)
@reports
def grow(report: Report, file: Path, place: str, size: str) -> Mapping[str, Any]:
    """Fetch the bytes that the nested FILE lacks for a larger size, and append them."""
    from omnisparse.pipeline import nested as runs_nested

    result = runs_nested.grow(file, place, size=size)
    report.note(
        f"{file}: {format_bytes(result['added'])} added, {format_bytes(result['bytes'])} now, "
        f"for models of up to {result['nonzero']:,} non-zero parameters"
    )
    return result


def show_bands(report: Report, bands: Sequence[Mapping[str, Any]]) -> None:
    """Shows the sizes at which a prefix of a nested file ends."""
    if not bands:
        return
    columns = ["models up to (non-zero)", "first bytes of the file", "size", "with masks", "here"]
    rows = [
        [
            f"{band['nonzero']:,}",
            f"{band['bytes']:,}",
            format_bytes(band["bytes"]),
            "-" if band["nonzero_with_mask"] is None else f"{band['nonzero_with_mask']:,.0f}",
            "yes" if band.get("present", True) else "no",
        ]
        for band in bands
    ]
    if all(row[-2] == "-" for row in rows):
        columns, rows = [*columns[:-2], "here"], [[*row[:-2], row[-1]] for row in rows]
    if all(row[-1] == "yes" for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    report.table(columns, rows)


def show_model(report: Report, result: Mapping[str, Any]) -> None:
    """Shows what a model holds: dense parameters, non-zero ones, and bytes."""
    share = 100 * result["nonzero"] / max(1, result["parameters"])
    report.note(
        f"{result['nonzero']:,} of {result['parameters']:,} parameters non-zero ({share:.1f} %), "
        f"sparsity {result['sparsity']:.4f}, {format_bytes(result['bytes'])}"
    )
    if "largest_layer" in result:
        largest = result["largest_layer"]
        report.note(
            f"with masks {result['nonzero_with_mask']:,.0f} parameters' worth "
            f"(compression {result['compression_rate']:.2f}x); largest layer {largest['layer']}: "
            f"{largest['nonzero']:,} non-zero"
        )
