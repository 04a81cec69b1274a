"""Objects of torchmetrics judge a search in their own direction, and tables of datasets and their batches are trained on."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import incop
from incop import search, stopping
from incop.errors import InputError
from incop.records import Metric

pytestmark = pytest.mark.filterwarnings("ignore")  # what libraries' own imports warn of is not ours
X = torch.randn(60, 4, generator=torch.Generator().manual_seed(5))
Y = (10 * X).sum(-1, keepdim=True)
LABELS = (X[:, :3] > 0).long()


def net(outputs):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, outputs))


def test_rmse_and_its_direction():
    torchmetrics = pytest.importorskip("torchmetrics")
    metric = torchmetrics.MeanSquaredError(squared=False)
    trainer = incop.Trainer((X, Y), (X, Y), epochs=3, batch_size=20, loss=functional.mse_loss, metric=metric)
    assert trainer.measures == Metric("MeanSquaredError", higher_is_better=False)
    model = net(1)
    tickets = list(search(model, trainer, levels=2, rewind="rate", rule=stopping.MetricRestored(drop=0.5)))
    with torch.no_grad():
        by_hand = float(functional.mse_loss(model(X), Y).sqrt())
    assert tickets[-1].record.metric_value == pytest.approx(by_hand)
    assert by_hand > 1
    assert trainer.evaluate(model, [(X[:13], Y[:13]), (X[13:], Y[13:])]) == pytest.approx(by_hand)


def test_several_labels_by_f1():
    torchmetrics = pytest.importorskip("torchmetrics")
    metric = torchmetrics.classification.MultilabelF1Score(num_labels=3)
    trainer = incop.Trainer(
        (X, LABELS.float()),
        (X, LABELS),
        epochs=20,
        batch_size=10,
        lr=0.01,
        loss=functional.binary_cross_entropy_with_logits,
        metric=metric,
    )
    tickets = list(search(net(3), trainer, levels=1, rewind="rate"))
    assert tickets[0].record.metric == Metric("MultilabelF1Score", higher_is_better=True)
    assert tickets[-1].record.metric_value > 0.7


def test_a_metric_of_several_numbers_is_told():
    torchmetrics = pytest.importorskip("torchmetrics")
    metric = torchmetrics.classification.MulticlassF1Score(num_classes=3, average=None)
    trainer = incop.Trainer((X, LABELS[:, 0]), (X, LABELS[:, 0]), metric=metric)
    with pytest.raises(InputError, match=r"gives a Tensor, where one number for the split belongs"):
        trainer.evaluate(net(3))


def test_a_metric_without_a_direction_asks_for_it():
    torchmetrics = pytest.importorskip("torchmetrics")
    with pytest.raises(InputError, match=r"does not say whether more of it is better"):
        incop.Trainer((X, Y), (X, Y), metric=torchmetrics.MeanMetric())


def test_rows_of_a_table_in_the_form_of_datasets():
    library = pytest.importorskip("datasets")
    rows = library.Dataset.from_dict({"input": X.tolist(), "labels": LABELS[:, 0].tolist()}).with_format("torch")
    loader = torch.utils.data.DataLoader(rows, batch_size=10, shuffle=True)
    trainer = incop.Trainer(loader, loader, epochs=20, lr=0.02)
    tickets = list(search(net(2), trainer, levels=1, rewind="rate"))
    assert tickets[0].record.val_accuracy > 0.8
    assert trainer.inexact is None
    with pytest.raises(InputError, match=r"does not say how many batches it has, such as a stream"):
        incop.Trainer(torch.utils.data.DataLoader(rows.to_iterable_dataset(), batch_size=10), loader)


def test_token_batches_for_a_classifier_and_a_language_model():
    transformers = pytest.importorskip("transformers")
    from incop.experiments import models

    tokens = torch.randint(50, (24, 6), generator=torch.Generator().manual_seed(1))
    rows = [
        {"input_ids": t, "attention_mask": torch.ones(6, dtype=torch.int64), "labels": int(t[0] > 25)} for t in tokens
    ]
    loader = torch.utils.data.DataLoader(rows, batch_size=8, shuffle=True)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 50,
    }
    model = models.build("hf:bert", classes=2, task="text", arguments=sizes, seed=0)
    tickets = list(search(model, incop.Trainer(loader, loader, epochs=1), levels=1, rewind="rate"))
    assert 0 <= tickets[1].record.val_accuracy <= 1

    def next_token(output, target):
        return functional.cross_entropy(output[:, :-1].flatten(0, 1), target[:, 1:].flatten())

    loader = torch.utils.data.DataLoader([{"input_ids": t, "labels": t} for t in tokens], batch_size=8, shuffle=True)
    model = models.build("hf:llama", classes=0, task="language", arguments=sizes, seed=0)
    trainer = incop.Trainer(loader, loader, epochs=1, loss=next_token, metric=next_token, higher_is_better=False)
    tickets = list(search(model, trainer, levels=1, rewind="rate", rule=stopping.MetricRestored(0.1)))
    assert tickets[1].record.metric.name == "next_token"
    assert transformers is not None
