"""Errors of factored nets of a run on a dev set, measured once each and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from omnisparse.evaluation.confidence import Interval, confidence_interval
from omnisparse.evaluation.dev_set import DevSet
from omnisparse.evaluation.wer import corpus_wer, word_errors
from omnisparse.evaluation.workers import Workers
from omnisparse.models.factored import multiplied_out
from omnisparse.models.validation import RankScheme
from omnisparse.pipeline.low_rank import DenseRun
from omnisparse.runs import directory as runs
from omnisparse.search.journal import Journal
from omnisparse.search.ranks import ranks_key

Objective = Literal["loss", "wer"]


class FactoredNet:
    """The net of a run, whose matrices are replaced by products of any ranks.

    Args:
        dense: The run.
        device: Where it computes.
    """

    def __init__(self, dense: DenseRun, device: torch.device) -> None:
        self.dense = dense
        # A run may be factored already, as behind a first round of compression.
        self.model = multiplied_out(runs.load_model(dense.run).model).to(device)
        self.parameters = dict(self.model.named_parameters())
        self.found = dense.decompositions(dense.budget.shapes)

    @torch.no_grad()
    def apply(self, ranks: Mapping[str, int]) -> None:
        """Give the net the products of these ranks; matrices that are not named as trained."""
        products = self.dense.products(ranks, self.found)
        for name in self.dense.matrices:
            self.parameters[name].copy_(products.get(name, self.dense.weights[name]))


@dataclass(frozen=True, kw_only=True)
class FactoredScores:
    """Measures factored nets of a run on a dev set, in any process."""

    run: Path
    scheme: RankScheme
    dev: DevSet
    objective: Objective

    def build(self, device: torch.device) -> Callable[[Any], list[Any]]:
        """Load the run onto the device; the result answers ``((what, ranks), items)``."""
        net = FactoredNet(DenseRun.open(self.run, self.scheme), device)

        def measure(asked: tuple[tuple[str, Mapping[str, int]], tuple[int, ...]]) -> list[Any]:
            (what, ranks), items = asked
            net.apply(ranks)
            if what == "transcripts":
                return self.dev.transcripts(net.model, items)
            if self.objective == "loss":
                return self.dev.losses(net.model, items)
            counted = self.dev.errors(net.model, items)
            return [float(sum(one.errors for one in item)) for item in counted]

        return measure


class RankScores:
    """Errors of factored nets on a dev set, measured at most once each and remembered."""

    def __init__(
        self,
        dense: DenseRun,
        dev: DevSet,
        out: Path,
        workers: Workers,
        *,
        objective: Objective,
        utterances_per_item: int,
    ) -> None:
        self.dense, self.dev, self.workers = dense, dev, workers
        self.job = FactoredScores(run=dense.run, scheme=dense.scheme, dev=dev, objective=objective)
        self.found = dense.decompositions(dense.budget.shapes)
        kind = workers.device.type
        self.journal = Journal(
            out,
            {
                "identity": dense.record.training.identity,
                "objective": objective,
                "utterances_per_item": utterances_per_item,
                "utterances": dev.digest(),
                **dev.cutting(),
                **({} if kind == "cpu" else {"device": kind}),  # it rounds in another way
            },
        )
        per_word = objective == "wer"
        self.units = np.asarray(dev.words() if per_word else dev.tokens(), dtype=np.float64)
        self.num_measured = 0

    def values(self, ranks: Mapping[str, int], items: Sequence[int] | None = None) -> Any:
        """``[len(items)]`` summed errors of the items, of all by default."""
        everything = list(range(self.dev.num_items))
        chosen = everything if items is None else list(items)
        key = ranks_key(ranks, self.dense.scheme)
        whole = self.journal.get(f"{key} all")
        if whole is not None:
            return np.asarray(whole)[chosen]

        def measure() -> list[float]:
            self.num_measured += 1
            return self.workers.map_items(self.job, ("score", dict(ranks)), chosen)

        name = "all" if chosen == everything else ",".join(map(str, chosen))
        return np.asarray(self.journal.ask(f"{key} {name}", measure))

    def rate(self, ranks: Mapping[str, int], items: Sequence[int]) -> float:
        """Error per token or word on the items."""
        return float(self.values(ranks, items).sum() / self.units[list(items)].sum())

    def recognised(self, ranks: Mapping[str, int]) -> tuple[float, Interval]:
        """Word error rate on the whole dev set, in percent, and its interval."""

        def recognise() -> list[str]:
            everything = range(self.dev.num_items)
            found = self.workers.map_items(self.job, ("transcripts", dict(ranks)), everything)
            return [text for item in found for text in item]

        texts = self.journal.ask(f"{ranks_key(ranks, self.dense.scheme)} transcripts", recognise)
        references = [text for item in self.dev.references for text in item]
        words = word_errors(references, texts)
        return corpus_wer(words), confidence_interval(words, speakers=self.dev.speakers)
