"""What a training run says of its best model at the end: the same figures as `edgemamba eval` gives."""

from __future__ import annotations

from edgemamba.train.data import ImageDataset, Part
from edgemamba.train.evaluation.candidates import TorchCandidate
from edgemamba.train.evaluation.figures import Figures, judged_classes, measure, positive_class
from edgemamba.train.evaluation.predicting import predict
from edgemamba.train.evaluation.thresholds import DEFAULT_RULES, Thresholds
from edgemamba.train.models.backbone import Backbone


def evaluate_parts(model: Backbone, dataset: ImageDataset, *, batch_size: int, workers: int) -> dict[Part, Figures]:
    """Judge a model, where it is, on the validation part, and on the test part where there is one; on this rank alone.

    Thresholds are chosen on the validation part and applied to both.

    Args:
        model: whose classes are the data set's; it is left in evaluation mode.
        dataset: unreadable pictures are left out.
        batch_size: pictures at a time.
        workers: processes that decode.

    Raises:
        DataError: no picture of a part can be read.
    """
    candidate = TorchCandidate(model, dataset.class_names)
    positive = positive_class(dataset.class_names)
    thresholds: Thresholds | None = None
    found: dict[Part, Figures] = {}
    parts: tuple[Part, ...] = ("val", "test")
    for part in parts:
        if part not in dataset.parts:
            continue
        (outcome,) = predict([candidate], dataset.parts[part], batch_size=batch_size, workers=workers)
        if thresholds is None:
            judged = judged_classes(dataset.class_names, positive)
            thresholds = Thresholds.choose(DEFAULT_RULES, outcome.probabilities, outcome.labels, judged, part)
        found[part] = measure(outcome, dataset.class_names, thresholds, positive=positive)
    return found
