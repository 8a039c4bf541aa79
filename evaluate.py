"""Evaluate a checkpoint of either stage on the balanced test set, ours or a foreign file of weights.

    python evaluate.py --imb_ratio 100 --cur_stage stage2
    python evaluate.py --imb_ratio 100 --cur_stage stage1 --pretrained_pth FILE
    python evaluate.py --features PACK --cur_stage stage2
    python evaluate.py --pretrained_pth FILE --predict FOLDER

Without a file it takes what the stage left behind, else a released checkpoint, and says which.
"""

from collections.abc import Sequence
from pathlib import Path

from utils.settings.start import answer_early, asked_for
from utils.settings.table import EVALUATE

if __name__ == "__main__":  # what needs no run is answered before torch is loaded, which takes seconds
    answer_early(EVALUATE, __doc__)

import torch

from datasets.images.on_disk import FileImages
from datasets.images.open import images_below
from datasets.listed.own import passed_over
from utils.base import distributed
from utils.base.distributed import World
from utils.base.errors import exit_cleanly
from utils.engine import scoring
from utils.engine.device import LAYOUT, pick_device
from utils.engine.precision import speed_up
from utils.features.source import find_source, load_classifier, load_frozen
from utils.features.views import logit_batches
from utils.packs.pack import Pack, require_unchanged
from utils.report import summary
from utils.report.predictions import write_scored, write_unlabelled
from utils.run import checkpoint
from utils.run.checkpoint import Checkpoint
from utils.run.folder import Run
from utils.run.network import network_for_files, try_forward
from utils.settings.config import Config, resolve
from utils.settings.data import mirror_at_test, open_parts


def main(argv: Sequence[str] | None = None) -> None:
    # ---- config
    given = asked_for(EVALUATE, __doc__, argv)
    source = find_source(EVALUATE, given, given.get("cur_stage"))
    world = distributed.join()
    config = resolve(EVALUATE, given, source.known)
    device = pick_device(config.device, config.gpu, world, config.deterministic)
    stage = source.facts.get("stage", given.get("cur_stage", "foreign"))
    if config.predict:
        predict_folder(config, source, device, stage, world)
        return

    # ---- data and model: images and a network, or the features of a pack and a classifier
    data, model = load_frozen(config, source, device, world)
    model.requires_grad_(False)
    pack = source if isinstance(source, Pack) else None
    if pack:
        source = load_classifier(model, given, config, pack) or pack
        features, labels = pack.test.to(device), pack.test_labels.to(device)
        mirror = len(features) == 2
        start, stop = world.block(len(labels))
        batches = logit_batches(model.fc, features[:, start:stop])
    else:
        checkpoint.load_head(model, source)
        test = open_parts(data, device, config.workers)["test"]
        mirror, labels = mirror_at_test(data, config), test.labels
        batches = scoring.logit_batches(model, test, mirror, world=world)

    # ---- report
    stage = source.facts.get("stage", given.get("cur_stage", "foreign"))
    folders = [Path(config.predictions).parent] if config.predictions else []
    run = Run(config, f"evaluate_{stage}", also_writable=folders, world=world)
    summary.announce(run, config, data, model, device, world)
    run.log(summary.from_where(source))
    run.log(f"mirror averaging: {'on' if mirror else 'off'}")
    scores = scoring.score(batches, labels, data.num_classes, world)
    require_unchanged(pack)
    figures = scores.figures(data.class_counts, data.shots)
    facts = {"checkpoint": str(source.path), "digest": source.digest, "mirror": mirror}
    run.write_per_class(figures, data)
    if config.predictions:
        write_scored(run, Path(config.predictions), data, scores)
    summary.finish(run, figures, source.facts.get("selected_on", "unknown"), facts)
    distributed.leave()


def predict_folder(
    config: Config, source: Checkpoint, device: torch.device, stage: str, world: World
) -> None:
    """Predict every image below a folder; their labels are not known, so nothing is scored."""
    model, views, class_names = network_for_files(config, source)
    checkpoint.load_head(model, source)
    model.to(device, memory_format=LAYOUT)
    try_forward(model, config, 3, views.size, "another --image_size or ")
    speed_up(model, config, device)
    found = images_below(Path(config.predict))
    folders = [Path(config.predictions).parent] if config.predictions else []
    run = Run(config, f"predict_{stage}", also_writable=folders, world=world)
    run.log(summary.from_where(source))
    run.log(f"{len(found):,} images below {config.predict}, {len(class_names)} classes")
    for note in passed_over(str(config.predict), found.passed_over):
        run.log(f"note: {note}")
    images = FileImages(found, views, device, config.workers)
    batches = scoring.logit_batches(model, images, views.mirror_test and not config.no_tta, world=world)
    path = Path(config.predictions) if config.predictions else run.folder / "predictions.csv"
    write_unlabelled(run, path, found, batches, class_names, world)
    run.result(f"predicted images={len(found)} file={path}")
    distributed.leave()


if __name__ == "__main__":
    exit_cleanly(main)
