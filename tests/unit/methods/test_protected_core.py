"""``core_gradient``: when and how much the smallest subnet's weights follow larger nets."""

from __future__ import annotations

import pytest
import torch
from small_batches import LAS, MODELS, make_batch, make_model

from omnisparse.methods import Sandwich, SandwichConfig
from omnisparse.methods.base import forward_batch
from omnisparse.models import LasConfig, TransducerConfig
from omnisparse.sparsity.space import SubnetSpec
from omnisparse.sparsity.supernet import Supernet


def gradients(
    config: LasConfig | TransducerConfig, step: int, name: str, share: float
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Gradients of one loss, and the smallest subnet's masks, after a warm-up of 20 of 100 steps.

    The core trains alone until step 40, and has shrunk at step 60.
    """
    method = Sandwich(
        SandwichConfig(
            min_size="70%",
            distribution="levels",
            levels=("85%",),
            warmup_fraction=0.2,
            core_fraction=0.2,
            shrink_fraction=0.4,
            member_share=1.0,
            core_gradient=share,
            subnet_dropout="none",
        ),
        seed=3,
    )
    supernet = method.prepare(make_model(config), max_steps=100)
    supernet.refresh()
    supernet.eval()  # the same dropout in every call: none
    for loss in method.losses(supernet, make_batch(8), step):
        supernet.model.zero_grad(set_to_none=True)
        loss.value_sum.backward()
        if loss.name == name:
            break
    else:
        raise AssertionError(f"no loss {name}")
    counts = method.schedule.min_spec.counts(supernet.budget.prunable)
    weights = {fqn: supernet.model.get_parameter(fqn) for fqn in counts}
    kept = {
        fqn: (supernet._positions[fqn] < counts[fqn]).view(weights[fqn].shape) for fqn in counts
    }
    return {fqn: weight.grad for fqn, weight in weights.items() if weight.grad is not None}, kept


@MODELS
@pytest.mark.parametrize("name", ["dense", "random_0"])
def test_larger_nets_move_the_core_by_a_share(
    config: LasConfig | TransducerConfig, name: str
) -> None:
    whole, kept = gradients(config, 60, name, 1.0)
    part, _ = gradients(config, 60, name, 0.25)
    assert whole.keys() == part.keys() == kept.keys()
    for fqn, mask in kept.items():
        assert 0 < int(mask.sum()) < mask.numel()
        torch.testing.assert_close(part[fqn][mask], 0.25 * whole[fqn][mask])
        assert torch.equal(part[fqn][~mask], whole[fqn][~mask])
    assert any(bool(whole[fqn][mask].any()) for fqn, mask in kept.items())


@pytest.mark.parametrize(("step", "name"), [(10, "dense"), (30, "smallest"), (59, "dense")])
def test_nothing_is_protected_before_the_smallest_has_its_size(step: int, name: str) -> None:
    whole, _ = gradients(LAS, step, name, 1.0)
    part, _ = gradients(LAS, step, name, 0.0)
    assert all(torch.equal(whole[fqn], part[fqn]) for fqn in whole)


def test_the_smallest_moves_its_weights_by_its_whole_gradient() -> None:
    whole, kept = gradients(LAS, 60, "smallest", 1.0)
    part, _ = gradients(LAS, 60, "smallest", 0.0)
    assert all(torch.equal(whole[fqn], part[fqn]) for fqn in whole)
    assert any(bool(whole[fqn][kept[fqn]].any()) for fqn in whole)


def test_a_share_is_between_0_and_1() -> None:
    with pytest.raises(ValueError, match=r"core_gradient is 1.5; it must be from 0 to 1"):
        SandwichConfig(core_gradient=1.5)


def test_a_matrix_that_the_subnet_keeps_whole_is_protected_too() -> None:
    supernet = Supernet(make_model(LAS))
    core = supernet.spec_for(sparsity=0.8)
    whole = supernet.prunable[0]
    with supernet.protected(SubnetSpec({**core.sparsity, whole: 0.0}), 0.0):
        output = forward_batch(supernet, make_batch())
    output.label_loss_sum.backward()
    for fqn, is_zero in ((whole, True), (supernet.prunable[1], False)):
        grad = supernet.model.get_parameter(fqn).grad
        assert grad is not None
        assert bool(grad.any()) is not is_zero
