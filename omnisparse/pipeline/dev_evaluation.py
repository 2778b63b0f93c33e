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
from omnisparse.methods import Method, Sandwich
from omnisparse.models import SpeechModel
from omnisparse.training.sharing import shared_by
from omnisparse.training.stop_signals import StopSignals
from omnisparse.training.tracking import Metrics


def longest(cuts: CutSet) -> float:
    """Seconds of the longest utterance."""
    return max(float(cut.duration) for cut in cuts)


def check_evaluate_sizes(sizes: Sequence[str], method: Method) -> None:
    """Refuse sizes that a training cannot measure, before it takes a step.

    Raises:
        ValueError: Naming the size and the legal range, or the method that has no subnets.
    """
    if sizes and not isinstance(method, Sandwich):
        raise ValueError(
            f"training.evaluate_sizes is {', '.join(sizes)}; this method has no subnets: legal is "
            "none, or method.kind=sandwich"
        )
    for size in sizes:
        assert isinstance(method, Sandwich)
        method.supernet.spec_for(size)


def dev_evaluator(
    config: RunConfig,
    model: SpeechModel,
    cuts: CutSet,
    dev: CutSet,
    extractor: Any,
    tokenizer: Tokenizer,
    accelerator: Accelerator,
    stop: StopSignals | None,
    method: Method,
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
        method: The training method; a supernet has subnets to measure, once it has ranked weights.

    Returns:
        Called with a step, it gives ``dev/wer`` and ``dev/cer`` in percent, and ``dev/wer@SIZE``.
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
        found = {"dev/wer": result.wer, "dev/cer": result.cer}
        if isinstance(method, Sandwich) and method.supernet.has_ranking:
            for size in config.training.evaluate_sizes:
                with method.supernet.squashed(method.supernet.spec_for(size)):
                    found[f"dev/wer@{size}"] = evaluate(decoder, subset, spread=spread).wer
        return found

    return dev_wer
