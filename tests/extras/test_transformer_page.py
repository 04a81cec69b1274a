"""The tables of docs/transformers.md are what the code says of networks of the published sizes, cut to two blocks."""

from pathlib import Path

import pytest
import timm
import torch
import transformers

from incop.batches import unpack
from incop.layers import chain, prunable

PAGE = Path(__file__).parents[2] / "docs" / "transformers.md"
IDS = torch.randint(5, 100, (2, 6))
WORDS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
PICTURES = torch.randn(2, 3, 224, 224)

NETWORKS = {  # how its blocks are named, how it is made, and a batch
    "BERT": (
        "bert.encoder.layer.",
        lambda: transformers.BertForSequenceClassification(transformers.BertConfig(num_hidden_layers=2)),
        WORDS,
    ),
    "GPT-2": ("transformer.h.", lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=2)), WORDS),
    "ViT of transformers": (
        "vit.layers.",
        lambda: transformers.ViTForImageClassification(transformers.ViTConfig(num_hidden_layers=2, num_labels=1000)),
        {"pixel_values": PICTURES},
    ),
    "ViT of timm": ("blocks.", lambda: timm.create_model("vit_base_patch16_224", depth=2), PICTURES),
}


def table(blocks, model, batch):
    """Return the rows of a network's table: its second block as block i, and what lies outside the blocks."""
    found, weights = chain(model.eval(), unpack(batch)), prunable(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def short(step):
        return "`" + step.replace(f"{blocks}0.", f"{blocks}i-1.").replace(f"{blocks}1.", f"{blocks}i.") + "`"

    rows = ["| step | units | fed by | pruned |", "|---|---|---|---|"]
    for step in found:
        if step.startswith(f"{blocks}0."):
            continue
        module = model.get_submodule(step.partition("[")[0])
        whole = module.weight.shape[1] if type(module).__name__ == "Conv1D" else module.weight.shape[0]
        units = int(found.units[step].sum()) if step in found.units else whole
        fed = ", ".join(short(a) for a, b in found.pairs if b == step) or "–"
        name = names[id(module.weight)]
        pruned = "yes" if name in weights else f"no: it is `{name}`"
        rows.append(f"| {short(step)} | {units} | {fed} | {pruned} |")
    return "\n".join(rows)


@pytest.mark.parametrize("name", NETWORKS)
def test_table_is_what_the_code_says(name):
    blocks, build, batch = NETWORKS[name]
    torch.manual_seed(0)
    made = table(blocks, build(), batch)
    assert f"### {name}" in PAGE.read_text()
    assert made in PAGE.read_text(), f"the table of {name} should be\n\n{made}"
