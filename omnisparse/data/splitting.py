"""Dividing a corpus into training, dev and test sets; each speaker is in only one of them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from omnisparse.errors import DataError, UsageError

if TYPE_CHECKING:
    from lhotse.cut import Cut

SPLITS = ("train", "dev", "test")
LEGAL = "legal: shares of train, dev and test such as 90/5/5, or of train and test such as 90/10"


class Split(NamedTuple):
    """A divided corpus."""

    cuts: dict[str, list[Cut]]
    """The utterances of each split, in the order of the corpus."""
    by: str
    """The unit that is never divided: ``speaker``, ``recording`` or ``utterance``."""
    notes: tuple[str, ...]
    """Remarks for the user, for example why speakers could not be kept together."""


def parse_shares(text: str) -> dict[str, float]:
    """Read ``90/5/5`` (train, dev, test) or ``90/10`` (train, test).

    Returns:
        Share of each split, in (0, 1); together 1.

    Raises:
        UsageError: If it has neither form, a share is not above 0, or the sum is not 100.
    """
    try:
        numbers = [float(part) for part in text.split("/")]
    except ValueError:
        numbers = []
    names = {3: SPLITS, 2: (SPLITS[0], SPLITS[-1])}.get(len(numbers))
    if names is None or not min(numbers) > 0 or abs(sum(numbers) - 100) > 1e-6:
        raise UsageError(f"split {text!r} is not understood; {LEGAL} (100 together)")
    return {name: number / 100 for name, number in zip(names, numbers, strict=True)}


def require_one_split(names: Sequence[str], what: str) -> None:
    """Refuse to divide a corpus that already has splits.

    Raises:
        DataError: If it has several splits; names them.
    """
    if len(names) > 1:
        raise DataError(f"{what}: already has the splits {', '.join(names)}; leave --split out")


def split_cuts(cuts: Sequence[Cut], shares: Mapping[str, float], *, seed: int = 0) -> Split:
    """Divide utterances so that no speaker is in two splits, with durations close to the shares.

    The order of speakers depends only on the seed and their names, not on the order of the
    utterances. With fewer named speakers than splits, whole recordings are kept together instead.
    With fewer recordings than splits, the utterances are divided. A note reports this.

    Args:
        cuts: Utterances, at least as many as splits.
        shares: Wanted share of the duration of each split; the sum is 1.
        seed: Seed of the order.

    Raises:
        DataError: If there are fewer utterances than splits.
    """
    if len(cuts) < len(shares):
        raise DataError(f"{len(cuts)} utterances cannot be divided into {len(shares)} splits")
    notes: list[str] = []
    by, keys = "speaker", _speakers(cuts)
    named = {key for key in keys if key[0] == "speaker"}
    unnamed = sum(key[0] != "speaker" for key in keys)
    if len(named) < len(shares):
        by, keys = "recording", [("recording", _file(cut)) for cut in cuts]
        if len(set(keys)) < len(shares):
            by, keys = "utterance", [("utterance", cut.id) for cut in cuts]
        few = f"{len(named)} speakers are named" if named else "no speakers are named"
        notes.append(f"{few}: split by {by}, so one voice may be in several splits")
    elif unnamed:
        notes.append(
            f"{unnamed} utterances name no speaker: all are in {next(iter(shares))}, and may be "
            "by voices of the other splits"
        )
    seconds: dict[Hashable, float] = defaultdict(float)
    for cut, key in zip(cuts, keys, strict=True):
        seconds[key] += cut.duration
    place = _assign(seconds, shares, seed)
    divided: dict[str, list[Cut]] = {name: [] for name in shares}
    for cut, key in zip(cuts, keys, strict=True):
        divided[place[key]].append(cut)
    return Split(divided, by, tuple(notes))


def _speakers(cuts: Sequence[Cut]) -> list[tuple[str, str]]:
    """Groups that stay together: the utterances of a speaker, and those without a speaker."""
    names = [next((one.speaker for one in cut.supervisions if one.speaker), None) for cut in cuts]
    return [("", "") if name is None else ("speaker", str(name)) for name in names]


def _file(cut: Cut) -> str:
    return str(cut.recording.sources[0].source)


def _assign(
    seconds: Mapping[Hashable, float], shares: Mapping[str, float], seed: int
) -> dict[Hashable, str]:
    """The split of every group: the one that lacks most; the last groups fill empty splits."""
    order = sorted(seconds, key=str)
    random.Random(seed).shuffle(order)
    # An unnamed speaker may be anyone, so these utterances are never in dev or test.
    order.sort(key=lambda key: key != ("", ""))
    total = sum(seconds.values())
    lacking = {name: share * total for name, share in shares.items()}
    empty = list(shares)
    place: dict[Hashable, str] = {}
    for number, key in enumerate(order):
        left = len(order) - number
        chosen = max(lacking, key=lambda name: lacking[name])
        if key == ("", ""):
            chosen = next(iter(shares))
        elif left <= len(empty):
            chosen = empty[0]
        place[key] = chosen
        empty = [name for name in empty if name != chosen]
        lacking[chosen] -= seconds[key]
    return place
