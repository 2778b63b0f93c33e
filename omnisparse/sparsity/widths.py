"""The widest net of a family that still fits: integer widths from a budget.

A family is a set of widths and all sets that come from multiplying them by one factor. The caller
defines what "fits" means (a number of parameters, or a number per layer). If a net fits, every
narrower net must fit, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

Widths = dict[str, int]

_LARGEST_FACTOR = 2.0**16
_PRECISION = 1e-9
_FILL_SHARE = 16


def scale_widths(
    template: Mapping[str, int], factor: float, multiples: Mapping[str, int]
) -> Widths:
    """Every width times ``factor``, rounded to its multiple, at least one multiple."""
    scaled = {}
    for name, width in template.items():
        step = multiples.get(name, 1)
        scaled[name] = max(step, round(width * factor / step) * step)
    return scaled


def solve_widths(
    template: Mapping[str, int],
    fits: Callable[[Widths], bool],
    *,
    multiples: Mapping[str, int] | None = None,
    fill: bool = True,
) -> Widths | None:
    """The widest member of a family that fits.

    Args:
        template: Any member of the family: widths by name, each at least 1.
        fits: Whether a member is within the budget; must not become true again as widths grow.
        multiples: Widths that must be multiples of a number (attention width: of its heads).
        fill: Whether to widen then one width after the other, in the order of ``template``, by up
            to a sixteenth while it fits. The common factor alone leaves up to a percent unused.

    Returns:
        The widths, or None if not even the narrowest member fits.

    Raises:
        ValueError: If a width is below 1, or nothing is too wide to fit.
    """
    steps = dict(multiples or {})
    low_width = min(template.values(), default=0)
    if low_width < 1:
        raise ValueError(f"template is {dict(template)}; every width must be at least 1")
    low, high = 0.0, 1.0
    if not fits(scale_widths(template, low, steps)):
        return None
    while fits(scale_widths(template, high, steps)):
        low, high = high, 2 * high
        if high > _LARGEST_FACTOR:
            raise ValueError("no width is too wide for this budget")
    while high - low > _PRECISION * high:
        middle = (low + high) / 2
        if fits(scale_widths(template, middle, steps)):
            low = middle
        else:
            high = middle
        if scale_widths(template, low, steps) == scale_widths(template, high, steps):
            break
    widths = scale_widths(template, low, steps)
    if fill:
        for name in template:
            _widen(widths, name, steps.get(name, 1), fits)
    return widths


def _widen(widths: Widths, name: str, step: int, fits: Callable[[Widths], bool]) -> None:
    """Add as many steps to one width as fit, up to a share of it."""
    start = widths[name]
    none, most = 0, max(1, start // (_FILL_SHARE * step)) + 1
    while most - none > 1:
        middle = (none + most) // 2
        if fits({**widths, name: start + middle * step}):
            none = middle
        else:
            most = middle
    widths[name] = start + none * step
