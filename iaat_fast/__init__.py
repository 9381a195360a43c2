"""iaat_fast: fast L-infinity attacks, and instance adaptive adversarial training on top of them."""

import sys

__version__ = "0.2.0"

# What argv is while `python -m iaat_fast.COMMAND` imports the packages of the command; other programs' hooks stay.
if sys.argv[:1] == ["-m"] and any(word.startswith("iaat_fast.") for word in sys.orig_argv):
    from iaat_fast.entry import explain_early_errors

    explain_early_errors()
