"""Are the fast paths as accurate? Both stages to their ends, by the scripts and by the plain loops.

    python -m benchmarks.accuracy [--network resnet8] [--epochs 20] [--finetune_epoch 5] [--seeds 0,1,2]
    python -m benchmarks.accuracy --network resnet32 --stage1 FILE --seeds 0

The same recipe on CIFAR100-LT, IR 100, by main_stage1.py and main_stage2.py, by the same with `--amp bf16`,
and by the loops of benchmarks/baselines.py (PIL, transforms v1, channels first, the whole network in stage 2,
its batch-norm in eval mode). The draws differ, so accuracies can only agree up to their deviation over seeds.
With `--stage1` all start from that checkpoint and only stage 2 is run. Needs the CIFAR-100 files.
"""

import argparse
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
from utils.report.table import markdown_lines
from utils.run import checkpoint
from utils.settings.config import resolve
from utils.settings.parse import STAGE1, STAGE2

PATHS = {"plain loops": None, "ours": [], "ours, --amp bf16": ["--amp", "bf16"]}


def ours(args: argparse.Namespace, seed: int, extra: list[str]) -> tuple[float | None, float]:
    """Test accuracy in percent after each stage, by the scripts; None: there was no stage 1."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--network", args.network, "--seed", str(seed), "--device", "cpu", "--quiet", *extra]
        words += ["--data_dir", str(args.data_dir), "--out", folder, "--ckpt_dir", folder]
        before, start = None, ["--pretrained_pth", str(args.stage1)]
        if args.stage1 is None:
            epochs, start = str(args.epochs), []
            before = overall(main_stage1.main, [*words, "--epochs", epochs, "--eval_every", epochs])
        command = [*words, "--finetune_epoch", str(args.finetune_epoch), *start]
        return before, overall(main_stage2.main, command)


def overall(script: Callable[[list[str]], None], command: list[str]) -> float:
    with redirect_stdout(io.StringIO()) as text:
        script(command)
    return float(re.findall(r"overall=([\d.]+)", text.getvalue())[-1])


def plain(args: argparse.Namespace, seed: int, data: LongTailedData) -> tuple[float | None, float]:
    """The same by the plain loops."""
    shared = {"network": args.network, "seed": seed, "device": "cpu"}
    first = resolve(STAGE1, shared | {"epochs": args.epochs})
    second = resolve(STAGE2, shared | {"finetune_epoch": args.finetune_epoch})
    torch.manual_seed(seed)
    model = build_model(first.network, data.num_classes)
    train = baselines.loader(data.train, data.views, first.batch_size, shuffle=True)
    test = baselines.loader(data.test, data.views, EVAL_BATCH)
    before = None
    if args.stage1 is None:
        optimizer = torch.optim.SGD(model.parameters(), first.lr, first.momentum, weight_decay=first.wd)
        for epoch in range(first.epochs):
            optimizer.param_groups[0]["lr"] = cosine_lr(first.lr, epoch, first.epochs, first.warmup_epochs)
            baselines.train(model, train, nn.CrossEntropyLoss(), optimizer)
        before = 100 * baselines.evaluate(model, test)
    else:
        checkpoint.load_weights(model, checkpoint.read(args.stage1), first.network)
    loss_fn = build_loss("los", label_smooth=second.label_smooth)
    optimizer = torch.optim.SGD(model.fc.parameters(), second.finetune_lr, second.momentum)
    for epoch in range(second.finetune_epoch):
        optimizer.param_groups[0]["lr"] = cosine_lr(second.finetune_lr, epoch, second.finetune_epoch)
        baselines.train(model, train, loss_fn, optimizer, drift=False)
    return before, 100 * baselines.evaluate(model, test)


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
    args = parser.parse_args(argv)
    if not common.has_cifar100(args.data_dir):
        parser.error(f"no CIFAR-100 in {args.data_dir}: the scripts would have to download it first")
    data, what = common.load_cifar100_lt(args.data_dir)
    lines = [["", "after stage 1", "after stage 2 (LOS)"]]
    for path, extra in PATHS.items():
        seeds = map(int, args.seeds.split(","))
        found = [plain(args, n, data) if extra is None else ours(args, n, extra) for n in seeds]
        lines.append([path, *(spread(list(values)) for values in zip(*found, strict=True))])
        print(*lines[-1], flush=True)
    start = f"stage 1 from {args.stage1.name}" if args.stage1 else f"{args.epochs} epochs"
    title = f"## Test accuracy, {what}, {args.network}, {start}, then {args.finetune_epoch} of LOS"
    common.publish([title, markdown_lines(lines)], args.out)


if __name__ == "__main__":
    main()
