"""L-infinity attacks on image classifiers, with a radius and a step size of its own for every sample."""

from iaat_fast.attacks.fgsm import FGSM
from iaat_fast.attacks.options import EngineOptions
from iaat_fast.attacks.pgd import PGD
from iaat_fast.attacks.stats import AttackStats
from iaat_fast.attacks.step_size import scaled_step

__all__ = ["FGSM", "PGD", "AttackStats", "EngineOptions", "scaled_step"]
