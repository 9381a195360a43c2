"""The gradient of the images as a program: a straight line of fused operations, without autograd and weight gradients.

The forward is exported to a graph of ATen calls (`exported.py`), each call lowered to an operation that knows its own
gradient (`lowering.py`, by the rules in `layer_rules.py` and `view_rules.py`, to those of `operations.py`, `layers.py`
and `views.py`), neighbours fused (`steps.py`), what depends on the weights alone taken out of the steps
(`parameters.py`), and all of it put in a straight line with its reverse (`straight_line.py`). What is not known runs by
autograd in between (`segment.py`). `Program` holds the result.
"""

from iaat_fast.attacks.gradients.program.program import Program

__all__ = ["Program"]
