"""The memory of every sample's radius, and IAAT's Algorithm 2, which adapts it."""

from iaat_fast.epsilon.memory import EpsilonMemory, Selection

__all__ = ["EpsilonMemory", "Selection"]
