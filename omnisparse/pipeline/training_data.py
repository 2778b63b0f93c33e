"""Reading the data of a run, and comparing it with the earlier training data of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from omnisparse.config import RunConfig
from omnisparse.errors import DataError
from omnisparse.pipeline.splits import Splits, load_splits, synthetic_folder, tell_corpora
from omnisparse.runs.claim import refuse_changes
from omnisparse.runs.trained_on import (
    Utterance,
    list_utterances,
    name_changes,
    read_utterances,
    write_utterances,
)
from omnisparse.training.checkpoint import list_checkpoints


class TrainingData:
    """The training data of a run.

    Args:
        config: The run configuration.
        run: The run directory.
        stage: Called with lines about the data and its changes.
        accept_changes: Continue with data that has changed since the run began.
    """

    def __init__(
        self,
        config: RunConfig,
        run: Path,
        stage: Callable[[str], None],
        *,
        accept_changes: bool,
    ) -> None:
        self.stage = stage
        self._config, self._run, self._accept_changes = config, run, accept_changes

    def load(self) -> Splits:
        """Read the splits, make the embedded corpus if it is missing, and tell the user about them.

        Raises:
            DataError: If they cannot be used.
        """
        splits = load_splits(
            self._config.corpus,
            self.stage,
            speed_factors=self._config.data.augmentation.speed_factors,
            sampling_rate=self._config.data.features.sampling_rate,
        )
        tell_corpora(splits, self.stage)
        return splits

    def check(self, splits: Splits) -> None:
        """Refuse training data that differs from that of the run's start; otherwise store its list.

        Raises:
            OmnisparseError: Naming what has changed.
        """
        now = self._utterances(splits)
        before = None
        if list_checkpoints(self._run / "checkpoints"):
            before = read_utterances(self._run)
            if before is None:
                self.stage(f"{self._run} has no list of its data: changes cannot be detected")
        if before is not None:
            self._refuse(before, now)
        if before != now:
            write_utterances(self._run, now)

    def check_recordings(self, before: str, now: str) -> None:
        """Refuse other recordings of noise or rooms than those with which a run began.

        Args:
            before: Hash of them as of the checkpoint; empty if there were none.
            now: Hash of the present ones.

        Raises:
            OmnisparseError: If they differ.
        """
        if before != now:
            changed = ["the recordings of data.augmentation.noise or rooms"]
            refuse_changes(self._run, changed, self.stage, accept_changes=self._accept_changes)

    def check_finished(self) -> None:
        """Refuse data that differs from that of a finished run; missing data is not compared.

        Raises:
            OmnisparseError: Naming what has changed.
        """
        corpus = self._config.corpus
        before = read_utterances(self._run)
        if before is None:
            return
        if corpus.synthetic is not None and not synthetic_folder(corpus).exists():
            self.stage(f"{synthetic_folder(corpus)} does not exist: the data is not compared")
            return
        try:
            splits = self.load()
        except DataError as error:
            self.stage(f"the data of the run is not compared, it cannot be read: {error}")
            return
        self._refuse(before, self._utterances(splits))

    def _utterances(self, splits: Splits) -> list[Utterance]:
        """What training data is compared by.

        Of the embedded corpus alone with its copies at other speeds, because earlier versions made
        none; of manifests without, because these are a matter of the configuration.
        """
        if not self._config.corpus.train:
            return list_utterances([splits.train])
        return list_utterances([corpus.cuts for corpus in splits.train_corpora])

    def _refuse(self, before: Sequence[Utterance], now: Sequence[Utterance]) -> None:
        changed = name_changes(before, now)
        listed = [f"training utterances: {', '.join(changed)}"] if changed else []
        refuse_changes(self._run, listed, self.stage, accept_changes=self._accept_changes)
