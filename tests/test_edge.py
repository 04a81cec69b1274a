"""The edge: the policy alone against every possible edge, and the search for it with a real network."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import incop
from incop import pruning, stopping
from incop.errors import InputError, TrainingError
from incop.loop.edge import FAMILIAR, Drop, Edge, Stop, paired_drop
from incop.recipe import LevelRecipe
from incop.records import Level

STOPS = 20


def found_by(edge_at, likeness, *, stops=STOPS):
    """Carry out the moves on a path whose stops do the job up to one; return what was chosen and what it took."""
    edge, moves = Edge(0.01), []
    while (move := edge.next()) is not None:
        kind, n = move
        moves.append(move)
        assert len(moves) < 60, moves
        if kind == "walk":
            assert n == len(edge.stops)
            edge.stops.append(Stop(len(moves), 1 - 0.8 ** (n + 1), likeness(n)))
            edge.path_ended = n == stops - 1
        else:
            drops = edge.tried if kind == "try" else edge.finished
            assert n not in drops
            drops[n] = Drop(len(moves), 0.0 if n <= edge_at else 0.05)
    return edge, moves


@given(st.integers(-1, STOPS - 1), st.integers(0, STOPS))
def test_the_sparsest_stop_that_does_the_job_is_found_wherever_the_flow_says_to_look(edge_at, familiar):
    edge, moves = found_by(edge_at, lambda n: 0.99 if n < familiar else 0.5)
    if edge_at < 0:
        assert edge.chosen is None
        assert "no ticket is within" in edge.verdict
        assert moves[-1] == ("finish", 0)  # the densest stop is given a last level in full before that is said
        return
    finished = [n for kind, n in moves if kind == "finish"]
    assert finished == [edge_at] == list(edge.finished)
    assert edge.chosen == edge.finished[edge_at]
    assert ("was not reached" in edge.verdict) == (edge_at == STOPS - 1)
    assert sum(kind == "walk" for kind, _ in moves) == len(edge.stops)  # the path is walked once


@given(st.integers(0, STOPS - 1), st.integers(-1, 1))
def test_a_guess_that_is_off_by_one_stop_takes_four_tries_at_most(edge_at, off):
    familiar = min(max(edge_at + off, 0), STOPS - 1) + 1
    _, moves = found_by(edge_at, lambda n: 0.99 if n < familiar else 0.5)
    assert sum(kind == "try" for kind, _ in moves) <= 4


@given(st.lists(st.booleans(), min_size=STOPS, max_size=STOPS), st.integers(0, STOPS))
def test_noisy_drops_end_too_and_what_is_chosen_has_passed(passes, familiar):
    edge = Edge(0.0)
    for _ in range(80):
        if (move := edge.next()) is None:
            break
        kind, n = move
        if kind == "walk":
            edge.stops.append(Stop(n, 1 - 0.8 ** (n + 1), 0.99 if n < familiar else 0.0))
            edge.path_ended = n == STOPS - 1
        else:
            (edge.tried if kind == "try" else edge.finished)[n] = Drop(n, 0.0 if passes[n] else 1.0)
    assert edge.next() is None
    assert edge.chosen is None or passes[edge.chosen.level]


def test_a_state_is_all_there_is_to_know():
    edge, _ = found_by(7, lambda n: 0.99 if n < 5 else FAMILIAR - 0.01)
    again = Edge(0.01)
    again.restore(edge.state())
    assert again == edge


def test_the_interval_is_that_of_paired_samples():
    generator = torch.Generator().manual_seed(0)
    differences = torch.randint(-1, 2, (400,), generator=generator).double()
    drop = paired_drop(3, float(differences.mean()), differences.tolist())
    half = 1.959964 * float(differences.std()) / math.sqrt(400)
    assert (drop.low, drop.high) == pytest.approx((drop.value - half, drop.value + half))
    assert paired_drop(3, 0.1, None).low is None


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "x", True, [0.1]])
def test_what_is_no_drop_is_refused(value):
    with pytest.raises(InputError, match="max_drop="):
        search(max_drop=value)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"sparsity": 0.9}, "give one of them"),
        ({"ticket_at": [0.5]}, "give one of them"),
        ({"probe": None}, "pass probe="),
        ({"rewind": "init"}, "rewind='rate'"),
    ],
)
def test_what_does_not_go_with_it_is_refused_before_training(more, words):
    with pytest.raises(InputError, match=words):
        search(**more)


X = torch.randn(400, 12, generator=torch.Generator().manual_seed(0))
Y = (X[:, :3] + 0.3 * X[:, 3:6]).argmax(1)


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3)
    )


def search(net=None, **more):
    trainer = incop.Trainer((X[:300], Y[:300]), (X[300:], Y[300:]), epochs=4, batch_size=30)
    arguments = {
        "probe": X[:100],
        "amount": pruning.EvenDamage(0.97),
        "levels": 24,
        "score": pruning.Saliency(),
        "rule": stopping.AfterEpochs(0.2),
        "check_every": 0.2,
        "rewind": "rate",
        "max_drop": 0.03,
        "search_recipe": LevelRecipe(batch=0.5, keep_optimizer=True),
        "last_recipe": LevelRecipe(budget=0.5),
    } | more
    return incop.search(net or network(), trainer, **arguments)


def plain(record):
    ignored = {"seconds", "probe_seconds", "record_seconds"}
    values = record.to_json()
    values["flow"] = None
    return {key: value for key, value in values.items() if key not in ignored}


def test_a_search_chooses_a_ticket_within_the_drop_and_leaves_the_model_with_it():
    net = network()
    found = search(net)
    tickets = list(found)
    chosen = found.chosen
    dense = tickets[0].record.val_accuracy
    assert dense - chosen.record.val_accuracy <= 0.03 + 1e-9
    assert chosen.record.drop == pytest.approx(dense - chosen.record.val_accuracy)
    assert chosen.record.drop_low <= chosen.record.drop <= chosen.record.drop_high
    assert all(torch.equal(value, chosen.weights[name]) for name, value in net.state_dict().items())
    assert incop.Masks.of(net).sparsity >= chosen.sparsity
    roles = [ticket.record.role for ticket in tickets]
    assert {"path", "tried", "finished"} <= set(roles)
    sparser = [t.record for t in tickets if t.record.drop is not None and t.sparsity > chosen.sparsity + 1e-9]
    assert all(record.drop > 0.03 for record in sparser if record.role == "finished")
    assert all(
        t.record.probe_samples >= 100 for t in tickets if t.record.role in ("tried", "finished")
    )  # its validation
    tried = [t.record for t in tickets if t.record.role == "tried"]
    assert all(record.epochs == pytest.approx(1.0) for record in tried)


def test_levels_that_try_a_stop_leave_the_path_as_it_was():
    tickets = list(search())
    tries = [n for n, ticket in enumerate(tickets) if ticket.record.role in ("tried", "finished")]
    alone = list(search(max_drop=None, last_level_full=False))
    for ticket, other in zip(tickets[: tries[0]], alone, strict=False):
        assert ticket.masks == other.masks
        assert all(torch.equal(ticket.weights[name], other.weights[name]) for name in ticket.weights)
    path = [ticket for n, ticket in enumerate(tickets) if n not in tries]
    assert len(path) > tries[0]  # the path was gone on with after a try
    for before, after, other in zip(path, path[1:], alone[1:], strict=False):
        assert after.masks.within(before.masks)
        assert after.sparsity == pytest.approx(other.sparsity)


def test_nothing_within_the_drop_is_said():
    found = search(max_drop=0.0, amount=pruning.Fraction(0.9), levels=2, last_recipe=LevelRecipe(budget=0.01))
    with pytest.raises(TrainingError, match="no ticket is within 0"):
        _ = found.chosen


def test_a_state_taken_anywhere_goes_on_to_the_same_end():
    states = []

    def keep(take):
        state = take()
        states.append({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()})

    whole = [plain(ticket.record) for ticket in search(on_state=keep)]
    roles = {record.get("role") for record in whole}
    assert {"tried", "finished"} <= roles
    picked = [s for n, s in enumerate(states) if n % 37 == 5 or (s["stop"] is not None and n % 11 == 0)]
    for state in picked[:12]:
        resumed = [plain(ticket.record) for ticket in search(resume=state)]
        assert resumed == whole[state["level"] :]


def test_a_given_network_is_the_one_that_drops_are_against():
    net = network()
    next(iter(search(net, max_drop=None, levels=1)))
    found = search(net, trained=True)
    first = next(found).record
    assert (first.epochs, first.stop_reason) == (0, "given network")
    assert isinstance(found.chosen.record, Level)
