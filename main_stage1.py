"""Stage 1: learn the backbone on a long-tailed set with cross-entropy, weight decay and natural sampling.

    python main_stage1.py --imb_ratio 100 --cur_stage stage1
    torchrun --nproc_per_node 8 main_stage1.py --dataset imagenet_lt --data_dir FOLDER --cur_stage stage1

The published recipe of LOS (ICLR 2025) on CIFAR100-LT: ResNet-34, 200 epochs, SGD, cosine. Leaves its model
where main_stage2.py looks for it. On a CPU take a thin network: --network resnet32 (60 epochs, about an
hour).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice

import torch

from losses import build_loss
from models import THIN_NETWORKS
from utils.base import distributed
from utils.base.errors import exit_cleanly
from utils.base.seeding import epoch_order
from utils.base.signals import Signals
from utils.engine import graphs, loop, scoring
from utils.engine.device import LAYOUT, pick_device
from utils.engine.mixup import Mixup
from utils.engine.precision import loss_scaler, speed_up
from utils.engine.step import TrainStep
from utils.engine.steps import Steps
from utils.metrics import accuracy as metrics
from utils.report import summary
from utils.report.resume import AUTO_FOUND_NONE, read_resume, words_to_resume
from utils.run import checkpoint
from utils.run.folder import Run
from utils.run.network import build_network, start_pretrained, try_network
from utils.run.saver import Keeper
from utils.settings.config import resolve
from utils.settings.data import load_data, mirror_at_test, open_parts, scored_parts
from utils.settings.parse import STAGE1, parse

LONG_RUN_SECONDS = 2 * 3600


def main(argv: Sequence[str] | None = None) -> None:
    with ExitStack() as held:
        train(argv, held)


def train(argv: Sequence[str] | None, held: ExitStack) -> None:
    """The whole stage; what it holds while it runs, the run folder, is given back by `held`."""
    # ---- config
    given = parse(STAGE1, __doc__.splitlines()[0], argv)
    world = distributed.join()
    resumed = read_resume(STAGE1, given, world, held)
    config = world.agree(resolve(STAGE1, given, resumed.config if resumed else None))
    device = pick_device(config.device, config.gpu, world, config.deterministic)
    graphed_steps = graphs.wanted(config, device, world, resumed is not None)
    place = (config.ckpt_dir, config.place_name, config.imb_ratio, config.network)
    published = checkpoint.published_path(*place, "stage1", None if resumed else config.pretrained)

    # ---- seed
    torch.manual_seed(config.seed)

    # ---- data
    data = world.in_turn(lambda: load_data(config))
    summary.check_place(published, config, data, config.epochs)
    images = open_parts(data, device, config.workers)
    train, scored = images["train"], scored_parts(images, config.select)
    labels = {name: part.labels for name, part in images.items()}
    mirror = mirror_at_test(data, config)
    steps = Steps(len(train), config.batch_size, config.accum, world)
    mixup = Mixup(config.mixup, config.seed, steps, data.num_classes, device) if config.mixup else None

    # ---- model
    model = build_network(config, data.num_classes, data.in_channels)
    started_from = start_pretrained(model, config, data) if config.pretrained and not resumed else None
    model.to(device, memory_format=LAYOUT)
    try_network(model, config, data, 2 if config.sync_bn else min(2, steps.part_size))
    compiled = speed_up(model, config, device, steps.part_size)
    learner = distributed.parallel(model, world, device, config.sync_bn)
    loss_fn = build_loss("ce", data.train_counts)

    # ---- optimiser
    optimizer = loop.sgd(model.parameters(), config.lr, config.momentum, config.wd, config.nesterov)
    scaler = loss_scaler(config)
    graphed = None
    if graphed_steps:
        step = TrainStep(learner, loss_fn, optimizer, look=False)
        graphed = graphs.GraphedSteps(step, graphs.CudaCapture())

    # ---- resume
    progress, done = loop.Progress(), loop.Partial()
    if resumed:
        progress, done = resumed.restore(model, optimizer, scaler, data, config, world)
    first_epoch, first_step = progress.epoch, done.step
    folder = resumed.folder if resumed else None
    lock, also = resumed.lock if resumed else None, [published.parent]
    run = held.enter_context(Run(config, "stage1", folder, also_writable=also, world=world, lock=lock))
    signals = held.enter_context(Signals())
    keeper = Keeper(run, STAGE1, signals, world, config.save_every, words_to_resume(config, STAGE1))
    summary.announce(run, config, data, model, device, world)
    run.log(steps.told(config.lr))
    if started_from:
        run.log(started_from)
    if resumed:
        run.write_rows("metrics.csv", progress.rows)  # one may be missing where the run was killed
        run.log(f"resumed {folder} at step {first_step} of epoch {first_epoch + 1}")
    elif "resume" in given:
        run.log(AUTO_FOUND_NONE)
    for note in resumed.notes(data, device) if resumed else []:
        run.log(f"note: {note}")
    facts = summary.model_facts(config, data, device)
    if resumed and first_epoch == config.epochs:  # nothing is trained here
        facts["environment"] = resumed.source.facts["environment"]

    # ---- loop
    if compiled:
        to_go = len(steps) * (config.epochs - first_epoch) - first_step
        compiled.tell, compiled.steps = run.log, to_go * config.accum

    def warn_if_long(seconds: float) -> None:
        if device.type == "cpu" and seconds > LONG_RUN_SECONDS:
            thin = f"; --network {', '.join(THIN_NETWORKS[1:])} take a fraction of it"
            advice = "" if config.network in THIN_NETWORKS else thin
            run.log(f"note: about {seconds / 3600:.0f} hours to go on this CPU{advice}")

    def train_one(epoch: int, lr: float) -> dict:
        learner.train()
        partial = done if epoch == first_epoch else loop.Partial()
        keeper.save = lambda: save("last", partial.as_dict(world))
        keeper.where = lambda: f"step {partial.step} of epoch {epoch + 1}"
        skipped = partial.step * config.accum
        order = steps.own(epoch_order(config.seed, epoch, len(train)))[skipped * steps.part_size :]
        batches = train.augmented(order, steps.part_size, config.seed, epoch)
        batches = mixup(batches, epoch, skipped) if mixup else batches
        total = len(steps) * config.accum
        if epoch == first_epoch:
            batches = loop.timed(batches, total * (config.epochs - epoch) - skipped, warn_if_long)
        batches = run.bar(batches, total - skipped, f"epoch {epoch + 1}/{config.epochs}")
        parts = islice(steps.parts(), skipped, None)
        figures = loop.train_epoch(
            *(learner, batches, loss_fn, optimizer, lr, parts, scaler, world),
            partial=partial,
            after_step=keeper.after_step,
            take=graphed,
        )
        distributed.share_buffers(model, world)
        return figures

    def evaluate() -> dict:
        classes = {name: scoring.predict_classes(model, images[name], mirror, world) for name in scored}
        return metrics.epoch_figures(classes, labels, data.class_counts, data.shots)

    def save(name: str, partial: dict | None = None) -> None:
        summary.save_epoch(run, name, facts, progress, model, optimizer, scaler, partial)

    def tell(seconds_left: float) -> None:
        summary.log_epoch(run, progress, config.epochs, seconds_left)
        keeper.where = lambda: f"epoch {progress.epoch}"
        keeper.after_epoch(saved=True)

    loop.fit(
        progress,
        config.epochs,
        schedule=lambda epoch: loop.cosine_lr(config.lr, epoch, config.epochs, config.warmup_epochs),
        train=train_one,
        evaluate=evaluate,
        scored_on=loop.score_column(config.select, "val" in images),
        save=save,
        log=tell,
        eval_every=config.eval_every,
        columns=metrics.epoch_columns(scored),
    )

    # ---- report
    world.wait()
    facts["epoch"] = summary.load_chosen(run, config.select, progress, model, config.network)
    logits = scoring.logit_batches(model, images["test"], mirror, world=world)
    figures = scoring.score(logits, labels["test"], data.num_classes, world).figures(
        data.class_counts, data.shots
    )
    content = facts | {"model": model.state_dict()}
    where = summary.publish(run, published, content, figures, config.select)
    run.write_per_class(figures, data)
    summary.finish(run, figures, config.select, where)
    distributed.leave()


if __name__ == "__main__":
    exit_cleanly(main)
