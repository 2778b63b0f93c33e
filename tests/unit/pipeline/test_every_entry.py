"""One corpus through every verb: the same utterances, whether it is imported first or named."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from omnisparse.comparison import measure as comparison
from omnisparse.comparison.candidates import read_candidates
from omnisparse.comparison.plan import plan_models
from omnisparse.config import CorpusConfig, RunConfig
from omnisparse.data.corpora import import_corpus
from omnisparse.pipeline.evaluate import evaluate_model
from omnisparse.pipeline.search import search_run
from omnisparse.pipeline.search_task import SearchConfig
from omnisparse.pipeline.splits import load_splits
from omnisparse.pipeline.train import train
from omnisparse.runs.trained_on import list_utterances

TOOL = Path(__file__).parents[3] / "tools" / "compare_readings.py"


def load_tool() -> ModuleType:
    specification = importlib.util.spec_from_file_location("compare_readings", TOOL)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool()


@pytest.fixture(scope="module")
def corpora(
    tool: ModuleType, speech: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The corpus of every kind of item: direct, and imported."""
    folder = tmp_path_factory.mktemp("readings")
    direct = tool.write_corpus(speech / "train.jsonl", folder / "corpus")
    import_corpus(direct, folder / "imported")
    return {"direct": direct, "imported": folder / "imported" / "test.jsonl.gz"}


def config_of(path: Path, root: Path) -> CorpusConfig:
    name = str(path)
    return CorpusConfig(synthetic=None, train=(name,), dev=(name,), test=(name,), root=str(root))


def silently(title: str) -> Any:
    from contextlib import nullcontext

    return nullcontext(lambda done, total: None)


def test_every_verb_hears_the_same_of_both_readings(
    tool: ModuleType,
    corpora: dict[str, Path],
    tiny_config: Callable[..., RunConfig],
    tmp_path: Path,
) -> None:
    found: dict[str, list[Any]] = {"direct": [], "imported": []}
    told: list[str] = []
    config = replace(tiny_config(max_steps=1), corpus=config_of(corpora["direct"], tmp_path))
    run = train(config, out=tmp_path / "run", on_stage=told.append).run
    assert any("10 of 200 utterances are bad, left out: " in line for line in told)
    assert any("2 utterances without words are left out of training" in line for line in told)
    assert any("1 of 190 utterances have 8000 Hz" in line for line in told)
    splits = [load_splits(config_of(path, tmp_path)) for path in corpora.values()]
    heard = [list_utterances([split.train]) for split in splits]
    assert heard[0] == heard[1]
    assert len(heard[0]) == 188
    for name, path in corpora.items():
        row = evaluate_model(run, path, progress=silently)
        found[name].append([row[key] for key in tool.COMPARED])
        assert row["utterances"] == 190
        assert row["skipped"] == (10 if name == "direct" else 0)
        out = tmp_path / f"search-{name}"
        options = SearchConfig(evaluations=7, objective="wer", utterances=16, finalists=1)
        result = search_run(run, sizes=["50%"], config=options, manifest=path, out=out)
        found[name].append([(entry["wer"], entry["spec"]) for entry in result["front"]])
        candidates, _ = read_candidates([run], by="method")
        models = plan_models(candidates, ["50%"], lambda line: None)
        (measured,) = comparison.measure(models, {"test": path}, beam=1, progress=silently)
        found[name].append(measured.counts)
        assert len(measured.counts) == 190
    assert found["direct"] == found["imported"]
