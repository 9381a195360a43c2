"""The networks of the presets, and importing a user's own; all take images in [0, 1]."""

from __future__ import annotations

from iaat_fast.models.building import NAMES, build, build_for, load_factory
from iaat_fast.models.layers import STATISTICS, Normalize
from iaat_fast.models.normalization import normalized

__all__ = ["NAMES", "STATISTICS", "Normalize", "build", "build_for", "load_factory", "normalized"]
