"""Voices of the embedded corpus: the list of voices, and the split of each voice."""

from __future__ import annotations

from collections import Counter

import numpy as np

from omnisparse.synthetic.espeak import list_variants
from omnisparse.synthetic.text import SPLITS

ACCENTS = (
    "en",
    "en-us",
    "en-us-nyc",
    "en-029",
    "en-gb-scotland",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-gb-x-rp",
)
"""espeak-ng's English accents: Britain, America, New York, Caribbean, Scotland, Lancaster, West
Midlands, Received Pronunciation."""

DROPPED_VARIANTS = frozenset(
    (
        # Whispers and croaks.
        *("whisper", "whisperf", "caleb", "croak"),
        # Robots and echoes.
        *("UniRobot", "anikaRobot", "announcer", "RicishayMax", "RicishayMax2", "RicishayMax3"),
        *("robosoft", *(f"robosoft{number}" for number in range(2, 9))),
        # Caricatures: their vowels are not natural, or the output clips all the time.
        *("Demonic", "zac", "kaukovalta", "travis", "Marco", "iven"),
        # Reads uninitialised memory (Klatt with breath): the same call may give other samples.
        "Reed",
    )
)

EASY_VARIANTS = {
    "female": ("Annie", "belinda", "f1", "f2", "f3", "f4", "f5", "linda", "steph"),
    "male": ("Alex", "Andy", "Mike", "m1", "m2", "m3", "m4", "m6", "m7"),
}
"""Plain, clearly spoken variants for the easy preset."""

FEMALE_VARIANTS = frozenset(
    (
        *("f1", "f2", "f3", "f4", "f5", "steph", "steph2", "steph3"),
        *("Alicia", "Andrea", "Annie", "anika", "aunty", "belinda", "grandma", "linda", "shelby"),
    )
)

# Variants of one family sound almost the same; they count as one person.
FAMILIES = {
    "Gene2": "Gene",
    "edward2": "edward",
    "iven3": "iven2",
    "iven4": "iven2",
    "klatt2": "klatt",
    "klatt3": "klatt",
    "klatt4": "klatt",
    "klatt5": "klatt",
    "klatt6": "klatt",
    "mike2": "Mike",
    "steph2": "steph",
    "steph3": "steph",
    "AnxiousAndy": "Andy",
}


def list_voices(variants: tuple[str, ...], accents: tuple[str, ...] = ACCENTS) -> tuple[str, ...]:
    """Every pair of accent and variant, as espeak-ng voice names."""
    return tuple(f"{accent}+{variant}" for variant in variants for accent in accents)


def usable_variants() -> tuple[str, ...]:
    """The bundled variants that are intelligible and reproducible, sorted."""
    return tuple(name for name in list_variants() if name not in DROPPED_VARIANTS)


def split_voices(preset: str, seed: int) -> dict[str, tuple[str, ...]]:
    """Voices of every split. No two splits share a variant or a near copy of one.

    All splits have the same accents. Female and male variants are held out in proportion. A voice
    is a pair of accent and variant such as ``en-us+f3``.
    """
    rng = np.random.default_rng([seed, 4])
    easy = preset == "assistant-easy"
    accents = ("en-us", "en-gb-x-rp") if easy else ACCENTS
    if easy:
        groups = [list(EASY_VARIANTS["female"]), list(EASY_VARIANTS["male"])]
        num_held_out = [{"test": 2, "dev": 1}, {"test": 2, "dev": 1}]
    else:
        variants = usable_variants()
        groups = [
            [name for name in variants if (name in FEMALE_VARIANTS) is female]
            for female in (True, False)
        ]
        num_held_out = [{"test": 2, "dev": 1}, {"test": 6, "dev": 3}]
    chosen: dict[str, list[str]] = {split: [] for split in SPLITS}
    for group, wanted in zip(groups, num_held_out, strict=True):
        # Only variants without near copies are held out, so that no person is in two splits.
        families = Counter(FAMILIES.get(name, name) for name in group)
        single = [name for name in group if families[FAMILIES.get(name, name)] == 1]
        order = [single[i] for i in rng.permutation(len(single))]
        for split, num_variants in wanted.items():
            chosen[split] += [order.pop() for _ in range(num_variants)]
        chosen["train"] += [name for name in group if name in order or name not in single]
    return {split: list_voices(tuple(sorted(chosen[split])), accents) for split in SPLITS}
