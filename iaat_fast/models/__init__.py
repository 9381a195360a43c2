"""The networks of the presets, and loading a user's own; all take images in [0, 1]."""

from __future__ import annotations

from iaat_fast.models.building import NAMES, build
from iaat_fast.models.factory import load_factory
from iaat_fast.models.normalize import STATISTICS, Normalize

__all__ = ["NAMES", "STATISTICS", "Normalize", "build", "load_factory"]
