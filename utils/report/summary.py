"""What a run prints and records at its start and end and after its epochs, and the model that it leaves."""

import os
import subprocess
from itertools import count
from pathlib import Path

import torch
from torch import nn

from datasets import OWN_DATASETS, LongTailedData, shot_groups
from datasets.types import FileSet
from utils.base.distributed import ALONE, World
from utils.base.errors import UserError
from utils.base.files import write_atomically
from utils.engine.device import environment
from utils.engine.precision import slow_bf16
from utils.metrics.accuracy import GROUPS, PARTS, lost_images, percent, result_line
from utils.run import checkpoint
from utils.run.facts import compared
from utils.run.folder import Run
from utils.settings.config import Config, describe
from utils.settings.presets import NOTES

_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = 50


def histogram(class_counts: list[int], shots: tuple[int, int]) -> str:
    """Class counts as a row of bars in label order, their range, and the sizes of the shot groups."""
    groups = shot_groups(class_counts, shots)
    stride = max(1, -(-len(class_counts) // _COLUMNS))
    sampled, top = class_counts[::stride], max(class_counts)
    bars = "".join(_BARS[min(7, 8 * count // (top + 1))] for count in sampled)
    sizes = ", ".join(f"{name} {int(mask.sum())}" for name, mask in groups.items())
    return f"{bars}  {top} down to {min(class_counts)} images per class; classes: {sizes}"


def announce(
    run: Run,
    config: Config,
    data: LongTailedData,
    model: nn.Module,
    device: torch.device,
    world: World = ALONE,
) -> None:
    """Print and record what the run is before its first step."""
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = environment(device) | {"commit": _commit()}
    run.log(f"run folder {run.folder}")
    run.log(
        "settings" if config.verbose else "settings, without presets (see config.json)", *describe(config)
    )
    validation = f"{len(data.val) if data.val else 0} validation ({data.val_source})"
    sizes = f"{len(data.train)} training, {validation}, {len(data.test or ())} test images"
    run.log(f"data {data.name}: {sizes} of {data.num_classes} classes")
    run.log("  " + histogram(data.class_counts, data.shots))
    of_the_set = NOTES.get(config.dataset) if data.views else None  # a pack has its own
    if config.dataset in OWN_DATASETS and not data.val and "epochs" in config:  # stage 1, the place to ask
        of_the_set = "no validation images: --val_fraction 0.1 holds some out, for both stages"
    notes = [*data.notes, of_the_set, slow_bf16(config, device)]
    if data.test is None:
        judged = "all figures are of the validation images, optimistic where these choose"
        notes.append(f"no test images with labels: {judged}")
    if config.workers and not isinstance(data.train, FileSet):
        notes.append(f"--workers {config.workers} has no use here, {data.name} lives on the device")
    if config.unused:
        notes.append(f"{', '.join(f'--{name}' for name in config.unused)}: no use in this script")
    if config.protocol == "published" and "select" in config and config.select == "test":
        notes.append("--protocol published: the test images choose the epoch, its numbers are optimistic")
    for note in filter(None, notes):
        run.log(f"  note: {note}")
    run.log(f"model {config.network}: {trainable:,} trainable of {total:,} parameters")
    if "batch_size" in config:
        run.log(f"steps an epoch: {-(-len(data.train) // config.batch_size)}")
    where = f"device {found['device']}, {found['threads']} CPU threads, torch {found['torch']}"
    run.log(where if world.size == 1 else f"{world.size} processes, each on {where}")
    record = {"config": config.as_dict(), "class_counts": data.class_counts}
    run.write_json("config.json", record | {"trainable": trainable, "environment": found})


def epoch_line(row: dict, epochs: int, seconds_left: float) -> str:
    """A row of metrics.csv for people: accuracies in percent, with the groups of what was scored."""
    parts = [f"epoch {row['epoch']}/{epochs}", f"lr {row['lr']:.3g}", f"loss {row['train_loss']:.4f}"]
    parts.append(f"train {percent(row['train_accuracy'])}")
    for part in ("val", "test"):
        if row.get(f"{part}_overall") is not None:
            groups = "/".join(percent(row[f"{part}_{group}"]) for group in GROUPS)
            parts.append(f"{part} {percent(row[f'{part}_overall'])} ({groups})")
    return ", ".join([*parts, eta(seconds_left)])


def eta(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"eta {minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def check_place(
    path: Path, config: Config, data: LongTailedData, epochs: int, method: str | None = None
) -> None:
    """Ask for --overwrite before anything is trained where `publish` would put a lesser model into a place.

    Lesser: trained on other images, or for fewer epochs by the same method.
    """
    if config.overwrite or not path.is_file():
        return
    try:
        old = checkpoint.read(path).facts
    except UserError:  # of no use to anybody
        return
    changed = compared(old, data.train)[0] if "train_digest" in old else None
    before = old.get("progress", {}).get("epoch", old.get("args", {}).get("epochs"))
    longer = type(before) is int and before > epochs and old.get("method") == method
    if changed or longer:
        what = f"other images ({changed})" if changed else f"{before} epochs, this run has {epochs}"
        way_out = "give a --ckpt_dir of its own, or --overwrite, which keeps the older one under a number"
        raise UserError(f"{path} holds a model of {what}: {way_out}")


def publish(run: Run, path: Path, content: dict, figures: dict, selected_on: str) -> dict:
    """Leave the final model where the next step looks for it; returns what the summary says of it.

    Another model that is in its place is kept beside it, under a number.
    """
    if not run.main:
        return {}
    run.place("summary.json")  # a run whose folder was taken from it publishes nothing
    content = content | {"metrics": _scores(figures), "selected_on": selected_on}
    identity, epoch = checkpoint.identity_of(content), content["epoch"]
    kept = _keep(path, identity)
    place = f"{path}, in place of an older one, kept as {kept}" if kept else path
    digest = checkpoint.save(path, content | {"identity": identity})
    run.log(f"model of epoch {epoch} (selected on {selected_on}) left at {place}")
    return {"epoch": epoch, "checkpoint": str(path), "digest": digest, "identity": identity}


def _scores(figures: dict) -> dict:
    """The figures of a report without those of each class."""
    return {name: value for name, value in figures.items() if name != "classes"}


def _keep(path: Path, identity: str) -> Path | None:
    """Give the model at `path` another name as well; None: there is none, or it is the very model."""
    if not path.is_file():
        return None
    try:
        if checkpoint.read(path).identity == identity:
            return None
    except UserError:
        pass  # it is damaged, but the user's
    for number in count(1):
        kept = path.with_suffix(f".{number}.pth")
        try:
            os.link(path.resolve(), kept)
        except FileExistsError:
            if not kept.exists() or not kept.samefile(path):  # else a run was killed behind this line
                continue
        except OSError:  # no links on this file system
            write_atomically(kept, lambda handle: handle.write(path.read_bytes()))
        return kept


def finish(
    run: Run, figures: dict, selected_on: str, facts: dict, label: str = "", part: str = "test"
) -> None:
    """Write summary.json, print the figures, and end with the result line; `part`: of what they are."""
    run.write_json("summary.json", {part: _scores(figures), "selected_on": selected_on} | facts)
    warn_of_lost(run, figures, label)
    shares = {"balanced": "balanced", "top-5": "top5", "macro F1": "macro_f1", "worst class": "worst_class"}
    shares = {title: percent(figures[name]) for title, name in shares.items()}
    shares["calibration error"] = percent(figures["calibration_error"])
    run.log(f"{PARTS[part]} {', '.join(f'{title} {share}' for title, share in shares.items())}")
    known = [name.removesuffix("_known") for name in figures if name.endswith("_known")]
    if known:
        shares = (f"{name} {percent(figures[name])} > {percent(figures[f'{name}_known'])}" for name in known)
        run.log(f"under other class shares, logits as they are > corrected: {', '.join(shares)}")
    metrics = []
    for title in ("LoMa", "RSD"):
        groups = figures[f"{title.lower()}_per_sample"]
        each = "/".join(_number(groups[group]) for group in GROUPS)
        without = f" without {groups['left_out']} classes" if groups.get("left_out") else ""
        metrics.append(f"{title} {_number(groups['all'])}{without} ({each})")
    run.log(f"{', '.join(metrics)}: per_sample, all (many/medium/few)")
    if selected_on == "test":
        run.log("note: the epoch was chosen on the test set, as in the published protocol: optimistic")
    run.result(result_line(figures, selected_on, label, part))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def warn_of_lost(run: Run, figures: dict, label: str = "") -> None:
    """Warn where images have no prediction."""
    if lost := figures.get("without_prediction"):
        run.warn(lost_images(lost, label))


def _commit() -> str | None:
    """The commit of this code, None outside a git checkout."""
    words = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
