"""How sparsity grows with the steps of a training."""

from __future__ import annotations


def sparsity_at(
    step: int, *, begin: int, end: int, initial: float, final: float, exponent: float = 3.0
) -> float:
    """Scheduled sparsity after ``step`` optimizer steps.

    Args:
        step: Optimizer steps done.
        begin: Steps after which pruning starts, t_0.
        end: Steps after which ``final`` is reached, at least ``begin``.
        initial: Sparsity at ``begin``, s_i in [0, 1].
        final: Sparsity from ``end`` on, s_f, at least ``initial``.
        exponent: 3 for the published schedule.

    Returns:
        s_f + (s_i - s_f) (1 - (t - t_0) / (t_f - t_0))^exponent between the two, 0 before
        ``begin``, ``final`` after ``end``; never falls as ``step`` grows.

    Source: Zhu & Gupta 2017, eq. 1; with ``initial`` 0 Pang et al. 2018, eq. 12.
    """
    if step >= end:
        return final
    if step < begin:
        return 0.0
    left = 1.0 - (step - begin) / (end - begin)
    return float(final + (initial - final) * left**exponent)
