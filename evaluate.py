"""Evaluate a checkpoint of either stage on the balanced test set, ours or a foreign file of weights.

    python evaluate.py --imb_ratio 100 --cur_stage stage2
    python evaluate.py --imb_ratio 100 --cur_stage stage1 --pretrained_pth FILE
    python evaluate.py --features PACK --cur_stage stage2

Without a file it takes what the stage left behind, else a released checkpoint, and says which.
"""

from collections.abc import Sequence

from utils import checkpoint, engine, report
from utils.arguments import EVALUATE, parse
from utils.config import resolve
from utils.device import pick_device
from utils.errors import UserError, exit_cleanly
from utils.features import logit_batches
from utils.logger import Run
from utils.metrics import Scores
from utils.packs import Pack
from utils.setup import find_source, load_classifier, load_frozen, on_device


def main(argv: Sequence[str] | None = None) -> None:
    # ---- config
    given = parse(EVALUATE, __doc__.splitlines()[0], argv)
    if "cur_stage" not in given and "pretrained_pth" not in given:
        raise UserError(
            "say what to evaluate: --cur_stage stage1, --cur_stage stage2, or --pretrained_pth FILE"
        )
    source = find_source(EVALUATE, given, given.get("cur_stage"))
    config = resolve(EVALUATE, given, source.known)
    device = pick_device(config.device, config.gpu)

    # ---- data and model: images and a network, or the features of a pack and a classifier
    data, model = load_frozen(config, source, device)
    model.requires_grad_(False)
    pack = source if isinstance(source, Pack) else None
    if pack:
        source = load_classifier(model, given, config, pack) or pack
        features = pack.test.to(device)
        mirror, batches = len(features) == 2, logit_batches(model.fc, features)
        labels = pack.test_labels.to(device)
    else:
        checkpoint.load_head(model, source)
        test = on_device(data, device)["test"]
        mirror = data.views.mirror and not config.no_tta
        batches, labels = engine.logit_batches(model, test, mirror), test.labels

    # ---- report
    stage = source.facts.get("stage", given.get("cur_stage", "foreign"))
    run = Run(config, f"evaluate_{stage}")
    report.announce(run, config, data, model, device)
    run.log(report.from_where(source))
    run.log(f"mirror averaging: {'on' if mirror else 'off'}")
    scores = Scores(labels, data.num_classes)
    for logits in batches:
        scores.add(logits)
    figures = scores.figures(data.class_counts)
    facts = {"checkpoint": str(source.path), "digest": source.digest, "mirror": mirror}
    run.write_per_class(figures, data.class_names, data.class_counts)
    report.finish(run, figures, source.facts.get("selected_on", "unknown"), facts)


if __name__ == "__main__":
    exit_cleanly(main)
