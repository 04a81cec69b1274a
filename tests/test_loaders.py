"""Training on batches of any kind: the same as on tensors, refused where it cannot be right, taken up exactly where it was left."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Sampler, TensorDataset

import incop
from incop import Masks, Watch, search, stopping
from incop.errors import InputError
from incop.loaders import Loader
from small import mlp

GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(50, 6, generator=GENERATOR)
Y = torch.randint(3, (50,), generator=GENERATOR)
DATA = TensorDataset(X, Y)


def net(dropout=0.0):
    return mlp(6, 12, 3, extra=[nn.Dropout(dropout)])


def loader(data=DATA, **more):
    return DataLoader(data, **{"batch_size": 16, "shuffle": True, **more})


def trainer(train=None, validation=None, **more):
    given = {"epochs": 2, "lr": 0.01, **more}
    return incop.Trainer(train if train is not None else loader(), validation or [(X[:20], Y[:20])], **given)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_fixed_batches_equal_a_plain_loop():
    batches = [(X[at : at + 16], Y[at : at + 16]) for at in range(0, 50, 16)]
    made, plain = net(), net()
    watch = Watch(made)
    trainer(batches, optimizer="sgd", momentum=0.0).fit(made, Masks.full(made), watch)
    stepper = torch.optim.SGD(plain.parameters(), lr=0.01)
    for inputs, labels in [*batches, *batches]:
        stepper.zero_grad()
        functional.cross_entropy(plain(inputs), labels).backward()
        stepper.step()
    torch.testing.assert_close(flat(made), flat(plain))
    assert (watch.spent.steps, watch.spent.samples, watch.spent.epochs) == (8, 100, 2.0)


def test_a_loader_gives_the_order_that_its_seed_gives():
    """The trainer seeds torch for the level, and a loader without a generator of its own draws its order from that."""
    made, plain = net(), net()
    trainer(seed=3, optimizer="sgd", momentum=0.0).fit(made, Masks.full(made), Watch(made))
    torch.manual_seed(3 * 1_000_003)
    stepper = torch.optim.SGD(plain.parameters(), lr=0.01)
    for _ in range(2):
        for inputs, labels in loader():
            stepper.zero_grad()
            functional.cross_entropy(plain(inputs), labels).backward()
            stepper.step()
    torch.testing.assert_close(flat(made), flat(plain))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, values, scale):
        return {"logits": self.two(torch.relu(self.one(values))) * scale, "extra": values}


def test_dictionaries_of_arguments_and_outputs_with_logits():
    rows = [{"values": X[k], "scale": torch.ones(1), "labels": Y[k]} for k in range(50)]
    model = Named()
    made = trainer(DataLoader(rows, batch_size=10, shuffle=True), DataLoader(rows, batch_size=10), epochs=20)
    made.fit(model, Masks.full(model), Watch(model))
    logits = model(X, torch.ones(1))["logits"]
    assert made.evaluate(model) == pytest.approx(float((logits.argmax(-1) == Y).double().mean()))
    assert made.evaluate(model) > 0.5


def test_a_batch_of_three_is_adapted_by_unpack():
    batches = [(X, Y, torch.arange(50))]
    with pytest.raises(InputError, match="a batch of 3 parts is ambiguous"):
        trainer(batches)
    made = trainer(batches, [(X, Y, Y)], unpack=lambda batch: batch[:2])
    model = net()
    made.fit(model, Masks.full(model), Watch(model))
    assert 0 <= made.evaluate(model) <= 1


class Stream(IterableDataset):
    def __iter__(self):
        yield from ((X[k], Y[k]) for k in range(50))


class SizedStream(Stream):
    def __len__(self):
        return 50


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        (iter([(X, Y)]), "the train split is an iterator, which can be read only once"),
        (((X, Y) for _ in range(2)), "the train split is an iterator"),
        (DataLoader(Stream(), batch_size=10), "does not say how many batches it has, such as a stream"),
        ([], "the train split is empty"),
        (DataLoader(TensorDataset(X), batch_size=10), "a batch of the train split has no target"),
        (X, "the train split is a Tensor: pass"),
        ({"x": X, "labels": Y}, "the train split is a dict: pass"),
        (7, "the train split is a int"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_any_training(train, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        trainer(train)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("augment", lambda x, g: x), ("prepare", lambda x: x), ("search_batch_size", 4)],
)
def test_what_a_loader_does_itself_is_refused(argument, value):
    with pytest.raises(InputError, match=f"{argument}= is of tensors in memory, and the train split is a data loader"):
        trainer(**{argument: value})


def test_looking_at_the_first_batch_leaves_random_states_and_orders_alone():
    generator = torch.Generator().manual_seed(1)
    own = loader(generator=generator)
    before, around = generator.get_state(), torch.get_rng_state()
    assert Loader(own).first.samples == 16
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), around)


def test_evaluating_on_a_loader_leaves_the_training_order_alone():
    shared = torch.Generator().manual_seed(1)

    def trained(every):
        shared.manual_seed(1)
        model = net(dropout=0.5)
        made = trainer(loader(generator=shared), loader(generator=shared))
        made.fit(model, Masks.full(model), Watch(model, every=every))
        return flat(model)

    assert torch.equal(trained(0.25), trained(2))


def test_a_loader_that_shrinks_to_nothing_says_so():
    class Once:
        def __init__(self):
            self.left = 2  # one look, one pass

        def __len__(self):
            return 1

        def __iter__(self):
            self.left -= 1
            return iter([(X, Y)] if self.left >= 0 else [])

    model = net()
    with pytest.raises(InputError, match="can be read only once"):
        trainer(Once()).fit(model, Masks.full(model), Watch(model))


class Noisy(Dataset):
    """Draws from all three generators for every sample, as augmentations do."""

    def __len__(self):
        return 50

    def __getitem__(self, k):
        noise = torch.randn(6) + random.random() + np.random.rand()
        return X[k] + 0.1 * noise.float(), Y[k]


class Jitter(nn.Module):
    """Draws from Python's generator while it trains, between the loader's own draws, as stochastic depth may."""

    def forward(self, x):
        return x * (0.9 + 0.2 * random.random()) if self.training else x


def searched(make, stop_at=None, state=None, take=None):
    """Run a search; take its state at its n-th rest, and go on from one."""
    torch.manual_seed(11)
    random.seed(11)
    np.random.seed(11)
    model, rests = nn.Sequential(*net(dropout=0.3), Jitter()), []

    def on_state(take_now):
        rests.append(1)
        if len(rests) == stop_at:
            take.append(take_now())
            raise KeyboardInterrupt

    tickets = []
    try:
        for ticket in search(
            model, make(), levels=2, rewind="init", rule=stopping.AfterEpochs(1), resume=state, on_state=on_state
        ):
            tickets.append(ticket)
    except KeyboardInterrupt:
        assert take
    return tickets, len(rests)


def same(a, b):
    return (
        a.level == b.level
        and a.record.steps == b.record.steps
        and all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)
    )


MAKERS = {
    "shuffled": lambda: trainer(loader(Noisy())),
    "own generator": lambda: trainer(loader(Noisy(), generator=torch.Generator().manual_seed(4))),
    "replacement": lambda: trainer(loader(Noisy(), shuffle=False, sampler=RandomSampler(DATA, True, 50))),
    "list": lambda: trainer([(X[:30], Y[:30]), (X[30:], Y[30:])]),
    "optimizer kept": lambda: trainer(loader(Noisy()), keep_optimizer=True),
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("stop_at", [1, 4, 7, 13])
def test_resumed_within_a_level_to_the_bit(kind, stop_at):
    whole, rests = searched(MAKERS[kind])
    taken = []
    first, _ = searched(MAKERS[kind], stop_at=min(stop_at, rests - 1), take=taken)
    rest, _ = searched(MAKERS[kind], state=taken[0])
    together = [*first, *rest]
    assert len(together) == len(whole) == 3
    assert all(map(same, together, whole))


def test_with_workers_too():
    make = lambda: trainer(loader(Noisy(), num_workers=1), epochs=1)  # noqa: E731
    whole, _ = searched(make)
    taken = []
    first, _ = searched(make, stop_at=3, take=taken)
    rest, _ = searched(make, state=taken[0])
    assert all(map(same, [*first, *rest], whole))


class Mine(Sampler):
    def __init__(self):
        self.epoch = 0

    def __len__(self):
        return 50

    def __iter__(self):
        self.epoch += 1
        return iter(torch.randperm(50, generator=torch.Generator().manual_seed(self.epoch)).tolist())


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: loader(sampler=Mine(), shuffle=False), "the order of the sampler Mine is its own"),
        (lambda: DataLoader(SizedStream(), batch_size=16), "reads a stream"),
        (lambda: type("Own", (), {"__len__": lambda s: 1, "__iter__": lambda s: iter([(X, Y)])})(), "an? Own gives"),
    ],
)
def test_an_order_that_cannot_be_taken_up_is_resumed_at_the_levels_beginning_and_told(make, why):
    tickets, rests = searched(lambda: trainer(make()))
    assert rests == 3  # the beginning of each level, nothing within
    assert any("goes on at the beginning of the level" in n for n in tickets[0].record.notices)
    with pytest.raises(AssertionError):  # nothing is told where nobody would resume
        assert any(
            "beginning of the level" in n
            for t in search(net(), trainer(make()), levels=1, rewind="init")
            for n in t.record.notices
        )
    assert trainer(make()).inexact is not None
    import re

    assert re.search(why, trainer(make()).inexact)


def test_persistent_workers_are_told():
    made = Loader(DataLoader(DATA, batch_size=16, num_workers=1, persistent_workers=True))
    assert "keeps its workers" in made.inexact


def test_a_search_on_a_loader_equals_itself_and_its_zeros_stay():
    def run():
        model = net()
        probe = loader(shuffle=False)
        tickets = list(
            search(
                model,
                trainer(),
                levels=2,
                probe=probe,
                meter=incop.flow.InformationFlow(),
                rule=stopping.parse("flow within 0.1"),
                rewind="early:1",
            )
        )
        assert Masks.of(model).within(tickets[-1].masks)
        return tickets

    assert all(map(same, run(), run()))
