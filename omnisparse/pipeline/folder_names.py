"""Names of the folders that ``omnisparse extract`` writes where the user names none."""

from __future__ import annotations

from omnisparse.runs.directory import RunDescription


def folder_name(
    request: str,
    description: RunDescription,
    *,
    precision: str = "fp32",
    block: str | None = None,
    norm: str = "l1",
    scope: str = "layer",
    floor: float = 0.0,
    format: str = "bitmask",
    times: bool = False,
) -> str:
    """A name that is different for every choice of options, so that no model replaces another.

    Args:
        request: What was asked for, such as ``25pct``.
        description: The run's net.
        precision: This and all others as of :func:`omnisparse.pipeline.extract.extract`.
        block: None is the block shape of the training.
        norm: Score of a block.
        scope: How matrices share the size.
        floor: Least share that a matrix keeps.
        format: ``bitmask`` or ``dense``.
        times: Whether the CTC layer is kept.

    Returns:
        The request, and the options that differ from their defaults: ``25pct-int8-8x1``.
    """
    trained = description.block + ("-in-part" if description.single else "")
    options = [
        (precision, "fp32"), (trained if block is None else block, trained), (scope, "layer"),
        (norm, "l1"), (f"floor{float(floor)}", "floor0.0"), (format, "bitmask"),
        ("times" if times else "", ""),
    ]  # fmt: skip
    return "-".join([request, *(own for own, default in options if own != default)])
