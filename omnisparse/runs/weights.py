"""Other weights that a training wrote beside its last; each is a run directory of its own."""

from __future__ import annotations

from pathlib import Path

from omnisparse.errors import OmnisparseError


def weights_of(path: Path, weights: str) -> Path:
    """The run directory that holds the wanted weights of a run.

    Args:
        path: A run directory.
        weights: ``last``, or what its training wrote beside: ``ema``, ``average``, ``best``.

    Raises:
        OmnisparseError: If the run has no such weights; names those that it has.
    """
    if weights == "last":
        return path
    folder = path / "weights" / weights
    if not (folder / "checkpoints").is_dir():
        found = sorted(other.parent.name for other in path.glob("weights/*/checkpoints"))
        raise OmnisparseError(
            f"{path}: the run has no weights {weights!r}; it has {', '.join(['last', *found])} "
            "(training.ema, training.average_checkpoints and training.evaluate_every make others)"
        )
    return folder


def run_name(run: Path) -> str:
    """Name of a run in results: ``las``, or ``las/ema`` of other weights of it; no link's name."""
    run, training = run.resolve(), training_folder(run)
    return run.name if run == training else f"{training.name}/{run.name}"


_SIZE = "size-"
"""What the names of models begin with that one pruning kept on its way, as 50% in size-50pct."""


def is_kept_size(weights: str) -> bool:
    """Whether weights of this name are a model that a pruning kept at another size."""
    return weights.startswith(_SIZE)


def training_folder(run: Path) -> Path:
    """The run of the training that made the weights in ``run``: itself, or the one they lie in."""
    run = run.resolve()
    return run.parents[1] if run.parent.name == "weights" else run


def kept_sizes(run: Path) -> dict[str, Path]:
    """Run directories of the models that a pruning kept at other sizes than its last."""
    return {
        place.parent.name.removeprefix(_SIZE).replace("pct", "%"): place.parent
        for place in sorted(run.glob(f"weights/{_SIZE}*/checkpoints"))
    }
