"""Evaluate a checkpoint of either stage on the balanced test set, ours or a foreign file of weights.

    python evaluate.py --imb_ratio 100 --cur_stage stage2
    python evaluate.py --imb_ratio 100 --cur_stage stage1 --pretrained_pth FILE
    python evaluate.py --features PACK --cur_stage stage2
    python evaluate.py --pretrained_pth FILE --predict FOLDER [--encoder FILE|module:function]
    python evaluate.py --features PACK --cur_stage stage2 --predict X.npy

Without a file it takes what the stage left behind, else a released checkpoint, and says which.
"""

from collections.abc import Sequence

from utils.settings.config import Config, answer_early, asked_for, resolve
from utils.settings.table import EVALUATE

if __name__ == "__main__":  # what needs no run is answered before torch is loaded, which takes seconds
    answer_early(EVALUATE, __doc__)

import numpy as np
import torch

from datasets.images.on_disk import FileImages
from datasets.listed.own import images_below
from datasets.types import ImageSet
from utils.base import distributed
from utils.base.distributed import World
from utils.base.errors import UserError, exit_cleanly
from utils.engine import scoring
from utils.engine.device import LAYOUT, pick_device
from utils.engine.precision import speed_up
from utils.features.brought import load_floats
from utils.features.encode import encoder_for_files
from utils.features.logits import logit_batches
from utils.features.source import Source, find_source
from utils.metrics.balance import target_priors
from utils.report import summary
from utils.report.predictions import Passing, folders_of, write_unlabelled
from utils.report.table import report_classes
from utils.run import checkpoint
from utils.run.folder import Run
from utils.run.network import network_for_files, try_forward


def main(argv: Sequence[str] | None = None) -> None:
    # ---- config
    given = asked_for(EVALUATE, __doc__, argv)
    stage = given.get("cur_stage")
    source = find_source(EVALUATE, given, stage)
    world = distributed.join()
    config = resolve(EVALUATE, given, source.known)
    device = pick_device(config.device, config.gpu, world, config.deterministic)
    stage = source.facts.get("stage", stage or "foreign")
    if config.predict:
        predict = predict_rows if config.predict.suffix == ".npy" else predict_folder
        predict(config, given, source, device, stage, world)
        return

    # ---- data and model: images and a network, or the features of a pack and a classifier
    data, model = source.load(config, device, world)
    model.requires_grad_(False)
    judged = source.with_head(given)
    logits, labels, views = source.test_logits()
    passing, mirror = Passing(config, model.fc, views, world), views == 2
    priors = target_priors(config.target_prior, data.class_counts)

    # ---- report
    stage = judged.facts.get("stage", stage)
    run = Run(config, f"evaluate_{stage}", also_writable=folders_of(config), world=world)
    summary.announce(run, config, data, model, device, world)
    run.log(judged.told())
    run.log(f"mirror averaging: {'on' if mirror else 'off'}")
    scores = scoring.score(passing.of(logits), labels, data.num_classes, world, priors=priors)
    source.check_unchanged()
    figures = scores.figures(data.class_counts, data.shots)
    facts = {"checkpoint": str(judged.path), "digest": judged.digest, "mirror": mirror}
    report_classes(run, data, figures, scores)
    passing.write(run, data, labels)
    summary.finish(run, figures, judged.facts.get("selected_on", "unknown"), facts)
    distributed.leave()


def predict_folder(
    config: Config, given: dict, source: Source, device: torch.device, stage: str, world: World
) -> None:
    """Predict every image below a folder; their labels are not known, so nothing is scored."""
    if config.features:
        source.load(config, device, world)
        source = source.with_head(given)
    build = encoder_for_files if config.encoder else network_for_files
    model, views, class_names = build(config, source.file)
    checkpoint.load_head(model, source.file)
    model.to(device, memory_format=LAYOUT)
    try_forward(model, config, channels=3, size=views.size, sized=True)
    speed_up(model, config, device)
    found = images_below(config.predict)
    images = FileImages(found, views, device, config.workers)
    images.broken = {}
    logits = scoring.logit_batches(model, images, views.mirror_test and not config.no_tta, world=world)
    write_unlabelled(config, source.told(), stage, found, logits, class_names, world, images.broken)


def predict_rows(
    config: Config, given: dict, source: Source, device: torch.device, stage: str, world: World
) -> None:
    """Predict further features [N, D] of the encoder of a pack."""
    data, model = source.load(config, device, world)
    judged, width = source.with_head(given), data.train.images.shape[-1]
    features = load_floats(config.predict, np.float32, "[N, D]")
    if features.shape[1] != width:
        raise UserError(f"{config.predict} has {features.shape[1]} features a row, {source.path} {width}")
    start, stop = world.block(len(features))
    logits = logit_batches(model.fc, features[None, start:stop].to(device))
    found = ImageSet(features, torch.zeros(len(features), dtype=torch.int64))
    write_unlabelled(config, judged.told(), stage, found, logits, data.class_names, world)


if __name__ == "__main__":
    exit_cleanly(main)
