"""One class name occurs once in the package, private ones too: whoever reads a name knows which class is meant."""

import ast
from collections import defaultdict

from test_rooms import SOURCE


def test_a_class_name_occurs_once():
    found = defaultdict(list)
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(str(file.relative_to(SOURCE)))
    assert not {name: files for name, files in found.items() if len(files) > 1}
