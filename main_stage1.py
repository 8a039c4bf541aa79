"""Stage 1: learn the backbone on a long-tailed set with cross-entropy, weight decay and natural sampling.

    python main_stage1.py --imb_ratio 100 --cur_stage stage1

The published recipe of LOS (ICLR 2025) on CIFAR100-LT: ResNet-34, 200 epochs, SGD, cosine. Leaves its model
where main_stage2.py looks for it. On a CPU take a thin network: --network resnet32 (60 epochs, about an
hour).
"""

from collections.abc import Sequence

import torch

from losses import build_loss
from models import THIN_NETWORKS, build_model
from utils import checkpoint, engine, metrics, report
from utils.arguments import STAGE1, parse
from utils.config import resolve
from utils.device import pick_device
from utils.errors import exit_cleanly
from utils.logger import Run
from utils.resume import read_resume
from utils.seeding import epoch_order
from utils.setup import load_data, on_device, scored_parts

LONG_RUN_SECONDS = 2 * 3600


def main(argv: Sequence[str] | None = None) -> None:
    # ---- config
    given = parse(STAGE1, __doc__.splitlines()[0], argv)
    resumed = read_resume(given)
    config = resolve(STAGE1, given, resumed.config if resumed else None)
    device = pick_device(config.device, config.gpu)
    published = checkpoint.published_path(
        config.ckpt_dir, config.dataset, config.imb_ratio, config.network, "stage1"
    )

    # ---- seed
    torch.manual_seed(config.seed)

    # ---- data
    data = load_data(config)
    images = on_device(data, device)
    train, scored = images["train"], scored_parts(images, config.select)
    labels = {name: part.labels for name, part in images.items()}
    mirror = data.views.mirror and not config.no_tta
    steps = -(-len(train) // config.batch_size)

    # ---- model
    model = build_model(config.network, data.num_classes, data.in_channels)
    model.to(device, memory_format=torch.channels_last)
    loss_fn = build_loss("ce", data.train_counts)

    # ---- optimiser
    optimizer = engine.sgd(model.parameters(), config.lr, config.momentum, config.wd, config.nesterov)

    # ---- resume
    progress = resumed.restore(model, optimizer, data, config.network) if resumed else engine.Progress()
    first_epoch = progress.epoch
    run = Run(config, "stage1", resumed.folder if resumed else None, also_writable=[published.parent])
    report.announce(run, config, data, model, device)
    for change in resumed.changes(device) if resumed else []:
        run.log(f"note: resumed at epoch {first_epoch}, the last bits may differ: {change}")
    facts = report.model_facts(config, data, device)

    # ---- loop
    def warn_if_long(seconds: float) -> None:
        if device.type == "cpu" and seconds > LONG_RUN_SECONDS:
            thin = f"; --network {', '.join(THIN_NETWORKS[1:])} take a fraction of it"
            advice = "" if config.network in THIN_NETWORKS else thin
            run.log(f"note: about {seconds / 3600:.0f} hours to go on this CPU{advice}")

    def train_one(epoch: int, lr: float) -> dict:
        model.train()
        order = epoch_order(config.seed, epoch, len(train))
        batches = train.augmented(order, config.batch_size, config.seed, epoch)
        if epoch == first_epoch:
            batches = engine.timed(batches, steps * (config.epochs - epoch), warn_if_long)
        batches = run.bar(batches, steps, f"epoch {epoch + 1}/{config.epochs}")
        return engine.train_epoch(model, batches, loss_fn, optimizer, lr)

    def evaluate() -> dict:
        logits = {name: engine.predict(model, images[name], mirror) for name in scored}
        classes = {name: metrics.predictions(values) for name, values in logits.items()}
        return metrics.epoch_figures(classes, labels, data.class_counts)

    engine.fit(
        progress,
        config.epochs,
        schedule=lambda epoch: engine.cosine_lr(config.lr, epoch, config.epochs, config.warmup_epochs),
        train=train_one,
        evaluate=evaluate,
        scored_on=engine.score_column(config.select, "val" in images),
        save=lambda name: report.save_epoch(run, name, facts, progress, model, optimizer),
        log=lambda seconds_left: report.log_epoch(run, progress, config.epochs, seconds_left),
    )

    # ---- report
    facts["epoch"] = report.load_chosen(run, config.select, progress, model, config.network)
    figures = metrics.report(engine.predict(model, images["test"], mirror), labels["test"], data.class_counts)
    content = facts | {"model": model.state_dict()}
    where = report.publish(run, published, content, figures, config.select)
    run.write_per_class(figures, data.class_names, data.class_counts)
    report.finish(run, figures, config.select, where)


if __name__ == "__main__":
    exit_cleanly(main)
