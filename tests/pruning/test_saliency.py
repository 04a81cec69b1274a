"""What saliency gathers while a network is trained, and what it makes of it."""

import contextlib
import copy
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.optim import optimizer as hooks

import incop
from incop import Masks
from incop.errors import InputError, TrainingError
from incop.pruning import Global, Layerwise, Magnitude, NofM, Saliency, Units
from incop.pruning.saliency import FAINT, Gathers

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


def network():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def squares(score):
    return {name: one.clone() for name, one in score.state().items()}


def mean_of(gradients, memory):
    """The running mean as its formula says, a number at a time in float64."""
    found = np.zeros(gradients[0].shape)
    for gradient in gradients:
        found = (1 - 1 / memory) * found + np.asarray(gradient, np.float64) ** 2 / memory
    return found


def scored(weights, means, power):
    """The score as its formula says, in float64."""
    whole = np.concatenate([one.ravel() for one in means.values()]).mean()
    return {
        name: np.abs(np.asarray(weight, np.float64)) * (means.get(name, whole) / whole + FAINT) ** (power / 2)
        for name, weight in weights.items()
    }


def weights_of(model):
    return {name: weight.detach() for name, weight in Masks.full(model).weights(model).items()}


def agree(found, wanted, rtol=1e-5):
    assert found.keys() == wanted.keys()
    for name, one in wanted.items():
        assert found[name].shape == one.shape
        np.testing.assert_allclose(found[name].double().numpy(), one, rtol=rtol, atol=0, err_msg=name)


class Recorder:
    """Notes the gradients of a step where a user would: after backward and clipping, before the step."""

    def __init__(self, model):
        self.weights, self.seen = Masks.full(model).weights(model), {}

    def note(self):
        for name, weight in self.weights.items():
            if weight.grad is not None:
                dense = weight.grad.to_dense() if weight.grad.is_sparse else weight.grad
                self.seen.setdefault(name, []).append(dense.detach().double().numpy().copy())

    def agrees_with(self, score, rtol=1e-5):
        agree(squares(score), {name: mean_of(seen, score.memory) for name, seen in self.seen.items()}, rtol)


def loss_of(model, number=0):
    rows = slice(number % 4 * 10, number % 4 * 10 + 10)
    return functional.cross_entropy(model(X[rows]), Y[rows])


@pytest.fixture(autouse=True)
def _hooks_are_gone():
    yield
    assert not hooks._global_optimizer_pre_hooks
    assert not hooks._global_optimizer_post_hooks


# --- the mean of squared gradients

SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
NESTEROV = {"lr": 0.05, "momentum": 0.9, "nesterov": True}
OPTIMIZERS = {
    "sgd with momentum": lambda p: SGD(p, 0.05, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: SGD(p, **NESTEROV, foreach=False),
    "nesterov, all at once": lambda p: SGD(p, **NESTEROV, foreach=True),  # leaves its momentum in the gradients
    "nesterov, fused": lambda p: SGD(p, **NESTEROV, fused=True),
    "uphill": lambda p: SGD(p, 1e-3, momentum=0.9, weight_decay=0.1, maximize=True, foreach=True),
    "adam": lambda p: ADAM(p, 0.01, foreach=False),
    "adam, all at once": lambda p: ADAM(p, 0.01, weight_decay=0.1, foreach=True),
    "adam, fused": lambda p: ADAM(p, 0.01, weight_decay=0.1, fused=True),
    "adamw": lambda p: ADAMW(p, 0.01, weight_decay=0.3, fused=False),
    "adamw, fused": lambda p: ADAMW(p, 0.01, weight_decay=0.3, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, weight_decay=0.1, foreach=True),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01, foreach=True),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01, weight_decay=0.1, foreach=True),
    "adagrad, fused": lambda p: torch.optim.Adagrad(p, 0.01, fused=True),
}


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_of_every_optimizer_it_is_the_mean_of_what_backward_left(make, clip):
    net, score = network(), Saliency(memory=7)
    masks = incop.prune(net, amount=0.3)
    optimizer, recorder = make(net.parameters()), Recorder(net)
    with incop.hold(masks, net, optimizer), score.gathering(net, masks):
        for number in range(9):
            optimizer.zero_grad()
            for part in range(2):  # accumulated
                (loss_of(net, 2 * number + part) / 2).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            recorder.note()
            optimizer.step()
    recorder.agrees_with(score)
    means = {name: mean_of(seen, 7) for name, seen in recorder.seen.items()}
    agree(score(net, weights_of(net)), scored(weights_of(net), means, score.power))


@pytest.mark.parametrize(
    "make", [OPTIMIZERS[name] for name in ("sgd with momentum", "nesterov, all at once", "adam, fused")]
)
def test_a_closure_makes_the_gradients_within_the_step(make):
    net, score = network(), Saliency(memory=3)
    optimizer, recorder = make(net.parameters()), Recorder(net)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(net, len(recorder.seen.get("0.weight", ())))
        loss.backward()
        recorder.note()
        return loss

    with score.gathering(net, Masks.full(net)):
        for number in range(5):
            optimizer.step(closure) if number % 2 else optimizer.step(closure=closure)
    assert len(recorder.seen["0.weight"]) == 5
    recorder.agrees_with(score)


@pytest.mark.parametrize("to_none", [True, False])
def test_of_a_step_that_asks_its_closure_many_times_every_answer_counts(to_none):
    net, score = network(), Saliency(memory=4)
    lbfgs, recorder = torch.optim.LBFGS(net.parameters(), 0.5, max_iter=6), Recorder(net)

    def closure():
        lbfgs.zero_grad(set_to_none=to_none)
        loss = loss_of(net)
        loss.backward()
        recorder.note()
        return loss

    with score.gathering(net, Masks.full(net)):
        for _ in range(3):
            lbfgs.step(closure)
    assert len(recorder.seen["0.weight"]) > 6
    recorder.agrees_with(score)


@pytest.mark.parametrize("make", [OPTIMIZERS["nesterov, all at once"], lambda p: torch.optim.LBFGS(p, 0.5)])
def test_a_step_with_a_closure_is_what_it_is_without_being_read(make):
    def stepped(gathering):
        net, score = network(), Saliency()
        optimizer = make(net.parameters())

        def closure():
            optimizer.zero_grad()
            loss = loss_of(net)
            loss.backward()
            return loss

        with score.gathering(net, Masks.full(net)) if gathering else contextlib.nullcontext():
            losses = [optimizer.step(closure).item() for _ in range(3)]
        return losses, [one.detach().clone() for one in net.parameters()]

    losses, weights = stepped(gathering=True)
    wanted, plain = stepped(gathering=False)
    assert losses == wanted
    assert all(torch.equal(one, other) for one, other in zip(weights, plain, strict=True))


class Told(torch.optim.SGD):
    """An optimizer of the user's whose step takes something else first."""

    def step(self, loss, batch_size=1):
        assert isinstance(loss, torch.Tensor)
        for group in self.param_groups:
            group["lr"] = 0.01 * float(loss.detach()) * batch_size
        super().step()


def test_what_a_step_takes_that_is_no_closure_is_left_as_it_is():
    net, score = network(), Saliency(memory=4)
    told, recorder = Told(net.parameters(), 0.1), Recorder(net)
    with score.gathering(net, Masks.full(net)):
        told.zero_grad()
        loss = loss_of(net)
        loss.backward()
        recorder.note()
        told.step(loss, batch_size=2)
    assert told.param_groups[0]["lr"] == pytest.approx(0.02 * loss.item())
    recorder.agrees_with(score)  # once, though SGD's own step is told of as well


class Named(torch.optim.Optimizer):
    """An optimizer of the user's with things of its own under the names by which torch's fused ones are told of a scaler."""

    grad_scale = 0.5

    def found_inf(self):
        return False

    @torch.no_grad()
    def step(self):
        for weight in self.param_groups[0]["params"]:
            weight -= 0.1 * self.grad_scale * weight.grad


def test_what_an_optimizer_calls_by_a_scalers_names_is_its_own():
    net, score = network(), Saliency(memory=4)
    named, recorder = Named(net.parameters(), {}), Recorder(net)
    with score.gathering(net, Masks.full(net)):
        for number in range(3):
            named.zero_grad()
            loss_of(net, number).backward()
            recorder.note()
            named.step()
    assert score.state()
    recorder.agrees_with(score)


class Ahead(torch.optim.Optimizer):
    """An optimizer around another, as those that look ahead or share their state among processes."""

    def __init__(self, inner):
        self.inner = inner
        super().__init__(inner.param_groups, {})

    def step(self, closure=None):
        loss = None if closure is None else closure()
        self.inner.step()
        return loss


@pytest.mark.parametrize("closed", [False, True], ids=["", "closure"])
@pytest.mark.parametrize("to_none", [True, False])
def test_an_optimizer_within_another_is_read_once(to_none, closed):
    net, score = network(), Saliency(memory=4)
    ahead, recorder = Ahead(SGD(net.parameters(), **NESTEROV, foreach=True)), Recorder(net)

    def backward():
        ahead.inner.zero_grad(set_to_none=to_none)
        loss_of(net, len(recorder.seen.get("0.weight", ()))).backward()
        recorder.note()

    with score.gathering(net, Masks.full(net)):
        for _ in range(4):
            if closed:
                ahead.step(backward)
            else:
                backward()
                ahead.step()
    assert len(recorder.seen["0.weight"]) == 4
    recorder.agrees_with(score)


def test_a_step_that_threw_is_no_step_and_the_next_is_one():
    net, score = network(), Saliency(memory=4)
    sgd, recorder = SGD(net.parameters(), 0.05), Recorder(net)

    def fail():
        raise ValueError

    with score.gathering(net, Masks.full(net)):
        for number in range(4):
            with pytest.raises(ValueError, match=r"^$"):
                sgd.step(fail)
            sgd.zero_grad(set_to_none=False)
            loss_of(net, number).backward()
            recorder.note()
            sgd.step()
        recorder.note()
        sgd.step()  # once more with the same gradients
    recorder.agrees_with(score)


def test_several_optimizers_train_parts_of_one_network():
    net, score = network(), Saliency(memory=5)
    recorder = Recorder(net)
    first, second = SGD(net[0].parameters(), 0.05), ADAM(net[2].parameters(), 0.01)
    with score.gathering(net, Masks.full(net)):
        for number in range(6):
            net.zero_grad()
            loss_of(net, number).backward()
            first.step()
            if number % 3 == 0:
                second.step()
            recorder.note()
    wanted = {
        "0.weight": mean_of(recorder.seen["0.weight"], 5),
        "2.weight": mean_of(recorder.seen["2.weight"][::3], 5),
    }
    agree(squares(score), wanted)
    # the last layer is trained by none: its weights go by their size, as if their gradients were the mean
    agree(score(net, weights_of(net)), scored(weights_of(net), wanted, score.power))


def test_another_networks_steps_are_not_read():
    net, other, score = network(), network(), Saliency()
    mine, theirs = SGD(net.parameters(), 0.1), SGD(other.parameters(), 0.1)
    with score.gathering(net, Masks.full(net)):
        loss_of(net).backward()
        loss_of(other).backward()
        theirs.step()
        assert not score.state()
        mine.step()
        before = squares(score)
        theirs.step()
    assert all(torch.equal(one, before[name]) for name, one in score.state().items())
    mine.step()  # nor one's own, afterwards
    assert all(torch.equal(one, before[name]) for name, one in score.state().items())


def test_it_gathers_where_it_is_told_to():
    net, score, asked = network(), Saliency(memory=2), []
    sgd, recorder = SGD(net.parameters(), 0.1), Recorder(net)
    with score.gathering(net, Masks.full(net), when=lambda: len(asked) % 2 == 0):
        for number in range(5):
            sgd.zero_grad()
            loss_of(net, number).backward()
            if number % 2 == 0:
                recorder.note()
            sgd.step()
            asked.append(number)
    recorder.agrees_with(score)


# --- what is made of it


def gathered(*, power=0.5, memory=10, steps=4, loss_times=1.0, kind=torch.float32, lr=0.0):
    net, score = network().to(kind), Saliency(power, memory)
    sgd = SGD(net.parameters(), lr)
    with score.gathering(net, Masks.full(net)):
        for number in range(steps):
            sgd.zero_grad()
            rows = slice(number * 10, number * 10 + 10)
            (functional.cross_entropy(net(X[rows].to(kind)), Y[rows]) * loss_times).backward()
            sgd.step()
    return net, score


def order(scores):
    return torch.cat([one.double().flatten() for one in scores.values()]).argsort(stable=True)


def test_power_0_is_the_magnitude_to_the_bit():
    net, score = gathered(power=0)
    weights = weights_of(net)
    found, wanted = score(net, weights), Magnitude()(net, weights)
    assert all(torch.equal(found[name], one) for name, one in wanted.items())
    assert incop.prune(net, amount=0.4, score=score) == incop.prune(net, amount=0.4)


def test_before_anything_is_gathered_it_is_the_magnitude():
    net = network()
    weights = weights_of(net)
    assert all(torch.equal(one, weights[name].abs()) for name, one in Saliency()(net, weights).items())


def test_power_1_orders_as_the_loss_that_a_cut_adds_to_second_order():
    net, score = gathered(power=1, memory=3)
    weights, means = weights_of(net), score.state()
    flat = torch.cat([(0.5 * means[n].double() * w.double() ** 2).flatten() for n, w in weights.items()])
    alive = torch.cat([means[n].flatten() for n in weights]) > 1e-4 * flat.max()  # well above FAINT of the mean
    ours = torch.cat([one.double().flatten() for one in score(net, weights).values()])[alive]
    by_hand = flat[alive]
    apart = by_hand.argsort()
    assert alive.sum() > 100
    assert bool((ours[apart].diff() >= -1e-6 * ours[apart][1:]).all())  # but for what float32 cannot tell apart


def test_half_a_power_lies_half_way_in_logarithms():
    net, score = gathered(power=1)
    weights = weights_of(net)
    whole, size = score(net, weights), Magnitude()(net, weights)
    half = Saliency(0.5)
    half.restore(score.state(), weights)
    for name, one in half(net, weights).items():
        assert torch.allclose(one, (whole[name] * size[name]).sqrt(), rtol=1e-5)


@settings(max_examples=12, deadline=None)
@given(st.integers(-40, 40), st.sampled_from([0.25, 0.5, 1.0]))
def test_the_scale_of_the_loss_does_not_matter(exponent, power):
    net, score = gathered(power=power)
    _, other = gathered(
        power=power, loss_times=2.0**exponent
    )  # exact, so that the order is the same to the last weight
    ours, theirs = score(net, weights_of(net)), other(net, weights_of(net))
    assert all(torch.equal(one, theirs[name]) for name, one in ours.items())


@settings(max_examples=12, deadline=None)
@given(st.floats(1e-12, 1e12))
def test_nor_where_it_rounds(times):
    net, score = gathered()
    _, other = gathered(loss_times=times)
    ours, theirs = score(net, weights_of(net)), other(net, weights_of(net))
    assert all(torch.allclose(one, theirs[name], rtol=1e-4) for name, one in ours.items())


@pytest.mark.parametrize("times", [1e-30, 1e-20, 1e-18, 1e19, 1e21, 1e30])
def test_gradients_whose_squares_leave_float32_leave_scores_that_can_be_ranked(times):
    net, score = gathered(loss_times=times)
    weights = weights_of(net)
    assert all(bool(one.isfinite().all()) for one in score.state().values())
    assert all(bool(one.isfinite().all()) for one in score(net, weights).values())
    if not 1e-25 < times < 1e25:  # nothing is known of any: their size decides
        assert all(torch.equal(one, weights[name].abs()) for name, one in score(net, weights).items())
    assert incop.prune(net, amount=0.3, score=score).remaining == round(0.7 * sum(w.numel() for w in weights.values()))


def test_in_float64_such_gradients_are_like_any_other():
    net, score = gathered(kind=torch.float64)
    for times in (2.0**-70, 2.0**70):
        _, other = gathered(kind=torch.float64, loss_times=times)
        ours, theirs = score(net, weights_of(net)), other(net, weights_of(net))
        assert all(one.dtype == torch.float64 and torch.equal(one, theirs[name]) for name, one in ours.items())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_of_half_precision_squares_and_scores_are_in_float32(kind):
    net, score = network().to(kind), Saliency(memory=10)
    recorder = Recorder(net)
    sgd = SGD(net.parameters(), 0.01)
    with score.gathering(net, Masks.full(net)):
        for number in range(4):
            sgd.zero_grad()
            (functional.cross_entropy(net(X.to(kind)).float(), Y) * 1e-3 * (number + 1)).backward()
            recorder.note()
            sgd.step()
    recorder.agrees_with(score)  # squares of 1e-5 are zero in float16
    found = score(net, weights_of(net))
    assert all(one.dtype == torch.float32 for one in found.values())
    means = {name: mean_of(seen, 10) for name, seen in recorder.seen.items()}
    agree(found, scored({name: w.double() for name, w in weights_of(net).items()}, means, score.power))


@pytest.mark.parametrize(
    "given", [{"power": -0.1}, {"power": 1.1}, {"power": float("nan")}, {"power": "1"}, {"power": True}]
)
def test_a_power_out_of_range_is_refused(given):
    with pytest.raises(InputError, match=r"the power must be in \[0, 1\]"):
        Saliency(**given)


@pytest.mark.parametrize("memory", [0, -1, 2.5, True, "many"])
def test_a_memory_out_of_range_is_refused(memory):
    with pytest.raises(InputError, match="a whole number of steps, at least 1"):
        Saliency(memory=memory)


def test_it_is_called_by_its_power():
    assert [str(Saliency()), str(Saliency(0.25)), str(Saliency(1))] == ["saliency", "saliency:0.25", "saliency:1"]
    assert isinstance(Saliency(), Gathers)
    assert not isinstance(Magnitude(), Gathers)


# --- zero gradients, and none


def test_weights_without_gradient_count_as_a_hundredth_and_go_by_their_size():
    net, score = network(), Saliency(0.5)
    with torch.no_grad():
        net[0].bias[:4] = -100.0  # units that are never active
        for part in net[0], net[2]:
            part.weight.copy_(torch.linspace(0.9, 1.1, part.weight.numel()).view_as(part.weight))
    sgd = SGD(net.parameters(), 0.0)
    with score.gathering(net, Masks.full(net)):
        for number in range(4):
            sgd.zero_grad()
            loss_of(net, number).backward()
            sgd.step()
    found = score(net, weights_of(net))
    assert not score.state()["0.weight"][:4].any()
    assert torch.allclose(found["0.weight"][:4], net[0].weight[:4].abs() / 100, rtol=1e-5)
    masks = incop.prune(net, amount=10 / sum(w.numel() for w in weights_of(net).values()), score=score)
    assert masks.total - masks.remaining == 10
    gone = ~masks["0.weight"].flatten()
    assert gone.sum() + (~masks["2.weight"]).sum() + (~masks["4.weight"]).sum() == 10
    dead = gone.view(12, 6)[:4].flatten()
    assert dead.nonzero().flatten().tolist() == list(range(int(dead.sum())))  # the smallest of them first
    assert dead.sum() + (~masks["2.weight"])[:, :4].sum() >= 9


def test_if_all_gradients_were_zero_the_size_decides():
    net, score = network(), Saliency()
    sgd = SGD(net.parameters(), 0.1)
    with score.gathering(net, Masks.full(net)):
        (loss_of(net) * 0.0).backward()
        sgd.step()
    assert score.state()
    assert all(torch.equal(one, weights_of(net)[name].abs()) for name, one in score(net, weights_of(net)).items())


def test_frozen_weights_go_by_their_size_beside_the_others():
    net, score = network(), Saliency()
    net[2].weight.requires_grad_(False)
    sgd, recorder = SGD(net.parameters(), 0.01), Recorder(net)
    masks = Masks.full(net, frozen=True)
    with score.gathering(net, masks):
        for number in range(3):
            sgd.zero_grad()
            loss_of(net, number).backward()
            recorder.note()
            sgd.step()
    assert "2.weight" not in score.state()
    weights = {name: weight.detach() for name, weight in masks.weights(net).items()}
    found = score(net, weights)
    assert torch.allclose(found["2.weight"], weights["2.weight"].abs())
    agree(found, scored(weights, {n: mean_of(seen, 1000) for n, seen in recorder.seen.items()}, score.power))


class Words(nn.Module):
    def __init__(self, *, sparse):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.table, self.out = nn.Embedding(9, 4, sparse=sparse), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.table(x).mean(1))


def test_sparse_gradients_are_read_as_dense_ones():
    found = []
    for sparse in (True, False):
        net, score = Words(sparse=sparse), Saliency(memory=5)
        weights = {"table.weight": net.table.weight, "out.weight": net.out.weight}
        masks = Masks({name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()})
        first = torch.optim.SparseAdam([net.table.weight], 1e-9) if sparse else ADAM([net.table.weight], 1e-9)
        second = SGD(net.out.parameters(), 0.1)
        with score.gathering(net, masks):
            for number in range(3):
                net.zero_grad()
                words = torch.tensor([[number, number, 3], [4, 3, number]])  # some twice
                functional.cross_entropy(net(words), torch.tensor([0, 2])).backward()
                assert net.table.weight.grad.is_sparse == sparse
                first.step()
                second.step()
        found.append(squares(score))
    assert not found[0]["table.weight"][5:].any()
    assert found[0]["table.weight"][:5].all()
    assert all(torch.allclose(one, found[1][name], rtol=1e-6, atol=0) for name, one in found[0].items())


# --- gradients that are not finite


@pytest.mark.parametrize("unscaled", [False, True], ids=["", "unscaled before"])
@pytest.mark.parametrize(
    "make", [OPTIMIZERS[n] for n in ("sgd with momentum", "nesterov, all at once", "nesterov, fused", "adam, fused")]
)
def test_under_a_gradient_scaler_gradients_are_the_true_ones_and_skipped_steps_are_none(make, unscaled):
    net, score = network(), Saliency(memory=4)
    optimizer, recorder = make(net.parameters()), Recorder(net)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    with score.gathering(net, Masks.full(net)):
        for number in range(6):
            optimizer.zero_grad()
            times = torch.inf if number in (1, 3) else 1.0  # not 0: fused momentum would begin from what lay in memory
            if times == 1.0:  # the true gradients
                loss_of(net, number).backward()
                recorder.note()
                optimizer.zero_grad()
            scaler.scale(loss_of(net, number) * times).backward()
            if unscaled:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
    assert len(recorder.seen["0.weight"]) == 4
    recorder.agrees_with(score)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_is_not_remembered_for_ever(bad):
    """The weights are finite, as with an optimizer that skips such steps by itself."""
    net, score = network(), Saliency(memory=4)
    sgd, recorder = SGD(net.parameters(), 0.0), Recorder(net)
    with score.gathering(net, Masks.full(net)):
        for number in range(5):
            net.zero_grad()
            loss_of(net, number).backward()
            if number == 1:
                for name, weight in recorder.weights.items():
                    weight.grad.fill_(bad)
                    recorder.seen[name] = []  # it begins anew
            else:
                recorder.note()
            kept = {name: weight.detach().clone() for name, weight in recorder.weights.items()}
            sgd.step()
            with torch.no_grad():
                for name, weight in recorder.weights.items():
                    weight.copy_(kept[name])
    recorder.agrees_with(score)
    assert all(bool(one.isfinite().all()) for one in score(net, weights_of(net)).values())


def test_weights_that_are_not_finite_are_told_of_as_ever():
    net, score = network(), Saliency()
    sgd = SGD(net.parameters(), 0.1)
    with score.gathering(net, Masks.full(net)):
        (loss_of(net) * torch.nan).backward()
        sgd.step()
    with pytest.raises(TrainingError, match="the training diverged"):
        incop.prune(net, amount=0.2, score=score)


# --- by hand


def trained(net, masks, score, steps=8):
    adam = ADAM(net.parameters(), 0.01)
    with incop.hold(masks, net, adam), score.gathering(net, masks):
        for number in range(steps):
            adam.zero_grad()
            loss_of(net, number).backward()
            adam.step()


def test_a_user_trains_cuts_and_goes_on():
    net, score = network(), Saliency(memory=5)
    masks = Masks.full(net)
    for level in range(1, 4):
        trained(net, masks, score)
        means = {name: one.double().numpy() for name, one in score.state().items()}
        scores = scored(weights_of(net), means, score.power)
        left = np.concatenate([scores[name][masks[name].numpy()] for name in scores])
        cut = round(0.2 * masks.remaining)
        wanted = np.sort(left)[cut:]
        by_size = incop.prune(net, masks=masks, amount=0.2)
        masks = incop.prune(net, masks=masks, amount=0.2, score=score)
        assert masks != by_size
        masks.apply(net)
        kept = np.concatenate([scores[name][masks[name].numpy()] for name in scores])
        np.testing.assert_allclose(np.sort(kept), wanted, rtol=1e-5)
        assert masks.remaining == pytest.approx(masks.total * 0.8**level, abs=2)


def test_the_wrapped_network_is_read_as_well():
    net, score = network(), Saliency()
    sgd = SGD(net.parameters(), 0.01)
    compiled = torch.compile(net, backend="eager")
    with score.gathering(compiled, Masks.full(net)):
        loss_of(net).backward()
        sgd.step()
    assert score.state().keys() == weights_of(net).keys()


@pytest.mark.parametrize("selection", [Global(), Layerwise(), NofM(2, 4), Units(X)], ids=str)
def test_every_selection_takes_it(selection):
    net, score = network(), Saliency()
    trained(net, Masks.full(net), score)
    masks = incop.prune(net, amount=0.4, score=score, selection=selection)
    assert masks == incop.prune(net, amount=0.4, score=score, selection=selection)
    assert 0.3 < masks.sparsity <= 0.55
    if isinstance(selection, NofM):
        mask, scores = masks["2.weight"], score(net, weights_of(net))["2.weight"]
        for row, values in zip(mask.view(-1, 4), scores.view(-1, 4), strict=True):
            assert set(row.nonzero().flatten().tolist()) == set(values.topk(2).indices.tolist())
    assert masks != incop.prune(net, amount=0.4, selection=selection)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_scoring_leaves_weights_and_what_was_gathered_as_they_are(kind):
    net, score = gathered(kind=kind)
    weights, state = {name: one.clone() for name, one in weights_of(net).items()}, squares(score)
    first = score(net, weights_of(net))
    again = score(net, weights_of(net))
    assert all(torch.equal(one, again[name]) for name, one in first.items())
    assert all(torch.equal(one, state[name]) for name, one in score.state().items())
    assert all(torch.equal(one, weights[name]) for name, one in weights_of(net).items())


def test_what_was_gathered_is_a_copy_and_goes_on_as_it_would_have():
    net, score = network(), Saliency(memory=5)
    trained(net, Masks.full(net), score)
    state, before = score.state(), squares(score)
    twin, other = copy.deepcopy(net), score.fresh()
    assert not other.state()
    assert (other.power, other.memory) == (score.power, score.memory)
    other.restore(state, weights_of(twin))
    trained(net, Masks.full(net), score)
    assert all(torch.equal(one, before[name]) for name, one in state.items())
    trained(twin, Masks.full(twin), other)
    assert all(torch.equal(one, score.state()[name]) for name, one in other.state().items())


def test_it_lies_in_memory_as_the_weights_do_also_after_it_was_put_back():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2)).to(memory_format=torch.channels_last)
    score, sgd = Saliency(), SGD(net.parameters(), 0.01)
    with score.gathering(net, Masks.full(net)):
        net(torch.randn(5, 3, 3, 3).to(memory_format=torch.channels_last)).square().mean().backward()
        sgd.step()
    strides = score.state()["0.weight"].stride()
    assert strides == net[0].weight.stride() != net[0].weight.contiguous().stride()
    other = score.fresh()
    other.restore({name: one.contiguous() for name, one in score.state().items()}, weights_of(net))
    assert other.state()["0.weight"].stride() == strides  # a sum rounds by the order it is taken in
    for name, one in other(net, weights_of(net)).items():
        assert torch.equal(one, score(net, weights_of(net))[name])


OTHERS = {
    "of other names": {"conv.weight": torch.ones(12, 6)},
    "of other shapes": {"0.weight": torch.ones(6, 12)},
    "of shapes that would stretch": {"0.weight": torch.ones(1, 6)},
    "not tensors": {"0.weight": [1.0]},
    "not squares": {"0.weight": torch.ones(12, 6, dtype=torch.bool)},
}


@pytest.mark.parametrize("state", OTHERS.values(), ids=OTHERS)
def test_what_was_gathered_of_another_network_is_refused(state):
    score = Saliency()
    with pytest.raises(InputError, match=r"what the score gathered of '.*' does not fit this network"):
        score.restore(state, weights_of(network()))
    assert not score.state()


def test_one_score_is_not_for_two_networks():
    net, score = network(), Saliency()
    trained(net, Masks.full(net), score)
    other = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 8))
    with pytest.raises(InputError, match="begin with a fresh score"), score.gathering(other, Masks.full(other)):
        pass
    with pytest.raises(InputError, match=r"'0\.weight' does not fit this network"):
        incop.prune(other, amount=0.2, score=score)


def test_the_hook_is_gone_after_an_exception():
    net, score = network(), Saliency()
    with pytest.raises(KeyboardInterrupt), score.gathering(net, Masks.full(net)):
        raise KeyboardInterrupt
    assert not hooks._global_optimizer_pre_hooks


def test_no_gradient_graph_and_no_warning_comes_of_it():
    net, score = network(), Saliency()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(net, Masks.full(net), score)
    assert not any(
        one.requires_grad for one in (*score.state().values(), *score(net, dict(net.named_parameters())).values())
    )
