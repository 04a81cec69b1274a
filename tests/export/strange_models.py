"""Models in which a careless removal of units goes wrong: each with its input."""

import torch
import torch.nn.functional as F
from torch import nn


class Module(nn.Module):
    """A module that is made of keyword parts, for short definitions."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)


def conv(i, o, k=3, p=1, **more):
    return nn.Conv2d(i, o, k, padding=p, **more)


class ReadTwice(Module):
    """Channels read by two layers, one of which may be deaf to them."""

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.b(h) + self.c(h)


class Middle(Module):
    """What lies in the middle is an answer too."""

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.b(h), h


class Left(Module):
    """What lies in the middle is left in an attribute, as some write feature extractors."""

    def forward(self, x):
        self.seen = torch.relu(self.a(x))
        return self.b(self.seen)


class FixedView(Module):
    """A view with numbers of its own."""

    def forward(self, x):
        h = F.max_pool2d(torch.relu(self.a(x)), 2)
        return self.b(h.view(-1, 8 * 16))


class FixedNumber(Module):
    """A number that follows from the width."""

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.b(h / h.shape[-1] + h.size(1) ** 0.5)


class Tied(Module):
    """An encoder whose weight is the decoder's."""

    def forward(self, x):
        return F.linear(torch.relu(self.a(x)), self.a.weight.t())


class TiedModules(Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__(a=nn.Linear(6, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 3))
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


class CalledTwice(Module):
    """A layer that runs twice."""

    def forward(self, x):
        h = torch.relu(self.a(x))
        for _ in range(2):
            h = torch.relu(self.b(h))
        return self.c(h)


class Padded(Module):
    """Constants through a padded convolution, seen at its border."""

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


class Normalized(Module):
    """Convolutions without biases, and batch normalization."""

    def forward(self, x):
        h = torch.relu(self.n(self.a(x)))
        h = self.m(self.b(h))
        return self.c(torch.tanh(h))


class Slopes(Module):
    """One slope a channel."""

    def forward(self, x):
        return self.b(self.s(self.a(x)))


class Grouped(Module):
    """Normalization over groups of channels."""

    def forward(self, x):
        return self.b(torch.relu(self.g(self.a(x))))


class Shuffled(Module):
    """Grouped convolutions and a shuffle of channels."""

    def forward(self, x):
        h = torch.relu(self.a(x))
        b, c, y, z = h.shape
        h = h.view(b, 2, c // 2, y, z).transpose(1, 2).reshape(b, c, y, z)
        return self.b(torch.relu(self.g(h)))


class Transposed(Module):
    """Transposed convolutions."""

    def forward(self, x):
        return self.b(torch.relu(self.u(torch.relu(self.a(x)))))


class Recurrent(Module):
    """A recurrent layer between linear ones."""

    def forward(self, x):
        h, _ = self.r(torch.relu(self.a(x)))
        return self.c(torch.relu(self.b(h[:, -1])))


class Scaled(Module):
    """A buffer and a parameter multiplied in."""

    def forward(self, x):
        return self.b(torch.relu(self.a(x)) * self.scale + self.shift[:, None, None])


class Concatenated(Module):
    """Branches one after the other, and the input among them."""

    def forward(self, x):
        h = torch.cat([torch.relu(self.a(x)), x, torch.sigmoid(self.b(x))], 1)
        return self.c(torch.cat([h, self.d(h)], 1))


class InPlace(Module):
    """Operations that write over what was there."""

    def forward(self, x):
        h = self.a(x)
        kept = h
        h.relu_().mul_(2)
        h += 1
        h[:, :, 0] = 3.0
        return self.b(h) + self.c(kept)


class OnlyInTraining(Module):
    """A branch that evaluation does not take."""

    def forward(self, x):
        h = torch.relu(self.a(x))
        if self.training:
            return self.b(h), self.aux(h)
        return self.b(h)


class Residual(Module):
    """A stream to which two branches add."""

    def forward(self, x):
        s = self.enter(x)
        s = s + self.b(torch.relu(self.a(s)))
        s = s + self.d(torch.relu(self.c(s)))
        return self.leave(torch.relu(s).mean((2, 3)))


class Widened(Module):
    """A shortcut without weights: every second pixel, and channels of zeros."""

    def forward(self, x):
        s = torch.relu(self.enter(x))
        way = F.pad(s[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        s = torch.relu(self.b(torch.relu(self.a(s))) + way)
        return self.leave(s.flatten(1))


class Squeezed(Module):
    """Channels weighed by what their means say, and a convolution of each by itself."""

    def forward(self, x):
        h = F.hardswish(self.na(self.a(x)))
        h = F.hardswish(self.nd(self.d(h)))
        gate = F.hardsigmoid(self.up(torch.relu(self.down(F.adaptive_avg_pool2d(h, 1)))))
        return self.leave(F.adaptive_avg_pool2d(self.out(h * gate), 1).flatten(1))


class Mixed(Module):
    """Layers along tokens and along channels."""

    def forward(self, x):
        h = self.enter(x)
        h = h + self.t2(F.gelu(self.t1(self.n1(h).transpose(1, 2)))).transpose(1, 2)
        h = h + self.c2(F.gelu(self.c1(self.n2(h))))
        return self.leave(h.mean(1))


class Pooled(Module):
    """Pools of all kinds, some with a border of zeros."""

    def forward(self, x):
        h = torch.relu(self.a(x))
        h = F.avg_pool2d(h, 3, 2, 1) + F.avg_pool2d(h, 3, 2, 1, count_include_pad=False) + F.max_pool2d(h, 3, 2, 1)
        return self.b(F.adaptive_max_pool2d(h, 2).flatten(1)) + self.c(h.amax((2, 3))) + self.d(h.sum((2, 3)))


class Gated(Module):
    """Halves that gate each other."""

    def forward(self, x):
        one, other = self.a(x).chunk(2, -1)
        return self.b(one * torch.sigmoid(other)) + self.c(F.glu(self.a2(x)))


class OverUnits(Module):
    """Functions of all units together."""

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.b(h.softmax(-1)) + self.c(F.normalize(self.a2(x), dim=-1)) + self.d(self.n(self.a3(x)))


class Picked(Module):
    """Units taken out by their number."""

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.b(h) + h[:, 2:5] + h[:, [0, 1, 3]] + h[:, -1:]


class Wraps(Module):
    """Borders that repeat what is there: a constant stays one."""

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


class Fanned(Module):
    """A unit made long by a broadcast."""

    def forward(self, x):
        return self.c(torch.relu(self.b(x)) * torch.relu(self.a(x)))


class WeightUsed(Module):
    """A weight that is also read by itself."""

    def forward(self, x):
        return self.b(torch.relu(self.a(x))) + self.a.weight.sum()


class Batch1Otherwise(Module):
    """A batch of one takes another way."""

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.b(h) if len(x) > 1 else self.b(h) + h.sum()


def image(n=6, c=2, s=8):
    return torch.randn(n, c, s, s)


def rows(n=6, w=6):
    return torch.randn(n, w)


def strange():
    """Return (model, input) by name."""
    linear, bn = nn.Linear, nn.BatchNorm2d
    return {
        "read twice": (ReadTwice(a=linear(6, 8), b=linear(8, 3), c=linear(8, 3)), rows()),
        "middle": (Middle(a=linear(6, 8), b=linear(8, 3)), rows()),
        "left": (Left(a=linear(6, 8), b=linear(8, 3)), rows()),
        "fixed view": (FixedView(a=conv(2, 8), b=linear(128, 3)), image()),
        "fixed number": (FixedNumber(a=linear(6, 8), b=linear(8, 3)), rows()),
        "tied": (Tied(a=linear(6, 8)), rows()),
        "tied modules": (TiedModules(), rows()),
        "called twice": (CalledTwice(a=linear(6, 8), b=linear(8, 8), c=linear(8, 3)), rows()),
        "padded": (Padded(a=conv(2, 8), b=conv(8, 6), c=conv(6, 3, p=0)), image()),
        "not padded": (Padded(a=conv(2, 8), b=conv(8, 6, p=0), c=conv(6, 3, 1, 0)), image()),
        "same": (Padded(a=conv(2, 8, p="same"), b=conv(8, 6, p="same"), c=conv(6, 3, p="valid")), image()),
        "1x1 with a border": (Padded(a=conv(2, 8), b=conv(8, 6, 1, 1), c=conv(6, 3, 1, 0)), image()),
        "normalized": (
            Normalized(a=conv(2, 8, bias=False), n=bn(8), b=conv(8, 6, p=0, bias=False), m=bn(6), c=conv(6, 3, p=0)),
            image(),
        ),
        "not affine": (
            Normalized(
                a=conv(2, 8, bias=False), n=bn(8, affine=False), b=conv(8, 6, 1, 0, bias=False), m=bn(6), c=conv(6, 3)
            ),
            image(),
        ),
        "statistics of the batch": (
            Normalized(
                a=conv(2, 8, bias=False),
                n=bn(8, track_running_stats=False),
                b=conv(8, 6, 1, 0, bias=False),
                m=bn(6),
                c=conv(6, 3),
            ),
            image(),
        ),
        "slopes": (Slopes(a=conv(2, 8), s=nn.PReLU(8), b=conv(8, 3, p=0)), image()),
        "one slope": (Slopes(a=linear(6, 8), s=nn.PReLU(), b=linear(8, 3)), rows()),
        "groups": (Grouped(a=conv(2, 8), g=nn.GroupNorm(2, 8), b=conv(8, 3)), image()),
        "by sample": (Grouped(a=conv(2, 8), g=nn.InstanceNorm2d(8, affine=True), b=conv(8, 3)), image()),
        "shuffled": (Shuffled(a=conv(2, 8), g=conv(8, 8, groups=4), b=conv(8, 3)), image()),
        "transposed": (
            Transposed(a=conv(2, 8), u=nn.ConvTranspose2d(8, 6, 3, 2, 1), b=nn.ConvTranspose2d(6, 3, 2, 2)),
            image(),
        ),
        "recurrent": (
            Recurrent(a=linear(6, 8), r=nn.LSTM(8, 5, batch_first=True), b=linear(5, 7), c=linear(7, 3)),
            torch.randn(6, 4, 6),
        ),
        "scaled": (
            Scaled(a=conv(2, 8), scale=torch.randn(1, 8, 1, 1), shift=nn.Parameter(torch.randn(8)), b=conv(8, 3, p=0)),
            image(),
        ),
        "scaled by position": (
            Scaled(
                a=conv(2, 8), scale=torch.randn(1, 8, 8, 8), shift=nn.Parameter(torch.randn(8)), b=conv(8, 3, p=0)
            ),
            image(),
        ),
        "concatenated": (Concatenated(a=conv(2, 4), b=conv(2, 5), d=conv(11, 3), c=conv(14, 3, p=0)), image()),
        "in place": (InPlace(a=conv(2, 8), b=conv(8, 3, p=0), c=conv(8, 3, p=0)), image()),
        "only in training": (OnlyInTraining(a=linear(6, 8), b=linear(8, 3), aux=linear(8, 2)), rows()),
        "residual": (
            Residual(
                enter=conv(2, 8), a=conv(8, 6), b=conv(6, 8), c=conv(8, 6, 1, 0), d=conv(6, 8), leave=linear(8, 3)
            ),
            image(),
        ),
        "widened": (
            Widened(enter=conv(2, 4), a=conv(4, 6, stride=2), b=conv(6, 8), leave=linear(8 * 16, 3)),
            image(),
        ),
        "squeezed": (
            Squeezed(
                a=conv(2, 8, bias=False),
                na=bn(8),
                d=conv(8, 8, groups=8, bias=False),
                nd=bn(8),
                down=conv(8, 4, 1, 0),
                up=conv(4, 8, 1, 0),
                out=conv(8, 6, 1, 0),
                leave=linear(6, 3),
            ),
            image(),
        ),
        "each by itself, not padded": (
            Padded(a=conv(2, 8), b=conv(8, 8, p=0, groups=8), c=conv(8, 3, p=0)),
            image(),
        ),
        "mixed": (
            Mixed(
                enter=linear(6, 8),
                n1=nn.LayerNorm(8),
                n2=nn.LayerNorm(8),
                t1=linear(5, 7),
                t2=linear(7, 5),
                c1=linear(8, 12),
                c2=linear(12, 8),
                leave=linear(8, 3),
            ),
            torch.randn(6, 5, 6),
        ),
        "pooled": (Pooled(a=conv(2, 8), b=linear(32, 3), c=linear(8, 3), d=linear(8, 3)), image()),
        "gated": (Gated(a=linear(6, 8), b=linear(4, 3), a2=linear(6, 8), c=linear(4, 3)), rows()),
        "over units": (
            OverUnits(
                a=linear(6, 8), b=linear(8, 3), a2=linear(6, 8), c=linear(8, 3), a3=linear(6, 8), d=linear(8, 3),
                n=nn.LayerNorm(8),
            ),
            rows(),
        ),
        "picked": (Picked(a=linear(6, 8), b=linear(8, 3)), rows()),
        "wraps": (
            Wraps(
                a=conv(2, 8, padding_mode="circular"),
                b=conv(8, 6, padding_mode="reflect"),
                c=linear(6, 3),
            ),
            image(),
        ),
        "fanned": (Fanned(a=linear(6, 8), b=linear(6, 1), c=linear(8, 3)), rows()),
        "weight used": (WeightUsed(a=linear(6, 8), b=linear(8, 3)), rows()),
        "batch of one otherwise": (Batch1Otherwise(a=linear(6, 8), b=linear(8, 3)), rows()),
        "volumes": (
            nn.Sequential(
                nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(48, 3)
            ),
            torch.randn(6, 2, 6, 6, 6),
        ),
        "series": (
            nn.Sequential(
                nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ELU(), nn.AvgPool1d(2), nn.Conv1d(6, 5, 3, bias=False),
                nn.BatchNorm1d(5), nn.Flatten(), nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3),
            ),
            torch.randn(6, 2, 10),
        ),
        "dropout and upsampling": (
            nn.Sequential(
                conv(2, 8), nn.Dropout2d(), nn.LeakyReLU(), nn.Upsample(scale_factor=2), conv(8, 6, p=0),
                nn.SiLU(), nn.AlphaDropout(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3),
            ),
            image(),
        ),
    }  # fmt: skip
