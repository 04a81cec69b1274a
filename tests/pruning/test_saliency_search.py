"""Saliency within a search: when it gathers, what it forgets, and how a search with it is gone on with."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import optimizer as hooks

import incop
from incop import Masks, stopping
from incop.errors import Diverged, InputError
from incop.flat_state import part, under
from incop.loop.tickets import Dense
from incop.pruning import Magnitude, Saliency
from incop.pruning.saliency import FAINT

X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


def network(*extra):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [nn.Linear(6, 12), *extra, nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)]
        return nn.Sequential(*layers)


def trainer(**more):
    return incop.Trainer((X, Y), (X[:20], Y[:20]), **{"epochs": 2, "batch_size": 15, "lr": 0.01, **more})


def search(model=None, by=None, **more):
    options = {"levels": 3, "rewind": "rate", "score": Saliency(0.5, memory=20), **more}
    return incop.search(model or network(), by or trainer(), **options)


def same(ours, theirs):
    assert [ticket.level for ticket in ours] == [ticket.level for ticket in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.masks == b.masks, a.level
        assert all(torch.equal(one, b.weights[name]) for name, one in a.weights.items()), a.level


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(one, theirs[name]) for name, one in ours.items())


@pytest.fixture(autouse=True)
def _hooks_are_gone():
    yield
    assert not hooks._global_optimizer_pre_hooks
    assert not hooks._global_optimizer_post_hooks


class Notes:
    """A trainer of the user's, a plain loop over torch.optim, that notes every gradient and every weight as a step met it."""

    epochs = 2

    def __init__(self, make=lambda p: torch.optim.Adam(p, 0.01)):
        self.make, self.gradients, self.ends = make, [], []

    def fit(self, model, masks, watch):
        optimizer, weights = self.make(model.parameters()), masks.weights(model)
        self.gradients.append([])
        with incop.hold(masks, model, optimizer):
            for epoch in range(self.epochs):
                for x, y in zip(X.split(15), Y.split(15), strict=True):
                    optimizer.zero_grad()
                    functional.cross_entropy(model(x), y).backward()
                    noted = {name: weight.grad.double().numpy().copy() for name, weight in weights.items()}
                    self.gradients[-1].append(noted)
                    optimizer.step()
                    watch.stepped(len(x), epoch=epoch + (watch.step % 4 + 1) / 4)
                if watch.look().stop:
                    break
        self.ends.append({name: weight.detach().double().numpy().copy() for name, weight in weights.items()})

    def evaluate(self, model):
        return float((model(X[:20]).argmax(1) == Y[:20]).double().mean())


def mean_of(steps, memory):
    found = dict.fromkeys(steps[0], 0.0)
    for noted in steps:
        found = {n: (1 - 1 / memory) * found[n] + gradient**2 / memory for n, gradient in noted.items()}
    return found


def cut_by_hand(weights, means, masks, share, power=0.5):
    """Return the masks after a cut by the formula, in float64."""
    mean = np.concatenate([one.ravel() for one in means.values()]).mean() if means else 1.0
    scores = {n: np.abs(w) * ((means[n] / mean + FAINT) ** (power / 2) if means else 1) for n, w in weights.items()}
    left = np.concatenate([scores[n][masks[n].numpy()] for n in scores])
    bound = np.sort(left)[round(share * left.size)]
    return Masks({n: masks[n] & torch.from_numpy(score >= bound) for n, score in scores.items()})


# --- when it gathers


def test_a_loop_of_ones_own_is_cut_as_its_gradients_say():
    notes = Notes()
    tickets = list(search(by=notes, rewind="none"))
    gathered = []
    for level in (1, 2, 3):
        means = mean_of(gathered, 20) if gathered else {}  # of the levels before, but not of the dense network
        by_hand = cut_by_hand(notes.ends[level - 1], means, tickets[level - 1].masks, 0.2)
        assert tickets[level].masks == by_hand, level
        gathered += notes.gradients[level]
    assert tickets[2].masks != cut_by_hand(notes.ends[1], {}, tickets[1].masks, 0.2)


def test_a_rewind_goes_back_to_weights_and_keeps_what_was_gathered():
    notes = Notes()
    tickets = list(search(by=notes, rewind="init", levels=2))
    assert tickets[2].masks == cut_by_hand(notes.ends[1], mean_of(notes.gradients[1], 20), tickets[1].masks, 0.2)


def states_of(**more):
    """Return what was gathered by (level, step), and the tickets."""
    found = {}

    def on_state(take):
        state = take()
        found[state["level"], state["watch/step"]] = part("score", state)

    return found, list(search(on_state=on_state, **more))


def test_nothing_is_gathered_on_the_dense_level_nor_in_the_last():
    found, _ = states_of()
    assert all(not gathered for (level, _), gathered in found.items() if level == 0)
    assert not found[1, 0]
    assert all(not equal(found[level, 1], found[level, 0]) for level in (1, 2))
    assert equal(found[2, 0], found[1, 8])  # from level to level
    assert all(equal(gathered, found[2, 8]) for (level, _), gathered in found.items() if level == 3)


def test_nothing_is_gathered_after_the_rules_stop():
    rule = stopping.AfterEpochs(1)
    found, tickets = states_of(rule=rule, ticket_at=(0.2,))
    assert tickets[1].record.search.steps == 4
    assert tickets[1].record.steps == 8
    assert not equal(found[1, 3], found[1, 4])
    assert all(equal(found[1, step], found[1, 4]) for step in (5, 6, 7, 8))
    assert equal(found[2, 0], found[1, 4])
    without = list(search(rule=rule))
    assert [ticket.masks for ticket in without] == [ticket.masks for ticket in tickets]


def test_a_shared_dense_level_and_ones_own_give_the_same_tickets():
    own = list(search())
    (dense,) = incop.search(network(), trainer(), levels=0)
    shared = Dense(dense.record, incop.Snapshot(dense.weights), dense.points)
    same(list(search(dense=shared))[1:], own[1:])


class Bare(Notes):
    """Moves the weights itself, without an optimizer of torch."""

    def fit(self, model, masks, watch):
        for epoch in (1, 2):
            model.zero_grad()
            functional.cross_entropy(model(X), Y).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
            masks.apply(model)
            watch.stepped(len(X), epoch=epoch)
            if watch.look().stop:
                break


def test_where_nothing_can_be_gathered_the_record_says_so():
    tickets = list(search(by=Bare()))
    told = [[notice for notice in ticket.record.notices if "gathered nothing" in notice] for ticket in tickets]
    said = "the score 'saliency:0.5' gathered nothing in 2 steps, and the next cut goes without: "
    assert [[one.partition("no optimizer")[0] for one in level] for level in told] == [[], [said], [], []]
    assert [t.masks for t in tickets] == [t.masks for t in search(by=Bare(), score=Magnitude())]
    for ticket in (*search(), *search(by=Bare(), score=Magnitude())):
        assert not any("gathered" in notice for notice in ticket.record.notices)


def test_it_says_so_also_of_a_loop_that_tells_no_steps():
    class Silent(Bare):
        def fit(self, model, masks, watch):
            watch.stepped = lambda *told, **more: None
            super().fit(model, masks, watch)

    said = [n for ticket in search(by=Silent()) for n in ticket.record.notices if "gathered nothing" in n]
    assert [one.partition(", and")[0] for one in said] == ["the score 'saliency:0.5' gathered nothing in 2 epochs"]


# --- whose it is


def test_one_object_given_to_two_searches_gives_both_the_same_and_stays_as_it_was():
    score = Saliency(0.5, memory=20)
    first = list(search(score=score))
    assert not score.state()
    same(list(search(score=score)), first)
    net = network()
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    with score.gathering(net, Masks.full(net)):
        functional.cross_entropy(net(X), Y).backward()
        sgd.step()
    before = score.state()
    same(list(search(score=score)), first)  # nor does it read what the caller gathered
    assert equal(score.state(), before)


def test_it_cuts_otherwise_than_the_size_does():
    ours, theirs = list(search()), list(search(score=Magnitude()))
    assert ours[1].masks == theirs[1].masks  # of the dense network nothing is known
    assert ours[2].masks != theirs[2].masks
    same(list(search(score=Saliency(0.0))), theirs)


def test_two_searches_in_turn_do_not_read_each_others_gradients():
    def other():
        return search(by=trainer(seed=3, optimizer="sgd"))

    one, two = list(search()), list(other())
    first, second = search(), other()
    pairs = [(next(first), next(second)) for _ in range(4)]
    same([a for a, _ in pairs], one)
    same([b for _, b in pairs], two)


def test_a_second_network_trained_at_the_same_time_is_not_read():
    other = network()
    sgd = torch.optim.SGD(other.parameters(), 10.0)

    def on_step(*at):
        sgd.zero_grad()
        (functional.cross_entropy(other(X), Y) * 100).backward()
        sgd.step()

    same(list(search(on_step=on_step)), list(search()))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_hook_is_gone_after_an_exception(error):
    def on_step(level, epoch, step):
        assert bool(hooks._global_optimizer_pre_hooks) == (level in (1, 2))
        if level == 2:
            raise error

    with pytest.raises(error):
        list(search(on_step=on_step))
    assert not hooks._global_optimizer_pre_hooks


def test_the_hook_is_gone_between_tickets_and_after_a_search_that_is_left():
    tickets = search()
    for _ in range(3):
        next(tickets)
        assert not hooks._global_optimizer_pre_hooks
    tickets.close()
    assert not hooks._global_optimizer_pre_hooks


# --- gone on with


class DivergesOnce(Notes):
    """Says in one step of level 2 that training diverged, the first time."""

    def __init__(self):
        super().__init__()
        self.diverged = False

    def fit(self, model, masks, watch):
        stepped = watch.stepped

        def told(*args, **kwargs):
            stepped(*args, **kwargs)
            if watch.level == 2 and watch.step == 3 and not self.diverged:
                self.diverged = True
                raise Diverged("the loss is nan", "lower the learning rate")

        watch.stepped = told
        super().fit(model, masks, watch)


def test_a_level_begun_again_forgets_what_was_gathered_in_it():
    notes, begun = DivergesOnce(), {}

    def on_state(take):
        state = take()
        begun[state["level"]] = part("score", state)

    tickets = list(search(by=notes, on_divergence="retry", rewind="none", on_state=on_state))
    assert tickets[2].record.lr_share == 0.5
    assert [len(level) for level in notes.gradients] == [8, 8, 3, 8, 8]
    means = mean_of(notes.gradients[1] + notes.gradients[3], 20)
    for name, one in begun[3].items():
        np.testing.assert_allclose(one.double().numpy(), means[name], rtol=1e-5)
    assert tickets[3].masks == cut_by_hand(notes.ends[2], means, tickets[2].masks, 0.2)


class Halt(Exception):
    pass


def halted(stop, **more):
    """Search until the state at (level, step), and return it."""
    taken = []

    def on_state(take):
        state = take()
        if (state["level"], state["watch/step"]) == stop:
            taken.append(state)
            raise Halt

    with pytest.raises(Halt):
        list(search(**{key: make() for key, make in more.items()}, on_state=on_state))
    return taken[0]


KINDS = {
    "dropout and batch norm": {"model": lambda: network(nn.Dropout(0.3), nn.BatchNorm1d(12))},
    "convolutions laid out otherwise": {
        "model": lambda: nn.Sequential(
            nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 8, 2), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(16, 3)
        ).to(memory_format=torch.channels_last),
        "by": lambda: trainer(optimizer="sgd"),
    },
    "trained on after the stop": {
        "rule": lambda: stopping.AfterEpochs(1),
        "ticket_at": lambda: (0.2, 0.36),
        "levels": lambda: 4,
    },
    "until the masks have settled": {
        "rule": lambda: stopping.MaskSettled(0.02),
        "check_every": lambda: "1steps",
        "by": lambda: trainer(keep_optimizer=True),
    },
    "ready to begin again": {"on_divergence": lambda: "retry"},
}


STOPS = [(0, 5), (1, 0), (1, 1), (2, 0)]
PLACES = [
    *((next(iter(KINDS)), stop) for stop in STOPS),
    *((kind, stop) for kind in KINDS for stop in ((1, 3), (2, 1))),
]


@pytest.mark.parametrize(("kind", "stop"), PLACES)
def test_a_search_that_is_halted_goes_on_to_the_bit(kind, stop):
    makes = {"model": network, "by": trainer, **KINDS[kind]}

    def made():
        with torch.random.fork_rng():
            torch.manual_seed(4)
            return {key: make() for key, make in makes.items()}

    def go_on(state):
        with torch.random.fork_rng():
            torch.manual_seed(9)
            return list(search(**made(), resume=state))

    with torch.random.fork_rng():
        torch.manual_seed(9)
        whole = list(search(**made()))
    with torch.random.fork_rng():
        torch.manual_seed(9)
        state = halted(stop, **{key: (lambda value=value: value) for key, value in made().items()})
    assert bool(part("score", state)) == (stop[0] > 1 or stop[0] * stop[1] > 0)
    same(go_on(state), whole[stop[0] :])


def test_begun_again_after_it_was_gone_on_with_it_goes_back_as_far():
    state = halted((2, 2), on_divergence=lambda: "retry")

    class Diverging(incop.Trainer):
        def fit(self, model, masks, watch):
            if watch.level == 2 and watch.attempt == 0:
                super().fit(model, masks, Once(watch))
            else:
                super().fit(model, masks, watch)

    class Once:
        def __init__(self, watch):
            self.__dict__["watch"] = watch

        def __getattr__(self, name):
            return getattr(self.watch, name)

        def stepped(self, *args, **kwargs):
            self.watch.stepped(*args, **kwargs)
            if self.watch.step == 5:
                raise Diverged("the loss is nan", "lower the learning rate")

    found = []

    def on_state(take):
        now = take()
        if now["level"] == 2:
            found.append((now["watch/step"], part("score", now)))

    by = Diverging((X, Y), (X[:20], Y[:20]), epochs=2, batch_size=15, lr=0.01)
    list(search(by=by, on_divergence="retry", resume=state, on_state=on_state))
    steps = [step for step, _ in found]
    assert steps == [3, 4, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert equal(found[2][1], part("points/beginning 2/score", state))
    assert not equal(found[2][1], found[1][1])


def test_a_state_from_before_anything_was_gathered_goes_on():
    state = halted((2, 3))
    old = {name: value for name, value in state.items() if not name.startswith("score/")}
    tickets = list(search(resume=old))
    assert [ticket.level for ticket in tickets] == [2, 3]


class Untouched(incop.Trainer):
    def fit(self, model, masks, watch):
        raise AssertionError("it was trained")


CHANGED = {
    "another shape": ("0.weight", torch.ones(3, 3)),
    "a shape that would stretch": ("0.weight", torch.ones(1, 6)),
    "another name": ("conv.weight", torch.ones(12, 6)),
    "no tensor": ("0.weight", 3.0),
    "no squares": ("0.weight", torch.ones(12, 6, dtype=torch.int64)),
}


@pytest.mark.parametrize("change", CHANGED)
@pytest.mark.parametrize("stop", [(0, 3), (2, 3), (3, 2)], ids=["dense", "within", "last"])
def test_a_state_of_another_network_is_refused_before_training(change, stop):
    name, value = CHANGED[change]
    state = halted(stop) | under("score", {name: value})
    by = Untouched((X, Y), (X[:20], Y[:20]), epochs=2, batch_size=15)
    with pytest.raises(InputError, match=f"what the score gathered of '{name}' does not fit this network"):
        list(search(by=by, resume=state))


# --- scores of one's own


class Steps:
    """Of the user's: weights go by how often their gradient was positive."""

    def __init__(self):
        self.counts, self.of = {}, None

    def __call__(self, model, weights):
        return {name: self.counts.get(name, torch.zeros_like(w)) + w.detach().abs() for name, w in weights.items()}

    def fresh(self):
        return Steps()

    def gathering(self, model, masks, *, when=None):
        return Counting(self, masks.weights(model), when)

    def state(self):
        return {name: count.clone() for name, count in self.counts.items()}

    def restore(self, state, weights):
        self.counts = {name: count.clone() for name, count in state.items()}


class Counting:
    def __init__(self, score, weights, when):
        self.score, self.weights, self.when = score, weights, when

    def __enter__(self):
        self.handles = [
            weight.register_post_accumulate_grad_hook(lambda w, name=name: self.count(name, w))
            for name, weight in self.weights.items()
        ]

    def count(self, name, weight):
        if self.when():
            self.score.counts[name] = self.score.counts.get(name, 0) + (weight.grad > 0).float()

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()


def test_a_score_of_ones_own_gathers_as_well():
    mine = Steps()
    whole = list(search(score=mine))
    assert not mine.counts
    assert whole[2].masks != list(search(score=Magnitude()))[2].masks
    state = halted((2, 3), score=Steps)
    assert {int(one.max()) for one in part("score", state).values()} <= set(range(12))
    same(list(search(score=Steps(), resume=state)), whole[2:])


def test_one_that_lacks_a_part_is_refused_before_training():
    class Half(Saliency):
        state = None

    by = Untouched((X, Y), (X[:20], Y[:20]), epochs=2, batch_size=15)
    with pytest.raises(InputError, match=r"the score \(Half\) has gathering\(\), and not all that goes with it"):
        next(search(by=by, score=Half()))


def test_a_copied_score_is_its_own():
    score = Saliency()
    score.restore({"0.weight": torch.ones(12, 6)}, Masks.full(network()).weights(network()))
    other = copy.deepcopy(score)
    other.restore({}, {})
    assert score.state()
