"""Several processes on one machine, over gloo: the same results as one process alone; ends under torchrun."""

import json
import os
import re
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import evaluate
import main_stage1
import main_stage2
from tests.distributed_worker import work
from tests.file_trees import imagenet_tree
from tests.forking import forked
from tests.helpers import HANG, call, last_line, places, read_metrics, run_folder
from tests.kills import TORCHRUN, finished, start, wait_for_an_epoch
from utils.base import errors
from utils.base.distributed import ALONE, World
from utils.engine.step import Steps
from utils.packs.pack import read_pack
from utils.run import checkpoint


def torchrun(*words: object) -> tuple[int, str, str]:
    """Run two processes of one thread each: exit status, standard output, standard error."""
    return finished([*TORCHRUN, *words])


@pytest.fixture(scope="module")
def alone() -> dict[str, torch.Tensor]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield work(ALONE)
    torch.set_num_threads(threads)


def features_line(digits) -> list[str]:
    """A stage 2 on digits that saves its features; where, is the next word."""
    words = ["--dataset", "digits_lt", "--pretrained_pth", str(digits.stage1), "--finetune_epoch", "3"]
    return [*words, "--seed", "0", "--device", "cpu", "--pack_dtype", "fp32", "--save_features"]


@pytest.fixture(scope="module")
def together(digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes leave: results of whole steps and of steps in two parts, and features."""
    folder = tmp_path_factory.mktemp("together")
    words = [*features_line(digits), folder / "two", *places(folder)]
    code, _, err = forked(["tests/distributed_worker.py", folder, *words], processes=2)
    assert code == 0, err
    return folder


@pytest.mark.parametrize("accum", [1, 2])
def test_two_processes_train_and_score_as_one_does(alone, together, accum):
    paths = [together / f"accum{accum}_rank{rank}.pth" for rank in (0, 1)]
    results = [torch.load(path, weights_only=True) for path in paths]
    for result in results:
        assert result.keys() == alone.keys()
        for name, value in alone.items():
            close = {"rtol": 2e-4, "atol": 2e-5} if value.is_floating_point() else {"rtol": 0, "atol": 0}
            torch.testing.assert_close(result[name], value, **close, msg=name, equal_nan=True)
    assert all(torch.equal(results[0][name], results[1][name]) for name in alone)
    assert len(results[0]["predicted"]) == 500  # every image once, in one process or the other
    moved = sum(float(v.abs().sum()) for n, v in alone.items() if n.startswith("model."))
    assert moved > 0


def test_accumulated_parts_give_the_gradient_of_the_whole_step(alone):
    apart = work(ALONE, accum=4)
    for name, value in alone.items():
        if name.startswith("model.") and value.is_floating_point():
            torch.testing.assert_close(apart[name], value, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("images", [1, 31, 33, 100])
@pytest.mark.parametrize("accum", [1, 2])
def test_every_image_counts_once_with_the_same_weight(images, size, accum):
    batch = 48
    order = torch.randperm(images)
    counted, weights = [], torch.zeros(images)
    for rank in range(size):
        steps = Steps(images, batch, accum, World(rank, size))
        own, parts = steps.own(order).split(steps.part_size), list(steps.parts())
        assert len(own) == len(parts)
        assert sum(part.last for part in parts) == len(steps)
        for chunk, part in zip(own, parts, strict=True):
            assert len(chunk) >= min(2, steps.part_size)  # batch-norm needs two
            counted += chunk[: part.rows].tolist()
            if part.rows:
                weights[chunk[: part.rows]] += part.weight / part.rows / size
    assert sorted(counted) == list(range(images))
    for step in range(-(-images // batch)):
        chunk = order[step * batch : (step + 1) * batch]
        torch.testing.assert_close(weights[chunk], torch.full((len(chunk),), 1 / len(chunk)))


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set: let torchrun start several processes; for one, unset"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "LOCAL_RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "x", "LOCAL_RANK": "0"}, "RANK is 'x'"),
        ({"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}, "RANK is 2, WORLD_SIZE 2"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is not set"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE is '0'"),
    ],
)
def test_variables_that_torchrun_did_not_set_are_one_line(tmp_path, monkeypatch, capsys, environment, said):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(errors, "SECONDS_TO_BE_ENDED", 0)
    words = ["--dataset", "folder", "--data_dir", str(tmp_path), *places(tmp_path)]
    with pytest.raises(SystemExit) as ending:
        errors.exit_cleanly(lambda: main_stage1.main(words))
    err = capsys.readouterr().err
    assert ending.value.code == 2 and err.count("\n") == 1 and re.match(f"error.*: {said}", err), err


def test_blocks_cover_everything_once():
    for length in (0, 1, 7, 8, 9, 24_426):
        for size in (1, 2, 3, 8):
            blocks = [World(rank, size).block(length) for rank in range(size)]
            assert [i for start, stop in blocks for i in range(start, stop)] == list(range(length))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("imagenet")
    imagenet_tree(root, counts=(120, 60, 30, 15), test_per_class=80, val_per_class=5)
    return root


def line(tree: Path, root: Path) -> list[str]:
    """What the runs on the tree share: a tiny network on small crops."""
    words = ["--dataset", "imagenet_lt", "--data_dir", str(tree), "--allow_partial", "--network", "resnet8"]
    return [*words, "--image_size", "32", "--device", "cpu", "--workers", "1", *places(root)]


WORDS = ("--epochs", "12", "--batch_size", "16", "--seed", "0")


@pytest.fixture(scope="module")
def whole(tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a whole stage 1 of two processes left its model."""
    root = tmp_path_factory.mktemp("whole")
    words = ["main_stage1.py", "--cur_stage", "stage1", *WORDS, *line(tree, root)]
    code, out, err = forked(words, processes=2)
    assert code == 0, err
    assert "2 processes, each on device cpu" in out
    assert out.count("run folder") == 1 and last_line(out).startswith("test overall=")
    return root


def test_the_published_sequence_of_two_processes_equals_one_process(tree, whole, tmp_path):
    second = ["--cur_stage", "stage2", "--finetune_epoch", "2", "--seed", "0", "--save_features"]
    words = ["main_stage2.py", *second, tmp_path / "two.safetensors", *line(tree, whole)]
    code, out, err = forked(words, processes=2)
    assert code == 0, err
    two = last_line(out)
    text = call(main_stage2.main, *second, tmp_path / "one.safetensors", *line(tree, tmp_path),
                "--pretrained_pth", whole / "ckpt" / "imagenet_lt" / "resnet8_stage1.pth")  # fmt: skip
    assert last_line(text) == two
    one, other = (read_pack(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    for name in ("train", "test", "val"):
        assert torch.equal(getattr(one, f"{name}_labels"), getattr(other, f"{name}_labels"))
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-3, atol=1e-3)
    assert not list(tmp_path.rglob("*.parts"))

    arguments = ["--cur_stage", "stage2", *line(tree, whole)]
    words = ["evaluate.py", *arguments, "--predictions", tmp_path / "two.csv"]
    code, out, err = forked(words, processes=2)
    assert code == 0, err
    text = call(evaluate.main, *arguments, "--predictions", tmp_path / "one.csv")
    assert last_line(out) == last_line(text) == two
    one, other = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("one", "two"))
    assert list(one["image"]) == list(other["image"]) and len(set(one["image"])) == len(one) == 4 * 80
    assert (one["predicted"] == other["predicted"]).all()
    assert np.allclose(one["confidence"], other["confidence"], atol=1e-2)


def test_two_processes_save_the_features_that_one_saves(digits, together, tmp_path):
    """Without --views the plain ones, though every epoch of the heads has augmented views of its own."""
    call(main_stage2.main, *features_line(digits), tmp_path / "one", *places(tmp_path))
    one, two = read_pack(tmp_path / "one"), read_pack(together / "two")
    assert one.facts["train_views"] == two.facts["train_views"] == "plain"
    assert one.train.shape == two.train.shape == (1, 305, 64) and one.plain is two.plain is None
    for name in ("train", "test"):
        torch.testing.assert_close(getattr(two, name), getattr(one, name), rtol=1e-4, atol=1e-4)


def test_a_mistake_is_said_first_by_the_first_of_several_processes(tree, tmp_path):
    """The second waits before it says the same, since torchrun ends it then."""
    words = ["main_stage1.py", *line(tree, tmp_path), "--epochs", "1", "--batch_size", "15"]
    code, out, err = forked(words, processes=2)
    assert code != 0
    said = [words for words in err.splitlines() if words.startswith("error")]
    assert {words.replace("error (process 1)", "error") for words in said} == {
        "error: --batch_size 15 must be a multiple of 2 process(es) x --accum 1: it counts the images of a "
        "step, over all of them"
    }
    assert "run folder" not in out and not list(tmp_path.rglob("*.pth"))


def test_an_unreadable_image_in_one_process_is_named_and_ends_all(tree, tmp_path):
    broken = tmp_path / "data"
    shutil.copytree(tree, broken)
    victim = next((broken / "val").rglob("*.JPEG"))
    victim.write_bytes(victim.read_bytes()[:200])
    code, _, err = torchrun("main_stage1.py", *line(broken, tmp_path), "--epochs", "1", "--batch_size", "16")
    assert code != 0
    said = [words for words in err.splitlines() if words.startswith("error")]
    assert len(said) == 1 and victim.name in said[0]
    [folder] = (tmp_path / "out" / "imagenet_lt_stage1").iterdir()
    record = json.loads((folder / "config.json").read_text())  # its seed is drawn, once for both
    assert record["environment"]["processes"] == 2 and isinstance(record["config"]["seed"], int)


def test_two_processes_told_to_stop_go_on_to_the_same_bits(tree, whole, tmp_path):
    """torchrun passes a signal on, and a whole job's reaches its processes as well: it comes twice."""
    with start([*TORCHRUN, "main_stage1.py", *line(tree, tmp_path), *WORDS]) as process:
        wait_for_an_epoch(process)
        os.killpg(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=HANG)
    assert process.returncode != 0
    [said] = [words for words in out.splitlines() if words.startswith("stopped by a signal after ")]
    command = shlex.split(said.partition("go on with: ")[2])
    assert command[:4] == ["torchrun", "--nproc_per_node", "2", "main_stage1.py"], err
    [folder] = (tmp_path / "out" / "imagenet_lt_stage1").iterdir()
    assert not (folder / "summary.json").exists()
    assert len(read_metrics(folder)) < 12 and not list(tmp_path.rglob("*_stage1.pth"))

    words = ["main_stage1.py", "--resume", folder, "--data_dir", tree, *places(tmp_path)]
    code, _, err = forked(words, processes=2)
    assert code == 0, err
    ours, theirs = (
        checkpoint.read(root / "ckpt" / "imagenet_lt" / "resnet8_stage1.pth").state
        for root in (tmp_path, whole)
    )
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    unbroken = run_folder(whole, "stage1", "imagenet_lt")
    assert (folder / "metrics.csv").read_bytes() == (unbroken / "metrics.csv").read_bytes()


@pytest.mark.long
def test_where_one_of_two_processes_is_killed_torchrun_ends_the_other(tree, tmp_path):
    with start([*TORCHRUN, "main_stage1.py", *line(tree, tmp_path), *WORDS]) as process:
        wait_for_an_epoch(process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [n for n in children if b"main_stage1" in Path(f"/proc/{n}/cmdline").read_bytes()]
        assert len(workers) == 2
        os.kill(int(workers[1]), signal.SIGKILL)
        _, err = process.communicate(timeout=HANG)
    assert process.returncode != 0 and "Signal 9 (SIGKILL)" in err
    assert not any(Path(f"/proc/{n}").exists() for n in workers)
    assert not list(tmp_path.rglob("*_stage1.pth"))
