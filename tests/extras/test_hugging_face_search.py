"""HuggingFaceTrainer: a search through a transformers.Trainer, of a classifier and of a language model."""

import copy
import math
import random

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from test_hugging_face import PROBE, TRAIN, VALIDATION, accuracy, bert, same, weights
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments, set_seed

import incop
from incop import flow, pruning, stopping
from incop.errors import InputError, TrainingError
from incop.integrations.hugging_face import HuggingFaceTrainer
from incop.integrations.hugging_face.accuracy import right_and_all
from incop.masks import Masks

TEXT = (  # the first sentences of this project's README and design, its own words
    "Iterative magnitude pruning finds sparse networks that train as well as dense ones, but retrains the network in full "
    "after every pruning step. Information consistent pruning ends each retraining as soon as the flow between the layers "
    "is consistent with the dense network. A rule says when to stop, and an answer always names its reason. "
) * 3
LETTERS = sorted(set(TEXT))
ARGUMENTS = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 16,  # 6 steps an epoch
    "learning_rate": 3e-3,
    "weight_decay": 0.1,
    "use_cpu": True,
}


def adapter(arguments=(), **parts):
    return HuggingFaceTrainer(
        {**ARGUMENTS, **dict(arguments)}, **{"train_dataset": TRAIN, "eval_dataset": VALIDATION, **parts}
    )


def llama(seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(LETTERS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def lines(first, last):
    codes = torch.tensor([LETTERS.index(letter) for letter in TEXT])
    rows = codes[: len(codes) // 16 * 16].reshape(-1, 16)[first:last]
    labels = rows.clone()
    labels[:, :2] = -100  # a prompt of which nothing is learned
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": label}
        for row, label in zip(rows, labels, strict=True)
    ]


def watch_of(model, masks=None, **arguments):
    return incop.Watch(model, masks=masks or Masks.full(model), **arguments)


def facts(ticket):
    """A ticket's record without what a clock said."""
    record = ticket.record.to_json()
    flow_now = record["flow"] and record["flow"]["values"]
    return {name: value for name, value in record.items() if "seconds" not in name and name != "flow"}, flow_now


class Rates(TrainerCallback):
    """Writes down the rate of every step of every training."""

    def __init__(self):
        self.rates = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.rates.append([])

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.rates[-1].append(optimizer.param_groups[0]["lr"])


# --- whole searches ---


def test_prunes_a_classifier_to_60_percent_over_three_levels():
    model = bert()
    rule = stopping.FlowRestored(within=0.5) | stopping.AfterEpochs(1)
    tickets = list(
        incop.search(
            model,
            adapter(),
            levels=3,
            probe=PROBE,
            meter=flow.GradientFlow(functional.cross_entropy),
            rule=rule,
            amount=pruning.Target(0.6, levels=3),
            rewind="early:1",
        )
    )
    assert [ticket.level for ticket in tickets] == [0, 1, 2, 3]
    assert tickets[-1].sparsity == pytest.approx(0.6, abs=1e-3)
    assert tickets[0].record.epochs == 2
    assert [ticket.record.steps for ticket in tickets] == [12, 6, 6, 6]
    assert [ticket.record.samples for ticket in tickets] == [180, 90, 90, 90]
    for ticket in tickets:
        for name, mask in ticket.masks.items():
            assert not ticket.weights[name][~mask].view(torch.int32).any()
        assert all(math.isfinite(value) for value in ticket.record.flow.values.values())
        assert ticket.record.val_accuracy is not None
    assert all(check.loss is not None and check.accuracy is not None for ticket in tickets for check in ticket.checks)


def test_prunes_a_language_model_with_tied_embeddings():
    model = llama()
    trainer = adapter(
        {"num_train_epochs": 4, "learning_rate": 1e-2}, train_dataset=lines(0, 40), eval_dataset=lines(40, 56)
    )
    tickets = list(incop.search(model, trainer, levels=2, amount=0.4, rule=stopping.AfterEpochs(2), rewind="rate"))
    assert tickets[-1].sparsity == pytest.approx(0.64, abs=1e-3)
    assert [ticket.record.epochs for ticket in tickets] == [4, 2, 4]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    guess = max(LETTERS.count(letter) for letter in LETTERS) / len(LETTERS)
    assert tickets[0].record.val_accuracy > guess  # tokens, not lines: no whole line is ever right


def test_a_level_is_what_a_trainer_by_hand_makes_of_it():
    """The oracle: the rewound, masked weights trained by a Trainer of one's own, zeroed by hand after every step."""
    model = bert()
    tickets = list(incop.search(model, adapter(), levels=1, amount=0.5, rewind="init"))
    masks = tickets[1].masks

    class ByHand(Trainer):
        def training_step(self, wrapped, *args, **kwargs):
            loss = super().training_step(wrapped, *args, **kwargs)
            for name, mask in masks.items():
                weight = self.model.get_parameter(name)
                weight.grad = torch.where(mask, weight.grad, 0.0)
            return loss

    class ZeroWeights(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            masks.apply(model)

    oracle = bert()
    masks.apply(oracle)
    args = TrainingArguments("unused", **ARGUMENTS, report_to="none", save_strategy="no", disable_tqdm=True)
    trainer = ByHand(oracle, args, train_dataset=TRAIN, callbacks=[ZeroWeights()])
    set_seed(args.seed * 1_000_003 + 1)
    trainer.train()
    assert same(weights(oracle), {name: tickets[1].weights[name] for name in weights(oracle)})


def test_repeats_itself_and_levels_draw_their_own_order():
    runs = [list(incop.search(bert(), adapter(), levels=2, rewind="init")) for _ in range(2)]
    for one, other in zip(*runs, strict=True):
        assert same(one.weights, other.weights)
        assert facts(one) == facts(other)
    other_seed = list(incop.search(bert(), adapter({"seed": 1}), levels=0))
    assert not same(other_seed[0].weights, runs[0][0].weights)


def test_resumes_at_the_levels_beginning_exactly():
    def made():
        model = bert()
        arguments = {"levels": 2, "rewind": "early:1", "rule": stopping.AfterEpochs(1)}
        return model, lambda **more: incop.search(model, adapter(), **arguments, **more)

    states = []
    whole = list(made()[1](on_state=lambda take: states.append(copy.deepcopy(take()))))
    assert [state["level"] for state in states] == [0, 1, 2]
    for state in states:
        model, search = made()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        torch.manual_seed(99)
        rest = list(search(resume=state))
        assert len(rest) == 3 - state["level"]
        for one, other in zip(rest, whole[state["level"] :], strict=True):
            assert facts(one) == facts(other)
            assert same(one.weights, other.weights)


# --- schedules and budgets ---


def test_early_rewinding_goes_on_within_the_schedule():
    rates = Rates()
    list(incop.search(bert(), adapter(callbacks=[rates]), levels=1, rewind="early:1"))
    dense, level = rates.rates
    assert len(dense) == 12
    assert dense[0] == pytest.approx(3e-3)
    assert level == dense[6:]


@pytest.mark.parametrize("kind", ["cosine", "constant_with_warmup"])
def test_rewinding_starts_the_schedule_again(kind):
    rates = Rates()
    trainer = adapter({"lr_scheduler_type": kind, "warmup_steps": 3}, callbacks=[rates])
    list(incop.search(bert(), trainer, levels=1, rewind="rate"))
    assert rates.rates[1] == rates.rates[0]
    assert len(set(rates.rates[0])) > 1


def test_without_rewinding_the_rate_stays_at_its_end():
    rates = Rates()
    kind = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}
    list(incop.search(bert(), adapter(kind, callbacks=[rates]), levels=1, rewind="none"))
    assert rates.rates[1] == pytest.approx([3e-4] * 12)


def test_a_schedule_that_ends_at_nothing_is_not_trained_at():
    tickets = incop.search(bert(), adapter(), levels=1, rewind="none")
    next(tickets)
    with pytest.raises(InputError, match="its rate is 0"):
        next(tickets)


def test_a_schedule_by_metric_is_not_begun_later():
    by_metric = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch", "metric_for_best_model": "loss"}
    trainer = adapter(by_metric)
    model = bert()
    with pytest.raises(InputError, match="ReduceLROnPlateau follows a metric"):
        trainer.fit(model, Masks.full(model), watch_of(model, schedule_from=1.0))


def test_levels_have_a_budget_of_their_own():
    rates = Rates()
    trainer = adapter(level_epochs=1, callbacks=[rates])
    tickets = list(incop.search(bert(), trainer, levels=2, rewind="rate"))
    assert [ticket.record.epochs for ticket in tickets] == [2, 1, 1]
    assert [ticket.record.max_epochs for ticket in tickets] == [2, 1, 1]
    assert [len(level) for level in rates.rates] == [12, 6, 6]
    assert rates.rates[1][-1] == pytest.approx(3e-3 / 6)  # the schedule spans the level


def test_a_budget_in_steps():
    trainer = adapter({"max_steps": 9})
    assert trainer.epochs is None
    tickets = list(incop.search(bert(), trainer, levels=1, rewind="early:3steps"))
    assert trainer.epochs == pytest.approx(1.5)
    assert [ticket.record.steps for ticket in tickets] == [9, 6]


@pytest.mark.parametrize(
    ("settings", "every", "step"),
    [({}, "4steps", 4), ({}, 0.5, 3), ({"gradient_accumulation_steps": 4}, "1steps", 1), ({"bf16": True}, "5steps", 5)],
)
def test_a_stop_is_obeyed_at_its_step(settings, every, step):
    class Now(stopping.Rule):
        def judge(self, history):
            return True, "now"

        def __str__(self):
            return "now"

    model = bert()
    watch = watch_of(model, rule=Now(), every=every, level=1)
    adapter(settings).fit(model, Masks.full(model), watch)
    assert watch.step == step
    assert [check.step for check in watch.checks] == [step]
    per_step = 16 * settings.get("gradient_accumulation_steps", 1)
    assert watch.checks[0].spent.samples == min(per_step * step, 90)


def test_a_look_before_training_may_end_the_level():
    model = bert()
    before = weights(model)
    watch = watch_of(model, rule=stopping.AccuracyRestored(drop=1.0), reference_accuracy=0.5, before=True, level=1)
    adapter().fit(model, Masks.full(model), watch)
    assert [check.number for check in watch.checks] == [0]
    assert same(weights(model), before)


def test_a_callback_of_the_users_own_may_end_the_training():
    class Enough(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= 4
            return control

    model = bert()
    watch = watch_of(model)
    adapter(callbacks=[Enough()]).fit(model, Masks.full(model), watch)
    assert [check.step for check in watch.checks] == [4]


def test_a_loss_that_is_not_finite_is_told():
    model = bert()
    with torch.no_grad():
        model.classifier.bias.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"loss is nan by step 6 of level 0 \(after epoch 1\.00\)"):
        adapter().fit(model, Masks.full(model), watch_of(model))


# --- what it leaves as it was ---


@pytest.mark.parametrize("settings", [{}, {"bf16": True}])
def test_is_silent_and_leaves_no_trace(tmp_path, monkeypatch, capfd, settings):
    monkeypatch.chdir(tmp_path)
    model = bert().eval()
    names, hooks = set(vars(model)), sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())
    args = TrainingArguments(
        "out", **ARGUMENTS, **settings, save_strategy="epoch", logging_steps=1, report_to="tensorboard"
    )
    trainer = HuggingFaceTrainer(args, train_dataset=TRAIN, eval_dataset=VALIDATION)
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    trainer.fit(model, Masks.full(model), watch_of(model))
    trainer.evaluate(model)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert set(vars(model)) == names
    assert not model.training
    assert sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()) == hooks
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""
    assert args.output_dir == "out"  # the user's own object
    assert args.save_strategy == "epoch"


def test_a_forward_of_the_users_own_stays():
    model = bert()
    model.forward = own = model.forward  # as another library's wrapper lies on the module itself
    adapter({"bf16": True}).fit(model, Masks.full(model), watch_of(model))
    assert vars(model)["forward"] == own
    assert "_original_forward" not in vars(model)


def test_flow_is_measured_in_full_precision_whatever_it_trains_in():
    model = bert()
    watch = watch_of(model, probe=PROBE, meter=flow.InformationFlow())
    adapter({"bf16": True}).fit(model, Masks.full(model), watch)
    after = incop.measure(model, PROBE, flow.InformationFlow())
    assert watch.checks[-1].flow.values == after.values
    assert watch.checks[-1].accuracy == adapter({"bf16": True}).evaluate(model)


def test_every_validation_pass_is_in_the_ledger():
    model = bert()
    rule = stopping.AccuracyRestored(drop=-0.0) | stopping.AfterEpochs(2)
    watch = watch_of(model, rule=rule, reference_accuracy=1.0, level=1, every=0.5)
    adapter().fit(model, Masks.full(model), watch)
    assert watch.spent.probe_samples == 4 * len(VALIDATION)


# --- accuracy ---


def test_accuracy_is_scikit_learns():
    model = bert(dropout=0.0)
    adapter().fit(model, Masks.full(model), watch_of(model))
    model.eval()
    with torch.no_grad():
        guesses = [
            int(model(one["input_ids"][None], one["attention_mask"][None]).logits.argmax()) for one in VALIDATION
        ]
    wanted = [one["labels"] for one in VALIDATION]
    assert adapter().evaluate(model) == accuracy_score(wanted, guesses)
    assert adapter(compute_metrics=accuracy).evaluate(model) == accuracy_score(wanted, guesses)
    assert adapter().evaluate(model, VALIDATION[:7]) == accuracy_score(wanted[:7], guesses[:7])


def test_accuracy_of_a_language_model_is_of_tokens():
    """The oracle: every next token by itself, in a loop."""
    model, data = llama(), lines(40, 50)
    trainer = adapter(train_dataset=data, eval_dataset=data)
    with torch.no_grad():
        for parameter in model.parameters():  # so that what it says changes with what it reads
            parameter.mul_(5)
    model.eval()
    right = wanted = at_its_own_place = 0
    for one in data:
        with torch.no_grad():
            logits = model(one["input_ids"][None]).logits[0]
        for at in range(len(one["labels"]) - 1):
            if one["labels"][at + 1] != -100:
                wanted += 1
                right += int(logits[at].argmax() == one["labels"][at + 1])
                at_its_own_place += int(logits[at + 1].argmax() == one["labels"][at + 1])
    assert 0 < right != at_its_own_place
    assert trainer.evaluate(model) == right / wanted


def test_accuracy_of_tokens_that_are_not_shifted():
    logits = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]])
    labels = torch.tensor([[1, 0, -100]])
    assert right_and_all(logits, labels, shifted=False) == (2, 2)
    assert right_and_all(logits, labels, shifted=True) == (0, 1)


def test_several_labels_a_sample_have_no_accuracy():
    """As of question answering: a first and a last position."""
    logits, labels = torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(InputError, match=r"outputs \(2, 5\) and labels tuple"):
        right_and_all((logits, logits), (labels, labels), shifted=False)
    assert right_and_all((logits, logits), labels, shifted=False) == (2, 2)


def test_data_sets_of_the_hub_are_read_as_they_are():
    datasets = pytest.importorskip("datasets")
    rows = [{name: value.tolist() if name != "labels" else value for name, value in one.items()} for one in TRAIN]
    data = datasets.Dataset.from_list([{**row, "unused": "a column that no model takes"} for row in rows])
    plain, of_the_hub = bert(), bert()
    adapter().fit(plain, Masks.full(plain), watch_of(plain))
    adapter(train_dataset=data, eval_dataset=data).fit(of_the_hub, Masks.full(of_the_hub), watch_of(of_the_hub))
    assert same(weights(plain), weights(of_the_hub))


def test_a_stream_is_trained_on_in_steps():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(TRAIN)

    model = bert()
    watch = watch_of(model, every="4steps")
    adapter({"max_steps": 8}, train_dataset=Stream(), eval_dataset=Stream()).fit(model, Masks.full(model), watch)
    assert [(check.step, check.epoch) for check in watch.checks] == [(4, 0.5), (8, 1.0)]
    assert watch.spent.samples == 6 * 16 - 6 + 2 * 16


def test_any_metric_of_the_users_by_name():
    trainer = adapter(compute_metrics=lambda prediction: {"f1": 0.25, "accuracy": 0.5}, accuracy="f1")
    assert trainer.evaluate(bert()) == 0.25


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"compute_metrics": accuracy, "accuracy": "f1"}, r"returns no 'f1' \(it has .*accuracy"),
        ({"compute_metrics": lambda prediction: {"accuracy": 71.0}}, r"is 71\.0: accuracy is a fraction"),
        ({"accuracy": "f1"}, "the Trainer has none"),
        ({"eval_dataset": [{**one, "labels": [0.5] * 10} for one in VALIDATION]}, "by the largest logit"),
        ({"eval_dataset": {"one": VALIDATION, "two": VALIDATION}}, "it has several"),
    ],
)
def test_accuracy_that_cannot_be_taken_is_told_before_training(parts, sentence):
    model = bert()
    before = weights(model)
    with pytest.raises(InputError, match=sentence):
        adapter(**parts).fit(model, Masks.full(model), watch_of(model))
    assert same(weights(model), before)


# --- how it is made ---


def made_trainer(model, **parts):
    args = TrainingArguments("unused", **ARGUMENTS, report_to="none", save_strategy="no", disable_tqdm=True)
    return Trainer(model, args, train_dataset=TRAIN, eval_dataset=VALIDATION, **parts)


def test_a_trainer_that_somebody_makes_trains_like_arguments_do():
    by_arguments = list(incop.search(bert(), adapter(), levels=1))
    trainer = HuggingFaceTrainer(make=made_trainer)
    assert trainer.epochs is None
    by_maker = list(incop.search(bert(), trainer, levels=1))
    assert trainer.epochs == 2
    for one, other in zip(by_arguments, by_maker, strict=True):
        assert same(one.weights, other.weights)


def test_an_optimizer_made_afresh_by_the_maker():
    trainer = HuggingFaceTrainer(
        make=lambda model: made_trainer(model, optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None))
    )
    tickets = list(incop.search(bert(), trainer, levels=1))
    assert len(tickets) == 2


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda model: None, "not a transformers.Trainer"),
        (lambda model: made_trainer(bert()), "of another model"),
    ],
)
def test_makers_that_cannot_be_used(make, sentence):
    model = bert()
    with pytest.raises(InputError, match=sentence):
        HuggingFaceTrainer(make=make).fit(model, Masks.full(model), watch_of(model))


def test_a_maker_of_one_trainer_for_all_levels_is_told():
    model = bert()
    kept = made_trainer(model)
    trainer = HuggingFaceTrainer(make=lambda model: kept)
    trainer.fit(model, Masks.full(model), watch_of(model))
    with pytest.raises(InputError, match="has trained already"):
        trainer.fit(model, Masks.full(model), watch_of(model, level=1))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "pass either args"),
        ({"args": ARGUMENTS, "make": made_trainer}, "pass either args"),
        ({"make": made_trainer, "train_dataset": TRAIN}, "train_dataset= goes with args"),
        ({"args": 3, "train_dataset": TRAIN, "eval_dataset": TRAIN}, "args is a int"),
        ({"args": ARGUMENTS, "eval_dataset": TRAIN}, "needs train_dataset="),
        ({"args": ARGUMENTS, "train_dataset": TRAIN}, "pass eval_dataset="),
        ({"args": ARGUMENTS, "model_init": bert}, "model_init= cannot be given"),
        ({"args": ARGUMENTS, "optimizers": (1, 2)}, "optimizers= cannot be given"),
        ({"make": made_trainer, "level_epochs": 0}, "level_epochs=0"),
    ],
)
def test_unusable_arguments(given, sentence):
    with pytest.raises(InputError, match=sentence):
        HuggingFaceTrainer(**given)


def test_an_early_point_past_the_budget_is_refused_before_training():
    with pytest.raises(InputError, match="lies at or past the end"):
        incop.search(bert(), adapter(), levels=1, rewind="early:5")


def test_records_are_those_of_any_trainer():
    ticket = next(iter(incop.search(bert(), adapter(), levels=0)))
    assert type(ticket.record).from_json(ticket.record.to_json()) == ticket.record
    assert ticket.record.epochs == ticket.record.max_epochs == 2
