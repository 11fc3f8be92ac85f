"""Draws every registered scan order, one SVG each, for docs/scan_orders.md.

    python docs/draw_scan_orders.py

Each panel is one direction over a small map; of a volume, one slice. A position has the colour of its step, from dark at the
first to bright at the last; the first is a large dot. Steps to one of the eight neighbours are lines of that colour; a jump is a
thin grey line, and a hollow dot where it lands. Cells of volumes carry the number of their step.

The same orders always make the same files: tests/train/test_scan_orders_pictures.py compares them.
"""

from __future__ import annotations

from pathlib import Path

from edgemamba.train.scan_orders import ScanOrder, list_orders, scan_order

FOLDER = Path(__file__).parent / "pictures" / "scan_orders"

# In pixels: side of a position, and what is left free between panels and round them.
CELL, GAP = 14, 12
COLOURS = ((48, 18, 139), (181, 42, 122), (245, 139, 42))
# Sides of the maps: of orders of one direction, of those of several, and of volumes (slices, rows, columns). 8 is a power of
# two, as the curves like it; 6 divides into windows and atrous classes.
MAP, SMALL_MAP, VOLUME = (8, 8), (6, 6), (4, 3, 4)

Position = tuple[int, ...]


def pictures() -> dict[str, str]:
    """The SVG of every order by its file's name; orders of any grid are drawn over a map and, of one direction, a volume too."""
    drawn = {}
    for order in list_orders():
        if order.axes != 3:
            size: Position = SMALL_MAP if order.directions > 1 or MAP[0] % order.multiple else MAP
            drawn[f"{order.name}.svg"] = draw(order, size)
        if order.axes == 3:
            drawn[f"{order.name}.svg"] = draw(order, VOLUME)
        elif order.axes is None and order.directions == 1:
            drawn[f"{order.name}-3d.svg"] = draw(order, VOLUME)
    return drawn


def draw(order: ScanOrder, size: Position) -> str:
    """An order over a map, its directions side by side, or over a volume, slices side by side and directions one below the
    other.
    """
    slices, (height, width) = (1 if len(size) == 2 else size[0]), size[-2:]
    walks = scan_order(order.name, size).tolist()
    columns, rows = (len(walks), 1) if len(size) == 2 else (slices, len(walks))
    high, wide = height * CELL + GAP, width * CELL + GAP
    body = []
    for direction, walk in enumerate(walks):
        for plane in range(slices):
            column, row = (direction, 0) if len(size) == 2 else (plane, direction)
            panel = _panel(walk, plane, height, width, numbered=len(size) == 3)
            body.append(f'<g transform="translate({column * wide + GAP} {row * high + GAP})">\n{panel}\n</g>')
    across, down = columns * wide + GAP, rows * high + GAP
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{across}" height="{down}" viewBox="0 0 {across} {down}">',
            f"<title>{order.name}</title>",
            f'<rect width="{across}" height="{down}" fill="#fff"/>',
            *body,
            "</svg>\n",
        ]
    )


def _panel(walk: list[int], plane: int, height: int, width: int, numbered: bool) -> str:
    """What a direction, positions step by step, does on one plane of the grid."""
    last = max(1, len(walk) - 1)
    jumps, lines, marks = [], [], []
    before: Position | None = None
    for step, position in enumerate(walk):
        place, row, column = position // (height * width), position // width % height, position % width
        here = (place, row, column)
        colour = _colour(step / last)
        x, y = column * CELL + CELL // 2, row * CELL + CELL // 2
        neighbour = before is not None and before[0] == place and _distance(before, here) == 1
        if place == plane and before is not None and (neighbour or not numbered):
            way = f"M{before[2] * CELL + CELL // 2} {before[1] * CELL + CELL // 2}L{x} {y}"
            if neighbour:
                lines.append(f'<path d="{way}" stroke="{colour}" stroke-width="2" stroke-linecap="round"/>')
            else:
                jumps.append(f'<path d="{way}" stroke="#ccc" stroke-width="0.8"/>')
        if place == plane and numbered:
            lit = "#fff" if step < 0.7 * last else "#000"
            marks.append(f'<rect x="{x - 6}" y="{y - 6}" width="12" height="12" rx="2" fill="{colour}"/>')
            marks.append(f'<text x="{x}" y="{y + 3}" fill="{lit}">{step}</text>')
        elif place == plane and (neighbour or before is None):
            radius = 4 if before is None else 2
            marks.append(f'<circle cx="{x}" cy="{y}" r="{radius}" fill="{colour}"/>')
        elif place == plane:
            marks.append(f'<circle cx="{x}" cy="{y}" r="3" fill="#fff" stroke="{colour}" stroke-width="1.5"/>')
        before = here
    frame = f'<rect width="{width * CELL}" height="{height * CELL}" fill="none" stroke="#ddd"/>'
    text = ['<g font-family="sans-serif" font-size="8" text-anchor="middle">', *marks, "</g>"]
    return "\n".join([frame, *jumps, *lines, *(text if numbered else marks)])


def _distance(a: Position, b: Position) -> int:
    """The farthest that any axis goes."""
    return max(abs(i - j) for i, j in zip(a, b, strict=True))


def _colour(share: float) -> str:
    """Of the part of a walk that is done, 0 to 1."""
    place = share * (len(COLOURS) - 1)
    index = min(int(place), len(COLOURS) - 2)
    mixed = (round(a + (b - a) * (place - index)) for a, b in zip(COLOURS[index], COLOURS[index + 1], strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    drawn = pictures()
    for path in FOLDER.glob("*.svg"):
        if path.name not in drawn:
            path.unlink()
    for name, svg in drawn.items():
        (FOLDER / name).write_text(svg)
    print(f"{len(drawn)} pictures in {FOLDER}")


if __name__ == "__main__":
    main()
