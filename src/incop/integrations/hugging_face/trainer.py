"""The trainer: lets `incop.search` train by a `transformers.Trainer`, a fresh one at every level."""

from __future__ import annotations

import copy
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset
from transformers.trainer_callback import (  # type: ignore[import-not-found,unused-ignore]
    PrinterCallback,
    TrainerCallback,
)

from incop.errors import InputError, TrainingError
from incop.flat_state import random_states, restore_random
from incop.integrations.hugging_face.accuracy import measured
from incop.integrations.hugging_face.trainer_access import (
    StepCounter,
    as_written,
    found_as_it_was,
    refuse_sharded,
)
from incop.masks import Hold, Masks, hold
from incop.watch import Watch

OF_A_LEVEL = {  # parts of a Trainer that belong to one training, and why they cannot be given for all levels
    "model": "the search hands it the model",
    "model_init": "the search hands it the model",
    "optimizers": "every level starts its optimizer and schedule afresh: choose them in args, or by optimizer_cls_and_kwargs",
}


class HuggingFaceTrainer:
    """Let `incop.search` drive a `transformers.Trainer`: a fresh one, with a fresh optimizer and schedule, at every level.

    The Trainer computes the loss as it always does, by the model's own from `labels`, and places the model on its device.
    Made from arguments, it is silent: nothing is written to disk, reported, logged or shown, whatever they say about it, and
    evaluation is incop's. Made by `make`, it is as its maker wants it. Every level draws its own order of samples from
    `args.seed`; Python's, NumPy's and torch's random states are the caller's again afterwards.

    A search is resumed at the beginning of the level it was in, exactly: a Trainer cannot go on exactly within an epoch if
    samples are drawn or changed at random while they are loaded, and nobody can tell from outside whether they are.

    Args:
        args: `TrainingArguments`, or a mapping of what it takes; `num_train_epochs` or `max_steps` is the dense network's budget.
        make: instead of args, `make(model)` that returns a new `transformers.Trainer` for a level.
        level_epochs: every pruned level's budget, > 0; by default the dense network's. The schedule spans it.
        accuracy: name of the value of `compute_metrics` that is the accuracy, in [0, 1]; by default "accuracy" where there is a
            `compute_metrics`, and else the share of labels that the largest logit names: of samples, or of tokens with -100
            left out, and with output i held against label i + 1 for causal language models.
        parts: with args, what else `transformers.Trainer` takes: train_dataset, eval_dataset, data_collator,
            compute_metrics, callbacks, …

    Raises:
        InputError: an argument cannot be used.

    Example:
        >>> from incop.integrations.hugging_face import HuggingFaceTrainer
        >>> data = [{"input_ids": [1, 2], "labels": 0}, {"input_ids": [2, 1], "labels": 1}]
        >>> HuggingFaceTrainer({"num_train_epochs": 2}, train_dataset=data, eval_dataset=data).epochs
        2.0
    """

    def __init__(
        self,
        args: Any = None,
        *,
        make: Callable[[nn.Module], Any] | None = None,
        level_epochs: float | None = None,
        accuracy: str | None = None,
        **parts: Any,
    ) -> None:
        from transformers import TrainingArguments  # type: ignore[import-not-found,unused-ignore]

        if (args is None) == (make is None):
            raise InputError(
                "pass either args=TrainingArguments(…) with the data sets, or make=, a function from a model to its Trainer"
            )
        if make is not None and parts:
            raise InputError(f"{next(iter(parts))}= goes with args; make(model) gives its Trainer everything itself")
        for name, why in OF_A_LEVEL.items():
            if parts.get(name) is not None:
                raise InputError(f"{name}= cannot be given: {why}")
        if args is not None and parts.get("train_dataset") is None:
            raise InputError("a Trainer made from args needs train_dataset=")
        if args is not None and parts.get("eval_dataset") is None:
            raise InputError("accuracy is measured on the validation split: pass eval_dataset=")
        if isinstance(args, Mapping):
            args = TrainingArguments(**{"output_dir": "unused", **args})
        if args is not None and not isinstance(args, TrainingArguments):
            raise InputError(
                f"args is a {type(args).__name__}: pass transformers.TrainingArguments, or a mapping of what it takes"
            )
        if level_epochs is not None and not (isinstance(level_epochs, int | float) and 0 < level_epochs < math.inf):
            raise InputError(f"level_epochs={level_epochs!r}: a level's budget is a positive number of epochs")
        self.level_epochs = level_epochs
        self._args = args
        self._parts = parts
        self._make = make
        self._accuracy = accuracy
        self._epochs = float(args.num_train_epochs) if args is not None and args.max_steps <= 0 else None
        self._now: Any = None  # the Trainer of the level that is trained
        self._tried = False

    @property
    def epochs(self) -> float | None:
        """The dense network's budget; None until a level has begun where it is in steps, or only `make` knows it."""
        return self._epochs

    def fit(self, model: nn.Module, masks: Masks, watch: Watch) -> None:
        """Train one level until the watch says stop or the budget is used up.

        Raises:
            InputError: the Trainer cannot be used for a level; before its training.
            TrainingError: the loss is not finite.
        """
        was = model.training
        with self._trainer(model, watch.level) as trainer:
            self._now = trainer
            level = _HuggingFaceLevel(self, masks, watch)
            try:
                self._try_metric(trainer, model)
                if watch.due() and watch.look(accuracy=self._validated(model, watch), epoch=0.0).stop:
                    return
                trainer.add_callback(level)
                level.counted = StepCounter(trainer)
                trainer.train()
                if (
                    not watch.checks or watch.step > watch.checks[-1].step
                ):  # ended by the Trainer, or by a callback in it
                    level.look()
            finally:
                level.release()
                self._now = None
                model.train(was)

    def evaluate(self, model: nn.Module, dataset: Any = None) -> float:
        """Return the accuracy on the Trainer's eval_dataset, or on another, in [0, 1]. The model is left as it was."""
        if self._now is not None and self._now.model is model:
            return measured(self._now, model, self._now.get_eval_dataloader(dataset), metric=self._accuracy)
        with self._trainer(model, 0) as trainer:
            return measured(trainer, model, trainer.get_eval_dataloader(dataset), metric=self._accuracy)

    # --- parts ---

    @contextmanager
    def _trainer(self, model: nn.Module, level: int) -> Iterator[Any]:
        """Make a Trainer for the model; random states and what accelerate writes on the model are put back afterwards."""
        with _random_kept(), found_as_it_was(model), tempfile.TemporaryDirectory() as folder:
            yield self._made(model, level, folder)

    def _made(self, model: nn.Module, level: int, folder: str) -> Any:
        from transformers import Trainer, set_seed  # type: ignore[import-not-found,unused-ignore]

        if self._make is None:
            trainer = Trainer(model=model, args=_silent(self._args, folder), **self._parts)
            trainer.remove_callback(PrinterCallback)
        else:
            trainer = self._make(model)
            if not isinstance(trainer, Trainer):
                raise InputError(f"make(model) returned a {type(trainer).__name__}, not a transformers.Trainer")
            if trainer.model is not model:
                raise InputError(
                    "make(model) returned a Trainer of another model: build it on the one it is given, not on a copy"
                )
            if trainer.optimizer is not None and trainer.optimizer.state:
                raise InputError(
                    "make(model) returned a Trainer whose optimizer has trained already: every level starts it afresh, so build "
                    "a new Trainer, with an optimizer of its own, at every call"
                )
            trainer.args = copy.copy(trainer.args)
        refuse_sharded(trainer)
        if trainer.eval_dataset is None or isinstance(trainer.eval_dataset, Mapping):
            what = "none" if trainer.eval_dataset is None else "several"
            raise InputError(
                f"accuracy is measured on the validation split: give the Trainer one eval_dataset, it has {what}"
            )
        if trainer.args.world_size > 1:
            raise InputError(
                f"a search runs in one process, and this Trainer in {trainer.args.world_size}: start it without torchrun, or train "
                "single levels with InCoPCallback"
            )
        if level > 0 and self.level_epochs is not None:
            trainer.args.num_train_epochs, trainer.args.max_steps = self.level_epochs, -1
        seed = (trainer.args.seed * 1_000_003 + level) % 2**32  # each level its own; NumPy takes no larger one
        set_seed(seed)  # the order of samples is drawn from it too, unless args.data_seed says another
        return trainer

    def _try_metric(self, trainer: Any, model: nn.Module) -> None:
        """Find out before any training whether the accuracy can be taken; one batch tells."""
        few = None if self._tried else _first(trainer.eval_dataset, trainer.args.eval_batch_size)
        if few is None:
            return
        with _random_kept(), found_as_it_was(model):
            measured(trainer, model, trainer.get_eval_dataloader(few), metric=self._accuracy, only_try=True)
        self._tried = True

    def _validated(self, model: nn.Module, watch: Watch) -> Callable[[], float]:
        def validated() -> float:
            with suppress(TypeError):  # a stream has no length
                watch.probed(len(self._now.eval_dataset))
            return self.evaluate(model)

        return validated

    def _begun(self, level: int, epochs: float) -> None:
        """Note the budget where only the Trainer knew it."""
        if self._epochs is None and (level == 0 or self.level_epochs is None):
            self._epochs = epochs


@contextmanager
def _random_kept() -> Iterator[None]:
    states = random_states()
    try:
        yield
    finally:
        restore_random(states)


def _first(dataset: Any, count: int) -> Any:
    """Return a data set's first samples; None of a stream, which has no first ones to come back to."""
    try:
        count = min(count, len(dataset))
    except TypeError:
        return None
    select = getattr(dataset, "select", None)  # of Hugging Face's datasets
    return select(range(count)) if callable(select) else Subset(dataset, range(count))


def _silent(args: Any, folder: str) -> Any:
    """Return the arguments without anything that writes, reports, logs, shows or evaluates."""
    args = copy.copy(args)
    args.output_dir = folder
    kinds = {name: type(getattr(args, name)) for name in ("save_strategy", "eval_strategy", "logging_strategy")}
    for name, kind in kinds.items():
        setattr(args, name, kind("no"))
    args.report_to, args.disable_tqdm = [], True
    args.load_best_model_at_end = args.push_to_hub = args.eval_on_start = False
    return args


class _HuggingFaceLevel(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Carries a level's watch and masks through a Trainer's events."""

    def __init__(self, adapter: HuggingFaceTrainer, masks: Masks, watch: Watch) -> None:
        self._adapter = adapter
        self._masks = masks
        self._watch = watch
        self._hold: Hold | None = None
        self.counted: StepCounter | None = None
        self._per_epoch = 1  # steps
        self._steps = 1  # of this level

    def release(self) -> None:
        for held in (self._hold, self.counted):
            if held is not None:
                held.release()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._watch.step:  # auto_find_batch_size begins again with a smaller batch, from weights that are trained
            raise InputError(
                "the Trainer began the level anew with a smaller batch: set per_device_train_batch_size, not auto_find_batch_size"
            )
        try:
            batches = len(kwargs["train_dataloader"])
        except TypeError:  # a stream's epoch is its whole training
            batches = state.max_steps * args.gradient_accumulation_steps
        self._per_epoch = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
        self._adapter._begun(self._watch.level, state.max_steps / self._per_epoch)
        begin = self._watch.schedule_from
        offset = state.max_steps if math.isinf(begin) else round(begin * self._per_epoch)
        self._steps = state.max_steps if math.isinf(begin) else max(state.max_steps - offset, 1)
        if offset:
            _place(kwargs["lr_scheduler"], offset, stays=math.isinf(begin))
        self._hold = hold(self._masks, kwargs["model"], kwargs["optimizer"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        assert self.counted is not None
        watch = self._watch
        watch.stepped(self.counted.step(), epoch=(watch.step + 1) / self._per_epoch)
        ends = watch.step >= self._steps
        if (watch.due() or ends) and self.look():
            ends = True
        watch.rest()
        if ends:
            control.should_training_stop = True
        return control

    def look(self) -> bool:
        """Look at the network; say whether to stop."""
        watch = self._watch
        loss = None if self.counted is None else self.counted.loss()
        if loss is not None and not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} by step {watch.step} of level {watch.level} (after epoch {watch.epoch:.2f}): training "
                "diverged; lower the learning rate, or check the data for extreme values"
            )
        with as_written(watch.model):
            return watch.look(accuracy=self._adapter._validated(watch.model, watch), loss=loss).stop


def _place(scheduler: Any, steps: int, *, stays: bool) -> None:
    """Move a learning-rate schedule on by so many steps; one that stays moves no further."""
    if not isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler) or isinstance(
        scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau
    ):
        raise InputError(
            f"the schedule {type(scheduler).__name__} follows a metric and cannot be begun at a later epoch: choose another "
            "lr_scheduler_type, or rewind='init', 'dense' or 'rate'"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a schedule that moves before its optimizer does
        for _ in range(steps):
            scheduler.step()
    if not stays:
        return
    if not any(rate > 0 for rate in scheduler.get_last_lr()):
        raise InputError(
            "rewind='none' trains on at the end of the schedule, where its rate is 0: choose lr_scheduler_type='constant' or "
            "'cosine_with_min_lr', or rewind='rate'"
        )
    vars(scheduler)["step"] = lambda *args, **kwargs: None
