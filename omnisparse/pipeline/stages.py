"""Trainings that a method of several stages needs, one after the other.

Each stage is an ordinary run with its own folder, so it is resumed, inspected and evaluated as
every other run; a stage that is finished is not trained again. What is decided between two stages
(which net is the next teacher, which ranks to train) is a function of finished runs and is kept
beside them, so a command that was killed anywhere goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path

from omnisparse.artifact import is_artifact
from omnisparse.atomic import replaced_file
from omnisparse.config import RunConfig, config_to_dict
from omnisparse.errors import OmnisparseError
from omnisparse.evaluation.evaluate import Decoder, evaluate
from omnisparse.pipeline.splits import load_dev
from omnisparse.runs import directory as runs
from omnisparse.runs.record import identity_of
from omnisparse.training.config import TrainingConfig

DEV_RATE = "dev_rate.json"
"""File of a run with its word error rate on the whole dev split."""

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training of several."""

    config: RunConfig
    out: Path | None
    """Run directory; None for ``runs/<name>``."""
    row: str
    """Row of a comparison."""
    size: str | None = None
    """Size for which it is trained."""
    is_last: bool = False
    """Whether its run is the result."""
    search_evaluations: int = 0
    """Models that were evaluated to decide on it and on the stages before."""
    needed: tuple[Path, ...] = ()
    """Runs that were trained for it beside those it starts or learns from."""


Stages = Generator[Stage, Path, None]
"""Gives stages; after each, it is sent the finished run."""


def place_of(out: Path | None, suffix: str) -> Path | None:
    """Folder of a stage beside the folder of the result."""
    return None if out is None else out.with_name(f"{out.name}-{suffix}")


def begun(
    config: RunConfig, start: Path, training: TrainingConfig, learning_rate: float | None
) -> RunConfig:
    """The configuration of a stage that goes on from a trained net.

    Args:
        config: Of the whole.
        start: The net; its tokenizer is kept, and as much of it as fits.
        training: What the stage takes of ``config.training``.
        learning_rate: Its peak; None for that of ``training``.
    """
    augmentation = replace(config.data.augmentation, unmasked_epochs=0)
    data = replace(
        config.data, augmentation=augmentation, short_first_epochs=0, tokenizer=str(start)
    )
    if learning_rate is not None:
        training = replace(training, learning_rate=learning_rate)
    return replace(config, data=data, training=training, init=str(start), reduce_init=True)


def part_of_steps(
    number: int, is_last: bool, *, count: int, last_share: float
) -> tuple[float, float]:
    """Begin and end of the steps of a stage, as shares of all that are planned.

    Args:
        number: Of the stage, from 1; may be ``count`` or more for one before the last, after
            stages that were thrown away: it has the place of the last of those before.
        is_last: Whether it is the last.
        count: Planned stages.
        last_share: Share of the last one.
    """
    if count == 1:
        return 0.0, 1.0
    before = 1.0 - last_share
    if is_last:
        return before, 1.0
    number = min(number, count - 1)
    # One formula for both, so that a part begins exactly where the one before it ends.
    return before * ((number - 1) / (count - 1)), before * (number / (count - 1))


def part_between(
    training: TrainingConfig, begin: float, end: float, *, one_decay: bool = False
) -> TrainingConfig:
    """The part of a training between two shares of its length; adjoining parts add up.

    Args:
        training: The whole.
        begin: Share at which the part begins.
        end: Share at which it ends.
        one_decay: Whether it goes through its part of one decay of the learning rate, and takes no
            step if there is none; otherwise through a whole one.
    """
    part = end - begin
    training = replace(training, warmup_steps=round(training.warmup_steps * part))
    if one_decay and begin == end:
        return replace(training, max_steps=0)
    if one_decay:
        training = replace(training, schedule_part=(begin, end))
    if training.max_steps is None:
        return replace(training, epochs=training.epochs * part)
    return replace(training, max_steps=part_of(training.max_steps, begin, end))


def part_of(count: int, begin: float, end: float) -> int:
    """The part of a count between two shares of it; adjoining parts add up."""
    return round(count * end) - round(count * begin)


def dev_rate(run: Path, config: RunConfig, tell: Tell) -> float:
    """Word error rate in percent of a run or artifact on the dev split; a run keeps it.

    Args:
        run: The net.
        config: Names the dev split.
        tell: Told what is read.

    Raises:
        OmnisparseError: If there is no dev split, or the net cannot be read.
    """
    corpus = config_to_dict(config)["corpus"]
    key = {name: corpus[name] for name in ("synthetic", "base", "dev")}
    key["weights"] = identity_of(run)
    place = run / DEV_RATE
    try:
        kept = json.loads(place.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return float(kept["wer"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not measured yet
    loaded = runs.load_model(run)
    dev = load_dev(config.corpus, tell, sampling_rate=loaded.extractor.sampling_rate)
    if len(dev) == 0:
        raise OmnisparseError(
            "the teacher of a stage is chosen on the dev split, and there is none; legal: "
            "corpus.dev, or method.promote=last"
        )
    decoder = Decoder(loaded.model, loaded.extractor, loaded.tokenizer, cut_above=loaded.cut_above)
    result = evaluate(decoder, dev)
    if not is_artifact(run):  # which stays as it was written
        try:
            with replaced_file(place) as partial:
                partial.write_text(json.dumps({"key": key, "wer": result.wer}), encoding="utf-8")
        except OmnisparseError as error:  # a run of someone else: it is measured again
            tell(str(error))
    return result.wer
