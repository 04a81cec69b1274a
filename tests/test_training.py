import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_pre_hook

import incop
from incop import Masks, Watch, flow, pruning, stopping
from incop.errors import InputError, TrainingError
from incop.records import Interval
from small import mlp

GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(50, 6, generator=GENERATOR)
Y = torch.randint(3, (50,), generator=GENERATOR)


def net(dropout=0.0):
    return mlp(6, 12, 3, extra=[nn.Dropout(dropout)])


def trainer(**more):
    return incop.Trainer((X, Y), (X[:20], Y[:20]), **{"epochs": 2, "batch_size": 16, **more})


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_equals_a_plain_loop(optimizer, schedule):
    made = trainer(optimizer=optimizer, schedule=schedule, lr=0.01, momentum=0.8, weight_decay=0.1, clip=0.5, seed=3)
    model, plain = net(), net()
    made.fit(model, Masks.full(model), Watch(model))

    kinds = {
        "sgd": (torch.optim.SGD, {"momentum": 0.8}),
        "adam": (torch.optim.Adam, {}),
        "adamw": (torch.optim.AdamW, {}),
    }
    kind, more = kinds[optimizer]
    stepper = kind(plain.parameters(), lr=0.01, weight_decay=0.1, **more)
    generator = torch.Generator().manual_seed(3 * 1_000_003)
    for step in range(8):
        if step % 4 == 0:
            order = torch.randperm(50, generator=generator)
        at = step / 8
        stepper.param_groups[0]["lr"] = {
            "constant": 0.01,
            "cosine": 0.01 * (0.01 + 0.99 * (1 + math.cos(math.pi * at)) / 2),
            "step": 0.01 if at < 0.5 else 0.001 if at < 0.75 else 0.0001,
        }[schedule]
        part = order[step % 4 * 16 : step % 4 * 16 + 16]
        stepper.zero_grad()
        functional.cross_entropy(plain(X[part]), Y[part]).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        stepper.step()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_levels_see_other_orders_and_dropout_is_seeded():
    def weights(level, seed=0):
        model = net(dropout=0.5)
        trainer(seed=seed).fit(model, Masks.full(model), Watch(model, level=level))
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert not torch.equal(weights(1), weights(1, seed=1))


def test_pruned_weights_stay_zero_and_training_flag_comes_back():
    model = net().eval()
    masks = incop.prune(model, amount=0.7)
    trainer(optimizer="sgd", weight_decay=0.1).fit(model, masks, Watch(model))
    assert not model.training
    assert Masks.of(model).within(masks)


def test_bfloat16_repeats_itself_and_leaves_weights_and_zeros_alone():
    def trained():
        model = net()
        masks = incop.prune(model, amount=0.7)
        trainer(precision="bfloat16", clip=1.0).fit(model, masks, Watch(model))
        assert Masks.of(model).within(masks)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    once = trained()
    assert once.dtype == torch.float32
    assert torch.equal(once, trained())
    assert not torch.equal(once, once.bfloat16().float())


def test_part_of_an_epoch_is_a_budget_too():
    model = net()
    watch = Watch(model)
    trainer(epochs=0.5).fit(model, Masks.full(model), watch)
    assert watch.checks[-1].step == 2
    assert watch.checks[-1].epoch == 0.5


def test_a_loss_that_is_not_finite_says_at_which_step():
    model = net()
    bad = X.clone()
    bad[:] = math.inf
    made = incop.Trainer((bad, Y), (X, Y), epochs=1, batch_size=16)
    with pytest.raises(TrainingError, match="step 1 of level 0"):
        made.fit(model, Masks.full(model), Watch(model))


def test_nothing_trains_on_a_loss_that_is_not_finite():
    def loss(output, target):
        calls.append(1)
        return functional.cross_entropy(output, target) * (math.nan if len(calls) == 3 else 1.0)

    calls = []
    diverged, stopped = net(), net()
    with pytest.raises(TrainingError, match="step 3 of level 0"):
        trainer(loss=loss).fit(diverged, Masks.full(diverged), Watch(diverged))
    trainer(epochs=0.5).fit(stopped, Masks.full(stopped), Watch(stopped))  # 2 of 4 steps an epoch
    for a, b in zip(diverged.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(a, b)


def test_labels_the_model_has_no_output_for_are_told():
    made = incop.Trainer((X, Y + 3), (X, Y), epochs=1)
    with pytest.raises(InputError, match="labels belong together"):
        made.fit(net(), Masks.full(net()), Watch(net()))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": math.nan}, "epochs=nan"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"lr": -1}, "lr=-1"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"weight_decay": -1}, "weight_decay=-1"),
        ({"clip": 0}, "clip=0"),
        ({"optimizer": "sgdd"}, "did you mean 'sgd'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"precision": "bfloat"}, "did you mean 'bfloat16'"),
    ],
)
def test_arguments_out_of_range(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        trainer(**arguments)


def test_splits_that_do_not_fit():
    with pytest.raises(InputError, match="50 inputs and 49 labels"):
        incop.Trainer((X, Y[1:]), (X, Y))


def test_evaluate_equals_a_direct_count():
    model = net(dropout=0.5).train()
    model.eval()
    wanted = float((model(X[:20]).argmax(1) == Y[:20]).float().mean())
    model.train()
    assert trainer().evaluate(model) == pytest.approx(wanted)
    assert model.training


# --- how search levels are trained


class Diary:
    """What every step was: level, samples, learning rate and optimizer."""

    def __init__(self):
        self.steps, self.sizes = [], []

    def loss(self, output, target):
        self.sizes.append(len(target))
        return functional.cross_entropy(output, target)

    def watch(self, model, level, **more):
        watch = Watch(model, level=level, **{"every": 0.1, **more})
        self.level = watch.level
        return watch

    def __enter__(self):
        def note(optimizer, args, kwargs):
            self.steps.append((self.level, self.sizes[-1], optimizer.param_groups[0]["lr"], optimizer))

        self.handle = register_optimizer_step_pre_hook(note)
        return self

    def __exit__(self, *error):
        self.handle.remove()

    def of(self, level):
        return [(size, rate) for at, size, rate, _ in self.steps if at == level]

    def optimizers(self, level):
        return list({id(optimizer): optimizer for at, *_, optimizer in self.steps if at == level}.values())


EPOCH = [16, 16, 16, 2]  # 50 samples by the recipe
SEARCH = {"search_batch_size": 5, "search_lr": 3.0}  # ten steps an epoch


def cosine(epoch, of=2.0):
    return 0.01 * (0.01 + 0.99 * (1 + math.cos(math.pi * epoch / of)) / 2)


@pytest.mark.parametrize("keep", [False, True])
def test_a_search_level_has_its_own_batches_and_rate_and_no_other_level_has(keep):
    model, masks = net(), Masks.full(net())
    with Diary() as diary:
        made = trainer(lr=0.01, schedule="cosine", loss=diary.loss, keep_optimizer=keep, **SEARCH)
        watches = []
        for level, rule in enumerate([None, stopping.AfterEpochs(0.7), None]):
            watches.append(diary.watch(model, level, rule=rule))
            made.fit(model, masks, watches[-1])
    dense, searched, last = watches
    whole = [(size, cosine(k / 4)) for k, size in enumerate(EPOCH * 2)]
    assert diary.of(0) == diary.of(2) == [(size, pytest.approx(rate)) for size, rate in whole]
    assert diary.of(1) == [(5, pytest.approx(3 * cosine(k / 10))) for k in range(7)]
    assert [(w.spent.epochs, w.spent.steps, w.spent.samples) for w in (dense, last)] == [(2.0, 8, 100)] * 2
    assert (searched.spent.epochs, searched.spent.steps, searched.spent.samples) == (pytest.approx(0.7), 7, 35)
    assert searched.checks[0].epoch == pytest.approx(0.1)


def test_a_rule_that_never_stops_searches_to_the_end_of_the_budget():
    model = net()
    with Diary() as diary:
        watch = diary.watch(model, 1, rule=stopping.AfterEpochs(9))
        trainer(loss=diary.loss, lr=0.01, **SEARCH).fit(model, Masks.full(model), watch)
    assert diary.of(1) == [(5, pytest.approx(0.03))] * 20
    assert (watch.spent.epochs, watch.spent.samples) == (2.0, 100)


@pytest.mark.parametrize("keep", [False, True])
def test_what_comes_after_the_stop_of_a_reported_level_is_by_the_recipe(keep):
    model, stopped = net(), []
    with Diary() as diary:
        made = trainer(lr=0.01, schedule="cosine", loss=diary.loss, keep_optimizer=keep, **SEARCH)
        watch = diary.watch(model, 1, rule=stopping.AfterEpochs(0.5), go_on=lambda: stopped.append(len(diary.steps)))
        made.fit(model, Masks.full(model), watch)
    assert stopped == [5]
    assert diary.of(1)[:5] == [(5, pytest.approx(3 * cosine(k / 10))) for k in range(5)]
    assert diary.of(1)[5:] == [(s, pytest.approx(cosine(0.5 + k / 4))) for k, s in enumerate([*EPOCH, 16, 16])]
    assert len(diary.optimizers(1)) == 2
    assert (watch.stopped.epochs, watch.stopped.steps, watch.stopped.samples) == (0.5, 5, 25)
    assert (watch.spent.epochs, watch.spent.steps, watch.spent.samples) == (2.0, 11, 25 + 50 + 32)
    assert [check.epoch for check in watch.checks][-2:] == [1.75, 2.0]


def test_a_stop_at_the_very_end_of_the_budget_leaves_nothing_to_train():
    model = net()
    watch = Watch(model, level=1, every=1, rule=stopping.AfterEpochs(2), go_on=lambda: None)
    trainer(**SEARCH).fit(model, Masks.full(model), watch)
    assert (watch.spent.epochs, watch.spent.steps) == (2.0, 20)


def test_a_level_that_needs_no_training_is_trained_in_full_by_the_recipe_where_it_is_reported():
    model = net()
    with Diary() as diary:
        watch = diary.watch(model, 1, rule=stopping.AfterEpochs(0), before=True, go_on=lambda: None)
        trainer(loss=diary.loss, lr=0.01, **SEARCH).fit(model, Masks.full(model), watch)
    assert diary.of(1) == [(size, 0.01) for size in EPOCH * 2]
    assert (watch.stopped.steps, watch.spent.epochs) == (0, 2.0)


def test_the_schedule_of_a_search_level_begins_where_it_was_rewound_to():
    model = net()
    with Diary() as diary:
        made = trainer(lr=0.01, schedule="cosine", loss=diary.loss, **SEARCH)
        watch = diary.watch(model, 1, rule=stopping.AfterEpochs(0.3), schedule_from=1.0, go_on=lambda: None)
        made.fit(model, Masks.full(model), watch)
    rates = [rate for _, rate in diary.of(1)]
    assert rates[:3] == pytest.approx([3 * cosine(1 + k / 10) for k in range(3)])
    assert rates[3:] == pytest.approx([cosine(1.3 + k / 4) for k in range(3)])  # 0.7 epochs are 2.8 steps
    assert watch.spent.epochs == pytest.approx(1.05)


def test_search_batches_of_more_than_all_samples_are_all_samples():
    model = net()
    with Diary() as diary:
        watch = diary.watch(model, 1, rule=stopping.AfterEpochs(1))
        trainer(loss=diary.loss, search_batch_size=1000).fit(model, Masks.full(model), watch)
    assert [size for size, _ in diary.of(1)] == [50]
    assert watch.spent.epochs == 1.0


def levels_of(made, rules, *, rewind="rate", model=None, **more):
    """Search with one rule a level, and return the diary and the tickets."""
    with Diary() as diary:
        made.loss = diary.loss
        said = {"levels": 4, "rewind": rewind, "check_every": 0.1, **more}

        class Told:
            epochs = made.epochs
            evaluate = made.evaluate

            def fit(self, model, masks, watch):
                diary.level = watch.level
                made.fit(model, masks, watch)

        tickets = list(incop.search(model or net(), Told(), rule=rules, **said))
    return diary, tickets


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("rewind", ["rate", "none"])
def test_the_optimizer_goes_on_over_search_levels_that_keep_their_weights(optimizer, rewind):
    made = trainer(keep_optimizer=True, optimizer=optimizer, **SEARCH)
    diary, _ = levels_of(made, stopping.AfterEpochs(0.5), rewind=rewind)
    (dense,), (one,), (two,), (three,), (last,) = (diary.optimizers(level) for level in range(5))
    assert one is two is three
    assert len({id(dense), id(one), id(last)}) == 3
    if optimizer != "sgd":
        assert {int(state["step"]) for state in one.state.values()} == {15}


@pytest.mark.parametrize(
    ("keep", "rewind"), [(False, "rate"), (False, "none"), (True, "init"), (True, "early:1"), (True, "dense")]
)
def test_every_level_has_an_optimizer_of_its_own_where_it_is_rewound_or_nothing_is_kept(keep, rewind):
    diary, _ = levels_of(trainer(keep_optimizer=keep, **SEARCH), stopping.AfterEpochs(0.5), rewind=rewind)
    optimizers = [diary.optimizers(level) for level in range(5)]
    assert all(len(own) == 1 for own in optimizers)
    assert len({id(own[0]) for own in optimizers}) == 5


def test_the_optimizer_goes_on_only_with_its_own_model_and_from_the_last_levels_weights():
    model, other = net(), net()
    with Diary() as diary:
        made = trainer(keep_optimizer=True, loss=diary.loss)
        cases = [(model, False), (model, True), (other, True), (model, True), (model, False), (model, True)]
        for level, (trained, continues) in enumerate(cases, 1):
            watch = diary.watch(trained, level, rule=stopping.AfterEpochs(0.5), continues=continues)
            made.fit(trained, Masks.full(trained), watch)
        dense = diary.watch(model, 7)  # no rule: not a search
        made.fit(model, Masks.full(model), dense)
        made.fit(model, Masks.full(model), diary.watch(model, 8, rule=stopping.AfterEpochs(0.5), continues=True))
    own = [diary.optimizers(level)[0] for level in range(1, 9)]
    same = [[a is b for b in own].index(True) for a in own]
    assert same == [0, 0, 2, 3, 4, 4, 6, 7]


def plain_search(levels, tickets):
    """Two search levels and a full one, written out: one Adam over the search, whatever is cut loses its moments."""
    model = net()
    for level, steps, size, rate in levels:
        masks = tickets[level].masks
        generator = torch.Generator().manual_seed(3 * 1_000_003 + level)
        if level != 2:  # the second search level goes on with the first one's
            optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
        with torch.no_grad():
            for name, mask in masks.items():
                weight = model.get_parameter(name)
                weight *= mask
                for key in ("exp_avg", "exp_avg_sq") if weight in optimizer.state else ():
                    optimizer.state[weight][key] *= mask
        batches = []
        while len(batches) < steps:
            batches += torch.randperm(50, generator=generator).split(size)
        for part in batches[:steps]:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            functional.cross_entropy(model(X[part]), Y[part]).backward()
            optimizer.step()
            with torch.no_grad():
                for name, mask in masks.items():
                    model.get_parameter(name).mul_(mask)
        yield level, {name: t.clone() for name, t in model.state_dict().items()}


def test_a_search_that_keeps_its_optimizer_is_bit_for_bit_a_plain_loop_with_one_adam():
    made = trainer(keep_optimizer=True, lr=0.01, seed=3, **SEARCH)
    _, tickets = levels_of(made, stopping.AfterEpochs(0.7), levels=3, amount=0.3)
    levels = [(0, 8, 16, 0.01), (1, 7, 5, 0.03), (2, 7, 5, 0.03), (3, 8, 16, 0.01)]
    for level, weights in plain_search(levels, tickets):
        for name, wanted in weights.items():
            assert torch.equal(tickets[level].weights[name], wanted), (level, name)


def same(first, second):
    return all(
        torch.equal(a.weights[n], b.weights[n]) for a, b in zip(first, second, strict=True) for n in a.weights
    ) and [t.masks for t in first] == [t.masks for t in second]


@pytest.mark.parametrize("last_full", [True, False])
def test_the_search_repeats_itself_also_with_the_same_trainer(last_full):
    def made():
        return trainer(keep_optimizer=True, seed=3, **SEARCH)

    arguments = {"last_level_full": last_full, "amount": 0.3}
    _, first = levels_of(made(), stopping.AfterEpochs(0.5), **arguments)
    once, model = made(), net()
    _, second = levels_of(once, stopping.AfterEpochs(0.5), model=model, **arguments)
    model.load_state_dict(net().state_dict())
    _, third = levels_of(once, stopping.AfterEpochs(0.5), model=model, **arguments)
    assert same(first, second)
    assert same(first, third)
    _, other = levels_of(trainer(seed=3, **SEARCH), stopping.AfterEpochs(0.5), **arguments)
    assert not same(first, other)


def test_reporting_a_ticket_on_the_way_does_not_turn_the_search_aside():
    def tickets(**more):
        made = trainer(keep_optimizer=True, seed=3, **SEARCH)
        amount = pruning.SparsityPath((0.2, 0.5, 0.6, 0.8))
        return levels_of(made, stopping.AfterEpochs(0.5), amount=amount, **more)

    (plain_diary, plain), (diary, reported) = tickets(), tickets(ticket_at=(0.5,))
    assert [t.record.epochs for t in plain] == [2, 0.5, 0.5, 0.5, 2]
    assert [t.record.epochs for t in reported] == [2, 0.5, 2, 0.5, 2]
    assert same([plain[k] for k in (0, 1, 3, 4)], [reported[k] for k in (0, 1, 3, 4)])
    assert plain_diary.optimizers(1) == plain_diary.optimizers(3)
    assert diary.optimizers(1) == diary.optimizers(3)
    assert len(diary.optimizers(2)) == 2


def test_with_none_of_it_a_search_level_is_the_beginning_of_a_full_one():
    """A reported level without search settings is one stretch: the same bits as a full level without a rule."""
    full, reported = net(), net()
    trainer(seed=3).fit(full, Masks.full(full), Watch(full, level=1))
    watch = Watch(reported, level=1, rule=stopping.AfterEpochs(1), go_on=lambda: None)
    trainer(seed=3).fit(reported, Masks.full(reported), watch)
    assert watch.stopped.epochs == 1
    for a, b in zip(full.parameters(), reported.parameters(), strict=True):
        assert torch.equal(a, b)
    defaults = trainer()
    assert (defaults.search_batch_size, defaults.search_lr, defaults.keep_optimizer) == (None, 1.0, False)


def test_a_loss_that_is_not_finite_late_in_a_level_counts_all_its_steps():
    def loss(output, target):
        calls.append(1)
        return functional.cross_entropy(output, target) * (math.nan if len(calls) == 8 else 1.0)

    calls, model = [], net()
    watch = Watch(model, level=1, every=0.5, rule=stopping.AfterEpochs(0.5), go_on=lambda: None)
    with pytest.raises(TrainingError, match=r"step 8 of level 1 \(after epoch 1.00, learning rate 0.01\)"):
        trainer(loss=loss, lr=0.01, **SEARCH).fit(model, Masks.full(model), watch)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"search_batch_size": 0}, r"search_batch_size=0 is out of range: it must lie in \[1, inf\]"),
        ({"search_batch_size": -3}, "search_batch_size=-3"),
        ({"search_batch_size": "20"}, "search_batch_size='20'"),
        ({"search_batch_size": True}, "search_batch_size=True"),
        ({"search_batch_size": math.nan}, "search_batch_size=nan"),
        ({"search_batch_size": math.inf}, "search_batch_size=inf"),
        ({"search_lr": 0}, "search_lr=0"),
        ({"search_lr": -1.0}, "search_lr=-1.0"),
        ({"search_lr": math.nan}, "search_lr=nan"),
        ({"search_lr": math.inf}, "search_lr=inf"),
        ({"search_lr": None}, "search_lr=None"),
    ],
)
def test_search_settings_out_of_range(arguments, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        trainer(**arguments)
    assert "\n" not in str(error.value)


def test_a_state_without_a_kept_optimizer_takes_one_away():
    made, begin = trainer(keep_optimizer=True, seed=3, **SEARCH), trainer(keep_optimizer=True).state()
    found = []
    for _ in range(2):
        model = net()
        made.restore(begin)
        watch = Watch(model, level=2, rule=stopping.AfterEpochs(0.5), continues=True)
        made._carried.kept = made._carried.kept and (
            model,
            made._carried.kept[1],
        )  # the level before was trained on this model
        made.fit(model, Masks.full(model), watch)
        found.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_accuracy_of_a_language_model_is_of_the_token_that_its_loss_asks_for():
    class Next(nn.Module):
        """Says that after each word comes the next number."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Linear(1, 1)

        def forward(self, x):
            return nn.functional.one_hot((x + 1) % 7, 7).float() * self.scale.weight.abs()

    words = torch.tensor([[0, 1, 2, 3, 9], [5, 6, 0, 4, 3]]) % 7
    labels = words.clone()
    labels[0, -1] = -100
    split = [{"x": words, "labels": labels}]
    told = {
        shift: incop.Trainer(split, split, epochs=1, loss=flow.TokenLoss(shift=shift)).evaluate(Next())
        for shift in (True, False)
    }
    # foretold: 1, 2, 3 of the first (its last has no label), 6 and 0 of the second; of the words themselves none
    assert told == {True: 5 / 7, False: 0.0}


# --- batches of one sample

NORMED = {
    "over samples": lambda: nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)),
    "over samples and places": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(8, 3)
    ),
    "not": net,
}
ONE = "leaves a batch of one sample of the train split's 50, and Sequential normalises over batches"


@pytest.mark.parametrize("kind", NORMED)
@pytest.mark.parametrize(
    ("sizes", "stretch", "wrong"),
    [
        ({"batch_size": 7}, 1, "batch_size=7 "),
        ({"batch_size": 7, "epochs": 0.5}, 1, None),
        ({"search_batch_size": 7}, 1, "search_batch_size=7 "),
        ({"search_batch_size": 7}, 0.5, None),  # its last batch is never come to
        ({"search_batch_size": 1}, 0.1, "search_batch_size=1 "),
        ({"search_batch_size": 6}, 1, None),
    ],
)
def test_a_batch_of_one_that_cannot_be_trained_on_is_refused_before_training(kind, sizes, stretch, wrong):
    torch.manual_seed(0)
    model, steps = NORMED[kind](), []
    tickets = incop.search(
        model,
        trainer(**sizes),
        levels=2,
        rule=stopping.AfterEpochs(stretch),
        check_every=stretch,
        rewind="rate",
        on_step=lambda *at: steps.append(at),
    )
    if wrong is None or kind != "over samples":
        assert len(list(tickets)) == 3
        return
    with pytest.raises(InputError, match=wrong + ONE):
        list(tickets)
    assert not steps


def test_asking_whether_one_sample_will_do_leaves_no_trace():
    torch.manual_seed(0)
    model = NORMED["over samples and places"]()
    before, random = {name: one.clone() for name, one in model.state_dict().items()}, torch.get_rng_state()
    trainer(batch_size=7).check_batches(model, Interval.parse(1.0))
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
