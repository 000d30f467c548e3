"""Print the lines of constraints.txt that the core of zaplock needs, for `pip --require-hashes`.

It looks at the packages of the environment that it runs in, which `make setup` has made.
"""

import re
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def plain(name: str) -> str:
    """Return a package's name as it is compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def core() -> set[str]:
    """Return the names of what zaplock needs without any extra, and of what that needs."""
    todo, found = ["zaplock"], set[str]()
    while todo:
        for text in metadata.requires(todo.pop()) or ():
            one = Requirement(text)
            wanted = one.marker is None or one.marker.evaluate({"extra": ""})
            if wanted and plain(one.name) not in found:
                found.add(plain(one.name))
                todo.append(one.name)
    return found


wanted = core()
pins = re.sub(r"\\\n\s*", "", Path("constraints.txt").read_text()).splitlines()
sys.stdout.writelines(f"{pin}\n" for pin in pins if plain(pin.partition("==")[0]) in wanted)
