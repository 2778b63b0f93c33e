"""Proposals that a genetic search of optuna counts among its parents, also those that we made."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna


def ask(study: optuna.Study) -> optuna.Trial:
    """Ask for the next trial, as a member of its generation.

    optuna gives a trial its generation when the sampler is asked for the first value. All values of
    an enqueued trial are there already, so nobody asks, and NSGA-II never takes it for a parent
    (seen with optuna 4.0 to 5.0; ``findings/optuna_nsga2_enqueued_trials.sh``). Asking here for
    what the sampler proposes makes it a member; values that were enqueued stay as they are.

    Args:
        study: With any sampler.

    Returns:
        The trial, to be told as usual.
    """
    trial = study.ask()
    _ = trial.relative_params
    return trial
