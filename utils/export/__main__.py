"""Write a trained classifier for a service: plain arrays for NumPy, or the whole network as one program.

    python -m utils.export --stage2 FILE --out classifier.npz
    python -m utils.export --stage2 FILE --out classifier.pt2

Shapes: N images, S pixels of a side, D feature, K classes.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from utils.base.errors import UserError, exit_cleanly, reason, say
from utils.base.files import check_output, write_atomically
from utils.export.classifier import WORDS, Classifier, load_classifier
from utils.settings.parse import Parser, parse
from utils.settings.table import EVALUATE

TOLERANCE = 1e-5  # of the largest logit
_PROBES = 8  # random images, or features, on which what is written is compared
_BEGINNING = 1 << 12  # bytes in which an earlier output has its mark
_BATCH = {"images": {0: torch.export.Dim("batch")}}
# how a file is written, and the logits that it gives when it is read back
Made = tuple[Callable[[BinaryIO], object], Callable[[Path], np.ndarray | Tensor]]


def main(argv: Sequence[str] | None = None) -> None:
    """Write the file, if its logits are those of the network; the last line says how near they are."""
    others = f"As in evaluate.py: --{', --'.join(sorted(WORDS))}, --device."
    title = __doc__.splitlines()[0]
    parser = Parser("python -m utils.export", description=title, epilog=others, allow_abbrev=False)
    parser.add_argument("--stage2", type=Path, required=True, help="a checkpoint, or the last.pth of a run")
    parser.add_argument("--out", type=Path, required=True, help="what to write: .npz, .pt2 or .onnx")
    asked, rest = parser.parse_known_args(argv)
    out, kind = asked.out, asked.out.suffix
    if kind not in _KINDS:
        raise UserError(f"--out {out}: its ending says what is written, take {', '.join(_KINDS)}")
    make, mark = _KINDS[kind]
    check_output("out", out, mark, _BEGINNING)
    classifier = load_classifier(asked.stage2, **parse(EVALUATE, rest))
    for note in classifier.notes:
        say(f"note: {note}")
    views, draw, found = classifier.views, torch.Generator().manual_seed(0), []
    if views is None and kind != ".npz":
        way_out = "export it as .npz, for features of the encoder that made the pack"
        raise UserError(f"{asked.stage2} is of a pack and holds no backbone for a {kind}: {way_out}")
    width = classifier.network.fc.weight.shape[1]
    takes, inputs = f"features [N, {width}]", torch.randn(_PROBES, width, generator=draw)
    if views is not None:
        size, seen = views.size, f"resized to {views.resize} on the shorter side, cropped in the centre"
        inputs = torch.randint(256, (_PROBES, 3, size, size), dtype=torch.uint8, generator=draw)
        seen = f"resized to {size} x {size}" if views.augment == "pad_crop" else seen
        takes = takes if kind == ".npz" else f"uint8 images [N, 3, {size}, {size}] {seen}"
    inputs = inputs.to(classifier.device)

    def check(written: Path) -> None:
        logits = torch.as_tensor(read(written)).cpu()
        found.append(float((logits - wanted).abs().max() / wanted.abs().max()))
        if not found[0] <= TOLERANCE:
            raise UserError(f"{out} is not written: its logits deviate by {found[0]:.0e} of the largest one")

    with torch.no_grad():
        wanted = classifier(inputs).cpu()
        try:
            write, read = make(classifier, inputs)
        except UserError:
            raise
        except Exception as error:  # a user's own network can raise anything
            raise UserError(f"--out {out}: torch cannot export the network: {reason(error):.200}") from error
        write_atomically(out, write, check)
    near = f"within {found[0]:.0e} of the network's largest logit on {_PROBES} random inputs"
    say(f"{out}: {len(classifier.class_names)} classes, takes {takes.rstrip(', ')}; {near}")


def _arrays(classifier: Classifier, inputs: Tensor) -> Made:
    """weight [K, D], bias [K], class_names [K]; logits are features @ weight.T + bias."""
    head = classifier.network.fc
    if not (isinstance(head, nn.Linear) or hasattr(head, "folded")):
        way_out = "a .pt2 or .onnx holds the whole network" if classifier.views else "load it from Python"
        raise UserError(f"its head, {type(head).__name__}, is not affine in the features: {way_out}")
    weight, bias = (head.weight, head.bias) if isinstance(head, nn.Linear) else head.folded()
    arrays = {"weight": weight.cpu().numpy(), "bias": bias.cpu().numpy()}
    features = inputs
    if classifier.views is not None:
        features = classifier.seen(inputs, classifier.network.forward_features).mean(dim=0)

    def read(written: Path) -> np.ndarray:
        with np.load(written) as kept:
            return features.cpu().numpy() @ kept["weight"].T + kept["bias"]

    names = np.array(classifier.class_names)
    return lambda file: np.savez(file, **arrays, class_names=names), read


def _program(classifier: Classifier, inputs: Tensor) -> Made:
    """A program of torch.export; class_names.json lies in it."""
    classifier.to(memory_format=torch.contiguous_format)  # torch warns that it may not save others
    program = torch.export.export(classifier, (inputs,), dynamic_shapes=_BATCH)
    names = {"class_names.json": json.dumps(classifier.class_names)}

    def read(written: Path) -> Tensor:
        with open(written, "rb") as handle:  # by its name torch asks for .pt2
            return torch.export.load(handle).module()(inputs)

    return lambda file: torch.export.save(program, file, extra_files=names), read


def _onnx(classifier: Classifier, inputs: Tensor) -> Made:
    """An ONNX model; class_names stand in its metadata as JSON."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise UserError("a .onnx needs packages: pip install onnx onnxscript onnxruntime") from error
    options = {"dynamic_shapes": _BATCH, "input_names": ["images"], "verbose": False}
    program = torch.onnx.export(classifier, (inputs,), dynamo=True, **options)
    program.model.metadata_props["class_names"] = json.dumps(classifier.class_names)

    def read(written: Path) -> np.ndarray:
        session = onnxruntime.InferenceSession(written.read_bytes())
        return session.run(None, {"images": inputs.cpu().numpy()})[0]

    return lambda file: program.save(file.name), read


# ending -> how it is made, what an earlier output has in its beginning
_KINDS = {
    ".npz": (_arrays, b"weight.npy"),
    ".pt2": (_program, b"/data/weights/"),
    ".onnx": (_onnx, b"pytorch"),
}

if __name__ == "__main__":
    exit_cleanly(main)
