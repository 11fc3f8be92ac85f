"""docs/scan_orders.md shows every scan order, and its pictures are those that docs/draw_scan_orders.py draws."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

from edgemamba.train.scan_orders import list_orders, order_patterns

DOCS = Path(__file__).parents[2] / "docs"
PICTURES = DOCS / "pictures" / "scan_orders"


def test_the_pictures_are_those_that_the_script_draws() -> None:
    drawn = runpy.run_path(str(DOCS / "draw_scan_orders.py"))["pictures"]()
    assert {path.name for path in PICTURES.iterdir()} == set(drawn)
    for name, svg in drawn.items():
        assert (PICTURES / name).read_text() == svg, f"{name} is not of these orders: run docs/draw_scan_orders.py"
        assert ElementTree.fromstring(svg).tag.endswith("svg")


def test_the_page_shows_every_order_and_every_picture() -> None:
    page = (DOCS / "scan_orders.md").read_text()
    rows = dict(re.findall(r"^\| `([^`]+)` \| (\S+) \|", page, re.MULTILINE))
    examples = {pattern.make(pattern.example).name: pattern.name for pattern in order_patterns()}
    expected = {examples.get(order.name, order.name): str(order.directions) for order in list_orders()}
    assert rows == expected | {"atrous{k}": "k²"}
    shown = re.findall(r"\(pictures/scan_orders/([^)]+)\)", page)
    assert sorted(shown) == sorted(path.name for path in PICTURES.iterdir())
