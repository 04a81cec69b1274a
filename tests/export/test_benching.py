"""What is counted and measured of a form, and what is said of it; no test looks at a real duration."""

import json
import os
from dataclasses import replace

import pytest
import torch
from networks import NAMES, network, pruned, subject
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from incop import InputError, Masks, export
from incop.batches import unpack
from incop.export import benching, memory, stacked, timing
from incop.export.benching import Row, Speed, verdict
from incop.export.counting import count
from incop.export.csr import replaced
from incop.export.timing import Ratio, in_turn, resized


def macs_of_torch(model, sample):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(*sample.args, **sample.kwargs)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", NAMES[:3])
def test_macs_are_those_of_torchs_counter(name):
    net, example = network(name)
    sample = resized(unpack(example), 1)
    assert count(net.eval(), sample).macs == macs_of_torch(net, sample)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.ConvTranspose2d(4, 6, 3, stride=2),
        nn.Conv2d(4, 4, (1, 3), dilation=2),
    ],
)
def test_odd_convolutions_are_counted_as_torch_counts_them(layer):
    sample = unpack(torch.randn(1, 4, 9, 8))
    assert count(layer.eval(), sample).macs == macs_of_torch(layer, sample)


def test_macs_by_what_is_left_are_the_products_that_are_not_with_zero():
    """A convolution of one sample, counted product by product."""
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, bias=False)
    mask = torch.rand(layer.weight.shape) > 0.7
    layer.weight.data *= mask
    found = count(layer, unpack(torch.randn(1, 2, 6, 5)))
    products = sum(int(mask[o].sum()) for o in range(3) for _ in range(4) for _ in range(3))
    assert found.macs_nonzero == products
    assert found.nonzero == int(mask.sum())


def test_recurrent_layers_and_attention_count_every_token():
    tokens, width = 7, 8
    rnn = count(nn.LSTM(5, width, batch_first=True), unpack(torch.zeros(1, tokens, 5)))
    assert rnn.macs == tokens * 4 * width * (5 + width)
    attention = nn.MultiheadAttention(width, 2, batch_first=True).eval()
    x = torch.randn(1, tokens, width)
    assert count(attention, unpack(((x, x, x), None))).macs == tokens * 4 * width * width
    net, example = network("transformer")
    layers = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert count(net.eval(), resized(unpack(example), 1)).macs == 9 * layers + 32 * 5


def test_a_csr_layer_stores_and_does_only_what_is_left():
    net = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 2))
    masks = pruned(net, 0.5)
    masks.apply(net)
    sample = unpack(torch.randn(1, 8))
    found = count(replaced(net, ["0"]), sample)
    left = masks.remaining_in("0.weight")
    assert found.macs == left + 12
    assert found.macs_nonzero == masks.remaining
    assert found.parameters == left + 6 + 12 + 2


class Clock:
    """A clock that only moves when a call says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def takes(self, seconds):
        def call():
            self.now += seconds

        return call


def test_calls_are_timed_in_turn_each_on_its_own():
    clock = Clock()
    times = in_turn({"a": clock.takes(0.01), "b": clock.takes(1e-5)}, rounds=9, clock=clock)
    assert times["a"] == pytest.approx([0.01] * 9)
    assert times["b"] == pytest.approx([1e-5] * 9)


def test_rounds_that_take_long_are_fewer():
    clock = Clock()
    assert len(in_turn({"a": clock.takes(60.0)}, rounds=40, clock=clock)["a"]) == timing.FEWEST


def test_the_interval_holds_the_median_of_the_ratios():
    generator = torch.Generator().manual_seed(0)
    base = [2.0 + 0.1 * float(torch.randn(1, generator=generator)) for _ in range(40)]
    ratio = Ratio.of(base, [1.0] * 40)
    assert ratio.low <= ratio.median <= ratio.high
    assert ratio.high - ratio.low < 0.15
    assert Ratio.of(base, [1.0] * 40) == ratio


def row(form, *ratios, runtime=None):
    speeds = tuple(
        Speed(
            2**place,
            1.0,
            1.0,
            1.0,
            1.0,
            Ratio(r, r, r, float(r > 1)),
            runtime and Ratio(runtime, runtime, runtime, 1.0),
        )
        for place, r in enumerate(ratios)
    )
    return Row(form, 1, 1, 1, 1, 1, 1, None, 0.0, None, speeds)


def test_the_verdict_says_what_got_faster_or_what_would_help():
    slow = verdict([row("folded", 1.0, 1.04), row("csr", 0.4, 0.9)])
    assert slow.startswith("No form is faster than the dense network. What would help: ")
    fast = verdict([row("csr", 0.9, 3.0), row("compacted", 1.5, 2.0)])
    assert fast == (
        "Faster by pruning: at batch 1 compacted is 1.50 times as fast as the dense network, "
        "at batch 2 csr is 3.00 times as fast as the dense network"
    )
    assert "onnx is faster than torch, but so is the dense network there" in verdict([row("onnx", 2.0, runtime=1.0)])


@pytest.fixture
def small():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    return export.Subject.of(net, pruned(net, 0.8), example=torch.randn(6, 12), about={"level": 3, "sparsity": 0.8})


def test_bench_tells_all_of_each_form_and_why_others_are_absent(small):
    found = export.bench(small, ["folded", "csr", "2:4"], batch_sizes=[1, 9], rounds=7)
    assert [one.form for one in found.rows] == ["dense", "folded"]
    assert "no linear layer is faster" in found.not_made["csr"]
    assert "2:4" in found.not_made["2:4"]
    dense, folded = found.rows
    assert dense.parameters == folded.parameters == 12 * 8 + 8 + 8 * 4 + 4
    assert dense.nonzero == dense.parameters
    assert folded.nonzero == small.masks.remaining + 12
    assert folded.zipped < dense.zipped
    assert dense.bytes == pytest.approx(folded.bytes, abs=64)
    assert [speed.batch for speed in folded.speeds] == [1, 9]
    assert folded.same_answers == 1.0
    assert folded.difference == 0.0
    for speed in folded.speeds:
        assert speed.per_second == pytest.approx(1000 * speed.batch / speed.ms)
        assert speed.against_dense.low <= speed.against_dense.median <= speed.against_dense.high
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["rows"][1]["speeds"][0]["against_dense"]["median"] > 0
    assert told["settings"]["dense"] == "pruned weights filled with random numbers"
    assert told["environment"]["versions"]["torch"] == torch.__version__


def test_the_dense_network_may_be_given_and_threads_are_set_back(small):
    threads = torch.get_num_threads()
    dense = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    found = export.bench(small, ["folded"], dense=dense, batch_sizes=[1], rounds=7, threads=threads + 1)
    assert torch.get_num_threads() == threads
    assert found.settings["dense"] == "the network before pruning"
    assert found.settings["threads"] == threads + 1
    assert found.settings["clock"] == "wall time"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"forms": ["foldet"]}, "did you mean 'folded'"),
        ({"batch_sizes": []}, "batch sizes"),
        ({"batch_sizes": [0]}, "batch sizes"),
        ({"rounds": 2}, "no spread"),
        ({"threads": 0}, "threads"),
    ],
)
def test_bad_numbers_are_refused(small, change, sentence):
    with pytest.raises(InputError, match=sentence):
        export.bench(small, **change)
    with pytest.raises(InputError, match="example"):
        export.bench(replace(small, example=None), ["folded"])


def test_a_form_on_top_of_the_compacted_network(small, monkeypatch, tmp_path):
    """Compacting is another's work; here a unit that nobody hears is taken out by hand."""

    def compacted(model, masks, example):
        kept = torch.tensor([0, 1, 2, 3, 4, 5, 6])
        net = nn.Sequential(nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 4))
        net[0].weight.data, net[0].bias.data = model[0].weight.data[kept], model[0].bias.data[kept]
        net[2].weight.data, net[2].bias.data = model[2].weight.data[:, kept], model[2].bias.data
        return net

    masks = {name: mask.clone() for name, mask in small.masks.items()}
    masks["2.weight"][:, 7] = False
    one = export.Subject.of(small.model, Masks(masks), example=small.example)
    monkeypatch.setattr(export, "compacted", compacted, raising=False)
    written = export.write(one, "compacted+folded", tmp_path)
    assert [file.name for file in written.files] == ["compacted.folded.safetensors"]
    assert written.difference <= 1e-5
    found = export.bench(one, ["compacted+folded"], batch_sizes=[1], rounds=7)
    assert found.rows[1].parameters == 12 * 7 + 7 + 7 * 4 + 4
    monkeypatch.setattr(export, "compacted", None)
    with pytest.raises(InputError, match="does not compact"):
        stacked.Stacked(export.form("folded")).compacted(small)


def test_memory_counts_what_is_held_and_not_what_loading_gives_back():
    if not memory.RESET.exists() or not os.access(memory.RESET, os.W_OK):
        assert memory.growth(lambda: lambda: None) is None
        pytest.skip("this system does not tell the peak of a process's memory")
    megabytes = 2**20

    def load():
        torch.ones(50 * megabytes)  # 200 MB for a while
        held = torch.ones(8 * megabytes)  # 32 MB

        def answer():
            return held + 1  # 32 MB more

        return answer

    grown = memory.growth(load)
    assert 60 * megabytes < grown < 100 * megabytes


def test_all_forms_are_measured_by_default(small, monkeypatch):
    asked = []
    monkeypatch.setattr(benching, "_made", lambda s, d, words, folder: asked.extend(words) or ([], {}))
    with pytest.raises(IndexError):
        export.bench(small).rows[0]
    assert set(export.FORMS) <= set(asked)
    assert {"csr@1", "csr@64", "compacted+onnx", "compacted+csr"} <= set(asked)


def test_the_transformer_can_be_measured():
    found = export.bench(subject("transformer", 0.9), ["folded"], batch_sizes=[2], rounds=7)
    assert found.rows[1].difference == 0.0
    assert found.rows[1].same_answers == 1.0
