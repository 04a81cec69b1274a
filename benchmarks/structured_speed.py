"""What a search of whole units gains on a CPU: the compacted ticket against the dense network, and single weights as CSR.

For each pair of data and network two run folders, made by `incop search`, one with `--selection units` and one with
`--selection global` on the same dense level. Of each the ticket is taken that is sparsest among those trained in full whose
validation accuracy is within half a point of the dense network's; their test accuracies are told. The ticket of whole units
is compacted (`incop.export.compacted`); that of single weights stays as it is, and has its linear layers as CSR, all of them
and those for which it is faster. Everything runs in turn in one process on one thread, timed in processor time.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded

import torch  # until the forms are in this tree, they are sorted as strangers
from side_by_side import machine
from torch import nn

import incop
from incop.experiments import run_levels
from incop.export.compacted import compacted
from incop.export.csr_layers import CSRLinear
from incop.export.timing import Ratio, in_turn
from incop.records import Level
from incop.rundir import RunDir

NAME = "structured-speed"
MARGIN = 0.005  # of validation accuracy
ROUNDS = 60
BATCHES = (1, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="+", metavar="UNITS,GLOBAL", help="the two run folders of a pair, with a comma")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of calls in turn for every row")
    dated = Path(__file__).parent / "results" / f"{datetime.date.today()}-{NAME}.json"
    parser.add_argument("--out", type=Path, default=dated, help="the .json to write; the .md is written beside it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    pairs = [measured(*(RunDir.open(path) for path in pair.split(",")), options.rounds) for pair in options.pairs]
    result = {
        "benchmark": NAME,
        "date": str(datetime.date.today()),
        "machine": machine(),
        "load": round(load, 1),
        "versions": {"incop": incop.__version__, "torch": torch.__version__},
        "rounds": options.rounds,
        "pairs": pairs,
    }
    options.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    options.out.with_suffix(".md").write_text(text := table(result), encoding="utf-8")
    print(text)


def measured(units: RunDir, single: RunDir, rounds: int) -> dict[str, object]:
    """Return what one pair of runs gives, for all batches."""
    levels = {"units": sparsest(units), "global": sparsest(single)}
    parts, masks = run_levels.rebuild(units, levels["units"].level)
    example = parts.test[0]
    forms = {
        "units, masked": parts.model.eval(),
        "units, compacted": compacted(parts.model, masks, example[:256]).eval(),
    }
    dense = run_levels.rebuild(units, 0)[0].model.eval()
    weights = run_levels.rebuild(single, levels["global"].level)[0].model.eval()
    forms |= {"single weights, masked": weights, "single weights, CSR": with_csr(weights, linears(weights))}
    exact = {name: accuracy(form, *parts.test) for name, form in forms.items()}
    rows = []
    for batch in BATCHES:
        x = example[:batch].contiguous()
        chosen = faster_as_csr(weights, x, rounds)
        calls = {"dense": dense, **forms, "single weights, CSR where faster": with_csr(weights, chosen)}
        calls |= {"dense again": copy.deepcopy(dense)}  # what cannot be told apart
        times = in_turn({name: (lambda model=model, x=x: model(x)) for name, model in calls.items()}, rounds=rounds)
        for name in calls:
            ratio = Ratio.of(times["dense"], times[name])
            us = 1e6 * float(torch.tensor(times[name]).median())
            rows.append({"batch": batch, "form": name, "us": us, "n": len(times[name]), **vars(ratio)})
            rows[-1] |= {"csr": chosen} if "where faster" in name else {}
    first = units.levels()[0]
    return {
        "data": parts.plan.data,
        "model": parts.plan.model,
        "commands": {name: run.read_plan() for name, run in (("units", units), ("global", single))},
        "dense": {"test": first.test_accuracy, "validation": first.val_accuracy},
        "tickets": {
            name: {"sparsity": level.sparsity, "test": level.test_accuracy, "validation": level.val_accuracy}
            for name, level in levels.items()
        },
        "parameters": {
            name: sum(p.numel() for p in form.parameters())
            for name, form in {"dense": dense, "units, compacted": forms["units, compacted"]}.items()
        },
        "test_of_form": exact,
        "widths": {
            name: tuple(m.weight.shape) for name, m in forms["units, compacted"].named_modules() if hasattr(m, "weight")
        },
        "rows": rows,
    }


def sparsest(run: RunDir) -> Level:
    """Return the sparsest level trained in full whose validation accuracy is within the margin of the dense network's."""
    dense, *levels = run.levels()
    held = [x for x in levels if x.test_accuracy is not None and x.val_accuracy >= dense.val_accuracy - MARGIN]
    return max(held, key=lambda level: level.sparsity)


def linears(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def with_csr(model: nn.Module, names: list[str]) -> nn.Module:
    """Return a copy of a model in which these linear layers hold only the weights that are left."""
    made = copy.deepcopy(model)
    for name in names:
        layer = made.get_submodule(name)
        made.set_submodule(name, CSRLinear.of(layer.weight.detach(), layer.bias))
    return made.eval()


def faster_as_csr(model: nn.Module, x: torch.Tensor, rounds: int) -> list[str]:
    """Return the linear layers that are faster as CSR on the inputs they get."""
    found, seen = [], {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda m, args, out, name=name: seen.update({name: args[0]}))
        for name in linears(model)
    ]
    with torch.inference_mode():
        model(x)
    for handle in handles:
        handle.remove()
    for name, into in seen.items():
        layer = model.get_submodule(name)
        sparse = CSRLinear.of(layer.weight.detach(), layer.bias)
        times = in_turn({"dense": lambda f=layer, x=into: f(x), "csr": lambda f=sparse, x=into: f(x)}, rounds=rounds)
        found += [name] if Ratio.of(times["dense"], times["csr"]).faster else []
    return found


@torch.inference_mode()
def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
    return right / len(y)


def table(result: dict) -> str:
    """Return the result as Markdown; slower forms stand in it as well."""
    m = result["machine"]
    lines = [
        f"# {NAME}, {result['date']}",
        "",
        "How many times faster than the dense network: the median of the ratios round by round, and the 95 % interval of that "
        "median (bootstrap). Below 1 is slower. *Dense again* is a copy of the dense network: what cannot be told apart.",
        "",
        f"- machine: {m['cpu']} ({m['instructions']}), {m['cores']} cores, {m['system']}; {m['threads']} thread used, "
        f"processor time; load when begun {result['load']}",
        "- versions: " + ", ".join(f"{what} {version}" for what, version in result["versions"].items()),
        "",
    ]
    for pair in result["pairs"]:
        units, single, dense = pair["tickets"]["units"], pair["tickets"]["global"], pair["dense"]
        lines += [
            f"## {pair['data']}, {pair['model']}",
            "",
            f"Test accuracy: dense {dense['test']:.4f}; whole units at sparsity {units['sparsity']:.4f}: {units['test']:.4f} "
            f"({100 * (units['test'] - dense['test']):+.2f} points); single weights at {single['sparsity']:.4f}: "
            f"{single['test']:.4f} ({100 * (single['test'] - dense['test']):+.2f} points). Parameters: dense "
            f"{pair['parameters']['dense']:,}, compacted "
            f"{pair['parameters']['units, compacted']:,}. The compacted network's own test accuracy: "
            f"{pair['test_of_form']['units, compacted']:.4f}.",
            "",
            "| batch | form | µs a call (median) | times faster than dense | 95 % interval | n |",
            "|---:|---|---:|---:|---|---:|",
        ]
        for row in pair["rows"]:
            layers = f" ({', '.join(row['csr']) or 'none is'})" if "csr" in row else ""
            lines.append(
                f"| {row['batch']} | {row['form']}{layers} | {row['us']:.1f} | {row['median']:.2f} "
                f"| {row['low']:.2f} – {row['high']:.2f} | {row['n']} |"
            )
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
