"""Are the fast paths as accurate? Both stages to their ends, by the scripts and by the plain loops.

    python -m benchmarks.accuracy [--network resnet8] [--epochs 20] [--finetune_epoch 5] [--seeds 0,1,2]
    python -m benchmarks.accuracy --network resnet32 --stage1 FILE --seeds 0

The same recipe on CIFAR100-LT, IR 100, by main_stage1.py and main_stage2.py, by the same with `--amp bf16`,
and by the loops of benchmarks/baselines.py (PIL, transforms v1, channels first, the whole network in stage 2,
its batch-norm in eval mode). The draws differ, so accuracies can only agree up to their deviation over seeds.
With `--stage1` all start from that checkpoint and only stage 2 is run. Needs the CIFAR-100 files.
"""

import io
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import nn

import main_stage1
import main_stage2
from benchmarks import baselines, common
from datasets import LongTailedData
from losses import build_loss
from models import THIN_NETWORKS, build_model
from utils.engine.loop import cosine_lr
from utils.engine.scoring import EVAL_BATCH
from utils.run import checkpoint
from utils.settings.config import Config, resolve
from utils.settings.parse import STAGE1, STAGE2

PATHS = {"plain loops": None, "ours": [], "ours, --amp bf16": ["--amp", "bf16"]}


class Recipe:
    """What all paths run for a seed: the settings of both stages, resolved as the scripts do."""

    def __init__(self, words: dict, stage1: Path | None, data_dir: Path) -> None:
        self.words, self.stage1, self.data_dir = words, stage1, data_dir
        shared = {name: words[name] for name in ("network", "seed")} | {"device": "cpu"}
        self.first: Config = resolve(STAGE1, shared | {"epochs": words["epochs"]})
        self.second: Config = resolve(STAGE2, shared | {"finetune_epoch": words["finetune_epoch"]})

    def command(self, *names: str) -> list[str]:
        own = [word for name in ("network", "seed", *names) for word in (f"--{name}", str(self.words[name]))]
        return [*own, "--device", "cpu", "--data_dir", str(self.data_dir), "--quiet"]


def ours(recipe: Recipe, extra: list[str]) -> tuple[float | None, float]:
    """Test accuracy in percent after each stage, by the scripts; None: there was no stage 1."""
    with tempfile.TemporaryDirectory() as folder:
        places = ["--out", folder, "--ckpt_dir", folder]
        before = None
        if recipe.stage1 is None:
            once = ["--eval_every", str(recipe.words["epochs"])]
            before = overall(main_stage1.main, [*recipe.command("epochs"), *once, *places, *extra])
        start = [] if recipe.stage1 is None else ["--pretrained_pth", str(recipe.stage1)]
        command = [*recipe.command("finetune_epoch"), *start, *places, *extra]
        return before, overall(main_stage2.main, command)


def overall(script: Callable[[list[str]], None], command: list[str]) -> float:
    with redirect_stdout(io.StringIO()) as text:
        script(command)
    return float(re.findall(r"overall=([\d.]+)", text.getvalue())[-1])


def plain(recipe: Recipe, data: LongTailedData) -> tuple[float | None, float]:
    """The same by the plain loops."""
    first, second = recipe.first, recipe.second
    torch.manual_seed(first.seed)
    model = build_model(first.network, data.num_classes)
    train = baselines.train_loader(data.train, data.views, first.batch_size)
    test = baselines.test_loader(data.test, data.views, EVAL_BATCH)
    before = None
    if recipe.stage1 is None:
        optimizer = torch.optim.SGD(model.parameters(), first.lr, first.momentum, weight_decay=first.wd)
        for epoch in range(first.epochs):
            set_lr(optimizer, cosine_lr(first.lr, epoch, first.epochs, first.warmup_epochs))
            baselines.train(model, train, nn.CrossEntropyLoss(), optimizer)
        before = 100 * baselines.evaluate(model, test)
    else:
        checkpoint.load_weights(model, checkpoint.read(recipe.stage1), first.network)
    loss_fn = build_loss("los", label_smooth=second.label_smooth)
    optimizer = torch.optim.SGD(model.fc.parameters(), second.finetune_lr, second.momentum)
    for epoch in range(second.finetune_epoch):
        set_lr(optimizer, cosine_lr(second.finetune_lr, epoch, second.finetune_epoch))
        baselines.train(model, train, loss_fn, optimizer, drift=False)
    return before, 100 * baselines.evaluate(model, test)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    optimizer.param_groups[0]["lr"] = lr


def spread(values: list[float | None]) -> str:
    """mean ± deviation (n)"""
    found = [value for value in values if value is not None]
    if not found:
        return "-"
    deviation = f" ± {stdev(found):.2f}" if len(found) > 1 else ""
    return f"{mean(found):.2f}{deviation} (n = {len(found)}: {', '.join(f'{v:.2f}' for v in found)})"


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--network", default="resnet8", choices=THIN_NETWORKS)
    parser.add_argument("--epochs", type=common.positive, default=20, help="of stage 1")
    parser.add_argument("--finetune_epoch", type=common.positive, default=5, help="of stage 2")
    parser.add_argument("--seeds", default="0,1,2", help="whole numbers with commas between")
    parser.add_argument("--stage1", type=Path, help="a checkpoint to start from, in place of a stage 1")
    parser.add_argument("--paths", default="loops,ours,bf16", help="of loops, ours, bf16: what is run")
    args = parser.parse_args(argv)
    if not common.has_cifar100(args.data_dir):
        parser.error(f"no CIFAR-100 in {args.data_dir}: the scripts would have to download it first")
    wanted = {path: extra for path, extra in PATHS.items() if path.split()[-1] in args.paths.split(",")}
    data, what = common.load_cifar100_lt(args.data_dir)
    lines = ["| | after stage 1 | after stage 2 (LOS) |", "| --- | --- | --- |"]
    for path, extra in wanted.items():
        found = []
        for seed in map(int, args.seeds.split(",")):
            words = {"network": args.network, "seed": seed}
            words |= {"epochs": args.epochs, "finetune_epoch": args.finetune_epoch}
            recipe = Recipe(words, args.stage1, args.data_dir)
            found.append(plain(recipe, data) if extra is None else ours(recipe, extra))
        before, after = (spread(list(values)) for values in zip(*found, strict=True))
        lines.append(f"| {path} | {before} | {after} |")
        print(lines[-1], flush=True)
    start = f"stage 1 from {args.stage1.name}" if args.stage1 else f"{args.epochs} epochs"
    title = f"## Test accuracy, {what}, {args.network}, {start}, then {args.finetune_epoch} of LOS"
    common.publish([title, "\n".join(lines)], args.out)


if __name__ == "__main__":
    main()
