"""Evaluate a checkpoint of either stage on the balanced test set, ours or a foreign file of weights.

    python evaluate.py --imb_ratio 100 --cur_stage stage2
    python evaluate.py --imb_ratio 100 --cur_stage stage1 --pretrained_pth FILE

Without a file it takes what the stage left behind, else a released checkpoint, and says which.
"""

from collections.abc import Sequence

import torch

from models import build_model
from utils import checkpoint, engine, metrics, report
from utils.arguments import EVALUATE, parse
from utils.config import resolve
from utils.device import pick_device
from utils.errors import UserError, exit_cleanly
from utils.logger import Run
from utils.setup import find_source, load_data, on_device


def main(argv: Sequence[str] | None = None) -> None:
    # ---- config
    given = parse(EVALUATE, __doc__.splitlines()[0], argv)
    if "cur_stage" not in given and "pretrained_pth" not in given:
        raise UserError(
            "say what to evaluate: --cur_stage stage1, --cur_stage stage2, or --pretrained_pth FILE"
        )
    source = find_source(EVALUATE, given, given.get("cur_stage"))
    stage = source.facts.get("stage", given.get("cur_stage", "foreign"))
    config = resolve(EVALUATE, given, source.known)
    device = pick_device(config.device, config.gpu)

    # ---- data
    data = load_data(config)
    test = on_device(data, device)["test"]
    mirror = data.views.mirror and not config.no_tta

    # ---- model
    model = build_model(config.network, data.num_classes, data.in_channels)
    checkpoint.load_weights(model, source, config.network)
    model.to(device, memory_format=torch.channels_last).requires_grad_(False)

    # ---- report
    run = Run(config, f"evaluate_{stage}")
    report.announce(run, config, data, model, device)
    run.log(report.from_where(source))
    run.log(f"mirror averaging: {'on' if mirror else 'off'}")
    figures = metrics.report(engine.predict(model, test, mirror), test.labels, data.class_counts)
    facts = {"checkpoint": str(source.path), "digest": source.digest, "mirror": mirror}
    report.finish(run, data, figures, source.facts.get("selected_on", "unknown"), facts)


if __name__ == "__main__":
    exit_cleanly(main)
