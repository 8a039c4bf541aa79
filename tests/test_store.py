"""Features on disk: blocks, going on after a stop, damage, refusals."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from utils.base.distributed import ALONE
from utils.base.errors import UserError
from utils.features.store import BLOCK, FeatureStore

IMAGES, WIDTH = 2 * BLOCK + 50, 3
ORIGIN = {"backbone": "abc", "seed": 0}


def value(view: int, start: int, stop: int) -> Tensor:
    return (torch.arange(start, stop)[:, None] / 8 + view).expand(-1, WIDTH)


class Extractor:
    """Gives known features, and remembers which images it was asked for."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.asked, self.given, self.stop_after = [], 0, stop_after

    def __call__(self, views: tuple[int, int], start: int, stop: int) -> Iterator[Tensor]:
        self.asked.append((views, start, stop))
        for first in range(start, stop, BLOCK):
            if self.given == self.stop_after:
                raise KeyboardInterrupt
            self.given += 1
            last = min(first + BLOCK, stop)
            yield torch.stack([value(view, first, last) for view in range(*views)])


def unstamped(start: int, stop: int) -> bytes:
    return b""


def fill(folder: Path, extract: Extractor, name: str = "train", **origin: object) -> Tensor:
    store = FeatureStore(folder, ORIGIN | origin, torch.float16, ALONE)
    return store.fill(name, (2, IMAGES, WIDTH), [(0, 1), (1, 2)], extract, unstamped)


def whole() -> Tensor:
    return torch.stack([value(view, 0, IMAGES) for view in (0, 1)]).half()


def test_every_view_of_every_image_is_extracted_once_in_one_pass_a_view(tmp_path):
    extract = Extractor()
    features = fill(tmp_path, extract)
    assert torch.equal(features, whole())
    assert extract.asked == [((0, 1), 0, IMAGES), ((1, 2), 0, IMAGES)]


def test_views_that_come_together_are_extracted_together(tmp_path):
    extract = Extractor()
    store = FeatureStore(tmp_path, ORIGIN, torch.float32, ALONE)
    features = store.fill("test", (2, IMAGES, WIDTH), [(0, 2)], extract, unstamped)
    assert torch.equal(features.half(), whole()) and features.dtype == torch.float32
    assert extract.asked == [((0, 2), 0, IMAGES)]


@pytest.mark.parametrize("blocks", [0, 1, 3, 5])
def test_a_stopped_extraction_goes_on_where_it_was(tmp_path, blocks):
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, Extractor(stop_after=blocks))
    again = Extractor()
    assert torch.equal(fill(tmp_path, again), whole())
    assert again.given == 6 - blocks
    nothing = Extractor()
    assert torch.equal(fill(tmp_path, nothing), whole()) and nothing.given == 0


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "asked"),
    [
        (lambda at: flip(at / "train.bin", (BLOCK + 7) * WIDTH * 2), [((0, 1), BLOCK, 2 * BLOCK)]),
        (lambda at: flip(at / "train.done", 0), [((0, 1), 0, BLOCK)]),
        (lambda at: os.truncate(at / "train.bin", 100), [((0, 1), 0, IMAGES), ((1, 2), 0, IMAGES)]),
    ],
    ids=["a bit", "a digest", "the size"],
)
def test_a_damaged_block_is_extracted_again_and_no_other(tmp_path, spoil, asked):
    fill(tmp_path, Extractor())
    spoil(tmp_path)
    again = Extractor()
    assert torch.equal(fill(tmp_path, again), whole()) and again.asked == asked


def test_a_pipe_or_a_spoilt_note_in_the_folder_ends_in_one_line(tmp_path):
    fill(tmp_path, Extractor())
    done, note = tmp_path / "train.done", tmp_path / "identity.json"
    done.unlink()
    os.mkfifo(done)
    with pytest.raises(UserError, match=rf"{done} needs .*No such device"):
        fill(tmp_path, Extractor())
    flip(note, 0)
    with pytest.raises(UserError, match="holds features of another backbone"):
        fill(tmp_path, Extractor())
    note.unlink()
    os.mkfifo(note)
    with pytest.raises(UserError, match=f"{tmp_path} cannot be written: it is a pipe"):
        fill(tmp_path, Extractor())


def test_features_of_something_else_are_refused(tmp_path):
    fill(tmp_path, Extractor())
    with pytest.raises(UserError, match="holds features of another backbone"):
        fill(tmp_path, Extractor(), seed=1)


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (1e6, "values beyond 65504: take --pack_dtype fp32"),
        (1e-8, "features too small for float16, it would lose them: take --pack_dtype fp32"),
        (torch.nan, "values that are not finite"),
    ],
)
def test_features_that_half_precision_would_lose_are_named(tmp_path, size, reason):
    store = FeatureStore(tmp_path, ORIGIN, torch.float16, ALONE)
    features = torch.ones(1, 256, 2)
    features[0, 7] = size
    with pytest.raises(UserError, match=f"output of images 0 to 255 holds {reason}"):
        store.fill("test", (1, 300, 2), [(0, 1)], lambda *_: iter([features]), unstamped)


def test_features_of_which_half_precision_loses_next_to_nothing_are_kept(tmp_path):
    """Images that a network sees nothing in, and values far below the image's largest one."""
    features = torch.tensor([[[0.0, 0.0], [3e-8, 2.0], [1e-4, 0.0], [60_000.0, 1e-3]]])
    store = FeatureStore(tmp_path, ORIGIN, torch.float16, ALONE)
    found = store.fill("test", (1, 4, 2), [(0, 1)], lambda *_: iter([features]), unstamped)
    assert torch.equal(found, features.half())


def test_a_disk_without_room_is_said_before_anything_is_extracted(tmp_path):
    store = FeatureStore(tmp_path, ORIGIN, torch.float32, ALONE)
    extract = Extractor()
    with pytest.raises(
        UserError, match=r"needs \d+\.\d\d GiB, its disk has .* GiB free .*: take fewer --views"
    ):
        store.fill("train", (1, 2**40, 2048), [(0, 1)], extract, unstamped)
    assert extract.asked == []


def test_a_folder_of_somebody_elses_is_refused_and_stays_as_it_was(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UserError, match="is to take the features, but holds something else"):
        fill(tmp_path, Extractor())
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_what_is_removed_at_the_end_is_the_stores_own_and_nothing_beside_it(tmp_path):
    def made(folder: Path) -> FeatureStore:
        store = FeatureStore(folder, ORIGIN, torch.float16, ALONE)
        store.fill("train", (2, IMAGES, WIDTH), [(0, 1), (1, 2)], Extractor(), unstamped)
        return store

    made(tmp_path / "a").remove()
    assert not (tmp_path / "a").exists()
    store = made(tmp_path / "b")
    (tmp_path / "b" / "notes").write_text("mine")
    store.remove()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["notes"]
    store = made(tmp_path / "c")
    (tmp_path / "c" / "identity.json").write_text("{}")
    store.remove()
    assert (tmp_path / "c" / "train.bin").exists()
