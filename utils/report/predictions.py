"""What a network says of single images: a csv row each, of the test set or of images without labels."""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from datasets import LongTailedData
from datasets.images.decode import NOT_READ
from datasets.listed.own import passed_over
from datasets.types import FileSet, ImageSet
from utils.base import distributed
from utils.base.distributed import World
from utils.base.errors import UserError
from utils.base.files import write_atomically
from utils.features.logits import watched_features
from utils.metrics.accuracy import first_classes, lost_images
from utils.metrics.percent import SCALE, in_percent
from utils.run.folder import Run, csv_text
from utils.settings.config import Config


class Passing:
    """Logits [n, K] of a test set on their way to be scored, and what `--predictions` and `--logits` keep."""

    def __init__(self, config: Config, head: nn.Module, views: int, world: World) -> None:
        none = torch.zeros(0, len(head.weight))  # a process may have no image
        self.config, self.world, self._first, self._logits = config, world, [first_classes(none)], [none]
        self._features = watched_features(head, views) if config.logits else []

    def of(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        for logits in batches:
            if self.config.predictions:
                self._first.append([values.cpu() for values in first_classes(logits)])
            if self.config.logits:
                self._logits.append(logits.cpu())
            yield logits

    def write(self, run: Run, data: LongTailedData, labels: Tensor) -> None:
        """What was asked for of all images, whose labels [N] are these; a collective act.

        `--predictions`: image, label, label_name and the columns of `_first`, in file order. `image` is the
        path below the data folder (see `csv_text`), or the number of an image that has no file. `--logits`:
        features [N, D] (the mean over the views), logits [N, K], labels [N], class_names [K].
        """
        names, path = data.class_names, self.config.logits
        if self.config.predictions:
            columns = {"image": _names(data.test), "label": labels.tolist()}
            columns["label_name"] = [names[k] for k in columns["label"]]
            columns |= _first(names, *_gathered(self._first, self.world))
            _write(run, self.config.predictions, columns)
        if path:
            parts = (torch.cat(own) for own in (self._logits, self._features))
            logits, features = map(self.world.gather, parts)
            arrays = {"features": features, "logits": logits, "labels": labels.cpu()}
            arrays = {name: value.numpy() for name, value in arrays.items()}
            if run.main:
                write_atomically(path, lambda file: np.savez(file, **arrays, class_names=np.array(names)))
            run.log(f"features, logits, labels and class names left at {path}")


def write_unlabelled(
    config: Config,
    told: str,
    stage: str,
    images: FileSet | ImageSet,
    batches: Iterable[Tensor],
    class_names: list[str],
    world: World,
    broken: dict[int, str] | None = None,
) -> None:
    """A run that predicts images without labels, or features, whose logits [n, K] are this process's block.

    It writes image, the columns of `_first`, and a `reason` where there is no prediction: of an image in
    `broken`, which fills as batches come, and of a file beside them that is no image. `told`: what the
    classifier is. Raises UserError: every image is broken.
    """
    run = Run(config, f"predict_{stage}", also_writable=folders_of(config), world=world)
    run.log(told, f"{len(images):,} to be predicted from {config.predict}, {len(class_names)} classes")
    others = getattr(images, "passed_over", ())
    for note in passed_over(str(config.predict), others):
        run.log(f"note: {note}")
    none = torch.zeros(0, len(class_names))  # a process may have no image
    own = [[values.cpu() for values in first_classes(logits)] for logits in chain([none], batches)]
    first, path = _gathered(own, world), config.predictions or run.folder / "predictions.csv"
    unread = {image: problem for found in world.every(broken or {}) for image, problem in found.items()}
    if unread and len(unread) == len(images):
        raise UserError(f"no image of {config.predict} can be read: {unread[0]}")
    reasons = [unread.get(image, "") for image in range(len(images))] + [NOT_READ] * len(others)
    read = [image for image, problem in enumerate(reasons) if not problem]
    table = pd.DataFrame(_first(class_names, *first)).loc[read].reindex(range(len(reasons)))
    table.insert(0, "image", [*_names(images), *map(os.fsdecode, others)])
    _write(run, path, table.assign(reason=[f"not read: {problem}" * bool(problem) for problem in reasons]))
    if lost := int((table.predicted < 0).sum()):
        run.warn(lost_images(lost))
    if unread:
        which = f"{len(unread):,} image(s) could not be read and have a reason in place of a prediction"
        run.warn(f"{which}, the first: {next(iter(unread.values()))}")
    run.result(f"predicted images={len(images) - len(unread)} file={path}")
    distributed.leave()


def folders_of(config: Config) -> list[Path]:
    """Where a run of evaluate writes beside its own folder."""
    return [path.parent for path in (config.predictions, config.logits) if path]


def _gathered(batches: Iterable[Sequence[Tensor]], world: World) -> list[Tensor]:
    """Tensors [n, ...] by batch -> each of all batches and processes [N, ...]."""
    return [world.gather(torch.cat(parts)) for parts in zip(*batches, strict=True)]


def _first(names: list[str], classes: Tensor, shares: Tensor) -> dict:
    """predicted, predicted_name, confidence, and of the second and third class name and confidence.

    Of classes and probabilities [N, 3].
    """
    columns = {"predicted": pd.array(classes[:, 0].tolist(), dtype="Int64")}
    for rank, word in zip(range(classes.shape[1]), ("predicted", "second", "third"), strict=False):
        columns[f"{word}_name"] = [names[k] if k >= 0 else "" for k in classes[:, rank].tolist()]
        columns[f"{word}_confidence" if rank else "confidence"] = shares[:, rank].tolist()
    return columns


def _names(part: ImageSet | FileSet) -> Iterable:
    return [part.paths[i] for i in range(len(part))] if isinstance(part, FileSet) else range(len(part))


def _write(run: Run, path: Path, columns: dict | pd.DataFrame) -> None:
    if run.main:
        frame = in_percent(columns).drop(columns=SCALE)
        text = csv_text(frame, float_format="%.4f")
        write_atomically(path, lambda handle: handle.write(text.encode("utf-8", "surrogateescape")))
        run.log(f"{frame.predicted.count():,} predictions left at {path}")
