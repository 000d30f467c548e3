"""Designs: frozen records of how kernels, and proposals, go about an address space.

`linux` reads like the history of the patch, each record made from its predecessor. `load` finds a
shipped design by name or a user's own in a Python file.
"""

from zaplock.designs.linux import SHIPPED
from zaplock.designs.load import differences, load
from zaplock.protocols.design import Cx, Design

__all__ = ["SHIPPED", "Cx", "Design", "differences", "load"]
