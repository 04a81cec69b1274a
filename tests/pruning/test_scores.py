import copy
import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from incop import Masks
from incop.errors import InputError
from incop.pruning import GradientTimesWeight, Magnitude, Random, Saliency, parse_score


def weights(model):
    return {n: model.get_parameter(n) for n in Masks.full(model)}


def test_magnitude():
    w = torch.tensor([-2.0, 0.0, -0.0, 1.0], requires_grad=True)
    score = Magnitude()(nn.Identity(), {"w": w})["w"]
    assert score.tolist() == [2.0, 0.0, 0.0, 1.0]
    assert not score.requires_grad
    assert w.tolist() == [-2.0, 0.0, 0.0, 1.0]


def test_random_repeats_itself_and_leaves_the_random_state():
    w = {"a": torch.zeros(50, 3), "b": torch.zeros(7)}
    state = torch.get_rng_state()
    one, two, other = Random(1)(None, w), Random(1)(None, w), Random(2)(None, w)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[n], two[n]) and one[n].shape == w[n].shape for n in w)
    assert not torch.equal(one["a"], other["a"])
    assert 0 <= float(one["a"].min()) < 0.1
    assert 0.9 < float(one["a"].max()) < 1


def test_random_does_not_depend_on_the_default_precision():
    before = Random(1)(None, {"a": torch.zeros(5)})["a"]
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(Random(1)(None, {"a": torch.zeros(5)})["a"], before)
    finally:
        torch.set_default_dtype(torch.float32)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(16, 16)
        self.tied = nn.Linear(16, 16)
        self.tied.weight = self.fc.weight
        self.out = nn.Linear(16, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        h = self.bn(self.conv(x)).relu().flatten(1)
        return self.out(self.drop(self.tied(self.fc(h).relu()).relu()))


def data(n=20):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 1, 4, 4, generator=g), torch.randint(3, (n,), generator=g)


@pytest.fixture
def net():
    torch.manual_seed(0)
    made = Net()
    made.bn.running_mean.normal_()
    made.train()
    return made


def oracle(net, x, y):
    twin = copy.deepcopy(net).double().eval()
    twin.zero_grad()
    functional.cross_entropy(twin(x.double()), y).backward()
    return {n: torch.zeros_like(w) if w.grad is None else (w * w.grad).abs().detach() for n, w in weights(twin).items()}


@pytest.mark.parametrize("cuts", [[20], [1] * 20, [7, 13], [16, 4]])
def test_gradient_times_weight_is_autograds_in_float64(net, cuts):
    x, y = data()
    wanted = oracle(net, x, y)
    batches = list(zip(x.split(cuts), y.split(cuts), strict=True))
    got = GradientTimesWeight(functional.cross_entropy, batches)(net, weights(net))
    assert list(got) == list(wanted)
    for name in wanted:
        assert torch.allclose(got[name].double(), wanted[name], rtol=1e-4, atol=1e-7), name
    assert not got["unused.weight"].any()


def test_gradient_times_weight_leaves_the_model_as_it_found_it(net):
    functional.cross_entropy(net(data()[0]), data()[1]).backward()
    state = {n: t.clone() for n, t in net.state_dict().items()}
    grads = {n: (p.grad, None if p.grad is None else p.grad.clone()) for n, p in net.named_parameters()}
    random = torch.get_rng_state()
    GradientTimesWeight(nn.CrossEntropyLoss(), [data()])(net, weights(net))
    assert all(torch.equal(t, state[n]) for n, t in net.state_dict().items())
    for n, p in net.named_parameters():
        assert p.grad is grads[n][0]
        assert p.grad is None or torch.equal(p.grad, grads[n][1])
    assert all(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), random)
    assert net.tied.weight is net.fc.weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_float32(net, dtype):
    x, y = data()
    low = copy.deepcopy(net).to(dtype)
    wanted = oracle(low, x.to(dtype), y)
    for inputs in (x.to(dtype), x.to(dtype).float()):
        got = GradientTimesWeight(functional.cross_entropy, [(inputs, y)])(low, weights(low))
        assert all(got[n].dtype == torch.float32 for n in got)
        assert all(torch.allclose(got[n].double(), wanted[n], rtol=1e-3, atol=1e-6) for n in wanted)
    assert low.fc.weight.dtype == dtype


def test_frozen_weights_have_a_score_too(net):
    x, y = data()
    wanted = oracle(net, x, y)
    w = weights(net)
    net.requires_grad_(False)
    got = GradientTimesWeight(functional.cross_entropy, [(x, y)])(net, w)
    assert torch.allclose(got["fc.weight"].double(), wanted["fc.weight"], rtol=1e-4, atol=1e-7)


def test_pruned_weights_score_nothing(net):
    with torch.no_grad():
        net.fc.weight[0] = 0
    got = GradientTimesWeight(functional.cross_entropy, [data()])(net, weights(net))
    assert not got["fc.weight"][0].any()


@pytest.mark.parametrize(
    ("loss", "batches", "what"),
    [
        (functional.cross_entropy, [data()[0]], "needs targets"),
        (functional.cross_entropy, [], "empty"),
        (functional.cross_entropy, iter([data()]), "iterator"),
        (functional.cross_entropy, [(torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.long))], "no sample at all"),
        (lambda o, t: functional.cross_entropy(o, t, reduction="none"), [data()], "must return one number"),
        (lambda o, t: functional.cross_entropy(o, t).item(), [data()], "must return one number"),
        (lambda o, t: functional.cross_entropy(o, t).detach(), [data()], "depends on the weights"),
    ],
)
def test_what_cannot_be_scored(net, loss, batches, what):
    with pytest.raises(InputError, match=what):
        GradientTimesWeight(loss, batches)(net, weights(net))


def test_a_summing_loss_is_refused():
    with pytest.raises(InputError, match="pass the loss with reduction='mean'"):
        GradientTimesWeight(nn.CrossEntropyLoss(reduction="sum"), [data()])


def test_in_words():
    assert [str(s) for s in (Magnitude(), Random(), GradientTimesWeight(nn.MSELoss(), []))] == [
        "magnitude",
        "random",
        "gradient",
    ]


@pytest.mark.parametrize("made", [Random(), GradientTimesWeight(None, [])])
def test_a_score_cannot_be_changed(made):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, dataclasses.fields(made)[0].name, 1)
    assert Random() == Random(seed=0)


def settings(score):
    return type(score), score.power if isinstance(score, Saliency) else score


@given(
    st.just(Magnitude())
    | st.builds(Random, st.integers(0, 2**31 - 1))
    | st.builds(Saliency, st.floats(0, 1))
    | st.just(GradientTimesWeight(functional.cross_entropy))
)
def test_what_a_score_writes_is_read_back(score):
    seed = score.seed if isinstance(score, Random) else 0
    assert settings(parse_score(str(score), seed=seed)) == settings(score)


@pytest.mark.parametrize(("text", "power"), [("saliency:0.25", 0.25), ("saliency:1", 1.0), ("saliency:.5", 0.5)])
def test_the_power_of_saliency_in_words(text, power):
    score = parse_score(text)
    assert (score.power, score.memory) == (power, 1000)


@pytest.mark.parametrize("power", ["", "x", "2", "-0.5", "nan", "inf", "0,5"])
def test_a_power_that_is_none(power):
    with pytest.raises(InputError, match=r"power .*\[0, 1\]"):
        parse_score(f"saliency:{power}")


def test_an_unknown_score_comes_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'magnitude'"):
        parse_score("magnitud")


def test_a_score_in_words_is_given_its_data_later():
    net, batches = nn.Linear(4, 2), [(torch.randn(6, 4), torch.randn(6, 2))]
    score = parse_score("gradient", loss=nn.MSELoss())
    with pytest.raises(InputError, match="gradient × weight has no data"):
        score(net, weights(net))
    found = score.with_data(batches)(net, weights(net))
    wanted = GradientTimesWeight(nn.MSELoss(), batches)(net, weights(net))
    assert torch.equal(found["weight"], wanted["weight"])
