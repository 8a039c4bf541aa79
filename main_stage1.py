"""Stage 1: learn the backbone on a long-tailed set with cross-entropy, weight decay and natural sampling.

    python main_stage1.py --imb_ratio 100 --cur_stage stage1
    torchrun --nproc_per_node 8 main_stage1.py --dataset imagenet_lt --data_dir FOLDER --cur_stage stage1

The published recipe of LOS (ICLR 2025) on CIFAR100-LT: ResNet-34, 200 epochs, SGD, cosine. Leaves its model
where main_stage2.py looks for it. On a CPU take a thin network: --network resnet32 (60 epochs, about an
hour).
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice

from utils.settings.config import answer_early, asked_for, resolve
from utils.settings.table import STAGE1

if __name__ == "__main__":  # what needs no run is answered before torch is loaded, which takes seconds
    answer_early(STAGE1, __doc__)

import torch

from utils.base import distributed
from utils.base.errors import exit_cleanly
from utils.base.seeding import epoch_order, seeded
from utils.base.signals import Signals
from utils.engine import graphs, loop, scoring
from utils.engine.device import LAYOUT, pick_device
from utils.engine.mixup import Mixup
from utils.engine.precision import loss_scaler, speed_up
from utils.engine.step import DivergedError, Steps, TrainStep, training_loss
from utils.metrics.accuracy import epoch_columns, epoch_figures
from utils.report import summary
from utils.report.resume import AUTO_FOUND_NONE, read_resume, words_to_resume
from utils.report.table import report_classes
from utils.run import checkpoint
from utils.run.folder import Run
from utils.run.network import build_network, check_memory, start_pretrained, try_network
from utils.run.saver import Saver
from utils.settings.data import load_data, mirror_at_test, open_parts, scored_parts


def main(argv: Sequence[str] | None = None) -> None:
    with ExitStack() as held:
        train(argv, held)


def train(argv: Sequence[str] | None, held: ExitStack) -> None:
    """The whole stage; what it holds while it runs, the run folder, is given back by `held`."""
    # ---- config
    given = asked_for(STAGE1, __doc__, argv)
    world = distributed.join()
    resumed = read_resume(STAGE1, given, world, held)
    config = world.agree(resolve(STAGE1, given, resumed.config if resumed else None))
    device = pick_device(config.device, config.gpu, world, config.deterministic)
    graphed = graphs.wanted(config, device, world, resumed is not None)
    weights = None if resumed else config.pretrained
    published = checkpoint.published_path(config, "stage1", config.network, weights)

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
    started_from = start_pretrained(model, config, data, weights) if weights else None
    model.to(device, memory_format=LAYOUT)
    try_network(model, config, data, min(2, steps.part_size))
    check_memory(model, config, data, steps.part_size)
    speed_up(model, config, device, steps.part_size)
    learner = distributed.parallel(model, world, device, own=":" in config.network)

    # ---- loss and optimiser
    loss_fn = training_loss(config, data.train_counts, config.accum * world.size).to(device)
    optimizer = loop.sgd(model.parameters(), config.lr, config.momentum, config.wd, config.nesterov)
    scaler = loss_scaler(config)
    step = TrainStep(learner, loss_fn, optimizer, scaler)

    # ---- resume
    progress = loop.Progress()
    if resumed:
        progress = resumed.restore(model, optimizer, scaler, data, config, world)
    first_epoch, position = progress.epoch, f"step {progress.step} of epoch {progress.epoch + 1}"
    folder = resumed.folder if resumed else None
    lock, also = resumed.lock if resumed else None, [published.parent]
    run = held.enter_context(Run(config, "stage1", folder, also_writable=also, world=world, lock=lock))
    signals = held.enter_context(Signals())
    step = graphs.GraphedSteps(step, graphs.CudaCapture(), run.warn) if graphed else step
    summary.announce(run, config, data, model, device, world)
    run.log(steps.told(config.lr))
    if config.loss != "ce" or config.label_smooth:
        run.log(f"loss {config.loss}: {loss_fn}")
    if started_from:
        run.log(started_from)
    if resumed:
        run.write_rows("metrics.csv", progress.rows)  # one may be missing where the run was killed
        run.log(f"resumed {folder} at {position}")
    elif "resume" in given:
        run.log(AUTO_FOUND_NONE)
    for note in resumed.notes(data, device) if resumed else []:
        run.log(f"note: {note}")
    facts = checkpoint.model_facts(config, data, device)
    if resumed and first_epoch == config.epochs:  # nothing is trained here
        facts["environment"] = resumed.source.facts["environment"]

    def save(name: str = "last") -> None:
        """Write best.pth, or last.pth with what a resume needs: within an epoch a collective act."""
        content = facts | {"epoch": progress.epoch, "progress": progress.as_dict()}
        content |= {"model": model.state_dict()}
        if name == "last":
            content |= {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
            if progress.step:
                content |= {"partial": progress.partial(world), "version": checkpoint.VERSION}
        if run.main:
            checkpoint.save(run.place(f"{name}.pth"), content)

    saver = Saver(run, STAGE1, signals, world, config.save_every, words_to_resume(config, STAGE1))
    saver.keeps(save, progress.where)

    # ---- loop
    started = time.monotonic()
    for epoch in range(first_epoch, config.epochs):
        learner.train()
        lr = loop.cosine_lr(config.lr, epoch, config.epochs, config.warmup_epochs)
        done = progress.step * config.accum  # parts, of an epoch that is gone on with
        order = steps.own(epoch_order(config.seed, epoch, len(train)))[done * steps.part_size :]
        batches = train.augmented(order, steps.part_size, config.seed, epoch)
        batches = mixup(batches, epoch, done) if mixup else batches
        batches = seeded(batches, config.seed, epoch, world.rank, first=done)
        total = len(steps) * config.accum - done
        batches = run.bar(batches, total, f"epoch {epoch + 1}/{config.epochs}")
        parts = islice(steps.parts(), done, None)
        try:
            figures = loop.train_epoch(step, batches, progress, lr, parts, world, saver.after_step)
        except DivergedError as error:
            raise loop.diverged(error, epoch) from error
        distributed.share_buffers(model, world)

        row = {"epoch": epoch + 1, "lr": lr} | figures | dict.fromkeys(epoch_columns(scored))
        if (epoch + 1) % config.eval_every == 0 or epoch + 1 == config.epochs:
            classes = {name: scoring.predict_classes(model, images[name], mirror, world) for name in scored}
            row |= epoch_figures(classes, labels, data.class_counts, data.shots)
        if progress.record(row, loop.score_column(config.select, "val" in images)):
            save("best")
        save("last")
        run.write_rows("metrics.csv", progress.rows)
        seconds = (time.monotonic() - started) / (epoch + 1 - first_epoch)
        run.log(summary.epoch_line(row, config.epochs, seconds * (config.epochs - epoch - 1)))
        saver.after_epoch(saved=True)

    # ---- report
    world.wait()
    facts["epoch"] = progress.epoch
    if config.select != "last":
        best = checkpoint.read(run.folder / "best.pth")
        checkpoint.load_weights(model, best, config.network)
        facts["epoch"] = best.facts["epoch"]
    logits = scoring.logit_batches(model, images[data.judged], mirror, world=world)
    scores = scoring.score(logits, labels[data.judged], data.num_classes, world)
    figures = scores.figures(data.class_counts, data.shots)
    content = facts | {"model": model.state_dict()}
    where = summary.publish(run, published, content, figures, config.select)
    report_classes(run, data, figures, scores)
    summary.finish(run, figures, config.select, where, part=data.judged)
    distributed.leave()


if __name__ == "__main__":
    exit_cleanly(main)
