"""The utterances on which a search measures its candidates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from omnisparse.config import CorpusConfig, config_from_dict
from omnisparse.config.yaml_core import read_yaml
from omnisparse.data.corpora import load_manifest
from omnisparse.errors import OmnisparseError
from omnisparse.evaluation.dev_set import DevSet
from omnisparse.runs.directory import LoadedModel


def search_set(
    run: Path,
    loaded: LoadedModel,
    *,
    manifest: Path | None,
    utterances_per_item: int,
    on_stage: Callable[[str], None],
) -> DevSet:
    """The utterances, cut where users of the net would have them cut.

    Args:
        run: Run directory.
        loaded: Its net.
        manifest: Utterances; the run's dev split if None.
        utterances_per_item: Utterances that are computed together.
        on_stage: Told what begins, and what may spoil rates on these utterances.

    Raises:
        OmnisparseError: If there are no such utterances.
    """
    on_stage("features of the dev set")
    rate = loaded.extractor.sampling_rate
    if manifest is not None:
        cuts = load_manifest(manifest, sampling_rate=rate, tell=on_stage)
    else:
        cuts = _dev_cuts(run, rate, on_stage)
    dev = DevSet(
        cuts, extractor=loaded.extractor, tokenizer=loaded.tokenizer,
        utterances_per_item=utterances_per_item, cut_above=loaded.cut_above,
    )  # fmt: skip
    for line in dev.notes(loaded.trained_seconds, streams=loaded.model.streams):
        on_stage(line)
    return dev


def _dev_cuts(run: Path, sampling_rate: int, on_stage: Callable[[str], None]) -> Any:
    """The dev split that the run was configured with."""
    from omnisparse.pipeline.splits import load_dev

    path = run / "config.yaml"
    try:
        document = read_yaml(path.read_text(encoding="utf-8"))
        corpus: CorpusConfig = config_from_dict(document, source=str(path)).corpus
        dev = load_dev(corpus, on_stage, sampling_rate=sampling_rate)
    except (OSError, yaml.YAMLError, AttributeError, OmnisparseError) as error:
        reason = " ".join(str(error).split())
        message = f"{run}: its dev split cannot be read ({reason}); name one with --manifest FILE"
        raise OmnisparseError(message) from error
    if len(dev) == 0:
        raise OmnisparseError(f"{run}: it has no dev split; name utterances with --manifest FILE")
    return dev
