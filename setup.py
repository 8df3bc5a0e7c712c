"""The compiled core, for setuptools. `packaging/backend.py` says when there is one."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent / "packaging"))

import backend

setup(script_name="setup.py", ext_modules=backend.extensions())  # the name: so that it is not taken for a module
