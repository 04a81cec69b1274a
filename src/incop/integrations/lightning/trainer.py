"""The trainer: lets `incop.search` train a LightningModule, with a fresh `lightning.Trainer` for every level."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn

from incop import inspection
from incop.errors import InputError, TrainingError, unknown
from incop.flat_state import random_states, restore_random
from incop.integrations.lightning.hooks import Looking, samples_in
from incop.integrations.lightning.package import Callback, package_of
from incop.integrations.lightning.schedules import begin_schedules
from incop.integrations.lightning.surroundings import as_found, hushed, interruptible, seeded
from incop.masks import Masks
from incop.records import Verdict
from incop.watch import Watch

# What a search does not want of Lightning unless it is asked for; levels are many.
QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "devices": 1,
}
# What would end a level elsewhere than where its rule or its budget does, or begin it elsewhere.
OURS = {
    "min_epochs": "the rule would not be obeyed before them",
    "min_steps": "the rule would not be obeyed before them",
    "max_steps": "a level's budget is counted in epochs",
    "max_time": "a level that ends by the clock is another one each time",
    "fast_dev_run": "it trains one batch a level",
}


class LightningTrainer:
    """Trains a LightningModule for `incop.search`, one level at a time, with a fresh `lightning.Trainer` for each.

    The module's own `configure_optimizers` is called at every level, so optimizer and schedulers start afresh. Masks are named
    as the LightningModule's parameters (`net.0.weight` where it holds the network as `self.net`). Every check is made
    right after its optimizer step and the validation that Lightning then runs, whose `accuracy` it takes; that validation
    leaves the random state alone, so that checking more often does not change what is trained.

    Where a level begins within its schedule (`rewind="early:N"`), or stays at its end (`"none"`), the schedulers are stepped to
    there first, or held there. A `ReduceLROnPlateau` knows no epochs and starts afresh, which a warning says; a module that
    optimizes by hand steps its own schedulers, and is refused. `trainer.max_epochs` is always the whole budget, and the
    epochs that Lightning counts begin at 0 in every level.

    A search that is resumed goes on from the beginning of the level it was in: Lightning cannot take up a data loader in the
    middle of an epoch.

    Args:
        train_dataloaders: as `lightning.Trainer.fit` takes them; or None, where the module or the datamodule has them.
        val_dataloaders: likewise.
        datamodule: a LightningDataModule instead of both.
        max_epochs: the dense module's budget in epochs, > 0.
        level_epochs: every pruned level's budget; by default the dense module's.
        accuracy: name of the metric, in [0, 1], that the module logs in its validation.
        seed: of torch's random state, which dropout and a loader's shuffling draw from; each level has its own.
        callbacks: Lightning callbacks for every level; those that remember something from fit to fit, such as
            `EarlyStopping`, as a function that returns fresh ones.
        arguments: any others of `lightning.Trainer`: `accelerator`, `precision`, `gradient_clip_val`, `logger`, … No progress
            bar, logger, checkpoints or summary unless asked for; one device.

    Raises:
        InputError: an argument is unknown, or would end levels elsewhere than rule and budget do.

    Example:
        >>> import torch, lightning, incop
        >>> from incop.integrations.lightning import LightningTrainer
        >>> class Net(lightning.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        ...     def forward(self, x):
        ...         return self.net(x)
        ...     def training_step(self, batch, batch_idx):
        ...         return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
        ...     def validation_step(self, batch, batch_idx):
        ...         self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())
        ...     def configure_optimizers(self):
        ...         return torch.optim.Adam(self.parameters())
        >>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
        >>> data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 16)
        >>> trainer = LightningTrainer(data, data, max_epochs=1, accuracy="val_acc", accelerator="cpu")
        >>> [round(ticket.sparsity, 2) for ticket in incop.search(Net(), trainer, levels=2, rewind="init")]
        [0.0, 0.2, 0.36]
    """

    def __init__(
        self,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        *,
        max_epochs: float,
        accuracy: str,
        datamodule: Any = None,
        level_epochs: float | None = None,
        seed: int = 0,
        callbacks: Any = (),
        **arguments: Any,
    ) -> None:
        for name, value in {"max_epochs": max_epochs, "level_epochs": level_epochs or max_epochs}.items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
                raise InputError(f"{name}={value!r}: a level's budget is a number of epochs above 0")
        if not isinstance(accuracy, str) or not accuracy:
            raise InputError(f"accuracy={accuracy!r}: name the metric that the module logs in its validation")
        if datamodule is not None and (train_dataloaders is not None or val_dataloaders is not None):
            raise InputError(
                "a datamodule brings its own data loaders: give it, or train_dataloaders and val_dataloaders"
            )
        for name in OURS:
            if arguments.get(name) not in (None, False):
                raise InputError(f"{name}={arguments[name]!r}: {OURS[name]}; leave it out")
        if not _one_device(arguments.get("devices", 1)) or arguments.get("num_nodes", 1) != 1:
            raise InputError(
                f"devices={arguments.get('devices', 1)!r}, num_nodes={arguments.get('num_nodes', 1)!r}: a search trains on one "
                "device; several processes would each measure their own flow"
            )
        _check_callbacks(callbacks)
        self.epochs = max_epochs
        self.level_epochs = level_epochs
        self.accuracy = accuracy
        self.seed = seed
        self._train, self._val, self._datamodule = train_dataloaders, val_dataloaders, datamodule
        self._orders = _Orders(train_dataloaders)
        self._callbacks = callbacks
        self._arguments = {**QUIET, **arguments}

    def fit(self, model: nn.Module, masks: Masks, watch: Watch) -> None:
        """Train one level until the watch says stop or the budget is used up.

        Raises:
            InputError: the model is no LightningModule, or it cannot be trained as the level asks.
            TrainingError: the loss or the flow is not finite.
        """
        lightning = package_of(model)
        self._check_arguments(lightning)
        whole = self.epochs if watch.level == 0 or self.level_epochs is None else self.level_epochs
        budget = whole if math.isinf(watch.schedule_from) else max(whole - watch.schedule_from, 0.0)
        with as_found(model), seeded(self.seed * 1_000_003 + watch.level), hushed():
            if watch.due() and watch.look(accuracy=lambda: self._charged(model, watch), epoch=0.0).stop:
                return
            level = _LightningLevel(self.accuracy, masks, watch, whole=whole, budget=budget)
            given = self._callbacks() if callable(self._callbacks) else _listed(self._callbacks)
            trainer = lightning.Trainer(max_epochs=math.ceil(whole), callbacks=[level, *given], **self._arguments)
            self._orders.again()
            with interruptible(trainer):
                trainer.fit(model, self._train, self._val, datamodule=self._datamodule)
        level.finish()

    def evaluate(self, model: nn.Module) -> float:
        """Return the metric `accuracy` on the validation split, in [0, 1]. The model is left as it was."""
        return self._validated(model)[0]

    def _charged(self, model: nn.Module, watch: Watch) -> float:
        accuracy, samples = self._validated(model)
        watch.probed(samples)
        return accuracy

    def _validated(self, model: nn.Module) -> tuple[float, int]:
        lightning = package_of(model)
        self._check_arguments(lightning)
        counter = _SampleCounter()
        with inspection.undisturbed(model), as_found(model), hushed():
            trainer = lightning.Trainer(callbacks=[counter], **{**self._arguments, "logger": False})
            with interruptible(trainer):
                trainer.validate(model, self._val, datamodule=self._datamodule, verbose=False)
        if self.accuracy not in trainer.callback_metrics:
            have = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise InputError(
                f"the validation logged no metric {self.accuracy!r} (it has: {have}): log it in validation_step"
            )
        value = float(trainer.callback_metrics[self.accuracy])
        if not 0.0 <= value <= 1.0:
            raise InputError(f"the metric {self.accuracy!r} is {value:g}: an accuracy is a fraction in [0, 1]")
        return value, counter.samples

    def _check_arguments(self, lightning: Any) -> None:
        known = [name for name in inspect.signature(lightning.Trainer.__init__).parameters if name != "self"]
        for name in self._arguments:
            if name not in known:
                raise unknown("argument of Lightning's Trainer", name, known)


class _LightningLevel(Looking):
    """One level: looks where the search's watch says, and ends where a verdict or the budget does."""

    def __init__(self, accuracy: str, masks: Masks, watch: Watch, *, whole: float, budget: float) -> None:
        super().__init__(accuracy)
        self._masks, self._watch = masks, watch
        self._whole, self._budget = whole, budget
        self._random: dict[str, Any] = {}
        self._usual: Any = None  # Lightning's own number of batches between validations
        self._half_batch = 0.0
        self._ended = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self._half_batch = 0.5 / trainer.num_training_batches  # of infinitely many: nothing
        begin_schedules(trainer, pl_module, self._now.schedule_from, self._whole)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._validated_last()
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._awaited:  # the loop asks after this hook whether to validate
            self._usual, trainer.val_check_batch = trainer.val_check_batch, 1
        self._random = random_states()  # a validation's data loader takes a number from torch's generator

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        if self._awaited:
            trainer.val_check_batch = self._usual
        super().on_validation_end(trainer, pl_module)
        restore_random(self._random)

    def _validated_last(self) -> None:
        if self._awaited:
            raise TrainingError(
                f"Lightning ran no validation after step {self._now.step} of level {self._now.level}, where a check was due: "
                "its own check_val_every_n_epoch or a callback keeps it from it"
            )

    def _due(self) -> bool:
        return super()._due() or self._spent

    def _looked(self, trainer: Any, verdict: Verdict) -> None:
        loss = self._now.checks[-1].loss
        if loss is not None and not math.isfinite(loss):
            raise TrainingError(
                f"the mean loss is {loss} at step {self._now.step} of level {self._now.level}: training diverged; lower the "
                "learning rate, or check the data for extreme values"
            )
        if verdict.stop or self._spent:
            self._ended = trainer.should_stop = True

    @property
    def _spent(self) -> bool:
        """Whether the budget is used up, to the nearest batch."""
        return self._now.epoch >= self._budget - self._half_batch + 1e-9

    def finish(self) -> None:
        """Say so where something else ended the level."""
        self._validated_last()
        if not self._ended:
            warnings.warn(
                f"Lightning ended level {self._now.level} after {self._now.epoch:g} of {self._budget:g} epochs, though neither the "
                "rule nor the budget did: a callback or the module stopped it",
                stacklevel=3,
            )


class _SampleCounter(Callback):  # type: ignore[misc]  # Lightning is not installed where types are checked
    """Counts what a validation sees."""

    samples = 0

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.samples += samples_in(batch)


def _listed(callbacks: Any) -> list[Any]:
    return list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]


def _check_callbacks(callbacks: Any) -> None:
    """Refuse callbacks that would carry something from one level into the next."""
    if callable(callbacks):
        return
    for callback in _listed(callbacks):
        state = getattr(type(callback), "state_dict", None)
        if state is None:
            raise InputError(f"callbacks hold a {type(callback).__name__}, which is no Lightning callback")
        if state.__qualname__ != "Callback.state_dict":
            name = type(callback).__name__
            raise InputError(
                f"{name} remembers its last fit, and every level is a fit of its own: pass callbacks=lambda: [{name}(…)], so that "
                "each level has a fresh one"
            )


def _one_device(devices: Any) -> bool:
    if isinstance(devices, list | tuple):
        return len(devices) == 1
    return not str(devices).isdigit() or int(devices) == 1  # "auto" and -1 are told by Lightning when it has looked


def _loaders(given: Any) -> Iterator[Any]:
    """Yield the data loaders in what Lightning takes for them: one, or several in lists and dictionaries."""
    if isinstance(given, list | tuple):
        for one in given:
            yield from _loaders(one)
    elif isinstance(given, dict):
        yield from _loaders(list(given.values()))
    elif given is not None:
        yield given


class _Orders:
    """The orders in which data loaders draw their samples, as they were found: every level draws from there anew."""

    def __init__(self, given: Any) -> None:
        drawing: list[Any] = [
            part
            for loader in _loaders(given)
            for part in (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
        ]
        self._epochs = [part for part in drawing if callable(getattr(part, "set_epoch", None))]
        generators = {id(g): g for g in (getattr(part, "generator", None) for part in drawing) if g is not None}
        self._generators = [(generator, generator.get_state()) for generator in generators.values()]

    def again(self) -> None:
        """Put them back."""
        for sampler in self._epochs:
            sampler.set_epoch(0)
        for generator, state in self._generators:
            generator.set_state(state)
