"""The built-in trainer: plain PyTorch on tensors in memory or a data loader, readable at one sitting."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from incop import distributed, inspection
from incop.batches import Batch, first_samples, mapped, output_tensor
from incop.distributed import ALONE, Ranks
from incop.errors import Diverged, InputError, unknown
from incop.flat_state import State
from incop.flow.gradient import mean_loss
from incop.flow.losses import TokenLoss
from incop.loaders import Loader, Place
from incop.masks import Masks, hold
from incop.objective import DenseOutputs, Objective, called
from incop.records import Interval, Metric
from incop.tensor_split import SampleOrder, TensorSplit, in_memory, inputs_alone
from incop.training_state import Carried, TrainingPhase
from incop.validation_metric import Accuracy, ValidationMetric, refuse_broadcast
from incop.watch import Watch

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "step")
PRECISIONS = ("float32", "bfloat16")
PROBE_BATCH = 256  # on a CPU half as long as in one batch of 1,024, whose activations leave the caches
CHOICES = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "precision": PRECISIONS}
LIMITS = {  # the least and the largest value of a setting
    "epochs": (1e-6, math.inf),
    "level_epochs": (1e-6, math.inf),
    "batch_size": (1, math.inf),
    "lr": (1e-12, math.inf),
    "momentum": (0.0, 1.0 - 1e-12),
    "weight_decay": (0.0, math.inf),
    "clip": (1e-12, math.inf),
    "search_batch_size": (1, math.inf),
    "search_lr": (1e-12, math.inf),
}
OWN_OF_LOADERS = {  # settings that a data loader has itself
    "search_batch_size": "it has a batch size of its own",
    "augment": "change its samples in its data set, or a batch in unpack=",
    "prepare": "change its samples in its data set, or a batch in unpack=",
}
OPTIONAL = ("level_epochs", "clip", "search_batch_size")
FLOOR = 0.01  # where the cosine schedule ends, as a share of the rate: "rewind none" goes on at the end, which must not be 0


@dataclass
class Trainer:
    """Train a network, one level at a time: on tensors in memory, or on the batches of a data loader.

    Processes that train one `DistributedDataParallel` model divide every batch of `batch_size` among them: steps, epochs and
    schedule are those of one process. A data loader must divide itself, by a `DistributedSampler`.

    Args:
        train: inputs (N, …) and targets (N, …) of the training split, two tensors; or a data loader, a list of batches or
            anything else with a length that can be gone through again. With an objective other than "labels" inputs alone
            suffice: one tensor, or batches of inputs.
        validation: the same of the validation split; accuracy, or the metric, is measured on it. Without targets it is the
            agreement with the dense network, or the error against it (`incop.distillation`).
        epochs: the dense network's budget, > 0.
        level_epochs: every pruned level's budget, > 0; by default the dense network's. The schedule spans it.
        batch_size: samples a step, at least 1. A data loader has its own.
        optimizer: "sgd" (Nesterov-free momentum), "adam" or "adamw"; made afresh for every level, but see `keep_optimizer`.
        lr: learning rate at the schedule's start, > 0.
        momentum: of SGD, in [0, 1).
        weight_decay: at least 0.
        schedule: "constant", "cosine" (to a hundredth of the rate) or "step" (a tenth after half, a hundredth after three
            quarters of the epochs).
        clip: largest norm of a step's gradient, or None.
        loss: `loss(output, target)`, the mean over the batch: `functional.cross_entropy` for classes, `mse_loss` or `l1_loss`
            for numbers, `binary_cross_entropy_with_logits` for several labels at once, or a function of your own.
        metric: what is measured on the validation split instead of accuracy: a function `metric(output, target)` of all its
            outputs and targets that returns a number, or an object of torchmetrics.
        higher_is_better: whether more of the metric is better; torchmetrics says it itself.
        objective: what a pruned level is trained towards. "labels": `loss` of the targets; "dense": the dense (or given)
            network's outputs, by the divergence of class scores where `loss` is a cross-entropy and by mean square error
            elsewhere; or `incop.distillation.DistillationLoss(…)`, `OutputError()`, or a function of your own
            `objective(output, dense_output)`. Targets are then used in level 0 only.
        unpack: turns a data loader's batch into (inputs, target), where it has another form than those that
            `incop.batches.unpack` knows: (inputs, target), or a dictionary of the model's arguments with "labels" among them.
        prepare: turns a batch of inputs into what the model takes, such as uint8 pixels into normalised floats.
        augment: changes a batch of training inputs before `prepare`, given a random generator.
        seed: of the order of samples, of augmentation and of dropout; each level draws its own.
        precision: "float32", or "bfloat16": layers compute in it while training, weights, loss and what is measured stay
            in float32. Worth it for large convolutions where the processor multiplies bfloat16 itself (with AMX a step of
            Conv-2 takes a third of the time, of ResNet-20 under half), not for LeNet-300-100 (1.1 times the time).
        search_batch_size: samples a step while a rule may still end the level; by default `batch_size`. Short search levels
            learn more from smaller batches; the dense network and full budgets are trained as ever.
        search_lr: what the learning rate is multiplied by while a rule may still end the level, > 0.
        keep_optimizer: a search level that goes on from the last one's weights goes on with its optimizer too. A stretch of
            some tens of steps is too short to build up Adam's averages each time.

    Raises:
        InputError: an argument is out of range, the splits do not fit together, batches can be read only once, or their
            number is not known.

    Example:
        >>> import torch
        >>> import incop
        >>> x, y = torch.randn(60, 4), torch.randint(3, (60,))
        >>> trainer = incop.Trainer((x, y), (x, y), epochs=1, batch_size=20)
        >>> 0 <= trainer.evaluate(torch.nn.Linear(4, 3)) <= 1
        True
    """

    train: Any
    validation: Any
    epochs: float = 20.0
    level_epochs: float | None = None
    batch_size: int = 60
    optimizer: str = "adam"
    lr: float = 1.2e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    clip: float | None = None
    loss: Callable[[Any, Tensor], Tensor] = functional.cross_entropy
    prepare: Callable[[Tensor], Tensor] | None = None
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    seed: int = 0
    precision: str = "float32"
    search_batch_size: int | None = None
    search_lr: float = 1.0
    keep_optimizer: bool = False
    metric: Any = None
    higher_is_better: bool | None = None
    unpack: Callable[[Any], Any] | None = None
    objective: str | Callable[[Any, Any], Tensor] = "labels"
    _split: TensorSplit | Loader = field(init=False, repr=False, compare=False)
    _held_out: TensorSplit | Loader = field(init=False, repr=False, compare=False)
    _objective: Objective = field(init=False, repr=False, compare=False)
    _judge: ValidationMetric = field(default_factory=ValidationMetric, init=False, repr=False, compare=False)
    _carried: Carried = field(default_factory=Carried, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            if value is None and name in OPTIONAL:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not least <= value <= most or value == math.inf:
                raise InputError(f"{name}={value!r} is out of range: it must lie in [{least:g}, {most:g}]")
        self._objective = Objective(self.objective, self.loss)
        self._judge = ValidationMetric.of(self.metric, self.higher_is_better)
        self._split = self._read(self.train, "the train split", augment=self.augment)
        self._held_out = self._read(self.validation, "the validation split")
        for split in (self._split, self._held_out):
            self._judge.check(split.target if split.labelled else None, split.what)
        self._judge.check_labelled(self._held_out.labelled)
        if isinstance(self._split, Loader):
            for name, remedy in OWN_OF_LOADERS.items():
                if getattr(self, name) is not None:
                    raise InputError(f"{name}= is of tensors in memory, and the train split is a data loader: {remedy}")

    def _read(self, split: Any, what: str, **more: Any) -> TensorSplit | Loader:
        if in_memory(split):
            return TensorSplit(split[0], split[1], what, self.prepare, **more)
        if self.needs_dense_network and (inputs := inputs_alone(split)) is not None:
            return TensorSplit(inputs, inputs, what, self.prepare, **more).by_place()
        return Loader(split, unpack=self.unpack, what=what, targets=not self.needs_dense_network)

    @property
    def measures(self) -> Metric:
        """The metric and its direction; `incop.records.ACCURACY` where no other was given and there are targets."""
        return self._judge.metric if self._held_out.labelled else self._objective.comparison.metric

    @property
    def needs_dense_network(self) -> bool:
        """Whether pruned levels are trained towards the dense network's outputs; a search then sets `dense_network`."""
        return self.objective != "labels"

    @property
    def labelled(self) -> bool:
        """Whether the training split has targets, which an untrained network needs."""
        return self._split.labelled

    @property
    def dense_network(self) -> nn.Module | None:
        """The network whose outputs are trained towards, frozen and in evaluation mode; None until level 0 has ended."""
        return None if self._objective.dense is None else self._objective.dense.network

    @dense_network.setter
    def dense_network(self, network: nn.Module | None) -> None:
        self._objective.dense = None if network is None else DenseOutputs(network)

    @property
    def inexact(self) -> str | None:
        """Why a search cannot be resumed within a level, as a sentence; None where it can."""
        return self._split.inexact

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch; the last batch may be smaller."""
        return self._split.steps(self.batch_size)

    def rate(self, epoch: float, *, of: float | None = None) -> float:
        """Return the learning rate at an epoch of the schedule over `of` epochs; past its end, the rate at its end."""
        at = min(epoch / (of or self.epochs), 1.0)
        if self.schedule == "cosine":
            return self.lr * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * at)) / 2)
        if self.schedule == "step":
            return self.lr * (1.0 if at < 0.5 else 0.1 if at < 0.75 else 0.01)
        return self.lr

    def fit(self, model: nn.Module, masks: Masks, watch: Watch) -> None:
        """Train one level until the watch says stop or the budget is used up.

        Raises:
            Diverged: the loss is not finite, or with `clip` the gradient; the sentence says at which step.
        """
        device, was, together, carried = (
            inspection.device_of(model),
            model.training,
            distributed.of(model),
            self._carried,
        )
        devices = [device] if device.type == "cuda" else []
        seed = self.seed * 1_000_003
        own = seed + (together.rank << 40)  # each process's, where it draws for itself
        self._check_divided(together)
        self.check_batches(model, watch.every)
        split = self._split
        if self.needs_dense_network:
            self._objective.try_on(model, split, judged=not self._held_out.labelled)
            split = self._objective.prepared(watch, split, self._held_out)
        carried.enter(devices)
        try:
            with torch.random.fork_rng(devices=devices):
                if carried.pending is not None:
                    blank = TrainingPhase(model, self._fresh(model), split.order(device, 0, 0), ranks=together)
                    carried.now = carried.resumed(blank, self._split, lambda: self._fresh(model), own)
                if carried.now is None:
                    torch.manual_seed(own + watch.level)  # for dropout; the caller's random state comes back afterwards
                    samples = split.order(device, watch.level, seed)
                    if watch.due() and watch.look(metric_value=self._validated(model, watch), epoch=0.0).stop:
                        return
                    carried.now = self._begun(model, watch, samples)
                while self._train(model, masks, watch, carried.now):
                    carried.now = self._begun(model, watch, carried.now.samples.afresh())
        finally:
            carried.now = None
            model.train(was)

    def state(self) -> State:
        """Return what `restore` needs to go on from here: at `watch.rest()`, or between two levels.

        The optimizer and what it has gathered, the order of samples, where it stands in it, and torch's random state.
        """
        state, dense = self._carried.state(self._split), self._objective.dense
        return state if dense is None else state | {"dense_counted": dense.counted}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state in the next `fit`, of the same network at the same level."""
        self._carried.pending = dict(state)
        if self._objective.dense is not None and state.get("dense_counted", False):
            self._objective.dense.counted = True

    def _check_divided(self, together: Ranks) -> None:
        """Refuse a data loader that gives all processes the same samples."""
        if not together.one and not self._split.divided:
            raise InputError(
                f"the model is trained by {together.size} processes, and the train loader gives each all samples: make it with "
                "sampler=torch.utils.data.DistributedSampler(dataset), or give two tensors, which are divided here"
            )

    def check_batches(self, model: nn.Module, every: Interval) -> None:
        """Refuse an epoch that ends with a batch of one sample, where the model cannot be trained on one (BatchNorm).

        It may be that of search levels only, which would be found out when the dense network has been trained; `fit` calls this.

        Args:
            model: the network.
            every: when the rule is asked; search levels that may end within an epoch are let through.

        Raises:
            InputError: it does.

        Example:
            >>> import torch
            >>> from incop import Trainer
            >>> from incop.records import Interval
            >>> x, y = torch.randn(21, 4), torch.randint(2, (21,))
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
            >>> Trainer((x, y), (x, y), epochs=2, batch_size=7).check_batches(net, Interval.parse(1.0))
        """
        if isinstance(self._split, Loader) or not any(isinstance(one, _BatchNorm) for one in model.modules()):
            return
        for name in ("batch_size", "search_batch_size"):
            size, samples = getattr(self, name), len(self._split.inputs)
            if size is None:
                continue
            if name == "batch_size":
                to_the_end = max(self.epochs, self.level_epochs or 0.0) >= 1
            else:
                to_the_end = not every.passed(epoch=1 - 1e-6, step=self._split.steps(size) - 1)
            one = size == 1 or (samples % size == 1 and to_the_end)
            if not one or self._trains_on_one(model):
                continue
            raise InputError(
                f"{name}={size} leaves a batch of one sample of the train split's {samples}, and {type(model).__name__} normalises "
                f"over batches and cannot be trained on one: choose another {name}"
            )

    def _trains_on_one(self, model: nn.Module) -> bool:
        assert isinstance(self._split, TensorSplit)
        one = self._split.prepared(self._split.inputs[:1])
        with inspection.undisturbed(model), torch.no_grad():
            model.train()
            try:
                self._output(distributed.within(model), one)
            except ValueError as error:
                return "more than 1 value per channel" not in str(error)
        return True

    def _begun(self, model: nn.Module, watch: Watch, samples: SampleOrder | Place) -> TrainingPhase:
        optimizer = self._optimizer(model, watch)
        return TrainingPhase(model, optimizer, samples, watch.epoch, watch.searching, ranks=distributed.of(model))

    def _whole(self, watch: Watch) -> float:
        usual = self.epochs if watch.level == 0 or self.level_epochs is None else self.level_epochs
        return usual * watch.recipe.budget

    def _train(self, model: nn.Module, masks: Masks, watch: Watch, now: TrainingPhase) -> bool:
        """Train until the verdict or the budget ends the level, or the search is over; say whether to train on."""
        searching, begin, optimizer = now.searching, now.begin, now.optimizer
        recipe, size = watch.recipe, self._size(watch)
        per_epoch, offset, whole = self._split.steps(size), watch.schedule_from, self._whole(watch)
        dense = self._objective.dense if self._held(watch) else None
        budget = whole if math.isinf(offset) else max(whole - offset, 0.0)
        total = max(round((budget - begin) * per_epoch), 0 if begin else 1)
        model.train()
        with hold(masks, model, optimizer, gradients=self.clip is not None):
            for step in range(now.step + 1, total + 1):
                inputs, labels, count = now.samples.next(size, now.ranks)
                rate = self.rate(offset + begin + (step - 1) / per_epoch, of=whole) * watch.lr_share
                rate *= self.search_lr * recipe.lr if searching else recipe.lr
                for group in optimizer.param_groups:
                    group["lr"] = rate
                now.losses.append(self._step(model, now, inputs, labels, watch))
                now.step = step
                if dense is not None and not dense.keeps(self._split):
                    watch.charge(count)
                watch.stepped(count, epoch=begin + step / per_epoch)
                if watch.due() or step == total:
                    loss = math.fsum(now.losses) / len(now.losses)
                    now.losses = []
                    if watch.look(metric_value=self._validated(model, watch), loss=loss).stop:
                        return False
                    if searching and not watch.searching and (self._searches_otherwise or watch.recipe != recipe):
                        return step < total
                watch.rest()
        return False

    def _size(self, watch: Watch) -> int:
        if watch.searching and self.search_batch_size is not None:
            return self.search_batch_size
        return watch.recipe.batch_size(self.batch_size)

    @property
    def _searches_otherwise(self) -> bool:
        return self.search_batch_size is not None or self.search_lr != 1.0 or self.keep_optimizer

    def _step(
        self,
        model: nn.Module,
        now: TrainingPhase,
        inputs: Tensor | Batch,
        labels: Any,
        watch: Watch,
    ) -> float:
        optimizer = now.optimizer
        optimizer.zero_grad(set_to_none=True)
        loss, terms = (self._dense_loss if self._held(watch) else self._label_loss)(model, inputs, labels)
        value = loss.item()
        if not now.ranks.one:
            value, loss = _of_all(loss, terms(), now.ranks)
        if not math.isfinite(value):
            raise _diverged(f"the loss is {value}", optimizer, watch)
        loss.backward()
        if self.clip is not None:
            norm = nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            if not math.isfinite(norm.item()) and not _finite_gradients(model):  # the norm of finite ones may overflow
                raise _diverged("the gradient is not finite", optimizer, watch)
        optimizer.step()
        distributed.level_buffers(model, only_running=True)
        return value

    def _held(self, watch: Watch) -> bool:
        """Say whether a level is trained towards the dense network's outputs."""
        return self.needs_dense_network and watch.level > 0

    def _label_loss(self, model: nn.Module, inputs: Tensor | Batch, labels: Any) -> tuple[Tensor, Callable[[], float]]:
        """Return a batch's loss, and what returns how many numbers it is the mean over."""
        output = self._output(model, inputs)
        refuse_broadcast(self.loss, output, labels)
        return mean_loss(self.loss, output, labels), lambda: self._terms(output, labels)

    def _dense_loss(self, model: nn.Module, inputs: Any, places: Any) -> tuple[Tensor, Callable[[], float]]:
        """Return the same against the dense network's outputs; `places` are those of samples in a split in memory."""
        assert self._objective.dense is not None
        wanted, device = self._objective.dense.of(self._split, inputs, places), inspection.device_of(model)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            output = called(model, inputs)
        output = mapped(output, lambda t: t.float() if t.dtype == torch.bfloat16 else t)
        return self._objective.loss(model, inputs, output, wanted)

    def _terms(self, output: Tensor, labels: Any) -> float:
        """Return how many numbers this process's loss is the mean over."""
        weight_of = getattr(self.loss, "weight", None)
        found = weight_of(output, labels) if callable(weight_of) else None
        return float(len(output) if found is None else found)

    def _output(self, model: nn.Module, inputs: Tensor | Batch) -> Tensor:
        if self.precision == "float32":
            return _called(model, inputs)
        with torch.autocast(inspection.device_of(model).type, torch.bfloat16):
            return _called(model, inputs).float()

    def _optimizer(self, model: nn.Module, watch: Watch) -> torch.optim.Optimizer:
        """Return the optimizer of the last search level where this one goes on from it, a fresh one otherwise."""
        kept, self._carried.kept = self._carried.kept, None
        keeps = self.keep_optimizer or watch.recipe.keep_optimizer
        if not (keeps and watch.searching):
            if watch.stopped is not None:
                self._carried.kept = (
                    kept  # a ticket on the way is trained on to its end; the search goes on from the stop
                )
            return self._fresh(model)
        optimizer = kept[1] if kept is not None and kept[0] is model and watch.continues else self._fresh(model)
        self._carried.kept = model, optimizer
        return optimizer

    def _fresh(self, model: nn.Module) -> torch.optim.Optimizer:
        trained = [p for p in model.parameters() if p.requires_grad]
        # One kernel a tensor: a step of LeNet-300-100 by Adam takes 0.9 ms instead of 1.2, and 2.4 when nine tenths of its
        # weights are masked, because the separate square root is slow on zeros.
        fused = all(p.device.type in ("cpu", "cuda") for p in trained)
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                trained, self.lr, momentum=self.momentum, weight_decay=self.weight_decay, fused=fused
            )
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(trained, self.lr, weight_decay=self.weight_decay, fused=fused)

    def _validated(self, model: nn.Module, watch: Watch) -> Callable[[], float]:
        """Return the function that measures the metric for a look."""

        def validated() -> float:
            value, samples = self._evaluated(model, self._held_out)
            watch.probed(samples)
            return value

        return validated

    def probe(self, size: int = 1000) -> list[Any]:
        """Return batches of the training split for a meter: samples drawn by the seed, or a loader's first ones.

        Args:
            size: how many samples, at most.
        """
        if isinstance(self._split, Loader):
            batches, left = [], size
            for batch in map(self._split.unpacked, self._split.batches):
                batches.append(first_samples(batch, left))
                left -= batches[-1].samples
                if left <= 0:
                    break
            return batches
        split = self._split
        chosen = torch.randperm(len(split.inputs), generator=torch.Generator().manual_seed(self.seed))[:size]
        parts = chosen.to(split.inputs.device).split(PROBE_BATCH)
        return [(split.prepared(split.inputs[part]), split.target[part]) for part in parts]

    def outcomes(self, model: nn.Module) -> Tensor | None:
        """Return which targets of the validation split have the largest output, in order; None where no accuracy is measured."""
        if self._judge.measure is not None or not self._held_out.labelled or not distributed.of(model).one:
            return None
        found = Accuracy()
        with inspection.undisturbed(model), torch.no_grad():
            for inputs, target, _ in self._held_out.once(inspection.device_of(model), ALONE):
                output = _called(model, inputs)
                if isinstance(self.loss, TokenLoss):
                    output, target = self.loss.aligned(output, target)
                found.add(output, target)
        return torch.cat(found.hits)

    def evaluate(self, model: nn.Module, split: Any = None) -> float:
        """Return the accuracy, or the metric, on the validation split, or on another. The model is left as it was.

        Accuracy is the share of targets, in [0, 1], that have the largest output; with the loss `flow.TokenLoss()` the share
        of tokens that the output before them foretells. On a split without targets it is the agreement with the dense network of
        the search that the trainer trained in last, or the error against it.
        """
        own = split is None or split is self.validation
        return self._evaluated(model, self._held_out if own else self._read(split, "the split to evaluate"))[0]

    def _evaluated(self, model: nn.Module, split: TensorSplit | Loader) -> tuple[float, int]:
        """Return the metric on a split, and of how many samples it was taken."""
        if not split.labelled:
            return self._objective.judge(model, split)
        together, inner = distributed.of(model), distributed.within(model)
        device, shared, seen = inspection.device_of(model), self._judge.divided(), 0
        with inspection.undisturbed(model), torch.no_grad(), self._judge.over_a_split(together) as running:
            for inputs, target, count in split.once(device, together if shared else ALONE):
                output = _called(inner, inputs)
                if isinstance(self.loss, TokenLoss) and self._judge.measure is None:
                    output, target = self.loss.aligned(output, target)
                running.add(output, target)
                seen += count
            return running.value(), sum(together.all(seen)) if shared else seen


def _of_all(loss: Tensor, terms: float, together: Ranks) -> tuple[float, Tensor]:
    """Return the loss over everybody's part of a batch, and this one's part in the mean that DistributedDataParallel takes."""
    summed, every = together.total(torch.tensor([loss.item() * terms, terms], dtype=torch.float64)).tolist()
    return summed / every, loss * (terms * together.size / every)


def _finite_gradients(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def _diverged(what: str, optimizer: torch.optim.Optimizer, watch: Watch) -> Diverged:
    return Diverged(
        f"{what} at step {watch.step + 1} of level {watch.level} (after epoch {watch.epoch:.2f}, learning rate "
        f"{optimizer.param_groups[0]['lr']:g})"
    )


def _called(model: nn.Module, inputs: Tensor | Batch) -> Tensor:
    return output_tensor(called(model, inputs), where=type(model).__name__)
