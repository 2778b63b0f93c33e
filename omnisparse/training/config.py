"""What determines a training beside its data, model and method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from omnisparse.errors import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    check_ranges,
)
from omnisparse.sparsity.patterns import compile_patterns


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """Optimizer, schedule, length and records of a training."""

    epochs: NonNegativeFloat = 18.0
    """Passes of the dense net over the training set; ignored if ``max_steps`` is given."""
    max_steps: NonNegativeInt | None = None
    """Optimizer steps; 0 writes the untrained net as a run."""
    learning_rate: PositiveFloat = 2e-3
    """Peak learning rate of AdamW."""
    warmup_steps: NonNegativeInt = 100
    """Steps of linear warm-up."""
    warmup_fraction: Probability = 0.0
    """Warm-up as a share of the run's steps, in [0, 1); above 0 it replaces ``warmup_steps``."""
    schedule: Literal["linear", "cosine", "constant", "hold_exponential"] = "cosine"
    """Decay of the learning rate after the warm-up, to 1 % of its peak at the last step; that of
    Pang et al. 2018 holds the peak for ``hold_fraction`` of the run, then decays exponentially."""
    hold_fraction: Probability = 0.5
    """With ``hold_exponential``: where the decay begins, as a share of the run, in [0, 1)."""
    schedule_part: tuple[float, float] = (0.0, 1.0)
    """Begin and end of the part of the decay that this run goes through, as shares in [0, 1]: for
    one stage of several that share a decay. It first warms up to the rate at its place."""
    precision: Literal["fp32", "bf16"] | None = None
    """``bf16`` multiplies in bfloat16; weights, cells, sums and losses stay float32. A CPU without
    such instructions trains in fp32 and says so. None takes what the launcher says, else fp32."""
    accumulate: PositiveInt = 1
    """Parts that a batch is computed in, one after the other, for one optimizer step: less memory,
    the same gradient. See also ``data.micro_batch_seconds``."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's moment decays."""
    weight_decay: NonNegativeFloat = 1e-4
    """Decoupled decay of matrices; vectors (biases, norms) have none."""
    learning_rate_factors: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Factors of the learning rate by regular expression of parameter names, such as
    ``{encoder: 0.1}``; the first that is found in a name counts, and 0 freezes. For fine-tuning."""
    clip_norm: PositiveFloat = 5.0
    """Gradients are clipped to this global norm."""
    max_skipped_steps: PositiveInt = 20
    """Steps in a row with a non-finite gradient after which the run fails."""
    log_every: PositiveInt = 20
    """Steps between two lines of ``metrics.jsonl``."""
    checkpoint_every: PositiveInt = 500
    """Steps between two checkpoints; one is always written at the end."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints to keep."""
    ema: Probability = 0.0
    """Decay of a moving average of the weights, such as 0.999, in [0, 1); 0 for none. It is written
    to ``weights/ema`` of the run at the end."""
    average_checkpoints: NonNegativeInt = 0
    """Newest checkpoints whose mean is written to ``weights/average`` at the end; so many are kept.
    0 or 1 for none."""
    evaluate_every: NonNegativeInt = 0
    """Steps between two evaluations on the dev split; 0 for none. The weights of the lowest error
    rate are written to ``weights/best``."""
    evaluate_sizes: tuple[str, ...] = ()
    """Sizes of subnets, such as ``[25%, 50%]``, whose word error rates such an evaluation measures,
    too, as ``dev/wer@25%``; of a supernet only, and no part of its ``weights/best``."""
    evaluate_utterances: PositiveInt = 100
    """Utterances of the dev split that such an evaluation decodes."""
    timeout: NonNegativeFloat = 600.0
    """Seconds that a training step may take, its batch included, before the job is ended with a
    line that names the process that stands still; 0 for no limit."""
    rollback_factor: NonNegativeFloat = 0.0
    """A loss of the dense net, averaged over ``log_every`` steps, that is above this multiple of
    the median of the last averages is a spike, such as 1.5: the run goes back to its newest
    checkpoint before it and leaves out the batches since. 0 for never; otherwise above 1."""
    max_rollbacks: NonNegativeInt = 3
    """Most spikes at which a run goes back; later ones are only told."""
    threads: PositiveInt | None = None
    """CPU threads per process; None leaves the environment's choice."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_ranges(self)
        if 0 < self.rollback_factor <= 1:
            raise ValueError(
                f"rollback_factor is {self.rollback_factor:g}; it must be 0 (never) or above 1"
            )
        begin, end = self.schedule_part
        if not 0 <= begin < end <= 1:
            raise ValueError(
                f"schedule_part is {begin:g}, {end:g}; it must rise, inside 0 to 1, such as 0, 0.5"
            )
        compile_patterns("learning_rate_factors:", self.learning_rate_factors)
        for pattern, factor in self.learning_rate_factors.items():
            if not (math.isfinite(factor) and factor >= 0):
                raise ValueError(
                    f"learning_rate_factors: {pattern} is {factor}; it must be at least 0"
                )
