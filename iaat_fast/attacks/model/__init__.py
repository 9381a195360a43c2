"""The model under attack: finding its modules, setting and restoring its mode, and detecting changes to it."""

from iaat_fast.attacks.model.distributed import unwrap_ddp
from iaat_fast.attacks.model.ensemble import Ensemble
from iaat_fast.attacks.model.mode import attacked, logits_of

__all__ = ["Ensemble", "attacked", "logits_of", "unwrap_ddp"]
