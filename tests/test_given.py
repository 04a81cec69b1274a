"""A network that is already trained: level 0 measures it and trains nothing, and drops are against it."""

import pytest
import torch
from torch import nn

import incop
from incop import flow
from incop.errors import InputError
from incop.masks import Masks

torch.manual_seed(0)
X, Y = torch.randn(240, 10), torch.randint(3, (240,))


def trained_network():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(10, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X), Y).backward()
        optimizer.step()
    return net


def trainer(**more):
    return incop.Trainer((X, Y), (X, Y), **({"epochs": 2, "batch_size": 40} | more))


class Own:
    """A user's own training, which says what it was called with."""

    def __init__(self):
        self.levels = []

    def fit(self, model, masks, watch):
        self.levels.append(watch.level)
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        with incop.hold(masks, model, optimizer):
            for _ in range(3):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(X), Y).backward()
                optimizer.step()
        watch.look(accuracy=self.evaluate(model))

    def evaluate(self, model):
        model.eval()  # and leaves it so, as many do
        return float((model(X).argmax(1) == Y).float().mean())


@pytest.mark.parametrize("make", [trainer, Own])
def test_level_0_keeps_the_bits_and_trains_nothing(make):
    net, own = trained_network(), make()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        net.eval()
        accuracy = float((net(X).argmax(1) == Y).float().mean())
        net.train()
    search = incop.search(net, own, levels=2, trained=True, probe=X, meter=flow.InformationFlow())
    dense = next(search)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in dense.weights.items())
    assert net.training
    assert (dense.record.epochs, dense.record.steps, dense.record.stop_reason) == (0, 0, "given network")
    assert dense.record.val_accuracy == pytest.approx(accuracy)
    assert dense.record.flow == incop.measure(net, X, flow.InformationFlow())
    levels = [ticket.record for ticket in search]
    assert [round(level.sparsity, 2) for level in levels] == [0.2, 0.36]
    assert all(level.rewind == "rate" for level in levels)
    assert getattr(own, "levels", [1, 2]) == [1, 2]


@pytest.mark.parametrize("rewind", ["init", "early:1"])
def test_points_before_its_training_are_refused(rewind):
    with pytest.raises(InputError, match="trained already"):
        incop.search(trained_network(), trainer(), levels=1, trained=True, rewind=rewind)


@pytest.mark.parametrize("rewind", ["rate", "dense", "none"])
def test_other_rewinds_work(rewind):
    tickets = list(incop.search(trained_network(), trainer(), levels=2, trained=True, rewind=rewind))
    assert len(tickets) == 3


def test_zeros_that_are_there_are_told_or_kept():
    net = trained_network()
    masks = incop.prune(net, 0.5)
    masks.apply(net)
    told = next(incop.search(net, trainer(), levels=1, trained=True)).record.notices
    assert any("zero already (0.5000)" in sentence for sentence in told)
    *_, last = incop.search(net, trainer(), levels=1, amount=0.2, trained=True, masks=Masks.of(net))
    assert last.masks.within(masks)
    assert last.sparsity == pytest.approx(0.6, abs=0.01)


def test_masks_over_weights_that_are_not_zero_are_refused():
    net = trained_network()
    with pytest.raises(InputError, match="not zero"):
        incop.search(net, trainer(), levels=1, trained=True, masks=incop.prune(net, 0.5))


def test_an_evaluation_that_changes_the_network_leaves_no_trace():
    class Careless(Own):
        def evaluate(self, model):
            model[0].weight.data = model[0].weight.data + 1.0
            model.eval()
            return 0.5

    net = trained_network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    next(incop.search(net, Careless(), levels=1, trained=True))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
