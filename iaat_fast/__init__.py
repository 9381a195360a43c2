"""iaat_fast: fast L-infinity attacks, and instance adaptive adversarial training on top of them."""

__version__ = "0.1.0"
