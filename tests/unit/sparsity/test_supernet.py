from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from omnisparse.sparsity.budget import num_nonzero
from omnisparse.sparsity.masks import mask_from_count
from omnisparse.sparsity.prunable import find_prunable
from omnisparse.sparsity.space import SubnetSpec
from omnisparse.sparsity.supernet import Supernet


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.encoder = nn.LSTM(8, 12, 2, batch_first=True, proj_size=6)
        self.decoder = nn.LSTM(6, 10, batch_first=True)
        self.attention = nn.MultiheadAttention(10, 2, batch_first=True)
        self.norm = nn.LayerNorm(10)
        self.projection = nn.Linear(10, 16)
        self.output = nn.Linear(16, 11)

    def forward(self, tokens: Tensor, scale: float = 1.0) -> Tensor:
        hidden, _ = self.decoder(self.encoder(self.embedding(tokens))[0])
        hidden = self.norm(hidden + self.attention(hidden, hidden, hidden)[0])
        return self.output(self.projection(hidden)).log_softmax(-1) * scale


pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")
TOKENS = torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(1))
PRUNABLE = [
    *(f"encoder.weight_{kind}_l{layer}" for layer in (0, 1) for kind in ("ih", "hh", "hr")),
    "decoder.weight_ih_l0",
    "decoder.weight_hh_l0",
    "projection.weight",
]


def make(**options: object) -> Supernet:
    torch.manual_seed(3)
    model = Net()
    return Supernet(model, prunable=find_prunable(model), **options)


def step(supernet: Supernet, spec: SubnetSpec | None) -> Tensor:
    with supernet.active(spec):
        loss = -supernet(TOKENS)[..., 0].mean()
    loss.backward()
    return loss.detach()


def test_default_rule_finds_recurrent_and_projection_matrices_only() -> None:
    assert find_prunable(Net()) == PRUNABLE


def test_find_prunable_patterns() -> None:
    model = Net()
    assert find_prunable(model, include=[r"^output"], exclude=[]) == ["output.weight"]
    assert find_prunable(model, exclude=["encoder", "output", "atten"]) == PRUNABLE[6:]
    assert find_prunable(model, include=["attention", "weight_hh_l0$"]) == [
        "encoder.weight_hh_l0",
        "decoder.weight_hh_l0",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
    ]
    with pytest.raises(ValueError, match="nothing to prune"):
        find_prunable(model, exclude=["."])
    with pytest.raises(ValueError, match=r"include pattern 'lstm' matches none of: embedding"):
        find_prunable(model, include=["lstm"])
    with pytest.raises(ValueError, match="not a regular expression"):
        find_prunable(model, include=["("])


def test_no_subnet_is_the_model_itself() -> None:
    supernet = make()
    assert torch.equal(supernet(TOKENS, scale=2.0), supernet.model(TOKENS, scale=2.0))
    assert supernet.spec is None


@pytest.mark.parametrize("block", [(1, 1), (8, 1), (4, 4)], ids=str)
@pytest.mark.parametrize("sparsity", [0.3, 0.7])
def test_masked_squashed_extracted_and_reloaded_agree(
    sparsity: float, block: tuple[int, int]
) -> None:
    supernet = make(block=block)
    spec = supernet.spec_for(sparsity=sparsity)
    with supernet.active(spec):
        masked = supernet(TOKENS)
    with supernet.squashed(spec) as model:
        squashed = model(TOKENS)
    reloaded = Net()
    reloaded.load_state_dict(supernet.extract(spec))
    assert torch.equal(masked, squashed)
    assert torch.equal(masked, reloaded(TOKENS))
    assert not torch.equal(masked, supernet(TOKENS))


@pytest.mark.parametrize("training", [True, False])
def test_masks_reach_the_fused_path_of_attention(training: bool) -> None:
    """In evaluation without gradients torch's attention reads its weights in another way."""
    torch.manual_seed(3)
    model = Net().train(training)
    supernet = Supernet(model, prunable=find_prunable(model, include=["attention"]))
    spec = supernet.spec_for(sparsity=0.6)
    reloaded = Net().train(training)
    reloaded.load_state_dict(supernet.extract(spec))
    with supernet.active(spec), torch.set_grad_enabled(training):
        masked = supernet(TOKENS)
        assert torch.equal(masked, reloaded(TOKENS))
    assert not torch.equal(masked, supernet(TOKENS))


def test_extracted_sizes_are_exact_and_nested() -> None:
    supernet = make()
    low, high = supernet.budget.nonzero_range()
    before: dict[str, Tensor] | None = None
    for size in (low, low + 1, 1500, 1777, high):
        spec = supernet.spec_for(size)
        state = supernet.extract(spec)
        assert num_nonzero(state, PRUNABLE) == supernet.nonzero(spec) == size
        for fqn in PRUNABLE:
            assert not bool(torch.signbit(state[fqn][state[fqn] == 0]).any())
            if before is not None:
                assert bool((state[fqn][before[fqn] != 0] != 0).all())
        before = state
    assert before is not None
    assert all(torch.equal(before[fqn], w) for fqn, w in supernet.model.state_dict().items())


def test_extract_does_not_share_memory_and_follows_present_weights() -> None:
    supernet = make()
    spec = supernet.spec_for(sparsity=0.5)
    supernet.activate(spec)
    with torch.no_grad():
        supernet.model.projection.weight.copy_(torch.randn(16, 10))
    weight = supernet.model.projection.weight
    state = supernet.extract(spec)
    kept = spec.num_kept("projection.weight", weight.numel())
    assert torch.equal(state["projection.weight"] != 0, mask_from_count(weight, kept))
    for tensor in state.values():
        tensor.zero_()
    assert bool(weight.detach().all())


def test_masked_weights_get_gradient_only_from_members_that_keep_them() -> None:
    supernet = make()
    spec = supernet.spec_for(sparsity=0.6)
    step(supernet, spec)
    for fqn in PRUNABLE:
        weight = supernet.model.get_parameter(fqn)
        mask = mask_from_count(weight, spec.num_kept(fqn, weight.numel()))
        assert weight.grad is not None
        assert not bool(weight.grad[~mask].any())
        assert bool(weight.grad[mask].any())
    assert all(parameter.grad is not None for parameter in supernet.parameters())


def test_straight_through_gradient_is_that_of_the_product() -> None:
    masked, straight = make(), make(straight_through=True)
    spec = masked.spec_for(sparsity=0.6)
    assert torch.equal(step(masked, spec), step(straight, spec))
    for fqn in PRUNABLE:
        weight = masked.model.get_parameter(fqn)
        mask = mask_from_count(weight, spec.num_kept(fqn, weight.numel()))
        there = straight.model.get_parameter(fqn).grad
        assert torch.equal(there * mask, weight.grad)
        assert bool(there[~mask].any())


@pytest.mark.parametrize("sparsity", [None, 0.5, 0.8])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_protected_subnet_gets_a_share_of_the_gradients_of_other_nets(
    sparsity: float | None, share: float
) -> None:
    plain, protecting = make(), make()
    core = plain.spec_for(sparsity=0.8)
    spec = None if sparsity is None else plain.spec_for(sparsity=sparsity)
    alone = step(plain, spec)
    with protecting.protected(core, share):
        assert torch.equal(step(protecting, spec), alone)
    factor = 1.0 if sparsity == 0.8 else share  # its own gradient reaches it whole
    for fqn, parameter in plain.model.named_parameters():
        there = protecting.model.get_parameter(fqn).grad
        if fqn not in PRUNABLE:
            assert torch.equal(there, parameter.grad)
            continue
        mask = mask_from_count(parameter, core.num_kept(fqn, parameter.numel()))
        assert bool(parameter.grad[mask].any())
        torch.testing.assert_close(there[mask], factor * parameter.grad[mask])
        assert torch.equal(there[~mask], parameter.grad[~mask])


def test_protection_ends_and_names_what_is_legal() -> None:
    plain, ended = make(), make()
    core = plain.spec_for(sparsity=0.8)
    legal = pytest.raises(ValueError, match=r"share of the gradient is 1.5; legal: 0 to 1")
    with legal, plain.protected(core, 1.5):
        pass
    with ended.protected(core, 0.0), torch.no_grad():
        ended(TOKENS)
    step(plain, None)
    step(ended, None)
    for one, other in zip(plain.parameters(), ended.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_several_members_share_one_step() -> None:
    supernet = make()
    specs = [None, supernet.spec_for(sparsity=0.5), supernet.spec_for(sparsity=0.9)]
    parts = []
    for spec in specs:
        supernet.zero_grad()
        step(supernet, spec)
        parts.append([parameter.grad.clone() for parameter in supernet.parameters()])
    supernet.zero_grad()
    for spec in specs:
        step(supernet, spec)
    for parameter, grads in zip(supernet.parameters(), zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(parameter.grad, sum(grads))


def test_state_dict_is_the_models_own() -> None:
    supernet = make()
    supernet.activate(supernet.spec_for(sparsity=0.5))
    assert set(supernet.state_dict()) == {f"model.{name}" for name in Net().state_dict()}


def test_masks_change_at_refresh_only() -> None:
    supernet = make()
    spec = supernet.spec_for(sparsity=0.5)
    supernet.activate(spec)
    first = supernet(TOKENS)
    with torch.no_grad():
        for fqn in PRUNABLE:
            supernet.model.get_parameter(fqn).mul_(-1)
    flipped = supernet(TOKENS)
    assert torch.equal(flipped, supernet(TOKENS))
    supernet.refresh()
    assert supernet.mask_flip_rate == 0.0
    assert torch.equal(flipped, supernet(TOKENS))
    with torch.no_grad():
        for fqn in PRUNABLE:
            supernet.model.get_parameter(fqn).normal_()
    supernet.refresh()
    assert supernet.mask_flip_rate > 0.5
    assert not torch.equal(first, supernet(TOKENS))


def train(supernet: Supernet, steps: range, optimizer: torch.optim.Optimizer) -> None:
    for number in steps:
        if number % 5 == 0:
            supernet.refresh()
        for sparsity in (0.5, 0.9):
            step(supernet, supernet.spec_for(sparsity=sparsity))
        optimizer.step()
        optimizer.zero_grad()


def test_resume_between_refreshes_is_bitwise() -> None:
    whole = make()
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.5)
    train(whole, range(8), optimizer)
    state, ranking = copy.deepcopy(whole.state_dict()), whole.ranking_state()
    train(whole, range(8, 12), optimizer)

    resumed = make()
    resumed.load_state_dict(state)
    resumed.load_ranking_state(ranking)
    train(resumed, range(8, 12), torch.optim.SGD(resumed.parameters(), lr=0.5))
    for expected, found in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, found)


def test_tied_matrices_are_masked_under_every_name() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    supernet = Supernet(model, prunable=find_prunable(model))
    assert supernet.prunable == ("0.weight",)
    spec = supernet.spec_for(sparsity=0.5)
    alone = copy.deepcopy(model)
    alone[2].weight = nn.Parameter(torch.zeros(8, 8))  # a net that does not tie them
    alone.load_state_dict(supernet.extract(spec))
    features = torch.randn(3, 8)
    with supernet.active(spec):
        torch.testing.assert_close(supernet(features), alone(features))


def test_ranking_state_is_checked() -> None:
    supernet = make()
    assert supernet.ranking_state() == {}
    supernet.load_ranking_state({})
    supernet.refresh()
    state = supernet.ranking_state()
    assert all(ranking.dtype == torch.int32 for ranking in state.values())
    with pytest.raises(ValueError, match=r"ranking of encoder.weight_ih_l0 has 384 entries"):
        make(block=(8, 1)).load_ranking_state(state)
    with pytest.raises(ValueError, match="ranking state names unknown layers: x"):
        supernet.load_ranking_state({**state, "x": torch.zeros(1)})


@pytest.mark.parametrize("scope", ["layer", "global", "lamp"])
def test_scopes_land_on_the_size(scope: str) -> None:
    supernet = make()
    spec = supernet.spec_for("50%", scope=scope, floor=0.05)
    assert supernet.nonzero(spec) == round(0.5 * supernet.budget.dense_parameters)


def test_size_in_bytes_uses_the_files_plan() -> None:
    supernet = make()
    spec = supernet.spec_for("2KB", size_of=lambda kept: 500 + 4 * sum(kept.values()))
    assert sum(spec.counts(supernet.budget.prunable).values()) == 375
    with pytest.raises(ValueError, match="in bytes"):
        supernet.spec_for("5KB")


def test_illegal_requests_are_named() -> None:
    supernet = make()
    with pytest.raises(ValueError, match="out of range for this model; legal: "):
        supernet.spec_for("16M")
    with pytest.raises(ValueError, match=r"sparsity '1.2' is out of range"):
        supernet.spec_for(sparsity=1.2)
    with pytest.raises(ValueError, match="give one of them"):
        supernet.spec_for(0.25)
    with pytest.raises(ValueError, match="give one of them"):
        supernet.spec_for()
    with pytest.raises(ValueError, match="spec names unknown layers: nowhere"):
        supernet.activate(SubnetSpec({"nowhere": 0.5}))


def test_a_weight_that_is_not_finite_is_named() -> None:
    supernet = make()
    with torch.no_grad():
        supernet.model.encoder.weight_hh_l1[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"encoder.weight_hh_l1 hold NaN"):
        supernet.activate(supernet.spec_for(sparsity=0.5))


def test_squashed_restores_after_an_error() -> None:
    supernet = make()
    before = copy.deepcopy(supernet.state_dict())
    with (
        pytest.raises(RuntimeError, match="decoding"),
        supernet.squashed(supernet.spec_for(sparsity=0.9)),
    ):
        raise RuntimeError("decoding failed")
    assert all(torch.equal(before[name], w) for name, w in supernet.state_dict().items())


def test_a_weight_that_a_subnet_hides_may_be_nan() -> None:
    """Its gradient, too: nothing that is hidden reaches the pass or comes back from it."""
    supernet = make()
    spec = supernet.spec_for(sparsity=0.6)
    supernet.activate(spec)
    expected = supernet(TOKENS)
    weight = supernet.model.projection.weight
    hidden = ~mask_from_count(weight, spec.num_kept("projection.weight", weight.numel()))
    with torch.no_grad():
        weight[hidden] = torch.nan
    found = supernet(TOKENS)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert bool(weight.grad[hidden].eq(0).all())


def test_a_pass_keeps_no_mask() -> None:
    """Beside the weights: places in the ranking, and the copies that autograd keeps."""
    supernet = make()
    supernet.activate(supernet.spec_for(sparsity=0.5))
    supernet(TOKENS).sum().backward()
    held = [value for value in vars(supernet).values() if isinstance(value, dict)]
    tensors = [tensor for value in held for tensor in value.values() if torch.is_tensor(tensor)]
    assert len(tensors) == len(PRUNABLE)
    assert {tensor.dtype for tensor in tensors} == {torch.int32}


def test_masked_copies_are_made_in_the_type_of_autocast() -> None:
    supernet = make()
    spec = supernet.spec_for(sparsity=0.5)
    with supernet.active(spec), torch.autocast("cpu", torch.bfloat16):
        copies = supernet._weights_of_pass()
    assert {masked.dtype for masked in copies.values()} == {torch.bfloat16}
    whole = supernet.extract(spec)
    for fqn, masked in copies.items():
        assert torch.equal(masked, whole[fqn].bfloat16())


def test_other_dtypes() -> None:
    supernet = make()
    supernet.to(torch.float64)
    supernet.activate(supernet.spec_for(sparsity=0.5))
    single = supernet(TOKENS)
    supernet.to(torch.float32)
    torch.testing.assert_close(supernet(TOKENS).double(), single, rtol=1e-4, atol=1e-4)
