"""Names of utterances to which their corpus gives none: of the file, and of what tells it apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from omnisparse.data.validation import Item


def with_distinct_names(items: Sequence[Item]) -> list[Item]:
    """The same items, those without a name of their own named apart.

    A name is that of the file without its ending, with the offset of a stretch. Where two would be
    the same, it gets what differs: the ending, the exact offset, the duration, the channels. Only
    the same stretch of the same channels of the same file keeps a name twice.
    """
    names = [item.id if item.is_named else _steps[0](item) for item in items]
    for step in _steps[1:]:
        counts = Counter(names)
        names = [
            step(item) if not item.is_named and counts[name] > 1 else name
            for item, name in zip(items, names, strict=True)
        ]
    return [replace(item, id=name) for item, name in zip(items, names, strict=True)]


def _short(item: Item) -> str:
    return item.id + (f"@{item.offset:.3f}" if item.segment else "")


def _with_channels(item: Item) -> str:
    return _short(item) + _channels(item)


def _with_exact_times(item: Item) -> str:
    if not item.segment:
        return _with_channels(item)
    duration = "" if item.duration is None else f"+{item.duration!r}"
    return f"{item.id}@{item.offset!r}{duration}{_channels(item)}"


def _with_ending(item: Item) -> str:
    name = _with_exact_times(item)
    return f"{item.id}{item.path.suffix}{name.removeprefix(item.id)}"


def _channels(item: Item) -> str:
    return "" if item.channels is None else "#" + "+".join(map(str, item.channels))


_steps: tuple[Callable[[Item], str], ...] = (
    _short,
    _with_channels,
    _with_exact_times,
    _with_ending,
)
