"""The schedule, the exact size, and that nothing pruned comes back."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_batches import LAS, MODELS, TRANSDUCER, make_batch, make_model

from omnisparse.methods import (
    Dense,
    Distillation,
    DistillationConfig,
    GradualPruning,
    GradualPruningConfig,
    Teacher,
    build_method,
    distillation_of,
)
from omnisparse.models import LasConfig, SpeechModel, TransducerConfig
from omnisparse.sparsity.budget import compression_rate, num_nonzero
from omnisparse.sparsity.prunable import find_prunable
from omnisparse.sparsity.schedule import sparsity_at

Config = LasConfig | TransducerConfig


def make_method(model: SpeechModel, max_steps: int = 100, **options: object) -> GradualPruning:
    method = GradualPruning(
        GradualPruningConfig(**{"size": "60%", **options}),  # type: ignore[arg-type]
        Dense(),
    )
    method.prepare(model, max_steps=max_steps)
    return method


def train(
    method: GradualPruning, model: SpeechModel, steps: range, optimizer: torch.optim.Optimizer
) -> None:
    batch = make_batch(4)
    for step in steps:
        optimizer.zero_grad()
        for loss in method.losses(model, batch, step):
            (loss.value_sum / loss.num_units).backward()
        optimizer.step()
        method.on_step_end(step)


def adam(model: SpeechModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.98), weight_decay=0.1)


def nonzero(method: GradualPruning, model: SpeechModel) -> int:
    return num_nonzero(dict(model.named_parameters()), method.budget.prunable)


@given(
    begin=st.integers(0, 50),
    length=st.integers(0, 100),
    initial=st.floats(0, 0.5),
    more=st.floats(0, 0.49),
    exponent=st.floats(0.5, 5),
)
def test_the_schedule_has_its_end_points_and_never_falls(
    begin: int, length: int, initial: float, more: float, exponent: float
) -> None:
    end, final = begin + length, initial + more
    values = [
        sparsity_at(step, begin=begin, end=end, initial=initial, final=final, exponent=exponent)
        for step in range(end + 20)
    ]
    assert all(value == 0.0 for value in values[: min(begin, end)])
    assert all(value == final for value in values[end:])
    if length:
        assert values[begin] == pytest.approx(initial)
    for before, after in itertools.pairwise(values):
        assert after >= before - 1e-12


def test_the_schedule_is_the_published_one() -> None:
    """Eq. 12: s_f (1 - (1 - (t - t_0) / (t_f - t_0))^3)."""
    for step in range(100, 300):
        expected = 0.9 * (1 - (1 - (step - 100) / 200) ** 3)
        found = sparsity_at(step, begin=100, end=300, initial=0.0, final=0.9)
        assert found == pytest.approx(expected, abs=1e-12)


def test_the_published_compression_rate() -> None:
    assert compression_rate(0.9) == pytest.approx(7.62, abs=0.005)  # eq. 13 at 90 %


@MODELS
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_size_is_exact_and_only_lstm_matrices_are_pruned(config: Config, scope: str) -> None:
    model = make_model(config)
    method = make_method(model, max_steps=10, scope=scope, frequency=3, begin=0.1, end=0.8)
    target = round(0.6 * method.budget.dense_parameters)
    assert all("weight_" in fqn for fqn in method.budget.prunable)
    train(method, model, range(8), adam(model))
    assert nonzero(method, model) == target
    untouched = [p for n, p in model.named_parameters() if n not in method.budget.prunable]
    assert all((p != 0).any() for p in untouched)
    train(method, model, range(8, 10), adam(model))
    assert nonzero(method, model) == target


def test_without_patterns_it_prunes_what_a_run_says_is_prunable() -> None:
    model = make_model(LAS)
    method = make_method(model, max_steps=0, size="60%", prunable=())
    assert list(method.budget.prunable) == find_prunable(model)
    assert not any("attention" in fqn for fqn in method.budget.prunable)


def test_a_size_in_parameters() -> None:
    model = make_model(LAS)
    make_method(model, max_steps=0, size="3K")
    assert nonzero(make_method(model, max_steps=0, size=3000), model) == 3000


def test_nothing_reappears_in_200_steps_of_adam_with_decay() -> None:
    model = make_model(LAS)
    method = make_method(model, max_steps=200, begin=0.05, end=0.5, frequency=10)
    optimizer = adam(model)
    gone = {fqn: torch.zeros(shape, dtype=torch.bool) for fqn, shape in
            method.budget.shapes.items() if fqn in method.budget.prunable}  # fmt: skip
    counts, frozen = [], None
    for step in range(200):
        train(method, model, range(step, step + 1), optimizer)
        for fqn, before in gone.items():
            zero = model.get_parameter(fqn).detach() == 0
            assert bool(zero[before].all()), f"{fqn} came back after step {step}"
            gone[fqn] = zero
        counts.append(nonzero(method, model))
        if step + 1 == method.end:
            frozen = {fqn: mask.clone() for fqn, mask in method.masks.items()}
        elif frozen is not None:
            assert all(torch.equal(frozen[fqn], mask) for fqn, mask in method.masks.items())
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == 10  # a mask every 10 of 90 steps, the whole net first
    assert counts[-1] == counts[method.end - 1] == round(0.6 * method.budget.dense_parameters)
    # Momentum of pruned weights would move them: the optimizer has had steps in which to try.
    moments = [optimizer.state[model.get_parameter(fqn)]["exp_avg"] for fqn in gone]
    assert any(float(m[gone[fqn]].abs().max()) > 0 for m, fqn in zip(moments, gone, strict=True))


def test_masked_weights_take_no_part_in_the_gradient() -> None:
    model = make_model(LAS)
    method = make_method(model, max_steps=100, begin=0, end=0)  # at once
    for loss in method.losses(model, make_batch(), 0):
        loss.value_sum.backward()
    for fqn, mask in method.masks.items():
        gradient = model.get_parameter(fqn).grad
        assert gradient is not None
        assert float(gradient[~mask].abs().max()) == 0.0
        assert float(gradient[mask].abs().max()) > 0.0


def test_masks_survive_a_resume_between_two_updates() -> None:
    model = make_model(LAS)
    method = make_method(model, frequency=50)
    train(method, model, range(20), adam(model))
    state = method.state_dict()
    assert all(bits.dtype == torch.uint8 for bits in state.values())
    other = make_model(LAS)
    again = make_method(other, frequency=50)
    other.load_state_dict(model.state_dict())
    # A kept weight that happens to be zero is still kept: the masks are state, not derived.
    fqn = next(iter(method.masks))
    place = tuple(method.masks[fqn].nonzero()[0].tolist())
    with torch.no_grad():
        other.get_parameter(fqn)[place] = 0.0
    again.load_state_dict(state)
    assert again.masks.keys() == method.masks.keys()
    assert all(torch.equal(again.masks[name], method.masks[name]) for name in method.masks)
    with pytest.raises(ValueError, match="of other matrices"):
        make_method(make_model(TRANSDUCER)).load_state_dict(state)


def test_pruning_under_a_teacher_trains_on_the_teachers_loss() -> None:
    """F + D + S: a factored student, distilled, pruned while it is."""
    config = LasConfig(
        encoder_layers=2, encoder_dim=16, encoder_projection=8, decoder_dim=16, attention_dim=8,
        attention_heads=2, embedding_dim=8, dropout=0.0,
    )  # fmt: skip
    model, teacher = make_model(config), Teacher(make_model(LAS))
    chosen = GradualPruningConfig(
        size="60%", begin=0, end=0.5, distillation=DistillationConfig(teacher="runs/large")
    )
    method = build_method(chosen, seed=0, teacher=teacher)
    assert isinstance(method, GradualPruning)
    assert isinstance(method.objective, Distillation)
    assert distillation_of(chosen) is chosen.distillation
    method.prepare(model, max_steps=10)
    assert any(fqn.endswith("weight_hr_l0") for fqn in method.budget.prunable)
    (loss,) = method.losses(model, make_batch(), 0)
    assert loss.name == "truth"
    assert {"objective/teacher"} < set(method.state_dict())
    train(method, model, range(10), adam(model))
    assert nonzero(method, model) == round(0.6 * method.budget.dense_parameters)
    method.load_state_dict(method.state_dict())
    other = build_method(chosen, seed=0, teacher=Teacher(make_model(config)))
    other.prepare(make_model(config), max_steps=10)
    with pytest.raises(Exception, match="other weights than when this run began"):
        other.load_state_dict(method.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "20MB"}, "size '20MB' is in bytes"),
        ({"initial_sparsity": 1.0}, "initial_sparsity is 1.0"),
        ({"initial_sparsity": 0.95}, "initial_sparsity is 0.95; it must be at most 0"),
        ({"begin": -0.1}, "begin is -0.1"),
        ({"end": 7.5}, "end is 7.5; a share of the run up to 1, or a whole number of steps"),
        ({"frequency": 0}, "frequency is 0"),
        ({"exponent": 0.0}, "exponent is 0.0"),
        ({"begin": 50, "end": 20}, "from step 50 to 20 does not fit a run of 100"),
        ({"end": 200}, "from step 10 to 200 does not fit a run of 100"),
        ({"size": "1%"}, "'1%' is out of range .*legal"),
        ({"prunable": ("nothing",)}, "'nothing' matches none of"),
    ],
)
def test_illegal_choices_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method(make_model(LAS), **options)
