"""The forms that give the state dict back: to the bit, small, and nothing else for whoever damages them."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrizations

from incop import InputError, Masks, export
from incop.experiments import models
from incop.export import sparse_file
from incop.export.dense_file import PREFIX
from incop.export.lossless import dense_size

FORMS = ["safetensors", "sparse"]


class Transformer(nn.Module):
    """A small one, whose embedding and last layer are one tensor."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(60, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 60, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.encoder(self.embedding(tokens)))


def built(name):
    torch.manual_seed(0)
    if name == "transformer":
        return Transformer(), torch.randint(0, 60, (256, 12))
    channels, side = (3, 32) if name.startswith("resnet") else (1, 28)
    net = models.build(name, channels=channels, size=(side, side), classes=10, seed=0)
    return net, torch.randn(256, channels, side, side)


def by_magnitude(net, sparsity):
    """Masks of the largest weights of the whole network."""
    weights = {name: net.get_parameter(name).detach().abs() for name in Masks.full(net)}
    ranked = torch.cat([w.flatten() for w in weights.values()]).sort().values
    return Masks({name: w > ranked[int(sparsity * len(ranked)) - 1] for name, w in weights.items()})


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def same_bits(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(bits(found[name]), bits(tensor)), name


@pytest.mark.parametrize("sparsity", [0.9, 0.98])
@pytest.mark.parametrize("name", ["lenet-300-100", "lenet-5", "resnet-20", "transformer"])
def test_every_bit_comes_back_and_answers_on_256_inputs_are_the_same(name, sparsity, tmp_path):
    net, inputs = built(name)
    masks = by_magnitude(net, sparsity)
    subject = export.Subject.of(net, masks, about={"level": 3, "name": "ü"})
    written = export.write_all(subject, [*FORMS, "folded"], tmp_path)
    with torch.no_grad():
        expected = subject.model(inputs)
    for one in written:
        found = export.read(one.files[0])
        fresh = built(name)[0].eval()
        with torch.no_grad():
            for parameter in fresh.parameters():
                parameter.fill_(9.0)
            fresh.load_state_dict(found.weights)
            assert torch.equal(fresh(inputs), expected)
        if one.form != "folded":
            same_bits(found.weights, subject.model.state_dict())
            assert found.masks == masks
            assert (found.about["level"], found.about["name"]) == (3, "ü")


def entropy_bound(masks):
    """Mask entropy and 32 bits for each remaining weight, in bytes, of the definition."""
    total = 0.0
    for mask in masks.values():
        p = float(mask.double().mean())
        total += mask.numel() / 8 * sum(-q * float(np.log2(q)) for q in (p, 1 - p) if q > 0) + 4 * int(mask.sum())
    return total


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.95, 0.98, 0.995])
@pytest.mark.parametrize("name", ["lenet-300-100", "lenet-5", "resnet-20", "transformer"])
def test_the_sparse_form_is_near_the_entropy_of_mask_and_weights(name, sparsity):
    net, _ = built(name)
    with torch.no_grad():  # BatchNorm's statistics and biases of a fresh network are all alike, and pack too well
        for tensor in net.state_dict().values():
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.add_(torch.randn_like(tensor))
    masks = by_magnitude(net, sparsity)
    subject = export.Subject.of(net, masks, about={"model": name, "input": {"shape": [3, 32, 32], "mean": [0.3] * 3}})
    state = subject.model.state_dict()
    content = sparse_file.pack(state, masks, subject.about)
    own = {tensor.data_ptr(): tensor for key, tensor in state.items() if key not in masks}
    tied = {state[key].data_ptr() for key in masks}
    rest = sum(t.numel() * t.element_size() for place, t in own.items() if place not in tied)
    assert len(content) <= 1.15 * (entropy_bound(masks) + rest)
    assert sparse_file.bound(masks, state) == pytest.approx(entropy_bound(masks) + rest, abs=2)
    if sparsity >= 0.95:
        assert 8 * len(content) <= dense_size(subject)


def test_whole_rows_and_channels_take_far_less_than_their_entropy():
    torch.manual_seed(0)
    weight = torch.randn(512, 512)
    mask = torch.ones(512, 512, dtype=torch.bool)
    mask[torch.randperm(512)[:460]] = False
    weight *= mask
    taken = len(sparse_file.pack({"w": weight}, {"w": mask}, {}))
    assert taken <= 4 * int(mask.sum()) + 1000
    assert sparse_file.bound({"w": mask}, {"w": weight}) > 4 * int(mask.sum()) + 15_000


def strange():
    """A state dict of all that is rare."""
    torch.manual_seed(0)
    nan = torch.tensor([0x7FC00001, 0x7F800123, -0x400001, -0x80000000, 0], dtype=torch.int32).view(torch.float32)
    shared = torch.randn(6, 5)
    weights = {
        "z.last": torch.randn(3),
        "nan": nan,
        "nan.half": torch.tensor([0x7E01, -0x8000, 0x7C01, 0x0001], dtype=torch.int16).view(torch.float16),
        "b16": torch.randn(9).bfloat16(),
        "double": torch.randn(4, 3, dtype=torch.float64),
        "complex": torch.randn(3, dtype=torch.complex64),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "count": torch.tensor(2**53 + 1),
        "flags": torch.tensor([True, False]),
        "small": torch.arange(-3, 3, dtype=torch.int8),
        "f8": torch.randn(7).to(torch.float8_e4m3fn),
        "empty": torch.zeros(0, 4),
        "tied.1": shared,
        "turned": torch.randn(4, 6).t(),
        "tied.2": shared,
        "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "all": torch.randn(5, 5),
        "none": torch.zeros(5, 5),
        "expanded": torch.ones(1).expand(4),
        "ü 🦊": torch.randn(2),
    }
    masks = {name: torch.rand(weights[name].shape) > 0.5 for name in ("tied.1", "turned", "last", "double", "b16")}
    masks |= {"all": torch.ones(5, 5, dtype=torch.bool), "none": torch.zeros(5, 5, dtype=torch.bool)}
    masks |= {name: torch.ones(weights[name].shape, dtype=torch.bool) for name in ("nan", "nan.half", "empty")}
    for name, mask in masks.items():
        weights[name].masked_fill_(~mask, 0.0)
    return weights, masks


def test_rare_kinds_come_back_to_the_bit():
    weights, masks = strange()
    found, found_masks, about = sparse_file.unpack(sparse_file.pack(weights, masks, {"a": [1, None, "x"]}))
    same_bits(found, {name: tensor.resolve_conj() for name, tensor in weights.items()})
    assert Masks(found_masks) == Masks(masks)
    assert about == {"a": [1, None, "x"]}
    assert found["tied.1"] is found["tied.2"]
    assert torch.equal(found["nan"].view(torch.int32), weights["nan"].view(torch.int32))


def test_tied_weights_are_stored_once():
    net, _ = built("transformer")
    state = net.state_dict()
    apart = {name: tensor.clone() for name, tensor in state.items()}
    assert sparse_file.bound({}, apart) - sparse_file.bound({}, state) == 4 * net.head.weight.numel()
    found, _, _ = sparse_file.unpack(sparse_file.pack(state, {}, {}))
    assert found["head.weight"] is found["embedding.weight"]
    found, _, _ = sparse_file.unpack(sparse_file.pack(apart, {}, {}))
    assert found["head.weight"] is not found["embedding.weight"]


def test_nothing_at_all():
    found, masks, _ = sparse_file.unpack(sparse_file.pack({}, {}, {}))
    assert (found, masks) == ({}, {})


def test_the_same_subject_makes_the_same_bytes(tmp_path):
    net, _ = built("lenet-5")
    subject = export.Subject.of(net, by_magnitude(net, 0.9))
    first, second = (export.write_all(subject, FORMS, tmp_path / name) for name in "ab")
    for one, other in zip(first, second, strict=True):
        assert one.files[0].read_bytes() == other.files[0].read_bytes()


def test_any_reader_of_safetensors_finds_the_weights_under_their_names(tmp_path):
    net, _ = built("lenet-5")
    subject = export.Subject.of(net, by_magnitude(net, 0.9))
    found = load_file(export.write(subject, "safetensors", tmp_path).files[0])
    masks = {name.removeprefix(PREFIX): found.pop(name) for name in list(found) if name.startswith(PREFIX)}
    same_bits({name: found[name] for name in subject.model.state_dict()}, subject.model.state_dict())
    assert set(found) == set(subject.model.state_dict())
    for name, mask in subject.masks.items():
        assert np.array_equal(np.unpackbits(masks[name].numpy(), count=mask.numel()), mask.numpy().reshape(-1))


class OwnNames(nn.Linear):
    """Keeps its weights under a name that the mask does not know."""

    def state_dict(self, *args, **kwargs):
        return {f"own.{name}": tensor for name, tensor in super().state_dict(*args, **kwargs).items()}


@pytest.mark.parametrize("form", FORMS)
def test_masks_that_no_name_of_the_file_fits_are_refused(form, tmp_path):
    with pytest.raises(InputError, match="has no 'weight', which is masked"):
        export.write(export.Subject.of(OwnNames(3, 3)), form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", FORMS)
def test_frozen_unpruned_and_parametrised_layers(form, tmp_path):
    net = nn.Sequential(nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4))
    net[0].weight.requires_grad_(False)
    net.double()
    masks = Masks({"0.weight": torch.eye(4) > 0})
    subject = export.Subject.of(net, masks, example=torch.randn(8, 4, dtype=torch.float64))
    found = export.read(export.write(subject, form, tmp_path).files[0])
    same_bits(found.weights, subject.model.state_dict())


WITHOUT = """
import sys
class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names} or name.startswith(("incop.experiments", "incop.cli", "incop.reports")):
            raise ImportError(name + " is not there")
sys.meta_path.insert(0, Refusing())
{code}
"""
PLAIN = """
import sys, torch
from torch import nn
net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
{load}
net.eval()
assert net(torch.arange(12.0).reshape(2, 6)).tolist() == {answers}
"""


@pytest.mark.parametrize(
    ("form", "names", "load"),
    [
        (
            "folded",
            ("incop", "zstandard"),
            "from safetensors.torch import load_file; net.load_state_dict(load_file(sys.argv[1]))",
        ),
        (
            "sparse",
            ("cyclopts", "rich", "scipy", "pyarrow", "matplotlib"),
            "from incop import export; net.load_state_dict(export.read(sys.argv[1]).weights)",
        ),
        (
            "safetensors",
            ("cyclopts", "rich", "zstandard", "scipy"),
            "from incop import export; net.load_state_dict(export.read(sys.argv[1]).weights)",
        ),
    ],
)
def test_a_form_is_read_without_what_made_it(form, names, load, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    subject = export.Subject.of(net, by_magnitude(net, 0.5))
    file = export.write(subject, form, tmp_path).files[0]
    with torch.no_grad():
        answers = subject.model(torch.arange(12.0).reshape(2, 6)).tolist()
    code = WITHOUT.format(names=names, code=PLAIN.format(load=load, answers=answers))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def signed(content):
    """Give an edited sparse file the hash of its new content."""
    return content[:8] + hashlib.sha256(content[24:]).digest()[:16] + content[24:]


def with_head(content, change):
    """Edit the head of a sparse file."""
    short, size = (int.from_bytes(content[at : at + 4], "little") for at in (24, 28))
    head = json.loads(sparse_file.unpacked(content[32 : 32 + short], size))
    head = change(head) or head
    new = json.dumps(head).encode() if not isinstance(head, bytes) else head
    sizes = len(new).to_bytes(4, "little") * 2
    return signed(content[:24] + sizes + new + content[32 + short :])


@pytest.fixture
def content():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))
    subject = export.Subject.of(net, by_magnitude(net, 0.7))
    return sparse_file.pack(subject.model.state_dict(), subject.masks, {"a": 1})


@pytest.mark.parametrize("form", [*FORMS, "folded"])
def test_damaged_and_truncated_files_are_told_in_one_sentence(form, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))
    subject = export.Subject.of(net, by_magnitude(net, 0.7), about={"a": 1})
    file = export.write(subject, form, tmp_path).files[0]
    whole = file.read_bytes()
    generator = np.random.default_rng(0)
    told = []
    for _ in range(250):
        torn = bytearray(whole)
        kind = generator.integers(3)
        if kind == 0:
            del torn[generator.integers(len(torn)) :]
        else:
            for at in generator.integers(len(torn) if kind == 1 else 40, size=generator.integers(1, 4)):
                torn[at] ^= 1 << generator.integers(8)
        file.write_bytes(torn)
        try:
            export.read(file)
        except InputError as error:
            told.append(str(error))
        else:  # safetensors keeps no hash: a flipped bit of a weight is another weight
            assert form != "sparse" or bytes(torn) == whole
    assert len(told) > 80
    assert all("\n" not in sentence and str(file) in sentence for sentence in told)


def test_a_sparse_file_that_was_edited_and_signed_is_read_or_refused_in_one_sentence(content):
    generator = np.random.default_rng(1)
    refused = []
    for number in range(400):
        short = int.from_bytes(content[24:28], "little")
        plain = with_head(content, lambda head: None)
        torn = bytearray(plain if number % 2 else content)
        first = 32 if number % 4 < 2 else 32 + short
        for at in generator.integers(first, len(torn), size=generator.integers(1, 4)):
            torn[at] = generator.integers(256)
        try:
            weights, masks, _ = sparse_file.unpack(signed(bytes(torn)))
        except InputError as error:
            refused.append(str(error))
        else:
            Masks(masks)
            assert all(isinstance(tensor, torch.Tensor) for tensor in weights.values())
    assert len(refused) > 100
    assert not any("\n" in sentence for sentence in refused)


def first(head, **changes):
    row = head["tensors"][0]
    for place, value in changes.items():
        row[int(place[1:])] = value


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda head: first(head, _2=[2**20, 2**20]), "unpacks to"),
        (lambda head: first(head, _2=[0, 2**39, 2**39]), "a shape of"),
        (lambda head: first(head, _2=[-1]), "kind"),
        (lambda head: first(head, _2=[1] * 65), "a shape of"),
        (lambda head: first(head, _2=[2.5]), "a shape of"),
        (lambda head: first(head, _1="object"), "the kind 'object'"),
        (lambda head: first(head, _0=3), "gives 3"),
        (lambda head: first(head, _3=10_000), "a mask of"),
        (lambda head: first(head, _3=5), "mask|unpack"),
        (lambda head: first(head, _4=39), "too short"),
        (lambda head: first(head, _5=1), "long as|too short|unpack|bytes"),
        (lambda head: head["stored"].append(0), "not as long as"),
        (lambda head: head["stored"].__setitem__(0, -1), "not as long as"),
        (lambda head: head["tensors"].append(head["tensors"][0]), "twice"),
        (lambda head: head.pop("about"), "cannot be understood"),
        (lambda head: head.update(about=[1]), "does not name"),
        (lambda head: head.update(tied={"x": "nowhere"}, order=["x"]), "does not name"),
        (lambda head: [1], "cannot be understood"),
        (lambda head: b"[" * 100_000, "cannot be understood"),
        (lambda head: b"\xff\xfe", "cannot be understood"),
    ],
)
def test_a_head_that_lies(change, sentence, content):
    with pytest.raises(InputError, match=sentence):
        sparse_file.unpack(with_head(content, change))


def test_a_small_file_does_not_become_gigabytes(content):
    import tracemalloc

    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(2**27))
    head = len(bomb).to_bytes(4, "little") + (2**27).to_bytes(4, "little")
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="its head announces"):
            sparse_file.unpack(signed(content[:24] + head + bomb))
        lying = len(bomb).to_bytes(4, "little") + (2**20).to_bytes(4, "little")
        with pytest.raises(InputError, match="unpacks to another size"):
            sparse_file.unpack(signed(content[:24] + lying + bomb))
        wide = {"tensors": [["w", "float32", [2**20, 2**8], 0, 0, 0]], "stored": [0, 0, 0, 0, 0, 0], "about": {}}
        with pytest.raises(InputError, match=r"say read\(…, most=1342177280\)"):
            sparse_file.unpack(with_head(content, lambda head: wide))
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_what_may_be_taken_can_be_said(content, tmp_path):
    file = tmp_path / "x"
    file.write_bytes(content)
    with pytest.raises(InputError, match="at most 10 are taken"):
        export.read(file, most=10)
    assert export.read(file, most=10_000).about == {"a": 1}


def test_files_of_a_newer_incop_are_refused_by_name(content, tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(content[:7] + b"\x02" + content[8:])
    with pytest.raises(InputError, match=r"newer incop \(schema 2\): upgrade"):
        export.read(tmp_path / "x")
    with monkeypatch.context() as newer:
        newer.setattr("incop.export.dense_file.SCHEMA", 2)
        file = export.write(export.Subject.of(nn.Linear(2, 2)), unproven(), tmp_path).files[0]
    with pytest.raises(InputError, match=r"newer incop \(schema 2\): upgrade"):
        export.read(file)


def unproven():
    from incop.export import lossless

    form = lossless.SafetensorsForm()
    held, lossless._held = lossless._held, lambda file, subject: {}
    write = form.write

    def unread(subject, folder):
        try:
            return write(subject, folder)
        finally:
            lossless._held = held

    form.write = unread
    return form


def test_a_folder_and_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="there is no file"):
            export.read(path)


def test_a_missing_zstandard_is_told_before_anything_is_written(tmp_path):
    code = WITHOUT.format(
        names=("zstandard",),
        code="from incop import export\nfrom incop.errors import MissingExtra\n"
        "try: export.form('sparse')\nexcept MissingExtra as error: print(error)",
    )
    if sys.version_info >= (3, 14):
        pytest.skip("zstd is in the standard library")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'incop[export]'" in done.stdout
