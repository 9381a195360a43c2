"""The model under attack: its modules, its mode, and what it is seen to be before and after."""

from iaat_fast.attacks.model.distributed import unwrap_ddp
from iaat_fast.attacks.model.mode import attacked, logits_of

__all__ = ["attacked", "logits_of", "unwrap_ddp"]
