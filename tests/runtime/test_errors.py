"""Messages are one line, whatever they quote."""

from __future__ import annotations

import pytest

from edgemamba.runtime import errors


@pytest.mark.parametrize("kind", [errors.SourceError, errors.BundleError, errors.MissingExtraError])
def test_a_message_is_one_line_and_commands_no_terminal(kind: type[errors.EdgeMambaError]) -> None:
    assert (
        str(kind("a file named x\ny\r\x1b[2J\x9b31m\u2028z is cut short")) == "a file named x y [2J 31m z is cut short"
    )


def test_an_ordinary_message_is_left_as_it_is() -> None:
    assert str(errors.SourceError("Grün  è.dcm: ¡no!")) == "Grün  è.dcm: ¡no!"
