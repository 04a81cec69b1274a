"""Without Lightning its integration says which extra brings it; incop itself does not mind."""

import subprocess
import sys

import pytest

WITHOUT = """
import sys
for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
    sys.modules[name] = None
import incop
from incop.errors import MissingExtra
try:
    import incop.integrations.lightning
except MissingExtra as error:
    print(error)
"""


def test_without_lightning_the_extra_is_named():
    run = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == (
        "searching with Lightning needs the package 'lightning', which is not installed: pip install 'incop[lightning]'"
    )


@pytest.mark.parametrize("module", ["lightning", "pytorch_lightning", "torch"])
def test_the_package_of_integrations_imports_nothing_heavy(module):
    code = f"import sys, incop.integrations; assert {module!r} not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
