"""The package's modules, and the examples in their docstrings."""

import doctest
import importlib
import inspect
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
MODULES = sorted(
    ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for file in SOURCE.rglob("*.py")
    if file.stem != "__main__"
)
OF_EXTRAS = [name for name in MODULES if name.startswith("incop.integrations")]  # may need an extra at import


def run_examples(name):
    """Run all examples of a module; return how many there were and what they said that they should not have."""
    said = []
    runner = doctest.DocTestRunner(verbose=False)
    for test in doctest.DocTestFinder().find(importlib.import_module(name)):
        runner.run(test, out=said.append)
    return runner.summarize(verbose=False).attempted, "".join(said)


def undocumented(name):
    """Names of a module's `__all__`, other than constants and submodules, that say less than a sentence about themselves."""
    module = importlib.import_module(name)
    things = {one: getattr(module, one) for one in getattr(module, "__all__", ()) if not one.isupper()}
    named = {one: thing for one, thing in things.items() if inspect.isclass(thing) or inspect.isfunction(thing)}
    return [one for one, thing in named.items() if len(inspect.getdoc(thing) or "") < 20]
