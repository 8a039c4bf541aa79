"""Files with flipped bits, cut off, or with a block that the disk has lost: is it noticed?"""

import random
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import safe_open

from tests.test_packs import tiny, with_val
from utils.base.errors import UserError
from utils.packs.pack import read_pack, write_pack
from utils.run import checkpoint

DATA = Path(__file__).resolve().parent / "data"
BLOCK = 512


def checkpoint_identity(path: Path) -> str:
    found = checkpoint.read(path)
    return checkpoint.content_digest({"model": found.state, **found.facts})


def pack_identity(path: Path) -> str:
    return read_pack(path).digest


def small_pack(folder: Path) -> Path:
    write_pack(folder / "good.pack", with_val(tiny()))
    return folder / "good.pack"


def small_checkpoint(folder: Path) -> Path:
    return DATA / "v1_stage2_marc.pth"


KINDS = {"checkpoint": (small_checkpoint, checkpoint_identity), "pack": (small_pack, pack_identity)}


def noticed(path: Path, content: bytes, identity: Callable[[Path], str], whole: str) -> bool:
    """Is the spoilt file refused by its name? Otherwise its content must be the same to the bit."""
    path.write_bytes(content)
    try:
        assert identity(path) == whole
    except UserError as error:
        assert "spoilt" in str(error) and "\n" not in str(error)
        return True
    return False


def flipped(good: bytes, at: int, draw: random.Random) -> bytes:
    """A bit is another at that place."""
    return good[:at] + bytes([good[at] ^ 1 << draw.randrange(8)]) + good[at + 1 :]


def block_lost(good: bytes, at: int, draw: random.Random) -> bytes:
    """A block from that place on is zeros."""
    return (good[:at] + bytes(BLOCK) + good[at + BLOCK :])[: len(good)]


def refused(kind: str, folder: Path, count: int, harm: Callable) -> int:
    """Harm the file at so many random places; how often it is refused. Otherwise its content is the same."""
    make, identity = KINDS[kind]
    source, draw = make(folder), random.Random(1)
    good, whole = source.read_bytes(), identity(source)
    spoilt = (harm(good, draw.randrange(len(good)), draw) for _ in range(count))
    return sum(noticed(folder / "spoilt", content, identity, whole) for content in spoilt)


def unnoticed(folder: Path, count: int, harm: Callable) -> int:
    """The control: how often torch alone reads a harmed file as other weights and says nothing."""
    good, draw, found = (DATA / "v1_stage1.pth").read_bytes(), random.Random(1), 0
    state = checkpoint.read(DATA / "v1_stage1.pth").state
    for _ in range(count):
        at = draw.randrange(len(good) // 2, len(good) * 3 // 4)  # among the numbers
        (folder / "spoilt").write_bytes(harm(good, at, draw))
        with suppress(RuntimeError):  # the place was in the header of a record
            read = torch.load(folder / "spoilt", weights_only=True)["model"]
            found += any(not torch.equal(read[name], state[name]) for name in state)
    return found


def boundaries(path: Path) -> list[int]:
    """Where records of the zip or tensors of the safetensors file begin and end."""
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            starts = [entry.header_offset for entry in file.infolist()]
            starts += [
                entry.header_offset + 30 + len(entry.filename) + entry.file_size for entry in file.infolist()
            ]
            return sorted({*starts, file.start_dir, size - 22, size - 1} - {size})
    head = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    with safe_open(path, framework="pt") as file:
        tensors = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118
    sizes = [torch.Size(one.get_shape()).numel() * {"F32": 4, "I32": 4}[one.get_dtype()] for one in tensors]
    return [0, 8, head, *(head + sum(sizes[:count]) for count in range(1, len(sizes))), size - 1]


def cuts(kind: str, folder: Path, count: int) -> int:
    """Cut the file at every record and at so many random lengths; how many cuts, each of them refused."""
    make, identity = KINDS[kind]
    source, draw = make(folder), random.Random(2)
    good, whole = source.read_bytes(), identity(source)
    lengths = boundaries(source) + [draw.randrange(len(good)) for _ in range(count)]
    assert all(noticed(folder / "spoilt", good[:length], identity, whole) for length in lengths)
    return len(lengths)
