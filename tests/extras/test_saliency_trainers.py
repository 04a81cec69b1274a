"""Saliency where others take the steps: Accelerate, Lightning, Hugging Face. It gathers what their callbacks see before one."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from lightning.pytorch.callbacks import Callback
from lightning_modules import ByHand, Module, loader
from test_hugging_face import TRAIN, VALIDATION, bert
from torch import nn
from torch.nn import functional
from torch.optim import optimizer as hooks
from torch.utils.data import DataLoader, TensorDataset
from transformers import TrainerCallback

import incop
from incop.flat_state import part
from incop.integrations.hugging_face import HuggingFaceTrainer
from incop.integrations.lightning import LightningTrainer
from incop.masks import Masks
from incop.pruning import Saliency

GENERATOR = torch.Generator().manual_seed(0)
INPUTS, LABELS = torch.randn(70, 12, generator=GENERATOR), torch.randint(3, (70,), generator=GENERATOR)
MEMORY = 10


@pytest.fixture(autouse=True)
def _left_as_found():
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()
    assert not hooks._global_optimizer_pre_hooks


def agrees(gathered, steps, rtol=1e-5):
    """Hold what was gathered against the mean of the noted gradients, taken in float64."""
    wanted = {}
    for noted in steps:
        for name, gradient in noted.items():
            wanted[name] = (1 - 1 / MEMORY) * wanted.get(name, 0.0) + gradient**2 / MEMORY
    assert gathered.keys() == wanted.keys()
    assert len(wanted) > 2
    for name, mean in wanted.items():
        np.testing.assert_allclose(gathered[name].double().numpy(), mean, rtol=rtol, atol=0, err_msg=name)


def noted(weights):
    return {name: w.grad.double().numpy().copy() for name, w in weights.items() if w.grad is not None}


def begun(levels, model, trainer, **more):
    """Search, and return what was gathered where every level began."""
    found = {}

    def on_state(take):
        state = take()
        found.setdefault(state["level"], part("score", state))

    tickets = list(
        incop.search(
            model, trainer, levels=levels, rewind="rate", score=Saliency(memory=MEMORY), on_state=on_state, **more
        )
    )
    return found, tickets


# --- Accelerate


def network():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 3))


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "fused": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
}


@pytest.mark.parametrize("of_prepared", [True, False], ids=["prepared model", "own model"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_accelerated_loop_is_read_once_a_step(make, of_prepared):
    model, score, steps = network(), Saliency(memory=MEMORY), []
    masks = incop.prune(model, amount=0.3)
    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
    data = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=20)
    prepared, optimizer, data = accelerator.prepare(model, make(model.parameters()), data)
    read = prepared if of_prepared else model
    with incop.hold(masks, read, optimizer), score.gathering(read, masks):
        for _ in range(3):
            for inputs, labels in data:
                with accelerator.accumulate(prepared):
                    accelerator.backward(functional.cross_entropy(prepared(inputs), labels))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(prepared.parameters(), 0.05)
                        steps.append(noted(masks.weights(model)))
                    optimizer.step()
                    optimizer.zero_grad()
    assert len(steps) == 6
    agrees(score.state(), steps)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_through_accelerates_scaler_gradients_are_the_true_ones(make):
    model, score, steps = network(), Saliency(memory=MEMORY), []
    masks = Masks.full(model)
    Accelerator(cpu=True)  # accelerate's optimizer asks its state
    optimizer = AcceleratedOptimizer(make(model.parameters()), scaler=torch.amp.GradScaler("cpu"))
    with score.gathering(model, masks):
        for factor in (1.0, torch.inf, 1.0, 1.0):
            loss = functional.cross_entropy(model(INPUTS), LABELS) * factor
            optimizer.scaler.scale(loss).backward()
            if factor == 1.0:
                scale = optimizer.scaler.get_scale()
                steps.append({name: gradient / scale for name, gradient in noted(masks.weights(model)).items()})
            optimizer.step()
            optimizer.zero_grad()
    agrees(score.state(), steps)


# --- Lightning


class Noting(Callback):
    """Notes the gradients of every step of every level, where Lightning has them before the step."""

    def __init__(self):
        self.levels = []

    def on_train_start(self, trainer, pl_module):
        self.levels.append([])

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        mine = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        weights = {n: w for n, w in Masks.full(pl_module).weights(pl_module).items() if id(w) in mine}
        self.levels[-1].append(noted(weights))


class Clipping(Module):
    """Clips, and tells the callback of what it left."""

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="norm")
        (noting,) = [one for one in self.trainer.callbacks if isinstance(one, Noting)]
        noting.levels[-1][-1] = noted(Masks.full(self).weights(self))


LIGHTNING = {
    "adamw": (lambda: Module(), {}),
    "nesterov": (lambda: Module(lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, foreach=True)), {}),
    "accumulated and clipped": (lambda: Clipping(), {"accumulate_grad_batches": 2}),
    "by hand, two optimizers": (lambda: ByHand(), {}),
    "bfloat16": (lambda: Module(), {"precision": "bf16-mixed"}),
}


@pytest.mark.parametrize("case", LIGHTNING)
def test_lightning_steps_through_closures(case):
    make, more = LIGHTNING[case]
    module, noting = make(), Noting()
    torch.manual_seed(5)
    adapter = LightningTrainer(
        loader(), loader(), max_epochs=2, accuracy="val_acc", accelerator="cpu", callbacks=[noting], **more
    )
    found, tickets = begun(3, module, adapter)
    assert len(noting.levels) == len(tickets) == 4
    assert not found[1]
    agrees(found[2], noting.levels[1])
    agrees(found[3], noting.levels[1] + noting.levels[2])


# --- Hugging Face


class NotingToo(TrainerCallback):
    """Notes the gradients of every step of every level, clipped."""

    def __init__(self):
        self.levels = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.levels.append([])

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.levels[-1].append(noted(Masks.full(model).weights(model)))


@pytest.mark.parametrize(
    "more", [{}, {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1}], ids=["", "accumulated"]
)
def test_hugging_faces_steps(more):
    noting = NotingToo()
    arguments = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 16,
        "learning_rate": 3e-3,
        "use_cpu": True,
        **more,
    }
    adapter = HuggingFaceTrainer(arguments, train_dataset=TRAIN, eval_dataset=VALIDATION, callbacks=[noting])
    found, tickets = begun(3, bert(), adapter)
    assert len(noting.levels) == len(tickets) == 4
    assert not found[1]
    agrees(found[2], noting.levels[1])
    agrees(found[3], noting.levels[1] + noting.levels[2])
