"""Compaction: units that nobody needs are taken out of a network, and its answers stay."""

from __future__ import annotations

from incop.export.compaction.compactor import Change, Compaction, compact
from incop.export.compaction.proof import tolerance_of
from incop.export.compaction.removal import sizes
from incop.export.compaction.tracing import Answering, exported

__all__ = ["Answering", "Change", "Compaction", "compact", "exported", "sizes", "tolerance_of"]
