"""The radius of every sample, and Algorithm 2 of IAAT, which adapts it."""

from iaat_fast.epsilon.memory import EpsilonMemory, Selection

__all__ = ["EpsilonMemory", "Selection"]
