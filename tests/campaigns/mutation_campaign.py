"""Break the code in one place at a time and see whether the tests turn red: mutants of the rooms that must be exact.

    python tests/campaigns/mutation_campaign.py [--only masks/holding.py] [--sample 400] [--state STATE.jsonl] [--result RESULT.md]

A mutant is one change to one expression or statement: a comparison, an arithmetic or boolean operator, a constant, a condition, a
returned value, a statement left out. Every mutant is a fork of a process that has imported torch and pytest but not incop; it
imports the changed module in place of the file's and runs the doctests of the module and the test files that mirror it; what
survives these is tried with those of the rooms that use it by a second call with `--wider`. What has been tried stands in the
state file and is not tried again while the module is the same, except survivors with `--again`, when the tests have grown.

Survivors that do the same as the original for every caller are named in `mutation_equivalents.toml`, each with its reason.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import datetime
import doctest
import hashlib
import importlib.machinery
import importlib.util
import json
import os
import platform
import random
import resource
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "incop"
EQUIVALENT = Path(__file__).with_name("mutation_equivalents.toml")
WIDER = [
    "tests/test_loop.py",
    "tests/test_training.py",
    "tests/test_watch.py",
    "tests/flow",
    "tests/pruning",
    "tests/stopping",
    "tests/faults/test_silly_training.py",
    "tests/test_methods.py",
    "tests/experiments/test_replays.py",
]
ROOMS = {  # module → the test files that mirror it
    "masks/bits.py": ["tests/test_masks.py"],
    "masks/holding.py": ["tests/test_holding.py"],
    "masks/value.py": ["tests/test_masks.py"],
    "snapshots.py": ["tests/test_snapshots.py"],
    "stopping/rules.py": ["tests/stopping"],
    "stopping/words.py": ["tests/stopping"],
    "pruning/amounts.py": ["tests/pruning"],
    "pruning/cut.py": ["tests/pruning"],
    "pruning/scores.py": ["tests/pruning"],
    "pruning/selection.py": ["tests/pruning"],
    "flow/moments.py": ["tests/flow/test_moments.py"],
}
COMPARE = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}
ELSEWHERE = ["tests/test_ranks.py"]  # their processes import the module as it is
SLOWER = 3  # times as long as the untouched module a mutant may take, and so many seconds more
LEAST_SECONDS = 15.0

Change = Callable[[], None]


def sites(tree: ast.Module) -> Iterator[tuple[str, ast.AST, Change]]:
    """Yield every change: its kind, the node it is seen in, and a function that makes it in place."""
    for parent, node in within(tree):
        yield from of_values(parent, node)
        yield from of_ways(parent, node)


def of_values(parent: ast.AST, node: ast.AST) -> Iterator[tuple[str, ast.AST, Change]]:
    """Yield the changes of what is reckoned."""
    if isinstance(node, ast.Compare):
        for at, op in enumerate(node.ops):
            yield "comparison", node, put(node.ops, at, COMPARE[type(op)]())
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in ARITHMETIC and not text(node):
        yield "arithmetic", node, put(node, "op", ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield "boolean", node, put(node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.UnaryOp):
        yield "sign", parent, swap(parent, node, node.operand)
    elif isinstance(node, ast.Constant):
        yield from (("constant", parent, put(node, "value", value)) for value in other_values(node.value))


def of_ways(parent: ast.AST, node: ast.AST) -> Iterator[tuple[str, ast.AST, Change]]:
    """Yield the changes of where it goes."""
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        yield "condition", node, put(node, "test", ast.UnaryOp(ast.Not(), node.test))
    if isinstance(node, ast.comprehension):
        for at, test in enumerate(node.ifs):
            yield "condition", parent, put(node.ifs, at, ast.UnaryOp(ast.Not(), test))
    if isinstance(node, ast.Return) and not (node.value is None or is_none(node.value)):
        yield "return", node, put(node, "value", ast.Constant(None))
    if isinstance(node, ast.Continue | ast.Break):
        yield "loop", node, swap(parent, node, ast.Break() if isinstance(node, ast.Continue) else ast.Continue())
    if left_out(node):
        yield "statement left out", node, swap(parent, node, ast.Pass())


def within(node: ast.AST, parent: ast.AST | None = None) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Walk what runs: no annotations, no docstrings, no sentences of errors, no `__all__`."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_comment") or (name == "bases" and isinstance(node, ast.ClassDef)):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Import | ast.ImportFrom | ast.JoinedStr):
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue
            if isinstance(child, ast.Assign) and ast.unparse(child.targets[0]) in ("__all__", "__hash__"):
                continue
            yield node, child
            if isinstance(child, ast.Raise):  # what it says is no behaviour; that it is raised is
                continue
            yield from within(child, node)


def put(owner: list | ast.AST, key: int | str, value: object) -> Change:
    if isinstance(owner, list):
        return lambda: owner.__setitem__(key, value)
    return lambda: setattr(owner, key, value)


def swap(parent: ast.AST, old: ast.AST, new: ast.AST) -> Change:
    def change() -> None:
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
            elif isinstance(value, list):
                setattr(parent, name, [new if child is old else child for child in value])

    return change


def text(node: ast.AST) -> bool:
    return any(isinstance(part, ast.JoinedStr) for part in ast.walk(node))


def is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def other_values(value: object) -> list[object]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1]
    return [f"{value}XX"] if isinstance(value, str) else []


def left_out(node: ast.AST) -> bool:
    if isinstance(node, ast.Assign):  # a name that is missing ends in an error at once, which tells nothing
        return not all(isinstance(target, ast.Name | ast.Tuple) for target in node.targets)
    return isinstance(node, ast.AugAssign | ast.Raise | ast.Delete) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.YieldFrom | ast.Await)
    )


class Mutant:
    """One change of one module.

    Args:
        module: its file, from `src/incop`.
        number: which of the module's changes.
    """

    def __init__(self, module: str, number: int) -> None:
        self.module, self.number = module, number
        source = (SOURCE / module).read_text(encoding="utf-8")
        self.tree = ast.parse(source)
        kind, node, change = next(found for at, found in enumerate(sites(self.tree)) if at == number)
        self.line = getattr(node, "lineno", 0)
        before = said(node)
        change()
        ast.fix_missing_locations(self.tree)
        self.kind, self.before, self.after = kind, before, said(node) if left_in(self.tree, node) else "(left out)"
        self.where = function_at(ast.parse(source), self.line)

    @property
    def key(self) -> str:
        """What it is known by, whatever line it stands in."""
        return f"{self.module} {self.where}: {self.before} → {self.after}"


def said(node: ast.AST) -> str:
    node = copy.deepcopy(node)
    if isinstance(node, ast.FunctionDef | ast.ClassDef):  # of which only the head is meant
        node.body = [ast.Pass()]
    elif isinstance(node, ast.If | ast.While):
        node.body, node.orelse = [ast.Pass()], []
    return " ".join(ast.unparse(ast.fix_missing_locations(node)).split())[:160]


def left_in(tree: ast.AST, node: ast.AST) -> bool:
    return any(part is node for part in ast.walk(tree))


def function_at(tree: ast.Module, line: int) -> str:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.lineno <= line <= (node.end_lineno or 0):
            names.append((node.lineno, node.name))
    return ".".join(name for _, name in sorted(names)) or "module"


class Changed(importlib.machinery.SourceFileLoader):
    """Loads a mutant instead of the file."""

    def __init__(self, name: str, path: str, tree: ast.Module | None) -> None:
        super().__init__(name, path)
        self.tree = tree

    def get_code(self, fullname: str):
        """Compile the changed tree; nothing of it goes into a cache."""
        return super().get_code(fullname) if self.tree is None else self.source_to_code(self.tree, self.path)


class Finder:
    """Finds one module; all others are found as ever."""

    def __init__(self, module: str, tree: ast.Module | None) -> None:
        self.path = SOURCE / module
        self.name = "incop." + module.removesuffix(".py").replace("/", ".")
        self.tree = tree

    def find_spec(self, name: str, path: object = None, target: object = None):
        """Return how the module is loaded."""
        if name != self.name:
            return None
        return importlib.util.spec_from_loader(name, Changed(name, str(self.path), self.tree))


def green(finder: Finder, tests: list[str]) -> bool:
    """Run the doctests of the module and the tests; say whether all pass."""
    import pytest

    sys.meta_path.insert(0, finder)
    sys.dont_write_bytecode = True
    name = finder.name.removeprefix("incop.")
    module = importlib.import_module(f"incop.{name}")
    if doctest.testmod(module).failed:
        return False
    words = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--hypothesis-seed=0",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    ]
    words += [f"--deselect={test}" for test in ELSEWHERE]
    return pytest.main([*words, "-o", "norecursedirs=.* extras", *tests]) == 0


def forked(module: str, tree: ast.Module | None, tests: list[str], seconds: float) -> str:
    """Return "survived", "killed" or "killed (time)" of a mutant, tried in a process of its own."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.setsid()  # so that what the tests start ends with it
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
            with tempfile.TemporaryDirectory() as home:
                os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = home
                if green(Finder(module, tree), tests):
                    os._exit(0)
        os._exit(1)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if status == 0 else "killed"
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "killed (time)"


def preload() -> None:
    """Import what every mutant needs and none changes; nothing of incop."""
    import hypothesis  # noqa: F401
    import numpy  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch

    torch.set_num_threads(1)
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0).zero_grad()  # it imports torch's compiler
    assert not [name for name in sys.modules if name.startswith("incop")]


def chosen(only: list[str], sample: int | None, seed: int) -> dict[str, list[int]]:
    every = [
        (module, number)
        for module in ROOMS
        for number, _ in enumerate(sites(ast.parse((SOURCE / module).read_text(encoding="utf-8"))))
    ]
    if sample is not None and sample < len(every):
        every = random.Random(seed).sample(every, sample)
    return {m: sorted(n for module, n in every if module == m) for m in ROOMS if not only or m in only}


def known(file: Path) -> dict[tuple[str, int], dict]:
    """Return what the state file says of modules that are still as they were then; the last word on each mutant."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {(one["module"], one["number"]): one for one in lines if one["source"] == fingerprint(one["module"])}


def fingerprint(module: str) -> str:
    """Return a hash of what the module does: comments and docstrings may change."""
    tree = ast.parse((SOURCE / module).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def campaign(plan: dict[str, list[int]], state: Path, again: bool, others: list[str]) -> None:
    """Try every mutant that the state file does not know; with `again`, survivors once more."""
    before = known(state)
    for module, numbers in plan.items():
        left = [n for n in numbers if (one := before.get((module, n))) is None or (again and one["fate"] == "survived")]
        if not left:
            continue
        tests = others or ROOMS[module]
        started = time.monotonic()
        assert forked(module, None, tests, 600.0) == "survived", f"the tests of {module} are red as it is"
        most = SLOWER * (time.monotonic() - started) + LEAST_SECONDS
        for number in left:
            mutant, started = Mutant(module, number), time.monotonic()
            one = {"module": module, "number": number, "source": fingerprint(module)}
            one |= {"fate": forked(module, mutant.tree, tests, most), "kind": mutant.kind, "line": mutant.line}
            one |= {"key": mutant.key, "s": time.monotonic() - started}
            with state.open("a") as out:
                out.write(json.dumps(one, ensure_ascii=False) + "\n")
            print(f"{one['fate']:14} {one['s']:5.1f} s  line {mutant.line:4} {mutant.key}", flush=True)


def report(plan: dict[str, list[int]], state: Path, command: str) -> tuple[str, float]:
    """Return the result as Markdown, and the share of killed among mutants that are not equivalent."""
    import torch

    found = known(state)
    reasons = {one["mutant"]: one["why"] for one in tomllib.loads(EQUIVALENT.read_text()).get("equivalent", [])}
    rows, all_told, survivors = [], Counter(), []
    for module, numbers in plan.items():
        tried = [found[module, n] for n in numbers if (module, n) in found]
        count = Counter()
        for one in tried:
            same = one["fate"] == "survived" and one["key"] in reasons
            count["equivalent" if same else "survived" if one["fate"] == "survived" else "killed"] += 1
            if one["fate"] == "survived":
                survivors.append((one, reasons.get(one["key"], "")))
        count["mutants"] = len(tried)
        all_told += count
        rows.append((f"`{module}`", count))
    rows.append(("**all**", all_told))
    share = all_told["killed"] / max(all_told["mutants"] - all_told["equivalent"], 1)
    lines = [
        f"# Mutants killed by the tests, {datetime.date.today()}",
        "",
        f"**{all_told['killed']} of {all_told['mutants'] - all_told['equivalent']} mutants killed, {share:.1%}** (goal: at least "
        f"90 %); {all_told['equivalent']} more do the same as the original for every caller and are not counted.",
        "",
        f"- {all_told['mutants']} mutants of the {sum(map(len, chosen([], None, 0).values()))} there are; the tests had been "
        "strengthened before for those that lived at first",
        f"- command: `{command}` · {platform.machine()}, 1 core · Python {platform.python_version()}, torch {torch.__version__}",
        "- a mutant is one change of a comparison, an arithmetic or boolean operator, a sign, a constant, a condition, a returned "
        "value, or a statement left out; sentences of errors, annotations and docstrings are left as they are",
        "- tried against the doctests of the module and the test files that mirror it; one that takes "
        f"{SLOWER} times as long and {LEAST_SECONDS:.0f} s is killed too",
        "",
        "| module | mutants | killed | survived | equivalent | score |",
        "|---|---:|---:|---:|---:|---:|",
        *(
            f"| {name} | {c['mutants']} | {c['killed']} | {c['survived']} | {c['equivalent']} | "
            f"{c['killed'] / max(c['mutants'] - c['equivalent'], 1):.1%} |"
            for name, c in rows
        ),
        "",
    ]
    for title, equal in (("Survivors", False), ("Equivalent", True)):
        lines += [f"## {title}", ""]
        lines += [f"- `{one['key']}`{f': {why}' if why else ''}" for one, why in survivors if bool(why) == equal]
        lines += [""] if any(bool(why) == equal for _, why in survivors) else ["None.", ""]
    return "\n".join(lines), share


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], choices=ROOMS, metavar="MODULE")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn from all of them (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir()) / "incop-mutants.jsonl")
    parser.add_argument(
        "--again", action="store_true", help="try survivors once more, with the tests that mirror the module"
    )
    parser.add_argument(
        "--wider", action="store_true", help="try survivors once more, with the tests of the rooms that use it"
    )
    parser.add_argument("--tests", nargs="*", default=[], help="try survivors once more, with these tests")
    parser.add_argument("--result", type=Path, help="the .md to write")
    options = parser.parse_args()
    os.chdir(ROOT)
    plan = chosen(options.only, options.sample, options.seed)
    print({module: len(numbers) for module, numbers in plan.items() if numbers}, flush=True)
    preload()
    others = WIDER if options.wider else options.tests
    campaign(plan, options.state, options.again or bool(others), others)
    words = f" --sample {options.sample} --seed {options.seed}" if options.sample else ""
    text, share = report(plan, options.state, f"python tests/campaigns/mutation_campaign.py{words}")
    print(text)
    if options.result is not None:
        options.result.write_text(text, encoding="utf-8")
    return 0 if share >= 0.9 else 1


if __name__ == "__main__":
    sys.exit(main())
