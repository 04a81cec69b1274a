"""The release check: sdist and wheel are built, looked into, and the wheel works in a fresh environment. Run by `make dist`.

Usage: python tests/release/check_dist.py WHEEL SDIST PYTHON   (PYTHON: of an environment with mypy)
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from email.parser import BytesParser
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST = 1_000_000  # bytes of a wheel
OWN_DATA = {"incop/experiments/datasets/digits.npz"}  # real data that a first search runs on
CODE = """
import incop
found = incop.search
reveal_type(incop.Masks.full)
"""


def check_wheel(file: Path) -> None:
    """Refuse a wheel that is too large, has files of other kinds than the package's, or says too little of itself."""
    size = file.stat().st_size
    assert size < MOST, f"{file.name} has {size} bytes, and {MOST} are allowed"
    with zipfile.ZipFile(file) as content:
        names = content.namelist()
        metadata = BytesParser().parsebytes(content.read(next(n for n in names if n.endswith(".dist-info/METADATA"))))
    outside = [n for n in names if not n.startswith("incop/") and ".dist-info/" not in n]
    assert not outside, f"{file.name} holds {outside}"
    kinds = {".py", ".typed", ".css", ".html", ".txt"}
    odd = [n for n in names if n.startswith("incop/") and Path(n).suffix not in kinds and n not in OWN_DATA]
    assert not odd, f"{file.name} holds {odd}: data of tests, or a kind of file to add here"
    assert "incop/py.typed" in names, f"{file.name} is not typed"
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["Name"] == told["name"]
    assert metadata["License-Expression"] == told["license"]
    assert set(metadata.get_all("Provides-Extra", [])) == set(told["optional-dependencies"])
    assert "# incop" in str(metadata.get_payload()), "the wheel carries no README"
    print(f"wheel: {len(names)} files, {size:,} bytes")


def check_sdist(file: Path) -> None:
    """Refuse an sdist without what a packager needs, or with what a run leaves behind."""
    with tarfile.open(file) as content:
        names = [name.partition("/")[2] for name in content.getnames()]
    for needed in (
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "Makefile",
        "constraints.txt",
    ):
        assert needed in names, f"{file.name} lacks {needed}"
    for folder in ("src/incop", "tests", "tests/campaigns", "docs", "examples", "benchmarks"):
        assert any(name.startswith(f"{folder}/") for name in names), f"{file.name} lacks {folder}"
    left = [name for name in names if "__pycache__" in name or name.startswith(("runs/", ".venv", "data/"))]
    assert not left, f"{file.name} holds {left[:3]}"
    print(f"sdist: {len(names)} files, {file.stat().st_size:,} bytes")


def check_installed(wheel: Path, checker: str) -> None:
    """Install the wheel into a fresh environment and do there what a newcomer does first."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        venv.create(home / "fresh", with_pip=True)
        python = home / "fresh" / "bin" / "python"

        def run(*words: str) -> str:
            done = subprocess.run(words, cwd=home, check=False, capture_output=True, text=True)
            assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            return done.stdout

        pip = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        run(*pip, "-c", str(ROOT / "constraints.txt"), str(wheel))
        run(str(python), "-m", "pip", "check")
        incop = str(home / "fresh" / "bin" / "incop")
        where = run(str(python), "-c", "import incop; print(incop.__file__)").strip()
        assert where.startswith(str(home)), f"not the wheel was imported, but {where}"
        assert run(incop, "--version").strip() in wheel.name
        run(incop, "search", "--data", "digits", "--sparsity", "0.9", "--max-epochs", "2", "--out", "first")
        assert "finished" in run(incop, "show", "first")
        run(incop, "export", "first", "--to", "folded")
        (home / "typed.py").write_text(CODE)
        found = subprocess.run(
            [checker, "-m", "mypy", "--strict", "--python-executable", str(python), "typed.py"],
            cwd=home,
            check=False,
            capture_output=True,
            text=True,
        ).stdout
        assert "Success" in found, found
        assert "Masks" in found, found
    print("fresh environment: installed, searched, shown, exported, typed")


def main() -> None:
    """Check a wheel and an sdist."""
    wheel, sdist = (Path(word).resolve() for word in sys.argv[1:3])
    check_wheel(wheel)
    check_sdist(sdist)
    check_installed(wheel, str(Path(sys.argv[3]).absolute()))


if __name__ == "__main__":
    main()
