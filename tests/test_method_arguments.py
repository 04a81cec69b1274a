"""A method by its name in Python: the same search as the command line's, and every argument can be given otherwise."""

import pytest
import torch
from torch import nn

import incop
from incop import pruning, stopping
from incop.errors import InputError
from incop.experiments.plan import Plan
from incop.experiments.preparation import prepare, resolve
from incop.recipe import LevelRecipe

SMALL = {
    "data": "digits",
    "model": "lenet-300-100",
    "limit": 400,
    "validation": 0.2,
    "max_epochs": 3.0,
    "device": "cpu",
}


def plain(record):
    values = record.to_json()
    return {key: value for key, value in values.items() if "seconds" not in key and key != "flow"}


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("incop", {"sparsity": 0.8}),
        ("incop-magnitude", {"sparsity": 0.8, "levels": 4}),
        ("incop", {"max_drop": 0.05}),
        ("lth-rate", {"levels": 2}),
        ("incop-if", {"levels": 2}),
    ],
)
def test_the_search_is_that_of_the_command_line(method, keys):
    prepared = prepare(resolve(Plan(**SMALL, method=method, seed=1, **keys)))
    there = [plain(t.record) for t in incop.search(prepared.model, prepared.trainer, **prepared.arguments)]

    again = prepare(resolve(Plan(**SMALL, method="lth", seed=1, levels=1)))
    own = again.trainer
    trainer = incop.Trainer(
        own.train, own.validation, epochs=3, batch_size=own.batch_size, lr=own.lr, momentum=own.momentum, seed=1
    )
    here = [plain(t.record) for t in incop.search(again.model, trainer, method=method, **keys)]
    assert here == there


X, Y = torch.randn(120, 6, generator=torch.Generator().manual_seed(0)), torch.arange(120) % 3


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))


class Own:
    """A user's own training, which reads its recipe from the watch."""

    epochs = 6.0

    def __init__(self):
        self.told = []

    def fit(self, model, masks, watch):
        recipe = watch.recipe
        self.told.append((watch.level, recipe))
        optimizer = torch.optim.SGD(model.parameters(), 0.05 * recipe.lr)
        batch = recipe.batch_size(30)
        steps = round(self.epochs * recipe.budget * len(X) / batch)
        with incop.hold(masks, model, optimizer):
            for step in range(1, steps + 1):
                at = torch.randint(len(X), (batch,))
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(X[at]), Y[at]).backward()
                optimizer.step()
                watch.stepped(batch, epoch=step * batch / len(X))
                if (watch.due() or step == steps) and watch.look(accuracy=self.evaluate(model)).stop:
                    return

    def evaluate(self, model):
        with torch.no_grad():
            return float((model(X).argmax(1) == Y).float().mean())


def test_an_own_fit_gets_the_whole_method():
    own = Own()
    tickets = list(incop.search(network(), own, method="incop", sparsity=0.6, levels=4, probe=X[:64]))
    assert tickets[-1].sparsity == pytest.approx(0.6, abs=0.01)
    search = LevelRecipe(1.0, 1 / 3, 2.0, keep_optimizer=True)
    assert [level for level, _ in own.told] == [0, 1, 2, 3, 4]
    assert own.told[0][1] == own.told[-1][1] == LevelRecipe()
    assert {recipe for _, recipe in own.told[1:-1]} == {search}


def test_single_arguments_go_before_the_methods():
    own = Own()
    arguments = {"amount": pruning.Fraction(0.5), "levels": 2, "rule": stopping.AfterEpochs(1), "check_every": 1.0}
    tickets = list(incop.search(network(), own, method="incop", probe=X[:64], sparsity=0.75, **arguments))
    assert [round(ticket.sparsity, 2) for ticket in tickets] == [0.0, 0.5, 0.75]


def test_what_a_method_needs_is_said():
    class Silent(Own):
        epochs = None

    with pytest.raises(InputError, match="attribute `epochs`"):
        incop.search(network(), Silent(), method="incop", sparsity=0.5)
    with pytest.raises(InputError, match="incop-if"):
        incop.search(network(), Own(), method="incop-i", sparsity=0.5)
    with pytest.raises(InputError, match="at least 1, or a method"):
        incop.search(network(), Own())
    with pytest.raises(InputError, match="probe"):
        incop.search(network(), Own(), method="incop", sparsity=0.5)


def test_a_probe_is_drawn_from_a_loader_too():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=30)
    trainer = incop.Trainer(loader, loader, epochs=2)
    assert sum(batch.samples for batch in trainer.probe(50)) == 50
    tickets = list(incop.search(network(), trainer, method="incop", sparsity=0.5, levels=2))
    assert tickets[-1].sparsity == pytest.approx(0.5, abs=0.01)
