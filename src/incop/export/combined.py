"""A form of the compacted network: `compacted+onnx`, `compacted+csr`."""

from __future__ import annotations

from pathlib import Path
from weakref import WeakKeyDictionary

from torch import nn

from incop.export.compacted import compacted
from incop.export.subject import Form, Outputs, Subject
from incop.masks import Masks

TOLERANCE = 1e-5  # relative: folding biases forward sums in another order


class CombinedForm:
    """A form of the network that is left when dead units are removed.

    Args:
        then: the form that the compacted network is written in.
    """

    def __init__(self, then: Form) -> None:
        self.then = then
        self.name = f"compacted+{then.name}"
        self.tolerance = max(TOLERANCE, then.tolerance)
        self._made: WeakKeyDictionary[nn.Module, Subject] = WeakKeyDictionary()

    def write(self, subject: Subject, folder: Path) -> list[Path]:
        """Write the form's files; a single one is called `compacted.…`, so that it may lie beside the plain form's."""
        files = self.then.write(self._compacted(subject), folder)
        if len(files) > 1:  # they may name each other
            return files
        return [files[0].rename(files[0].with_name(f"compacted.{files[0].name}"))]

    def outputs(self, file: Path, subject: Subject) -> Outputs:
        """Return the function from a batch to the answers of what the main file holds."""
        return self.then.outputs(file, self._compacted(subject))

    def _compacted(self, subject: Subject) -> Subject:
        """Return the subject without its dead units."""
        if subject.model not in self._made:
            model = compacted(subject.model, subject.masks, subject.example).cpu().eval()
            masks = Masks.of(model, frozen=True)
            self._made[subject.model] = Subject(model, masks, subject.example, subject.about)
        return self._made[subject.model]
