"""Models nobody prepared for: each is pruned, held, searched and measured, or refused with a sentence that says what to pass."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import incop
from incop import flow, pruning, stopping
from incop.batches import unpack
from incop.errors import InputError
from incop.layers import prunable

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # of the loop's own evaluation

N = 12  # samples of every probe


# ---- the models


class Recurrent(nn.Module):
    """Words, an LSTM of two layers both ways, and a classifier of its last states."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(9, 6), nn.Linear(10, 3)
        self.lstm = nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True, dropout=0.2)

    def forward(self, ids):
        _, (last, _) = self.lstm(self.words(ids))
        return self.head(torch.cat([last[-2], last[-1]], 1))


class TimeFirst(nn.Module):
    """A GRU that wants time as its first dimension, and a layer on each of its steps."""

    def __init__(self):
        super().__init__()
        self.enter, self.gru, self.each, self.head = nn.Linear(4, 6), nn.GRU(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        steps, _ = self.gru(self.enter(x.transpose(0, 1)))
        return self.head(torch.tanh(self.each(steps)).mean(0))


class Packed(nn.Module):
    """Series of different lengths, packed."""

    def __init__(self):
        super().__init__()
        self.enter, self.rnn, self.head = nn.Linear(4, 6), nn.RNN(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x, sizes):
        packed = pack_padded_sequence(self.enter(x), sizes, batch_first=True, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][-1])


class Cell(nn.Module):
    """A recurrent cell called once a step by hand."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTMCell(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0])


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.bottom = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.up, self.leave = nn.ConvTranspose2d(6, 4, 2, 2), nn.Conv2d(8, 1, 1)

    def forward(self, x):
        high = torch.relu(self.enter(x))
        low = torch.relu(self.bottom(F.max_pool2d(high, 2)))
        return self.leave(torch.cat([high, self.up(low)], 1))


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5)), nn.Linear(5, 3)

    def forward(self, a, b):
        return self.head((self.body(a) - self.body(b)).abs())


class Series(nn.Module):
    """Conv1d and Linear on a series of several channels."""

    def __init__(self):
        super().__init__()
        self.mix, self.conv, self.head = nn.Linear(4, 6), nn.Conv1d(6, 5, 3, padding=1), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.relu(self.conv(torch.relu(self.mix(x)).transpose(1, 2))).amax(2))


class AnyOrder(nn.Module):
    """Runs its layers in the order that the data say."""

    def __init__(self):
        super().__init__()
        self.steps, self.head = nn.ModuleList(nn.Linear(4, 4) for _ in range(3)), nn.Linear(4, 3)

    def forward(self, x):
        for i in x.mean(0)[:3].argsort().tolist():
            x = torch.tanh(self.steps[i](x))
        return self.head(x)


class Heads(nn.Module):
    """Several answers in a dictionary, and a target for each."""

    def __init__(self):
        super().__init__()
        self.body, self.kind, self.size = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 1)

    def forward(self, x):
        h = torch.relu(self.body(x))
        return {"kind": self.kind(h), "size": self.size(h)}


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(1 + 3 * i, 3, 3, padding=1) for i in range(3))
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, torch.relu(layer(x))], 1)
        return self.head(x.mean((2, 3)))


class Mixture(nn.Module):
    """Experts that see only the samples a gate sends them, perhaps none."""

    def __init__(self):
        super().__init__()
        self.gate, self.head = nn.Linear(4, 3), nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        scores = self.gate(x)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            mine = (scores.argmax(1) == i).nonzero().flatten()
            if len(mine):
                out = out.index_add(0, mine, expert(x[mine]) * scores.softmax(1)[mine, i, None])
        return self.head(torch.tanh(out))


class Folds(nn.Module):
    """Folds the steps of a series into the batch."""

    def __init__(self):
        super().__init__()
        self.each, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.relu(self.each(x.flatten(0, 1))).reshape(len(x), -1, 5).mean(1))


class Graph(nn.Module):
    """Nodes and a list of edges; the nodes are the samples. Messages may have a layer of their own, a row an edge."""

    def __init__(self, messages):
        super().__init__()
        self.message = nn.Linear(4, 4) if messages else nn.Identity()
        self.own, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, nodes, edges):
        sent = torch.zeros_like(nodes).index_add(0, edges[1], torch.tanh(self.message(nodes[edges[0]])))
        return self.head(torch.relu(self.own(nodes + sent)))


class Tokens(nn.Module):
    """torch's own transformer, with padding and with time first or second."""

    def __init__(self, batch_first):
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=batch_first, dropout=0.1)
        self.words, self.batch_first = nn.Embedding(9, 6), batch_first
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first), nn.Linear(6, 3)

    def forward(self, ids, src_key_padding_mask):
        x = self.words(ids)
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.encoder(x, src_key_padding_mask=src_key_padding_mask)
        return self.head(x[:, 0] if self.batch_first else x[0])


class Speaks(nn.Module):
    """A language model with tied words."""

    def __init__(self):
        super().__init__()
        self.words, self.lstm, self.out = nn.Embedding(9, 6), nn.LSTM(6, 6), nn.Linear(6, 9, bias=False)
        self.out.weight = self.words.weight

    def forward(self, ids):
        return self.out(self.lstm(self.words(ids).transpose(0, 1))[0].transpose(0, 1))


class NoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return (x * self.scale)[:, :3]


class Bare(nn.Module):
    """Most of its weights are no module's that anybody knows."""

    def __init__(self):
        super().__init__()
        self.up, self.enter, self.head = nn.Parameter(torch.randn(4, 20)), nn.Linear(4, 4), nn.Linear(20, 3)
        self.down = nn.Parameter(torch.randn(20, 20) / 5)

    def forward(self, x):
        return self.head(torch.relu(torch.relu(self.enter(x)) @ self.up) @ self.down)


# ---- their data


def generator():
    return torch.Generator().manual_seed(5)


def rows(*shape):
    return torch.randn(N, *shape, generator=generator())


def classes():
    return torch.arange(N) % 3


IDS = torch.randint(1, 9, (N, 7), generator=generator())
SIZES = torch.randint(1, 8, (N,), generator=generator()).clamp(max=7)
PADDING = torch.arange(7)[None] >= SIZES[:, None]
EDGES = torch.randint(N, (2, 30), generator=generator())


def two_losses(output, target):
    return F.cross_entropy(output["kind"], target["kind"]) + F.mse_loss(output["size"], target["size"])


@dataclass
class Case:
    """A model, a probe of all samples, a loss; the weights it must have pruned; what is refused, and what then works."""

    build: Callable
    probe: object
    weights: int
    loss: Callable = F.cross_entropy
    information: str = ""
    gradient: str = ""
    chain: tuple = ()
    whole: bool = False
    whole_only: bool = False  # its samples cannot be cut into batches
    batchwise: bool = False  # what it does with a sample depends on the others of its batch
    skip: tuple = ()
    pairs: tuple = field(default=())


TURNED = "samples along the second dimension"
CASES = {
    "LSTM classifier": Case(Recurrent, (IDS, classes()), 9, pairs=("lstm->head",)),
    "GRU, time first": Case(TimeFirst, (rows(7, 4), classes()), 5, pairs=("enter->gru", "gru->each", "each->head")),
    "packed series": Case(Packed, ((rows(7, 4), SIZES), classes()), 4, pairs=("enter->rnn", "rnn->head")),
    "recurrent cell": Case(Cell, (rows(3, 4), classes()), 3, pairs=("cell->cell#2", "cell#2->cell#3", "cell#3->head")),
    "U-Net": Case(UNet, (rows(1, 8, 8), rows(1, 8, 8)), 4, F.mse_loss, pairs=("enter->bottom", "bottom->up", "up->leave")),
    "Siamese": Case(
        Siamese, ((rows(4), rows(4).flip(0)), classes()), 3,
        pairs=("body.0->body.2", "body.0#2->body.2#2", "body.2->head", "body.2#2->head"),
    ),
    "Conv1d and Linear on series": Case(Series, (rows(7, 4), classes()), 3, pairs=("mix->conv", "conv->head")),
    "any order": Case(
        AnyOrder, (rows(4), classes()), 4, information="ran on one batch where .* order that depends on the data.*chain=",
        gradient="ran on one batch where", chain=("steps.0", "head"), batchwise=True,
    ),
    "convolutions only": Case(
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 6), nn.Flatten()),
        (rows(1, 8, 8), classes()), 2, pairs=("0->2",),
    ),
    "several answers": Case(
        Heads, (rows(4), {"kind": classes(), "size": rows(1)}), 3, two_losses, pairs=("body->kind", "body->size"),
        gradient=r"several tensors \(kind, size\) and none under 'logits': .*whole=True", whole=True,
    ),
    "concatenation": Case(
        Dense, (rows(1, 8, 8), classes()), 4, pairs=("layers.0->layers.1", "layers.1->layers.2", "layers.2->head")
    ),
    "depthwise and grouped": Case(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(),
            nn.Linear(96, 3),
        ),
        (rows(1, 8, 8), classes()), 4, pairs=("0->1", "1->3", "3->5"),
    ),
    "mixture of experts": Case(
        Mixture, (rows(4), classes()), 5, information=r"layer 'experts.\d' returned \d rows for \d samples.*chain=|ran \d times on",
        gradient=r"ran \d times on one batch.*chain=", chain=("gate", "head"),
    ),
    "steps folded into the batch": Case(
        Folds, (rows(5, 4), classes()), 2, information="layer 'each' returned 10 rows for 2 samples .*chain=", chain=()
    ),
    "graph": Case(lambda: Graph(messages=False), ((rows(4), EDGES), classes()), 2, whole_only=True, pairs=("own->head",)),
    "graph with messages": Case(
        lambda: Graph(messages=True), ((rows(4), EDGES), classes()), 3, whole_only=True,
        information="layer 'message' returned 30 rows for 12 samples .*chain=", chain=("own", "head"),
    ),
    **{
        f"torch's transformer, {name}": Case(
            lambda first=first: Tokens(first), ({"ids": IDS, "src_key_padding_mask": PADDING}, classes()), 9,
            pairs=(
                *(f"encoder.layers.{i}.{a}->encoder.layers.{j}.{b}" for i, a, j, b in (
                    (0, "self_attn", 0, "linear1"), (0, "linear1", 0, "linear2"), (0, "linear2", 1, "self_attn"),
                    (1, "self_attn", 1, "linear1"), (1, "linear1", 1, "linear2"),
                )),
                "encoder.layers.1.linear2->head",
            ),
        )
        for name, first in (("batch first", True), ("time first", False))
    },
    "language model": Case(
        Speaks, (IDS, IDS.masked_fill(PADDING, -100)), 2, flow.TokenLoss(), pairs=("lstm->out",)
    ),
    "bare parameters": Case(Bare, (rows(4), classes()), 2, skip=("up", "down"), pairs=("enter->head",)),
}  # fmt: skip

every_model = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def built(case):
    torch.manual_seed(0)
    return case.build()


def batches(case, size=5):
    """The probe in batches; as one where it cannot be cut."""
    whole = unpack(case.probe)
    if case.whole_only:
        return [whole]

    def cut(value, at):
        if isinstance(value, torch.Tensor):
            return value[at : at + size]
        if isinstance(value, dict):
            return {k: cut(v, at) for k, v in value.items()}
        return tuple(cut(v, at) for v in value)

    return [(cut(case.probe[0], at), cut(case.probe[1], at)) for at in range(0, N, size)]


def meters(case, chain=None):
    return flow.InformationFlow("square", chain=chain), flow.GradientFlow(case.loss, chain=chain, whole=case.whole)


def bits(model):
    return {n: t.detach().reshape(-1).view(torch.uint8).tolist() for n, t in model.state_dict().items()}


class Loop:
    """A trainer such as anybody would write it for such a model."""

    epochs = 2

    def __init__(self, case):
        self.case, self.batches = case, [unpack(batch) for batch in batches(case)]

    def loss(self, model, batch):
        output = model(*batch.args, **batch.kwargs)
        return self.case.loss(output, batch.target)

    def fit(self, model, masks, watch):
        optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)
        model.train()
        with incop.hold(masks, model, optimizer):
            for epoch in range(self.epochs):
                for batch in self.batches:
                    optimizer.zero_grad()
                    self.loss(model, batch).backward()
                    optimizer.step()
                    watch.stepped(batch.samples)
                if watch.look(accuracy=self.evaluate(model), epoch=epoch + 1).stop:
                    return

    @torch.no_grad()
    def evaluate(self, model):
        was = model.training
        model.eval()
        losses = [float(self.loss(model, batch)) for batch in self.batches]
        model.train(was)
        return 1 / (1 + sum(losses) / len(losses))


# ---- what is asked of each


@every_model
def test_all_main_weights_are_pruned_and_held(case):
    model = built(case)
    masks = pruning.prune(model, amount=0.5, skip=case.skip)
    assert len(masks) == case.weights
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices = [
        n for n, p in model.named_parameters() if p.dim() > 1 and id(p) not in embeddings and n not in case.skip
    ]
    assert set(masks) == {n for n in matrices if n not in case.skip}
    names = list(model.state_dict())
    masks.apply(model)
    watch = incop.Watch(model)
    Loop(case).fit(model, masks, watch)
    assert watch.step > 0
    assert list(model.state_dict()) == names
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert bool((weight[~mask] == 0).all())
        assert bool((weight[mask] != 0).all())


def test_the_number_of_weights_that_each_case_names_is_the_models_own():
    assert {name: len(prunable(built(case), skip=case.skip)) for name, case in CASES.items()} == {
        name: case.weights for name, case in CASES.items()
    }


@every_model
@pytest.mark.parametrize("which", ["information", "gradient"])
def test_a_flow_is_measured_or_refused(case, which):
    model, refused = built(case), getattr(case, which)
    meter = meters(case, case.chain or None)[which == "gradient"]
    if refused:
        plain = (flow.InformationFlow("square"), flow.GradientFlow(case.loss))[which == "gradient"]
        before = bits(model)
        with pytest.raises(InputError, match=refused) as caught:
            incop.measure(model, batches(case), plain)
        assert "\n" not in str(caught.value)
        assert bits(model) == before
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        if not (case.chain or case.whole):
            return
    before, modes = bits(model), [m.training for m in model.modules()]
    one = incop.measure(model, case.probe, meter)
    many = incop.measure(model, batches(case), meter)
    assert (bits(model), [m.training for m in model.modules()]) == (before, modes)
    assert one.samples == many.samples == N
    if not case.batchwise:
        assert many.values == pytest.approx(one.values, rel=1e-4, abs=1e-6)
    assert all(0 <= value < float("inf") for value in one.values.values())
    assert any(value > 1e-6 for value in one.values.values())
    if case.pairs and which == "information":
        assert tuple(one.values) == case.pairs


@every_model
def test_gradients_are_those_of_autograd(case):
    if case.batchwise:
        return
    model = built(case)
    meter = meters(case, case.chain or None)[1]
    found = incop.measure(model, batches(case), meter).values if not case.gradient or case.whole else {}
    whole = unpack(case.probe)
    was = copy.deepcopy(model).double().eval()
    double = [a.double() if a.is_floating_point() else a for a in whole.args]
    target = whole.target
    target = target.double() if isinstance(target, torch.Tensor) and target.is_floating_point() else target
    case.loss(was(*double, **whole.kwargs), target).backward()
    for name, value in found.items():
        weight = was.get_parameter(name if name in dict(was.named_parameters()) else f"{name}.weight")
        assert value == pytest.approx(float(weight.grad.norm()), rel=1e-3, abs=1e-7), name


@every_model
@pytest.mark.parametrize("which", ["information", "gradient"])
def test_a_search_works_or_is_refused_before_training(case, which):
    model = built(case)
    options = {"levels": 2, "amount": 0.4, "rewind": "init", "probe": batches(case), "skip": case.skip}
    rule = stopping.parse("flow within 0.01")
    trainer = Loop(case)
    if (refused := getattr(case, which)) and "one batch" not in refused:
        before = bits(model)
        plain = (flow.InformationFlow("square"), flow.GradientFlow(case.loss))[which == "gradient"]
        with pytest.raises(InputError, match=refused):
            incop.search(model, trainer, meter=plain, rule=rule, **options)
        assert bits(model) == before
        if not (case.chain or case.whole):
            return
    meter = meters(case, case.chain or None)[which == "gradient"]
    tickets = list(incop.search(model, trainer, meter=meter, rule=rule, **options))
    assert [round(t.sparsity, 1) for t in tickets] == [0.0, 0.4, 0.6]
    assert all(bool((model.get_parameter(n)[~mask] == 0).all()) for n, mask in tickets[-1].masks.items())
    assert all(t.record.flow is not None for t in tickets)


@every_model
def test_a_search_without_a_meter_needs_no_flow(case):
    tickets = list(incop.search(built(case), Loop(case), levels=1, amount=0.3, rewind="init", skip=case.skip))
    assert round(tickets[-1].sparsity, 1) == 0.3


@every_model
def test_a_model_that_throws_is_as_it_was(case):
    model = built(case)
    last = list(model.modules())[-1]
    handle = last.register_forward_pre_hook(lambda *_: 1 / 0)
    before = bits(model)
    for meter in meters(case, case.chain or None):
        with pytest.raises(InputError, match="ZeroDivisionError"):
            incop.measure(model, batches(case), meter)
    handle.remove()
    assert bits(model) == before
    assert torch.backends.mha.get_fastpath_enabled()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# ---- what is refused altogether


def test_a_model_without_layers_is_refused():
    with pytest.raises(InputError, match=r"NoLayers has no prunable weights: incop prunes .*Linear, Conv"):
        pruning.prune(NoLayers())
    with pytest.raises(
        InputError, match=r"at least two .* layers that run, and NoLayers runs 0: name the modules .*chain="
    ):
        incop.measure(NoLayers(), rows(4), flow.InformationFlow())


def test_bare_parameters_are_not_left_dense_in_silence():
    with pytest.raises(InputError, match=r"most weights of Bare are bare parameters .*'down'.*skip=\['down'\]"):
        pruning.prune(Bare())
    with pytest.raises(InputError, match="most weights of Bare"):
        incop.search(Bare(), Loop(CASES["bare parameters"]), levels=1)


def test_two_towers_that_never_meet_in_a_layer():
    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(4, 5)

        def forward(self, a, b):
            return F.cosine_similarity(self.a(a), self.b(b))

    probe = [((rows(4), rows(4).flip(0)), rows(1)[:, 0])]
    with pytest.raises(InputError, match=r"no layer of Apart feeds another \(a, b run side by side\): name .*chain="):
        incop.measure(Apart(), probe, flow.InformationFlow())
    assert list(incop.measure(Apart(), probe, flow.GradientFlow(F.mse_loss)).values) == ["a", "b"]


@pytest.mark.parametrize("batch_first", [True, False])
def test_padding_to_another_length_changes_no_flow(batch_first):
    torch.manual_seed(0)
    model = Tokens(batch_first)
    longer = {"ids": F.pad(IDS, (0, 5)), "src_key_padding_mask": F.pad(PADDING, (0, 5), value=True)}
    for meter in (flow.InformationFlow("square"), flow.GradientFlow(F.cross_entropy)):
        one = incop.measure(model, [({"ids": IDS, "src_key_padding_mask": PADDING}, classes())], meter).values
        other = incop.measure(model, [(longer, classes())], meter).values
        assert other == pytest.approx(one, rel=1e-5, abs=1e-6)
