import math
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from torch import nn

import incop
from incop import flow, pruning, stopping
from incop.errors import InputError, TrainingError
from incop.loop import Dense, cutting, search
from incop.rewind_points import Snapshot
from small import data
from small import normalised as net

EPOCHS = 3


def trainer(**more):
    return incop.Trainer(data(), data(60, 2), **{"epochs": EPOCHS, "batch_size": 20, "lr": 5e-3, **more})


def run(model=None, made=None, **arguments):
    model = model if model is not None else net()
    arguments = {"levels": 3, "rewind": "init", **arguments}
    return model, list(search(model, made or trainer(), **arguments))


def test_tickets_shrink_by_exactly_the_amount_and_the_first_is_dense():
    model, tickets = run(amount=0.2)
    assert [t.level for t in tickets] == [0, 1, 2, 3]
    total = remaining = tickets[0].masks.total
    assert tickets[0].masks.remaining == total
    for ticket in tickets[1:]:
        remaining -= round(0.2 * remaining)
        assert ticket.masks.remaining == remaining
        assert ticket.record.remaining == remaining
        assert ticket.sparsity == pytest.approx(1 - remaining / total)
        assert ticket.record.model_sparsity < ticket.sparsity
        for name, mask in ticket.masks.items():
            assert (ticket.weights[name][~mask] == 0).all()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, tickets[-1].weights[name])


class Spy:
    """A trainer that notes what every level starts from, and trains with incop's own."""

    def __init__(self, inner):
        self.inner, self.starts, self.froms = inner, [], []
        self.epochs = inner.epochs

    def fit(self, model, masks, watch):
        self.starts.append({k: v.detach().clone() for k, v in model.state_dict().items()})
        self.froms.append(watch.schedule_from)
        self.inner.fit(model, masks, watch)

    def evaluate(self, model):
        return self.inner.evaluate(model)


def masked(tensors, masks):
    return {k: torch.where(masks[k], v, 0.0) if k in masks else v for k, v in tensors.items()}


def same_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("rewind", "schedule_from"),
    [
        ("init", 0.0),
        ("early:1", 1.0),
        ("early:0.5", 0.5),
        ("early:4steps", 4 / 6),
        ("dense", 0.0),
        ("rate", 0.0),
        ("none", math.inf),
    ],
)
def test_every_level_starts_from_the_rewind_point_bit_for_bit(rewind, schedule_from):
    spy = Spy(trainer())
    model = net()
    initial = {k: v.detach().clone() for k, v in model.state_dict().items()}
    tickets = list(search(model, spy, levels=2, rewind=rewind))
    early = {}
    if rewind.startswith("early"):
        # the weights at that point of level 0, found again by an independent, shorter level 0
        steps = {"early:1": 6, "early:0.5": 3, "early:4steps": 4}[rewind]
        again = net()

        class Enough(Exception):
            pass

        class Stopper(incop.Watch):
            def stepped(self, samples=0, *, epoch=None):
                super().stepped(samples, epoch=epoch)
                if self.step == steps:
                    raise Enough

        with pytest.raises(Enough):
            trainer().fit(again, incop.Masks.full(again), Stopper(again))
        early = {k: v.detach().clone() for k, v in again.state_dict().items()}
    for level in (1, 2):
        base = {
            "init": initial,
            "early": early,
            "dense": tickets[0].weights,
            "rate": tickets[level - 1].weights,
            "none": tickets[level - 1].weights,
        }[rewind.split(":")[0]]
        assert same_bits(spy.starts[level], masked({k: base[k] for k in spy.starts[level]}, tickets[level].masks))
        assert spy.froms[level] == pytest.approx(schedule_from)


def test_rewinding_brings_batch_normalisation_back():
    spy = Spy(trainer())
    list(search(net(), spy, levels=1, rewind="init"))
    assert spy.starts[1]["1.num_batches_tracked"] == 0
    assert torch.equal(spy.starts[1]["1.running_var"], torch.ones(24))


def test_early_rewinding_trains_what_is_left_of_the_budget():
    _, tickets = run(rewind="early:1")
    assert [t.record.epochs for t in tickets] == [EPOCHS, EPOCHS - 1, EPOCHS - 1, EPOCHS - 1]
    assert tickets[1].record.max_epochs == EPOCHS - 1


def test_rule_ends_levels_but_not_the_first_and_last():
    _, tickets = run(rule=stopping.AfterEpochs(1))
    assert [t.record.epochs for t in tickets] == [EPOCHS, 1, 1, EPOCHS]
    assert tickets[1].record.stop_reason == "after 1 epochs"
    _, tickets = run(rule=stopping.AfterEpochs(1), last_level_full=False)
    assert [t.record.epochs for t in tickets] == [EPOCHS, 1, 1, 1]


def test_check_before_training_may_end_a_level_that_needs_none():
    _, tickets = run(rule=stopping.AfterEpochs(0), check_before=True, rewind="none")
    assert [t.record.epochs for t in tickets] == [EPOCHS, 0, 0, EPOCHS]
    assert tickets[1].record.steps == 0
    assert tickets[1].checks[0].number == 0


def test_checks_come_every_fraction_of_an_epoch_or_every_n_steps():
    _, tickets = run(levels=1, check_every=0.5)
    assert [c.epoch for c in tickets[0].checks] == pytest.approx([0.5, 1, 1.5, 2, 2.5, 3])
    _, tickets = run(levels=1, check_every="4steps")
    assert [c.step for c in tickets[0].checks] == [4, 8, 12, 16, 18]  # the last is the end of the budget


def test_sparsity_ends_the_search():
    _, tickets = run(levels=50, amount=0.5, sparsity=0.8)
    assert [round(t.sparsity, 3) for t in tickets] == [0, 0.5, 0.75, 0.8]
    assert tickets[-1].masks.remaining == 624 - round(0.8 * 624)
    assert tickets[-1].record.stop_reason == "full budget"


def test_flow_of_the_dense_network_is_the_reference():
    x, _ = data()
    _, tickets = run(probe=x, meter=flow.InformationFlow("square"), rule=stopping.FlowRestored(within=10.0))
    dense = tickets[0].record.flow
    assert tickets[0].record.distance is None
    for ticket in tickets[1:]:
        assert ticket.record.distance == pytest.approx(ticket.record.flow.distance(dense))
        assert ticket.record.probe_samples + ticket.record.record_samples >= 120
    assert tickets[1].record.epochs == 1
    assert "flow within 10" in tickets[1].record.stop_reason


def test_mask_settled_gets_the_masks_that_would_be_cut_next():
    _, tickets = run(
        made=trainer(epochs=8), rule=stopping.MaskSettled(less_than=0.9, checks=2), rewind="dense", check_every=0.5
    )
    changes = [c.mask_changes for c in tickets[1].checks]
    assert [len(c) for c in changes[:3]] == [0, 1, 2]
    assert tickets[1].record.epochs == 1.5


def test_same_seed_same_records_and_weights():
    _, first = run(rule=stopping.AccuracyRestored(), rewind="early:1")
    _, second = run(rule=stopping.AccuracyRestored(), rewind="early:1")
    for a, b in zip(first, second, strict=True):
        assert same_bits(a.weights, b.weights)
        assert a.masks == b.masks
        assert (a.record.epochs, a.record.val_accuracy, a.record.stop_reason) == (
            b.record.epochs,
            b.record.val_accuracy,
            b.record.stop_reason,
        )


def test_the_global_random_state_is_not_touched():
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    run()
    assert torch.equal(torch.rand(3), wanted)


def test_the_ledger_counts_every_epoch_step_and_sample():
    x, _ = data()
    _, tickets = run(probe=x, meter=flow.InformationFlow(), rule=stopping.AfterEpochs(2), check_every=1)
    spent = tickets[1].record
    assert (spent.epochs, spent.steps, spent.samples) == (2, 12, 240)
    assert spent.probe_samples == 0  # the rule needs no look: flow and accuracy are for the record
    assert spent.record_samples == 2 * (120 + 60)  # two checks: the probe, and the validation split
    assert spent.seconds > 0
    assert spent.record_seconds > 0 == spent.probe_seconds
    rule = stopping.FlowRestored(within=1e-9) & stopping.AccuracyRestored()
    _, tickets = run(probe=x, meter=flow.InformationFlow(), rule=rule, check_every=1)
    spent = tickets[1].record
    assert spent.probe_samples == 3 * (120 + 60)
    assert spent.record_samples == 0
    assert spent.probe_seconds > 0 == spent.record_seconds
    assert tickets[-1].record.probe_samples == 0  # nothing watches the last level


class Forgetful:
    """Trains without holding the masks."""

    def fit(self, model, masks, watch):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1)
        watch.look(accuracy=0.5)

    def evaluate(self, model):
        return 0.5


def test_a_trainer_that_lets_pruned_weights_grow_is_found_out():
    with pytest.raises(TrainingError, match=r"no longer zero after level 1.*incop\.hold"):
        run(made=Forgetful())


class Silent(Forgetful):
    def fit(self, model, masks, watch):
        pass


def test_a_trainer_that_never_looks_is_told():
    with pytest.raises(InputError, match=r"never called watch.look"):
        run(made=Silent())


class OwnLoop:
    """A stranger's trainer: only looks after each epoch, knows no budget of incop's."""

    def fit(self, model, masks, watch):
        x, y = data()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        with incop.hold(masks, model, optimizer):
            for _ in range(4):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
                if watch.look(accuracy=self.evaluate(model)).stop:
                    return

    def evaluate(self, model):
        x, y = data(60, 2)
        was = model.training
        model.eval()
        right = float((model(x).argmax(1) == y).float().mean())
        model.train(was)
        return right


@pytest.mark.parametrize("rewind", ["init", "early:1", "dense", "rate", "none"])
def test_any_trainer_with_fit_and_evaluate_will_do(rewind):
    _, tickets = run(made=OwnLoop(), rule=stopping.AfterEpochs(2), rewind=rewind)
    assert [t.record.epochs for t in tickets] == [4, 2, 2, 4]
    assert tickets[1].record.max_epochs is None


def test_a_rewind_point_that_was_never_reported_exactly_is_noted():
    _, tickets = run(made=OwnLoop(), rewind="early:0.5")
    assert "taken at 1 epochs" in tickets[0].record.notices[0]


def test_layer_that_loses_everything_is_noted():
    model = net()
    with torch.no_grad():
        model[3].weight.mul_(1e-6)
    _, tickets = run(model, made=trainer(lr=1e-12), amount=0.65, levels=1)
    assert "layer '3' has no weights left" in tickets[1].record.notices


def test_a_cut_that_leaves_nothing_is_refused():
    with pytest.raises(TrainingError, match="leave no weights at all"):
        run(amount=1.0)


@pytest.mark.parametrize(
    "asked", [{"sparsity": 0.9995}, {"ticket_at": (0.9995,)}, {"amount": pruning.EvenDamage(0.9995, 3)}]
)
def test_a_sparsity_that_leaves_nothing_is_refused_before_training(asked):
    trained = []
    with pytest.raises(InputError, match="would leave none of the 624 weights"):
        run(probe=data()[0], on_step=lambda *at: trained.append(at), **asked)
    assert not trained


def test_a_path_that_is_longer_than_the_search_is_noted():
    ends = [run(amount=pruning.SparsityPath((0.5, 0.7, 0.9)), levels=levels)[1][-1].record.notices for levels in (2, 3)]
    assert ends == [
        ("the sparsity 0.9 was not reached: 2 levels led to 0.7003; search more levels or cut more per level",),
        (),
    ]


@pytest.mark.parametrize("levels", [1, 3])
def test_a_probe_on_which_nothing_varies_is_noted_since_no_cut_shows_damage(levels):
    amount = pruning.EvenDamage(0.8, levels)
    x = data()[0]
    for probe, said in ((torch.ones_like(x), 1), (x, 0)):
        _, tickets = run(probe=probe, amount=amount, levels=levels, rewind="rate")
        notices = [notice for ticket in tickets for notice in ticket.record.notices]
        assert sum("no cut shows any damage" in notice for notice in notices) == said


def test_a_cut_of_nothing_is_noted():
    _, tickets = run(amount=0.0, levels=1)
    assert "nothing was cut" in tickets[1].record.notices[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"levels": -1}, "levels=-1"),
        ({"levels": 2.5}, "levels=2.5"),
        ({"sparsity": 1.2}, "sparsity=1.2"),
        ({"amount": 1.5}, r"Fraction\(1.5\)"),
        ({"rewind": "late"}, "unknown rewind point 'late'"),
        ({"rewind": "early:3"}, "at or past the end of the dense network's 3 epochs"),
        ({"rule": stopping.FlowRestored(within=0.1)}, "needs a meter"),
        ({"meter": flow.InformationFlow()}, "needs a probe"),
        ({"meter": flow.InformationFlow(), "probe": []}, "the probe is empty"),
        ({"meter": flow.InformationFlow(), "probe": iter([torch.ones(4, 8)])}, "iterator, which can be read only once"),
        ({"meter": flow.GradientFlow(nn.CrossEntropyLoss()), "probe": torch.ones(4, 8)}, "needs targets"),
        ({"check_every": 0}, "no stretch of training"),
        ({"skip": ["9"]}, "unknown layer to skip"),
        ({"rule": "flow within 0.1"}, "rule is a str"),
    ],
)
def test_bad_arguments_are_refused_before_any_training(arguments, sentence):
    model, spy = net(), Spy(trainer())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match=sentence):
        search(model, spy, **{"levels": 2, "rewind": "init", **arguments})
    assert not spy.starts
    assert same_bits(before, model.state_dict())


def test_a_trainer_without_evaluate_is_refused():
    class Half:
        def fit(self, model, masks, watch): ...

    with pytest.raises(InputError, match=r"has no evaluate\(\)"):
        search(net(), Half(), levels=1)


def test_model_with_one_layer_is_refused_when_a_flow_is_asked():
    with pytest.raises(InputError, match="at least two"):
        search(nn.Linear(8, 3), trainer(), levels=1, probe=data()[0], meter=flow.InformationFlow())


def test_n_of_m_selection_runs_through_a_search():
    _, tickets = run(levels=1, selection=pruning.NofM(2, 4))
    assert tickets[1].sparsity == pytest.approx(0.5)


def test_tickets_on_the_way_are_trained_in_full_and_the_search_goes_on_from_the_stop():
    rule = stopping.AfterEpochs(1)
    _, tickets = run(levels=50, amount=0.3, sparsity=0.8, ticket_at=(0.4, 0.6), rule=rule)
    reported = {round(t.sparsity, 2): t.record for t in tickets if t.record.search or t is tickets[-1]}
    assert list(reported) == [0.4, 0.6, 0.8]
    for record in reported.values():
        assert record.epochs == EPOCHS
    assert reported[0.4].search.epochs == reported[0.6].search.epochs == 1
    assert reported[0.4].searched.steps == 6
    assert all(t.record.epochs == 1 for t in tickets if t.record not in reported.values() and t.level)
    # the path of the search is that of a search that reports nothing on the way but cuts at the same places
    amounts = iter(1 - b.remaining / a.remaining for a, b in pairwise([t.masks for t in tickets]))

    class SameCuts:
        def __call__(self, competition):
            return round(next(amounts) * competition.weights.numel())

    _, plain = run(levels=len(tickets) - 1, amount=SameCuts(), rule=rule)
    for a, b in zip(tickets, plain, strict=True):
        assert a.masks == b.masks
    assert same_bits(tickets[-1].weights, plain[-1].weights)


def test_a_search_from_a_given_dense_level_is_the_same_search():
    x, _ = data()
    arguments = {"probe": x, "meter": flow.InformationFlow(), "rule": stopping.AfterEpochs(1), "levels": 2}
    for rewind in ("init", "early:1", "dense", "rate"):
        _, whole = run(rewind=rewind, keep=("init", "early:1"), **arguments)
        dense = Dense(whole[0].record, Snapshot(whole[0].weights, EPOCHS), whole[0].points)
        _, shared = run(net(seed=9), rewind=rewind, dense=dense, **arguments)
        for a, b in zip(whole, shared, strict=True):
            assert same_bits(a.weights, b.weights)
            assert a.masks == b.masks
        assert [c.flow.values for c in whole[1].checks] == [c.flow.values for c in shared[1].checks]
    with pytest.raises(InputError, match="no rewind point 'early:2'"):
        run(rewind="early:2", dense=dense, **arguments)


def test_levels_may_have_a_budget_of_their_own():
    _, tickets = run(made=trainer(level_epochs=5, schedule="cosine"), levels=1)
    assert [t.record.epochs for t in tickets] == [EPOCHS, 5]
    assert tickets[1].record.max_epochs == 5


def test_tickets_on_the_way_do_not_end_the_search():
    _, tickets = run(levels=6, amount=pruning.Target(0.9, 6), ticket_at=(0.4, 0.6), rule=stopping.AfterEpochs(1))
    assert len(tickets) == 7
    assert tickets[-1].sparsity == pytest.approx(0.9, abs=1e-3)
    assert {0.4, 0.6} <= {round(t.sparsity, 2) for t in tickets}
    _, tickets = run(levels=6, amount=0.3, sparsity=0.6, ticket_at=(0.4,))
    assert tickets[-1].sparsity == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize("beyond", [0.6, 0.8])
def test_a_ticket_where_the_search_has_ended_is_refused(beyond):
    with pytest.raises(InputError, match="where the search ends"):
        run(levels=6, amount=0.3, sparsity=0.6, ticket_at=(0.4, beyond))


# --- cuts planned by the flow


class Counting:
    """Counts what planning tries, and from which weights."""

    def __init__(self, monkeypatch):
        self.made = []
        counting = self

        class Counted(flow.Damage):
            def __init__(self, model, probe):
                super().__init__(model, probe)
                self.model_was, self.calls = Snapshot.of(model), []
                counting.made.append(self)

            def __call__(self, masks):
                self.calls.append(masks.remaining)
                self.model_was.prove(self.model)
                return super().__call__(masks)

        monkeypatch.setattr(cutting, "Damage", Counted)


EVEN = pruning.EvenDamage(0.9, levels=6, trials=4)
PROBE = data(200)[0]


def planned_run(model=None, **arguments):
    arguments = {"levels": 6, "amount": EVEN, "probe": PROBE.split(50), "rewind": "rate", **arguments}
    return run(model, rule=stopping.AfterEpochs(1), **arguments)[1]


@pytest.mark.parametrize("rewind", ["init", "early:1", "rate", "none"])
@pytest.mark.parametrize("sparsity", [None, 0.9])
def test_even_damage_ends_exactly_at_the_sparsity_in_exactly_its_levels(rewind, sparsity):
    tickets = planned_run(rewind=rewind, sparsity=sparsity)
    assert len(tickets) == 7
    assert tickets[-1].masks.remaining == round(0.1 * tickets[0].masks.total)
    remaining = [t.masks.remaining for t in tickets]
    assert all(a >= b for a, b in pairwise(remaining))
    assert remaining[-2] > remaining[-1]
    assert [t.record.epochs for t in tickets[1:]] == [1] * 5 + [EPOCHS - (rewind == "early:1")]


def test_the_path_is_planned_once_on_the_dense_network_and_charged_to_the_first_level(monkeypatch):
    counting = Counting(monkeypatch)
    tickets = planned_run()
    before, planning = counting.made  # a try on a few samples before any training, and the plan
    assert before.samples == 5 * 4  # four samples
    assert len(planning.calls) == 4
    assert planning.calls == pytest.approx([624 * 0.1 ** (k / 4) for k in (1, 2, 3, 4)], abs=1)
    assert planning.samples == 5 * 128
    dense = {k: v for k, v in tickets[0].weights.items() if k in planning.model_was.tensors}
    assert same_bits(dense, planning.model_was.tensors)
    assert [t.record.probe_samples for t in tickets] == [0, 5 * 128, 0, 0, 0, 0, 0]
    assert [t.record.probe_seconds > 0 for t in tickets] == [False, True, False, False, False, False, False]
    assert tickets[1].record.probe_seconds == pytest.approx(planning.seconds)
    # the path is that of a damage measured outside
    model = net()
    Snapshot(tickets[0].weights).rewind(model)
    path = pruning.cut.planned(model, tickets[0].masks, EVEN, damage=flow.Damage(model, PROBE[:128]))
    assert [t.masks.remaining for t in tickets[1:]] == [round((1 - s) * 624) for s in path.sparsities]


def test_planning_is_charged_beside_what_the_rule_and_the_record_look_at():
    x, _ = data()
    rule = stopping.FlowRestored(within=1e-9) | stopping.AfterEpochs(2)
    arguments = {"probe": x, "meter": flow.InformationFlow(), "levels": 3, "rewind": "rate", "check_every": 1}
    _, tickets = run(rule=rule, amount=pruning.EvenDamage(0.8, 3, trials=4), **arguments)
    assert [t.record.probe_samples for t in tickets[1:]] == [5 * 120 + 2 * 120, 2 * 120, 0]
    assert [t.record.record_samples for t in tickets[1:]] == [2 * 60, 2 * 60, 3 * (120 + 60)]


@pytest.mark.parametrize(("size", "seen"), [(2, 2), (50, 50), (127, 127), (128, 128), (200, 128)])
def test_planning_sees_128_samples_or_what_there_is(monkeypatch, size, seen):
    counting = Counting(monkeypatch)
    planned_run(probe=list(PROBE[:size].split(30)), levels=1, amount=pruning.EvenDamage(0.5, 1, trials=2))
    assert counting.made[-1].samples == 3 * seen


def test_a_planned_search_repeats_itself():
    first, second = planned_run(), planned_run()
    for a, b in zip(first, second, strict=True):
        assert same_bits(a.weights, b.weights)
        assert a.masks == b.masks

        def kept(ticket):
            return {k: v for k, v in ticket.record.to_json().items() if "seconds" not in k}

        assert kept(a) == kept(b)
    assert [t.masks for t in planned_run(net(seed=4))] != [t.masks for t in first]


def test_a_planned_search_from_a_given_dense_level_is_the_same_search(monkeypatch):
    for rewind in ("init", "rate"):
        whole = planned_run(rewind=rewind, keep=("init",))
        dense = Dense(whole[0].record, Snapshot(whole[0].weights, EPOCHS), whole[0].points)
        counting = Counting(monkeypatch)
        shared = planned_run(net(seed=9), rewind=rewind, dense=dense)
        monkeypatch.undo()
        assert same_bits(counting.made[-1].model_was.tensors, whole[0].weights)
        for a, b in zip(whole, shared, strict=True):
            assert a.masks == b.masks
            assert same_bits(a.weights, b.weights)
            assert a.record.probe_samples == b.record.probe_samples


def test_tickets_on_the_way_of_a_planned_search_end_exactly_there():
    plain = planned_run()
    tickets = planned_run(ticket_at=(0.4, 0.7), sparsity=0.9, levels=20)
    left = [t.masks.remaining for t in tickets]
    for end in (0.4, 0.7, 0.9):
        assert 624 - round(end * 624) in left
    assert left[-1] == 624 - round(0.9 * 624)
    reported = [t for t in tickets if t.record.search is not None]
    assert [t.masks.remaining for t in reported] == [624 - round(0.4 * 624), 624 - round(0.7 * 624)]
    assert all(t.record.epochs == EPOCHS and t.record.search.epochs == 1 for t in reported)
    assert len(tickets) == len(plain)  # a level that stops short is made up for by the next: the path is absolute


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"probe": None}, r"'flow to 0\.9 in 6' tries cuts before it chooses: .* or search with a probe"),
        ({"probe": []}, "the probe is empty"),
        ({"probe": PROBE[:1]}, "a probe of at least 2 samples"),
        ({"probe": torch.ones(10, 7)}, "cannot be run on a batch of the probe"),
        ({"selection": pruning.Layerwise()}, "use it with selection global"),
        ({"selection": pruning.NofM(2, 4)}, "use it with selection global"),
    ],
)
def test_what_cannot_be_planned_is_refused_before_any_training(arguments, sentence):
    model, spy = net(), Spy(trainer())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match=sentence):
        search(model, spy, **{"levels": 6, "amount": EVEN, "probe": PROBE, "rewind": "init", **arguments})
    assert not spy.starts
    assert same_bits(before, model.state_dict())


def test_a_network_that_diverged_is_told_when_its_cuts_are_planned():
    class Diverges(Spy):
        def fit(self, model, masks, watch):
            super().fit(model, masks, watch)
            with torch.no_grad():
                model[1].running_var.fill_(math.nan)

    with pytest.raises(TrainingError, match=r"'1.running_var' of the model is not finite after step \d+ of level 0"):
        planned_run(made=Diverges(trainer()))


# --- amounts of a user's own, that ask what a trial cut would do


@dataclass
class UpTo:
    """As many as do no more than this damage, by bisection."""

    harm: float
    seen: list = field(default_factory=list)

    def __call__(self, competition):
        self.seen.append(competition)
        low, high = 0, competition.weights.numel() - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if competition.damage(middle) <= self.harm else (low, middle - 1)
        return low


def test_an_own_amount_is_handed_the_damage_of_the_network_as_it_is(monkeypatch):
    counting = Counting(monkeypatch)
    _, tickets = run(amount=UpTo(0.05), probe=PROBE.split(50), rewind="rate", rule=stopping.AfterEpochs(1))
    first, second, third = counting.made  # one a level, made when the amount asks
    assert [ticket.record.probe_samples for ticket in tickets] == [0, first.samples, second.samples, third.samples]
    for damage, before, after in zip(counting.made, tickets[:-1], tickets[1:], strict=True):
        assert damage.samples == (1 + len(damage.calls)) * 128
        assert after.record.probe_seconds == pytest.approx(damage.seconds)
        assert damage.seconds > 0
        model = net()
        Snapshot(before.weights).rewind(model)
        measured = flow.Damage(model, PROBE[:128])
        assert after.masks == pruning.prune(model, UpTo(0.05), before.masks, damage=measured)


def test_an_own_amount_is_told_the_level_and_how_many_there_are():
    amount = UpTo(0.05)
    run(amount=amount, probe=PROBE, levels=3)
    assert [(one.level, one.levels) for one in amount.seen] == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("probe", [None, PROBE])
def test_an_amount_that_does_not_ask_measures_nothing(monkeypatch, probe):
    counting, seen = Counting(monkeypatch), []

    def fifth(competition):
        seen.append(competition.damage)
        return competition.weights.numel() // 5

    _, tickets = run(amount=fifth, probe=probe)
    assert not counting.made
    assert [damage is None for damage in seen] == [probe is None] * 3
    assert all(ticket.record.probe_samples == 0 for ticket in tickets)


def test_what_a_mask_rule_asks_of_an_own_amount_is_charged_to_its_look(monkeypatch):
    counting = Counting(monkeypatch)
    rule = stopping.MaskSettled(1e-9, checks=2) | stopping.AfterEpochs(2)
    _, tickets = run(amount=UpTo(0.05), probe=PROBE, rule=rule, rewind="rate", levels=2)
    cut, *looks, last = counting.made
    assert len(looks) == 2
    assert tickets[1].record.probe_samples == sum(damage.samples for damage in (cut, *looks))
    assert tickets[2].record.probe_samples == last.samples


@dataclass
class Halves:
    """Every cut goes halfway from what is left to the sparsity, in the damage of its first trial."""

    sparsity: float
    seen: list = field(default_factory=list)

    def plan(self, competition):
        self.seen.append(competition)
        share = competition.damage(competition.weights.numel() // 2)
        ends = [self.sparsity * (1 - share ** (k + 1)) for k in range(competition.levels - 1)]
        return pruning.SparsityPath((*ends, self.sparsity))

    def __call__(self, competition):
        return self.plan(competition)(competition)


def test_an_own_plan_is_made_once_on_the_dense_network_and_charged_to_the_first_level(monkeypatch):
    counting, amount = Counting(monkeypatch), Halves(0.8)
    tickets = planned_run(amount=amount, levels=4)
    assert isinstance(amount, pruning.Planned)
    trial, made = counting.made  # a trial on a few samples before training, and the plan
    assert (trial.samples, made.samples, len(made.calls)) == (2 * 4, 2 * 128, 1)
    assert same_bits({k: tickets[0].weights[k] for k in made.model_was.tensors}, made.model_was.tensors)
    assert [one.levels for one in amount.seen] == [4, 4]
    assert [ticket.record.probe_samples for ticket in tickets] == [0, 2 * 128, 0, 0, 0]
    model = net()
    Snapshot(tickets[0].weights).rewind(model)
    path = pruning.cut.planned(model, tickets[0].masks, Halves(0.8), damage=flow.Damage(model, PROBE[:128]), levels=4)
    assert [t.masks.remaining for t in tickets[1:]] == [round((1 - s) * 624) for s in path.sparsities]


@pytest.mark.parametrize("amount", [Halves(0.8), pruning.EvenDamage(0.8)])
def test_a_search_by_a_plan_is_resumed_exactly_and_not_planned_again(monkeypatch, amount):
    states = []
    whole = planned_run(amount=amount, levels=3, on_state=lambda take: states.append(take()))
    assert states[0]["path"] is None
    middle = next(state for state in states if state["level"] == 2 and state["watch/step"] > 0)
    counting = Counting(monkeypatch)
    rest = planned_run(net(seed=5), amount=amount, levels=3, resume=middle)
    assert all(damage.samples <= 9 * 4 for damage in counting.made)  # the trial before the search only
    for a, b in zip(whole[2:], rest, strict=True):
        assert (a.masks, a.record.stop_reason) == (b.masks, b.record.stop_reason)
        assert same_bits(a.weights, b.weights)
        assert a.record.probe_samples == b.record.probe_samples


def test_a_plan_that_is_no_path_is_refused_before_any_training():
    class Plans(Halves):
        def plan(self, competition):
            return [0.5, 0.8]

    spy = Spy(trainer())
    with pytest.raises(InputError, match=r"planned a list: .* a pruning.SparsityPath"):
        search(net(), spy, levels=2, amount=Plans(0.8), probe=PROBE)
    assert not spy.starts


def test_even_damage_takes_the_number_of_levels_of_the_search():
    given, taken = (planned_run(amount=pruning.EvenDamage(0.9, levels, trials=4)) for levels in (6, None))
    assert [a.masks for a in given] == [b.masks for b in taken]


@pytest.mark.parametrize("amount", ["0.2", [0.2], object()])
def test_what_is_no_amount_is_refused(amount):
    with pytest.raises(InputError, match=r"the amount is a .*: give a fraction"):
        search(net(), trainer(), levels=2, amount=amount)


def test_levels_that_go_on_from_the_last_ones_weights_say_so():
    for rewind, goes_on in [("init", False), ("early:1", False), ("dense", False), ("rate", True), ("none", True)]:
        said = []

        class Asks(Spy):
            def fit(self, model, masks, watch, said=said):
                said.append((watch.continues, watch.searching))
                super().fit(model, masks, watch)

        run(made=Asks(trainer()), rewind=rewind, rule=stopping.AfterEpochs(1), levels=3)
        # the first pruned level comes after the dense one, which was no search
        assert said == [(False, False), (False, True), (goes_on, True), (goes_on, False)]
