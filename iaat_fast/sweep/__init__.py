"""Sweeps: a grid of runs, trained, evaluated and continued by one command.

python -m iaat_fast.sweep cifar10-resnet18 --methods adv iaat --eps 1 2 4 8 --seeds 0 1 2 --out DIR
"""

from __future__ import annotations
