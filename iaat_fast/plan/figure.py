"""A number of a plan, which says where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["given", "counted", "measured", "modelled"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number, its unit, the part of the plan it belongs to, and where it comes from.

    source: "given" by the configuration, an argument or a data sheet; "counted" on the network or in the algorithm,
        exactly; "measured" on a device; "modelled", computed from anything that is assumed.
    """

    group: str
    name: str
    value: float
    unit: str
    source: Source
