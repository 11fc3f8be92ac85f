"""A Python in which packages are as if they were not installed."""

from __future__ import annotations


def without_packages(*names: str) -> str:
    """Code to begin a program with: importing any of these, or a part of one, fails as it does where it is absent."""
    return f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""
