"""One contract for every network of the table, then the table itself."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from incop.errors import InputError
from incop.experiments import models

NAMES = [
    "lenet-300-100",
    "lenet-5",
    "conv-2",
    "conv-4",
    "conv-6",
    "resnet-20",
    "resnet-32",
    "resnet-56",
    "resnet-18",
    "vgg-11",
    "vgg-16",
]
INPUTS = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]


def count(model):
    return sum(p.numel() for p in model.parameters())


def weighted(model):
    """Convolution and linear layers by name, as registered."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def test_the_table_holds_the_networks():
    assert models.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_count_is_the_tables(name):
    row = models.entry(name)
    channels, *size = row.published_input
    model = models.build(name, channels=channels, size=tuple(size), classes=row.published_classes)
    assert count(model) == row.parameters
    assert count(row.build()) == row.parameters, "the builder's defaults are the published input"


# classes differ by input, so that every network sees each kind and none a constant
@pytest.mark.parametrize(("shape", "classes"), list(zip(INPUTS, [10, 2, 100], strict=True)))
@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward(name, shape, classes):
    channels, height, width = shape
    model = models.build(name, channels=channels, size=(height, width), classes=classes, seed=0)
    assert model.training
    out = model(torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)))
    assert out.shape == (4, classes)
    functional.cross_entropy(out, torch.arange(4) % classes).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(4, 4), (5, 7), (4, 33), (64, 16)])
def test_any_size_from_four_pixels(name, size):
    model = models.build(name, channels=2, size=size, classes=3, seed=0).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 2, *size)).shape == (1, 3)


@pytest.mark.parametrize("name", NAMES)
def test_every_kernel_weight_of_8_by_8_digits_can_learn(name):
    model = models.build(name, channels=1, size=(8, 8), classes=10, seed=0)
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    functional.cross_entropy(model(images), torch.arange(16) % 10).backward()
    for key, layer in weighted(model).items():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.grad.abs().sum(dim=(0, 1)).gt(0).all(), f"{key} has kernel places that see only padding"


@pytest.mark.parametrize("name", NAMES)
def test_modules_run_in_the_order_in_which_they_are_registered(name):
    model = models.build(name, channels=3, size=(32, 32), classes=10, seed=0).eval()
    ran = []
    for key, layer in weighted(model).items():
        layer.register_forward_hook(lambda *_, key=key: ran.append(key))
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    assert ran == list(weighted(model))


@pytest.mark.parametrize("name", NAMES)
def test_a_layers_output_is_not_changed_afterwards(name):
    model = models.build(name, channels=1, size=(8, 8), classes=10, seed=0).eval()
    seen = []
    for layer in weighted(model).values():
        layer.register_forward_hook(lambda _m, _x, out: seen.append((out, out.clone())))
    with torch.no_grad():
        model(torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert seen
    assert all(torch.equal(now, then) for now, then in seen)


@pytest.mark.parametrize("name", ["lenet-5", "resnet-20"])
def test_a_seed_repeats_and_leaves_the_global_state(name):
    def make(seed):
        return models.build(name, channels=1, size=(8, 8), classes=10, seed=seed).state_dict()

    torch.manual_seed(7)
    state = torch.get_rng_state()
    one, same, other = make(0), make(0), make(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def test_the_global_state_is_left_when_the_network_cannot_be_built():
    state = torch.get_rng_state()
    with pytest.raises(InputError):
        models.build("vgg-16", channels=3, size=(32, 32), classes=1, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_seed_the_global_state_draws():
    def make():
        return models.build("lenet-5", channels=1, size=(8, 8), classes=10).conv1.weight

    torch.manual_seed(3)
    one, other = make(), make()
    torch.manual_seed(3)
    assert torch.equal(make(), one)
    assert not torch.equal(one, other)


def test_a_seed_means_the_same_on_any_default_device():
    def make():
        return models.build("lenet-5", channels=1, size=(8, 8), classes=10, seed=0).conv1.weight

    with torch.device("meta"):
        elsewhere = make()
    assert torch.equal(elsewhere, make())


@pytest.mark.parametrize("name", NAMES)
def test_names_are_read_tolerantly(name):
    for spelling in (name.upper(), name.replace("-", ""), name.replace("-", "_")):
        assert models.entry(spelling).name == name


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match=r"unknown model 'lenet-6': did you mean 'lenet-5'\?"):
        models.build("lenet-6", channels=1, size=(8, 8), classes=10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"classes": 1}, "at least 2 classes to tell apart, not 1"),
        ({"channels": 0}, "at least 1 channel, not 0"),
        ({"size": (3, 8)}, "at least 4×4 pixels, not 3×8"),
        ({"size": (28,)}, r"height and width, not \(28,\)"),
    ],
)
def test_refusals_are_one_sentence(name, change, says):
    with pytest.raises(InputError, match=says) as caught:
        models.build(name, **{"channels": 1, "size": (28, 28), "classes": 10, **change})
    assert str(caught.value).startswith(f"{name} needs ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_complete(name):
    recipe = models.entry(name).recipe
    assert recipe.optimizer in ("sgd", "adam")
    assert recipe.schedule in ("constant", "cosine")
    assert 0 < recipe.lr <= 0.1
    assert recipe.batch_size >= 1
    assert recipe.epochs >= 1
    assert (recipe.momentum > 0) == (recipe.optimizer == "sgd")


@pytest.mark.parametrize(
    ("name", "size", "classes"), [("lenet-300-100", (4096, 4096), 10), ("lenet-300-100", (28, 28), 10_000_000)]
)
def test_a_network_too_large_for_any_machine_is_refused_before_it_is_built(name, size, classes):
    with pytest.raises(InputError, match=r"would have \d+ parameters, more than 500000000"):
        models.build(name, channels=3, size=size, classes=classes)
