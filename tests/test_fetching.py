"""Fetching split lists and CIFAR: from a server on this machine, and every way in which that can fail."""

import hashlib
import os
import socket
import threading
import urllib.request
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
from torchvision.datasets import CIFAR10, CIFAR100

from datasets import build_data, fetch
from datasets.listed import published
from datasets.listed.published import PLACES_LT
from tests.cifar_folders import archive_of, forget_proxies, publish_as_cifar100, serving, write_small
from tests.file_trees import imagenet_tree, inat_tree, places_tree, published_lists, refused, write_list

NAMES = tuple(PLACES_LT.lists.values())
EMPTY = ["train", "val"]  # what stands in the folder of Places without lists
NO_HTTP = [b"", b"SSH-2.0-x\r\n", b"<html>please log in</html>\r\n"]


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """Lists of Places-LT's totals in the server's layout; they begin with images of places_tree."""
    root = tmp_path_factory.mktemp("public")
    first = {"train": "train/airfield/00000010.jpg", "val": "train/airfield/00005000.jpg"}
    first["test"] = "val/airfield/Places365_val_00000001.jpg"
    for part, entries in published_lists(PLACES_LT).items():
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
def no_network(monkeypatch) -> str:
    """Requests go to a proxy that nobody runs: refused at once, on a machine with a network too."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, address)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers earlier proxies
    return address


@contextmanager
def answering(answer: bytes):
    """A server that gives this answer once, whatever it is asked; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def content(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def replaced(path: Path, change: Callable[[str], str]) -> None:
    """Change a served list; the public copy that it is linked to stays."""
    text = path.read_text()
    path.unlink()
    path.write_text(change(text))


# ---- lists ----


def test_missing_lists_are_fetched_once_and_kept_beside_the_images(places, server):
    data = build_data("places_lt", places)
    assert (len(data.train), len(data.val), len(data.test)) == (62_500, 7_300, 36_500)
    assert content(places) == sorted([*NAMES, *EMPTY])
    for name in NAMES:
        (server / name).unlink()
    assert build_data("places_lt", places).train.digest() == data.train.digest()


def test_lists_are_fetched_into_split_dir_but_not_one_that_is_there(places, server, tmp_path):
    folder = tmp_path / "lists"
    folder.mkdir()
    mine = (server / NAMES[1]).read_text().replace("train/airfield/00005000", "train/airfield/00005001")
    (folder / NAMES[1]).write_text(mine)
    data = build_data("places_lt", places, split_dir=folder)
    assert data.val.paths[0] == "train/airfield/00005001.jpg" and (folder / NAMES[1]).read_text() == mine
    assert content(folder) == sorted(NAMES) and content(places) == EMPTY


def test_a_fetched_list_is_checked_like_any_other(places, server):
    first = "train/airfield/00005000.jpg"
    replaced(server / NAMES[1], lambda text: text.replace(first, "train/airfield/00000010.jpg"))
    assert "is in both" in refused("places_lt", places)


def test_without_a_network_the_refusal_names_all_lists_their_lines_and_the_folder(places, no_network):
    message = refused("places_lt", places)
    lines = ("62,500 lines", "7,300 lines", "36,500 lines")
    for words in (*NAMES, *lines, f"into {places}", "--split_dir", f"{published.LIST_ADDRESS}/Places_LT"):
        assert words in message
    assert content(places) == EMPTY


@pytest.mark.parametrize(
    ("name", "make", "lost", "offered"),
    [
        ("imagenet_lt", imagenet_tree, "ImageNet_LT_val.txt", "ImageNet_LT_train.txt (115,846 lines), Image"),
        ("inaturalist18", inat_tree, "val2018.json", "; or train2018.json and val2018.json out of"),
    ],
)
def test_the_refusal_names_what_else_is_needed(tmp_path, no_network, name, make, lost, offered):
    root = make(tmp_path)
    (root / lost).unlink()
    before = content(root)
    assert offered in refused(name, root)
    assert content(root) == before


def test_a_list_that_the_server_lacks_leaves_none_of_the_others(places, server):
    (server / NAMES[2]).unlink()
    assert "404" in refused("places_lt", places)
    assert content(places) == EMPTY


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "<html>please log in</html>\n",
        lambda text: "",
        lambda text: text.replace("train/", "../train/", 1),
        lambda text: text[: text.rindex("\n", 0, -1) + 1],
        lambda text: text + "and so on\n",
    ],
)
def test_an_answer_that_is_not_the_whole_list_is_refused_and_removed(places, server, change):
    replaced(server / NAMES[1], change)
    assert "something else than the list of 7,300 lines" in refused("places_lt", places)
    assert content(places) == EMPTY


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        *((answer, "") for answer in NO_HTTP),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ntrain/a.jpg 0\n", "ends 86 bytes early"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 101, "answers with more than"),
    ],
)
def test_an_answer_of_nonsense_half_or_without_end_is_a_failed_fetch(places, monkeypatch, answer, says):
    forget_proxies(monkeypatch)
    monkeypatch.setattr(fetch, "MAX_FILE_BYTES", 100)
    with answering(answer) as address:
        monkeypatch.setattr(published, "LIST_ADDRESS", address)
        message = refused("places_lt", places)
    assert f"fetching from {address}/Places_LT failed (" in message and says in message
    assert content(places) == EMPTY


# ---- CIFAR ----


@pytest.mark.parametrize(("source", "below"), [(CIFAR10, "new"), (CIFAR100, ""), (CIFAR100, "new/deeper")])
def test_without_cifar_and_network_a_refusal_says_what_to_do(tmp_path, no_network, source, below):
    (tmp_path / "notes.txt").write_text("mine")
    message = refused(f"{source.__name__.lower()}_lt", tmp_path / below)
    for words in (source.url, source.base_folder, "--data_dir", str(tmp_path / below)):
        assert words in message
    assert content(tmp_path) == ["notes.txt"]


def test_a_data_dir_that_is_a_file_is_refused(tmp_path, no_network):
    (tmp_path / "data").write_text("mine")
    assert str(tmp_path / "data") in refused("cifar100_lt", tmp_path / "data")
    assert (tmp_path / "data").read_text() == "mine"


@pytest.fixture
def offer(tmp_path, monkeypatch):
    """Publishes an archive of tmp_path as CIFAR-100, with its own checksum or another one."""
    forget_proxies(monkeypatch)
    with serving(tmp_path) as address:

        def publish(archive: Path, md5: str | None = None) -> str:
            url = f"{address}/{archive.name}"
            publish_as_cifar100(monkeypatch, url, md5 or hashlib.md5(archive.read_bytes()).hexdigest())
            return url

        yield publish


def test_a_fetched_archive_is_unpacked_and_checked_like_any_other(tmp_path, offer):
    offer(archive_of(write_small(tmp_path / "made"), tmp_path / "ours.tar.gz"))
    root = tmp_path / "fetched"
    assert f"{root}/cifar-100-python: class 0 has 1 train images instead" in refused("cifar100_lt", root)
    assert content(root) == ["cifar-100-python"]
    assert content(root / "cifar-100-python") == ["meta", "test", "train"]


@pytest.mark.parametrize("wrong", ["checksum", "content", "absent"])
def test_an_archive_of_something_else_is_refused_and_removed(tmp_path, offer, wrong):
    made = write_small(tmp_path / "made")
    made = made.rename(made.with_name("other")) if wrong == "content" else made
    archive = archive_of(made, tmp_path / "ours.tar.gz")
    url = offer(archive, "0" * 32 if wrong == "checksum" else None)
    if wrong == "absent":
        archive.unlink()
    message = refused("cifar100_lt", tmp_path / "fetched")
    assert "failed (" in message and url in message and "--data_dir" in message
    assert ("404" in message) == (wrong == "absent")
    assert not (tmp_path / "fetched").exists()


def test_of_two_first_runs_the_slower_takes_what_the_faster_has_unpacked(tmp_path):
    def settle(scratch: Path) -> list[Path]:
        for folder, name in ((scratch, "slow"), (tmp_path, "fast")):
            (folder / "set").mkdir()
            (folder / "set" / name).touch()
        return [scratch / "set"]

    fetch.fetch("http://nowhere", [], tmp_path, settle, "no set", "bring it")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["set", "set/fast"]
