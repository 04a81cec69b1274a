"""What is counted and measured of a form, and what is said of it; no test looks at a real duration."""

import json
import os
from dataclasses import replace

import pytest
import torch
from networks import pruned, subject
from torch import nn

from incop import InputError, Masks, export
from incop.export import benchmark, memory, timing
from incop.export.benchmark import MeasuredForm, Speed, default_forms, verdict
from incop.export.timing import Ratio, in_turn


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
    assert len(in_turn({"a": clock.takes(60.0)}, rounds=40, clock=clock)["a"]) == timing.MIN_ROUNDS


def test_the_interval_holds_the_median_of_the_ratios():
    generator = torch.Generator().manual_seed(0)
    base = [2.0 + 0.1 * float(torch.randn(1, generator=generator)) for _ in range(40)]
    ratio = Ratio.of(base, [1.0] * 40)
    assert ratio.low <= ratio.median <= ratio.high
    assert ratio.high - ratio.low < 0.15
    assert Ratio.of(base, [1.0] * 40) == ratio


def row(form, *ratios, runtime=None):
    speeds = tuple(
        Speed(2**place, 1.0, Ratio(r, r, r, float(r > 1)), runtime and Ratio(runtime, runtime, runtime, 1.0))
        for place, r in enumerate(ratios)
    )
    return MeasuredForm(form, 1, None, speeds)


def test_the_verdict_says_what_got_faster_or_what_would_help():
    slow = verdict([row("folded", 1.0, 1.04), row("csr", 0.4, 0.9)])
    assert slow.startswith("No form is faster than the dense network. What would help: ")
    fast = verdict([row("csr", 0.9, 3.0), row("compacted", 1.5, 2.0)])
    assert fast == (
        "Faster by pruning: at batch 1 compacted is 1.50 times as fast as the dense network, "
        "at batch 2 csr is 3.00 times as fast as the dense network"
    )
    assert "onnx is faster than torch, but so is the dense network there" in verdict([row("onnx", 2.0)])
    assert "onnx is faster than torch" in verdict([row("onnx", 2.0), row("compacted+onnx", 2.0, runtime=1.0)])
    assert verdict([row("onnx", 2.0), row("compacted+onnx", 3.0, runtime=1.5)]) == (
        "Faster by pruning: at batch 1 compacted+onnx is 1.50 times as fast as the dense network in the same runtime"
    )


@pytest.fixture
def small():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    return export.Subject.of(net, pruned(net, 0.8), example=torch.randn(6, 12), about={"level": 3, "sparsity": 0.8})


def test_bench_tells_time_size_and_memory_of_each_form_and_why_others_are_absent(small):
    found = export.bench(small, ["folded", "csr"], batch_sizes=[1, 9], rounds=7)
    assert [one.form for one in found.rows] == ["dense", "folded"]
    assert "no linear layer is faster" in found.not_made["csr"]
    dense, folded = found.rows
    assert dense.bytes == pytest.approx(folded.bytes, abs=64)
    assert [speed.batch for speed in folded.speeds] == [1, 9]
    for speed in folded.speeds:
        assert speed.ms > 0
        assert speed.against_dense.low <= speed.against_dense.median <= speed.against_dense.high
        assert speed.against_runtime is None
    assert all(speed.against_dense is None for speed in dense.speeds)
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["rows"][1]["speeds"][0]["against_dense"]["median"] > 0
    assert told["environment"]["versions"]["torch"] == torch.__version__


def test_threads_are_set_back(small):
    threads = torch.get_num_threads()
    found = export.bench(small, ["folded"], batch_sizes=[1], rounds=7, threads=threads + 1)
    assert torch.get_num_threads() == threads
    assert found.settings["threads"] == threads + 1
    assert found.settings["clock"] == "wall time"


def test_the_form_2_to_4_is_gone_and_one_sentence_says_what_there_is(small):
    for ask in (lambda: export.form("2:4"), lambda: export.bench(small, ["compacted+2:4"])):
        with pytest.raises(
            InputError, match=r"'2:4' is gone, the masks of --selection 2:4 are not: .*'safetensors'.*'compacted'"
        ) as caught:
            ask()
        assert "\n" not in str(caught.value)
    assert "2:4" not in export.FORMS


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


def test_a_form_on_top_of_the_compacted_network(small, tmp_path):
    """A unit that nobody hears goes."""
    masks = {name: mask.clone() for name, mask in small.masks.items()}
    masks["2.weight"][:, 7] = False
    one = export.Subject.of(small.model, Masks(masks), example=small.example)
    written = export.write(one, "compacted+folded", tmp_path)
    assert [file.name for file in written.files] == ["compacted.folded.safetensors"]
    assert written.difference <= 1e-5
    found = export.bench(one, ["compacted+folded"], batch_sizes=[1], rounds=7)
    assert found.rows[1].bytes < found.rows[0].bytes


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


def test_all_forms_are_measured_by_default_each_once(small, monkeypatch):
    asked = []
    monkeypatch.setattr(benchmark, "_made", lambda subject, words, folder: asked.extend(words) or ([], {}))
    export.bench(small)
    assert sorted(asked) == sorted([*export.FORMS, "compacted+onnx", "compacted+csr"])
    assert default_forms([2])[-3:] == ["csr@2", "compacted+onnx", "compacted+csr@2"]
    asked.clear()
    export.bench(small, ["compacted+onnx"])
    assert asked == ["onnx", "compacted+onnx"]  # what it is compared with


def test_the_transformer_can_be_measured():
    found = export.bench(subject("transformer", 0.9), ["folded"], batch_sizes=[2], rounds=7)
    assert [row.form for row in found.rows] == ["dense", "folded"]
