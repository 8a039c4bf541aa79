"""Fetching CIFAR: without a network, from wrong archives, from a server that answers nonsense."""

import gc
import hashlib
import socket
import threading
import urllib.request

import pytest
from torchvision import datasets as official

from tests.cifar_folders import archive_of, forget_proxies, publish_as_cifar100, refusal, serving, write_small

# Python 3.12 and 3.13 warn about the way in which torchvision unpacks
pytestmark = pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")


# ---- no network ----


@pytest.fixture
def no_network(monkeypatch):
    """Requests go to a proxy that nobody runs: refused at once, on a machine with a network too."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{closed.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers earlier proxies


@pytest.mark.parametrize("name", ["cifar100", "cifar10"])
def test_without_data_and_network_the_refusal_names_the_address_and_the_option(tmp_path, no_network, name):
    message = refusal(tmp_path, f"{name}_lt")
    source = getattr(official, name.upper())
    assert source.url in message and "--data_dir" in message and str(tmp_path) in message
    assert source.base_folder in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["new", "new/deeper"])
def test_a_failed_download_into_a_folder_that_did_not_exist_leaves_no_folder(tmp_path, no_network, below):
    assert "--data_dir" in refusal(tmp_path / below)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_download_leaves_other_files_alone(tmp_path, no_network):
    (tmp_path / "notes.txt").write_text("mine")
    refusal(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_data_dir_that_is_a_file_is_refused(tmp_path, no_network):
    (tmp_path / "data").write_text("mine")
    assert str(tmp_path / "data") in refusal(tmp_path / "data")
    assert (tmp_path / "data").read_text() == "mine"


# ---- archives, from a server on this machine ----


@pytest.fixture
def offered(tmp_path, monkeypatch):
    """Publishes an archive of tmp_path as CIFAR-100, with its own checksum or another one."""
    forget_proxies(monkeypatch)
    with serving(tmp_path) as address:

        def offer(archive, md5: str | None = None) -> str:
            url = f"{address}/{archive.name}"
            publish_as_cifar100(monkeypatch, url, md5 or hashlib.md5(archive.read_bytes()).hexdigest())
            return url

        yield offer


def test_a_fetched_set_is_checked_like_any_other(tmp_path, offered):
    offered(archive_of(write_small(tmp_path / "made"), tmp_path / "ours.tar.gz"))
    folder = tmp_path / "fetched" / "cifar-100-python"
    assert f"{folder}: class 0 has 1 train images instead of 500" in refusal(tmp_path / "fetched")


def test_an_archive_with_another_checksum_is_refused_and_removed(tmp_path, offered):
    archive = archive_of(write_small(tmp_path / "made"), tmp_path / "ours.tar.gz")
    url, root = offered(archive, md5="0" * 32), tmp_path / "fetched"
    message = refusal(root)
    assert "the download failed" in message and url in message and "--data_dir" in message
    assert not root.exists()


def test_an_archive_without_the_official_folder_is_refused_and_removed(tmp_path, offered):
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("something else")
    offered(archive_of(other, tmp_path / "ours.tar.gz"))
    assert "the download failed" in refusal(tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_an_archive_that_the_server_lacks_is_refused(tmp_path, offered):
    archive = archive_of(write_small(tmp_path / "made"), tmp_path / "ours.tar.gz")
    url = offered(archive)
    archive.unlink()
    message = refusal(tmp_path / "fetched")
    gc.collect()  # torchvision leaves the answer open; close it here, where the warning is expected
    assert url in message and "404" in message
    assert not (tmp_path / "fetched").exists()


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n", b"<html>please log in</html>\r\n"])
def test_a_server_that_does_not_speak_http_is_a_failed_download(tmp_path, monkeypatch, answer):
    forget_proxies(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/cifar.tar.gz"
        publish_as_cifar100(monkeypatch, url, "0" * 32)
        try:
            message = refusal(tmp_path / "new")
        finally:
            thread.join()
    assert url in message and "--data_dir" in message
    assert list(tmp_path.iterdir()) == []
