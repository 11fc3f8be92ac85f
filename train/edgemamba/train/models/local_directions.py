"""The directions of LocalMamba's layers (Huang et al., arXiv:2403.09338, section 4): names, checks and published choices.

``h`` is row by row, ``v`` column by column, ``w7`` by windows of 7 x 7 positions, row by row and row by row inside them; each
also from the last step to the first, ``h_flip``. The authors let a supernet weigh all eight in every layer, and kept four.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from edgemamba.runtime.errors import ModelError

LayerDirections = tuple[tuple[str, ...], ...]

# What a layer of the supernet chooses from.
ALL_DIRECTIONS = ("h", "h_flip", "v", "v_flip", "w2", "w2_flip", "w7", "w7_flip")
_DIRECTION = re.compile(r"(?P<kind>h|v|w(?P<side>[1-9]\d*))(?P<flip>_flip)?")


def parse_direction(name: str) -> tuple[str, int, bool]:
    """A direction's kind (``h``, ``v`` or ``w``), its windows' side (1 where it has none), and whether it is reversed.

    Raises:
        ModelError: it is not a direction.
    """
    match = _DIRECTION.fullmatch(name)
    if match is None:
        raise ModelError(f"direction {name!r} is not known; h, v or w and a window's side, each also with _flip")
    return match["kind"][0], int(match["side"] or 1), bool(match["flip"])


def checked_directions(directions: Iterable[Sequence[str]] | None, depth: int) -> LayerDirections | None:
    """The directions of ``depth`` layers as tuples; None, a supernet, stays None.

    Raises:
        ModelError: an unknown direction, a layer without one, or not as many layers.
    """
    if directions is None:
        return None
    layers = tuple(tuple(names) for names in directions)
    if len(layers) != depth:
        raise ModelError(f"directions are of {len(layers)} layers, the model has {depth}: give one list for each")
    for names in layers:
        for name in names:
            parse_direction(name)
        if not names:
            raise ModelError("directions: a layer needs at least one")
    return layers


def _layers(text: str) -> LayerDirections:
    """A line for each layer."""
    return tuple(tuple(line.split()) for line in text.strip().splitlines())


# Choices before the search, and LocalVim-S's (see local_mamba).
WITHOUT_SEARCH: LayerDirections = (("h", "h_flip", "w2", "w2_flip"),) * 20

LOCAL_VIM_TINY = _layers("""
    h v_flip w7 w7_flip
    h_flip w2_flip w7 w7_flip
    h h_flip v w7
    h h_flip v v_flip
    h h_flip v v_flip
    h h_flip v v_flip
    h_flip v v_flip w7
    h_flip v v_flip w2_flip
    h h_flip v v_flip
    h h_flip v v_flip
    h v v_flip w2
    h v v_flip w2_flip
    h h_flip v_flip w7
    h_flip v v_flip w2
    h h_flip v v_flip
    h v w2 w2_flip
    v v_flip w2 w7
    h h_flip v w2
    h h_flip w2_flip w7
    v v_flip w2 w2_flip
""")

LOCAL_VMAMBA_TINY = _layers("""
    h h_flip w7 w7_flip
    h_flip v_flip w2 w2_flip
    h_flip v_flip w2_flip w7
    h_flip v v_flip w2
    h h_flip v_flip w2_flip
    h_flip v_flip w2 w2_flip
    h w2_flip w7 w7_flip
    h h_flip v v_flip
    h v_flip w7 w7_flip
    h_flip v w2 w7_flip
    v v_flip w2 w7_flip
    h h_flip v_flip w2_flip
    v_flip w2_flip w7 w7_flip
    h_flip v_flip w2_flip w7_flip
    h_flip v w7 w7_flip
""")

LOCAL_VMAMBA_SMALL = _layers("""
    h v v_flip w7_flip
    h h_flip v w7
    h_flip v v_flip w7
    h_flip v w2_flip w7
    h_flip v w2_flip w7
    h_flip v_flip w2 w7_flip
    h_flip v v_flip w7
    h v v_flip w7
    h v v_flip w7
    h v v_flip w7_flip
    h h_flip v v_flip
    h v v_flip w2
    v v_flip w2_flip w7
    h h_flip v w2
    h_flip v v_flip w7_flip
    h h_flip v v_flip
    h v v_flip w7_flip
    h v v_flip w7_flip
    h h_flip v_flip w7
    h_flip v_flip w2_flip w7
    h_flip v v_flip w7_flip
    v v_flip w7 w7_flip
    h v v_flip w7_flip
    h_flip v v_flip w2
    h v v_flip w2_flip
    h h_flip v w7
    h h_flip w7 w7_flip
    h v_flip w2 w2_flip
    h v_flip w2 w7
    h v v_flip w7_flip
    h_flip v w2_flip w7
    h_flip v_flip w7 w7_flip
    h v w7 w7_flip
""")
