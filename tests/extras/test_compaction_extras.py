"""Networks of libraries, with dead units: each answers as before, whether or not something could go."""

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn
from transformer_models import bert, gpt2, timm_vit, vit

from incop import Masks, export
from incop.batches import unpack
from incop.export.compaction import compact


def wounded(model):
    """Kill a third of the rows of every layer, and some columns; spread means and biases."""
    g = torch.Generator().manual_seed(0)
    masks = {}
    for name, weight in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        layer = isinstance(owner, nn.Linear | nn.modules.conv._ConvNd) or type(owner).__name__ == "Conv1D"
        if weight.dim() > 1 and layer:
            mask = torch.rand(weight.shape, generator=g) > 0.3
            mask[torch.rand(weight.shape[0], generator=g) < 0.35] = False
            mask[:, torch.rand(weight.shape[1], generator=g) < 0.1] = False
            masks[name] = mask
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=g).mul_(0.1)
            module.bias.data.normal_(generator=g).mul_(0.1)
    return Masks(masks)


def words():
    return {"input_ids": torch.randint(2, 30, (4, 7)), "attention_mask": torch.ones(4, 7, dtype=torch.long)}


def pictures(side, channels=3):
    return torch.randn(4, channels, side, side)


MODELS = {
    "bert": (bert, words, True),
    "gpt2": (lambda: gpt2(transformers.GPT2ForSequenceClassification), words, True),
    "vit": (vit, lambda: {"pixel_values": pictures(8, 1)}, True),
    "timm vit": (timm_vit, lambda: pictures(8, 1), True),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=5), lambda: pictures(32), True),
    "mobilenet": (lambda: timm.create_model("mobilenetv3_small_050", num_classes=5), lambda: pictures(32), True),
    "densenet": (
        lambda: torchvision.models.DenseNet(8, (2, 2), 8, num_classes=5), lambda: pictures(32), True,
    ),
    "vgg": (lambda: timm.create_model("vgg11_bn", num_classes=5), lambda: pictures(32), False),
}  # fmt: skip
SLOW = {"vgg"}  # 128 million weights: measured apart


@pytest.mark.parametrize("name", sorted(set(MODELS) - SLOW))
def test_a_library_network_answers_as_before(name):
    torch.manual_seed(0)
    build, batch, goes = MODELS[name]
    model = build()
    subject = export.Subject.of(model.double(), wounded(model), example=unpack(doubled(batch())))
    found = compact(subject)
    for _ in range(2):
        other = unpack(doubled(batch()))
        small = export.subject.Answers(found.model)(other)
        assert export.writing.difference(subject.outputs(other), small) <= 1e-6
    if goes:
        assert found.units > 0


def doubled(batch):
    if isinstance(batch, dict):
        return {name: t.double() if t.is_floating_point() else t for name, t in batch.items()}
    return batch.double()
