"""TRUTH, TOP and BEAM against each other and against what they must reduce to."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_batches import LAS, MODELS, TRANSDUCER, make_batch, make_model
from torch import Tensor

from omnisparse.data.batching import Batch
from omnisparse.data.features import FeatureExtractor
from omnisparse.errors import OmnisparseError
from omnisparse.methods import Distillation, DistillationConfig, Teacher
from omnisparse.methods.base import Loss, distillation_sum, forward_batch
from omnisparse.methods.distillation import beam_weights, feature_map, with_tokens
from omnisparse.models import (
    SOS_EOS,
    Hypothesis,
    LasConfig,
    SpeechModel,
    TransducerConfig,
    build_model,
)

Config = LasConfig | TransducerConfig


def other_model(config: Config) -> SpeechModel:
    torch.manual_seed(7)
    return build_model(config, input_dim=12, vocab_size=10)


def hypotheses(batch: Batch, beam: int = 3, seed: int = 0) -> dict[str, list[Hypothesis]]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name in batch.ids:
        scores = torch.randn(beam, generator=generator).sort(descending=True).values
        found[name] = [
            Hypothesis(
                torch.randint(3, 10, (1 + rank,), generator=generator).tolist(), float(scores[rank])
            )
            for rank in range(beam)
        ]
    return found


def make_method(config: Config, teacher: Teacher, **options: object) -> Distillation:
    chosen = DistillationConfig(teacher="runs/large", **options)  # type: ignore[arg-type]
    method = Distillation(chosen, teacher)
    method.prepare(make_model(config), max_steps=10)
    return method


def losses_of(method: Distillation, model: SpeechModel, batch: Batch) -> list[Loss]:
    losses = list(method.losses(model, batch, 0))
    assert len(losses) == method.num_losses(0)
    return losses


class OneHotTeacher(Teacher):
    """Certain of the labels."""

    def log_posteriors(self, batch: Batch) -> Tensor:
        rows, width = batch.tokens.shape
        targets = torch.nn.functional.pad(batch.tokens, (0, 1))
        targets[torch.arange(rows), batch.token_lengths] = SOS_EOS
        log_posteriors = torch.full((rows, width + 1, 10), -1.0e4)
        return log_posteriors.scatter(-1, targets[..., None], 0.0)


def test_truth_of_a_teacher_that_knows_the_labels_is_the_cross_entropy() -> None:
    config = dataclasses.replace(LAS, label_smoothing=0.0)
    model, batch = make_model(config), make_batch()
    method = make_method(config, OneHotTeacher(other_model(config)))
    (loss,) = losses_of(method, model, batch)
    output = forward_batch(model, batch)
    torch.testing.assert_close(loss.value_sum, output.label_loss_sum)
    torch.testing.assert_close(loss.num_units, output.num_units)
    assert (loss.name, loss.weight, loss.utterances) == ("truth", 1.0, len(batch))


@MODELS
def test_truth_is_the_cross_entropy_with_the_teacher_less_its_entropy(config: Config) -> None:
    model, batch = make_model(config), make_batch()
    teacher = Teacher(other_model(config))
    (loss,) = losses_of(make_method(config, teacher, label_weight=0.0), model, batch)
    output = forward_batch(model, batch)
    log_q, log_p = forward_batch(teacher.model, batch).log_posteriors, output.log_posteriors
    weights = output.posterior_weights
    cross_entropy = -(log_q.exp() * log_p).sum(-1)
    entropy = -(log_q.exp() * log_q).sum(-1)
    torch.testing.assert_close(
        loss.value_sum, ((cross_entropy - entropy) * weights).sum(), rtol=1e-4, atol=1e-4
    )
    (same,) = losses_of(make_method(config, Teacher(make_model(config)), label_weight=0.0),
                        model, batch)  # fmt: skip
    assert float(same.value_sum.detach().abs()) < 1e-4 < float(loss.value_sum.detach())


@pytest.mark.parametrize("config", [LAS, TRANSDUCER], ids=["las", "transducer"])
def test_a_teacher_computes_no_label_loss(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    net, batch = other_model(dataclasses.replace(config, ctc_weight=0.3)).eval(), make_batch()
    with torch.no_grad():  # with gradients some CPUs compute an LSTM by another kernel
        expected = forward_batch(net, batch)
    assert torch.isfinite(expected.label_loss_sum)
    for room, name in (
        ("las", "label_smoothed_cross_entropy"), ("las", "ctc_loss"), ("transducer", "ctc_loss"),
        ("transducer", "transducer_loss"),
    ):  # fmt: skip
        monkeypatch.delattr(f"omnisparse.models.{room}.{name}")
    found = Teacher(net).log_posteriors(batch)
    assert torch.equal(found, expected.log_posteriors)
    assert torch.isnan(forward_batch(net, batch).label_loss_sum)  # nobody takes it for one


@MODELS
def test_no_gradient_reaches_the_teacher(config: Config) -> None:
    model, batch = make_model(config), make_batch()
    teacher = Teacher(other_model(config))
    before = teacher.digest
    for loss in losses_of(make_method(config, teacher), model, batch):
        loss.value_sum.backward()
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not teacher.model.training
    assert Teacher(teacher.model).digest == before


@pytest.mark.parametrize("objective", ["truth", "top"])
@pytest.mark.parametrize("config", [LAS, TRANSDUCER], ids=["las", "transducer"])
def test_every_parameter_gets_a_gradient_for_the_sake_of_several_processes(
    config: Config, objective: str
) -> None:
    config = dataclasses.replace(config, ctc_weight=0.3)
    model, batch = make_model(config), make_batch()
    teacher = Teacher(other_model(config), hypotheses=hypotheses(batch))
    method = make_method(config, teacher, objective=objective, label_weight=0.0)
    for loss in losses_of(method, model, batch):
        loss.value_sum.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@MODELS
@pytest.mark.parametrize("objective", ["truth", "top"])
def test_ctc_on_the_labels_keeps_its_weight(config: Config, objective: str) -> None:
    config = dataclasses.replace(config, ctc_weight=0.3, predictor_warmup=0) if isinstance(
        config, TransducerConfig
    ) else dataclasses.replace(config, ctc_weight=0.3)  # fmt: skip
    model, batch = make_model(config), make_batch()
    teacher = Teacher(other_model(config), hypotheses=hypotheses(batch))

    def gradient(label_weight: float) -> Tensor:
        model.zero_grad()
        method = make_method(config, teacher, objective=objective, label_weight=label_weight)
        for loss in losses_of(method, model, batch):
            (loss.value_sum * loss.weight).backward()
        assert model.ctc_output is not None
        assert model.ctc_output.weight.grad is not None
        return model.ctc_output.weight.grad.clone()

    model.zero_grad()
    forward_batch(model, batch).label_loss_sum.backward()
    assert model.ctc_output is not None
    expected = model.ctc_output.weight.grad
    assert expected is not None
    assert expected.abs().max() > 0
    for label_weight in (0.0, 0.4, 1.0):
        torch.testing.assert_close(gradient(label_weight), expected, rtol=1e-4, atol=1e-5)


def test_labels_alone_come_first_in_the_same_training() -> None:
    model, batch = make_model(LAS), make_batch()
    teacher = Teacher(other_model(LAS), hypotheses=hypotheses(batch))
    method = make_method(LAS, teacher, objective="beam", beam=2, label_fraction=0.3)
    output = forward_batch(model, batch)
    for step, names in ((0, ["dense"]), (2, ["dense"]), (3, ["beam_0", "beam_1"])):
        losses = list(method.losses(model, batch, step))
        assert [loss.name for loss in losses] == names
        assert method.num_losses(step) == len(method.units(batch, step)) == len(names)
        for loss, units in zip(losses, method.units(batch, step), strict=True):
            assert float(loss.num_units) == pytest.approx(units)
    (alone,) = method.losses(model, batch, 0)
    assert torch.equal(alone.value_sum, output.label_loss_sum)


def test_top_is_the_most_probable_hypothesis_and_not_the_best_per_length() -> None:
    model, batch = make_model(LAS), make_batch(1)
    (name,) = batch.ids
    long, short = Hypothesis([3, 4, 5, 6], -2.0), Hypothesis([7], -1.5)
    teacher = Teacher(other_model(LAS), hypotheses={name: [long, short]})
    (top,) = losses_of(make_method(LAS, teacher, objective="top"), model, batch)
    (truth,) = losses_of(make_method(LAS, teacher), model, with_tokens(batch, [[7]]))
    torch.testing.assert_close(top.value_sum, truth.value_sum)


@MODELS
def test_beam_of_one_hypothesis_equals_top(config: Config) -> None:
    model, batch = make_model(config), make_batch()
    teacher = Teacher(other_model(config), hypotheses=hypotheses(batch))
    (top,) = losses_of(
        make_method(config, teacher, objective="top", label_weight=0.0), model, batch
    )
    (beam,) = losses_of(
        make_method(config, teacher, objective="beam", beam=1, label_weight=0.0), model, batch
    )
    assert torch.equal(top.value_sum, beam.value_sum)
    assert torch.equal(top.num_units, beam.num_units)
    assert (top.weight, top.utterances) == (beam.weight, beam.utterances)


@MODELS
def test_top_is_truth_on_the_best_hypothesis(config: Config) -> None:
    model, batch = make_model(config), make_batch()
    found = hypotheses(batch)
    teacher = Teacher(other_model(config), hypotheses=found)
    (top,) = losses_of(
        make_method(config, teacher, objective="top", label_weight=0.0), model, batch
    )
    forced = with_tokens(batch, [found[name][0].tokens for name in batch.ids])
    (truth,) = losses_of(make_method(config, teacher, label_weight=0.0), model, forced)
    torch.testing.assert_close(top.value_sum, truth.value_sum)
    torch.testing.assert_close(top.num_units, truth.num_units)


@MODELS
def test_beam_is_the_expectation_over_hypotheses_and_falls_towards_the_teacher(
    config: Config,
) -> None:
    """Eq. 5 with one minus, hypothesis by hypothesis and utterance by utterance."""
    model, batch = make_model(config), make_batch(5)
    found = hypotheses(batch)
    found["u3"] = found["u3"][:1]  # a search that found one only
    teacher = Teacher(other_model(config), hypotheses=found)
    method = make_method(config, teacher, objective="beam", beam=3, label_weight=0.0)
    losses = losses_of(method, model, batch)
    expected, units = 0.0, 0.0
    for row, name in enumerate(batch.ids):
        one = batch.select(torch.tensor([row]))
        probability = torch.tensor([h.log_probability for h in found[name]]).exp()
        shares = probability / probability.sum()
        for share, hypothesis in zip(shares.tolist(), found[name], strict=True):
            forced = with_tokens(one, [hypothesis.tokens])
            log_q = forward_batch(teacher.model, forced).log_posteriors
            value = distillation_sum(log_q, forward_batch(model, forced))
            expected += share * float(value.detach())
            units += share * (len(hypothesis.tokens) + 1)
    total = sum(float(loss.value_sum.detach()) for loss in losses)
    assert total == pytest.approx(expected, rel=1e-4)
    assert total > 0
    assert all(float(loss.num_units) == pytest.approx(units, rel=1e-5) for loss in losses)
    itself = Teacher(make_model(config), hypotheses=found)
    same = losses_of(
        make_method(config, itself, objective="beam", beam=3, label_weight=0.0), model, batch
    )
    assert sum(float(loss.value_sum.detach()) for loss in same) == pytest.approx(0.0, abs=1e-3)


def test_beam_weights_are_renormalised() -> None:
    beam = [Hypothesis([3], -5.0), Hypothesis([4], -5.0 + torch.tensor(0.5).log().item())]
    assert beam_weights(beam) == pytest.approx([2 / 3, 1 / 3])
    assert beam_weights([Hypothesis([3], -800.0)]) == [1.0]  # probability 0 in every float type


@pytest.mark.parametrize(
    ("config", "objective", "expected"),
    [
        (LAS, "truth", ["truth"]),
        (LAS, "beam", ["beam_0", "beam_1", "beam_2", "beam_3"]),
        (TRANSDUCER, "truth", ["truth"]),
        (TRANSDUCER, "top", ["top", "labels"]),
    ],
)
def test_labels_take_part_as_published(config: Config, objective: str, expected: list[str]) -> None:
    model, batch = make_model(config), make_batch()
    teacher = Teacher(other_model(config), hypotheses=hypotheses(batch, beam=4))
    method = make_method(config, teacher, objective=objective)
    losses = losses_of(method, model, batch)
    assert [loss.name for loss in losses] == expected
    assert method.label_weight == (1.0 if config is TRANSDUCER else 0.0)
    output = forward_batch(model, batch)
    if objective == "truth":
        (alone,) = losses_of(make_method(config, teacher, label_weight=0.0), model, batch)
        torch.testing.assert_close(
            losses[0].value_sum, alone.value_sum + method.label_weight * output.label_loss_sum
        )
    elif method.label_weight:
        torch.testing.assert_close(losses[-1].value_sum, output.label_loss_sum)


@MODELS
def test_all_empty_hypotheses_are_no_obstacle(config: Config) -> None:
    model, batch = make_model(config), make_batch(2)
    teacher = Teacher(
        other_model(config), hypotheses={name: [Hypothesis([], 0.0)] for name in batch.ids}
    )
    method = make_method(config, teacher, objective="top", label_weight=0.0)
    (loss,) = losses_of(method, model, batch)
    assert float(loss.num_units) == 2.0
    loss.value_sum.backward()


def test_a_smaller_factored_student_learns_from_a_larger_dense_teacher() -> None:
    student = dataclasses.replace(LAS, encoder_projection=6, decoder_projection=5)
    teacher = dataclasses.replace(LAS, encoder_dim=24, encoder_layers=3, attention_dim=12)
    model, batch = make_model(student), make_batch()
    method = make_method(student, Teacher(other_model(teacher)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    values = []
    for _ in range(20):
        (loss,) = losses_of(method, model, batch)
        optimizer.zero_grad()
        (loss.value_sum / loss.num_units).backward()
        optimizer.step()
        values.append(float(loss.value_sum.detach()))
    assert values[-1] < 0.5 * values[0]


def test_features_normalised_otherwise_are_translated() -> None:
    raw = torch.randn(5, 4).numpy()
    student = FeatureExtractor(num_bins=4, stack=2, mean=[1, 2, 3, 4], std=[1, 2, 1, 2])
    teacher = FeatureExtractor(num_bins=4, stack=2, mean=[0, 2, 1, 5], std=[2, 2, 3, 1])
    scale, shift = feature_map(teacher, student)
    assert scale is not None
    assert shift is not None
    seen = torch.from_numpy(student.stack_frames(student.normalise(raw))) * scale + shift
    wanted = torch.from_numpy(teacher.stack_frames(teacher.normalise(raw)))
    torch.testing.assert_close(seen, wanted)
    assert feature_map(student, student) == (None, None)


def test_a_resumed_run_keeps_its_teacher() -> None:
    method = make_method(LAS, Teacher(other_model(LAS)))
    method.load_state_dict(method.state_dict())
    changed = make_method(LAS, Teacher(make_model(LAS)))
    with pytest.raises(OmnisparseError, match="teacher runs/large has other weights"):
        changed.load_state_dict(method.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": ""}, "teacher is empty"),
        ({"beam": 0}, "beam is 0; it must be at least 1"),
        ({"label_weight": float("nan")}, "label_weight is nan"),
        ({"distillation_weight": -1.0}, "distillation_weight is -1"),
        ({"distillation_weight": 0.0}, "one must be above 0"),
    ],
)
def test_illegal_choices_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillationConfig(**{"teacher": "runs/large", **options})  # type: ignore[arg-type]
