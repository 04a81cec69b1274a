"""The 2:4 form: what does not fit is refused by name, what fits comes back to the bit."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NAMES, network
from safetensors.torch import load_file, save_file
from torch import nn

from incop import InputError, Masks, export
from incop.export import two_of_four
from incop.pruning import NofM


def bits(tensor):
    return tensor.contiguous().view(two_of_four.BITS[tensor.element_size()])


def by_hand(values, positions, tail):
    """Unpack number by number, as the module's text says."""
    units, groups = values.shape[0], values.shape[1]
    rows = []
    for u in range(units):
        row = []
        for g in range(groups):
            place = u * groups + g
            byte = int(positions[place // 2])
            half = byte >> 4 if place % 2 else byte & 15
            group = [0.0] * 4
            group[half & 3], group[half >> 2] = values[u, g].tolist()
            row += group
        rows.append(row + tail[u].tolist())
    return torch.tensor(rows, dtype=values.dtype).reshape(units, -1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(0, 21), st.integers(0, 2**32 - 1))
def test_packing_and_unpacking_is_the_same_to_the_bit(units, inputs, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(units, inputs, generator=generator)
    mask = NofM(2, 4).cut(weight.abs(), torch.rand(weight.shape, generator=generator) > 0.3)
    weight = torch.where(mask, weight, 0.0)
    parts = two_of_four.packed(weight)
    assert torch.equal(two_of_four.unpacked(*parts), weight)
    assert torch.equal(by_hand(*parts), weight)
    assert parts[0].numel() == units * (inputs // 4) * 2
    assert parts[1].numel() == -(-units * (inputs // 4) // 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_odd_numbers_come_back_to_the_bit(dtype):
    weight = torch.tensor([[0.0, -0.0, torch.nan, 0.0, torch.inf, 0.0, 0.0, -0.0, 7.0]], dtype=dtype)
    assert torch.equal(bits(two_of_four.unpacked(*two_of_four.packed(weight))), bits(weight))


def ticket(name):
    net, example = network(name)
    cut = NofM(2, 4).cut
    weights = {n: p.detach() for n, p in net.named_parameters() if n in Masks.full(net)}
    masks = Masks({n: cut(w.abs(), torch.ones_like(w, dtype=torch.bool)) for n, w in weights.items()})
    return net, masks, example


@pytest.mark.parametrize("name", NAMES)
def test_the_form_is_read_back_to_the_bit(name, tmp_path):
    net, masks, example = ticket(name)
    subject = export.Subject.of(net, masks, example=example)
    written = export.write(subject, "2:4", tmp_path)
    assert written.difference == 0.0
    state = export.read_semi_structured(written.files[0])
    expected = subject.model.state_dict()
    assert list(sorted(state)) == sorted(expected)
    assert all(torch.equal(bits(state[key]), bits(expected[key])) for key in state)
    packed = load_file(written.files[0])
    for key, mask in masks.items():
        rows = mask.flatten(1)
        assert packed[f"{key}.values"].numel() == rows.shape[0] * (rows.shape[1] // 4) * 2


def test_what_is_not_2_to_4_is_refused_by_name(tmp_path):
    net, masks, example = ticket("lenet-300-100")
    second = list(masks)[1]
    broken = {key: mask.clone() for key, mask in masks.items()}
    broken[second][3, 4:8] = torch.tensor([True, True, True, False])
    subject = export.Subject.of(net, Masks(broken), example=example)
    with pytest.raises(InputError, match=rf"'{second}' is not 2:4: 1 of its 7500 groups"):
        export.write(subject, "2:4", tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=second):
        export.semi_structured(net, Masks(broken))


def test_conv1d_is_taken_along_its_inputs(tmp_path):
    Conv1D = type("Conv1D", (nn.Module,), {"forward": lambda self, x: x @ self.weight})
    Conv1D.__module__ = "transformers.pytorch_utils"
    layer = Conv1D()
    layer.nf, layer.weight = 4, nn.Parameter(torch.randn(8, 4))
    net = nn.Sequential(layer)
    along_inputs = torch.tensor([True, True, False, False] * 2)[:, None].expand(8, 4)
    subject = export.Subject.of(net, Masks({"0.weight": along_inputs}), example=torch.randn(3, 8))
    file = export.write(subject, "2:4", tmp_path).files[0]
    assert torch.equal(export.read_semi_structured(file)["0.weight"], subject.model[0].weight)
    along_outputs = torch.tensor([True, True, False, False]).expand(8, 4)
    with pytest.raises(InputError, match="not 2:4"):
        export.write(export.Subject.of(net, Masks({"0.weight": along_outputs})), "2:4", tmp_path, replace=True)


def test_without_a_gpu_one_sentence_says_so():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    net, masks, _ = ticket("lenet-300-100")
    with pytest.raises(InputError, match=r"compute capability 8\.0 or newer .* this machine has none"):
        export.semi_structured(net, masks)


@pytest.mark.parametrize(
    "damage", ["two in one place", "values cut", "part absent", "shape", "no metadata", "not json"]
)
def test_a_damaged_file_is_told(damage, tmp_path):
    net = nn.Sequential(nn.Linear(8, 2))
    masks = Masks({"0.weight": torch.tensor([True, True, False, False] * 2).expand(2, 8)})
    file = export.write(export.Subject.of(net, masks), "2:4", tmp_path).files[0]
    state, told = load_file(file), {"0.weight": {"shape": [2, 8], "turned": False}}
    if damage == "two in one place":
        state["0.weight.positions"][0] = 0
    elif damage == "values cut":
        state["0.weight.values"] = state["0.weight.values"][:, :1].contiguous()
    elif damage == "part absent":
        del state["0.weight.tail"]
    elif damage == "shape":
        told["0.weight"]["shape"] = [2, 9]
    text = "{" if damage == "not json" else json.dumps(told)
    save_file(state, file, metadata={"format": "pt"} if damage == "no metadata" else {"2:4": text})
    with pytest.raises(InputError) as caught:
        export.read_semi_structured(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "reader", [export.read_semi_structured, lambda file: export.read_csr(file, torch.nn.Linear(2, 2))]
)
def test_a_file_of_strange_metadata_or_an_endless_header_is_refused(reader, tmp_path):
    file = tmp_path / "strange.safetensors"
    save_file({"weight": torch.ones(2)}, file, metadata={"2:4": "[1]", "csr": "[1]"})
    with pytest.raises(InputError, match="its shapes are damaged"):
        reader(file)
    save_file({"weight": torch.ones(2)}, file, metadata={"other": "1"})
    with pytest.raises(InputError, match="does not say which of its tensors"):
        reader(file)
    file.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match="its header announces"):
        reader(file)
