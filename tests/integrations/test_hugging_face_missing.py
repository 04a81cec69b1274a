import subprocess
import sys

CODE = """
import sys
sys.modules["transformers"] = None  # as if it were not installed
import incop.integrations
try:
    import incop.integrations.hugging_face
except incop.MissingExtra as error:
    print(error)
"""


def test_without_transformers_the_extra_is_named():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "incop.integrations.hugging_face needs the package 'transformers', which is not installed: "
        "pip install 'incop[transformers]'"
    )


def test_the_room_itself_needs_nothing():
    code = "import sys, incop.integrations; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
