import pytest
import torch
from torch.nn import functional

from incop.experiments.models.pooling import MaxPool2x2


def images(shape, *, ties):
    generator = torch.Generator().manual_seed(3)
    if ties:  # three different numbers: most squares hold a number twice
        return torch.randint(-1, 2, shape, generator=generator).float()
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shape", [(5, 6, 28, 28), (3, 16, 10, 12), (2, 1, 4, 4), (2, 3, 7, 6), (2, 3, 1 + 4, 5)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_torchs_to_the_bit(shape, ties, layout):
    x = images(shape, ties=ties).contiguous(memory_format=layout)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    a, b = MaxPool2x2()(mine), functional.max_pool2d(theirs, 2)
    assert torch.equal(a, b)
    weights = images(b.shape, ties=False)
    (a * weights).sum().backward()
    (b * weights).sum().backward()
    assert torch.equal(mine.grad, theirs.grad)
    with torch.no_grad():
        assert torch.equal(MaxPool2x2()(x), b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_go_torchs_way(dtype):
    x = images((2, 3, 8, 8), ties=False).to(dtype)
    assert torch.equal(MaxPool2x2()(x), functional.max_pool2d(x, 2))


def test_gradients_of_gradients_are_torchs():
    def second(pool):
        x = images((2, 3, 8, 8), ties=True).requires_grad_()
        (first,) = torch.autograd.grad((pool(x) ** 3).sum(), x, create_graph=True)
        return torch.autograd.grad((first**2).sum(), x)[0]

    torch.testing.assert_close(second(MaxPool2x2()), second(lambda x: functional.max_pool2d(x, 2)))


def test_gradients_of_every_sample_are_torchs():
    x = images((4, 3, 8, 8), ties=True)

    def each(pool):
        return torch.func.vmap(torch.func.grad(lambda one: (pool(one[None]) ** 2).sum()))(x)

    assert torch.equal(each(MaxPool2x2()), each(lambda x: functional.max_pool2d(x, 2)))


def test_a_number_that_is_none_stays_one():
    x = torch.full((1, 1, 2, 2), torch.nan)
    assert MaxPool2x2()(x).isnan().all()
