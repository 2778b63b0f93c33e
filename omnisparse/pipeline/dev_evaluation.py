"""The evaluation on the dev split that a training makes now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from accelerate import Accelerator
from lhotse import CutSet

from omnisparse.config import RunConfig
from omnisparse.data.pauses import cut_length
from omnisparse.data.tokenizer import Tokenizer
from omnisparse.evaluation.evaluate import Decoder, Found, Task, evaluate
from omnisparse.models import SpeechModel
from omnisparse.training.sharing import shared_by
from omnisparse.training.stop_signals import StopSignals
from omnisparse.training.tracking import Metrics


def longest(cuts: CutSet) -> float:
    """Seconds of the longest utterance."""
    return max(float(cut.duration) for cut in cuts)


def dev_evaluator(
    config: RunConfig,
    model: SpeechModel,
    cuts: CutSet,
    dev: CutSet,
    extractor: Any,
    tokenizer: Tokenizer,
    accelerator: Accelerator,
    stop: StopSignals | None,
) -> Callable[[int], Metrics] | None:
    """What measures the net in training on part of its dev split; None if it shall not.

    Args:
        config: The run configuration.
        model: The net.
        cuts: Its training utterances, whose longest is the longest that it need hear at once.
        dev: The dev split.
        extractor: The net's features.
        tokenizer: The net's tokens.
        accelerator: The processes, which share the work.
        stop: A signal that any process meets gives the measurement up.

    Returns:
        Called with a step, it gives ``dev/wer`` and ``dev/cer`` in percent.
    """
    if not config.training.evaluate_every or len(dev) == 0:
        return None
    # Evenly spread, so that every corpus of a joined dev split is represented.
    count = min(len(dev), config.training.evaluate_utterances)
    every = len(dev) / count
    listed = list(dev)
    subset = CutSet.from_cuts([listed[int(index * every)] for index in range(count)])

    # As users of the trained model will have it: a net that cannot hear more is given pieces.
    cut_above = cut_length(longest(cuts), streams=model.streams)

    decoder = Decoder(model, extractor, tokenizer, cut_above=cut_above)
    share = shared_by(accelerator)

    def spread(tasks: Sequence[Task], run: Callable[[Task], Found]) -> Iterable[Found]:
        def unless_stopped(task: Task) -> Found:
            found = run(task)
            if stop is not None:
                stop.abandon_evaluation()
            return found

        results: Iterable[Found] = share(tasks, unless_stopped)
        return results

    def dev_wer(step: int) -> Metrics:
        result = evaluate(decoder, subset, spread=spread)
        return {"dev/wer": result.wer, "dev/cer": result.cer}

    return dev_wer
