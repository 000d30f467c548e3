"""What the model charges for and what a cost profile prices are the same units."""

import ast
from pathlib import Path

from zaplock.lab.profiles import UNITS
from zaplock.model.pagetable import UNITS as ZAP_UNITS

SOURCE = Path(__file__).parent.parent / "src" / "zaplock"


def charged_units() -> set[str]:
    """Collect the unit of every `spend("unit", ...)` in the model and the protocols."""
    units = {unit for unit, _ in ZAP_UNITS.values()}
    for path in [*(SOURCE / "model").glob("*.py"), *(SOURCE / "protocols").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "spend":
                units |= {
                    leaf.value
                    for leaf in ast.walk(node.args[0])
                    if isinstance(leaf, ast.Constant)
                    and isinstance(leaf.value, str)
                    and not leaf.value.endswith("_")
                }
    return units - {"shmem", "file"}


def test_every_unit_that_the_model_charges_has_a_price() -> None:
    charged = charged_units()
    assert len(charged) > 25
    assert charged <= set(UNITS), charged - set(UNITS)
