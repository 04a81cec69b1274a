"""Accelerate: hold takes what `prepare` returns, and a loop of one's own drives a search."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import incop
from incop import pruning, stopping
from incop.masks import Masks

EXAMPLES = Path(__file__).parents[2] / "examples" / "extras"
torch.manual_seed(0)
INPUTS, LABELS = torch.randn(70, 12), torch.randint(3, (70,))


@pytest.fixture(autouse=True)
def _own_state():
    """Accelerate keeps one precision for the whole process; each test has its own."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 3))


def halved(model):
    return incop.prune(model, masks=Masks.full(model), amount=pruning.Fraction(0.5))


def bits(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.3),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
}


@pytest.mark.parametrize("of_prepared", [True, False], ids=["prepared model", "own model"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_accelerated_loop_trains_what_plain_pytorch_does(make, of_prepared):
    """The oracle: the same loop without Accelerate, zeroed by hand: gradients before clipping, weights after the step."""
    model, oracle = network(), network()
    masks = halved(model)
    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
    loader = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=20)
    prepared, optimizer, loader = accelerator.prepare(model, make(model.parameters()), loader)
    assert isinstance(optimizer, AcceleratedOptimizer)
    with incop.hold(masks, prepared if of_prepared else model, optimizer):
        for _ in range(3):
            for inputs, labels in loader:
                with accelerator.accumulate(prepared):
                    accelerator.backward(functional.cross_entropy(prepared(inputs), labels))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(prepared.parameters(), 0.05)
                    optimizer.step()
                    optimizer.zero_grad()

    masks.apply(oracle)
    plain = make(oracle.parameters())
    for _ in range(3):
        for number, (inputs, labels) in enumerate(zip(INPUTS.split(20), LABELS.split(20), strict=True)):
            (functional.cross_entropy(oracle(inputs), labels) / 2).backward()
            if number % 2 == 0:
                continue
            for name, weight in masks.weights(oracle).items():
                weight.grad.masked_fill_(~masks[name], 0.0)
            nn.utils.clip_grad_norm_(oracle.parameters(), 0.05)
            plain.step()
            plain.zero_grad()
            masks.apply(oracle)

    assert all(torch.equal(weight, bits(oracle)[name]) for name, weight in bits(model).items())
    assert Masks.of(model).remaining == masks.remaining


def test_momentum_of_before_the_cut_is_forgotten():
    model = network()
    accelerator = Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, OPTIMIZERS["momentum"](model.parameters()))
    accelerator.backward(functional.cross_entropy(prepared(INPUTS), LABELS))
    optimizer.step()
    optimizer.zero_grad()
    masks = halved(model)
    with incop.hold(masks, prepared, optimizer):
        optimizer.step()  # moves by momentum alone
    assert Masks.of(model).remaining == masks.remaining


def test_bf16_and_a_checkpoint_of_accelerates_own(tmp_path):
    model = network()
    masks = halved(model)
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    prepared, optimizer = accelerator.prepare(model, OPTIMIZERS["adamw"](model.parameters()))

    def step():
        accelerator.backward(functional.cross_entropy(prepared(INPUTS), LABELS))
        optimizer.step()
        optimizer.zero_grad()

    with incop.hold(masks, prepared, optimizer):
        step()
        accelerator.save_state(str(tmp_path))
        step()
        end = bits(model)
        accelerator.load_state(str(tmp_path))
        step()
    assert all(torch.equal(weight, end[name]) for name, weight in bits(model).items())
    assert Masks.of(model).remaining == masks.remaining


def test_through_a_scaler_whose_step_may_be_skipped():
    model = network()
    masks = halved(model)
    Accelerator(cpu=True)  # accelerate's optimizer asks its state
    optimizer = AcceleratedOptimizer(OPTIMIZERS["momentum"](model.parameters()), scaler=torch.amp.GradScaler("cpu"))
    with incop.hold(masks, model, optimizer):
        for factor in (1.0, float("inf"), 1.0):
            loss = functional.cross_entropy(model(INPUTS), LABELS) * factor
            optimizer.scaler.scale(loss).backward()
            optimizer.step()
            assert optimizer.step_was_skipped == (factor != 1.0)
            optimizer.zero_grad()
    assert Masks.of(model).remaining == masks.remaining


def test_the_example_runs(capsys):
    runpy.run_path(str(EXAMPLES / "accelerate_digits.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("by hand: Masks(3 weights")
    assert [line.split(" · ")[0] for line in lines[1:]] == [f"level {n}" for n in range(4)]


def test_the_examples_loop_obeys_a_stop_at_its_step():
    sys.path.insert(0, str(EXAMPLES))
    try:
        from accelerate_digits import Mine
    finally:
        sys.path.remove(str(EXAMPLES))
    data = TensorDataset(INPUTS, LABELS)
    model = network()
    masks = halved(model)
    watch = incop.Watch(model, masks=masks, rule=stopping.AfterEpochs(1), every="1steps", level=1)
    Mine(data, data, epochs=3).fit(model, masks, watch)
    assert (watch.step, watch.epoch) == (2, 1.0)  # 70 samples by 32, two batches a step
    assert [check.spent.samples for check in watch.checks] == [64, 70]
    assert Masks.of(model).remaining == masks.remaining
