"""Designs: frozen records of how kernels, and proposals, go about an address space.

`changes` is the history of Linux as a table, `linux` folds it into the design of any release.
`load` finds a design by name or a user's own in a Python file.
"""

from zaplock.designs.change import Change
from zaplock.designs.changes import CHANGES
from zaplock.designs.load import differences, load
from zaplock.designs.shipped import SHIPPED
from zaplock.protocols.design import Cx, Design

__all__ = ["CHANGES", "SHIPPED", "Change", "Cx", "Design", "differences", "load"]
