"""Compaction: units that nobody needs are taken out of a network, and its answers stay."""

from __future__ import annotations

from incop.export.compaction.compacting import Change, Compaction, compact

__all__ = ["Change", "Compaction", "compact"]
