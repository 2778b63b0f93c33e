"""Student's t distribution: two-sided probabilities and the half width of 95 % intervals."""

from __future__ import annotations

import math
from functools import lru_cache

MOST_FREEDOM = 10_000.0
"""More degrees of freedom than this are counted as this: the 95 % point differs by 0.0001."""

_TINY = 1e-300
_STEPS = 2000


def two_sided_p(t: float, freedom: float) -> float:
    """Probability in [0, 1] that a variable of Student's distribution is at least ``|t|`` away.

    Args:
        t: Value of the statistic.
        freedom: Degrees of freedom, above 0; need not be whole.

    Raises:
        ValueError: If ``freedom`` is not above 0.

    Source: Abramowitz & Stegun 1964, 26.7.1 (by the incomplete beta function) and 26.5.8 (its
        continued fraction).
    """
    if not freedom > 0:
        raise ValueError(f"freedom: expected more than 0, got {freedom}")
    if math.isinf(t):
        return 0.0
    freedom = min(freedom, MOST_FREEDOM)
    return _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


@lru_cache(maxsize=1024)
def half_width(freedom: float, confidence: float = 0.95) -> float:
    """How many standard errors an interval reaches to either side; 1.96 for many degrees.

    Args:
        freedom: Degrees of freedom, above 0.
        confidence: Share of the distribution within the interval, in (0, 1).

    Raises:
        ValueError: If ``freedom`` is not above 0.
    """
    low, high = 0.0, 2.0
    while two_sided_p(high, freedom) > 1 - confidence:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if two_sided_p(middle, freedom) > 1 - confidence else (low, middle)
        )
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b)."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    if x < (a + 1) / (a + b + 2):
        return front * _continued_fraction(a, b, x) / a
    return 1.0 - front * _continued_fraction(b, a, 1 - x) / b


def _continued_fraction(a: float, b: float, x: float) -> float:
    """26.5.8, evaluated by Lentz's method."""
    c, d = 1.0, 1.0 / _apart(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _STEPS):
        for part in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / _apart(1 + part * d)
            c = _apart(1 + part / c)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def _apart(value: float) -> float:
    """``value``, kept away from 0."""
    return value if abs(value) > _TINY else _TINY
