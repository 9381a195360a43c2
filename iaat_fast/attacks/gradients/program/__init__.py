"""Programs: forward and image gradient of a model as two lists of fused operations, without autograd.

How a program is made:
    1. `exported.py` exports the model's forward to a graph of ATen calls.
    2. `lowering.py` turns each call into an operation that knows its gradient (`operations.py`, `layers.py`,
       `reductions.py`, `views.py`), by the rules in `layer_rules.py` and `view_rules.py`. Unknown calls are grouped
       into segments that use autograd (`segment.py`).
    3. `steps.py` fuses neighbouring operations.
    4. `parameters.py` computes everything that depends on the weights only, when the program is refreshed.
    5. `straight_line.py` orders the operations, and their gradients in reverse, as instructions.
"""

from iaat_fast.attacks.gradients.program.program import Program

__all__ = ["Program"]
