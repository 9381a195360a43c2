"""iaat_fast: fast L-infinity attacks, and instance adaptive adversarial training on top of them."""

import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"]:  # what it is while `python -m` imports the packages of a command
    from iaat_fast.entry import explain_early_errors

    explain_early_errors()
