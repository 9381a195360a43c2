"""L-infinity attacks on image classifiers, in which every sample may have its own radius and step size."""

from iaat_fast.attacks.apgd import APGD, APGDT
from iaat_fast.attacks.attackbench import AttackBenchAdapter
from iaat_fast.attacks.call import AttackStats
from iaat_fast.attacks.deepfool import DeepFool
from iaat_fast.attacks.diversity import DIFGSM, TIFGSM
from iaat_fast.attacks.fab import FABT
from iaat_fast.attacks.fgsm import FGSM, MIFGSM
from iaat_fast.attacks.findings import Findings
from iaat_fast.attacks.masking import MaskingReport, masking_report
from iaat_fast.attacks.model import Ensemble
from iaat_fast.attacks.multi import MultiAttack
from iaat_fast.attacks.options import EngineOptions, scaled_step
from iaat_fast.attacks.pgd import PGD
from iaat_fast.attacks.result import AttackResult
from iaat_fast.attacks.square import Square
from iaat_fast.attacks.trace import Trace
from iaat_fast.attacks.transfer import NIFGSM, SINIFGSM, VMIFGSM, VNIFGSM

__all__ = [
    "APGD",
    "APGDT",
    "DIFGSM",
    "FABT",
    "FGSM",
    "MIFGSM",
    "NIFGSM",
    "PGD",
    "SINIFGSM",
    "TIFGSM",
    "VMIFGSM",
    "VNIFGSM",
    "AttackBenchAdapter",
    "AttackResult",
    "AttackStats",
    "DeepFool",
    "EngineOptions",
    "Ensemble",
    "Findings",
    "MaskingReport",
    "MultiAttack",
    "Square",
    "Trace",
    "masking_report",
    "scaled_step",
]
