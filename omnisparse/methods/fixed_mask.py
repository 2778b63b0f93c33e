"""Fine-tuning of a pruned net: what is zero when the training begins stays zero.

For a model that was extracted, or a run that was pruned: its weights adapt to other speech, its
size does not change. What is zero in the prunable matrices is found once, before the first step.

Source: Han et al. 2015, arXiv:1506.02626, section 3 ("train connections, prune, train weights"):
its last step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from omnisparse.data.batching import Batch
from omnisparse.methods.base import Forward, Loss, Method
from omnisparse.methods.distillation import DistillationConfig
from omnisparse.methods.weight_masks import WeightMasks
from omnisparse.sparsity.prunable import find_prunable

_OBJECTIVE = "objective/"


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedMaskConfig:
    """Fine-tuning of a pruned net that is given as ``init``."""

    kind: Literal["fixed_mask"] = "fixed_mask"
    """Selects this method."""
    prunable: tuple[str, ...] = ()
    """Regular expressions of parameter names whose zeros stay; none chooses as the sandwich does:
    LSTM and linear matrices but embeddings, attention and the output."""
    distillation: DistillationConfig | None = None
    """Learn from a teacher; null learns from the labels."""


class FixedMask:
    """Trains the weights that are not zero with the losses of another method.

    Args:
        config: Its configuration.
        objective: Source of the losses: ``Dense``, or ``Distillation``.
    """

    def __init__(self, config: FixedMaskConfig, objective: Method) -> None:
        self.config = config
        self.objective = objective
        self.weights: WeightMasks

    def prepare(self, model: nn.Module, *, max_steps: int) -> nn.Module:
        """Find the zeros of ``model``, and return the module to train.

        A resumed run takes its masks from its checkpoint instead.
        """
        names = find_prunable(model, include=self.config.prunable)
        self.weights = WeightMasks(model, names)
        self.weights.masks = {fqn: model.get_parameter(fqn).detach() != 0 for fqn in names}
        return self.objective.prepare(model, max_steps=max_steps)

    def num_losses(self, step: int) -> int:
        """The number of the objective's losses."""
        return self.objective.num_losses(step)

    def units(self, batch: Batch, step: int) -> Sequence[float]:
        """Those of the objective."""
        return self.objective.units(batch, step)

    def losses(self, forward: Forward, batch: Batch, step: int) -> Iterator[Loss]:
        """Yield the objective's losses; the weights are masked already.

        Raises:
            ValueError: If no weight is zero, so that there is nothing to keep to.
        """
        if step == 0 and all(bool(mask.all()) for mask in self.weights.masks.values()):
            raise ValueError(
                "no prunable weight is zero, so method fixed_mask has nothing to keep to; legal: "
                "init=MODEL of a model that was extracted or pruned"
            )
        yield from self.objective.losses(forward, batch, step)

    def on_step_end(self, step: int) -> None:
        """Set hidden weights to zero again."""
        self.weights.apply()
        self.objective.on_step_end(step)

    def metrics(self) -> Mapping[str, float]:
        """Share of the prunable weights that is hidden, and the objective's metrics."""
        whole = sum(mask.numel() for mask in self.weights.masks.values())
        return {"sparsity": 1.0 - self.weights.num_kept() / whole, **self.objective.metrics()}

    def state_dict(self) -> dict[str, Tensor]:
        """The masks, a bit per weight, and the objective's state."""
        inner = {f"{_OBJECTIVE}{k}": v for k, v in self.objective.state_dict().items()}
        return self.weights.state_dict() | inner

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the masks and the objective's state.

        Raises:
            ValueError: If the masks belong to another model.
        """
        self.weights.load_state_dict(state)
        self.objective.load_state_dict(
            {k.removeprefix(_OBJECTIVE): v for k, v in state.items() if k.startswith(_OBJECTIVE)}
        )
