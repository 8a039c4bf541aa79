"""`--protocol published`: both stages as the public code behaves, held against a loop as plain as its own."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import main_stage1
import main_stage2
from datasets import build_data
from datasets.images.on_disk import open_images
from models import build_model
from tests.helpers import call, last_line, places, run_evaluate, run_folder
from utils.base.seeding import epoch_order
from utils.features.views import FIRST_VIEW
from utils.run import checkpoint

PUBLISHED = ("--dataset", "digits_lt", "--seed", "0", "--protocol", "published", "--quiet")
SHORT = ("--epochs", "3", "--finetune_epoch", "3", "--finetune_lr", "0.05")


def left(root: Path, stage: str) -> dict[str, torch.Tensor]:
    return checkpoint.read(root / "ckpt" / "digits_lt" / "IR=50" / f"resnet8_{stage}.pth").state


def loop(model, images, rate, epochs, decay, label_smooth, learned, first_view):
    """Train in training mode with a cosine a epoch, keep the weights of the epoch that is best on test."""
    optimizer = torch.optim.SGD(learned, lr=rate, momentum=0.9, weight_decay=decay)
    best, kept = -1.0, None
    for epoch in range(epochs):
        model.train()
        warm = first_view == 0 and epoch < 2  # the digits' preset of stage 1 has two epochs of warm-up
        done, whole = (epoch, epochs) if first_view else (epoch - 2, epochs - 2)
        cosine = 0.5 * rate * (1 + torch.cos(torch.tensor(torch.pi * done / whole)).item())
        optimizer.param_groups[0]["lr"] = rate * (epoch + 1) / 2 if warm else cosine
        order = epoch_order(0, epoch, len(images["train"].labels))
        for inputs, labels in images["train"].augmented(order, 64, 0, first_view + epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels, label_smoothing=label_smooth).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            hits = [model(x).argmax(1) == y for x, y in images["test"].batches(100, 0, 500)]
        accuracy = torch.cat(hits).double().mean().item()
        if accuracy > best:
            best, kept = accuracy, {name: value.clone() for name, value in model.state_dict().items()}
    return best, kept


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    lines = [
        last_line(call(main, *PUBLISHED, *SHORT, "--label_smooth", smooth, *places(root)))
        for main, smooth in ((main_stage1.main, "0.1"), (main_stage2.main, "0.9"))
    ]
    return root, lines


def test_both_stages_end_at_the_weights_of_a_loop_as_plain_as_the_public_one(both):
    root, lines = both
    data = build_data("digits_lt", "data", 50.0)
    images = {name: open_images(part, data.views, torch.device("cpu")) for name, part in data.parts.items()}
    torch.manual_seed(0)
    model = build_model("resnet8", 10, in_channels=1)
    first, kept = loop(model, images, 0.1, 3, 2e-3, 0.1, model.parameters(), 0)
    model.load_state_dict(kept)
    second, final = loop(model, images, 0.05, 3, 0.0, 0.9, model.fc.parameters(), FIRST_VIEW)
    for stage, expected in (("stage1", kept), ("stage2", final)):
        found = left(root, stage)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=f"{stage} {name}")
    for line, accuracy in zip(lines, (first, second), strict=True):
        assert f"overall={100 * accuracy:.2f} " in line and line.endswith("selected_on=test")
    assert "LabelOverSmooth" in (run_folder(root, "stage1") / "log.txt").read_text()


def test_single_switches_win_over_the_protocol(both, tmp_path):
    root, _ = both
    words = (*PUBLISHED, *SHORT, "--bn_mode", "eval", "--select", "last", *places(tmp_path))
    start = root / "ckpt" / "digits_lt" / "IR=50" / "resnet8_stage1.pth"
    assert last_line(call(main_stage2.main, *words, "--pretrained_pth", start)).endswith("selected_on=last")
    assert "optimistic" not in (run_folder(tmp_path, "stage2") / "log.txt").read_text()
    before, after = left(root, "stage1"), left(tmp_path, "stage2")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"fc.weight", "fc.bias"}


def test_one_set_of_the_public_words_serves_a_whole_run_and_says_what_has_no_use(both, tmp_path):
    root, _ = both
    public = "--batch_size 64 --epochs 3 --lr 0.1 --momentum 0.9 --wd 0.002 --nesterov --finetune_epoch 3"
    public += " --finetune_lr 0.05 --finetune_wd 0 --workers 0 --seed 0 --cur_stage stage2"
    text = run_evaluate(tmp_path, *public.split(), "--ckpt_dir", root / "ckpt")
    note = "--batch_size, --epochs, --lr, --momentum, --wd, --nesterov, --finetune_epoch, --finetune_lr, "
    assert f"note: {note}--finetune_wd, --seed: no use in this script" in text
    assert "optimistic" in text  # the file was selected on test
