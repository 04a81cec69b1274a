"""Networks the statements are held against: drawn at random, and really trained. Each is trained once a session."""

import os

import pytest
import torch
from theory_networks import Network, cnn, mlp, train

import incop
from incop.experiments import datasets


@pytest.fixture(scope="session")
def digits():
    """The training images of the digits, standardised, (n, 64), and their labels."""
    data = datasets.load("digits")
    return (data.train.images.double().flatten(1) / 255 - 0.3) / 0.376, data.train.labels


@pytest.fixture(scope="session")
def trained(digits):
    """A network trained on the digits until it knows its training images."""
    torch.manual_seed(0)
    model, names = mlp(64, 24, 16)
    train(model, *digits, epochs=25)
    assert (model(digits[0]).argmax(1) == digits[1]).double().mean() > 0.97
    return Network(model.eval(), *digits, names)


@pytest.fixture(scope="session")
def sparse(trained):
    """The same network after two cuts to a tenth of its weights, trained after each."""
    model = trained.copy()
    masks = None
    for keep in (0.3, 1 / 3):
        masks = incop.prune(model, masks=masks, amount=1 - keep)
        train(model, trained.x, trained.y, epochs=12, masks=masks)
    assert (model(trained.x).argmax(1) == trained.y).double().mean() > 0.85
    return Network(model.eval(), trained.x, trained.y, trained.names)


@pytest.fixture(scope="session")
def trained_cnn(digits):
    torch.manual_seed(0)
    model, names = cnn()
    x = digits[0].reshape(-1, 1, 8, 8)
    train(model, x, digits[1], epochs=10)
    assert (model(x).argmax(1) == digits[1]).double().mean() > 0.9
    return Network(model.eval(), x, digits[1], names)


@pytest.fixture(scope="session")
def trained_mnist():
    if not os.environ.get("INCOP_DATA"):
        pytest.skip("MNIST is not here: INCOP_DATA names no folder")
    data = datasets.load("mnist", limit=1500)
    x, y = data.train.images.double().flatten(1) / 255, data.train.labels
    torch.manual_seed(0)
    model, names = mlp(784, 32, 16)
    train(model, x, y, epochs=6)
    assert (model(x).argmax(1) == y).double().mean() > 0.9
    return Network(model.eval(), x, y, names)


@pytest.fixture(scope="session")
def untrained(digits):
    torch.manual_seed(5)
    model, names = mlp(64, 12, 9)
    return Network(model.eval(), *digits, names)


NETWORKS = ["untrained", "trained", "sparse", "trained_cnn", "trained_mnist"]


@pytest.fixture(params=NETWORKS)
def network(request):
    """Each of the networks in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["untrained", "trained", "trained_mnist"])
def dense(request):
    """The fully connected ones with all their weights."""
    return request.getfixturevalue(request.param)
