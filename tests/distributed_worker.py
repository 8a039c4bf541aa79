"""What the tests of several processes run, in forks and in the process: the same work, its result."""

import sys
from pathlib import Path

import torch
from torch import Tensor

import main_stage2
from datasets import build_data
from datasets.images.in_memory import DeviceImages
from losses import build_loss
from models import build_model
from utils.base import distributed
from utils.base.distributed import World
from utils.base.seeding import epoch_order
from utils.engine import loop, scoring
from utils.engine.step import Steps, TrainStep

BATCH, SEED = 32, 0


def work(world: World, accum: int = 1) -> dict[str, Tensor]:
    """Two epochs of SGD with batch-norm as in evaluation, then the scores of the test set, by name."""
    torch.manual_seed(SEED)
    data = build_data("digits_lt", imb_ratio=50, val_source="none")
    train, test = (DeviceImages(part, data.views) for part in (data.train, data.test))
    model = build_model("resnet8", 10, 1)
    learner = distributed.parallel(model, world, torch.device("cpu"))
    optimizer = loop.sgd(model.parameters(), 0.05, 0.9, 1e-3, nesterov=False)
    steps = Steps(len(train), BATCH, accum, world)
    for epoch in range(2):
        learner.eval()  # the statistics of batch-norm in training are each process's own
        order = steps.own(epoch_order(SEED, epoch, len(train)))
        batches = train.augmented(order, steps.part_size, SEED, epoch)
        step = TrainStep(learner, build_loss("ce"), optimizer)
        figures = loop.train_epoch(step, batches, loop.Progress(), 0.05, steps.parts(), world)
    logits = scoring.logit_batches(model, test, mirror=False, batch_size=100, world=world)
    scores = scoring.score(logits, test.labels, 10, world)
    found = scores.figures(data.class_counts)
    result = {f"model.{name}": value for name, value in model.state_dict().items()}
    result |= {name: torch.tensor(figures[name]) for name in figures}
    result |= {"predicted": scores.predicted, "confidence": scores.confidence}
    result |= {"loma": torch.tensor(found["classes"]["loma_per_sample"])}
    result |= {name: torch.tensor(found[name]) for name in ("overall", "top5", "calibration_error")}
    return result | {"classes": scoring.predict_classes(model, test, mirror=False, world=world)}


def main() -> None:
    world = distributed.join()
    try:
        for accum in (1, 2):
            result = work(world, accum)
            torch.save(result, Path(sys.argv[1]) / f"accum{accum}_rank{world.rank}.pth")
        main_stage2.main(sys.argv[2:])
    finally:
        distributed.leave()


if __name__ == "__main__":
    main()
