"""Sentences of the embedded corpus: a voice-assistant grammar, and normalisation of a user's text.

The grammar is context-free and stored as data: a rule is a tuple of alternatives, and ``{name}``
in an alternative stands for the rule ``name``. Sentences contain only lower-case letters,
apostrophes and single spaces, so that the text is exactly what is spoken.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from omnisparse.errors import DataError

Grammar = Mapping[str, tuple[str, ...]]

SPLITS = ("train", "dev", "test")

GRAMMAR_HELD_OUT = {"test": 0.20, "dev": 0.10}
TEXT_HELD_OUT = {"test": 0.10, "dev": 0.05}
"""Share of the sentences that dev and test get; training gets the rest. The share is larger for
the grammar: it has plenty of sentences, and even its smallest template must fill a test split."""

MAX_REDRAWS = 40
"""How often a sentence is drawn again because it is a duplicate or belongs to another split.
After that a duplicate is accepted: templates stay equally frequent and sentences never run out."""

MAX_WORDS = 30
"""Longer lines of a user's text are cut into pieces of at most this many words."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(" ".join(phrase.split()) for phrase in text.split(","))


_ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = _words("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen")
_TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")


def spell_number(number: int) -> str:
    """Spell a whole number in English words, such as ``one hundred and five``.

    Args:
        number: From 0 to 999,999.

    Raises:
        ValueError: If ``number`` is outside that range.
    """
    if not 0 <= number < 1_000_000:
        raise ValueError(f"number must be in [0, 999999], got {number}")
    if number >= 1000:
        rest = f" {spell_number(number % 1000)}" if number % 1000 else ""
        return f"{spell_number(number // 1000)} thousand{rest}"
    if number >= 100:
        rest = f" and {spell_number(number % 100)}" if number % 100 else ""
        return f"{_ONES[number // 100 - 1]} hundred{rest}"
    if number >= 20:
        rest = f" {_ONES[number % 10 - 1]}" if number % 10 else ""
        return f"{_TENS[number // 10 - 2]}{rest}"
    return ("zero", *_ONES, *_TEENS)[number]


_COMMON: dict[str, tuple[str, ...]] = {
    "digit": ("zero", *_ONES),
    "hour": tuple(spell_number(n) for n in range(1, 13)),
    "minute": tuple(spell_number(n) for n in range(10, 60)),
    "percent": tuple(spell_number(n) for n in range(5, 100)),
    "count": tuple(spell_number(n) for n in range(2, 41)),
    "number": tuple(spell_number(n) for n in range(2, 1000)),
    "weekday": _words("monday tuesday wednesday thursday friday saturday sunday"),
    "month": _words(
        "january february march april may june july august september october november december"
    ),
    "ordinal": _phrases(
        "first, second, third, fourth, fifth, sixth, seventh, eighth, ninth, tenth, eleventh,"
        "twelfth, thirteenth, fourteenth, fifteenth, sixteenth, seventeenth, eighteenth,"
        "nineteenth, twentieth, twenty first, twenty second, twenty third, twenty fourth,"
        "twenty fifth, twenty sixth, twenty seventh, twenty eighth, twenty ninth, thirtieth"
    ),
    "time": ("{hour} {minute}", "{hour} o'clock", "half past {hour}", "quarter to {hour}"),
    "daytime": ("in the morning", "in the afternoon", "in the evening", "tonight"),
    "day": ("today", "tomorrow", "on {weekday}", "next {weekday}"),
    "date": ("{month} {ordinal}", "the {ordinal} of {month}"),
}

ASSISTANT: Grammar = {
    **_COMMON,
    "sentence": (
        "{please} set an alarm for {time} {daytime}",
        "wake me up at {time} {day}",
        "set a timer for {count} {unit}",
        "remind me to {chore} {day} at {time}",
        "remind me on {date} to {chore}",
        "{please} call {name} on the {phone}",
        "send a message to {name} saying {note}",
        "play some {genre} music in the {room}",
        "play {title} by {name} {surname}",
        "turn {switch} the {device} in the {room}",
        "set the {color} {device} to {percent} percent",
        "make the {room} {adjective} {day}",
        "what is the weather like in {place} {day}",
        "how long does it take to {travel} from {place} to {place}",
        "find the nearest {venue} in {place}",
        "book a table for {count} at the {venue} {day} at {time}",
        "add {count} {measure} of {food} to my {list} list",
        "do we still have {food} and {food}",
        "how many {measure} are there in {number} {measure}",
        "what is {number} {operator} {number}",
        "the code is {digit} {digit} {digit} {digit}",
        "dial {digit} {digit} {digit} {digit} {digit} {digit} {digit}",
        "my flight to {place} leaves on {date} at {time}",
        "read the {topic} news from {place}",
        "move my meeting with {name} {surname} to {weekday} at {time}",
        "how do you say {animal} in {language}",
        "tell me a {adjective} story about a {animal} and a {animal}",
        "{please} lock the {color} door of the {room}",
    ),
    "please": ("please", "could you", "can you please", "would you kindly", "i want you to"),
    "unit": ("seconds", "minutes", "hours"),
    "phone": _phrases("mobile, home phone, office line, speaker, video"),
    "switch": _phrases("on, off, up, down"),
    "operator": _phrases("plus, minus, times, divided by"),
    "color": _words(
        "red blue green yellow orange purple white black brown golden silver pink violet gray"
    ),
    "adjective": _words(
        "warmer cooler brighter darker quieter louder short funny scary happy sad strange gentle"
        " famous secret clean cozy festive"
    ),
    "room": _words(
        "kitchen bedroom bathroom garage garden hallway office basement attic nursery cellar"
        " balcony library lounge workshop porch study corridor"
    ),
    "device": _words(
        "light lamp heater fan television radio oven dishwasher speaker thermostat vacuum camera"
        " projector kettle blinds curtains humidifier printer fireplace freezer sprinkler"
    ),
    "chore": _phrases(
        "water the plants, feed the cat, walk the dog, pay the rent, wash the car, buy stamps,"
        "take out the garbage, return the library books, charge the bicycle, iron the shirts,"
        "clean the windows, renew my passport, pick up the children, visit the dentist,"
        "sharpen the knives, mow the lawn, cancel the subscription, sign the contract,"
        "paint the fence, order more coffee, check the smoke alarm, change the filter"
    ),
    "note": _phrases(
        "i am running late, dinner is ready, see you soon, happy birthday, call me back,"
        "the train is delayed, good luck with the exam, meet me at the station, i love you,"
        "the package has arrived, bring your umbrella, the party starts at {hour},"
        "i left the keys under the mat, we won the game, thank you for everything, where are you"
    ),
    "name": _words(
        "james mary robert patricia john jennifer michael linda david elizabeth william barbara"
        " richard susan joseph jessica thomas sarah charles karen daniel nancy matthew betty"
        " anthony sandra mark ashley steven emily andrew olivia kenneth amanda joshua melissa"
        " kevin deborah brian stephanie george rebecca edward laura jacob sharon gary cynthia"
        " nicholas kathleen eric amy jonathan angela stephen anna justin ruth oliver sophia"
        " benjamin victoria samuel rachel patrick helen peter martha henry alice"
    ),
    "surname": _words(
        "smith johnson brown jones miller wilson anderson taylor moore jackson harris thompson"
        " robinson walker allen wright scott torres hill baker nelson carter mitchell roberts"
        " turner phillips campbell parker evans edwards collins stewart morris murphy cooper"
    ),
    "place": _phrases(
        "london, paris, berlin, madrid, rome, vienna, prague, warsaw, lisbon, dublin, oslo,"
        "stockholm, helsinki, athens, moscow, cairo, nairobi, lagos, delhi, mumbai, bangkok,"
        "singapore, tokyo, seoul, beijing, sydney, melbourne, auckland, toronto, montreal,"
        "vancouver, chicago, boston, seattle, dallas, denver, houston, miami, atlanta, phoenix,"
        "new york, los angeles, san francisco, mexico, havana, lima, bogota, santiago,"
        "geneva, zurich, munich, hamburg, brussels, amsterdam, budapest, istanbul"
    ),
    "venue": _words(
        "restaurant bakery pharmacy cinema museum hospital bank airport station hotel cafe"
        " theater supermarket gym school stadium zoo church market castle"
    ),
    "travel": _words("drive walk fly cycle travel"),
    "genre": _words(
        "jazz rock classical country electronic folk blues metal reggae opera disco gospel punk"
        " latin acoustic ambient"
    ),
    "title": _phrases(
        "summer rain, golden river, midnight train, broken window, silver moon, dancing shadows,"
        "paper boats, electric heart, lonely mountain, winter sun, ocean drive, empty streets,"
        "wild horses, yesterday's letter, crystal tower, burning bridges, distant thunder"
    ),
    "measure": _phrases(
        "bottles, boxes, bags, pounds, grams, liters, cups, pints, ounces, gallons, inches, miles,"
        "dozens, packets, cans, jars, slices, spoons"
    ),
    "food": _words(
        "apples bananas oranges potatoes tomatoes onions carrots rice pasta bread butter cheese"
        " milk yogurt eggs chicken beef salmon flour sugar salt pepper honey coffee tea juice"
        " chocolate cookies spinach lettuce garlic mushrooms beans lentils almonds walnuts olives"
        " vinegar mustard strawberries cherries grapes lemons"
    ),
    "list": _words("shopping grocery party weekend holiday picnic"),
    "topic": _words("local business sports science political financial health technology morning"),
    "animal": _words(
        "dog cat horse elephant tiger rabbit penguin dolphin eagle monkey giraffe squirrel turtle"
        " crocodile butterfly hedgehog kangaroo wolf sheep donkey camel octopus"
    ),
    "language": _words(
        "french german spanish italian portuguese japanese chinese korean russian arabic hindi"
        " swedish dutch polish greek turkish finnish"
    ),
}

ASSISTANT_EASY: Grammar = {
    **_COMMON,
    "sentence": (
        "set an alarm for {time} {daytime}",
        "remind me to {chore} {day}",
        "call {name} on the {phone}",
        "play some {genre} music in the {room}",
        "turn {switch} the {device} in the {room}",
        "what is the weather like in {place} {day}",
        "add {count} {measure} of {food} to my list",
        "the code is {digit} {digit} {digit} {digit}",
    ),
    "hour": ASSISTANT["digit"][1:],
    "minute": _TENS[:4] + _TEENS[:1] + _TEENS[5:6],
    "count": ASSISTANT["digit"][2:],
    "chore": ASSISTANT["chore"][:10],
    "phone": ASSISTANT["phone"][:2],
    "switch": ASSISTANT["switch"],
    "room": ASSISTANT["room"][:10],
    "device": ASSISTANT["device"][:8],
    "genre": ASSISTANT["genre"][:12],
    "name": ASSISTANT["name"][:30],
    "place": ASSISTANT["place"][:20],
    "measure": ASSISTANT["measure"][:6],
    "food": ASSISTANT["food"][:20],
}

GRAMMARS: Mapping[str, Grammar] = {
    "assistant": ASSISTANT,
    "assistant-easy": ASSISTANT_EASY,
    "assistant-voices": ASSISTANT_EASY,
    "assistant-strangers": ASSISTANT_EASY,
}

_SLOT = re.compile(r"\{(\w+)\}")


def vocabulary(grammar: Grammar) -> set[str]:
    """Every word that some sentence of ``grammar`` contains."""
    reached: set[str] = set()
    pending = ["sentence"]
    words: set[str] = set()
    while pending:
        rule = pending.pop()
        if rule in reached:
            continue
        reached.add(rule)
        for alternative in grammar[rule]:
            pending.extend(_SLOT.findall(alternative))
            words.update(_SLOT.sub(" ", alternative).split())
    return words


def generate_sentence(grammar: Grammar, template: str, rng: np.random.Generator) -> str:
    """Fill the slots of ``template``: every alternative of a rule is equally likely."""

    def expand(match: re.Match[str]) -> str:
        alternatives = grammar[match.group(1)]
        return _SLOT.sub(expand, alternatives[int(rng.integers(len(alternatives)))])

    return _SLOT.sub(expand, template)


def split_of(sentence: str, seed: int) -> str:
    """Split that a sentence of the grammar belongs to: a pure function of sentence and seed."""
    digest = hashlib.blake2b(f"{seed}:{sentence}".encode(), digest_size=8).digest()
    position = int.from_bytes(digest, "big") / 2**64
    for split, share in GRAMMAR_HELD_OUT.items():
        if position < share:
            return split
        position -= share
    return "train"


def assistant_sentences(grammar: Grammar, split: str, seed: int) -> Iterator[str]:
    """Endless sentences of one split, without duplicates until a template has (almost) none left.

    Args:
        grammar: Where to draw from.
        split: ``train``, ``dev`` or ``test``.
        seed: Decides the draws and which sentences belong to which split.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), 1])
    templates = grammar["sentence"]
    spoken: set[str] = set()
    while True:
        template = templates[int(rng.integers(len(templates)))]
        found: str | None = None
        for _ in range(MAX_REDRAWS):
            sentence = generate_sentence(grammar, template, rng)
            if split_of(sentence, seed) != split:
                continue
            found = sentence
            if found not in spoken:
                break
        if found is not None:
            spoken.add(found)
            yield found


def text_sentences(sentences: list[str], split: str, seed: int) -> Iterator[str]:
    """Endless sentences of one split of a user's text: every sentence once, then all again.

    Args:
        sentences: Different sentences, at least 3.
        split: ``train``, ``dev`` or ``test``.
        seed: Decides which sentences belong to which split, and their order.
    """
    order = np.random.default_rng([seed, 2]).permutation(len(sentences))
    num_test = max(1, round(TEXT_HELD_OUT["test"] * len(sentences)))
    num_dev = max(1, round(TEXT_HELD_OUT["dev"] * len(sentences)))
    bounds = {
        "test": slice(0, num_test),
        "dev": slice(num_test, num_test + num_dev),
        "train": slice(num_test + num_dev, None),
    }
    own = order[bounds[split]]
    rng = np.random.default_rng([seed, SPLITS.index(split), 3])
    while True:
        for index in rng.permutation(own):
            yield sentences[int(index)]


def normalise_sentence(line: str) -> str:
    """Lower-case letters, apostrophes and single spaces; numbers are spelled, accents dropped."""
    line = line.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    line = re.sub(r"(?<=\d),(?=\d{3})", "", line)
    line = re.sub(r"\d+", _spell_digits, line)
    decomposed = unicodedata.normalize("NFKD", line).lower()
    plain = "".join(c for c in decomposed if not unicodedata.combining(c))
    words = re.sub(r"[^a-z']+", " ", plain).split()
    return " ".join(word for word in words if word.strip("'"))


def _spell_digits(match: re.Match[str]) -> str:
    digits = match.group()
    if len(digits) > 6 or (digits.startswith("0") and len(digits) > 1):
        return " " + " ".join(spell_number(int(digit)) for digit in digits) + " "
    return f" {spell_number(int(digits))} "


def read_sentences(path: Path) -> list[str]:
    """Read a UTF-8 text, one sentence per line, and normalise it.

    Empty lines and duplicates are dropped; lines of more than 30 words are cut into pieces.

    Raises:
        DataError: If the file cannot be read, is not UTF-8, or has fewer than 3 different
            sentences (each of the three splits needs one).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"text {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"text {path} is not UTF-8 (byte {error.start})") from error
    sentences: dict[str, None] = {}
    for line in text.splitlines():
        words = normalise_sentence(line).split()
        for start in range(0, len(words), MAX_WORDS):
            sentences[" ".join(words[start : start + MAX_WORDS])] = None
    if len(sentences) < 3:
        raise DataError(
            f"text {path} has {len(sentences)} different sentences with letters; "
            "at least 3 are needed, one sentence per line"
        )
    return list(sentences)
