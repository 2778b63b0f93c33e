"""Trained nets that a run starts from or learns from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from lhotse import CutSet
from torch import Tensor

from omnisparse.config import RunConfig
from omnisparse.data.evaluation_batches import EvaluationBatches
from omnisparse.data.features import FeatureExtractor
from omnisparse.data.live_features import FrameSource
from omnisparse.data.tokenizer import Tokenizer
from omnisparse.errors import OmnisparseError
from omnisparse.methods import (
    GradualPruningConfig,
    Method,
    Teacher,
    build_method,
    distillation_of,
)
from omnisparse.methods.distillation import (
    check_relatives,
    check_teacher_lattice,
    digest_of,
    feature_map,
)
from omnisparse.methods.factorization import factorize, projected_layers
from omnisparse.methods.handover import hand_over
from omnisparse.methods.hypotheses import DecodingCost, Found, HypothesisCache, decode_hypotheses
from omnisparse.models import SpeechModel
from omnisparse.models.torchaudio import find_torchaudio, require_torchaudio
from omnisparse.runs import directory as runs
from omnisparse.runs import foreign
from omnisparse.sparsity.budget import Budget, num_nonzero, num_parameters
from omnisparse.sparsity.layer_limit import check_layer_limit, count_layers, parse_layer_limit
from omnisparse.sparsity.prunable import find_prunable

Stage = Callable[[str], None]
"""Called with a line about the present work."""


@dataclass(frozen=True)
class Student:
    """The net in training with its features and tokens."""

    model: SpeechModel
    extractor: FeatureExtractor
    tokenizer: Tokenizer
    is_fresh: bool
    """Whether the run is new; a resumed run takes its weights from its checkpoint."""


def require_models(config: RunConfig) -> None:
    """Refuse a missing teacher, initial net, tokenizer or package, before anything is written.

    Raises:
        OmnisparseError: Naming it.
    """
    if getattr(config.model, "encoder", None) == "emformer":
        require_torchaudio("an Emformer encoder")
    distillation = distillation_of(config.method)
    teacher = distillation.teacher if distillation else getattr(config.method, "teacher", None)
    for path in (config.init, teacher):
        if path is not None and foreign.is_foreign(path):
            foreign.weights_file(path)
        elif path is not None:
            runs.require_directory(Path(path))
    if config.data.tokenizer is not None:
        runs.load_tokenizer(Path(config.data.tokenizer))


def choose_extractor(
    config: RunConfig, features: FrameSource, run: Path, stage: Stage, *, is_fresh: bool
) -> FeatureExtractor:
    """The features of the net in training, with the statistics that normalise them.

    A continued run keeps the statistics with which it began, even if its data has changed.

    Raises:
        OmnisparseError: If ``init`` cannot be read.
    """
    own = features.extractor(config.data.features.stack)
    own = own.normalised_by(config.data.features.normalize)
    if not is_fresh:
        return runs.extractor_of(run)
    if config.init is None:
        return own
    if config.data.statistics == "own":
        if own.normalisation == "corpus":
            stage("features are normalised by the statistics of this run's training data")
        return own
    given = _extractor_of(config.init)
    shapes = [
        (one.kind, one.num_bins, one.stack, one.sampling_rate, one.per_utterance)
        for one in (given, own)
    ]
    if shapes[0] != shapes[1]:
        return own  # refused later together with the net, with a message about the difference
    if own.normalisation != "corpus":
        return own  # as it is asked for, there are no statistics to take
    stage(f"features are normalised by the statistics of {config.init}")
    return given


def _extractor_of(init: str) -> FeatureExtractor:
    if foreign.is_foreign(init):
        return foreign.load_foreign_extractor(init)
    return runs.load_model(init).extractor


def pieces_of_start(config: RunConfig) -> tuple[Tokenizer | None, str]:
    """The word pieces that a configuration takes from elsewhere, and from where.

    Those of ``data.tokenizer``; else those of the net that is started from, which has no others.

    Raises:
        OmnisparseError: If they cannot be read.
    """
    if config.data.tokenizer is not None:
        return runs.load_tokenizer(Path(config.data.tokenizer)), config.data.tokenizer
    if config.init is None:
        return None, ""
    if foreign.is_foreign(config.init):
        return foreign.load_foreign_tokenizer(config.init), config.init
    return runs.load_model(config.init).tokenizer, config.init


def keep_parts(config: RunConfig, model: SpeechModel, run: Path) -> RunConfig:
    """``config`` of a continued run, with the matrices that it began to prune named.

    Which matrices are pruned where none is named, and whether a CTC layer counts as a part of the
    net, have changed with versions; a run keeps what it began with.
    """
    description = runs.read_description(run)
    model.ships_heads = not description.training_only
    if getattr(config.method, "prunable", None) != ():
        return config
    method: Any = config.method
    names = tuple(f"^{re.escape(name)}$" for name in description.prunable)
    return replace(config, method=replace(method, prunable=names))


def check_size(config: RunConfig, model: SpeechModel, stage: Stage) -> None:
    """Tell the user the parameters of the net; with a limit, also of every layer, and check it.

    Says, too, where the transducer loss does without torchaudio.

    Raises:
        OmnisparseError: If a layer has more than ``max_layer_parameters``; names it.
    """
    shipped = num_parameters(model.shipped_parameters())
    heads = num_parameters(model.named_parameters()) - shipped
    more = f", and {heads:,} that only training uses" if heads else ""
    stage(f"{model.kind} of {shipped:,} parameters{more}")
    if model.kind == "transducer" and (reason := find_torchaudio()[1]):
        stage(f"{reason}: the transducer loss is omnisparse's own")
    if config.max_layer_parameters is None:
        return
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    layers = count_layers(shapes)
    for layer in layers:
        stage(f"  {layer.layer}: {layer.parameters:,}{'' if layer.is_recurrent else ' (no limit)'}")
    try:
        check_layer_limit(layers, parse_layer_limit(config.max_layer_parameters))
    except ValueError as error:
        raise OmnisparseError(str(error)) from error


def start_weights(init: str, student: Student, stage: Stage, *, reduce: bool = False) -> None:
    """Write the weights of another net into the net in training.

    A net of the same shape is copied. A CTC layer, which artifacts do not have, is made new where
    the other net has none, and dropped where this one has none. If the net in training has LSTMP
    layers and the other net has the same layers without projection, these are factorised by
    truncated SVD. With ``reduce``, a net of another shape may also be larger, and what fits of
    it is taken.

    Raises:
        OmnisparseError: If it cannot be read, or its tokens, features or shapes do not fit.
    """
    model = student.model
    name = f"init {init}"
    if foreign.is_foreign(init):
        net = foreign.load_foreign(init)
        check_relatives(
            name,
            (net, net.extractor, net.tokenizer),
            (model, student.extractor, student.tokenizer),
        )
        _check_shapes(name, net.state, model)
        stage(name)
        model.load_state_dict(dict(net.state))
        return
    loaded = runs.load_model(init)
    check_relatives(
        name,
        (loaded.model, loaded.extractor, loaded.tokenizer),
        (model, student.extractor, student.tokenizer),
    )
    if (loaded.model.ctc_output is None) != (model.ctc_output is None):
        had = loaded.model.ctc_output is not None
        loaded.model.ctc_output = None if had else loaded.model.new_ctc_output()
        stage(
            f"{name} has a CTC layer, which this run does not train"
            if had
            else f"{name} has no CTC layer, which only training uses: this run begins a new one"
        )
    state = loaded.model.state_dict()
    if _is_dense_relative(loaded.model, model):
        try:
            state = factorize(loaded.model, model)
        except ValueError as error:
            raise OmnisparseError(f"{name}: {error}") from error
        stage(f"{name}: {len(projected_layers(model))} layers factorised by truncated SVD")
    elif reduce and not _has_shapes_of(loaded.model, model):
        try:
            state = hand_over(loaded.model, model)
        except ValueError as error:
            raise OmnisparseError(f"{name}: {error}") from error
        counts = [num_parameters(net.named_parameters()) for net in (loaded.model, model)]
        stage(f"{name}: {counts[1]:,} of its {counts[0]:,} parameters, as far as they fit")
    else:
        _check_shapes(name, state, model)
        stage(name)
    model.load_state_dict(state)


def _is_dense_relative(other: SpeechModel, model: SpeechModel) -> bool:
    """Whether ``model`` projects a layer that ``other`` has without a projection."""
    known = {name for name, _ in other.named_parameters()}
    own = [name for name, _ in model.named_parameters() if name.endswith("weight_hr_l0")]
    return any(
        name not in known and name.replace("weight_hr", "weight_hh") in known for name in own
    )


def _has_shapes_of(other: SpeechModel, model: SpeechModel) -> bool:
    theirs, ours = ({n: t.shape for n, t in m.state_dict().items()} for m in (other, model))
    return theirs == ours


def _check_shapes(name: str, other: Mapping[str, Tensor], model: SpeechModel) -> None:
    theirs, ours = (
        {fqn: list(tensor.shape) for fqn, tensor in state.items()}
        for state in (other, model.state_dict())
    )
    for parameter in [*ours, *theirs]:
        if theirs.get(parameter) != ours.get(parameter):
            raise OmnisparseError(
                f"{name}: {parameter} is {theirs.get(parameter) or 'absent'} there and "
                f"{ours.get(parameter) or 'absent'} here; legal: a net of the same shape, or the "
                "same net without projections, which is factorised"
            )


def load_method(
    config: RunConfig,
    student: Student,
    cuts: CutSet,
    features: FrameSource,
    accelerator: Accelerator,
    stage: Stage,
) -> tuple[Method, DecodingCost | None]:
    """Build the method; load and check its teacher, and decode its hypotheses if needed.

    A new run starts from ``config.init``, if it is set.

    Returns:
        The method, and what decoding its hypotheses cost, in this run or in an earlier one that
        needed the same; None if it needs none.

    Raises:
        OmnisparseError: If the teacher or the initial net cannot be used for this student.
    """
    if config.init is not None:
        if student.is_fresh:
            if core := getattr(config.method, "core_fraction", 0):
                raise OmnisparseError(
                    f"core_fraction is {core}; it clears the weights of the net that is started "
                    "from; with init it must be 0"
                )
            start_weights(config.init, student, stage, reduce=config.reduce_init)
        student.model.skip_phases()
    distillation = distillation_of(config.method)
    if distillation is None:
        return build_method(config.method, seed=config.seed), None
    loaded = runs.load_model(distillation.teacher)
    name = f"teacher {distillation.teacher}"
    model = student.model
    check_relatives(
        name,
        (loaded.model, loaded.extractor, loaded.tokenizer),
        (model, student.extractor, student.tokenizer),
    )
    check_teacher_lattice(name, loaded.model, model)
    _check_not_above(name, loaded.model, config, model)
    stage(f"{name}, objective {distillation.objective}")
    digest = digest_of(loaded.model)
    teacher_model = loaded.model.to(accelerator.device)
    hypotheses: Found = {}
    decoding = None
    if distillation.num_hypotheses:
        hypotheses, decoding = _hypotheses(
            teacher_model, digest, loaded.extractor, student.tokenizer, cuts, features,
            root=Path(config.corpus.root) / "hypotheses", beam=distillation.beam,
            accelerator=accelerator, stage=stage,
        )  # fmt: skip
    if accelerator.mixed_precision != "no":
        # With the precision of the student's forward pass; the wrapped net is not trained.
        teacher_model = accelerator.prepare_model(teacher_model, evaluation_mode=True)
    scale, shift = feature_map(loaded.extractor, student.extractor)
    teacher = Teacher(teacher_model, scale=scale, shift=shift, hypotheses=hypotheses)
    return build_method(config.method, seed=config.seed, teacher=teacher), decoding


def _hypotheses(
    model: SpeechModel,
    digest: str,
    extractor: FeatureExtractor,
    tokenizer: Tokenizer,
    cuts: CutSet,
    features: FrameSource,
    *,
    root: Path,
    beam: int,
    accelerator: Accelerator,
    stage: Stage,
) -> tuple[Found, DecodingCost]:
    """Hypotheses of all training utterances, and what they cost; the cache is not decoded again."""
    ordered = sorted(features.available(cuts), key=lambda cut: (cut.duration, cut.id))
    by_id = {cut.id: cut for cut in ordered}
    key = {
        "teacher": digest,
        "features": [features.key, extractor.to_dict()],
        "tokenizer": hashlib.sha256(tokenizer.to_bytes()).hexdigest(),
        "beam": beam,
    }
    cache = HypothesisCache(root, json.loads(json.dumps(key)), list(by_id))

    def decode(ids: Sequence[str]) -> Found:
        batches = EvaluationBatches(
            CutSet.from_cuts(by_id[name] for name in ids),
            extractor=extractor,
            tokenizer=tokenizer,
            store=features,
        )
        found = decode_hypotheses(model, batches, beam=beam, device=accelerator.device)
        return {name: found[name] for name in ids}

    cache.fill(
        decode, rank=accelerator.process_index, world_size=accelerator.num_processes, note=stage
    )
    accelerator.wait_for_everyone()
    return cache.read(), cache.cost()


def _check_not_above(
    name: str, teacher: SpeechModel, config: RunConfig, model: SpeechModel
) -> None:
    """Refuse a student that is larger than its teacher at the end of training.

    Raises:
        OmnisparseError: Naming both sizes.
    """
    prunable = find_prunable(teacher, may_be_empty=True)
    largest = num_nonzero(teacher.shipped_parameters(), prunable)
    method = config.method
    if isinstance(method, GradualPruningConfig):
        budget = Budget.of(model, find_prunable(model, include=method.prunable))
        target = budget.solve(method.size) + budget.unprunable
    else:
        target = num_parameters(model.shipped_parameters())
    if target > largest:
        raise OmnisparseError(
            f"the target of {target:,} parameters is above the {largest:,} of {name}; "
            f"legal: up to {largest:,}"
        )
