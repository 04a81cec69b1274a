"""Holding pruned weights at zero while an optimizer trains the others."""

import copy
import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from incop import Masks, hold, prune
from incop.errors import InputError
from incop.masks import holding
from small import mlp
from small import random_masks as some


@pytest.fixture(autouse=True, params=["at hand", "from bits"])
def way(request, monkeypatch):
    """Every test runs with masks held by integers of their own, as in small networks, and unpacked at every step."""
    if request.param == "from bits":
        monkeypatch.setattr(holding, "AT_HAND", 0)


def two(seed=0):
    return mlp(4, 3, 2, seed=seed)


# --- holding while training, against a network whose forward pass multiplies by the mask


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.bn = nn.BatchNorm2d(3)
        self.fc1 = nn.Linear(12, 10)
        self.fc2 = nn.Linear(10, 10)
        self.fc2.weight = nn.Parameter(torch.randn(10, 10) / 3)
        self.fc3 = nn.Linear(10, 10)
        self.fc3.weight = self.fc2.weight  # tied
        self.out = nn.Linear(10, 3)

    def forward(self, x):
        h = self.bn(self.conv(x)).relu().flatten(1)
        return self.out(self.fc3(self.fc2(self.fc1(h).relu()).relu()).relu())


def data(steps=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(8, 1, 4, 4, generator=g), torch.randint(3, (8,), generator=g)) for _ in range(steps)]


class Masked(nn.Module):
    """The oracle: free weights, used through `weight * mask`."""

    def __init__(self, model, masks):
        super().__init__()
        self.model, self.masks = model, dict(masks)

    def forward(self, x):
        tied = {"fc3.weight": self.model.fc2.weight * self.masks["fc2.weight"]}
        weights = dict(self.model.named_parameters())
        return functional_call(
            self.model, {**{n: weights[n] * m for n, m in self.masks.items()}, **tied}, (x,), tie_weights=False
        )


def plain(net, optimizer, batches, *, clip=None, accumulate=1, extra=None):
    for i, (x, y) in enumerate(batches):
        if i % accumulate == 0:
            optimizer.zero_grad()
        functional.cross_entropy(net(x), y).backward()
        if (i + 1) % accumulate:
            continue
        if extra is not None:
            extra(net)
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()


def pruned_zero(net, masks):
    """Exactly +0.0, all bits of it."""
    for name, weight in masks.weights(net).items():
        size = {4: torch.int32, 8: torch.int64, 2: torch.int16}[weight.element_size()]
        assert not weight.detach()[~masks[name]].view(size).any(), name


def same_left(net, free, masks):
    """Unpruned weights, and all other tensors, are those of the oracle, bit for bit."""
    for (name, mine), theirs in zip(net.named_parameters(), free.parameters(), strict=True):
        keep = masks[name] if name in masks else torch.ones_like(mine, dtype=torch.bool)
        assert torch.equal(mine.detach()[keep], theirs.detach()[keep]), name
    for mine, theirs in zip(net.buffers(), free.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def race(make, *, groups=lambda net: list(net.parameters()), train=plain, left=0.4, **how):
    """Train a held network and the oracle with the same optimizer on the same batches."""
    torch.manual_seed(1)
    net = Net()
    masks = some(net, left=left)
    masks.apply(net)
    free = copy.deepcopy(net)
    mine, theirs = make(groups(net)), make(groups(free))
    with hold(masks, net, mine):
        train(net, mine, data(6), **how)
        pruned_zero(net, masks)
    train(Masked(free, masks), theirs, data(6), **how)
    same_left(net, free, masks)
    torch.manual_seed(1)
    assert not torch.equal(Net().out.weight, net.out.weight)
    return net, masks


def split(net):
    return [
        {"params": [p for n, p in net.named_parameters() if "conv" in n], "lr": 0.01, "weight_decay": 0.0},
        {"params": [p for n, p in net.named_parameters() if "conv" not in n]},
    ]


SGD = lambda **k: lambda p: torch.optim.SGD(p, 0.1, **k)  # noqa: E731
OPTIMIZERS = {
    "sgd": SGD(),
    "momentum": SGD(momentum=0.9),
    "momentum, decay": SGD(momentum=0.9, weight_decay=0.1),
    "nesterov": SGD(momentum=0.9, nesterov=True, weight_decay=0.1),
    "dampening": SGD(momentum=0.9, dampening=0.5),
    "foreach": SGD(momentum=0.9, weight_decay=0.1, foreach=True),
    "not foreach": SGD(momentum=0.9, weight_decay=0.1, foreach=False),
    "fused": SGD(momentum=0.9, weight_decay=0.1, fused=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "adamw foreach": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, weight_decay=0.1, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01, weight_decay=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_as_if_the_mask_were_in_the_forward_pass(name):
    race(OPTIMIZERS[name])


@pytest.mark.parametrize("name", ["momentum, decay", "adamw", "fused"])
def test_gradient_accumulation(name):
    race(OPTIMIZERS[name], accumulate=3)


@pytest.mark.parametrize("name", ["momentum, decay", "adam"])
def test_parameter_groups(name):
    race(OPTIMIZERS[name], groups=split)


def test_clipping_by_norm_does_not_count_pruned_gradients():
    """The norm is summed in the order of the tensors, so that equal nonzero entries give an equal norm."""
    race(SGD(momentum=0.9), clip=0.05)
    race(SGD(momentum=0.9), clip=0.05, left=0.02)


def test_gradients_of_pruned_weights_are_zero_when_backward_returns():
    net = Net()
    masks = some(net)
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    hold(masks, net, sgd)
    functional.cross_entropy(net(data()[0][0]), data()[0][1]).backward()
    for name, weight in masks.weights(net).items():
        assert not weight.grad[~masks[name]].any()
        assert weight.grad[masks[name]].any()
    total = nn.utils.clip_grad_norm_(net.parameters(), 1e9)
    wanted = sum(float(p.grad.double().square().sum()) for p in net.parameters()) ** 0.5
    assert float(total) == pytest.approx(wanted, rel=1e-6)


def test_momentum_gathered_before_the_cut_moves_nothing():
    for make in (OPTIMIZERS["momentum"], OPTIMIZERS["adam"], OPTIMIZERS["amsgrad"], OPTIMIZERS["rmsprop"]):
        torch.manual_seed(0)
        net = Net()
        optimizer = make(net.parameters())
        plain(net, optimizer, data(3))
        masks = some(net)
        with hold(masks, net, optimizer):
            for name, weight in masks.weights(net).items():
                for value in optimizer.state[weight].values():
                    if value is not None and value.shape == weight.shape:
                        assert not value[~masks[name]].any()
                        assert value[masks[name]].any()
                assert not weight.grad[~masks[name]].any()
            optimizer.step()  # with the gradients of before the cut
            pruned_zero(net, masks)
            plain(net, optimizer, data(3))
            pruned_zero(net, masks)


def test_scaled_gradients_in_bfloat16():
    def amp(net, optimizer, batches):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for x, y in batches:
            optimizer.zero_grad()
            with torch.autocast(
                "cpu", dtype=torch.bfloat16, cache_enabled=False
            ):  # its cache sums tied gradients in bf16
                loss = functional.cross_entropy(net(x).float(), y)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()

    race(SGD(momentum=0.9, weight_decay=0.1), train=amp)
    race(OPTIMIZERS["adamw"], train=amp)


def test_a_scaler_does_not_see_overflow_in_pruned_gradients():
    net = nn.Linear(2, 1, bias=False)
    masks = Masks({"weight": torch.tensor([[True, False]])})
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    with hold(masks, net, sgd):
        before = net.weight.detach().clone()
        scaler.scale(net(torch.tensor([[1.0, float("inf")]])[:, :1].repeat(1, 2)).sum() * 1.0).backward()
        net.weight.grad = None
        scaler.scale((net.weight * torch.tensor([[1.0, float("inf")]])).nansum()).backward()
        scaler.step(sgd)
        assert net.weight[0, 0] != before[0, 0]
        assert net.weight[0, 1] == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    masks = some(net)
    adam = torch.optim.AdamW(net.parameters(), 0.01)
    with hold(masks, net, adam):
        for x, y in data():
            adam.zero_grad()
            functional.cross_entropy(net(x.flatten(1).to(dtype)).float(), y).backward()
            adam.step()
        pruned_zero(net, masks)
    assert all(bool(w.detach()[masks[n]].all()) for n, w in masks.weights(net).items())


def test_a_precision_changed_while_holding():
    net = nn.Linear(4, 3)
    masks = some(net)
    sgd = torch.optim.SGD(net.parameters(), 0.1, weight_decay=0.1)
    with hold(masks, net, sgd):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            net.to(dtype)
            sgd.zero_grad()
            net(torch.ones(1, 4, dtype=dtype)).sum().backward()
            sgd.step()
            pruned_zero(net, masks)


def test_channels_last():
    net = nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)
    masks = some(net)
    sgd = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    with hold(masks, net, sgd):
        for _ in range(2):
            sgd.zero_grad()
            net(torch.randn(2, 8, 5, 5).to(memory_format=torch.channels_last)).square().mean().backward()
            assert not net.weight.grad[~masks["weight"]].any()
            sgd.step()
        pruned_zero(net, masks)
        assert bool(net.weight[masks["weight"]].all())


def test_an_optimizer_that_moves_weights_without_gradients():
    class Noisy(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(torch.rand_like(p))

    net = Net()
    masks = some(net)
    noisy = Noisy(net.parameters(), 0.1)
    with hold(masks, net, noisy):
        plain(net, noisy, data())
        pruned_zero(net, masks)


def test_a_closure_with_lbfgs():
    """Also with a history of before the cut, no trial step leaves the masks: the closure never sees a pruned weight."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = torch.cat([x for x, _ in data()]).flatten(1), torch.cat([y for _, y in data()])
    lbfgs = torch.optim.LBFGS(net.parameters(), 0.5, max_iter=5)
    masks = some(net)
    losses = []

    def closure(held):
        def call():
            lbfgs.zero_grad()
            if held:
                pruned_zero(net, masks)
            loss = functional.cross_entropy(net(x), y)
            loss.backward()
            losses.append(float(loss.detach()))
            return loss

        return call

    lbfgs.step(closure(held=False))
    with hold(masks, net, lbfgs):
        losses.clear()
        for _ in range(3):
            lbfgs.step(closure(held=True))
        pruned_zero(net, masks)
    assert losses[-1] < losses[0]


def test_a_closure_with_sgd():
    net = Net()
    masks = some(net)
    sgd = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    x, y = data()[0]

    def closure():
        sgd.zero_grad()
        loss = functional.cross_entropy(net(x), y)
        loss.backward()
        return loss

    with hold(masks, net, sgd):
        for _ in range(3):
            sgd.step(closure)
        pruned_zero(net, masks)


def test_a_second_derivative_is_still_possible():
    net = nn.Linear(3, 1, bias=False)
    masks = Masks({"weight": torch.tensor([[True, False, True]])})
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    with hold(masks, net, sgd):
        before = net.weight.detach().clone()
        (gradient,) = torch.autograd.grad(net(torch.ones(1, 3)).square().sum(), net.weight, create_graph=True)
        gradient.square().sum().backward()
        assert net.weight.grad[0, 1] == 0
        assert torch.allclose(net.weight.grad[0, 0], 24 * before.sum())


def test_an_optimizer_of_a_part_of_the_weights():
    net = two()
    masks = some(net)
    head = torch.optim.SGD(net[2].parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    others = net[0].weight.detach().clone() * masks["0.weight"]
    with hold(masks, net, head):
        for _ in range(3):
            head.zero_grad()
            net(torch.randn(5, 4)).square().sum().backward()
            head.step()
    pruned_zero(net, masks)
    assert torch.equal(net[0].weight, others)


def test_weights_given_to_the_optimizer_later():
    net = two()
    masks = some(net)
    sgd = torch.optim.SGD(net[2].parameters(), 0.1, momentum=0.9)
    with hold(masks, net, sgd):
        sgd.add_param_group({"params": list(net[0].parameters()), "weight_decay": 0.1})
        for _ in range(3):
            sgd.zero_grad()
            net(torch.randn(5, 4)).square().sum().backward()
            sgd.step()
        pruned_zero(net, masks)


def test_frozen_weights():
    net = two()
    net[0].weight.requires_grad_(False)
    masks = Masks({"0.weight": torch.eye(3, 4) > 0, "2.weight": torch.eye(2, 3) > 0})
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    with hold(masks, net, sgd):
        net(torch.randn(5, 4)).sum().backward()
        sgd.step()
        net[0].weight.requires_grad_(True)
        net(torch.randn(5, 4)).square().sum().backward()
        sgd.step()
        pruned_zero(net, masks)


def test_an_optimizer_of_another_model():
    net = two()
    other = torch.optim.SGD(copy.deepcopy(net).parameters(), 0.1)
    before = net[0].weight.detach().clone()
    with pytest.raises(InputError, match="the optimizer trains no parameter of this Sequential"):
        hold(some(net), net, other)
    assert torch.equal(net[0].weight, before)
    hold(Masks.full(net), net, other).release()


def test_no_optimizer_at_all():
    net = two()
    before = net[0].weight.detach().clone()
    with pytest.raises(InputError, match="not a function: pass the optimizer that it wraps"):
        hold(some(net), net, lambda: None)
    assert torch.equal(net[0].weight, before)


class Wrapper(torch.optim.Optimizer):
    """As accelerate's: called an optimizer, never initialised as one, every step passed on."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)

    def step(self, closure=None):
        self.optimizer.step(closure)


class Lookahead(torch.optim.Optimizer):
    """An optimizer that writes to the weights itself after the one it holds."""

    def __init__(self, optimizer):
        super().__init__(optimizer.param_groups, {})
        self.optimizer = optimizer
        self.slow = [p.detach().clone() + 1.0 for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        self.optimizer.step(closure)
        for slow, p in zip(self.slow, (p for group in self.param_groups for p in group["params"]), strict=True):
            p.lerp_(slow, 0.5)


@pytest.mark.parametrize(
    "wrap", [Wrapper, lambda optimizer: Wrapper(Wrapper(optimizer)), Lookahead], ids=["once", "twice", "lookahead"]
)
def test_through_a_wrapped_optimizer(wrap):
    net = Net()
    masks = some(net)
    optimizer = wrap(torch.optim.AdamW(net.parameters(), 0.1, weight_decay=0.1))
    optimizer.zero_grad = lambda: net.zero_grad()
    with hold(masks, net, optimizer):
        plain(net, optimizer, data())
    assert not any(bool(w.detach()[~masks[n]].any()) for n, w in masks.weights(net).items())


@pytest.fixture
def one_process():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPERS = {
    "parallel": nn.DataParallel,
    "distributed": nn.parallel.DistributedDataParallel,
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "both": lambda net: torch.compile(nn.DataParallel(net), backend="eager"),
}


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_through_a_wrapped_model(wrap):
    net = Net()
    masks = some(net)
    wrapped = wrap(net)
    sgd = torch.optim.SGD(wrapped.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    with hold(masks, wrapped, sgd):
        plain(wrapped, sgd, data())
    assert not any(bool(w.detach()[~masks[n]].any()) for n, w in masks.weights(net).items())
    assert masks.weights(wrapped).keys() == masks.keys()
    assert masks.model_sparsity(wrapped) == masks.model_sparsity(net)


def test_a_child_called_module_is_no_wrapper():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(4, 3)
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(InputError, match="unknown masked weight 'weight'"):
        Masks({"weight": torch.ones(3, 4, dtype=torch.bool)}).weights(Own())


def hooks(net, optimizer):
    found = [h for p in net.parameters() for h in (p._post_accumulate_grad_hooks or {})]
    return len(found) + len(optimizer._optimizer_step_post_hooks)


def test_released_weights_are_free_and_nothing_stays():
    net = Net()
    masks = some(net)
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    held = hold(masks, net, sgd)
    plain(net, sgd, data())
    assert hooks(net, sgd) == len(masks) + 1
    held.release()
    held.release()
    assert hooks(net, sgd) == 0
    plain(net, sgd, data())
    assert all(bool(w.detach()[~masks[n]].any()) for n, w in masks.weights(net).items())


def test_released_when_training_throws():
    net = two()
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    with pytest.raises(KeyboardInterrupt), hold(some(net), net, sgd):
        raise KeyboardInterrupt
    assert hooks(net, sgd) == 0


@pytest.mark.parametrize("release", [True, False])
def test_no_reference_cycles(release):
    """Model, optimizer and hold go when their last name goes, without the garbage collector."""
    net = two()
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    held = hold(some(net), net, sgd)
    sgd.zero_grad()
    net(torch.randn(5, 4)).sum().backward()
    sgd.step()
    if release:
        held.release()
    gone = [weakref.ref(thing) for thing in (held, sgd, net, net[0].weight)]
    gc.collect()
    gc.disable()
    try:
        del held, sgd, net
        assert [ref() is None for ref in gone] == [True] * 4
    finally:
        gc.enable()


def test_held_without_keeping_the_hold():
    net = two()
    masks = some(net)
    sgd = torch.optim.SGD(net.parameters(), 0.1, weight_decay=0.1)
    hold(masks, net, sgd)
    gc.collect()
    net(torch.randn(5, 4)).sum().backward()
    sgd.step()
    pruned_zero(net, masks)


def test_two_holds_keep_what_both_keep():
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    a, b = some(net, 1), some(net, 2)
    sgd = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    first, second = hold(a, net, sgd), hold(b, net, sgd)

    def step():
        sgd.zero_grad()
        net(torch.randn(5, 4)).square().sum().backward()
        sgd.step()

    step()
    pruned_zero(net, a.intersect(b))
    first.release()
    for _ in range(3):
        step()
    pruned_zero(net, b)
    assert not Masks.of(net).within(a)
    second.release()
    assert hooks(net, sgd) == 0


def test_dense_masks_cost_nothing():
    net = two()
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    hold(Masks.full(net), net, sgd)
    assert hooks(net, sgd) == 0


@given(st.integers(0, 2**31), st.floats(0, 1))
@settings(max_examples=20)
def test_any_masks_are_held(seed, left):
    net = two(seed)
    masks = some(net, seed, left)
    adam = torch.optim.Adam(net.parameters(), 0.1, weight_decay=0.1)
    with hold(masks, net, adam):
        for _ in range(2):
            adam.zero_grad()
            net(torch.randn(5, 4)).square().sum().backward()
            adam.step()
    pruned_zero(net, masks)
    assert Masks.of(net).within(masks)


def trained(optimizer, between, *, steps=3):
    """Train a held network, doing something to it between the backward pass and the step."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    masks = prune(net, amount=0.6)
    made = optimizer(net.parameters())
    with hold(masks, net, made):
        for _ in range(steps):
            made.zero_grad()
            nn.functional.cross_entropy(net(torch.randn(20, 6)), torch.randint(3, (20,))).backward()
            between(net, made)
            made.step()
            for name, weight in masks.weights(net).items():
                assert not weight.detach()[~masks[name]].view(torch.int32).any(), name


def noisy_gradients(net, optimizer):
    for weight in net.parameters():
        weight.grad.add_(torch.randn_like(weight))


def other_gradients(net, optimizer):
    for weight in net.parameters():
        weight.grad = torch.randn_like(weight)


def written_weights(net, optimizer):
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1)


def loaded_momentum(net, optimizer):
    state = copy.deepcopy(optimizer.state_dict())
    for values in state["state"].values():
        for name in values:
            if isinstance(values[name], torch.Tensor) and values[name].dim():
                values[name] = torch.ones_like(values[name])
    optimizer.load_state_dict(state)


def nothing(net, optimizer):
    pass


def clipped(net, optimizer):
    nn.utils.clip_grad_norm_(net.parameters(), 0.01)


@pytest.mark.parametrize(
    "between",
    [nothing, clipped, noisy_gradients, other_gradients, written_weights, loaded_momentum],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "fused", "no eps", "NAdam"])
def test_zeros_stay_whatever_is_done_between_backward_and_step(between, optimizer):
    made = {
        "SGD": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.1),
        "Adam": lambda weights: torch.optim.Adam(weights, lr=0.1, amsgrad=True),
        "AdamW": lambda weights: torch.optim.AdamW(weights, lr=0.1),
        "fused": lambda weights: torch.optim.Adam(weights, lr=0.1, fused=True),
        "no eps": lambda weights: torch.optim.Adam(weights, lr=0.1, eps=0.0),
        "NAdam": lambda weights: torch.optim.NAdam(weights, lr=0.1),
    }[optimizer]
    trained(made, between)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
def test_holding_only_the_weights_trains_the_others_the_same_to_the_bit(optimizer):
    def trained(gradients):
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 30)
        )  # the second layer has more than 1,024 weights
        masks = prune(net, amount=0.6)
        made = getattr(torch.optim, optimizer)(net.parameters(), lr=0.05, weight_decay=0.01)
        with hold(masks, net, made, gradients=gradients):
            for _ in range(5):
                made.zero_grad()
                nn.functional.cross_entropy(net(torch.randn(20, 6)), torch.randint(3, (20,))).backward()
                made.step()
                for name, weight in masks.weights(net).items():
                    assert not weight.detach()[~masks[name]].view(torch.int32).any()
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    assert torch.equal(trained(gradients=True), trained(gradients=False))


def test_a_hold_is_what_its_context_gives():
    net = nn.Linear(3, 2)
    made = hold(Masks.full(net), net, torch.optim.SGD(net.parameters(), lr=0.1))
    with made as held:
        assert held is made


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_what_an_optimizer_has_gathered_of_weights_that_are_left_stays(kind):
    torch.manual_seed(0)
    net = nn.Linear(6, 4)
    made = kind(net.parameters(), lr=0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    net(torch.randn(8, 6)).square().sum().backward()
    made.step()
    masks = prune(net, amount=0.5)
    key = "momentum_buffer" if kind is torch.optim.SGD else "exp_avg"
    before = made.state[net.weight][key].clone()
    with hold(masks, net, made):
        after = made.state[net.weight][key]
        assert torch.equal(after[masks["weight"]], before[masks["weight"]])
        assert not after[~masks["weight"]].any()
        assert made.state[net.bias]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_without_gradients_held_a_write_that_torch_does_not_count_is_zeroed_by_the_next_step(kind):
    net = nn.Linear(40, 40)
    masks = prune(net, amount=0.5)
    made = kind(net.parameters(), lr=0.01)
    with hold(masks, net, made, gradients=False):
        for _ in range(3):
            made.zero_grad()
            net(torch.ones(2, 40)).square().sum().backward()
            net.weight.data[~masks["weight"]] = 1.0
            made.step()
            assert not net.weight[~masks["weight"]].any()


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("size", [8, 40])  # few weights, and so many that they are masked by their bits
def test_gradients_of_gradients_see_the_mask(size):
    torch.manual_seed(0)
    net, x = nn.Linear(size, size, bias=False), torch.randn(3, size)
    masks = prune(net, amount=0.5)
    with hold(masks, net, torch.optim.SGD(net.parameters(), lr=0.1)):
        net(x).tanh().square().sum().backward()  # from here on the bits are known
        net.zero_grad()
        net(x).tanh().square().sum().backward(create_graph=True)
        found = torch.autograd.grad((net.weight.grad + 1).square().sum(), net.weight)[0]
    weight = net.weight.detach().clone().requires_grad_()
    first = torch.autograd.grad((x @ weight.t()).tanh().square().sum(), weight, create_graph=True)[0]
    wanted = torch.autograd.grad((first * masks["weight"] + 1).square().sum(), weight)[0]
    torch.testing.assert_close(found, wanted)
    net.weight.grad = None  # a gradient with a graph refers to its weight in a circle


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_a_step_without_any_gradient_moves_nothing(kind):
    net = two()
    masks = some(net)
    made = kind(net.parameters(), lr=0.1)
    with hold(masks, net, made):
        net(torch.ones(2, 4)).sum().backward()
        made.step()
        made.zero_grad()
        before = [p.detach().clone() for p in net.parameters()]
        made.step()
        made.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))
