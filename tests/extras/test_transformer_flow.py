"""Transformers: the chain of each architecture, flows against a slow oracle, and whole searches on small real data."""

import copy
from itertools import pairwise, product

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
import transformers
from sklearn.datasets import load_digits
from torch import nn
from transformer_models import (
    VOCABULARY,
    batches,
    bert,
    corrcoef,
    encoded,
    gpt2,
    lively,
    pooled_by_hand,
    sentences,
    timm_vit,
    vit,
)

import incop
from incop import flow, pruning, stopping
from incop.batches import unpack
from incop.errors import InputError
from incop.layers import chain, prunable

transformers.logging.set_verbosity_error()
ALL = slice(None)
PARTS = {"q": slice(0, 16), "k": slice(16, 32), "v": slice(32, 48)}


def separate(prefix, q, k, v, *after):
    """Steps of a block whose query, key and value are layers of their own: {step: (module, units)}, by place."""
    return [[f"{prefix}{name}" for name in (q, k, v)], *([f"{prefix}{name}"] for name in after)]


def fused(prefix, name, *after):
    return [[f"{prefix}{name}[{part}]" for part in "qkv"], *([f"{prefix}{rest}"] for rest in after)]


BERT_BLOCK = ("query", "key", "value")
PLACES = {
    "bert": [
        *(place for i in (0, 1) for place in [
            [f"bert.encoder.layer.{i}.attention.self.{name}" for name in BERT_BLOCK],
            *([f"bert.encoder.layer.{i}.{name}"] for name in ("attention.output.dense", "intermediate.dense", "output.dense")),
        ]),
        ["bert.pooler.dense"], ["classifier"],
    ],
    "gpt2": [
        *(place for i in (0, 1) for place in fused(f"transformer.h.{i}.", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")),
        ["lm_head"],
    ],
    "vit": [
        ["vit.embeddings.patch_embeddings.projection"],
        *(place for i in (0, 1) for place in separate(
            f"vit.layers.{i}.", "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2"
        )),
        ["classifier"],
    ],
    "timm vit": [
        ["patch_embed.proj"],
        *(place for i in (0, 1) for place in fused(f"blocks.{i}.", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
        ["head"],
    ],
}  # fmt: skip
MODELS = {"bert": bert, "gpt2": gpt2, "vit": vit, "timm vit": timm_vit}
every_model = pytest.mark.parametrize("name", MODELS)


def pairs_of(name):
    return [pair for a, b in pairwise(PLACES[name]) for pair in product(a, b)]


def parts_of(name):
    """{step: (module, units)}: q, k and v are thirds of a fused layer."""
    steps = [step for place in PLACES[name] for step in place]
    return {step: (step.partition("[")[0], PARTS[step[-2]] if "[" in step else ALL) for step in steps}


def digits(count=None):
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    return x[:count], torch.tensor(data.target)[:count]


def probe_of(name, size=8):
    """The probe of a model: sentences with padding, or pictures."""
    if "vit" in name:
        x, y = digits(48)
        key = "pixel_values" if name == "vit" else "x"
        return [{key: a, "labels": b} for a, b in zip(x.split(size), y.split(size), strict=True)]
    return batches(size=size, language=name == "gpt2")


def inputs_of(batch):
    return {key: value for key, value in batch.items() if key != "labels"}


def bits(model):
    return {n: t.detach().reshape(-1).view(torch.uint8).tolist() for n, t in model.state_dict().items()}


# ---- the chain


@every_model
def test_chain_and_neighbours(name):
    found = chain(MODELS[name]().eval(), unpack(probe_of(name)[0]))
    assert list(found) == [step for place in PLACES[name] for step in place]
    assert sorted(found.pairs) == sorted(pairs_of(name))
    for step in found.units:
        assert found.units[step].nonzero().flatten().tolist() == list(range(48))[PARTS[step[-2]]]


@pytest.mark.parametrize(
    "build", [lambda: timm.create_model("resnet18"), torchvision.models.resnet18], ids=["timm", "torchvision"]
)
def test_resnet_18_leaves_its_shortcuts_out(build):
    net = build().eval()
    layers = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    shortcuts = [n for n in layers if "downsample" in n]
    assert len(shortcuts) == 3
    found = chain(net, unpack(torch.randn(2, 3, 32, 32)))
    assert list(found) == [n for n in layers if n not in shortcuts]
    assert found.pairs == tuple(pairwise(found))
    assert {f"{n}.weight" for n in shortcuts} <= set(prunable(net))  # not of the chain, but pruned


FUSED = {
    "gpt-neox": (transformers.GPTNeoXForCausalLM, transformers.GPTNeoXConfig, "query_key_value", "qkv"),
    "bloom": (transformers.BloomForCausalLM, transformers.BloomConfig, "query_key_value", "qkv"),
    "phi-3": (transformers.Phi3ForCausalLM, transformers.Phi3Config, "qkv_proj", "qkv"),
    "phi-3's gates": (transformers.Phi3ForCausalLM, transformers.Phi3Config, "gate_up_proj", "01"),
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_layers_are_cut_as_the_model_cuts_them(name):
    model, config, layer, parts = FUSED[name]
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "n_layer": 1,
        "num_attention_heads": 2,
        "n_head": 2,
        "intermediate_size": 24,
    }
    net = model(config(**sizes, vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=1)).eval()
    found = chain(net, unpack(batches()[0]))
    units = {step[-2]: found.units[step].nonzero().flatten().tolist() for step in found.units if layer + "[" in step}
    assert list(units) == list(parts)
    if name in ("gpt-neox", "bloom"):  # head by head: query, key and value of one head lie side by side
        assert units["k"] == [*range(8, 16), *range(32, 40)]
    else:
        assert [i for part in parts for i in units[part]] == list(range(48))


def test_fused_and_separate_attention_have_the_same_flow():
    class Unfused(nn.Module):
        def __init__(self, attention):
            super().__init__()
            weights, biases = attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)
            for name, w, b in zip("qkv", weights, biases, strict=True):
                layer = nn.Linear(16, 16)
                layer.weight, layer.bias = nn.Parameter(w.clone()), nn.Parameter(b.clone())
                setattr(self, name, layer)
            self.proj = attention.proj

        def forward(self, x, **unused):
            q, k, v = (layer(x).unflatten(-1, (2, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    one = lively(timm_vit())
    other = copy.deepcopy(one)
    for block in other.blocks:
        block.attn = Unfused(block.attn)
    for meter in (flow.InformationFlow("square"), flow.GradientFlow(F.cross_entropy)):
        a, b = (incop.measure(m, probe_of("timm vit"), meter).values for m in (one, other))
        assert [name.replace("qkv[", "").replace("]", "") for name in a] == list(b)
        assert list(a.values()) == pytest.approx(list(b.values()), abs=1e-5)


# ---- flows against the oracle


@every_model
@pytest.mark.parametrize("reduction", ["mean", "absolute", "square"])
def test_information_flow_is_that_of_the_oracle(name, reduction):
    model = lively(MODELS[name]())
    probe = probe_of(name, size=48)
    outputs = pooled_by_hand(copy.deepcopy(model), inputs_of(probe[0]), parts_of(name))
    expected = corrcoef(outputs, pairs_of(name), reduction)
    before, modes = bits(model), [m.training for m in model.modules()]
    for cut in (probe, probe_of(name)):
        found = incop.measure(model, cut, flow.InformationFlow(reduction)).values
        assert sorted(found) == sorted(expected)
        assert found == pytest.approx(expected, abs=1e-5)
    assert max(abs(value) for value in expected.values()) > 0.01
    assert (bits(model), [m.training for m in model.modules()]) == (before, modes)


def test_padding_matters_here():
    """Averaged over all tokens, these outputs are others: a flow that forgot the mask would not equal the oracle."""
    model = lively(bert())
    inputs = inputs_of(probe_of("bert", size=48)[0])
    step = "bert.encoder.layer.0.output.dense"
    real = pooled_by_hand(model, inputs, {step: (step, ALL)})[step]
    rows = []
    handle = model.get_submodule(step).register_forward_hook(
        lambda m, a, out: rows.append(out.mean(1).double().numpy())
    )
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    assert np.abs(rows[0] - real).max() > 0.1


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_padding_changes_no_flow(name):
    model = lively(MODELS[name]())
    meters = [flow.InformationFlow("mean"), flow.InformationFlow("square"), flow.GradientFlow(flow.OwnLoss())]
    language = name == "gpt2"
    for meter in meters:
        expected = incop.measure(model, batches(size=48, language=language), meter).values
        for probe in (
            batches(size=8, language=language),
            batches(size=8, language=language, length=31),
            batches(size=7, language=language),
        ):
            found = incop.measure(model, probe, meter).values
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_gradient_flow_is_that_of_autograd(name):
    model = lively(MODELS[name]())
    probe = probe_of(name)
    (whole,) = probe_of(name, size=48)
    was = copy.deepcopy(model).double().eval()
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs_of(whole).items()}
    if name == "timm vit":
        F.cross_entropy(was(**inputs), whole["labels"]).backward()
        losses = [F.cross_entropy]
    else:
        was(**inputs, labels=whole["labels"]).loss.backward()
        losses = [flow.OwnLoss(), flow.TokenLoss() if name == "gpt2" else F.cross_entropy]
    expected = {}
    for step, (module, units) in parts_of(name).items():
        layer = was.get_submodule(module)
        gradient = layer.weight.grad
        expected[step] = float((gradient[:, units] if type(layer).__name__ == "Conv1D" else gradient[units]).norm())
    for loss in losses:
        found = incop.measure(model, probe, flow.GradientFlow(loss)).values
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-7)
        assert list(found) == list(expected)


def test_masked_language_model_without_a_shift():
    model = lively(bert(transformers.BertForMaskedLM))
    probe = batches()
    for batch in probe:
        ids = batch["input_ids"]
        asked = (torch.arange(ids.shape[1]) % 3 == 1) & (batch["attention_mask"] == 1)
        batch["labels"] = ids.where(asked, -100)
    own, tokens = (
        incop.measure(model, probe, flow.GradientFlow(loss)).values
        for loss in (flow.OwnLoss(), flow.TokenLoss(shift=False))
    )
    assert own == pytest.approx(tokens, rel=1e-4)
    assert all(value > 0 for value in own.values())


# ---- models of two sides


def test_a_picture_beside_words_has_no_padding():
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": VOCABULARY,
            "max_position_embeddings": 40, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}  # fmt: skip
    sight = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=sight, projection_dim=8))
    pictures = torch.randn(48, 3, 8, 8)
    flows = []
    for length in (None, 30):
        words = inputs_of(encoded(sentences(), length=length))
        flows.append(incop.measure(model, [{**words, "pixel_values": pictures}], flow.InformationFlow("square")).values)
    assert flows[0] == pytest.approx(flows[1], abs=1e-6)
    assert any("vision" in name for name in flows[0])


def test_the_two_sides_of_a_translation_have_masks_of_their_own():
    config = {
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 1,
        "num_heads": 2,
        "vocab_size": VOCABULARY,
        "decoder_start_token_id": 0,
    }
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**config))
    parts = sentences()[:20]
    flows = []
    for one, two in ((13, 13), (13, 20), (25, 13), (18, 18)):
        left, right = encoded(parts, length=one), encoded(parts[::-1], length=two)
        batch = {**inputs_of(left), **{f"decoder_{key}": value for key, value in inputs_of(right).items()}}
        flows.append(incop.measure(model, [batch], flow.InformationFlow("square")).values)
    assert any("EncDecAttention.k" in name for name in flows[0])
    for other in flows[1:]:
        assert other == pytest.approx(flows[0], abs=1e-5)


def test_tokens_made_of_masked_ones_are_refused_where_they_are_padded():
    class Halves(nn.Module):
        """Joins every two tokens."""

        def __init__(self):
            super().__init__()
            self.words, self.join, self.head = nn.Embedding(VOCABULARY, 6), nn.Linear(12, 5), nn.Linear(5, 3)

        def forward(self, input_ids, attention_mask):
            x = F.pad(self.words(input_ids) * attention_mask[..., None], (0, 0, 0, input_ids.shape[1] % 2))
            return self.head(torch.relu(self.join(x.unflatten(1, (-1, 2)).flatten(2))).mean(1))

    words = inputs_of(encoded(sentences()))
    with pytest.raises(
        InputError, match=r"layer 'join' has \d+ places a sample, made of padded tokens \(attention_mask \d+\).*chain="
    ):
        incop.measure(Halves(), [words], flow.InformationFlow())
    full = {**words, "attention_mask": torch.ones_like(words["attention_mask"])}
    assert list(incop.measure(Halves(), [full], flow.InformationFlow()).values) == ["join->head"]


# ---- pruning and whole searches


def test_embeddings_and_what_is_tied_to_them_stay_whole():
    for model, kept in ((gpt2(), ["transformer.wte.weight", "transformer.wpe.weight"]),
                        (bert(transformers.BertForMaskedLM), ["bert.embeddings.word_embeddings.weight"])):  # fmt: skip
        weights = prunable(model)
        assert not set(kept) & set(weights)
        assert not any("lm_head" in name or "decoder.weight" in name for name in weights)
        matrices = {
            n
            for n, p in model.named_parameters()
            if p.dim() == 2 and "embeddings" not in n and ".wte." not in n and ".wpe." not in n
        }
        assert set(weights) == matrices
    assert {"transformer.h.0.attn.c_attn.weight", "transformer.h.1.mlp.c_proj.weight"} <= set(prunable(gpt2()))
    assert {"blocks.0.attn.qkv.weight", "patch_embed.proj.weight", "head.weight"} <= set(prunable(timm_vit()))
    assert not {"pos_embed", "cls_token"} & set(prunable(timm_vit()))


def test_two_of_four_lie_along_the_inputs_of_a_conv1d():
    model = gpt2()
    masks = pruning.prune(model, selection=pruning.NofM(2, 4))
    layer = masks["transformer.h.0.attn.c_attn.weight"]
    assert layer.shape == (16, 48)
    assert layer.unflatten(0, (4, 4)).sum(1).eq(2).all()
    assert not layer.unflatten(1, (12, 4)).sum(2).eq(2).all()


class Loop:
    """A small loop over dictionaries, with the loss that the model or a function of logits gives."""

    epochs = 3

    def __init__(self, batches, *, own):
        self.batches, self.own = batches, own

    def loss(self, model, batch):
        if self.own:
            return model(**batch).loss
        return F.cross_entropy(model(**inputs_of(batch)), batch["labels"])

    def fit(self, model, masks, watch):
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.01)
        model.train()
        with incop.hold(masks, model, optimizer):
            for epoch in range(self.epochs):
                for batch in self.batches:
                    optimizer.zero_grad()
                    self.loss(model, batch).backward()
                    optimizer.step()
                    watch.stepped(len(batch["labels"]))
                if watch.look(accuracy=self.evaluate(model), epoch=epoch + 1).stop:
                    return

    @torch.no_grad()
    def evaluate(self, model):
        was = model.training
        model.eval()
        loss = sum(float(self.loss(model, batch)) for batch in self.batches) / len(self.batches)
        model.train(was)
        return float(np.exp(-loss))  # the mean likelihood: in [0, 1], more is better


@every_model
@pytest.mark.parametrize("meter", ["information", "gradient"])
def test_search_to_three_fifths_in_three_levels(name, meter):
    model, probe = MODELS[name](), probe_of(name)
    own = name != "timm vit"
    losses = flow.OwnLoss() if own else F.cross_entropy
    meter = flow.InformationFlow("square") if meter == "information" else flow.GradientFlow(losses)
    keys = list(model.state_dict())
    rule = stopping.parse("flow within 0.02")
    tickets = list(
        incop.search(
            model,
            Loop(probe, own=own),
            probe=probe,
            meter=meter,
            rule=rule,
            levels=3,
            amount=0.2632,
            sparsity=0.6,
            rewind="init",
        )
    )
    assert len(tickets) == 4
    assert tickets[-1].sparsity == pytest.approx(0.6, abs=1e-3)
    assert list(model.state_dict()) == keys
    for ticket in tickets:
        assert ticket.record.flow is not None
        assert all(np.isfinite(value) for value in ticket.record.flow.values.values())
    for weight, mask in tickets[-1].masks.items():
        assert bool((model.get_parameter(weight)[~mask] == 0).all())
    if isinstance(meter, flow.InformationFlow):  # of the pruned network, as of the dense one
        outputs = pooled_by_hand(copy.deepcopy(model), inputs_of(probe_of(name, size=48)[0]), parts_of(name))
        assert tickets[-1].record.flow.values == pytest.approx(corrcoef(outputs, pairs_of(name), "square"), abs=1e-5)


@pytest.mark.parametrize("name", ["vit", "timm vit"])
def test_search_with_the_built_in_trainer_learns_the_digits(name):
    model = MODELS[name]()
    x, y = digits()
    train, held_out = (x[:600], y[:600]), (x[600:800], y[600:800])
    trainer = incop.Trainer(train, held_out, epochs=4, batch_size=30, lr=5e-3)
    probe = list(zip(x[:64].split(32), y[:64].split(32), strict=True))
    tickets = list(
        incop.search(
            model,
            trainer,
            probe=probe,
            meter=flow.InformationFlow("square"),
            levels=3,
            amount=0.2632,
            sparsity=0.6,
            rewind="rate",
        )
    )
    assert tickets[-1].sparsity == pytest.approx(0.6, abs=1e-3)
    assert tickets[-1].record.val_accuracy > 0.4


def test_planned_cuts_look_at_real_tokens_too():
    model = lively(bert())
    damage = []
    for length in (None, 31):
        watched = flow.Damage(model, batches(length=length))
        damage.append(watched(pruning.prune(model, amount=0.5)))
    assert 0 < damage[0] < 1
    assert damage[0] == pytest.approx(damage[1], abs=1e-5)
