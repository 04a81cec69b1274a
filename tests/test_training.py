import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import incop
from incop import Masks, Watch
from incop.errors import InputError, TrainingError

GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(50, 6, generator=GENERATOR)
Y = torch.randint(3, (50,), generator=GENERATOR)


def net(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(dropout), nn.Linear(12, 3))


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
