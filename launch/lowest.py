"""Prints each lower bound of setup.py as a pip constraint: the oldest allowed version.

    python launch/lowest.py > lowest.txt
    PYTHON=python3.11 CRYJAX_VENV=.venv-lowest CRYJAX_CONSTRAINTS=lowest.txt bash launch/test.sh

'name>=1.2,<3' becomes 'name==1.2'; pip chooses indirect dependencies.
"""

import pathlib
import re
import runpy
import sys
import types
import unittest.mock


def requirements() -> list[str]:
    """What setup.py passes to setuptools, which a new environment may lack."""
    given = {}
    stub = types.ModuleType("setuptools")
    stub.setup, stub.find_packages = given.update, lambda **_: []
    with unittest.mock.patch.dict(sys.modules, setuptools=stub):
        runpy.run_path(str(pathlib.Path(__file__).parents[1] / "setup.py"))
    return sum(given["extras_require"].values(), given["install_requires"])


def lowest(requirement: str) -> str:
    """'jax[tpu]>=0.10,<0.13' -> 'jax==0.10'; pip takes no extras among constraints."""
    name, bound = re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", requirement).groups()
    return f"{name}=={bound}"


if __name__ == "__main__":
    print("\n".join(sorted(set(map(lowest, requirements())), key=str.lower)))
