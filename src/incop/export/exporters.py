"""torch's exporters: their messages are kept away from the user, and why one failed is said in one sentence."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

DEPENDS_ON_VALUES = (
    "its forward pass looks at values to decide what to do (an `if` or a loop over a tensor's numbers), which no graph can "
    "follow; torch.where or torch.cond can"
)
CAUSES = 10  # of an error, that are looked at


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings, logs and printed graphs away from the user, who did not write what they are about."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def told(error: BaseException) -> list[str]:
    """Return what an error says and what its causes say, the outermost first."""
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(texts) < CAUSES:
        texts.append(str(cause))
        cause = cause.__cause__ or cause.__context__
    return texts


def depends_on_values(error: BaseException) -> bool:
    """Say whether a network cannot be followed because it decides by its inputs' values."""
    whole = "\n".join(told(error))
    return any(word in whole for word in ("data-dependent", "DataDependent", "GuardOnData"))
