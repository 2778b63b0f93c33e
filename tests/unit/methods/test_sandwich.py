"""The sandwich step: who sees what, what is distilled, where gradients go."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import pytest
import torch
from small_batches import LAS, MODELS, TRANSDUCER, make_batch, make_model
from torch import nn

from omnisparse.data.batching import Batch
from omnisparse.methods import Sandwich, SandwichConfig
from omnisparse.methods.base import Loss, distillation_sum, forward_batch
from omnisparse.methods.inplace import Teacher, scaled_dropout
from omnisparse.models import LasConfig, TransducerConfig, build_model
from omnisparse.models.divergence import kl_divergence
from omnisparse.models.transducer import EncoderKind
from omnisparse.sparsity.space import SubnetSpec


def make_method(config: LasConfig | TransducerConfig, **options: object) -> Sandwich:
    options = {"min_size": "80%", "warmup_fraction": 0.0, "shrink_fraction": 0.0, **options}
    method = Sandwich(SandwichConfig(**options), seed=3)  # type: ignore[arg-type]
    method.prepare(make_model(config), max_steps=100)
    return method


@MODELS
def test_distilling_a_net_from_itself_costs_nothing(config: LasConfig | TransducerConfig) -> None:
    model = make_model(config)
    output = forward_batch(model, make_batch())
    value = distillation_sum(output.log_posteriors.detach(), output)
    assert float(value.detach().abs()) < 1e-4
    other = forward_batch(build_model(config, input_dim=12, vocab_size=10), make_batch())
    assert float(distillation_sum(output.log_posteriors.detach(), other).detach()) > 1e-3


@MODELS
def test_a_teacher_of_the_whole_batch_serves_a_trimmed_part(
    config: LasConfig | TransducerConfig,
) -> None:
    model, batch = make_model(config), make_batch()
    teacher = forward_batch(model, batch).log_posteriors.detach()
    shortest = int(batch.feature_lengths.argmin())
    rows = torch.tensor([shortest])
    part = forward_batch(model, batch.select(rows))
    assert part.log_posteriors.shape != teacher[rows].shape
    assert float(distillation_sum(teacher[rows], part).detach().abs()) < 1e-4


def test_extreme_logits_give_finite_divergence_and_gradient() -> None:
    model = make_model(LAS)
    output = forward_batch(model, make_batch())
    logits = torch.zeros_like(output.log_posteriors)
    logits[..., 3] = 1e4
    student_logits = torch.zeros_like(logits, requires_grad=True)
    student = output._replace(log_posteriors=torch.log_softmax(student_logits * 1e4, -1))
    value = distillation_sum(torch.log_softmax(logits, -1), student)
    value.backward()
    assert math.isfinite(float(value.detach()))
    assert torch.isfinite(student_logits.grad).all()


def test_members_see_disjoint_parts_that_rotate() -> None:
    method, batch = make_method(LAS, member_share=0.5, num_random_subnets=1), make_batch(8)
    seen = []
    for step in range(4):
        parts = [set(method._member_rows(batch, step, index)[0].tolist()) for index in (0, 1)]
        assert not parts[0] & parts[1]
        assert len(parts[0]) == len(parts[1]) == 2
        seen.append(parts[0])
    assert set.union(*seen) == set(range(8))


def test_parts_do_not_depend_on_the_number_of_processes() -> None:
    method = make_method(LAS, member_share=0.5)
    whole = make_batch(8)
    halves = [make_batch(8, [0, 1, 2, 3]), make_batch(8, [4, 5, 6, 7])]
    for step in range(5):
        for index in (0, 1):
            rows, present = method._member_rows(whole, step, index)
            names = {whole.ids[row] for row in rows.tolist()} if present else set()
            joined = set()
            for half in halves:
                rows, present = method._member_rows(half, step, index)
                joined |= {half.ids[row] for row in rows.tolist()} if present else set()
            assert joined == names


def test_nodes_may_count_as_the_alignments_of_the_dense_net_pass_them() -> None:
    batch, step = make_batch(8), 2
    every = make_method(TRANSDUCER, member_share=0.5, label_weight=0.0)
    passed = make_method(TRANSDUCER, member_share=0.5, label_weight=0.0, lattice_nodes="occupied")
    passed.supernet.load_state_dict(every.supernet.state_dict())
    values = []
    for method in (every, passed):
        method.supernet.eval()
        values.append(
            [loss.value_sum.item() for loss in method.losses(method.supernet, batch, step)]
        )
    assert values[0][0] == values[1][0]
    assert all(
        one != pytest.approx(two, rel=1e-3) for one, two in list(zip(*values, strict=True))[1:]
    )
    # By hand, for the smallest subnet.
    rows = passed._member_rows(batch, step, 0)[0]
    passed.supernet.activate(None)
    dense = forward_batch(passed.supernet, batch.select(rows))
    passed.supernet.activate(passed.schedule.min_spec)
    subnet = forward_batch(passed.supernet, batch.select(rows))
    passed.supernet.activate(None)
    weights = dense.occupancy
    divergence = kl_divergence(dense.log_posteriors, subnet.log_posteriors)
    assert values[1][1] == pytest.approx((weights * divergence).sum().item(), rel=1e-3)
    # An attention decoder has no lattice, and every step of it counts.
    output = forward_batch(make_model(LAS), batch)
    assert Teacher.of(output, "posteriors", "occupied").weights is None


@pytest.mark.parametrize("distill", ["posteriors", "both"])
def test_without_a_weight_nothing_is_distilled(
    distill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control without a teacher does not pay for one, and its losses are those of labels."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a divergence was computed")

    monkeypatch.setattr("omnisparse.methods.inplace.distillation_sum", refuse)
    monkeypatch.setattr("omnisparse.methods.inplace.encoder_distance", refuse)
    method = make_method(
        LAS, distill=distill, distillation_weight=0.0, encoder_weight=0.0, label_weight=1.0,
        member_share=0.5,
    )  # fmt: skip
    batch, step = make_batch(8), 2
    method.supernet.eval()
    values = [loss.value_sum.item() for loss in method.losses(method.supernet, batch, step)]
    rows = method._member_rows(batch, step, 0)[0]
    method.supernet.activate(method.schedule.min_spec)
    own = forward_batch(method.supernet, batch.select(rows)).label_loss_sum.item()
    assert values[1] == pytest.approx(own)


def test_a_process_without_rows_of_a_member_weighs_nothing() -> None:
    method = make_method(LAS, member_share=0.34)
    batch = make_batch(8, [0])
    losses = list(method.losses(method.supernet, batch, step=3))
    assert [loss.name for loss in losses] == ["dense", "smallest", "random_0"]
    for loss in losses[1:]:
        assert (loss.value_sum.item(), loss.num_units.item(), loss.utterances) == (0.0, 0.0, 0)
        assert loss.value_sum.requires_grad


def test_the_smallest_subnet_shrinks_from_the_dense_net_to_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = make_method(
        LAS, warmup_fraction=0.1, shrink_fraction=0.5, refresh_every=5, min_size="60%"
    )
    numel, batch = method.supernet.budget.prunable, make_batch()
    activated: list[float] = []
    activate = method.supernet.activate

    def record(spec: SubnetSpec | None) -> None:
        kept = (spec or SubnetSpec({})).counts(numel)
        activated.append(sum(kept.values()) / sum(numel.values()))
        activate(spec)

    monkeypatch.setattr(method.supernet, "activate", record)
    smallest = []
    for step in range(10, 63):
        activated.clear()
        list(method.losses(method.supernet, batch, step))
        assert activated[0] == activated[-1] == 1
        assert activated[2] >= activated[1]  # the random one
        smallest.append(activated[1])
    assert smallest == sorted(smallest, reverse=True)
    assert len(set(smallest)) == 10  # one for each ranking
    end = sum(method.schedule.min_spec.counts(numel).values()) / sum(numel.values())
    assert smallest[0] == pytest.approx(end + (1 - end) * 0.9**3, abs=0.01)
    assert smallest[45:] == pytest.approx([end] * 8)
    assert method.schedule.least_density(59) == pytest.approx(end)
    assert method.schedule.least_density(60) == 0  # by the spec itself from now on


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_random_subnets": 3},
        {"member_share": 1.0},
        {"full_batch": True},
        {"core_fraction": 0.5, "shrink_fraction": 0.25},
        {"core_fraction": 0.25, "shrink_fraction": 0.5},
    ],
)
def test_a_run_costs_the_passes_that_the_config_says(options: dict[str, object]) -> None:
    method = make_method(LAS, warmup_fraction=0.25, **options)
    utterances, steps = 2 * method.config.member_period, 8
    batch = make_batch(utterances)
    method.prepare(make_model(LAS), max_steps=steps)
    passes = 0
    for step in range(steps):
        loss = list(method.losses(method.supernet, batch, step))
        passes += sum(part.utterances for part in loss)
    assert passes == pytest.approx(method.config.mean_passes * steps * utterances)


def test_the_core_trains_alone_and_the_dense_net_grows_from_it() -> None:
    method = make_method(
        LAS,
        warmup_fraction=0.1,
        core_fraction=0.5,
        shrink_fraction=0.3,
        refresh_every=5,
        min_size="60%",
        subnet_dropout="none",
    )
    supernet, batch = method.supernet, make_batch()
    model, numel = supernet.model, supernet.budget.prunable
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    kept = []
    for step in range(10, 60):
        assert method.num_losses(step) == 1
        optimizer.zero_grad()
        (loss,) = method.losses(supernet, batch, step)
        assert (loss.name, loss.utterances) == ("smallest", len(batch.ids))
        loss.value_sum.backward()
        optimizer.step()
        method.on_step_end(step)
        kept.append(sum(int(model.get_parameter(fqn).count_nonzero()) for fqn in numel))
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[-1] == sum(method.schedule.min_spec.counts(numel).values())

    now = {fqn: value.clone() for fqn, value in model.state_dict().items()}
    losses = list(method.losses(supernet, batch, 60))
    assert [loss.name for loss in losses] == ["dense", "smallest", "random_0"]
    smallest = supernet.extract(method.schedule.min_spec)
    assert all(torch.equal(now[fqn], smallest[fqn]) for fqn in now)
    model.zero_grad(set_to_none=True)
    losses = method.losses(supernet, batch, 61)
    next(losses).value_sum.backward()
    for fqn in numel:  # zeros are not stuck: the dense net's gradient reaches them
        gradient = model.get_parameter(fqn).grad
        assert gradient is not None
        assert gradient[now[fqn] == 0].abs().sum() > 0, fqn


def test_behind_the_core_weights_are_ranked_before_ties_choose_a_ring() -> None:
    """All weights behind the core are 0 at first, and ties keep the first rows of a matrix."""
    method = make_method(LAS, min_size="70%", core_fraction=0.2, refresh_every=20)
    model, batch = method.supernet.model, make_batch(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    rings = {}
    fqn = "encoder.layers.1.weight_hh_l0"
    rows = model.get_parameter(fqn).shape[0]
    for step in (0, 19, 20, 21, 22):
        optimizer.zero_grad()
        for loss in method.losses(method.supernet, batch, step):
            (loss.value_sum * loss.weight / loss.num_units.clamp(min=1)).backward()
        if step >= method.schedule.core_steps:
            places = method.supernet._positions[fqn].view(rows, -1)
            kept = method.schedule.min_spec.counts(method.supernet.budget.prunable)[fqn]
            ring = (places >= kept) & (places < 1.15 * kept)
            rings[step - method.schedule.core_steps] = float(ring.nonzero()[:, 0].float().mean())
        optimizer.step()
        method.on_step_end(step)
    assert list(rings) == [0, 1, 2]
    middle = (rows - 1) / 2
    assert rings[0] < 0.5 * middle  # by index
    assert abs(rings[1] - middle) < 0.25 * middle  # by what one step has learned


def test_one_net_a_step_is_drawn_from_all_sizes() -> None:
    options = {"rule": "single", "min_size": "60%", "distribution": "levels", "levels": ("80%",)}
    method, batch = make_method(LAS, warmup_fraction=0.1, **options), make_batch(2)
    assert method.config.mean_passes == 1.0
    sizes, names = [], []
    for step in (0, 9, *range(10, 40)):
        (loss,) = method.losses(method.supernet, batch, step)
        assert method.num_losses(step) == len(method.units(batch, step)) == 1
        assert (loss.weight, loss.utterances) == (1.0, len(batch))
        assert step >= 10 or method.schedule.alone(step) is None
        names.append(loss.name)
        sizes.append(method.supernet.nonzero(method.schedule.alone(step)))
    dense = method.supernet.budget.dense_parameters
    expected = {round(share * dense) for share in (0.6, 0.8, 1.0)}
    assert set(sizes[2:]) == expected
    called = {min(expected): "smallest", max(expected): "dense"}
    assert names == [called.get(size, "random_0") for size in sizes]
    assert min(sizes[2:].count(size) for size in expected) >= 4
    method.supernet.activate(method.schedule.alone(39))
    output = forward_batch(method.supernet, batch)
    torch.testing.assert_close(loss.value_sum, output.label_loss_sum)
    schedule = make_method(LAS, rule="single").schedule  # any size between the two
    drawn = [schedule.alone(step) for step in range(60)]
    assert all(10 < drawn.count(spec) < 30 for spec in (None, schedule.min_spec))
    assert len(set(drawn)) > 10


def test_shares_of_a_run_may_add_up_to_all_of_it() -> None:
    SandwichConfig(warmup_fraction=0.8, shrink_fraction=0.2)
    whole = SandwichConfig(warmup_fraction=0.9, core_fraction=0.1, shrink_fraction=0.1)
    assert whole.mean_passes == pytest.approx(1)


def test_the_warm_up_trains_the_dense_net_only() -> None:
    method = make_method(LAS, warmup_fraction=0.3)
    assert [method.num_losses(step) for step in (0, 29, 30)] == [1, 1, 3]
    assert len(list(method.losses(method.supernet, make_batch(), step=29))) == 1


@MODELS
def test_hidden_weights_get_no_gradient_from_a_subnet_unless_straight_through(
    config: LasConfig | TransducerConfig,
) -> None:
    for straight_through in (False, True):
        method = make_method(config, straight_through=straight_through, full_batch=True)
        model = method.supernet.model
        losses = method.losses(method.supernet, make_batch(), step=0)
        next(losses)  # the dense net: not under test
        next(losses).value_sum.backward()
        dense = model.state_dict()
        subnet = method.supernet.extract(method.schedule.min_spec)
        hidden = 0.0
        for fqn in method.supernet.prunable:
            cut = (subnet[fqn] == 0) & (dense[fqn] != 0)
            assert cut.any()
            gradient = model.get_parameter(fqn).grad
            assert gradient is not None
            hidden += float(gradient[cut].abs().sum())
        assert (hidden > 0) == straight_through


def test_the_subnet_loss_is_that_of_the_extracted_net() -> None:
    method, batch = make_method(LAS, full_batch=True, label_weight=1.0), make_batch()
    method.supernet.model.eval()
    losses = list(method.losses(method.supernet, batch, step=0))
    alone = make_model(LAS).eval()
    teacher = forward_batch(alone, batch).log_posteriors
    alone.load_state_dict(method.supernet.extract(method.schedule.min_spec))
    output = forward_batch(alone, batch)
    expected = output.label_loss_sum + distillation_sum(teacher, output)
    torch.testing.assert_close(losses[1].value_sum, expected)


def test_random_subnets_are_drawn_by_step_and_seed_alone() -> None:
    one, two = make_method(LAS, per_layer=True), make_method(LAS, per_layer=True)
    specs = []
    for method in (one, two):
        drawn = []
        for step in range(6):
            losses = method.losses(method.supernet, make_batch(), step)
            for _ in range(3):
                next(losses)
            drawn.append(method.supernet.spec)
        specs.append(drawn)
    assert specs[0] == specs[1]
    assert len(set(specs[0])) > 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_random_subnets": -1}, "num_random_subnets is -1; it must be at least 0"),
        ({"member_share": 0.0}, "member_share is 0.0; it must be above 0 and at most 1"),
        (
            {"warmup_fraction": 0.5, "core_fraction": 0.6},
            "core_fraction is 0.6; .* from 0 to 0.5",
        ),
        ({"refresh_every": 0}, "refresh_every is 0"),
        ({"label_weight": math.nan}, "label_weight is nan"),
        ({"min_size": "16 apples"}, "16 apples"),
        ({"alphas": (0.0, 1.0)}, "alphas is"),
        ({"alpha_clip": 0.5}, "alpha_clip is 0.5; it must be at least 1"),
        ({"encoder_weight": -1.0}, "encoder_weight is -1.0"),
        ({"layer_spread": 1e308}, r"layer_spread is 1e\+308; it must be from 0 to 1000"),
        ({"min_size": "20MB"}, "min_size '20MB' is in bytes; legal here"),
        ({"levels": ("50%", "1MiB")}, "levels '1MiB' is in bytes"),
        (
            {"distribution": "levels", "levels": ()},
            "levels is empty; it must have at least one size",
        ),
        ({"num_layer_levels": 4}, "num_layer_levels 4 must be 0 or odd"),
        ({"prunable": ("(",)}, r"prunable '\(' is not a regular expression"),
        ({"layer_groups": ("(",)}, r"layer group '\(' is not a regular expression"),
        ({"block": "8"}, "block '8' is not known; legal: 1x1, 8x1"),
        ({"block": "0x1"}, "block '0x1' is not known"),
        ({"block_matrices": ("enc",)}, r"block_matrices is \('enc',\); with block 1x1"),
        ({"block": "8x1", "block_matrices": ("(",)}, r"block_matrices '\(' is not a regular"),
    ],
)
def test_illegal_choices_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SandwichConfig(**options)  # type: ignore[arg-type]


def test_blocks_of_no_matrix_name_the_matrices() -> None:
    with pytest.raises(ValueError, match=r"block_matrices: 'speller' matches none of: encoder\."):
        make_method(LAS, block="8x1", block_matrices=("encoder", "speller"))


def test_no_level_is_below_the_smallest_subnet() -> None:
    options = {"distribution": "levels", "min_size": "80%", "warmup_fraction": 0.0}
    with pytest.raises(ValueError, match="levels: 60% is below min_size, which is 80%"):
        make_method(LAS, levels=("90%", "60%"), **options)


def test_an_unreachable_smallest_size_names_the_legal_range() -> None:
    with pytest.raises(ValueError, match=r"'1%' is out of range .*legal"):
        make_method(LAS, min_size="1%")


def step_losses(method: Sandwich, batch: Batch | None = None) -> list[Loss]:
    return list(method.losses(method.supernet, batch or make_batch(), step=0))


@MODELS
@pytest.mark.parametrize("distill", ["encoder", "both"])
def test_an_encoder_can_be_taught(
    config: LasConfig | TransducerConfig, distill: Literal["encoder", "both"]
) -> None:
    """A subnet that is the dense net has nothing to learn from it, a smaller one has."""
    options = {"distill": distill, "label_weight": 0.0, "full_batch": True, "encoder_weight": 1.0}
    whole = step_losses(make_method(config, min_size="100%", **options))
    assert abs(whole[1].value_sum.item()) < 1e-3
    method = make_method(config, **options)
    value = step_losses(method)[1].value_sum
    value.backward()
    gradients = {name: p.grad for name, p in method.supernet.model.named_parameters()}
    reached = {name for name, grad in gradients.items() if grad is not None and grad.any()}
    assert any(name.startswith("encoder.") for name in reached)
    after_encoder = {name for name in reached if not name.startswith("encoder.")}
    assert bool(after_encoder) == (distill == "both")


@MODELS
def test_the_alpha_divergence_is_an_option(config: LasConfig | TransducerConfig) -> None:
    options = {"label_weight": 0.0, "full_batch": True}
    kl = step_losses(make_method(config, **options))[1].value_sum.item()
    alpha = step_losses(make_method(config, divergence="alpha", **options))[1].value_sum.item()
    only_one = step_losses(
        make_method(config, divergence="alpha", alphas=(1.0, 1.0), alpha_clip=1e9, **options)
    )[1].value_sum.item()
    assert only_one == pytest.approx(kl, rel=1e-3)  # alpha = 1 is KL
    assert alpha > kl * 1.001


def test_normalised_members_add_up_to_one() -> None:
    plain = step_losses(make_method(LAS, subnet_weight=0.5, num_random_subnets=2))
    assert [loss.weight for loss in plain] == [1.0, 0.5, 0.5, 0.5]
    method = make_method(LAS, subnet_weight=0.5, num_random_subnets=2, normalise_members=True)
    weights = [loss.weight for loss in step_losses(method)]
    assert sum(weights) == pytest.approx(1.0)
    assert weights == pytest.approx([0.4, 0.2, 0.2, 0.2])
    warming = make_method(LAS, normalise_members=True, warmup_fraction=1.0)
    assert [loss.weight for loss in step_losses(warming)] == [1.0]


def test_dropout_of_subnets_is_scaled_and_comes_back() -> None:
    model = make_model(dataclasses.replace(LAS, dropout=0.4))
    with scaled_dropout(model, 0.25):
        assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.1}
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.4}
    with pytest.raises(KeyError), scaled_dropout(model, 0.0):
        raise KeyError
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.4}


@pytest.mark.parametrize("encoder", ["lstm", "emformer", "conformer"])
def test_no_dropout_hides_from_the_scaling(encoder: EncoderKind) -> None:
    """Without dropout a net in training says what it says in evaluation, whoever applies it."""
    size = {} if encoder == "lstm" else {"encoder_heads": 2, "encoder_feed_forward": 16}
    config = dataclasses.replace(TRANSDUCER, dropout=0.4, encoder=encoder, **size)
    model, batch = make_model(config), make_batch()
    expected = forward_batch(model.eval(), batch).log_posteriors
    model.train()
    assert not torch.allclose(forward_batch(model, batch).log_posteriors, expected, atol=1e-3)
    with scaled_dropout(model, 0.0):
        found = forward_batch(model, batch).log_posteriors
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(forward_batch(model, batch).log_posteriors, expected, atol=1e-3)


@pytest.mark.parametrize("choice", ["same", "scaled", "none"])
def test_dropout_follows_the_density(choice: str) -> None:
    seen: list[float] = []
    method = make_method(LAS, subnet_dropout=choice, num_random_subnets=0)
    kept = sum(method.schedule.min_spec.counts(method.supernet.budget.prunable).values())
    density = kept / method.supernet.budget.prunable_parameters
    assert 0.6 < density < 0.9
    for module in method.supernet.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
            module.register_forward_pre_hook(lambda module, _: seen.append(module.p))
    step_losses(method)
    dense, member = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert set(dense) == {0.5}
    assert set(member) == {0.5 * {"same": 1.0, "scaled": density, "none": 0.0}[choice]}


def test_blocks_are_kept_whole_while_training() -> None:
    method = make_method(LAS, block="8x1", min_size="60%", full_batch=True)
    step_losses(method)
    with torch.no_grad():
        state = method.supernet.extract(method.schedule.min_spec)
    for fqn in method.supernet.prunable:
        rows = state[fqn].shape[0] // 8 * 8
        blocks = state[fqn][:rows].reshape(-1, 8, state[fqn].shape[1]).ne(0)
        assert (blocks.all(1) | ~blocks.any(1)).all()
        assert not blocks.all()


@MODELS
@pytest.mark.parametrize("options", [
    {"divergence": "alpha", "distill": "both", "subnet_dropout": "scaled"},
    {"per_layer": True, "layer_groups": ("encoder",), "num_layer_levels": 5, "block": "8x1"},
], ids=str)  # fmt: skip
def test_options_go_together(
    config: LasConfig | TransducerConfig, options: dict[str, object]
) -> None:
    method = make_method(config, **options)
    for loss in step_losses(method):
        assert math.isfinite(loss.value_sum.item())
        loss.value_sum.backward()
    for parameter in method.supernet.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()
