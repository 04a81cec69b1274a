"""Tiny random transformers of transformers and timm, and the small real data they are tried on."""

from pathlib import Path

import numpy as np
import timm
import torch
import transformers
from torch import nn

SENTENCES = Path(__file__).parent / "text" / "sentences.tsv"
PAD, START = 0, 1
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def sentences():
    """Return (subject, words) of every sentence."""
    lines = (line.split("\t") for line in SENTENCES.read_text().splitlines())
    return [(int(subject), text.split()) for subject, text in lines]


WORDS = {word: i + 2 for i, word in enumerate(sorted({word for _, words in sentences() for word in words}))}
VOCABULARY = len(WORDS) + 2


def encoded(parts, *, length=None, language=False):
    """Return a batch of sentences, padded: to the longest, or to a length. Labels are the subjects or the words."""
    rows = [[START, *(WORDS[word] for word in words)] for _, words in parts]
    length = length or max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    labels = ids.masked_fill(mask == 0, -100) if language else torch.tensor([subject for subject, _ in parts])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def batches(*, size=8, language=False, **more):
    """Return all sentences in batches, each padded to its own longest."""
    parts = sentences()
    return [encoded(parts[at : at + size], language=language, **more) for at in range(0, len(parts), size)]


def bert(kind=transformers.BertForSequenceClassification):
    torch.manual_seed(0)
    return kind(transformers.BertConfig(**SMALL, vocab_size=VOCABULARY, max_position_embeddings=40, num_labels=3))


def gpt2(kind=transformers.GPT2LMHeadModel):
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "vocab_size": VOCABULARY}
    return kind(
        transformers.GPT2Config(**sizes, bos_token_id=START, eos_token_id=START, pad_token_id=PAD, num_labels=3)
    )


def vit():
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SMALL, image_size=8, patch_size=2, num_channels=1, num_labels=10)
    return transformers.ViTForImageClassification(config)


def timm_vit():
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", in_chans=1, num_classes=10, **sizes)


def lively(model):
    """Spread a freshly made model's weights, so that attention and residual branches matter as in a trained one."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
                module.weight.mul_(8)
    return model


def corrcoef(outputs, pairs, reduction):
    """Slow and obvious: np.corrcoef of the pooled outputs of every pair, NaN → 0."""
    flow = {}
    for a, b in pairs:
        with np.errstate(divide="ignore", invalid="ignore"):
            rho = np.corrcoef(outputs[a].T, outputs[b].T)[: outputs[a].shape[1], outputs[a].shape[1] :]
        rho = np.nan_to_num(rho)
        flow[f"{a}->{b}"] = float({"mean": rho, "absolute": np.abs(rho), "square": rho**2}[reduction].mean())
    return flow


def pooled_by_hand(model, inputs, parts):
    """Return every layer's outputs averaged over the real tokens, sample by sample in Python.

    Args:
        inputs: what the model is called with, all samples at once.
        parts: by name of a step: the module, and which of its units.
    """
    outputs, handles = {}, []
    for name in {module for module, _ in parts.values()}:
        hook = lambda m, a, out, name=name: outputs.__setitem__(name, out.detach().double().numpy())  # noqa: E731
        handles.append(model.get_submodule(name).register_forward_hook(hook))
    with torch.no_grad():
        model.eval()(**inputs)
    for handle in handles:
        handle.remove()
    mask = inputs.get("attention_mask")
    pooled = {}
    for step, (name, units) in parts.items():
        out = outputs[name]
        if out.ndim == 4:  # the pictures' patches, units first
            out = out.reshape(*out.shape[:2], -1).transpose(0, 2, 1)
        rows = []
        for i, sample in enumerate(out):
            tokens = sample[None] if sample.ndim == 1 else sample
            real = [t for t in range(len(tokens)) if mask is None or sample.ndim == 1 or mask[i, t]]
            rows.append(np.mean([tokens[t] for t in real], axis=0))
        pooled[step] = np.stack(rows)[:, units]
    return pooled
