"""What users do in plain PyTorch: each feature in a search, with the code they would write."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import incop
from incop import flow
from incop.errors import InputError
from incop.rewind_points import Snapshot

X = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return make()


def mlp():
    return seeded(lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)))


@torch.no_grad()
def accuracy(model):
    was = model.training
    model.eval()
    right = float((model(X).argmax(1) == Y).float().mean())
    model.train(was)
    return right


class Loop:
    """Four steps a level; a test says what else."""

    def __init__(self, step=None, optimizer=None):
        self.step = step
        self.optimizer = optimizer or (lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1))

    def fit(self, model, masks, watch):
        optimizer = self.optimizer(model)
        with incop.hold(masks, model, optimizer):
            for _ in range(4):
                optimizer.zero_grad()
                functional.cross_entropy(model(X), Y).backward()
                optimizer.step()
                watch.stepped(len(X))
                if self.step is not None:
                    self.step(model, masks, watch)
            watch.look(accuracy=accuracy(model))

    def evaluate(self, model):
        return accuracy(model)


def searched(model, trainer=None, **more):
    keys = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    tickets = list(incop.search(model, trainer or Loop(), **{"levels": 2, "rewind": "dense", "amount": 0.5, **more}))
    assert {name: tensor.dtype for name, tensor in model.state_dict().items()} == keys
    for name, weight in tickets[-1].masks.weights(model).items():
        assert not weight.detach()[~tickets[-1].masks[name]].any()
    return tickets


# --- training scripts


class Script:
    """Gradient accumulation, mixed precision with a scaler, clipping, groups, two schedules and an average, all at once."""

    def __init__(self, overflow=False):
        self.overflow, self.rates, self.averages, self.skipped, self.norms = overflow, [], [], 0, []

    def fit(self, model, masks, watch):
        groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.2)
        each_step = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=6)
        each_epoch = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        masks.apply(model)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
        self.rates.append([])
        with incop.hold(masks, model, optimizer):
            for _ in range(2):
                for number, (inputs, labels) in enumerate(zip(X.split(16), Y.split(16), strict=True), 1):
                    with torch.autocast("cpu", torch.bfloat16):
                        loss = functional.cross_entropy(model(inputs), labels) / 2
                    scaler.scale(loss).backward()
                    if number % 2:
                        continue
                    if self.overflow and number == 4:
                        model[0].weight.grad.view(-1)[masks["0.weight"].view(-1).nonzero()[0]] = torch.inf
                    scaler.unscale_(optimizer)
                    for name, weight in masks.weights(model).items():
                        assert not weight.grad[~masks[name]].any()
                    self.norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.5)))
                    scale = scaler.get_scale()
                    scaler.step(optimizer)
                    scaler.update()
                    self.skipped += scaler.get_scale() < scale
                    optimizer.zero_grad()
                    self.rates[-1].append(optimizer.param_groups[0]["lr"])
                    each_step.step()
                    average.update_parameters(model)
                    watch.stepped(32)
                    for name, weight in masks.weights(model).items():
                        assert not weight.detach()[~masks[name]].any()
                each_epoch.step()
                watch.look(accuracy=accuracy(model))
        self.averages.append(average)

    def evaluate(self, model):
        return accuracy(model)


@pytest.mark.parametrize("overflow", [False, True])
def test_accumulation_scaler_clipping_groups_schedules_and_averages(overflow):
    script = Script(overflow)
    with warnings.catch_warnings():
        if overflow:  # torch warns of its scheduler when the scaler leaves the first step out; ours is a later one
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        tickets = searched(mlp(), script)
    assert script.skipped == (6 if overflow else 0)
    assert script.rates[0] == script.rates[1] == script.rates[2]  # schedules start afresh
    assert script.rates[0][:3] == pytest.approx([0.01 * (1 - 0.5 * step / 6) for step in range(3)])
    assert script.rates[0][3] == pytest.approx(0.01 * 0.75 * 0.1)
    for ticket, average in zip(tickets, script.averages, strict=True):
        assert incop.Masks.of(average.module) == ticket.masks
        assert ticket.record.steps == 6
        assert ticket.record.samples == 2 * 96


def test_an_average_made_before_the_cut_takes_the_masks_when_told():
    model = mlp()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    masks = incop.prune(model, amount=0.5)
    masks.apply(model)
    average.update_parameters(model)  # the first call copies
    average.module.load_state_dict(mlp().state_dict())
    average.update_parameters(model)
    assert incop.Masks.of(average.module).sparsity == 0  # remembers what was cut
    masks.apply(average)
    average.update_parameters(model)
    assert incop.Masks.of(average.module) == masks


# --- models


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.ones(1), persistent=False)

    def forward(self, x):
        return self.head(functional.relu(self.second(functional.relu(self.first(x)))) * self.scale)


@pytest.mark.parametrize("rewind", ["init", "rate"])
def test_tied_weights_are_pruned_once_and_stay_tied(rewind):
    def check(model, masks, watch):
        assert model.second.weight is model.first.weight
        assert not model.second.weight.detach()[~masks["first.weight"]].any()

    model = seeded(Tied)
    tickets = searched(model, Loop(check), rewind=rewind)
    assert list(tickets[-1].masks) == ["first.weight", "head.weight"]
    assert tickets[-1].masks.total == 64 + 24
    assert tickets[-1].record.model_sparsity == pytest.approx(66 / (64 + 24 + 8 + 8 + 3))
    assert model.second.weight is model.first.weight
    fresh = Tied()
    tickets[-1].load_into(fresh)
    assert fresh.second.weight is fresh.first.weight
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), model.state_dict().values(), strict=True))
    with pytest.raises(InputError, match="belongs to another model"):
        tickets[-1].load_into(mlp())


def test_frozen_layers_are_left_as_they_are_unless_asked():
    def frozen():
        model = mlp()
        model[0].weight.requires_grad_(False)
        return model

    model = frozen()
    tickets = searched(model)
    assert list(tickets[-1].masks) == ["2.weight"]
    assert torch.equal(model[0].weight, mlp()[0].weight)
    model = frozen()
    tickets = searched(model, frozen=True)
    mask = tickets[-1].masks["0.weight"]
    assert not mask.all()
    assert torch.equal(model[0].weight, mlp()[0].weight * mask)
    assert not model[0].weight.requires_grad
    assert incop.prune(frozen(), amount=0.5, frozen=True).total == incop.Masks.of(frozen(), frozen=True).total == 176
    with pytest.raises(InputError, match=r"frozen \(requires_grad is off\): frozen=True prunes them"):
        incop.Masks.full(mlp().requires_grad_(False))


def test_channels_last_is_kept():
    def conv():
        return seeded(
            lambda: nn.Sequential(
                nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.Flatten()
            )
        ).to(memory_format=torch.channels_last)

    strides = {name: tensor.stride() for name, tensor in conv().state_dict().items()}
    assert strides["1.weight"] == (18, 1, 6, 2)
    model = conv()
    tickets = searched(model, probe=X, meter=flow.InformationFlow())
    assert {name: tensor.stride() for name, tensor in model.state_dict().items()} == strides
    assert {name: tensor.stride() for name, tensor in tickets[-1].weights.items()} == strides
    plain = conv().to(memory_format=torch.contiguous_format)
    tickets[-1].load_into(plain)
    assert plain[1].weight.is_contiguous()  # its own format; the same values
    assert torch.equal(plain[1].weight, model[1].weight)
    resumed = []
    searched(conv(), on_state=lambda take: resumed.append(take()))
    model = conv()
    searched(model, resume={n: v.contiguous() if isinstance(v, torch.Tensor) else v for n, v in resumed[-1].items()})
    assert {name: tensor.stride() for name, tensor in model.state_dict().items()} == strides


def test_gradient_checkpointing_changes_nothing():
    class Checkpointed(nn.Module):
        def __init__(self, use_reentrant=None):
            super().__init__()
            self.net, self.use_reentrant = mlp(), use_reentrant

        def forward(self, x):
            if self.use_reentrant is None:
                return self.net(x)
            return self.net[2](checkpoint(self.net[:2], x, use_reentrant=self.use_reentrant))

    arguments = {"probe": (X, Y), "meter": flow.GradientFlow(functional.cross_entropy)}
    plain, saving = searched(Checkpointed(), **arguments), searched(Checkpointed(False), **arguments)
    for a, b in zip(plain, saving, strict=True):
        assert a.masks == b.masks
        assert a.record.flow == b.record.flow
        assert all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)
    with pytest.raises(InputError, match="use use_reentrant=False"):
        searched(Checkpointed(True), **arguments)


def test_a_model_in_half_precision():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp().bfloat16()

        def forward(self, x):
            return self.net(x.to(self.net[0].weight.dtype)).float()

    tickets = searched(Half(), probe=X, meter=flow.InformationFlow("square"))
    assert tickets[-1].weights["net.0.weight"].dtype == torch.bfloat16
    assert 0 < tickets[-1].record.flow.values["net.0->net.2"] < 1


# --- what is refused


def weight_normed():
    model = mlp()
    nn.utils.parametrizations.weight_norm(model[0])
    return model


def spectral():
    model = mlp()
    nn.utils.parametrizations.spectral_norm(model[0])
    return model


def pruned_by_torch():
    model = mlp()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    return model


@pytest.mark.parametrize("make", [weight_normed, spectral, pruned_by_torch])
def test_layers_whose_weight_is_computed_anew_are_refused_or_left_out(make):
    with pytest.raises(InputError, match=r"layer '0' has no plain weight.*or leave the layer out with skip"):
        searched(make())
    tickets = searched(make(), skip=["0"])
    assert list(tickets[-1].masks) == ["2.weight"]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3)), "layer '0' is lazy"),
        (lambda: mlp().to("meta"), r"layer '0' is on the meta device.*to_empty"),
    ],
)
def test_models_without_values_are_refused_before_any_training(make, sentence):
    trained = []
    with pytest.raises(InputError, match=sentence):
        list(incop.search(make(), Loop(lambda *_: trained.append(1)), levels=1))
    assert not trained


def test_nothing_is_remembered_or_measured_of_a_model_without_values():
    with pytest.raises(InputError, match="'LazyLinear' is lazy"):
        Snapshot.of(nn.LazyLinear(3))
    for look in (Snapshot.of, lambda model: incop.measure(model, X, flow.InformationFlow())):
        with pytest.raises(InputError, match=r"'0\.weight' is on the meta device"):
            look(mlp().to("meta"))
