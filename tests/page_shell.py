"""`python` and `torchrun` as tests/test_commands.py calls them: the words of a page, made short and small.

Installed under both names in front of the others. One epoch; for CIFAR-100 a small network; for ImageNet the
small tree at IMAGENET; two processes in place of eight; arrays where the page has a `…`. A module whose
every run takes minutes to hours is asked for its list or help.
"""

import os
import sys
from pathlib import Path

SHORT = {"main_stage1.py": ["--epochs", "1"], "main_stage2.py": ["--finetune_epoch", "1"], "evaluate.py": []}
TREE = ["--allow_partial", "--network", "resnet8", "--image_size", "32", "--workers", "0"]
INSTEAD = {"utils.reproduce": ["--list"], "pytest": ["--collect-only"]}
NAMES = {"/data/imagenet": os.environ["IMAGENET"], "cuda": "cpu"}


def shortened(words: list[str]) -> list[str]:
    """The words of a command line, from the script or `-m` on."""
    script = words[1] if words[0] == "-m" else words[0]
    if script.startswith("benchmarks"):
        return [*words[:2], "--help"]
    words = [NAMES.get(word, word) for word in words if word != "--cuda_graphs"]
    words = [word if word != "…" else f"{words[i - 1][-1].upper()}.npy" for i, word in enumerate(words)]
    if script in SHORT:
        words += SHORT[script]
        if NAMES["/data/imagenet"] in words:
            words += TREE
        elif not {"--network", "--features", "--dataset"} & {*words}:
            words += ["--network", "resnet8"]
    return words + INSTEAD.get(script, [])


if __name__ == "__main__":
    words = sys.argv[1:]
    if Path(sys.argv[0]).name == "torchrun":
        assert words[0] == "--nproc_per_node"
        first = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        words = [*first, *shortened(words[2:])]
    else:
        words = shortened(words)
    os.execv(sys.executable, [sys.executable, *words])
