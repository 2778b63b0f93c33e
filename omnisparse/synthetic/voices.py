"""Voices of the embedded corpus: the list of voices, and the split of each voice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

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

VOICES_VARIANTS = {
    "female": (*EASY_VARIANTS["female"], "Alicia", "Andrea", "anika", "shelby"),
    "male": (
        *EASY_VARIANTS["male"],
        *("Denis", "Lee", "Michael", "adam", "antonio", "benjamin", "david", "ed", "ian", "john"),
        *("m5", "m8", "max", "michel", "pablo", "paul", "pedro", "quincy", "rob", "robert"),
    ),
}
"""More plain variants, for the preset with many test voices."""

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


_PLAIN_ACCENTS = ("en-us", "en-gb-x-rp")

_PLAIN: Mapping[str, tuple[Mapping[str, tuple[str, ...]], Sequence[Mapping[str, int]]]] = {
    "assistant-easy": (EASY_VARIANTS, [{"test": 2, "dev": 1}, {"test": 2, "dev": 1}]),
    "assistant-voices": (VOICES_VARIANTS, [{"test": 5, "dev": 2}, {"test": 11, "dev": 4}]),
}
"""Presets of plain voices: their variants, and how many female and male ones are held out."""


def list_voices(variants: tuple[str, ...], accents: tuple[str, ...] = ACCENTS) -> tuple[str, ...]:
    """Every pair of accent and variant, as espeak-ng voice names."""
    return tuple(f"{accent}+{variant}" for variant in variants for accent in accents)


def usable_variants() -> tuple[str, ...]:
    """The bundled variants that are intelligible and reproducible, sorted."""
    return tuple(name for name in list_variants() if name not in DROPPED_VARIANTS)


def split_voices(preset: str, seed: int) -> dict[str, tuple[str, ...]]:
    """Voices of every split. No two splits share a variant or a near copy of one.

    All splits have the same accents. Female and male variants are held out in proportion. A voice
    is a pair of accent and variant such as ``en-us+f3``. The held-out voices of
    ``assistant-voices`` have one accent each, so that they are as many different people. In the
    test of ``assistant-strangers`` all people speak of whom ``assistant-voices`` has none.
    """
    if preset == "assistant-strangers":
        voices = split_voices("assistant-voices", seed)
        return {**voices, "test": _one_accent_each(_strangers(), _PLAIN_ACCENTS)}
    rng = np.random.default_rng([seed, 4])
    plain = _PLAIN.get(preset)
    accents = ACCENTS if plain is None else _PLAIN_ACCENTS
    if plain is not None:
        variants_of, num_held_out = plain
        groups = [list(variants_of["female"]), list(variants_of["male"])]
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
    voices = {split: list_voices(tuple(sorted(chosen[split])), accents) for split in SPLITS}
    if preset == "assistant-voices":
        for split in ("dev", "test"):
            voices[split] = _one_accent_each(sorted(chosen[split]), accents)
    return voices


def _one_accent_each(names: Sequence[str], accents: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{accents[place % len(accents)]}+{name}" for place, name in enumerate(names))


def _strangers() -> list[str]:
    """A usable variant of every person whom ``assistant-voices`` does not have."""
    known = {FAMILIES.get(name, name) for names in VOICES_VARIANTS.values() for name in names}
    others = {FAMILIES.get(name, name): name for name in reversed(usable_variants())}
    return sorted(name for person, name in others.items() if person not in known)
