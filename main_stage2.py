"""Stage 2: re-train only the classifier on the frozen stage-1 backbone, with label over-smoothing (LOS).

    python main_stage2.py --imb_ratio 100 --cur_stage stage2 --label_smooth 0.98

The published recipe on CIFAR100-LT: 20 epochs of SGD on the last layer, from its stage-1 weights, natural
sampling. The backbone runs without gradients; its test features are computed once. `--label_smooth 0` is the
control.
"""

from collections.abc import Sequence

import torch

from losses import build_loss, logit_gap
from models import build_model
from utils import checkpoint, engine, metrics, report
from utils.arguments import STAGE2, parse
from utils.config import resolve
from utils.device import pick_device
from utils.errors import exit_cleanly
from utils.features import TrainFeatures, eval_features, head_logits
from utils.logger import Run
from utils.seeding import epoch_order
from utils.setup import backbone_note, find_source, load_data, on_device, scored_parts


def main(argv: Sequence[str] | None = None) -> None:
    # ---- config
    given = parse(STAGE2, __doc__.splitlines()[0], argv)
    source = find_source(STAGE2, given, "stage1")
    config = resolve(STAGE2, given, source.known)
    device = pick_device(config.device, config.gpu)
    published = checkpoint.published_path(
        config.ckpt_dir, config.dataset, config.imb_ratio, config.network, "stage2"
    )

    # ---- seed: nothing is initialised here; orders depend on it by epoch, views on the backbone's own seed
    views_seed = source.facts.get("seed", config.seed)

    # ---- data
    data = load_data(config)
    note = backbone_note(source, data, config.select)
    images = on_device(data, device)
    train = images["train"]
    labels = {name: part.labels for name, part in images.items()}
    mirror = data.views.mirror and not config.no_tta

    # ---- model: the backbone is frozen, the classifier starts from stage 1
    model = build_model(config.network, data.num_classes, data.in_channels)
    checkpoint.load_weights(model, source, config.network)
    model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    head = model.fc.requires_grad_(True)
    loss_fn = build_loss("los", data.train_counts, label_smooth=config.label_smooth)

    # ---- optimiser: weight and bias of the classifier, nothing else
    optimizer = engine.sgd(
        head.parameters(), config.finetune_lr, config.momentum, config.finetune_wd, config.nesterov
    )

    # ---- run folder
    run = Run(config, "stage2", also_writable=[published.parent])
    report.announce(run, config, data, model, device)
    run.log(report.from_where(source))
    gap = logit_gap(config.label_smooth, data.num_classes)
    run.log(f"label over-smoothing: δ = {config.label_smooth:g}, logit gap {gap:.3g} at its optimum")
    if note:
        run.log(f"note: {note}")
    facts = report.model_facts(config, data, device) | {"stage1_digest": source.digest}

    # ---- frozen features
    drifting = config.bn_mode == "train"
    if drifting:
        run.log("note: --bn_mode train: batch-norm statistics drift during stage 2, as in the public code")
    training = TrainFeatures(model, train, views_seed, config.views, run.bar)
    scored = scored_parts(images, config.select)

    def compute_features(parts: Sequence[str]) -> dict[str, torch.Tensor]:
        return {name: eval_features(model, images[name], mirror, run.bar) for name in parts}

    features = {} if drifting else compute_features([name for name in images if name != "train"])
    if not drifting:
        before = metrics.report(head_logits(head, features["test"]), labels["test"], data.class_counts)
        run.log(f"stage-1 classifier: {metrics.result_line(before, 'nothing')}")

    # ---- loop
    progress = engine.Progress()

    def train_one(epoch: int, lr: float) -> dict:
        order = epoch_order(config.seed, epoch, len(train))
        make_batches = training.drifting_batches if drifting else training.batches
        batches = make_batches(order, config.batch_size, epoch)
        return engine.train_epoch(head, batches, loss_fn, optimizer, lr)

    def evaluate() -> dict:
        current = compute_features(scored) if drifting else features
        logits = {name: head_logits(head, current[name]) for name in scored}
        return metrics.epoch_figures(logits, labels, data.class_counts)

    engine.fit(
        progress,
        config.finetune_epoch,
        schedule=lambda epoch: engine.cosine_lr(config.finetune_lr, epoch, config.finetune_epoch),
        train=train_one,
        evaluate=evaluate,
        scored_on=engine.score_column(config.select, "val" in images),
        save=lambda name: report.save_epoch(run, name, facts, progress, model),
        log=lambda seconds_left: report.log_epoch(run, progress, config.finetune_epoch, seconds_left),
    )

    # ---- report
    facts["epoch"] = report.load_chosen(run, config.select, progress, model, config.network)
    if drifting:
        features = compute_features(["test"])
    figures = metrics.report(head_logits(head, features["test"]), labels["test"], data.class_counts)
    report.publish(run, published, facts, model, figures, config.select, data)


if __name__ == "__main__":
    exit_cleanly(main)
