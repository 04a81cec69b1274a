"""Nothing in incop, its benchmarks or its examples makes code or objects of what a file says."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(file for folder in ("src", "benchmarks", "examples") for file in (ROOT / folder).rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "ruamel", "jsonpickle"}
BUILT_IN = {"eval", "exec", "compile", "__import__"}
WITHIN = {("torch", "load"), ("torch", "save"), ("os", "system"), ("os", "popen"), ("joblib", "load"), ("jit", "load")}


def dotted(node):
    return (
        (*dotted(node.value), node.attr)
        if isinstance(node, ast.Attribute)
        else (node.id,)
        if isinstance(node, ast.Name)
        else ("?",)
    )


def offences(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            yield node.module
        elif isinstance(node, ast.Call):
            name, keys = dotted(node.func), {key.arg: key.value for key in node.keywords}
            if len(name) == 1 and name[0] in BUILT_IN:
                yield name[0]
            if name[-2:] in WITHIN:
                yield ".".join(name)
            if name[-2:] in (("np", "load"), ("numpy", "load"), ("format", "read_array")):
                yield ".".join(name)
            for key in ("allow_pickle", "shell"):
                if key in keys and not (isinstance(keys[key], ast.Constant) and keys[key].value is False):
                    yield key


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_is_run_or_unpickled(file):
    assert list(offences(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch; torch.load('x', weights_only=False)",
        "torch.load('x')",
        "np.load('x', allow_pickle=True)",
        "np.load('x')",
        "eval('1')",
        "exec('1')",
        "import yaml",
        "os.system('x')",
        "subprocess.run('x', shell=True)",
        "np.lib.format.read_array(f, allow_pickle=x)",
    ],
)
def test_the_guard_sees(source):
    assert list(offences(source))


@pytest.mark.parametrize("source", ["model.eval()", "re.compile('x')", "json.load(f)", "subprocess.run(['x'])"])
def test_the_guard_lets_pass(source):
    assert not list(offences(source))
