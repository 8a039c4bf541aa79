"""Fetching missing split lists: from a server on this machine, and every way in which that can fail."""

import os
import socket
import threading
from contextlib import contextmanager

import numpy as np
import pytest

from datasets import build_data, fetch
from datasets.fetch import fetch_file
from datasets.listed import published
from datasets.listed.imagenet_places import PLACES_LT
from tests.cifar_folders import forget_proxies, serving
from tests.file_trees import edit, imagenet_tree, inat_tree, places_tree, refused, write_list

NAMES = ("Places_LT_train.txt", "Places_LT_val.txt", "Places_LT_test.txt")


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """Lists of Places-LT's totals in the server's layout; they begin with images of places_tree."""
    root = tmp_path_factory.mktemp("public")
    counts = np.full(365, 5)
    counts[0] = 4980
    share, rest = divmod(62_500 - counts.sum(), 363)
    counts[1:-1] += share
    counts[1 : 1 + rest] += 1
    first = {"train": "train/airfield/00000010.jpg", "val": "train/airfield/00005000.jpg"}
    first["test"] = "val/airfield/Places365_val_00000001.jpg"
    for part, sizes in (("train", counts), ("val", [20] * 365), ("test", [100] * 365)):
        labels = np.repeat(np.arange(365), sizes).tolist()
        entries = [(f"{part}/class{label:03}/{i}.jpg", label) for i, label in enumerate(labels)]
        write_list(root / "Places_LT" / PLACES_LT.lists[part], [(first[part], 0), *entries[1:]])
    return root


@pytest.fixture
def places(tmp_path):
    """Images without lists."""
    root = places_tree(tmp_path / "places")
    for name in NAMES:
        (root / name).unlink()
    return root


@pytest.fixture
def server(tmp_path, public, monkeypatch):
    """The folder that is served in place of the public address: a copy to be spoilt."""
    forget_proxies(monkeypatch)
    folder = tmp_path / "served"
    (folder / "Places_LT").mkdir(parents=True)
    for name in NAMES:
        os.link(public / "Places_LT" / name, folder / "Places_LT" / name)
    with serving(folder) as address:
        monkeypatch.setattr(published, "LIST_ADDRESS", address)
        yield folder / "Places_LT"


@pytest.fixture
def nobody(monkeypatch):
    """The public address is a port at which nobody listens."""
    forget_proxies(monkeypatch)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr(published, "LIST_ADDRESS", address)
    return address


def content(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def spoil(path, text: str) -> None:
    """Replace a served list; the published copy that it is linked to stays."""
    path.unlink()
    path.write_text(text)


# ---- it works ----


def test_missing_lists_are_fetched_once_and_kept_beside_the_images(places, server):
    data = build_data("places_lt", places)
    assert (len(data.train), len(data.val), len(data.test)) == (62_500, 7_300, 36_500)
    assert content(places) == sorted([*NAMES, "train", "val"])
    for name in NAMES:
        (server / name).unlink()
    assert build_data("places_lt", places).train.digest() == data.train.digest()


def test_lists_are_fetched_into_split_dir_where_one_is_given(places, server, tmp_path):
    (tmp_path / "lists").mkdir()
    build_data("places_lt", places, split_dir=tmp_path / "lists")
    assert content(tmp_path / "lists") == sorted(NAMES) and content(places) == ["train", "val"]


def test_a_list_that_is_there_is_not_fetched_again(places, server):
    mine = (server / NAMES[1]).read_text().replace("train/airfield/00005000", "train/airfield/00005001")
    (places / NAMES[1]).write_text(mine)
    assert build_data("places_lt", places).val.paths[0] == "train/airfield/00005001.jpg"
    assert (places / NAMES[1]).read_text() == mine


# ---- it fails ----


def test_without_a_network_the_refusal_names_all_lists_their_lines_and_the_folder(places, nobody):
    message = refused("places_lt", places)
    for words in (*NAMES, "62,500 lines", "7,300 lines", "36,500 lines", f"into {places}", "--split_dir"):
        assert words in message
    assert f"{nobody}/Places_LT" in message
    assert content(places) == ["train", "val"]


def test_the_refusal_names_the_lists_that_are_there_too(tmp_path, nobody):
    root = imagenet_tree(tmp_path)
    (root / "ImageNet_LT_val.txt").unlink()
    message = refused("imagenet_lt", root)
    assert message.startswith(f"no ImageNet_LT_val.txt in {root}, and fetching from ")
    assert "ImageNet_LT_train.txt (115,846 lines), ImageNet_LT_val.txt (20,000 lines)" in message


def test_inaturalist_is_offered_its_annotations_too(tmp_path, nobody):
    root = inat_tree(tmp_path)
    (root / "val2018.json").unlink()
    message = refused("inaturalist18", root)
    assert "iNaturalist18_train.txt (437,513 lines), iNaturalist18_val.txt (24,426 lines)" in message
    assert "train2018.json and val2018.json" in message
    assert content(root) == ["train2018.json", "train_val2018"]


def test_no_folder_is_made_for_a_data_dir_that_is_not_there(tmp_path, server):
    assert "is no folder" in refused("places_lt", tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


def test_a_list_that_the_server_lacks_leaves_none_of_the_others(places, server):
    (server / NAMES[2]).unlink()
    assert "404" in refused("places_lt", places)
    assert content(places) == ["train", "val"]


@pytest.mark.parametrize("text", ["<html>please log in</html>\n", "train/a.jpg 0\n", "", "../a.jpg 0\n"])
def test_an_answer_that_is_not_the_list_is_refused_and_removed(places, server, text):
    spoil(server / NAMES[0], text)
    assert "something else than the list of 62,500 lines" in refused("places_lt", places)
    assert content(places) == ["train", "val"]


def test_a_list_that_lacks_a_line_is_refused_and_removed(places, server):
    whole = (server / NAMES[1]).read_text()
    spoil(server / NAMES[1], whole[: whole.rindex("\n", 0, -1) + 1])
    assert "something else than the list of 7,300 lines" in refused("places_lt", places)
    assert content(places) == ["train", "val"]


def test_a_list_with_a_bad_line_more_is_refused_and_removed(places, server):
    spoil(server / NAMES[1], (server / NAMES[1]).read_text() + "and so on\n")
    assert "something else than the list of 7,300 lines" in refused("places_lt", places)
    assert content(places) == ["train", "val"]


def test_a_fetched_list_is_checked_like_any_other(places, server):
    text = (server / NAMES[1]).read_text()
    spoil(server / NAMES[1], text)
    edit(server / NAMES[1], "train/airfield/00005000.jpg", "train/airfield/00000010.jpg")
    assert "is in both" in refused("places_lt", places)


@contextmanager
def answering(answer: bytes):
    """A server that gives this answer once, whatever it is asked; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            thread.join()


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n", b"<html>please log in</html>\r\n"])
def test_a_server_that_does_not_speak_http_is_a_failed_fetch(places, monkeypatch, answer):
    forget_proxies(monkeypatch)
    with answering(answer) as address:
        monkeypatch.setattr(published, "LIST_ADDRESS", address)
        message = refused("places_lt", places)
    assert f"fetching from {address}/Places_LT failed (" in message
    assert content(places) == ["train", "val"]


def test_an_answer_that_ends_early_is_a_failed_fetch(tmp_path, monkeypatch):
    forget_proxies(monkeypatch)
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ntrain/a.jpg 0\n"
    with answering(half) as address, pytest.raises(OSError, match="ends 86 bytes early"):
        fetch_file(f"{address}/list.txt", tmp_path / "copy.txt")


def test_an_answer_without_end_is_a_failed_fetch(tmp_path, monkeypatch):
    forget_proxies(monkeypatch)
    monkeypatch.setattr(fetch, "MAX_FILE_BYTES", 10)
    whole = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 11
    with answering(whole) as address, pytest.raises(OSError, match="answers with more than"):
        fetch_file(f"{address}/list.txt", tmp_path / "copy.txt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_a_failed_fetch(places, server):
    places.chmod(0o500)
    assert "Permission denied" in refused("places_lt", places)
