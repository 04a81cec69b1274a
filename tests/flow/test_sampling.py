"""The sampling error of a flow, against a jackknife written out: measure the probe without each group, by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_meter import busy, trace_of
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import incop
from incop.errors import InputError
from incop.flow import GradientFlow, InformationFlow, SamplingError, sampling_error

METERS = [
    *(InformationFlow(r, alive_only=alive) for r in ("mean", "absolute", "square") for alive in (False, True)),
    *(GradientFlow(F.cross_entropy, statistic) for statistic in ("norm", "mean_abs")),
]
every_meter = pytest.mark.parametrize("meter", METERS, ids=str)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).double()


def probe(n=60, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=rng).double(), torch.randint(3, (n,), generator=rng)


def by_hand(model, x, y, meter, groups, reference=None, masks=None):
    """Leave out group j, sample i being of group i mod k, and measure; the jackknife's formula."""
    seen, place = [], torch.arange(len(x)) % groups
    whole = []
    for j in [*range(groups), None]:
        keep = place != j if j is not None else torch.ones(len(x), dtype=torch.bool)
        found = np.array(list(incop.measure(model, (x[keep], y[keep]), meter, masks=masks).values.values()))
        if reference is not None:
            found = found - list(incop.measure(reference, (x[keep], y[keep]), meter).values.values())
        (whole if j is None else seen).append(found)
    seen = np.array(seen)
    error = np.sqrt((groups - 1) / groups * ((seen - seen.mean(0)) ** 2).sum(0))
    return error, (groups - 1) * (seen.mean(0) - whole[0])


@every_meter
@pytest.mark.parametrize("groups", [2, 7, 60])
def test_equals_the_jackknife_by_hand(meter, groups):
    x, y = probe()
    error, bias = by_hand(net(), x, y, meter, groups)
    found = sampling_error(net(), (x, y), meter, groups=groups)
    assert list(found.values) == list(incop.measure(net(), (x, y), meter).values)
    assert list(found.values.values()) == pytest.approx(error, rel=1e-6, abs=1e-12)
    assert list(found.bias.values()) == pytest.approx(bias, rel=1e-5, abs=1e-11)
    assert found.samples == 60
    assert found.total == pytest.approx(np.linalg.norm(error))


@every_meter
def test_of_a_difference(meter):
    x, y = probe()
    error, bias = by_hand(net(), x, y, meter, 10, reference=net(3))
    found = sampling_error(net(), (x, y), meter, reference=net(3), groups=10)
    assert list(found.values.values()) == pytest.approx(error, rel=1e-6, abs=1e-12)
    assert list(found.bias.values()) == pytest.approx(bias, rel=1e-5, abs=1e-11)
    assert sampling_error(net(), (x, y), meter, reference=net(), groups=10).total == pytest.approx(0, abs=1e-14)


def test_of_a_loader_that_shuffles_both_networks_see_the_same_samples():
    shuffled = torch.Generator().manual_seed(0)  # of its own, which nobody brings back between two passes
    loader = DataLoader(TensorDataset(*probe(120)), batch_size=8, shuffle=True, generator=shuffled)
    for _ in range(3):
        assert sampling_error(net(), loader, METERS[2], reference=net(), groups=5).total == pytest.approx(0, abs=1e-14)


def test_masks_are_heeded():
    x, y = probe()
    masks = incop.prune(net(), amount=0.5)
    error, _ = by_hand(net(), x, y, METERS[-2], 6, masks=masks)
    found = sampling_error(net(), (x, y), METERS[-2], masks=masks, groups=6)
    assert list(found.values.values()) == pytest.approx(error, rel=1e-6)
    other = sampling_error(net(), (x, y), METERS[-2], reference=net(), reference_masks=masks, groups=6)
    assert other.total > 1e-6


@pytest.mark.parametrize("form", ["list", "keyword", "pairs", "few", "uneven"])
def test_any_form_of_probe(form):
    x, y = probe(96)
    given = {
        "list": list(x.split(4)),
        "keyword": [{"input": part, "labels": y[:8]} for part in x.split(8)],
        "pairs": list(zip(x.split(8), y.split(8), strict=True)),
        "few": [x[:40], x[40:]],
        "uneven": [*x[:60].split(7), x[60:]],
    }[form]
    found = sampling_error(net(), given, InformationFlow("square"), groups=8)
    assert found.samples == 96
    plain = sampling_error(net(), x, InformationFlow("square"), groups=8)
    assert 0.4 < found.total / plain.total < 2.5


def test_groups_are_as_even_as_can_be():
    from incop.batches import unpack
    from incop.flow.sampling import _groups

    x = torch.zeros(97, 2)
    for batches in ([x], list(x.split(5)), [x[:90], x[90:]], list(x.split(1))):
        sizes = [sum(batch.samples for batch in group) for group in _groups([unpack(b) for b in batches], 6)]
        assert sum(sizes) == 97
        assert max(sizes) - min(sizes) <= (5 if len(batches) == 20 else 2)
    uneven = [unpack(batch) for batch in x.split([1] * 13 + [28] * 3)]
    assert sorted(sum(batch.samples for batch in group) for group in _groups(uneven, 6)) == [4, 4, 5, 28, 28, 28]


@pytest.mark.parametrize("throws", [None, ValueError("no")])
def test_the_model_is_left_as_it_was(throws):
    model, x = busy(), torch.randn(40, 4)
    model.throws, model.after = throws, 3
    before = trace_of(model)
    if throws is None:
        sampling_error(model, x, InformationFlow("square"), groups=5)
    else:
        with pytest.raises(InputError, match="no"):
            sampling_error(model, x, InformationFlow("square"), groups=5)
    assert trace_of(model) == before


def test_samples_for():
    error = SamplingError({"a": 0.3, "b": 0.4}, {"a": 0.0, "b": 0.0}, samples=100)
    assert error.total == pytest.approx(0.5)
    assert (error.samples_for(0.5), error.samples_for(0.25), error.samples_for(0.24)) == (100, 400, 435)
    assert SamplingError({"a": 0.0}, {"a": 0.0}, samples=100).samples_for(0.1) == 2
    above = SamplingError({"a": 2.1}, {"a": 0.0}, samples=100)  # 2.1 / 0.3 is a little above 7
    assert above.samples_for(0.3) == 4900


@pytest.mark.parametrize("resolution", [0, -1.0, float("nan"), float("inf"), True, "0.1", None])
def test_no_resolution(resolution):
    with pytest.raises(InputError, match="the resolution must be a number above 0"):
        SamplingError({"a": 0.3}, {"a": 0.0}, samples=100).samples_for(resolution)


@pytest.mark.parametrize("groups", [1, 0, 2.0, True])
def test_no_groups(groups):
    with pytest.raises(InputError, match="whole number of at least 2"):
        sampling_error(net(), probe()[0], METERS[0], groups=groups)


def test_probes_that_are_refused():
    x, _ = probe(15)
    with pytest.raises(InputError, match="15 samples for 20 groups: pass more samples, or fewer groups="):
        sampling_error(net(), x, METERS[0])
    with pytest.raises(InputError, match="an iterator"):
        sampling_error(net(), iter([x]), METERS[0])
    with pytest.raises(InputError, match="empty"):
        sampling_error(net(), [], METERS[0])
    with pytest.raises(InputError, match="flows of other layers"):
        sampling_error(net(), probe()[0], METERS[0], reference=nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double())
    with pytest.raises(InputError, match="at least two"):
        sampling_error(nn.Linear(4, 2).double(), probe()[0], METERS[0])
    whole = {"x": torch.randn(30, 3), "scale": torch.tensor(2.0)}
    with pytest.raises(InputError, match="2 batches that cannot be divided, for 20 groups"):
        sampling_error(Scaled(), [whole, whole], METERS[0])


class Scaled(nn.Module):
    """One of its inputs belongs to the whole batch, so that a batch cannot be divided."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x, scale):
        return self.b(self.a(x * scale))


class Sums:
    """A meter of one's own: the mean output, from sums that merge."""

    def __init__(self, total=0.0, samples=0):
        self.total, self.samples = total, samples

    def merge(self, other):
        return Sums(self.total + other.total, self.samples + other.samples)


class MeanOutput:
    def chain(self, model, batch):
        return ("out",)

    def collect(self, model, batches, chain, masks):
        outputs = [model(*batch.args).detach() for batch in batches]
        return Sums(sum(float(out.mean(1).sum()) for out in outputs), sum(len(out) for out in outputs))

    def flow(self, statistics):
        return {"out": statistics.total / statistics.samples}


def test_a_meter_of_ones_own_and_the_error_of_a_mean():
    """Of a plain mean, with every sample a group, the jackknife is the textbook's s / √n."""
    x, _ = probe(50)
    rows = net()(x).detach().mean(1)
    found = sampling_error(net(), x, MeanOutput(), groups=50)
    assert found.values["out"] == pytest.approx(float(rows.std() / 50**0.5), rel=1e-9)
    assert found.bias["out"] == pytest.approx(0, abs=1e-12)
