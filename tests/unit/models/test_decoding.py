"""Batched searches against plain ones for one utterance."""

from __future__ import annotations

import itertools

import pytest
import torch
from small_models import SMALL_CONFIGS, VOCAB_SIZE, Utterances, small_model

from omnisparse.errors import OmnisparseError
from omnisparse.models import Hypothesis, LasModel, SpeechModel, TransducerModel
from omnisparse.models.decoding import LENGTH_MARGIN
from omnisparse.models.transducer_decoding import (
    transducer_beam_search,
    transducer_greedy_search,
)

TRANSDUCERS = [name for name in SMALL_CONFIGS if name.startswith("transducer")]
LISTENERS = [name for name in SMALL_CONFIGS if name.startswith("las")]


def transducer(name: str) -> TransducerModel:
    model = small_model(name)
    assert isinstance(model, TransducerModel)
    with torch.no_grad():
        model.joiner.output.bias[0] += 1.5  # else an untrained net says blank too rarely
    return model


def las(name: str) -> LasModel:
    model = small_model(name)
    assert isinstance(model, LasModel)
    with torch.no_grad():
        model.output.bias[1] += 1.0  # ends some sentences before the limit
    return model


@torch.no_grad()
def log_probability(model: SpeechModel, features: torch.Tensor, tokens: list[int]) -> float:
    """Log-probability of a sentence from the training-time forward."""
    output = model(
        features,
        torch.tensor([features.size(1)]),
        torch.tensor([tokens], dtype=torch.int64),
        torch.tensor([len(tokens)]),
    )
    if model.kind == "transducer":
        return -float(output.label_loss_sum)
    targets = torch.tensor([*tokens, 1])
    return float(output.log_posteriors[0, torch.arange(len(targets)), targets].sum())


@pytest.mark.parametrize("beam", [1, 3])
def test_a_batch_equals_its_utterances(model: SpeechModel, batch: Utterances, beam: int) -> None:
    together = model.decode(batch.features, batch.feature_lengths, beam=beam)
    for index, found in enumerate(together):
        row = batch.row(index)
        assert model.decode(row.features, row.feature_lengths, beam=beam) == [found]
    assert model.kind == "transducer" or any(together)
    assert all(1 < token < VOCAB_SIZE for found in together for token in found)


@pytest.mark.parametrize("name", LISTENERS)
def test_las_beam_of_one_is_greedy(name: str, batch: Utterances) -> None:
    model = las(name)
    encoded, lengths = model.encode(batch.features, batch.feature_lengths)
    with torch.inference_mode():
        found = model.search_beam(encoded, lengths, beam=1)
    greedy = model.decode(batch.features, batch.feature_lengths)
    assert [hypotheses[0].tokens for hypotheses in found] == greedy


def test_las_scores_equal_teacher_forcing(batch: Utterances) -> None:
    model = las("las")
    for index, hypotheses in enumerate(model.nbest(batch.features, batch.feature_lengths, beam=4)):
        assert hypotheses
        assert len({tuple(hypothesis.tokens) for hypothesis in hypotheses}) == len(hypotheses)
        limit = int(model.output_lengths(batch.feature_lengths)[index]) + LENGTH_MARGIN
        for hypothesis in hypotheses:
            if len(hypothesis.tokens) < limit:
                expected = log_probability(model, batch.row(index).features, hypothesis.tokens)
                assert hypothesis.log_probability == pytest.approx(expected, abs=1e-3)


def test_las_search_with_a_wide_beam_is_exhaustive() -> None:
    """Every sentence of up to one token is scored, and the best comes first."""
    model = las("las")
    with torch.no_grad():
        model.output.bias[1] += 6.0
    features = torch.randn(1, 6, model.input_dim)
    (hypotheses,) = model.nbest(features, torch.tensor([6]), beam=8)
    scores = {tokens: log_probability(model, features, list(tokens)) for tokens in [(), (2,), (5,)]}
    assert hypotheses[0].tokens == []
    for hypothesis in hypotheses:
        if tuple(hypothesis.tokens) in scores:
            assert hypothesis.log_probability == pytest.approx(
                scores[tuple(hypothesis.tokens)], abs=1e-3
            )


@pytest.mark.parametrize("name", list(SMALL_CONFIGS))
def test_searches_end_on_nets_that_never_end(name: str, batch: Utterances) -> None:
    model = small_model(name)
    with torch.no_grad():
        if isinstance(model, LasModel):
            model.output.bias[1] = -1e4
        else:
            model.joiner.output.bias[0] = -1e4
    frames = model.output_lengths(batch.feature_lengths).tolist()
    for beam in (1, 2):
        for found, length in zip(
            model.decode(batch.features, batch.feature_lengths, beam=beam), frames, strict=True
        ):
            if model.kind == "las":
                assert len(found) == length + LENGTH_MARGIN
            elif beam == 1:
                assert len(found) == length * model.max_symbols_per_frame


@torch.inference_mode()
def plain_transducer_greedy(model: TransducerModel, features: torch.Tensor) -> list[int]:
    encoded, _ = model.encode(features, torch.tensor([features.size(1)]))
    found: list[int] = []
    for frame in model.joiner.encoder_projection(encoded)[0]:
        for _ in range(model.max_symbols_per_frame):
            predicted = model.predictor(torch.tensor([found], dtype=torch.int64))[:, -1]
            total = frame + model.joiner.predictor_projection(predicted)
            scores = model.joiner.score(total)
            scores[:, 1] = float("-inf")
            token = int(scores.argmax())
            if token == 0:
                break
            found.append(token)
    return found


@pytest.mark.parametrize("name", TRANSDUCERS)
def test_transducer_greedy_equals_a_plain_loop(name: str, batch: Utterances) -> None:
    model = transducer(name)
    found = model.decode(batch.features, batch.feature_lengths)
    assert found == [plain_transducer_greedy(model, batch.row(i).features) for i in range(5)]
    assert any(found)


@pytest.mark.parametrize("name", TRANSDUCERS)
def test_transducer_greedy_in_chunks(name: str, batch: Utterances) -> None:
    model = transducer(name)
    features = batch.features[2:3]
    encoder_state, search_state = model.initial_state(1), None
    found: list[int] = []
    with torch.inference_mode():
        for start in range(0, 20, 3):
            encoded, encoder_state = model.encode_chunk(
                features[:, start : start + 3], encoder_state, final=start + 3 >= 20
            )
            (tokens,), search_state = transducer_greedy_search(
                model, encoded, torch.tensor([encoded.size(1)]), search_state
            )
            found += tokens
    assert [found] == model.decode(features, batch.feature_lengths[2:3])


@torch.inference_mode()
def plain_transducer_beam(
    model: TransducerModel, features: torch.Tensor, beam: int
) -> list[Hypothesis]:
    """Time-synchronous search with dictionaries."""
    encoded, _ = model.encode(features, torch.tensor([features.size(1)]))
    best = {(): torch.tensor(0.0)}
    for frame in model.joiner.encoder_projection(encoded)[0]:
        running, ended = best, {}
        for symbol in range(model.max_symbols_per_frame + 1):
            expanded = {}
            for tokens, score in running.items():
                predicted = model.predictor(torch.tensor([tokens], dtype=torch.int64))[0, -1]
                total = frame + model.joiner.predictor_projection(predicted)
                log_probs = model.joiner.score(total).log_softmax(-1)
                closed = score + log_probs[0]
                ended[tokens] = closed.logaddexp(ended[tokens]) if tokens in ended else closed
                for token in range(2, VOCAB_SIZE):
                    expanded[(*tokens, token)] = score + log_probs[token]
            ended = dict(sorted(ended.items(), key=lambda item: -item[1])[:beam])
            worst = min(ended.values()) if len(ended) == beam else float("-inf")
            best_expanded = sorted(expanded.items(), key=lambda item: -item[1])[:beam]
            running = {tokens: score for tokens, score in best_expanded if score > worst}
            if symbol == model.max_symbols_per_frame:
                break
        best = ended
    ranked = sorted(best.items(), key=lambda item: -item[1])
    return [Hypothesis(list(tokens), float(score)) for tokens, score in ranked]


@pytest.mark.parametrize("name", TRANSDUCERS)
@pytest.mark.parametrize("beam", [1, 3])
def test_transducer_beam_equals_a_plain_search(name: str, beam: int, batch: Utterances) -> None:
    model = transducer(name)
    found = model.nbest(batch.features, batch.feature_lengths, beam=beam)
    for index, hypotheses in enumerate(found):
        expected = plain_transducer_beam(model, batch.row(index).features, beam)
        assert [h.tokens for h in hypotheses] == [h.tokens for h in expected]
        for hypothesis, reference in zip(hypotheses, expected, strict=True):
            assert hypothesis.log_probability == pytest.approx(reference.log_probability, abs=1e-3)


def test_a_wide_transducer_beam_sums_all_alignments() -> None:
    """With nothing pruned and two frames, scores are those of the training loss."""
    model = transducer("transducer-stateless")
    features = torch.randn(1, 4, model.input_dim)
    with torch.inference_mode():
        encoded, lengths = model.encode(features, torch.tensor([4]))
        assert lengths.item() == 2
        (hypotheses,) = transducer_beam_search(model, encoded, lengths, beam=80, max_symbols=2)
    scores = {tuple(h.tokens): h.log_probability for h in hypotheses}
    for tokens in itertools.chain([()], itertools.product(range(2, VOCAB_SIZE), repeat=1)):
        expected = log_probability(model, features, list(tokens))
        assert scores[tokens] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("beam", [1, 3])
def test_scores_that_are_no_numbers_are_no_silence(
    model: SpeechModel, batch: Utterances, beam: int
) -> None:
    broken = batch.features.clone()
    broken[0, 0] = float("nan")
    with pytest.raises(OmnisparseError, match="scores are NaN"):
        model.decode(broken, batch.feature_lengths, beam=beam)


def test_an_empty_beam_is_refused(model: SpeechModel, batch: Utterances) -> None:
    with pytest.raises(ValueError, match="beam is 0; it must be at least 1"):
        model.decode(batch.features, batch.feature_lengths, beam=0)
