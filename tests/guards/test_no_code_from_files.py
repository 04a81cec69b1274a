"""Nothing in incop, its benchmarks, its campaigns or its examples makes code or objects of what a file says."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    file for folder in ("src", "benchmarks", "examples", "tests/campaigns") for file in (ROOT / folder).rglob("*.py")
)
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "ruamel", "jsonpickle"}
BUILT_IN = {"eval", "exec", "compile", "__import__"}
RUNNING = {"import_module", "exec_module", "spec_from_file_location", "load_module", "run_path", "run_module"}
# who runs the user's code, and who imports what is named in incop itself
ALLOWED = {
    "src/incop/__init__.py": {"import_module"},
    "src/incop/experiments/models/code.py": {"import_module", "exec_module", "spec_from_file_location"},
    "src/incop/experiments/models/libraries.py": {"import_module"},
    "src/incop/experiments/datasets/vision.py": {"import_module"},
    "src/incop/experiments/engines/ray_.py": {"import_module"},
    "src/incop/experiments/engines/slurm.py": {"import_module"},
    "src/incop/export/onnx.py": {"import_module"},
    "tests/campaigns/mutation_campaign.py": {"import_module"},
    "src/incop/integrations/lightning/package.py": {"import_module"},
    "src/incop/integrations/trackers/backends.py": {"import_module"},
    "src/incop/reports/extras.py": {"import_module"},
}
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
            if name[-1] in RUNNING:
                yield name[-1]
            if "trust_remote_code" in keys and not _is_false(keys["trust_remote_code"]):
                yield "trust_remote_code"
            if name[-2:] in WITHIN:
                yield ".".join(name)
            if name[-2:] in (("np", "load"), ("numpy", "load"), ("format", "read_array")):
                yield ".".join(name)
            for key in ("allow_pickle", "shell"):
                if key in keys and not _is_false(keys[key]):
                    yield key


def _is_false(node):
    return isinstance(node, ast.Constant) and node.value is False


def test_no_file_is_run_or_unpickled():
    found = {str(file.relative_to(ROOT)): set(offences(file.read_text(encoding="utf-8"))) for file in FILES}
    assert {name: left for name, seen in found.items() if (left := seen - ALLOWED.get(name, set()))} == {}


def test_libraries_are_imported_by_names_that_stand_in_the_source():
    """Outside the user's own code, what is imported is a constant or a row of a table, never what a file says."""
    passed_on = {"package", "module"}  # by the functions that import a library, whose callers are looked at too
    for file in FILES:
        if file.name == "code.py":
            continue
        for call in [
            node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
        ]:
            name = dotted(call.func)[-1]
            if (
                name == "import_module"
                or (name == "imported" and len(call.args) == 2)
                or dotted(call.func)[-2:] == ("extras", "load")
            ):
                said = ast.unparse(call.args[0])
                table = said in (
                    "_HOMES[name]",
                    "PACKAGES[named.source]",
                    "f'incop.{name}'",
                )
                table = table or said in passed_on
                assert table or isinstance(call.args[0], ast.Constant), f"{file.name} imports {said}"


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
        "importlib.import_module(name)",
        "spec.loader.exec_module(module)",
        "runpy.run_path('x.py')",
        "AutoModel.from_config(c, trust_remote_code=True)",
        "AutoModel.from_config(c, trust_remote_code=said)",
    ],
)
def test_the_guard_sees(source):
    assert list(offences(source))


@pytest.mark.parametrize("source", ["model.eval()", "re.compile('x')", "json.load(f)", "subprocess.run(['x'])"])
def test_the_guard_lets_pass(source):
    assert not list(offences(source))
