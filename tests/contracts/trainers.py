"""What any trainer must keep, whatever library trains: one set of contracts over worlds.

A world says how to make its trainer for a `Task`. A test file runs all contracts over it with two lines:

    class TestMyWorld(Contracts):
        world = World("mine", make=lambda task: MyAdapter(...))

The contracts look at what happens from below, through torch's hooks on every optimizer's steps, and not through what a trainer
says of itself. Everything is small: three layers, 120 samples, five steps an epoch, of which the last is smaller.
"""

import contextlib
import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import optimizer as optimizers

import incop
from incop import flow, stopping
from incop.loop import search
from incop.records import Verdict

SAMPLES, BATCH, PER_EPOCH, EPOCHS = 120, 25, 5, 3
LAST = SAMPLES - (PER_EPOCH - 1) * BATCH  # samples in the epoch's last step


def _split(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 8, generator=generator)
    return x, x[:, :3].argmax(1)


@dataclass(frozen=True)
class Task:
    """What a world is asked to train: every trainer of it takes the same steps.

    Its loss is the mean cross-entropy, its accuracy that of `validation`; it trains in batches of `batch_size` in the `order`
    given, the epoch's last one smaller, with the `optimizer` given, afresh at every level, at the `rate` given.
    """

    train: tuple[Tensor, Tensor] = field(default_factory=lambda: _split(SAMPLES, 1))
    validation: tuple[Tensor, Tensor] = field(default_factory=lambda: _split(60, 2))
    epochs: int = EPOCHS
    batch_size: int = BATCH
    lr: float = 5e-3
    seed: int = 0
    kind: str = "adam"  # or "sgd", "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"  # or "cosine"
    dropout: float = 0.0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return math.ceil(len(self.train[0]) / self.batch_size)

    def net(self) -> nn.Module:
        """Return the network at its initial weights, the same ones every time."""
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return nn.Sequential(
                nn.Linear(8, 24),
                nn.BatchNorm1d(24),
                nn.ReLU(),
                nn.Dropout(self.dropout),
                nn.Linear(24, 16),
                nn.ReLU(),
                nn.Linear(16, 3),
            )

    def order(self, level: int, epoch: int) -> Tensor:
        """Return the order of samples in an epoch of a level, counted from 0: that of incop's own trainer."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + level)
        for _ in range(epoch):
            torch.randperm(len(self.train[0]), generator=generator)
        return torch.randperm(len(self.train[0]), generator=generator)

    def rate(self, epoch: float) -> float:
        """Return the learning rate at a point of the schedule; past its end, and at infinity, the one at its end."""
        at = min(epoch / self.epochs, 1.0)
        return self.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * at)) / 2 if self.schedule == "cosine" else 1.0)

    def steps(self, schedule_from: float) -> int:
        """Return the steps of a level's budget: what is left of the schedule, or all of it where it stays at its end."""
        left = self.epochs if math.isinf(schedule_from) else self.epochs - schedule_from
        return round(left * self.steps_per_epoch)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return a fresh optimizer of the task's kind; of the same arithmetic as that of incop's own trainer."""
        if self.kind == "sgd":
            return torch.optim.SGD(
                model.parameters(), self.lr, momentum=self.momentum, weight_decay=self.weight_decay, fused=True
            )
        kind = torch.optim.Adam if self.kind == "adam" else torch.optim.AdamW
        return kind(model.parameters(), self.lr, weight_decay=self.weight_decay, fused=True)


def builtin(task: Task) -> incop.Trainer:
    """Return incop's own trainer for a task."""
    return incop.Trainer(
        task.train,
        task.validation,
        epochs=task.epochs,
        batch_size=task.batch_size,
        optimizer=task.kind,
        lr=task.lr,
        momentum=task.momentum,
        weight_decay=task.weight_decay,
        schedule=task.schedule,
        seed=task.seed,
    )


@dataclass(frozen=True)
class World:
    """How a trainer of some library is made, and what it can do.

    Args:
        name: for messages.
        make: from a task to an object with `fit(model, masks, watch)` and `evaluate(model)`.
        model: from the task's network to what is searched, such as a module of the library's that holds it.
        prefix: what that puts before the names of the network's weights, such as "net.".
        exact: whether the trainer offers `state` and `restore`, and goes on within a level.
        same_bits: whether it trains the same weights as incop's own to the bit; else the same masks.
    """

    name: str
    make: Callable[[Task], Any]
    model: Callable[[nn.Module], nn.Module] = field(default=lambda net: net)
    prefix: str = ""
    exact: bool = True
    same_bits: bool = True


class Seen:
    """What was seen from below of a search: where levels began, and every step of an optimizer."""

    def __init__(self) -> None:
        self.starts: list[dict[str, Tensor]] = []  # of each level, everything in the model
        self.first: list[dict[str, Tensor]] = []  # its parameters when the first step is about to be taken
        self.fresh: list[bool] = []  # whether the optimizer had gathered nothing then
        self.rates: list[list[float]] = []
        self.after: list[dict[str, Tensor]] = []  # of level 0, everything after each step
        self.masks: Any = None
        self.model: Any = None

    def steps(self, level: int) -> int:
        return len(self.rates[level])


class _Spied:
    """A trainer, seen when its levels begin; everything else of it passes through."""

    def __init__(self, inner: Any, seen: Seen) -> None:
        self._inner, self._seen = inner, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def fit(self, model: nn.Module, masks: Any, watch: Any) -> None:
        self._seen.starts.append(copies(model))
        self._seen.rates.append([])
        self._seen.model, self._seen.masks = model, masks
        self._inner.fit(model, masks, watch)


def copies(model: nn.Module) -> dict[str, Tensor]:
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in tensors}


@contextlib.contextmanager
def watching(seen: Seen) -> Iterator[None]:
    """Note every step that any optimizer takes, and prove that pruned weights are zero after each."""

    def before(optimizer: Any, args: Any, kwargs: Any) -> None:
        if not seen.rates[-1]:
            seen.first.append({name: p.detach().clone() for name, p in seen.model.named_parameters()})
            gathered = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
            seen.fresh.append(not any(bool(v.any()) for v in gathered))
        seen.rates[-1].append(optimizer.param_groups[0]["lr"])

    def after(optimizer: Any, args: Any, kwargs: Any) -> None:
        if len(seen.rates) == 1:
            seen.after.append(copies(seen.model))
        for name, weight in seen.masks.weights(seen.model).items():
            assert not weight.detach()[~seen.masks[name]].any(), f"{name} moved at step {len(seen.rates[-1])}"

    handles = [
        optimizers.register_optimizer_step_pre_hook(before),
        optimizers.register_optimizer_step_post_hook(after),  # torch runs it after the optimizer's own hooks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def searched(world: World, task: Task | None = None, model: nn.Module | None = None, **arguments: Any) -> Any:
    """Search in a world; return the tickets, what was seen, and the model."""
    task = task or Task()
    model = model if model is not None else world.model(task.net())
    seen = Seen()
    torch.manual_seed(11)  # of a world that draws from the caller's generator
    with watching(seen):
        made = _Spied(world.make(task), seen)
        tickets = list(search(model, made, **{"levels": 2, "rewind": "init", **arguments}))
    return tickets, seen, model


class StopAt(stopping.Rule):
    """Stops a level at its so-manieth check after training began."""

    wants = frozenset()

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, history: Any) -> Any:
        return Verdict(history.now.number == self.number, f"check {history.now.number}", "stop at")


def plain(record: Any) -> Any:
    """Return a record's JSON without what a clock says."""
    if isinstance(record, dict):
        return {key: plain(value) for key, value in record.items() if "seconds" not in key}
    return [plain(value) for value in record] if isinstance(record, list) else record


def told(ticket: Any) -> Any:
    """Return everything a ticket says but times."""
    return plain(ticket.record.to_json()), [plain(check.to_json()) for check in ticket.checks]


def same_tensors(a: Any, b: Any) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def same_tickets(a: Any, b: Any) -> None:
    assert told(a) == told(b)
    assert a.masks == b.masks
    same_tensors(a.weights, b.weights)


def masked(tensors: Any, masks: Any) -> dict[str, Tensor]:
    return {name: torch.where(masks[name], t, 0.0) if name in masks else t for name, t in tensors.items()}


X = Task().train[0]
MEASURED = {"probe": X, "meter": flow.InformationFlow("square")}


class Contracts:
    """Subclass it with `world`, and pytest runs all contracts over it."""

    world: World

    # --- pruned weights

    @pytest.mark.parametrize(
        "task",
        [
            Task(kind="sgd", lr=0.05, weight_decay=0.1),
            Task(kind="adam", weight_decay=0.1),
            Task(kind="adamw", weight_decay=0.5),
        ],
        ids=["momentum", "adam", "adamw"],
    )
    def test_pruned_weights_stay_exactly_zero(self, task):
        """Proved after every step, with weight decay, also where the level begins with weights that moved before."""
        tickets, seen, _ = searched(self.world, task, rewind="rate", amount=0.5)
        assert [seen.steps(level) for level in range(3)] == [15, 15, 15]
        for ticket in tickets[1:]:
            for name, mask in ticket.masks.items():
                assert not ticket.weights[name][~mask].any()
                assert ticket.weights[name][mask].all()  # and the others were trained

    # --- rewinding

    @pytest.mark.parametrize("rewind", ["init", "early:1", "early:4steps", "dense", "rate", "none"])
    def test_a_level_trains_from_the_rewind_point_to_the_bit(self, rewind):
        task = Task(kind="sgd", lr=0.05)
        initial = copies(self.world.model(task.net()))
        tickets, seen, _ = searched(self.world, task, rewind=rewind)
        same_tensors(seen.starts[0], initial)
        for level in (1, 2):
            point = {
                "init": initial,
                "early:1": seen.after[PER_EPOCH - 1],
                "early:4steps": seen.after[3],
                "dense": seen.after[-1],
                "rate": tickets[level - 1].weights,
                "none": tickets[level - 1].weights,
            }[rewind]
            wanted = masked(point, tickets[level].masks)
            same_tensors(seen.starts[level], wanted)
            same_tensors(seen.first[level], {name: wanted[name] for name in seen.first[level]})
        assert seen.fresh == [True, True, True]

    def test_the_model_holds_what_the_ticket_says(self):
        tickets, _, model = searched(self.world)
        same_tensors(copies(model), tickets[-1].weights)

    # --- how long a level takes

    @pytest.mark.parametrize(
        ("every", "check", "steps"),
        [(1, 1, 5), (1, 2, 10), (2, 1, 10), (0.4, 1, 2), (0.4, 3, 6), (0.5, 1, 3), ("1steps", 4, 4), ("7steps", 2, 14)],
    )
    def test_a_stop_is_obeyed_at_its_step(self, every, check, steps):
        tickets, seen, _ = searched(self.world, rule=StopAt(check), check_every=every, levels=2)
        assert [seen.steps(level) for level in range(3)] == [15, steps, 15]
        assert [t.record.steps for t in tickets] == [15, steps, 15]
        assert [t.record.epochs for t in tickets] == pytest.approx([3, steps / PER_EPOCH, 3])
        assert tickets[1].record.stop_reason == f"check {check}"
        assert [c.number for c in tickets[1].checks] == list(range(1, check + 1))

    def test_checks_come_when_they_are_due_and_at_the_end(self):
        tickets, _, _ = searched(self.world, levels=1, check_every="4steps")
        assert [c.step for c in tickets[0].checks] == [4, 8, 12, 15]
        assert [c.epoch for c in tickets[0].checks] == pytest.approx([0.8, 1.6, 2.4, 3])
        tickets, _, _ = searched(self.world, levels=1)
        assert [c.step for c in tickets[0].checks] == [5, 10, 15]
        assert [c.epoch for c in tickets[0].checks] == pytest.approx([1, 2, 3])

    def test_a_check_before_training_can_end_a_level_without_a_step(self):
        tickets, seen, _ = searched(self.world, rule=stopping.AfterEpochs(0), check_before=True, rewind="dense")
        assert [seen.steps(level) for level in range(3)] == [15, 0, 15]
        assert [t.record.epochs for t in tickets] == [3, 0, 3]
        assert [c.number for c in tickets[1].checks] == [0]
        same_tensors(tickets[1].weights, masked(tickets[0].weights, tickets[1].masks))

    def test_a_check_before_training_that_says_go_on_is_followed_by_training(self):
        tickets, seen, _ = searched(self.world, rule=StopAt(1), check_before=True)
        assert [seen.steps(level) for level in range(3)] == [15, 5, 15]
        assert [c.number for c in tickets[1].checks] == [0, 1]
        assert [c.step for c in tickets[1].checks] == [0, 5]

    def test_the_last_level_gets_its_full_budget_unless_told_otherwise(self):
        tickets, seen, _ = searched(self.world, rule=StopAt(1), last_level_full=False)
        assert [seen.steps(level) for level in range(3)] == [15, 5, 5]
        assert tickets[-1].record.stop_reason == "check 1"

    @pytest.mark.parametrize(
        ("rewind", "begin"),
        [("init", 0.0), ("early:1", 1.0), ("early:4steps", 0.8), ("dense", 0.0), ("rate", 0.0), ("none", math.inf)],
    )
    def test_the_schedule_begins_where_it_should(self, rewind, begin):
        task = Task(schedule="cosine")
        tickets, seen, _ = searched(self.world, task, rewind=rewind, levels=1)
        assert seen.rates[0] == pytest.approx([task.rate(step / PER_EPOCH) for step in range(15)])
        steps = task.steps(begin)
        assert seen.rates[1] == pytest.approx([task.rate(begin + step / PER_EPOCH) for step in range(steps)])
        assert tickets[1].record.steps == steps
        assert tickets[1].record.max_epochs == pytest.approx(steps / PER_EPOCH)

    def test_a_ticket_on_the_way_is_the_same_training_carried_on(self):
        arguments = {"amount": 0.3, "levels": 3, "rule": StopAt(1), "rewind": "rate"}
        way, seen, _ = searched(self.world, ticket_at=(0.4,), **arguments)
        assert [seen.steps(level) for level in range(4)] == [15, 5, 15, 15]
        reported = way[2].record
        assert (reported.steps, reported.search.steps) == (15, 5)
        assert way[2].sparsity == pytest.approx(0.4, abs=1e-3)
        # its training up to the stop, and the cut after it, are those of a search that only stops there
        cuts = iter(1 - b.masks.remaining / a.masks.remaining for a, b in pairwise(way))
        stops, _, _ = searched(self.world, **{**arguments, "amount": lambda c: round(next(cuts) * c.weights.numel())})
        for a, b in zip(way, stops, strict=True):
            assert a.masks == b.masks
        same_tensors(way[3].weights, stops[3].weights)

    # --- records

    def test_the_ledger_counts_what_was_trained_and_looked_at(self):
        rule = stopping.FlowRestored(within=1e-12) & stopping.AccuracyRestored()
        tickets, _, _ = searched(self.world, rule=rule, **MEASURED)
        for ticket in tickets:
            assert (ticket.record.epochs, ticket.record.steps, ticket.record.samples) == (3, 15, 3 * SAMPLES)
            assert ticket.record.seconds > 0
        assert tickets[1].record.probe_samples == 3 * (SAMPLES + 60)
        assert tickets[1].record.record_samples == 0
        assert tickets[2].record.record_samples == 3 * (SAMPLES + 60)  # no rule watches a last level
        tickets, _, _ = searched(self.world, rule=StopAt(4), check_every="3steps")
        assert tickets[1].record.samples == 2 * SAMPLES + 2 * BATCH
        assert [c.spent.samples for c in tickets[1].checks] == [75, 145, 220, 290]

    def test_records_say_what_those_of_incops_own_trainer_say(self):
        """The same fields, the same counts, and numbers that are alike: loss, accuracy and flow of every check."""
        task = Task(kind="sgd", lr=0.05)
        own, _, _ = searched(World("own", builtin), task, rule=StopAt(2), check_every=0.4, **MEASURED)
        theirs, _, _ = searched(self.world, task, rule=StopAt(2), check_every=0.4, **MEASURED)
        for a, b in zip(own, theirs, strict=True):
            _alike(told(a), told(b), self.world.prefix)

    @pytest.mark.parametrize("rewind", ["early:1", "rate"])
    @pytest.mark.parametrize("kind", ["sgd", "adam"])
    def test_the_same_order_gives_the_same_masks_as_incops_own_trainer(self, kind, rewind):
        task = Task(kind=kind, lr={"sgd": 0.05, "adam": 5e-3}[kind], schedule="cosine")
        arguments = {"rewind": rewind, "amount": 0.4, "rule": StopAt(2), "levels": 3}
        own, _, _ = searched(World("own", builtin), task, **arguments)
        theirs, _, _ = searched(self.world, task, **arguments)
        for a, b in zip(own, theirs, strict=True):
            assert a.masks == incop.Masks(_unprefixed(b.masks, self.world.prefix))
            if self.world.same_bits:
                same_tensors(a.weights, _unprefixed(b.weights, self.world.prefix))

    def test_the_same_again_is_the_same(self):
        task = Task(dropout=0.3)
        for a, b in zip(searched(self.world, task)[0], searched(self.world, task)[0], strict=True):
            same_tickets(a, b)

    # --- going on

    @pytest.mark.parametrize(
        "arguments",
        [
            {"rewind": "early:1", "rule": StopAt(3), "check_every": "2steps"},
            {"rewind": "rate", "rule": StopAt(1), "amount": 0.3, "ticket_at": (0.4,), "levels": 3, **MEASURED},
        ],
        ids=["early", "on the way"],
    )
    def test_a_search_gone_on_with_ends_as_one_that_never_stopped(self, arguments):
        """From states taken at level ends, within levels and at the very beginning, in what could be another process."""
        task = Task(kind="adam", dropout=0.3, schedule="cosine")
        whole, seen, _ = searched(self.world, task, **arguments)
        generator = torch.get_rng_state()
        taken: list[Any] = []
        again, _, _ = searched(self.world, task, on_state=lambda take: taken.append(take()), **arguments)
        for a, b in zip(whole, again, strict=True):
            same_tickets(a, b)  # taking a state changes nothing
        within = sum(map(len, seen.rates)) - sum(ticket.record.search is None for ticket in whole[1:-1])
        if self.world.exact:
            assert within <= len(taken) - len(whole) <= sum(map(len, seen.rates))
        else:
            assert len(taken) == len(whole)
        last = len(taken) - 1
        for place in sorted({0, 1, 5, last // 2, last * 2 // 3, last - 1, last} & set(range(len(taken)))):
            state = _through_a_file(taken[place])
            _scramble()
            other = replace(task)  # of another process: nothing is shared but the numbers
            model = self.world.model(other.net())
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(1.0)
            for ticket in searched(self.world, other, model, resume=state, **arguments)[0]:
                same_tickets(ticket, whole[ticket.level])
            same_tensors(copies(model), whole[-1].weights)
            assert torch.equal(torch.get_rng_state(), generator)  # whatever the caller draws next is the same too

    # --- manners

    def test_the_models_names_types_and_hooks_are_as_they_were(self):
        task = Task()
        model = self.world.model(task.net())
        before = {name: (tensor.dtype, tensor.shape) for name, tensor in model.state_dict().items()}
        parameters, modules = list(model.parameters()), [type(module) for module in model.modules()]
        searched(self.world, task, model)
        assert {name: (tensor.dtype, tensor.shape) for name, tensor in model.state_dict().items()} == before
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        assert [type(module) for module in model.modules()] == modules
        _no_hooks(model)

    def test_an_error_in_a_check_passes_through_and_leaves_no_hooks(self):
        class Broken(Exception):
            pass

        def broken(check):
            if check.level == 1:
                raise Broken

        model = self.world.model(Task().net())
        with pytest.raises(Broken):
            searched(self.world, model=model, on_check=broken)
        _no_hooks(model)

    def test_evaluating_changes_nothing(self):
        task = Task(dropout=0.3)
        model, made = self.world.model(task.net()), self.world.make(task)
        before, training = copies(model), [module.training for module in model.modules()]
        first = made.evaluate(model)
        assert 0 <= first <= 1
        assert made.evaluate(model) == first
        same_tensors(copies(model), before)
        assert [module.training for module in model.modules()] == training


def _unprefixed(tensors: Any, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _alike(own: Any, theirs: Any, prefix: str) -> None:
    """Compare two records: numbers nearly, everything else exactly; names of layers may have a prefix."""
    if isinstance(own, dict):
        names = {key if key in theirs else _prefixed(key, prefix): key for key in own}
        assert theirs.keys() == names.keys()
        for name, key in names.items():
            _alike(own[key], theirs[name], prefix)
    elif isinstance(own, list | tuple):
        assert len(own) == len(theirs)
        for a, b in zip(own, theirs, strict=True):
            _alike(a, b, prefix)
    elif isinstance(own, float):
        assert theirs == pytest.approx(own, rel=1e-3, abs=1e-5)
    else:
        assert theirs == own


def _prefixed(key: str, prefix: str) -> str:
    return "->".join(prefix + part for part in key.split("->"))


def _through_a_file(state: Any) -> Any:
    """Return the state as it is read back: tensors, and what JSON holds."""
    return {
        name: value.clone() if isinstance(value, Tensor) else json.loads(json.dumps(value))
        for name, value in copy.copy(state).items()
    }


def _scramble() -> None:
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)


def _no_hooks(model: nn.Module) -> None:
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        assert not any(hooks), name
    for name, parameter in model.named_parameters():
        assert not parameter._backward_hooks, name
        assert not getattr(parameter, "_post_accumulate_grad_hooks", None), name
