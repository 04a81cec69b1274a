"""Taps read what a layer puts out, before anything changes it in place, and leave no hooks."""

import pytest
import torch
from torch import nn

from incop.errors import InputError
from incop.flow.taps import Paths, Taps, pooled


def read(model, chain, x):
    with torch.no_grad(), Taps(model, chain) as taps:
        model(x)
        return taps.read(samples=len(x))


def test_outputs_before_an_activation_in_place():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3), nn.ReLU(inplace=True))
    x = torch.randn(5, 4)
    rows = read(net, ["0", "2"], x)
    hidden = net[0](x)
    assert torch.equal(rows["0"], hidden)
    assert torch.equal(rows["2"], net[2](hidden.relu()))
    assert (rows["0"] < 0).any()


def test_a_layer_that_runs_twice():
    layer = nn.Linear(3, 3)
    net = nn.Sequential(layer, layer, nn.Linear(3, 2))
    x = torch.randn(4, 3)
    rows = read(net, ["0", "0#2", "2"], x)
    assert torch.equal(rows["0#2"], layer(layer(x)))
    assert list(read(net, ["2", "0#2"], x)) == ["2", "0#2"]


@pytest.mark.parametrize("throws", [RuntimeError, KeyboardInterrupt])
def test_hooks_are_gone_also_when_the_model_throws(throws):
    class Throws(nn.Module):
        def forward(self, x):
            raise throws

    net = nn.Sequential(nn.Linear(3, 3), Throws())
    with pytest.raises(throws), Taps(net, ["0"]), Paths(net):
        net(torch.zeros(1, 3))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize(
    ("chain", "x", "said"),
    [
        (["0", "1#2"], torch.randn(4, 3), "layer '1#2' of the chain did not run on this batch"),
        (["0", "2"], torch.randn(4, 6), "layer '0' returned 8 rows for 4 samples .*folded into the batch"),
        (["0", "3"], torch.randn(4, 3), "layer '3' returned torch.int64 of shape"),
        (["0", "4"], torch.randn(4, 3), "layer '4' returned torch.float32 of shape"),
        (["0", "5"], torch.randn(4, 3), "layer '5' returned a NoneType without a tensor"),
    ],
)
def test_what_cannot_be_read_is_refused(chain, x, said):
    class Return(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, x):
            return self.value

    class Model(nn.Sequential):
        def forward(self, x):
            x = self[2](self[1](self[0](x.reshape(-1, 3))))
            for extra in list(self)[3:]:
                extra(x)
            return x

    values = [Return(torch.zeros(4, 1).long()), Return(torch.tensor(1.0)), Return(None)]
    net = Model(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), *values)
    with pytest.raises(InputError, match=said):
        read(net, chain, x)


@pytest.mark.parametrize(
    ("module", "shape", "over"),
    [
        (nn.Conv1d(1, 1, 1), (2, 3, 4), (2,)),
        (nn.Conv2d(1, 1, 1), (2, 3, 4, 5), (2, 3)),
        (nn.ConvTranspose3d(1, 1, 1), (2, 3, 4, 5, 6), (2, 3, 4)),
        (nn.BatchNorm1d(1), (2, 3, 4), (2,)),
        (nn.InstanceNorm1d(1), (2, 3, 4), (2,)),
        (nn.GroupNorm(1, 1), (2, 3, 4), (2,)),
        (nn.Linear(1, 1), (2, 3, 4), (1,)),
        (nn.Linear(1, 1), (2, 3, 4, 5), (1, 2)),
        (nn.LayerNorm(1), (2, 3, 4, 5), (1, 2)),
        (nn.LSTM(1, 1), (2, 3, 4), (1,)),
        (nn.ReLU(), (2, 3, 4), (1,)),
        (nn.ReLU(), (2, 3, 4, 5), (2, 3)),
        (nn.Linear(1, 1), (2, 3), ()),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_pooled(module, shape, over, dtype):
    output = torch.randn(shape).to(dtype)
    rows = pooled(module, output.requires_grad_())
    assert not rows.requires_grad
    assert rows.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = output.detach().double().mean(over) if over else output.detach().double()
    assert torch.allclose(rows.double(), expected, atol=1e-6)


def test_pooled_half_precision_is_added_up_in_single():
    assert pooled(nn.Conv2d(1, 1, 1), torch.full((1, 2, 64, 64), 60000.0, dtype=torch.float16)).tolist() == [[6e4, 6e4]]


def test_pooled_does_not_care_about_memory_order():
    output = torch.randn(2, 3, 8, 8)
    last = output.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(pooled(nn.Conv2d(1, 1, 1), output), pooled(nn.Conv2d(1, 1, 1), last), atol=1e-6)


def test_paths():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x, times):
            for _ in range(times):
                x = self.fc(x)
            return x

    net, x = Model(), torch.zeros(1, 2)
    with Paths(net) as paths:
        assert list(paths.same([1, 2])) == [1, 2]  # nothing to hold against
        net(x, 2)
        net.fc(x)  # outside a forward pass of the model, as when checkpointing runs it again
        assert paths.last == ["fc", "fc"]
        for _ in paths.same([1, 2, 3]):
            net(x, 2)
        seen = paths.same([2, 0])
        net(x, next(seen))
        net(x, next(seen))
        with pytest.raises(InputError, match="layer 'fc' ran 0 times on one batch and 2 times on another"):
            next(seen)


@pytest.mark.parametrize(("module", "axis"), [(nn.Linear(1, 1), 0), (nn.Linear(1, 1), 1), (nn.Conv1d(1, 1, 1), 0)])
def test_pooled_over_real_tokens_only(module, axis):
    rows = torch.randn(3, 5, 4)  # samples, tokens, units
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 1, 1, 0, 1]]).bool()
    rows[~real] = float("nan")  # what stands at padding does not matter
    expected = torch.stack([row[mask].mean(0) for row, mask in zip(rows, real, strict=True)])
    output = rows.transpose(1, 2) if isinstance(module, nn.Conv1d) else rows.transpose(0, axis)
    assert torch.allclose(pooled(module, output, axis=axis, real=real), expected)
