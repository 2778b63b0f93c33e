"""Batches: the same after a restart and over any number of processes, bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import CutSet

from omnisparse.data.augmentation import SpecAugment
from omnisparse.data.batching import Batch, DataConfig, TrainingBatches
from omnisparse.data.corpora import load_manifest
from omnisparse.data.evaluation_batches import EvaluationBatches
from omnisparse.data.feature_store import FeatureStore
from omnisparse.data.features import FeatureExtractor
from omnisparse.data.tokenizer import Tokenizer
from omnisparse.errors import DataError

MakeBatches = Callable[..., TrainingBatches]


@pytest.fixture(scope="module")
def store(cuts: CutSet, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return FeatureStore.build(cuts, tmp_path_factory.mktemp("store"), num_jobs=1)


@pytest.fixture
def make(cuts: CutSet, store: FeatureStore, tokenizer: Tokenizer) -> MakeBatches:
    def make_batches(**changes: object) -> TrainingBatches:
        fields: dict[str, object] = {
            "features": store,
            "extractor": store.extractor(3),
            "tokenizer": tokenizer,
            "batch_seconds": 4.0,
            "max_batch_size": 8,
            "num_buckets": 3,
            "spec_augment": SpecAugment(),
            "seed": 5,
        }
        return TrainingBatches(cuts, **(fields | changes))  # type: ignore[arg-type]

    return make_batches


def take(batches: TrainingBatches, count: int) -> list[Batch]:
    return list(itertools.islice(iter(batches), count))


def assert_same(first: Batch, second: Batch) -> None:
    assert first.ids == second.ids
    assert first.audio_seconds == second.audio_seconds
    for name in ("features", "feature_lengths", "tokens", "token_lengths", "positions"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_an_epoch_holds_every_utterance_once(make: MakeBatches, cuts: CutSet) -> None:
    batches = make()
    first = take(batches, batches.steps_per_epoch)
    assert (batches.epoch, len(first) > 4) == (1, True)
    second = take(batches, batches.steps_per_epoch)
    for epoch in (first, second):
        assert sorted(itertools.chain(*(b.ids for b in epoch))) == sorted(cuts.ids)
    assert [b.ids for b in first] != [b.ids for b in second]


def test_the_first_epochs_may_come_shortest_first(make: MakeBatches, cuts: CutSet) -> None:
    durations = {cut.id: cut.duration for cut in cuts}
    batches = make(short_first_epochs=1)
    first, second = (take(batches, batches.steps_per_epoch) for _ in range(2))
    longest = [[max(durations[name] for name in b.ids) for b in epoch] for epoch in (first, second)]
    assert longest[0] == sorted(longest[0])
    assert longest[1] != sorted(longest[1])
    assert {b.ids for b in first} == {b.ids for b in take(make(), len(first))}


def test_batches_keep_their_bounds(make: MakeBatches, cuts: CutSet) -> None:
    durations = {cut.id: cut.duration for cut in cuts}
    for batch in take(make(), 10):
        assert len(batch) <= 8
        assert len(batch) * max(durations[name] for name in batch.ids) <= 4.0


def test_batch_holds_the_features_and_tokens_of_its_utterances(
    make: MakeBatches, cuts: CutSet, store: FeatureStore, tokenizer: Tokenizer
) -> None:
    extractor = store.extractor(3)
    texts = {cut.id: cut.supervisions[0].text for cut in cuts}
    batch = take(make(spec_augment=None), 1)[0]
    assert batch.features.dtype == torch.float32
    for row, name in enumerate(batch.ids):
        expected = extractor.stack_frames(extractor.normalise(store.frames(name)))
        length = int(batch.feature_lengths[row])
        np.testing.assert_array_equal(batch.features[row, :length].numpy(), expected)
        assert not batch.features[row, length:].any()
        count = int(batch.token_lengths[row])
        assert batch.tokens[row, :count].tolist() == tokenizer.encode(texts[name])
        assert not batch.tokens[row, count:].any()
        assert batch.texts[name] == texts[name]
    assert batch.features.shape[1] == int(batch.feature_lengths.max())


@pytest.mark.parametrize("prefetch", [0, 2])
def test_resumed_is_uninterrupted(make: MakeBatches, prefetch: int) -> None:
    straight = make(prefetch=prefetch)
    count = 2 * straight.steps_per_epoch + 3
    expected = take(straight, count)
    resumed: list[Batch] = []
    state = {"epoch": 0, "batches": 0}
    # Stops inside an epoch, twice in the same one, at its end and over it.
    for stop in (2, 3, straight.steps_per_epoch, count):
        batches = make(prefetch=prefetch)
        batches.load_state_dict(state)
        resumed += take(batches, stop - len(resumed))
        state = batches.state_dict()
    assert state == straight.state_dict()
    for one, two in zip(expected, resumed, strict=True):
        assert_same(one, two)


@pytest.mark.parametrize(("count", "batch_seconds"), [(30, 20.0), (32, 0.9)])
def test_equal_lengths_are_laid_out_and_resumed(
    cuts: CutSet, tokenizer: Tokenizer, tmp_path: Path, count: int, batch_seconds: float
) -> None:
    # Sums of 0.1 s round up: lhotse then looks for a bucket after its last, of one or of several.
    equal = CutSet.from_cuts(
        cut.truncate(duration=0.1, preserve_id=True) for cut in cuts.subset(first=count)
    )
    store = FeatureStore.build(equal, tmp_path, num_jobs=1)

    def make_batches() -> TrainingBatches:
        return TrainingBatches(
            equal,
            features=store,
            extractor=store.extractor(3),
            tokenizer=tokenizer,
            batch_seconds=batch_seconds,
            max_batch_size=5,
            num_buckets=2,
        )

    straight = make_batches()
    steps = straight.steps_per_epoch
    expected = take(straight, 2 * steps + 2)
    assert all(len(batch) <= 5 for batch in expected)
    epochs = [expected[:steps], expected[steps : 2 * steps]]
    assert all(sorted(name for b in e for name in b.ids) == sorted(equal.ids) for e in epochs)
    assert [b.ids for b in epochs[0]] != [b.ids for b in epochs[1]]
    resumed = make_batches()
    resumed.load_state_dict({"epoch": 1, "batches": 1})
    for one, two in zip(expected[steps + 1 :], take(resumed, steps + 1), strict=True):
        assert_same(one, two)


@pytest.mark.parametrize("world_size", [2, 3])
def test_slices_of_processes_join_to_the_global_batch(make: MakeBatches, world_size: int) -> None:
    whole = make()
    steps = whole.steps_per_epoch
    parts = [take(make(rank=r, world_size=world_size), steps) for r in range(world_size)]
    for index, batch in enumerate(take(whole, steps)):
        slices = [part[index] for part in parts]
        if len(batch) < world_size:
            expected = [batch.ids[rank % len(batch)] for rank in range(world_size)]
            assert [one.ids for one in slices] == [(name,) for name in expected]
            assert [one.is_copy for one in slices] == [r >= len(batch) for r in range(world_size)]
            continue
        assert not any(one.is_copy for one in slices)
        assert tuple(itertools.chain(*(one.ids for one in slices))) == batch.ids
        positions = torch.cat([one.positions for one in slices])
        assert positions.tolist() == list(range(len(batch)))
        for one in slices:
            row = batch.select(one.positions)
            for name in ("features", "feature_lengths", "tokens", "token_lengths"):
                assert torch.equal(getattr(row, name), getattr(one, name)), name


def test_state_moves_between_numbers_of_processes(make: MakeBatches) -> None:
    one = make()
    take(one, 3)
    two = make(rank=1, world_size=2)
    two.load_state_dict(one.state_dict())
    follower = take(two, 1)[0]
    leader = take(one, 1)[0]
    assert set(follower.ids) <= set(leader.ids)


def test_seed_changes_order_and_masks(make: MakeBatches) -> None:
    orders = {tuple(batch.ids for batch in take(make(seed=seed), 5)) for seed in range(4)}
    assert len(orders) == 4
    # Neighbouring seeds must not be the same run one epoch apart.
    late = make(seed=5)
    assert late.batch(1, 0).ids != make(seed=6).batch(0, 0).ids


def test_masks_change_from_epoch_to_epoch(make: MakeBatches) -> None:
    batches = make()
    rows: list[dict[str, torch.Tensor]] = [{}, {}]
    for epoch in range(2):
        for batch in take(batches, batches.steps_per_epoch):
            for row, name in enumerate(batch.ids):
                length = int(batch.feature_lengths[row])
                rows[epoch][name] = batch.features[row, :length]
    assert sum(torch.equal(rows[0][name], rows[1][name]) for name in rows[0]) < 5


def test_the_first_epochs_may_go_unmasked(make: MakeBatches) -> None:
    warming, plain, masking = make(unmasked_epochs=1), make(spec_augment=None), make()
    for index in range(3):
        assert_same(warming.batch(0, index), plain.batch(0, index))
        assert_same(warming.batch(1, index), masking.batch(1, index))


def test_select_trims_padding(make: MakeBatches) -> None:
    batch = next(one for one in take(make(), 20) if len(one) >= 3)
    shortest = int(batch.feature_lengths.argmin())
    chosen = batch.select(torch.tensor([shortest]))
    assert chosen.features.shape[1] == int(batch.feature_lengths[shortest])
    assert chosen.tokens.shape[1] == int(batch.token_lengths[shortest])
    assert chosen.ids == (batch.ids[shortest],)
    assert 0 < chosen.audio_seconds < batch.audio_seconds
    assert chosen.to("cpu").texts == chosen.texts


def test_bad_positions_and_arguments(make: MakeBatches, cuts: CutSet) -> None:
    with pytest.raises(ValueError, match="not a position in this data"):
        make().load_state_dict({"epoch": 0, "batches": 10_000})
    with pytest.raises(ValueError, match="rank"):
        make(rank=2, world_size=2)
    with pytest.raises(ValueError, match=r"batch_seconds must be at least 1\.\d+"):
        make(batch_seconds=0.5)


def test_evaluation_reads_audio_or_store(
    cuts: CutSet, store: FeatureStore, tokenizer: Tokenizer
) -> None:
    extractor = store.extractor(4)
    fields = {"extractor": extractor, "tokenizer": tokenizer, "batch_seconds": 5.0}
    audio = EvaluationBatches(cuts, **fields)  # type: ignore[arg-type]
    stored = EvaluationBatches(cuts, store=store, **fields)  # type: ignore[arg-type]
    assert len(audio) == len(list(audio)) > 3
    lengths: list[int] = []
    for one, two in zip(audio, stored, strict=True):
        assert one.ids == two.ids
        torch.testing.assert_close(one.features, two.features, atol=0.02, rtol=0)
        lengths += one.feature_lengths.tolist()
    assert lengths == sorted(lengths)
    assert audio.texts == {cut.id: cut.supervisions[0].text for cut in cuts}


def test_evaluation_over_processes_is_one_pass(cuts: CutSet, tokenizer: Tokenizer) -> None:
    parts = [
        EvaluationBatches(
            cuts,
            extractor=FeatureExtractor(),
            tokenizer=tokenizer,
            batch_seconds=4.0,
            rank=rank,
            world_size=2,
        )
        for rank in range(2)
    ]
    assert sorted([*parts[0].texts, *parts[1].texts]) == sorted(cuts.ids)


def test_evaluation_never_loses_an_utterance(
    cuts: CutSet, manifest: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / "audio").mkdir()
    for path in (manifest.parent / "audio").iterdir():
        (tmp_path / "audio" / path.name).write_bytes(path.read_bytes())
    copy = tmp_path / "test.jsonl"
    copy.write_bytes(manifest.read_bytes())
    broken = load_manifest(copy)
    (tmp_path / "audio" / "train007.wav").write_bytes(b"")
    with pytest.raises(DataError, match="train007"):
        list(EvaluationBatches(broken, extractor=FeatureExtractor(), tokenizer=tokenizer))


@pytest.mark.parametrize(
    "fields",
    [
        {"max_batch_size": 0},
        {"num_buckets": 0},
        {"vocab_size": 3},
        {"min_seconds": 40.0},
        {"batch_seconds": 10.0},
    ],
)
def test_config_names_the_bad_field(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        DataConfig(**fields)  # type: ignore[arg-type]
