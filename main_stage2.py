"""Stage 2: re-train only the classifier on the frozen stage-1 backbone, with label over-smoothing (LOS).

    python main_stage2.py --imb_ratio 100 --cur_stage stage2 --label_smooth 0.98
    python main_stage2.py --imb_ratio 100 --cur_stage stage2 --method all

The published recipe on CIFAR100-LT: 20 epochs of SGD on the last layer, from its stage-1 weights, natural
sampling. The backbone runs without gradients; its test features are computed once. `--method` takes other
re-training methods, any number of them over the same features; `--method list` prints them. Under torchrun
the processes share the features' extraction, and the first one trains the heads.
"""

from collections.abc import Sequence
from contextlib import ExitStack

from utils.settings.config import answer_early, asked_for, resolve
from utils.settings.table import STAGE2

if __name__ == "__main__":  # what needs no run is answered before torch is loaded, which takes seconds
    answer_early(STAGE2, __doc__)

import torch

from utils.base import distributed
from utils.base.distributed import ALONE
from utils.base.errors import exit_cleanly
from utils.base.signals import Signals
from utils.engine.device import pick_device
from utils.features.frozen import make_pack
from utils.features.source import find_source
from utils.heads.epochs import all_epochs, start_heads, threads_for, train_epoch
from utils.heads.outcome import choose, outcomes
from utils.heads.plan import plan_heads
from utils.metrics.balance import target_priors
from utils.metrics.paired import check_classes
from utils.packs.pack import write_pack
from utils.report import head_report, summary
from utils.report.resume import AUTO_FOUND_NONE, own_words, read_resume, words_to_resume
from utils.run import checkpoint
from utils.run.checkpoint import published_path
from utils.run.folder import Run
from utils.run.saver import Saver
from utils.settings.chosen import lead_method
from utils.settings.data import scored_parts


def main(argv: Sequence[str] | None = None) -> None:
    with ExitStack() as held:
        retrain(argv, held)


def retrain(argv: Sequence[str] | None, held: ExitStack) -> None:
    """The whole stage; what it holds while it runs, the run folder, is given back by `held`."""
    # ---- config
    given = asked_for(STAGE2, __doc__, argv)
    world = distributed.join()
    resumed = read_resume(STAGE2, given, world, held)
    words = resumed.given if resumed else given
    source = find_source(STAGE2, words, "stage1")
    config = world.agree(resolve(STAGE2, words, source.known))
    plans, notes = plan_heads(config)
    device = pick_device(config.device, config.gpu, world, config.deterministic)
    published = published_path(config, "stage2", source.label(config.network), source.path)

    # ---- seed: each head has its own, by epoch; augmented views depend on the backbone's

    # ---- data and model: images and the frozen backbone, or the features of a pack
    data, model = source.load(config, device, world)  # in eval mode, without gradients but for the classifier
    seen = source.saw(data, "val" if data.test is None else config.select)
    notes += [*([seen] if seen else []), *source.compared_with(data)]
    priors = target_priors(config.target_prior, data.class_counts)
    check_classes(data.parts[data.judged].labels)
    scored = scored_parts(data.parts, config.select)
    lead = lead_method(config.method, config.publish, config.select)
    epochs_of = [plan.epochs for plan in plans if lead in (None, plan.method.name)]
    summary.check_place(published, config, data, max(epochs_of), lead)
    if resumed:
        notes += resumed.check_stage2(data, plans, source.origins(), device)

    # ---- run folder
    folder, lock = (resumed.folder, resumed.lock) if resumed else (None, None)
    also = [path.parent for path in (published, config.save_features) if path]
    run = held.enter_context(Run(config, "stage2", folder, also_writable=also, world=world, lock=lock))
    signals = held.enter_context(Signals())
    saver = Saver(run, STAGE2, signals, world, config.save_every, words_to_resume(config, STAGE2))
    summary.announce(run, config, data, model, device, world)
    run.log(source.told())
    if "resume" in given:
        run.log(f"resumed {folder}" if resumed else AUTO_FOUND_NONE)
    head_report.announce(run, config, plans, notes, data.num_classes)
    facts = checkpoint.model_facts(config, data, device) | source.origins()
    kept = facts | {"given": own_words(words)}
    if world.main and not resumed:
        checkpoint.save(run.place("last.pth"), kept | head_report.not_begun(model))

    # ---- frozen features: a view of the training set an epoch, the parts that are scored once
    epochs = max([1, *(plan.epochs for plan in plans)])
    with saver.ending_together():
        frozen = source.freeze(run, epochs, saver.watch)
        distributed.leave()
    if not world.main:  # the first process has all features and trains the heads
        return
    saver.world = ALONE
    if config.save_features:
        own = facts | {"seed": source.facts.get("seed")}  # of the backbone, not of the heads
        digest = write_pack(config.save_features, make_pack(frozen, config, own, clean=not seen))
        run.log(f"features left at {config.save_features} (sha256 {digest[:12]})")

    # ---- heads: each starts from the stage-1 classifier, or as its method says, and goes on where it was
    heads = start_heads(plans, frozen, scored, config)
    if resumed:
        run.log(f"{resumed.restore_heads(heads, model)} of {len(heads)} heads go on")

    # ---- loop
    watcher = head_report.Watcher(saver, heads, kept, model, lead, source)
    # saves within an epoch need all heads in one place
    workers = 1 if config.save_every else torch.get_num_threads()
    for epoch in all_epochs(heads):
        if train_epoch(heads, epoch, scored, saver.after_step, workers, lambda: signals.asked):
            watcher.after_epoch(epoch + 1)
    watcher.end()

    # ---- report
    with threads_for(frozen):
        reported = outcomes(choose(heads, config.select), priors, unseen=not seen)
    source.check_unchanged()
    watcher.publish(published, facts, reported)
    frozen.discard()


if __name__ == "__main__":
    exit_cleanly(main)
