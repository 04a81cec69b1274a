"""InCoPCallback in a transformers.Trainer: on a tiny random BERT that reads optical digits pixel by pixel."""

import dataclasses
import json
import shutil

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

import incop
from incop import flow, pruning, stopping
from incop.checkpoint_files import load_masks
from incop.errors import InputError
from incop.experiments import datasets
from incop.integrations.hugging_face import InCoPCallback

PIXELS = 16  # of 64: every second row and column


def digits(first, last):
    data = datasets.load("digits", seed=0)
    images = data.train.images[first:last, 0, ::2, ::2].reshape(last - first, PIXELS).long() // 16  # of 16 greys
    return [
        {"input_ids": image, "attention_mask": torch.ones_like(image), "labels": int(label)}
        for image, label in zip(images, data.train.labels[first:last], strict=True)
    ]


TRAIN, VALIDATION = digits(0, 90), digits(90, 150)
PROBE = [{name: torch.stack([torch.as_tensor(one[name]) for one in TRAIN[:32]]) for name in TRAIN[0]}]


def bert(seed=0, dropout=0.1):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=16,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=PIXELS,
        num_labels=10,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config)


def halved(model):
    return incop.prune(model, masks=incop.Masks.full(model), amount=pruning.Fraction(0.5))


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def trainer_of(model, folder, *callbacks, kind=Trainer, data=TRAIN, checkpoint=None, **arguments):
    settings = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 16,  # 6 steps an epoch, the last of 10 samples
        "learning_rate": 2e-3,
        "weight_decay": 0.1,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    trainer = kind(
        model=model,
        args=TrainingArguments(str(folder), **{**settings, **arguments}),
        train_dataset=data,
        eval_dataset=VALIDATION,
        compute_metrics=accuracy,
    )
    for one in callbacks:
        if isinstance(one, InCoPCallback):
            one.attach(trainer, checkpoint=checkpoint)
        else:
            trainer.add_callback(one)
    return trainer


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def plain(check):
    """A check without what a clock said."""
    return dataclasses.replace(
        check, spent=dataclasses.replace(check.spent, seconds=0.0, probe_seconds=0.0, record_seconds=0.0)
    )


@dataclasses.dataclass(frozen=True)
class AtStep(stopping.Rule):
    """Stop at a step: a rule of somebody's own."""

    step: int

    def judge(self, history):
        return history.now.step >= self.step, f"step {history.now.step}"

    def __str__(self):
        return f"at step {self.step}"


class ByHand(Trainer):
    """The oracle: gradients and weights of pruned positions set to zero by hand, the plainest way."""

    masks = None

    def training_step(self, model, *args, **kwargs):
        loss = super().training_step(model, *args, **kwargs)
        for name, mask in self.masks.items():
            weight = self.model.get_parameter(name)
            weight.grad = torch.where(mask, weight.grad, 0.0)
        return loss


class ZeroWeights(TrainerCallback):
    def __init__(self, masks):
        self.masks = masks

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.masks.apply(model)


SETTINGS = {
    "adamw": {},
    "no clipping": {"max_grad_norm": 0.0},
    "tight clipping": {"max_grad_norm": 0.01},
    "accumulation": {"gradient_accumulation_steps": 4},
    "bf16": {"bf16": True},
    "sgd": {"optim": "sgd", "learning_rate": 0.1},
    "adafactor": {"optim": "adafactor"},
    "checkpointing": {"activation_checkpointing": True},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_trains_what_is_left_as_if_zeroed_by_hand(tmp_path, settings):
    model = bert()
    masks = halved(model)
    trainer_of(model, tmp_path, InCoPCallback(masks), **settings).train()

    oracle = bert()
    masks.apply(oracle)
    trainer = trainer_of(oracle, tmp_path, ZeroWeights(masks), kind=ByHand, **settings)
    trainer.masks = masks
    trainer.train()

    assert same(weights(model), weights(oracle))
    for name, weight in masks.weights(model).items():
        assert not weight.detach()[~masks[name]].view(torch.int32).any()  # +0.0, to the bit
    assert incop.Masks.of(model).remaining == masks.remaining


def test_looking_leaves_no_trace(tmp_path):
    model, other = bert(), bert()
    rule = stopping.FlowRestored(within=1e-9)
    reference = incop.measure(model, PROBE, flow.InformationFlow())
    watching = InCoPCallback(
        probe=PROBE, meter=flow.InformationFlow(), rule=rule, reference=reference, check_every="5steps"
    )
    trainer_of(model, tmp_path, watching).train()
    trainer_of(other, tmp_path).train()
    assert [check.step for check in watching.checks] == [5, 10, 15, 18]  # the end is looked at, due or not
    assert same(weights(model), weights(other))


@pytest.mark.parametrize(("settings", "step"), [({}, 7), ({"gradient_accumulation_steps": 2}, 4), ({"bf16": True}, 6)])
def test_stops_at_the_step_of_the_check(tmp_path, settings, step):
    callback = InCoPCallback(rule=AtStep(step), check_every="1steps")
    trainer = trainer_of(bert(), tmp_path, callback, **settings)
    assert trainer.train().global_step == step
    assert callback.verdict.stop
    assert [check.step for check in callback.checks] == list(range(1, step + 1))


def test_counts_epochs_steps_samples_and_loss(tmp_path):
    losses = []

    class Telling(Trainer):
        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            losses.append(float(loss))
            return loss

    callback = InCoPCallback()
    trainer_of(bert(), tmp_path, callback, kind=Telling, gradient_accumulation_steps=4).train()
    assert [(check.epoch, check.step, check.spent.samples) for check in callback.checks] == [
        (1.0, 2, 90),
        (2.0, 4, 180),
        (3.0, 6, 270),
    ]
    assert callback.checks[0].loss == pytest.approx(sum(losses[:6]) / 2)  # of two steps, each the sum of its parts
    assert callback.checks[2].loss == pytest.approx(sum(losses[12:]) / 2)


@pytest.mark.parametrize("eval_strategy", ["no", "epoch", "steps"])
def test_takes_the_accuracy_from_the_trainers_metric(tmp_path, eval_strategy):
    seen = []

    class Evaluations(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics=None, **kwargs):
            seen.append((state.global_step, metrics["eval_accuracy"]))

    rule = stopping.AccuracyRestored(drop=0.0) | stopping.AfterEpochs(2)
    callback = InCoPCallback(rule=rule, reference_accuracy=1.0, accuracy="accuracy")
    trainer = trainer_of(bert(), tmp_path, callback, Evaluations(), eval_strategy=eval_strategy, eval_steps=6)
    trainer.train()
    assert trainer.state.global_step == 12
    assert [step for step, _ in seen] == [6, 12]  # once a check, also where the Trainer evaluates by itself
    assert [check.accuracy for check in callback.checks] == [value for _, value in seen]
    assert callback.checks[-1].spent.probe_samples == 2 * len(VALIDATION)
    assert callback.checks[-1].spent.probe_seconds > 0


def test_is_logged_by_the_trainer_and_loses_no_log_of_its(tmp_path):
    model = bert()
    reference = incop.measure(model, PROBE, flow.InformationFlow())
    masks = halved(model)
    callback = InCoPCallback(masks, probe=PROBE, meter=flow.InformationFlow(), reference=reference)
    trainer = trainer_of(model, tmp_path, callback, logging_strategy="steps", logging_steps=3, num_train_epochs=2)
    trainer.train()
    logs = trainer.state.log_history
    assert [log["step"] for log in logs if "loss" in log] == [3, 6, 9, 12]
    told = [log for log in logs if "incop_distance" in log]
    assert [log["step"] for log in told] == [6, 12]
    for log, check in zip(told, callback.checks, strict=True):
        assert log["incop_distance"] == check.distance
        assert log["incop_sparsity"] == masks.sparsity
        assert log["incop_stop"] == 0.0
        flows = {name.removeprefix("incop_flow/"): v for name, v in log.items() if name.startswith("incop_flow/")}
        assert flows == dict(check.flow.values)


def test_reports_reach_tensorboard(tmp_path, monkeypatch):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    model = bert()
    callback = InCoPCallback(halved(model), probe=PROBE, meter=flow.InformationFlow())
    trainer_of(model, tmp_path, callback, report_to="tensorboard", num_train_epochs=1).train()
    events = [file.parent for file in tmp_path.rglob("events.out*")]
    assert events
    tags = set()
    for folder in events:
        board = event_accumulator.EventAccumulator(str(folder))
        board.Reload()
        tags |= set(board.Tags()["scalars"])
    assert "train/incop_sparsity" in tags
    assert any(tag.startswith("train/incop_flow/") for tag in tags)


# --- checkpoints and resuming ---


def next_masks(model):
    return lambda: incop.prune(model, masks=incop.Masks.full(model), amount=pruning.Fraction(0.7))


def resumable(model, masks):
    """A callback with everything that a checkpoint has to hold."""
    return InCoPCallback(
        masks,
        probe=PROBE,
        meter=flow.InformationFlow(),
        rule=(stopping.FlowRestored(within=1e-9) | stopping.MaskSettled(less_than=1e-9)) | AtStep(15),
        reference=incop.measure(bert(seed=5), PROBE, flow.InformationFlow()),
        check_every="5steps",
        next_masks=next_masks(model),
    )


CHECKPOINTS = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training with a checkpoint at every step, never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    model = bert()
    masks = halved(model)
    callback = resumable(model, masks)
    trainer = trainer_of(model, folder, callback, **CHECKPOINTS)
    trainer.train()
    assert trainer.state.global_step == 15
    return folder, weights(model), callback.checks, masks, trainer.optimizer.state_dict()


@pytest.mark.parametrize("step", [3, 5, 6, 8, 12, 14])  # within an epoch, at a check, at an epoch's end
def test_resumes_exactly(tmp_path, whole, step):
    folder, end, checks, masks, optimizer = whole
    model = bert(seed=9)
    callback = resumable(model, None if step % 2 else masks)
    checkpoint = str(folder / f"checkpoint-{step}")
    trainer = trainer_of(model, tmp_path, callback, checkpoint=checkpoint, **CHECKPOINTS)
    trainer.train(resume_from_checkpoint=checkpoint)
    assert trainer.state.global_step == 15
    assert same(weights(model), end)
    assert [plain(check) for check in callback.checks] == [plain(check) for check in checks]
    assert callback.verdict == checks[-1].verdict
    assert callback.masks == masks
    now = trainer.optimizer.state_dict()["state"]
    assert all(torch.equal(value, now[n][key]) for n, one in optimizer["state"].items() for key, value in one.items())


def test_resumes_the_newest_checkpoint_of_the_folder(tmp_path, whole):
    folder, end, _, _, _ = whole
    mine = tmp_path / "copied elsewhere"
    for step in (4, 9):
        shutil.copytree(folder / f"checkpoint-{step}", mine / f"checkpoint-{step}")
    model = bert(seed=9)
    trainer_of(model, mine, resumable(model, None), **CHECKPOINTS).train(resume_from_checkpoint=True)
    assert same(weights(model), end)


def test_checkpoints_hold_zeros_under_the_users_own_keys(whole):
    folder, _, _, masks, _ = whole
    for step in (1, 8, 15):
        loaded = BertForSequenceClassification.from_pretrained(folder / f"checkpoint-{step}")
        assert set(loaded.state_dict()) == set(bert().state_dict())
        assert incop.Masks.of(loaded).remaining == masks.remaining
        assert all(not w.detach()[~masks[name]].any() for name, w in masks.weights(loaded).items())
        assert load_masks(folder / f"checkpoint-{step}" / "incop") == masks


def test_state_is_json_of_the_trainers_own(whole):
    folder = whole[0] / "checkpoint-8"
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["InCoPCallback"]["attributes"]["saved"]["watch"]["step"] == 8


@pytest.mark.parametrize("save", ["epoch", "best"])
def test_a_training_with_evaluations_resumes_exactly(tmp_path, save):
    settings = {"save_strategy": save, "eval_strategy": "epoch", "metric_for_best_model": "loss", "num_train_epochs": 3}

    def made(model, masks):
        rule = stopping.AccuracyRestored(drop=0.0) | stopping.AfterEpochs(3)
        return InCoPCallback(masks, rule=rule, reference_accuracy=1.0, accuracy="eval_accuracy", check_every=0.5)

    model = bert()
    callback = made(model, halved(model))
    trainer_of(model, tmp_path, callback, **settings).train()
    again = bert(seed=3)
    resumed = made(again, None)
    trainer_of(again, tmp_path, resumed, **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert same(weights(model), weights(again))
    assert [plain(check) for check in callback.checks] == [plain(check) for check in resumed.checks]
    assert len(callback.checks) == 6


def test_other_masks_than_the_checkpoints_are_refused(tmp_path, whole):
    model = bert()
    other = incop.prune(model, masks=incop.Masks.full(model), amount=pruning.Fraction(0.4))
    checkpoint = whole[0] / "checkpoint-3"
    trainer = trainer_of(model, tmp_path, resumable(model, other), checkpoint=checkpoint, **CHECKPOINTS)
    with pytest.raises(InputError, match="masks are not those of the checkpoint"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_another_reference_than_the_checkpoints_is_refused(tmp_path, whole):
    model = bert()
    callback = InCoPCallback(
        probe=PROBE, meter=flow.InformationFlow(), reference=incop.measure(model, PROBE, flow.InformationFlow())
    )
    checkpoint = whole[0] / "checkpoint-3"
    trainer = trainer_of(model, tmp_path, callback, checkpoint=checkpoint, **CHECKPOINTS)
    with pytest.raises(InputError, match=r"reference= is not that of the checkpoint"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_a_finished_training_is_not_trained_on(tmp_path, whole):
    model = bert()
    checkpoint = whole[0] / "checkpoint-15"
    trainer = trainer_of(model, tmp_path, resumable(model, None), checkpoint=checkpoint, **CHECKPOINTS)
    with pytest.raises(InputError, match="step 15 is over"):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert same(weights(model), whole[1])


def test_a_checkpoint_without_the_callback_is_refused(tmp_path):
    model = bert()
    trainer_of(model, tmp_path, **CHECKPOINTS).train()
    trainer = trainer_of(model, tmp_path, InCoPCallback(), **CHECKPOINTS)
    with pytest.raises(InputError, match="written without InCoPCallback"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_lost_masks_are_told(tmp_path, whole):
    folder = tmp_path / "checkpoint-3"
    shutil.copytree(whole[0] / "checkpoint-3", folder)
    shutil.rmtree(folder / "incop")
    model = bert()
    trainer = trainer_of(model, tmp_path, resumable(model, None), **CHECKPOINTS)
    with pytest.raises(InputError, match="the checkpoint's masks are not in"):
        trainer.train(resume_from_checkpoint=str(folder))


def test_masks_of_a_checkpoint_elsewhere_are_told(tmp_path, whole):
    model = bert()
    trainer = trainer_of(model, tmp_path, resumable(model, None), **CHECKPOINTS)
    with pytest.raises(InputError, match=r"not in .*attach\(trainer, checkpoint=…\)"):
        trainer.train(resume_from_checkpoint=str(whole[0] / "checkpoint-3"))
    callback = resumable(model, None).attach(trainer_of(model, tmp_path), checkpoint=whole[0] / "checkpoint-12")
    with pytest.raises(InputError, match="masks are not those of the checkpoint"):  # the rule's are of another step
        callback._trainer.train(resume_from_checkpoint=str(whole[0] / "checkpoint-6"))


def test_an_edited_state_is_told(tmp_path, whole):
    folder = tmp_path / "checkpoint-3"
    shutil.copytree(whole[0] / "checkpoint-3", folder)
    state = json.loads((folder / "trainer_state.json").read_text())
    del state["stateful_callbacks"]["InCoPCallback"]["attributes"]["saved"]["watch"]["checks"]
    (folder / "trainer_state.json").write_text(json.dumps(state))
    model = bert()
    with pytest.raises(InputError, match="incomplete or was edited"):
        trainer_of(model, tmp_path, resumable(model, None), **CHECKPOINTS).train(resume_from_checkpoint=str(folder))


def test_callbacks_built_anew_by_the_trainer_are_refused(tmp_path, whole):
    model = bert()
    settings = {**CHECKPOINTS, "restore_callback_states_from_checkpoint": True}
    trainer = trainer_of(model, tmp_path, resumable(model, None), **settings)
    with pytest.raises(InputError, match="restore_callback_states_from_checkpoint=True"):
        trainer.train(resume_from_checkpoint=str(whole[0] / "checkpoint-3"))


# --- once the training is over, and what is refused before it begins ---


def test_lets_go_at_the_end(tmp_path):
    model = bert()
    callback = InCoPCallback(halved(model))
    trainer = trainer_of(model, tmp_path, callback, num_train_epochs=1)
    trainer.train()
    assert "training_step" not in vars(trainer)
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters() if p._post_accumulate_grad_hooks)
    trainer.remove_callback(callback)
    trainer.train()
    assert incop.Masks.of(model).sparsity < 0.1  # nobody holds them any more


def test_trains_twice_with_one_callback(tmp_path):
    model = bert()
    masks = halved(model)
    callback = InCoPCallback(masks, rule=AtStep(4), check_every="2steps")
    trainer = trainer_of(model, tmp_path, callback)
    trainer.train()
    trainer.train()
    assert [check.step for check in callback.checks] == [2, 4]  # the second training's
    assert incop.Masks.of(model).remaining == masks.remaining


def test_a_training_that_fails_can_be_released(tmp_path):
    model = bert()

    class Failing(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise ZeroDivisionError

    callback = InCoPCallback(halved(model))
    trainer = trainer_of(model, tmp_path, callback, Failing())
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    callback.release()
    assert "training_step" not in vars(trainer)


def test_the_best_models_weights_are_sparse_too(tmp_path):
    model = bert()
    masks = halved(model)
    settings = {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}
    trainer_of(model, tmp_path, InCoPCallback(masks), **settings, metric_for_best_model="loss").train()
    assert incop.Masks.of(model).remaining == masks.remaining


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda: InCoPCallback({}), "masks is a dict"),
        (lambda: InCoPCallback(rule=stopping.AccuracyRestored(drop=0.0)), "needs the accuracy: pass accuracy="),
        (lambda: InCoPCallback(check_every="now and then"), "no stretch of training"),
    ],
)
def test_unusable_arguments(made, sentence):
    with pytest.raises(InputError, match=sentence):
        made()


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda: [InCoPCallback(rule=stopping.FlowRestored(within=0.1))], "needs a meter"),
        (lambda: [InCoPCallback(meter=flow.InformationFlow())], "a meter needs a probe"),
        (lambda: [InCoPCallback(), InCoPCallback()], "has another InCoPCallback"),
        (lambda: [InCoPCallback(incop.Masks.full(torch.nn.Linear(2, 2)))], "unknown masked weight"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*InCoPCallback")
def test_refused_before_the_first_step(tmp_path, made, sentence):
    model = bert()
    before = weights(model)
    with pytest.raises(InputError, match=sentence):
        trainer_of(model, tmp_path, *made()).train()
    assert same(weights(model), before)


def test_an_evaluation_that_cannot_be_is_told_before_the_first_step(tmp_path):
    model = bert()
    trainer = trainer_of(model, tmp_path, InCoPCallback(accuracy="accuracy"))
    trainer.eval_dataset = None
    with pytest.raises(InputError, match="give the Trainer an eval_dataset"):
        trainer.train()


def test_a_metric_that_is_not_there_is_told(tmp_path):
    trainer = trainer_of(bert(), tmp_path, InCoPCallback(accuracy="f1", check_every="2steps"))
    with pytest.raises(InputError, match=r"no metric 'f1' \(it has .*eval_accuracy"):
        trainer.train()
    assert trainer.state.global_step == 2


def test_sharded_weights_are_refused(tmp_path):
    trainer = trainer_of(bert(), tmp_path, InCoPCallback())
    callback = next(one for one in trainer.callback_handler.callbacks if isinstance(one, InCoPCallback))

    class Sharded(Trainer):
        is_fsdp_enabled = property(lambda self: True, lambda self, value: None)

        def train(self):
            callback.on_train_begin(self.args, self.state, self.control, model=self.model, optimizer=None)

    trainer.__class__ = Sharded
    with pytest.raises(InputError, match="FSDP keeps each weight in pieces"):
        trainer.train()


def test_a_trainer_that_it_is_not_attached_to_is_told(tmp_path):
    callback = InCoPCallback()
    trainer = trainer_of(bert(), tmp_path)
    trainer.add_callback(callback)
    with pytest.raises(InputError, match=r"not attached .*attach\(trainer\) instead of Trainer\(callbacks"):
        trainer.train()
    callback.attach(trainer_of(bert(), tmp_path))
    with pytest.raises(InputError, match="not attached to the Trainer that trains"):
        trainer.train()
    with pytest.raises(InputError, match=r"takes a transformers\.Trainer, not a Linear"):
        callback.attach(torch.nn.Linear(2, 2))


def test_attached_twice_it_is_called_once(tmp_path):
    callback = InCoPCallback()
    trainer = trainer_of(bert(), tmp_path, callback, callback, num_train_epochs=1)
    trainer.train()
    assert [check.step for check in callback.checks] == [6]
