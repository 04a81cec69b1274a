"""The accuracy of a `transformers.Trainer`'s model: by its `compute_metrics`, or by the largest logit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from incop import inspection
from incop.errors import InputError
from incop.integrations.hugging_face.trainer_access import as_written


def measured(
    trainer: Any, model: nn.Module, batches: Iterable[Any], *, metric: str | None, only_try: bool = False
) -> float:
    """Return the accuracy of a Trainer's model, in [0, 1]; the model is left as it was.

    Args:
        trainer: the Trainer, whose `compute_metrics` says the accuracy where it has one.
        model: the model.
        batches: of the evaluation set.
        metric: name of the value of `compute_metrics`; "accuracy" by default.
        only_try: whether the batches are few, to see whether it can be taken at all.
    """
    by_metric = trainer.compute_metrics is not None or metric is not None
    if by_metric and trainer.compute_metrics is None:
        raise InputError(
            f"accuracy={metric!r} names a value of compute_metrics, and the Trainer has none: pass compute_metrics="
        )
    if trainer.accelerator.native_amp:  # or evaluation would prepare it in between, and run in autocast
        trainer.accelerator.prepare_model(model, evaluation_mode=True)
    with inspection.undisturbed(model), as_written(model):
        if by_metric:
            return _by_metric(trainer, batches, metric, only_try)
        right, labels = 0, 0
        shifted = shifts_labels(model)
        for inputs in batches:
            _, logits, wanted = trainer.prediction_step(model, inputs, prediction_loss_only=False)
            found = right_and_all(logits, wanted, shifted=shifted)
            right, labels = right + found[0], labels + found[1]
    if not labels and not only_try:
        raise InputError("the evaluation set holds no label that counts: all are -100, or it is empty")
    return right / max(labels, 1)


def _by_metric(trainer: Any, batches: Iterable[Any], metric: str | None, only_try: bool) -> float:
    try:
        metrics = trainer.evaluation_loop(batches, description="Evaluation", prediction_loss_only=False).metrics
    except ValueError:
        if only_try:  # such as a score of two classes, of a batch that holds one: the whole set may do
            return 0.0
        raise
    name = metric or "accuracy"
    value = metrics.get(name, metrics.get(f"eval_{name}"))
    if value is None:
        known = ", ".join(sorted(one.removeprefix("eval_") for one in metrics))
        raise InputError(
            f"compute_metrics returns no {name!r} (it has {known}): name the accuracy in [0, 1] with accuracy="
        )
    if not 0.0 <= value <= 1.0:
        raise InputError(
            f"{name!r} of compute_metrics is {value!r}: accuracy is a fraction in [0, 1], not a percentage or a loss"
        )
    return float(value)


def shifts_labels(model: nn.Module) -> bool:
    """Say whether output i of the model is held against label i + 1, as in a causal language model."""
    from transformers.models.auto.modeling_auto import (  # type: ignore[import-not-found,unused-ignore]
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    )

    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    causal = {name for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in _several(names)}
    return getattr(model, "loss_type", None) == "ForCausalLM" or any(
        one.__name__ in causal for one in type(model).__mro__
    )


def _several(names: Any) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def right_and_all(logits: Any, labels: Any, *, shifted: bool) -> tuple[int, int]:
    """Return how many labels the largest logit names, and how many there are; -100 is no label.

    Args:
        logits: (N, C), or (N, T, C) with a label a token; the first of a tuple is taken.
        labels: (N,) or (N, T), whole numbers.
        shifted: hold output i against label i + 1.
    """
    logits = logits[0] if isinstance(logits, tuple | list) and logits else logits
    fits = isinstance(logits, Tensor) and isinstance(labels, Tensor) and logits.dim() > 1 and logits.shape[-1] > 1
    if not fits or labels.is_floating_point() or labels.shape != logits.shape[:-1]:
        shapes = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in (logits, labels)]
        raise InputError(
            f"accuracy cannot be taken of outputs {shapes[0]} and labels {shapes[1]} by the largest logit: pass "
            "compute_metrics and accuracy=, the name of one of its values in [0, 1]"
        )
    if shifted:
        logits, labels = logits[..., :-1, :], labels[..., 1:]
    wanted = labels != -100
    return int(((logits.argmax(-1) == labels) & wanted).sum()), int(wanted.sum())
