"""The figures of a comparison and the page that shows them."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path

import numpy as np
import pytest

from edgemamba.export.bisection import Divergence, TrailPoint
from edgemamba.export.parity import (
    BackendParity,
    InputsCard,
    ParityReport,
    Tolerance,
    compare_classes,
    compare_output,
)
from edgemamba.export.report import write_html

TIGHT = Tolerance.of("fp32")


def logits(rows: int = 6, classes: int = 10) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, (rows, classes)).astype(np.float32)


def test_equal_outputs_pass_with_zero_error() -> None:
    result = compare_output("logits", logits(), logits(), TIGHT)
    assert result.passed
    assert result.max_abs_error == 0
    assert result.cosine == pytest.approx(1)
    assert sum(result.histogram) == 60


def test_the_bound_is_absolute_below_one_and_relative_above() -> None:
    want = np.array([[0.5, 50.0]])
    assert compare_output("logits", np.add(want, [[0.9e-4, 45e-4]]), want, TIGHT).passed
    assert not compare_output("logits", np.add(want, [[1.1e-4, 0]]), want, TIGHT).passed
    assert not compare_output("logits", np.add(want, [[0, 55e-4]]), want, TIGHT).passed


def test_the_worst_sample_is_worst_by_tolerance_not_by_absolute_error() -> None:
    want = np.array([[1000.0, 0.0], [0.0, 0.0]])
    got = np.add(want, [[0.02, 0], [0, 0.001]])
    result = compare_output("logits", got, want, TIGHT)
    assert result.worst_sample == 1
    assert result.max_abs_error == pytest.approx(0.02)
    assert result.max_of_tolerance == pytest.approx(10)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_fails_and_stays_json(value: float) -> None:
    got = logits()
    got[2, 3] = value
    result = compare_output("logits", got, logits(), TIGHT)
    assert not result.passed
    assert result.not_finite == 1
    assert result.worst_sample == 2
    assert result.max_abs_error is None
    json.loads(result.model_dump_json())  # no NaN or Infinity literals, which JSON lacks
    assert sum(result.histogram) == 60


def test_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match="shape"):
        compare_output("logits", logits(6, 9), logits(), TIGHT)


def test_another_best_class_fails_unless_it_was_a_tie() -> None:
    want = np.array([[1.0, 0.0, -1.0], [1.0, 0.99995, -1.0]])
    flipped = want[:, [1, 0, 2]]
    agreement = compare_classes(flipped, want, TIGHT)
    assert agreement.disagreements == (0,)
    assert agreement.ties == (1,)
    assert agreement.top1 == 0.5
    assert not agreement.passed
    assert compare_classes(flipped[1:], want[1:], TIGHT).passed


def test_one_disagreement_in_two_hundred_is_allowed_and_two_are_not() -> None:
    want = np.tile([[1.0, 0.0]], (200, 1))
    got = want.copy()
    got[7] = [0.0, 1.0]
    assert compare_classes(got, want, TIGHT).passed
    got[8] = [0.0, 1.0]
    assert not compare_classes(got, want, TIGHT).passed


def test_a_missing_class_name_of_nan_is_no_tie() -> None:
    want = np.array([[1.0, 0.99999]])
    assert compare_classes(np.array([[np.nan, 1.0]]), want, TIGHT).ties == ()


def test_top5_with_fewer_classes_than_five() -> None:
    assert compare_classes(logits(4, 3), logits(4, 3), TIGHT).top5 == 1.0


def test_fp16_is_given_a_wider_bound() -> None:
    assert Tolerance.of("fp16").atol == 2e-2
    assert Tolerance.of("fp32").atol == 1e-4


class _Page(html.parser.HTMLParser):
    """Collects text and every attribute that could fetch something; complains about unbalanced tags."""

    VOID = frozenset(("meta", "img", "line", "rect", "circle", "polyline", "br"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object")
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def report(got: np.ndarray, name: str = "noise-0") -> ParityReport:
    output = compare_output("logits", got, logits(), TIGHT)
    divergence = Divergence(
        tensor="linear_3",
        node="layers.1.mixer.in_proj/MatMul",
        op_type="MatMul",
        module="layers.1.mixer.in_proj",
        error=None,
        error_before=1e-7,
        sharp=True,
        against="pytorch",
        trail=tuple(TrailPoint(tensor=f"t{i}", place=f"layers.{i}", error=10.0**-i or None) for i in range(8)),
        details=(TrailPoint(tensor="linear_3", place="layers.1.mixer.in_proj", error=None),),
    )
    backends = (
        BackendParity(
            backend="ort-cpu",
            description={"backend": "ort-cpu", "threads": 1},
            outputs=(output,),
            agreement=compare_classes(got, logits(), TIGHT),
            latency_ms=1.5,
            passed=output.passed,
            divergence=None if output.passed else divergence,
        ),
        BackendParity(backend="ort-function", error="cannot <be> loaded", passed=False),
    )
    return ParityReport(
        bundle="<b>bundle</b>",
        model="vim_tiny",
        precision="fp32",
        model_sha256="0" * 64,
        created="2026-01-01T00:00:00+00:00",
        inputs=InputsCard(kind="pictures", source="photos", samples=(name,) * 6, batch=4, seed=0),
        tolerance=TIGHT,
        reference={"name": "PyTorch", "weights": "w", "weights_sha256": "1" * 64, "threads": 2, "latency_ms": 3.0},
        backends=backends,
        passed=False,
    )


@pytest.mark.parametrize("broken", [False, True])
def test_the_page_is_whole_self_contained_and_escaped(tmp_path: Path, broken: bool) -> None:
    got = logits()
    if broken:
        got[0, 0] = np.nan
        got[1] = got[1][::-1]
    frames = np.zeros((6, 24, 32, 3), np.uint8)
    write_html(report(got, name="<script>alert(1)</script>"), tmp_path / "parity.html", frames)
    text = (tmp_path / "parity.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert page.links
    assert "url(" not in text
    assert "@import" not in text
    assert "<b>bundle</b>" in page.text  # as text, not as markup
    assert "cannot <be> loaded" in page.text
    if broken:
        assert "first diverges at layers.1.mixer.in_proj" in page.text
        assert "not finite" in page.text


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_pictures_of_every_input_type_are_shown(tmp_path: Path, dtype: type) -> None:
    write_html(report(logits()), tmp_path / "parity.html", np.ones((6, 300, 200, 3), dtype))
    assert "data:image/png" in (tmp_path / "parity.html").read_text()


def test_no_picture_is_shown_where_none_is_given(tmp_path: Path) -> None:
    write_html(report(logits()), tmp_path / "parity.html", None)
    assert "<img" not in (tmp_path / "parity.html").read_text()


def test_a_report_survives_its_json() -> None:
    written = report(logits())
    assert ParityReport.model_validate_json(written.model_dump_json()) == written
