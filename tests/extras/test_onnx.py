"""The ONNX form: onnxruntime alone answers as the masked network does, for any number of samples, or one sentence says why not."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from transformer_models import batches, gpt2, lively

from export.networks import NAMES, SPARSITIES, subject
from incop import InputError, Masks, MissingExtra, export
from incop.batches import Batch
from incop.export import onnx as room
from incop.export.writing import difference

ALONE = """
import sys
for name in ("torch", "incop", "onnx", "onnxscript", "safetensors"):
    sys.modules[name] = None
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
given = numpy.load(sys.argv[2])
answers = session.run(None, {one.name: given[one.name] for one in session.get_inputs()})
numpy.savez(sys.argv[3], **{one.name: answer for one, answer in zip(session.get_outputs(), answers)})
print(session.get_modelmeta().custom_metadata_map["incop"])
"""


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("name", NAMES)
def test_the_onnx_form_answers_as_the_masked_network(name, sparsity, tmp_path):
    one = subject(name, sparsity)
    written = export.write(one, "onnx", tmp_path)
    assert written.difference <= 1e-5
    assert [file.name for file in written.files] == ["model.onnx"]
    onnx.checker.check_model(str(written.files[0]), full_check=True)
    answers = export.form("onnx").outputs(written.files[0], one)
    for samples in (1, 5):  # sizes that the export has not seen
        batch = room.first_samples(one.example, samples)
        assert difference(one.outputs(batch), answers(batch)) <= 1e-5
    graph = onnx.load(written.files[0]).graph
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    kept = [key for key in one.masks if key in weights]
    assert kept  # the exporter may turn some
    assert all(np.array_equal(weights[key] != 0, one.masks[key].numpy()) for key in kept)
    if name == "transformer":
        assert [given.name for given in graph.input] == ["ids", "padding"]
        assert [given.name for given in graph.output] == ["logits", "hidden"]
        length = graph.input[0].type.tensor_type.shape.dim[1]
        assert length.dim_param, "the length of a sequence is written into the file"


def test_an_environment_of_onnxruntime_alone_runs_the_file(tmp_path):
    one = subject("lenet-300-100", 0.9)
    file = export.write(one, "onnx", tmp_path / "out").files[0]
    (inputs,) = one.example.args
    name = onnxruntime.InferenceSession(str(file)).get_inputs()[0].name
    np.savez(tmp_path / "given.npz", **{name: inputs.numpy()})
    words = [sys.executable, "-c", ALONE, str(file), str(tmp_path / "given.npz"), str(tmp_path / "answers.npz")]
    ran = subprocess.run(words, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == {"model": "lenet-300-100", "level": 7}
    answers = np.load(tmp_path / "answers.npz")["output"]
    assert difference(one.outputs(one.example), [torch.from_numpy(answers)]) <= 1e-5


def test_a_language_model_takes_any_length_and_says_nothing(tmp_path, capfd, recwarn):
    batch = {key: value for key, value in batches(size=8)[0].items() if key != "labels"}
    net = lively(gpt2())
    masks = Masks({key: torch.rand(mask.shape) > 0.9 for key, mask in Masks.full(net).items()})
    one = export.Subject.of(net, masks, example=batch)
    capfd.readouterr()
    recwarn.clear()
    file = export.write(one, "onnx", tmp_path).files[0]
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    answers = export.form("onnx").outputs(file, one)
    longer = Batch(
        (), {"input_ids": torch.randint(2, 30, (3, 21)), "attention_mask": torch.ones(3, 21).long()}, None, 3
    )
    assert difference(one.outputs(longer), answers(longer)) <= 1e-5
    assert [given.name for given in onnx.load(file).graph.input] == ["input_ids", "attention_mask"]
    assert [given.name for given in onnx.load(file).graph.output] == ["logits"]


class Odd(nn.Module):
    """Fails to become ONNX in the way that is asked for, or has odd inputs and outputs."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.linear = nn.Linear(4, 4)

    def forward(self, parts, *more, scale=None):
        y = self.linear(parts[0] + parts[1] if isinstance(parts, list) else parts)
        if self.how == "operator":
            return torch.linalg.svdvals(y @ y.T)
        if self.how == "size":
            return y * torch.arange(3.0)[:, None] if len(y) == 3 else y
        if self.how == "values":
            return y if y.sum() > 0 else -y
        return {"a": y, "both": (y * scale, more[0]), "scale": y + 1}


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("operator", r"uses the operator aten\._linalg_svd"),
        ("size", "for any number of samples"),
        ("values", "looks at values"),
    ],
)
def test_what_onnx_cannot_say_is_one_sentence_and_nothing_is_left(how, sentence, tmp_path):
    one = export.Subject.of(Odd(how), example=torch.randn(6, 4))
    with pytest.raises(InputError, match=sentence) as caught:
        export.write(one, "onnx", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_lists_keywords_and_nested_outputs_have_names(tmp_path):
    example = Batch(([torch.randn(5, 4), torch.randn(5, 4)], torch.randn(5, 2)), {"scale": torch.randn(5, 1)}, None, 5)
    one = export.Subject.of(Odd("names"), example=example)
    graph = onnx.load(export.write(one, "onnx", tmp_path).files[0]).graph
    assert [given.name for given in graph.input] == ["parts_0", "parts_1", "input_1", "scale"]
    assert [given.name for given in graph.output] == ["a", "both_0", "both_1", "scale_out"]


def test_weights_too_large_for_one_file_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "MAX_IN_ONE", 1000)
    net = nn.Linear(64, 64)
    one = export.Subject.of(net, example=torch.randn(4, 64))
    written = export.write(one, "onnx", tmp_path)
    assert [file.name for file in written.files] == ["model.onnx", "model.onnx.data"]
    assert difference(one.outputs(one.example), export.form("onnx").outputs(written.files[0], one)(one.example)) <= 1e-5


def test_half_precision_is_refused_with_the_remedy(tmp_path):
    one = export.Subject.of(nn.Linear(4, 4).half(), example=torch.randn(4, 4).half())
    with pytest.raises(InputError, match=r"'weight' is float16.*model\.float\(\)"):
        export.write(one, "onnx", tmp_path)


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"incop\[onnx\]"):
        export.write(export.Subject.of(nn.Linear(4, 4), example=torch.randn(4, 4)), "onnx", tmp_path)
    assert not list(tmp_path.iterdir())


def test_bench_holds_onnx_against_the_dense_network_in_its_own_runtime(tmp_path):
    one = subject("lenet-300-100", 0.9)
    found = export.bench(one, ["folded", "compacted+onnx"], batch_sizes=[2], rounds=7)
    rows = {row.form: row for row in found.rows}
    assert list(rows) == ["dense", "onnx", "folded", "compacted+onnx"]  # onnx: the dense network in that runtime
    assert rows["compacted+onnx"].speeds[0].against_runtime is not None
    assert rows["onnx"].speeds[0].against_runtime is None
    assert rows["folded"].speeds[0].against_runtime is None
    assert not list(rows["onnx"].gains())
    assert found.environment["versions"]["onnxruntime"] == onnxruntime.__version__
