"""Training without labels: pruned levels are trained towards the dense network's outputs, and judged by them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import incop
from incop import flow, objective, pruning, stopping
from incop.distillation import AGREEMENT, ERROR, DistillationLoss, OutputError
from incop.errors import InputError

torch.manual_seed(0)
X, Y = torch.randn(120, 6), torch.randint(3, (120,))
HELD_OUT = torch.randn(50, 6)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def trainer(train=X, validation=HELD_OUT, **more):
    return incop.Trainer(
        train, validation, **({"epochs": 2, "batch_size": 32, "lr": 0.01, "objective": "dense"} | more)
    )


def searched(model, own, **more):
    return list(incop.search(model, own, **({"levels": 2, "amount": 0.4, "trained": True, "rewind": "rate"} | more)))


def weights(tickets):
    return [{name: tensor.clone() for name, tensor in ticket.weights.items()} for ticket in tickets]


def same(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one), "weights differ"


def divergence(own, dense, temperature=2.0):
    """Write the loss as a loop over the samples, (n, C)."""
    total = 0.0
    for mine, theirs in zip(own, dense, strict=True):
        p, q = torch.softmax(theirs / temperature, 0), torch.softmax(mine / temperature, 0)
        total += float((p * (p / q).log()).sum())
    return total / len(own) * temperature**2


@pytest.mark.parametrize(
    ("shape", "dim", "rows"),
    [
        ((7, 4), None, lambda t: t),
        ((3, 4, 2, 5), None, lambda t: t.permute(0, 2, 3, 1).reshape(-1, 4)),
        ((3, 5, 4), -1, lambda t: t.reshape(-1, 4)),
        ((3, 4, 5), 1, lambda t: t.transpose(1, 2).reshape(-1, 4)),
    ],
)
def test_the_divergence_is_that_of_a_loop_over_samples_pixels_or_tokens(shape, dim, rows):
    own, dense = torch.randn(shape), torch.randn(shape)
    loss = DistillationLoss(dim=dim)
    assert float(loss(own, dense)) == pytest.approx(divergence(rows(own), rows(dense)), rel=1e-5)
    assert float(loss(own, own)) == pytest.approx(0.0, abs=1e-6)
    agreement = (rows(own).argmax(1) == rows(dense).argmax(1)).float().mean()
    assert loss.value(loss.totals(own, dense)) == pytest.approx(float(agreement))


def test_several_outputs_are_summed_and_logits_are_taken_alone():
    a, b, c, d = (torch.randn(5, 3) for _ in range(4))
    for loss in (DistillationLoss(), OutputError()):
        summed = float(loss(a, c) + loss(b, d))
        for form in (tuple, list, lambda pair: dict(zip("xy", pair, strict=True))):
            assert float(loss(form((a, b)), form((c, d)))) == pytest.approx(summed)
        assert float(loss({"hidden": b, "logits": a}, {"hidden": d, "logits": c})) == float(loss(a, c))
    error = OutputError()
    of_both = functional.mse_loss(a, c) + functional.mse_loss(b, d)
    assert error.value(error.totals((a, b), (c, d))) == pytest.approx(float(of_both))


def test_labels_change_nothing():
    alone, with_labels = trainer(), trainer((X, Y), (HELD_OUT, Y[:50]))
    assert (alone.measures, with_labels.measures) == (AGREEMENT, incop.records.ACCURACY)
    same(weights(searched(network(), alone)), weights(searched(network(), with_labels)))


def test_it_is_the_loss_against_the_given_network_by_hand():
    net, dense = network(), network().eval()
    ticket = searched(net, trainer(batch_size=120, epochs=1, optimizer="sgd", lr=0.5, momentum=0.0), levels=1)[-1]
    by_hand = network()
    masks = incop.prune(by_hand, amount=0.4)
    masks.apply(by_hand)
    with torch.random.fork_rng():
        torch.manual_seed(0 + 1)  # as the trainer does in level 1
        order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
        by_hand.train()
        functional.kl_div(
            (by_hand(X[order]) / 2).log_softmax(1), (dense(X[order]) / 2).softmax(1), reduction="batchmean"
        ).mul(4).backward()
    for parameter in by_hand.parameters():
        parameter.data -= 0.5 * parameter.grad
    masks.apply(by_hand)
    for name, weight in by_hand.named_parameters():
        assert torch.allclose(ticket.weights[name], weight, atol=1e-6), name


def test_outputs_that_are_kept_train_as_those_of_every_batch_and_cost_once(monkeypatch):
    kept = searched(network(), trainer())
    monkeypatch.setattr(objective, "KEPT_BYTES", 100)
    anew = searched(network(), trainer())
    for one, other in zip(weights(kept), weights(anew), strict=True):
        assert all(torch.allclose(one[name].float(), other[name].float(), atol=1e-4) for name in one)
    looks = 50 * 2  # of every level: recorded, since no rule asks for them
    assert [t.record.probe_samples for t in kept] == [0, 120 + 50, 0]
    assert [t.record.record_samples for t in kept] == [0, looks, looks]
    assert [t.record.probe_samples for t in anew] == [0, 120 + 50 + 240, 240]
    assert [t.record.record_samples for t in anew] == [0, 2 * looks, 2 * looks]
    assert [t.record.samples for t in kept] == [t.record.samples for t in anew] == [0, 240, 240]


class Twice(nn.Module):
    """Two outputs: numbers, in the form that it is made with."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(2)
        self.body, self.form = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)), form

    def forward(self, x):
        out = self.body(x)
        return self.form((out[:, :1], out[:, 1:]))


@pytest.mark.parametrize("form", [tuple, list, lambda pair: {"a": pair[0], "b": pair[1]}])
def test_numbers_in_several_outputs(form):
    own = trainer(loss=functional.mse_loss, epochs=30)
    assert own.measures == ERROR
    first, *_, last = searched(Twice(form), own, levels=1, amount=0.3)
    assert first.record.metric_value == 0.0
    pruned = Twice(form)
    incop.prune(pruned, amount=0.3).apply(pruned)
    assert 0.0 < last.record.metric_value < own.evaluate(pruned) / 2
    dense, sparse = Twice(tuple), Twice(tuple)
    last.load_into(sparse)
    with torch.no_grad():
        wanted = sum(functional.mse_loss(a, b) for a, b in zip(sparse(HELD_OUT), dense(HELD_OUT), strict=True))
    assert last.record.metric_value == pytest.approx(float(wanted), rel=1e-4)


def test_pixel_wise_classes():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    dense, images = copy.deepcopy(net), torch.randn(40, 2, 6, 6)
    own = trainer(images, images[:10], batch_size=10)
    ticket = searched(net, own, levels=1)[-1]
    agreement = (net(images[:10]).argmax(1) == dense(images[:10]).argmax(1)).float().mean()
    assert ticket.record.metric_value == pytest.approx(float(agreement))
    assert 0.5 < agreement < 1


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.embed, self.out = nn.Embedding(11, 8), nn.Linear(8, 11)

    def forward(self, ids, attention_mask=None):
        return {"logits": self.out(self.embed(ids))}


def test_tokens_and_padding_does_not_count():
    ids, mask = torch.randint(1, 11, (40, 5)), torch.ones(40, 5, dtype=torch.int64)
    mask[:, 3:] = 0
    other = torch.where(mask == 1, ids, torch.randint(1, 11, (40, 5)))  # other padding

    def batches(tokens):
        return [{"ids": tokens[at : at + 10], "attention_mask": mask[at : at + 10]} for at in range(0, 40, 10)]

    found = []
    for tokens in (ids, other):
        own = trainer(batches(tokens), batches(tokens), loss=flow.TokenLoss())
        tickets = searched(Tokens(), own, levels=1, amount=0.9)
        found.append((weights(tickets), tickets[-1].record.metric_value))
    for one, other_weights in zip(found[0][0], found[1][0], strict=True):
        assert all(torch.allclose(one[name], other_weights[name], atol=1e-6) for name in one)
    assert found[0][1] == found[1][1] < 1


def test_a_function_of_ones_own():
    handed = []

    def absolute(output, dense_output):
        handed.append((output.requires_grad, dense_output.requires_grad))
        return (output - dense_output).abs().mean()

    own = trainer(objective=absolute)
    assert own.measures == AGREEMENT  # the loss says that outputs are class scores
    searched(network(), own, levels=1)
    assert (True, False) in handed
    assert all(not dense for _, dense in handed)
    said = trainer(objective=DistillationLoss(dim=1, temperature=1.0), loss=functional.mse_loss)
    assert said.measures == AGREEMENT


def test_data_loaders_of_inputs_alone_and_augmentation():
    loader = DataLoader(TensorDataset(X), batch_size=32, shuffle=True)
    tickets = searched(network(), trainer(loader, [HELD_OUT]))
    assert [t.record.metric.name for t in tickets] == ["agreement"] * 3
    assert tickets[1].record.probe_samples == 240  # once a batch
    seen = []

    def augment(inputs, generator):
        seen.append(len(inputs))
        return inputs + 0.1 * torch.randn(inputs.shape, generator=generator)

    tickets = searched(network(), trainer(augment=augment))
    assert tickets[1].record.probe_samples == 240 + 50
    assert sum(seen) == 480


def test_an_untrained_network_learns_from_labels_first_and_the_search_keeps_one_copy():
    torch.manual_seed(5)
    net = network()
    own = trainer((X, Y), (HELD_OUT, Y[:50]))
    labelled = trainer((X, Y), (HELD_OUT, Y[:50]), objective="labels")
    tickets, by_labels = (searched(n, o, trained=False, rewind="dense") for n, o in ((net, own), (network(), labelled)))
    same(weights(tickets[:1]), weights(by_labels[:1]))
    assert not torch.equal(tickets[1].weights["0.weight"], by_labels[1].weights["0.weight"])
    dense = own.dense_network
    assert not dense.training
    assert not any(parameter.requires_grad for parameter in dense.parameters())
    assert all(torch.equal(tensor, tickets[0].weights[name]) for name, tensor in dense.named_parameters())
    assert labelled.dense_network is None


def test_a_trainer_used_again_forgets_the_first_dense_network():
    own = trainer()
    first = weights(searched(network(), own))
    other = network()
    with torch.no_grad():
        other[0].weight.mul_(-1)
    assert searched(other, own)[0].record.metric_value == 1.0
    again = searched(network(), own)
    same(weights(again), first)
    assert again[1].record.probe_samples == 170


class Halt(Exception):
    pass


class Diverging(incop.Trainer):
    """Level 1 diverges the first time, at its end."""

    def fit(self, model, masks, watch):
        super().fit(model, masks, watch)
        if watch.level == 1 and watch.attempt == 0:
            raise incop.errors.Diverged("the test diverged")


def halted(stop, kind, split, more):
    """Search, halted at the so-manieth place where it can be gone on from, and gone on with by another trainer."""
    states, found, places = [], {}, []

    def on_state(take):
        places.append(len(places))
        if len(places) == stop:
            states.append(copy.deepcopy(take()))
            raise Halt

    def going(**how):
        own = kind(*split, epochs=2, batch_size=48, lr=0.01, objective="dense")
        for ticket in incop.search(network(), own, **({"levels": 2, "amount": 0.4} | more | how)):
            found[ticket.level] = ticket

    try:
        going(on_state=on_state)
    except Halt:
        going(resume=states[0])
    return found, len(places)


WAYS = {
    "given": {"rewind": "rate"},
    "trained": {"rewind": "rate", "trained": False},
    "every batch": {"rewind": "rate"},
    "retry": {"rewind": "rate", "on_divergence": "retry"},
    "dense rewind": {"rewind": "dense"},
    "offloaded": {"rewind": "rate", "offload": "cpu"},
}


@pytest.mark.parametrize("way", WAYS)
def test_going_on_is_bit_identical(way, monkeypatch):
    if way == "every batch":
        monkeypatch.setattr(objective, "KEPT_BYTES", 100)
    split = ((X, Y), (HELD_OUT, Y[:50])) if way == "trained" else (X, HELD_OUT)
    arguments = Diverging if way == "retry" else incop.Trainer, split, {"trained": True} | WAYS[way]
    whole, places = halted(None, *arguments)
    assert places >= 14
    for stop in range(1, places + 1, 1 if way in ("given", "retry") else 3):
        cut, _ = halted(stop, *arguments)
        assert cut
        for level, ticket in cut.items():
            same([dict(ticket.weights)], [dict(whole[level].weights)])
            for name in ("probe_samples", "record_samples", "samples", "metric_value", "steps"):
                assert getattr(ticket.record, name) == getattr(whole[level].record, name), (stop, level, name)


def test_the_state_holds_the_dense_weights_once_as_a_point():
    states = []
    tickets = searched(network(), trainer(), on_state=lambda take: states.append(take()))
    names = [{key for key in state if key.startswith("points/")} for state in states]
    assert all(one == {f"points/dense/{name}" for name in tickets[0].weights} for one in names)
    labelled = []
    own = trainer((X, Y), (X, Y), objective="labels")
    searched(network(), own, on_state=lambda take: labelled.append(take()))
    assert not any(key.startswith(("points/", "trainer/dense")) for state in labelled for key in state)


class Fixed(nn.Linear):
    def __deepcopy__(self, memo):
        raise RuntimeError("only one of me")


def refused(make, *sentences):
    with pytest.raises(InputError) as told:
        make()
    for sentence in sentences:
        assert sentence in str(told.value)
    assert "\n" not in str(told.value)


def test_what_is_refused_before_any_training():
    before = network()

    def search_of(model, own, **more):
        return lambda: searched(model, own, **more)

    net = network()
    refused(search_of(net, trainer(), trained=False), "the train split has no targets", "trained=True")
    same([net.state_dict()], [before.state_dict()])
    refused(search_of(Fixed(6, 3), trainer()), "cannot be copied", "only one of me")
    refused(lambda: trainer(objective="labels"), "the train split is a Tensor")
    refused(lambda: trainer([X], [X], objective="labels"), "has no target")
    refused(lambda: trainer(objective="lables"), "lables", "labels")
    refused(lambda: trainer(objective=3), "objective=3")
    refused(lambda: trainer(X[:0]), "0 inputs")
    refused(lambda: trainer(metric=functional.l1_loss, higher_is_better=False), "l1_loss", "no targets")
    refused(lambda: DistillationLoss(temperature=0), "temperature=0")
    refused(lambda: DistillationLoss(dim=0), "dim=0")
    refused(search_of(nn.Linear(6, 1), trainer()), "no class scores", "mse_loss")
    tokens = torch.randint(11, (20, 5))
    refused(search_of(Tokens(), trainer(tokens, tokens)), "DistillationLoss(dim=-1)")
    refused(search_of(network(), trainer(objective=lambda a, b: a - b)), "one number")


def test_outputs_that_differ_between_training_and_evaluation_are_refused():
    class Moody(nn.Linear):
        def forward(self, x):
            return (super().forward(x), x) if self.training else super().forward(x)

    refused(lambda: searched(Moody(6, 3), trainer()), "do not fit the dense network's", "in training and")


def test_training_that_diverges_is_said():
    with pytest.raises(incop.TrainingError, match=r"the loss is (nan|inf) at step"):
        searched(network(), trainer(lr=1e30, optimizer="sgd"))


def test_the_sparsest_network_that_agrees_is_found_without_any_label():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
    trainer = incop.Trainer(x[:200], x[200:], epochs=3, batch_size=20, objective="dense")
    found = incop.search(
        net,
        trainer,
        probe=x[:100],
        amount=pruning.EvenDamage(0.9),
        levels=12,
        rule=stopping.AfterEpochs(0.2),
        check_every=0.2,
        trained=True,
        max_drop=0.1,
    )
    chosen = found.chosen.record
    assert chosen.metric.name == "agreement"
    assert chosen.metric_value >= 0.9 - 1e-9
    assert chosen.drop == pytest.approx(1.0 - chosen.metric_value)
