"""The schedule, the exact size, and that nothing pruned comes back."""

from __future__ import annotations

import dataclasses
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
from omnisparse.methods.base import forward_batch
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
def test_the_size_is_exact_and_nothing_else_is_pruned(config: Config, scope: str) -> None:
    model = make_model(config)
    model.skip_phases()
    method = make_method(model, max_steps=10, scope=scope, frequency=3, begin=0.1, end=0.8)
    target = round(0.6 * method.budget.dense_parameters)
    assert all("weight_" in fqn or "projection" in fqn for fqn in method.budget.prunable)
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
    assert all(bits.dtype == torch.uint8 for fqn, bits in state.items() if fqn != "schedule")
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


def warming(steps: int = 40, ctc: bool = True, joiner: int = 0) -> SpeechModel:
    """A transducer whose predictor waits."""
    config = dataclasses.replace(
        TRANSDUCER,
        predictor_warmup=steps,
        joiner_warmup=joiner,
        ctc_weight=0.3 if ctc else 0.0,
    )
    return make_model(config)


@pytest.mark.parametrize("ctc", [True, False])
def test_a_part_learns_from_the_step_it_says(ctc: bool) -> None:
    """The oracle of ``learns_from`` is the gradient."""
    model, batch = warming(ctc=ctc).train(), make_batch(4)
    for step in (0, 39, 40):
        model.set_step(step)
        model.zero_grad()
        forward_batch(model, batch).label_loss_sum.backward()
        for name, parameter in model.named_parameters():
            moved = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
            if name.startswith("predictor.embedding") or moved:
                continue
            assert step < model.learns_from(name) == 40, name
        if step < 40:
            gradient = model.get_parameter("predictor.layers.0.weight_hh_l0").grad
            assert gradient is None or not gradient.any()


def test_the_joiner_learns_before_the_predictor() -> None:
    """CTC alone for 40 steps, then the joiner with the encoder for 20, then all."""
    model, batch = warming(joiner=20).train(), make_batch(4)
    parts = {
        "ctc_output.weight": 0,
        "joiner.output.weight": 40,
        "joiner.predictor_projection.weight": 60,
        "predictor.layers.0.weight_hh_l0": 60,
    }
    assert {name: model.learns_from(name) for name in parts} == parts
    for step in (0, 39, 40, 59, 60):
        model.set_step(step)
        model.zero_grad()
        forward_batch(model, batch).label_loss_sum.backward()
        for name, begins in parts.items():
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            assert bool(gradient.any()) == (step >= begins), (step, name)


def test_nothing_is_pruned_before_every_pruned_part_learns() -> None:
    model = warming(4)
    method = make_method(model, max_steps=14, frequency=1)
    assert (method.begin, method.end) == (5, 11)  # 4, and 10 % and 70 % of what is left
    assert method.described() == {"pruning": {"begin": 5, "end": 11, "learns_from": 4}}
    (line,) = method.notes()
    assert "from step 5 to 11" in line
    assert "step 4," in line
    assert make_method(make_model(LAS)).notes() == ()
    train(method, model, range(4), adam(model))
    assert not method.masks
    train(method, model, range(4, 7), adam(model))
    assert nonzero(method, model) < method.budget.dense_parameters
    # A prunable set without the part that waits does not wait.
    assert make_method(warming(), prunable=("encoder.*weight_",)).begin == 10
    # A net that starts from trained weights has no such phase.
    trained = warming()
    trained.skip_phases()
    assert make_method(trained).begin == 10
    assert make_method(warming(), max_steps=0, begin=0, end=0).begin == 0
    with pytest.raises(ValueError, match=r"from step 20 .* is before step 40, .*legal: .* 40 and"):
        make_method(warming(), begin=20)
    assert make_method(warming(), max_steps=30).begin == 30  # of a trial run that is too short


def test_a_checkpoint_of_before_keeps_its_schedule() -> None:
    model = warming()
    method = make_method(model, max_steps=140)
    state = method.state_dict() | {
        f"mask/{fqn}": torch.full((-(-numel // 8),), 255, dtype=torch.uint8)
        for fqn, numel in method.budget.prunable.items()
    }
    del state["schedule"]
    method.load_state_dict(state)
    assert (method.begin, method.end) == (14, 98)


def test_one_pruning_rests_at_each_size_and_keeps_a_model() -> None:
    model = make_model(LAS)
    sizes = {"80%": 80, "60%": 60}
    method = make_method(
        model, max_steps=30, size="50%", sizes=("60%", "80%"), hold_fraction=0.1, frequency=3
    )
    dense, optimizer, kept, counts = method.budget.dense_parameters, adam(model), {}, []
    for step in range(30):
        train(method, model, range(step, step + 1), optimizer)
        counts.append(nonzero(method, model))
        name = method.model_to_keep(step + 1)
        if name is not None:
            kept[name] = (step + 1, counts[-1])
    assert counts == sorted(counts, reverse=True)
    assert list(kept) == ["size-80pct", "size-60pct"]
    for size, share in sizes.items():
        done, count = kept[f"size-{size[:-1]}pct"]
        assert count == round(share / 100 * dense)
        assert set(counts[done - 3 : done]) == {count}  # it has trained three steps at this size
    assert counts[method.end - 1] == counts[-1] == round(0.5 * dense)
    assert method.described()["pruning"]["kept"] == {k: done for k, (done, _) in kept.items()}


@pytest.mark.parametrize("scope", ["layer", "lamp"])
def test_a_pruned_weight_may_return_until_the_last_mask(scope: str) -> None:
    model = make_model(LAS)
    method = make_method(model, max_steps=30, regrowth=True, frequency=2, scope=scope)
    optimizer, returned = adam(model), 0
    before: dict[str, torch.Tensor] = {}
    for step in range(30):
        train(method, model, range(step, step + 1), optimizer)
        assert (
            nonzero(method, model)
            == method.budget.unprunable + sum(int(mask.sum()) for mask in method.masks.values())
            or not method.masks
        )
        for fqn, mask in method.masks.items():
            if fqn in before:
                returned += int((mask & ~before[fqn]).sum())
            if method.hidden:
                assert not (method.hidden[fqn][mask]).any()
        before = dict(method.masks)
        if step == 12:  # hidden values are state
            other = make_model(LAS)
            again = make_method(other, max_steps=30, regrowth=True, frequency=2)
            other.load_state_dict(model.state_dict())
            again.load_state_dict(method.state_dict())
            assert again.hidden
            assert all(torch.equal(again.hidden[k], v) for k, v in method.hidden.items())
    assert returned > 0
    assert method.hidden == {}
    assert nonzero(method, model) == round(0.6 * method.budget.dense_parameters)


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
        ({"sizes": ("50%",)}, "sizes: 50% is not above size, which is 60%"),
        ({"sizes": ("80%",), "hold_fraction": 0.7}, "has no room for 1 rests of 70 steps"),
    ],
)
def test_illegal_choices_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method(make_model(LAS), **options)
