"""Synthetic CIFAR folders of the official layout, as Python 2 pickled them."""

import io
import pickle
import tarfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from struct import pack

import numpy as np
import pytest
from torchvision import datasets as official

ROW = 3072


@dataclass(frozen=True)
class Layout:
    """Names of one CIFAR: its folder, its files, and the keys in them."""

    folder: str
    num_classes: int
    train: tuple[str, ...]
    test: str
    meta: str
    label_key: str
    names_key: str


CIFAR100 = Layout("cifar-100-python", 100, ("train",), "test", "meta", "fine_labels", "fine_label_names")
CIFAR10 = Layout(
    "cifar-10-batches-py",
    10,
    tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test_batch",
    "batches.meta",
    "labels",
    "label_names",
)


@dataclass(frozen=True)
class FullCifar:
    """A written folder and the arrays that it holds: images uint8 [N, 3072], labels int64 [N]."""

    root: Path
    folder: Path
    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    names: list[str]


class _Python2Pickler(pickle._Pickler):
    """Protocol 2 as Python 2 wrote it: text and bytes alike as byte strings, NumPy under `numpy.core`."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_string(self, obj: str | bytes) -> None:
        raw = obj.encode() if isinstance(obj, str) else obj
        self.write((b"U" + pack("<B", len(raw)) if len(raw) < 256 else b"T" + pack("<i", len(raw))) + raw)

    def save_named(self, obj: object) -> None:
        module = obj.__module__.replace("numpy._core", "numpy.core")
        self.write(f"c{module}\n{obj.__qualname__}\n".encode())

    dispatch[str] = dispatch[bytes] = save_string
    dispatch[type] = dispatch[type(len)] = dispatch[type(pack)] = save_named


def python2_pickle(content: object) -> bytes:
    """`content` as the official files hold it; loads with encoding="latin1"."""
    out = io.BytesIO()
    _Python2Pickler(out, protocol=2).dump(content)
    return out.getvalue()


def names_of(layout: Layout) -> dict:
    return {layout.names_key: [f"name {k}" for k in range(layout.num_classes)]}


def small_part(layout: Layout, size: int = 20) -> dict:
    """The content of a file that is well-formed but has far too few images."""
    pixels = np.random.default_rng(size).integers(1, 256, (size, ROW), dtype=np.uint8)
    return {"data": pixels, layout.label_key: [i % layout.num_classes for i in range(size)]}


def write_small(root: Path, layout: Layout = CIFAR100, **replaced: object) -> Path:
    """A folder of small well-formed files, some `replaced` by other content or bytes, or left out (None)."""
    folder = root / layout.folder
    folder.mkdir(parents=True)
    content = {part: small_part(layout) for part in (*layout.train, layout.test)}
    for name, value in (content | {layout.meta: names_of(layout)} | replaced).items():
        if value is not None:
            (folder / name).write_bytes(value if isinstance(value, bytes) else python2_pickle(value))
    return folder


def write_cifar(root: Path, layout: Layout) -> FullCifar:
    """The full size: 50,000 and 10,000 random images, classes in mixed order."""
    generator = np.random.default_rng(layout.num_classes)
    pixels = np.frombuffer(generator.bytes(60_000 * ROW), dtype=np.uint8).reshape(60_000, ROW)
    images, test_images = pixels[:50_000], pixels[50_000:]
    labels = generator.permutation(np.arange(50_000) % layout.num_classes)
    test_labels = generator.permutation(np.arange(10_000) % layout.num_classes)
    folder = root / layout.folder
    folder.mkdir()
    size = 50_000 // len(layout.train)
    for i, part in enumerate(layout.train):
        chosen = slice(i * size, (i + 1) * size)
        _write(folder / part, f"training batch {i + 1}", images[chosen], labels[chosen], layout)
    _write(folder / layout.test, "testing batch 1 of 1", test_images, test_labels, layout)
    names = names_of(layout)
    (folder / layout.meta).write_bytes(python2_pickle(names))
    return FullCifar(root, folder, images, labels, test_images, test_labels, names[layout.names_key])


def _write(path: Path, title: str, images: np.ndarray, labels: np.ndarray, layout: Layout) -> None:
    content = {"batch_label": title, layout.label_key: labels.tolist(), "data": images}
    content["filenames"] = [f"{label}_s_{i:06}.png" for i, label in enumerate(labels)]
    if layout is CIFAR100:
        content["coarse_labels"] = (labels // 5).tolist()
    path.write_bytes(python2_pickle(content))


def archive_of(folder: Path, target: Path) -> Path:
    """A tar.gz of the folder, stored without compressing since the pixels are random."""
    with tarfile.open(target, "w:gz", compresslevel=0) as archive:
        archive.add(folder, arcname=folder.name)
    return target


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        """Say nothing on standard error."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A web server on this machine for the files of `folder`; gives its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def forget_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make requests to this machine go there directly, whatever proxies the environment names."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers earlier proxies


def publish_as_cifar100(monkeypatch: pytest.MonkeyPatch, url: str, md5: str) -> None:
    """Point torchvision's CIFAR100 at another archive; nothing else of the download is changed."""
    monkeypatch.setattr(official.CIFAR100, "url", url)
    monkeypatch.setattr(official.CIFAR100, "filename", url.rsplit("/", 1)[1])
    monkeypatch.setattr(official.CIFAR100, "tgz_md5", md5)
