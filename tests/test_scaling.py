"""How stage 2 grows: no [N, K] and no [K, K] is ever made."""

import torch

from benchmarks.heads import trained
from benchmarks.scaling import Point, representation
from tests.stage2 import LargestNewTensor
from utils.features.frozen import Representation
from utils.heads.outcome import outcome
from utils.heads.plan import plan_heads
from utils.settings.config import resolve
from utils.settings.parse import STAGE2

# K x K and N x K are larger than anything that is allowed: rows of a batch, K x D, what is scored together
K, D, N, BATCH, SCORED = 2200, 8, 4400, 64, 2**22


def run_heads(watch: LargestNewTensor, frozen: Representation) -> list[str]:
    """Every method's epoch, scores, LoMa and RSD under `watch`; the methods."""
    given = {"num_class": K, "network": "resnet32", "method": "all", "device": "cpu", "seed": 0}
    given |= {"dataset": "folder", "data_dir": ".", "finetune_epoch": 1, "batch_size": BATCH}
    config = resolve(STAGE2, given)
    # etf needs a width of K - 1 at least: its head itself is K x (K - 1)
    plans = [plan for plan in plan_heads(config)[0] if plan.method.name != "etf"]
    with watch:
        for head in trained(plans, frozen, config, ["test"]):
            outcome(head)
    return [plan.method.name for plan in plans]


def test_no_method_makes_a_buffer_of_images_by_classes_or_of_classes_by_classes(tmp_path):
    watch = LargestNewTensor()
    methods = run_heads(watch, representation(Point(classes=K, width=D, rows=N), tmp_path))
    assert {"los", "ce", "bsce", "ncm", "tau_norm", "la", "lade", "crt", "wb", "marc"} <= set(methods)
    assert watch.elements <= SCORED < min(K * K, N * K), watch.operation


def test_the_watch_sees_such_a_buffer_where_there_is_one():
    watch = LargestNewTensor()
    with watch:
        torch.randn(N, D) @ torch.randn(D, K)
    assert watch.elements == N * K and "mm" in watch.operation
