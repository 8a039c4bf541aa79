"""What a network says of single images: a csv row each, of the test set or of images without labels."""

import os
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from datasets import LongTailedData
from datasets.images.decode import NOT_READ
from datasets.types import FileSet, ImageSet
from utils.base.distributed import World
from utils.base.files import write_atomically
from utils.metrics.accuracy import Scores, confidences, lost_images, predictions
from utils.run.folder import Run, csv_text


def write_scored(run: Run, path: Path, data: LongTailedData, scores: Scores) -> None:
    """image, label, label_name, predicted, predicted_name, confidence of each test image, in file order.

    `image` is the path below the data folder (see `csv_text`), or the number of an image that has no file.
    """
    labels = scores.targets.tolist()
    columns = {
        "image": _names(data.test),
        "label": labels,
        "label_name": [data.class_names[k] for k in labels],
        "predicted": scores.predicted.tolist(),
        "predicted_name": _class_names(data.class_names, scores.predicted),
        "confidence": scores.confidence.cpu().numpy(),
    }
    _write(run, path, columns)


def write_unlabelled(
    run: Run, path: Path, images: FileSet, batches: Iterable[Tensor], class_names: list[str], world: World
) -> None:
    """image, predicted, predicted_name, confidence of images whose logits [n, K] are this process's block.

    A file beside them that is no image has a row as well, with nothing but its name and a `reason`.
    """
    own = [images.labels[:0]], [torch.zeros(0, dtype=torch.float64)]
    for logits in batches:
        own[0].append(predictions(logits).cpu())
        own[1].append(confidences(logits, own[0][-1].to(logits.device)).cpu())
    predicted, confidence = (world.gather(torch.cat(values)) for values in own)
    others = [os.fsdecode(name) for name in images.passed_over]
    gap = [None] * len(others)
    columns = {
        "image": [*_names(images), *others],
        "predicted": pd.array([*predicted.tolist(), *gap], dtype="Int64"),
        "predicted_name": [*_class_names(class_names, predicted), *gap],
        "confidence": [*confidence.tolist(), *gap],
        "reason": [""] * len(images) + [f"not read: {NOT_READ}"] * len(others),
    }
    _write(run, path, columns)
    if lost := int((predicted < 0).sum()):
        run.warn(lost_images(lost))


def _names(part: ImageSet | FileSet) -> Iterable:
    return [part.paths[i] for i in range(len(part))] if isinstance(part, FileSet) else range(len(part))


def _class_names(names: list[str], predicted: Tensor) -> list[str]:
    """The names of predicted classes [N]; an image without a prediction, -1, has none."""
    return [names[k] if k >= 0 else "" for k in predicted.tolist()]


def _write(run: Run, path: Path, columns: dict) -> None:
    if run.main:
        frame = pd.DataFrame(columns)
        text = csv_text(frame, float_format="%.6f")
        write_atomically(path, lambda handle: handle.write(text.encode("utf-8", "surrogateescape")))
        run.log(f"{frame.predicted.count():,} predictions left at {path}")
