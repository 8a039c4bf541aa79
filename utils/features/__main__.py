"""Make a feature pack: from arrays of any encoder, or from images that an encoder looks at.

    python -m utils.features pack --train_x X.npy --train_y Y.npy --test_x X.npy --test_y Y.npy --out FILE
    python -m utils.features encode --network NAME --weights FILE --dataset folder --data_dir DIR --out FILE

Features are float [N, D] or, of several views, [V, N, D]; labels are integers [N] from 0, or text [N].
"""

import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.long_tail import TEST_SEED, held_out_mask, suited_shots
from utils.base.errors import UserError, exit_cleanly, say
from utils.base.files import check_output, require_file
from utils.features.brought import fit_classifier, load_array, load_floats
from utils.features.encode import encode
from utils.packs.pack import Pack, check, write_pack
from utils.run.facts import OWN
from utils.run.folder import check_writable
from utils.settings.checks import OUTPUTS, PACK_NAME, check_ranges
from utils.settings.commands import command
from utils.settings.parse import Parser

_TYPES = {"fp16": np.float16, "fp32": np.float32}
_ARRAYS = {
    "train_x": "training features",
    "train_y": "training labels",
    "test_x": "test features",
    "test_y": "test labels",
    "val_x": "validation features; the encoder must not have been trained on these images",
    "val_y": "validation labels",
    "fc_weight": "weights [K, D] of a linear classifier to start from; default: one is fitted",
    "fc_bias": "its biases [K]",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a subcommand, `pack` or `encode`."""
    kind, *words = (sys.argv[1:] if argv is None else list(argv)) or [""]
    if kind in ("-h", "--help"):
        return say(__doc__)
    if kind == "encode":
        return encode(words, _finish)
    if kind != "pack":
        there = command("utils.features", "pack", "--help")
        raise UserError(f"say what to do: pack, see `{there}`, or encode")
    asked = _parse(words)
    _finish(asked.out, _pack_of(asked), asked.fc_weight is None)


def _finish(out: Path, pack: Pack, fit: bool = True) -> None:
    """Write a pack, with a classifier fitted to its features where it has none, and say what it holds."""
    if fit:
        check(pack)
        val = None if pack.val is None else (pack.val[0], pack.val_labels)
        weight, bias, told = fit_classifier(pack.train[0], pack.train_labels, len(pack.fc_bias), val)
        say(f"stage-1 classifier: {told}")
        pack = replace(pack, fc_weight=weight, fc_bias=bias)
    digest = write_pack(out, pack)
    views, images, width = pack.train.shape
    test, val = (0 if part is None else part.shape[1] for part in (pack.test, pack.val))
    held = f"{test} test, {val} validation features"
    size = f"{width} wide, {len(pack.fc_bias)} classes, {out.stat().st_size / 2**20:.1f} MiB"
    say(f"pack {out}: {images} training ({views} view(s)), {held}, {size}, sha256 {digest[:12]}")


def _parse(argv: Sequence[str]) -> Namespace:
    parser = Parser("python -m utils.features pack", description=__doc__.splitlines()[0], allow_abbrev=False)
    for name, text in _ARRAYS.items():
        parser.add_argument(f"--{name}", type=Path, help=text, required=name.startswith("train"))
    for part, of in (("test", ""), ("val", ", of what is then left")):
        text = f"share of each class of the training rows in place of --{part}_x{of}"
        parser.add_argument(f"--{part}_fraction", type=float, help=text)
    parser.add_argument("--name", help="of the data set (default: the name of --out without its ending)")
    parser.add_argument("--class_names", type=Path, help="text file, one name a line (default: numbers)")
    parser.add_argument("--dtype", choices=_TYPES, default="fp32", help="stored type (default %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the pack to write")
    asked = parser.parse_args(argv)
    check_ranges({f"{part}_fraction": getattr(asked, f"{part}_fraction") for part in ("test", "val")})
    unlabelled, asked.test_x = (None, asked.test_x) if asked.test_y else (asked.test_x, None)
    for part in ("test", "val"):
        if getattr(asked, f"{part}_x") and getattr(asked, f"{part}_fraction"):
            raise UserError(f"give --{part}_x or --{part}_fraction, not both")
    if not (asked.test_x or asked.test_fraction or asked.val_x or asked.val_fraction):
        ways = "--test_fraction 0.2 takes some from training; without test labels --val_fraction 0.1 suffices"
        raise UserError(f"neither test nor validation features with labels: {ways}")
    for first, second in (("test_x", "test_y"), ("val_x", "val_y"), ("fc_weight", "fc_bias")):
        if (getattr(asked, first) is None) != (getattr(asked, second) is None):
            raise UserError(f"--{first} and --{second} go together: give both or neither")
    if unlabelled:
        say(f"{unlabelled} has no labels and is left out of the pack: --predict of evaluate takes it")
    asked.name = asked.out.stem if asked.name is None else asked.name
    if not re.fullmatch(PACK_NAME, asked.name):  # it becomes part of folder names
        raise UserError(f"--name {asked.name!r}: take letters, digits, dot, dash and underscore")
    check_output("out", asked.out, *OUTPUTS["save_features"])
    check_writable(asked.out.parent)
    return asked


def _pack_of(asked: Namespace) -> Pack:
    """The pack of the arrays named; its classifier is zeros where none is."""
    arrays = dict.fromkeys(("test", "test_labels", "val", "val_labels"))
    parts = [part for part in ("train", "test", "val") if getattr(asked, f"{part}_x")]
    for part in parts:
        features = load_floats(getattr(asked, f"{part}_x"), _TYPES[asked.dtype], "[N, D] or [V, N, D]")
        arrays[part] = features if features.ndim == 3 else features.unsqueeze(0)
    labels, names = _labels({part: getattr(asked, f"{part}_y") for part in parts})
    for part, found in labels.items():
        if len(found) != arrays[part].shape[1]:
            rows = f"{getattr(asked, f'{part}_x')} has {arrays[part].shape[1]} rows"
            raise UserError(f"{rows}, {getattr(asked, f'{part}_y')} {len(found)} labels: one a row is needed")
        arrays[f"{part}_labels"] = found
    if names and asked.class_names:
        raise UserError("the labels are text, which names the classes: leave --class_names out")
    num_class = 1 + int(max(found.max() for found in labels.values()))
    present = labels["train"].unique()
    if num_class < 2:
        raise UserError(f"{asked.train_y} holds one class only: at least 2 are needed")
    if len(present) < num_class:
        absent = next((k for k, label in enumerate(present.tolist()) if k != label), len(present))
        way_out = "give them as text, numpy.save(FILE, labels.astype(str)), which needs no numbers"
        raise UserError(f"labels reach {num_class - 1}, and class {absent} has no training image: {way_out}")
    _set_apart(arrays, "test", asked.test_fraction, TEST_SEED)
    counts = torch.bincount(arrays["train_labels"], minlength=num_class).tolist()
    _set_apart(arrays, "val", asked.val_fraction, 0)
    arrays["fc_weight"] = torch.zeros(num_class, arrays["train"].shape[-1])
    arrays["fc_bias"] = torch.zeros(num_class)
    if asked.fc_weight:
        arrays["fc_weight"] = load_floats(asked.fc_weight, np.float32, "[K, D]")
        arrays["fc_bias"] = load_floats(asked.fc_bias, np.float32, "[K]")
    facts = {
        "dataset": asked.name,
        "imb_ratio": None,
        "network": "features",
        "preset": OWN,
        "subset_seed": None,
        "num_class": num_class,
        "class_counts": counts,
        "shots": list(suited_shots(counts)[0]),
        "class_names": names or _class_names(asked.class_names, num_class),
        "test_fraction": asked.test_fraction,
        "val_source": "own" if asked.val_x else "heldout" if asked.val_fraction else "none",
        "val_fraction": asked.val_fraction,
        "val_clean": arrays["val"] is not None,  # the user's word
        "train_views": "plain" if len(arrays["train"]) == 1 else "augmented",
        "stage1_digest": None,
        "seed": None,
        "made_by": "python -m utils.features pack",
    }
    return Pack(**arrays, facts=facts)


def _class_names(path: Path | None, num_class: int) -> list[str]:
    if path is None:
        return [str(label) for label in range(num_class)]
    require_file(path)
    try:
        return path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--class_names {path} cannot be read: {error}") from error


def _set_apart(arrays: dict, part: str, share: float | None, seed: int) -> None:
    """Take `part` out of the training rows as a data set of images does; of several views the first."""
    if share is not None:
        labels = arrays["train_labels"]
        chosen = torch.from_numpy(held_out_mask(labels.numpy(), share, seed))
        arrays |= {part: arrays["train"][:1, chosen], f"{part}_labels": labels[chosen]}
        arrays |= {"train": arrays["train"][:, ~chosen], "train_labels": labels[~chosen]}


def _labels(paths: dict[str, Path]) -> tuple[dict[str, Tensor], list[str]]:
    """The labels of each part, int64 [N]; where they are text also the names, sorted, of which they count."""
    found = {part: load_array(path, "iuU", (1,), "integers [N] or text [N]") for part, path in paths.items()}
    names = np.unique(found["train"]) if found["train"].dtype.kind == "U" else None
    for part, path in paths.items():
        labels = found[part]
        problem = "no labels" if len(labels) == 0 else ""
        if names is not None:
            labels = labels.astype(str)
            if len(unknown := labels[~np.isin(labels, names)]):
                problem = f"the label {unknown[0]!s:.60}, which no training image has"
            labels = np.searchsorted(names, labels)
        elif labels.dtype.kind == "U":
            labels, problem = labels[:0], f"text, {paths['train']} numbers: save both as text"
        found[part] = torch.from_numpy(labels.astype(np.int64))
        if problem or found[part].min() < 0:
            raise UserError(f"{path} holds {problem or 'negative labels'}")
    return found, [] if names is None else names.tolist()


if __name__ == "__main__":
    exit_cleanly(main)
