"""The model under attack: its modules, its mode, and what it is seen to be before and after."""

from iaat_fast.attacks.model.distributed import bare
from iaat_fast.attacks.model.mode import attacked, logits_of

__all__ = ["attacked", "bare", "logits_of"]
