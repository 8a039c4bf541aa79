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
from utils.export.classifier import Classifier, load_classifier
from utils.settings.parse import Parser, parse
from utils.settings.table import EVALUATE

TOLERANCE = 1e-5  # of the largest logit
_IMAGES = 8  # random ones, or features, on which what is written is compared
_BEGINNING = 1 << 12  # bytes in which an earlier output has its mark
Check = Callable[[np.ndarray | Tensor], None]


def main(argv: Sequence[str] | None = None) -> None:
    """Write the file, once its logits are those of the network; the last line says how near they are."""
    others = "What evaluate.py takes has its meaning here: --head, --network, --device, --no_tta and others."
    parser = Parser("python -m utils.export", description=__doc__.splitlines()[0], epilog=others)
    parser.add_argument("--stage2", type=Path, required=True, help="a checkpoint, or the last.pth of a run")
    parser.add_argument("--out", type=Path, required=True, help="what to write: .npz, .pt2 or .onnx")
    asked, rest = parser.parse_known_args(argv)
    out, kind = asked.out, asked.out.suffix
    if kind not in _KINDS:
        raise UserError(f"--out {out}: its ending says what is written, take {', '.join(_KINDS)}")
    write, mark = _KINDS[kind]
    check_output("out", out, mark, _BEGINNING)
    classifier = load_classifier(asked.stage2, **parse(EVALUATE, rest))
    if kind != ".npz" and classifier.views is None:
        way_out = "export it as .npz, for features of the encoder that made the pack"
        raise UserError(f"{asked.stage2} is of a pack and holds no backbone for a {kind}: {way_out}")
    inputs, found = _inputs(classifier).to(classifier.device), []
    with torch.no_grad():
        wanted = classifier(inputs).cpu()

    def check(logits: np.ndarray | Tensor) -> None:
        found.append(float((torch.as_tensor(logits).cpu() - wanted).abs().max() / wanted.abs().max()))
        if not found[0] <= TOLERANCE:
            raise UserError(f"{out} is not written: its logits deviate by {found[0]:.0e} of the largest one")

    with torch.no_grad():
        what = write(out, classifier, inputs, check)
    near = f"on {len(inputs)} random {'images' if classifier.views else 'features'} within {found[0]:.0e}"
    say(f"{out}: {what}, {len(classifier.class_names)} classes; {near} of the network's largest logit")


def _inputs(classifier: Classifier) -> Tensor:
    """Random images uint8 [N, 3, S, S], or features [N, D]."""
    draw, views = torch.Generator().manual_seed(0), classifier.views
    if views is None:
        return torch.randn(_IMAGES, classifier.network.fc.weight.shape[1], generator=draw)
    return torch.randint(256, (_IMAGES, 3, views.size, views.size), dtype=torch.uint8, generator=draw)


def _arrays(out: Path, classifier: Classifier, inputs: Tensor, check: Check) -> str:
    """weight [K, D], bias [K], class_names [K]; logits are features @ weight.T + bias."""
    head, network = classifier.network.fc, classifier.network
    if not (isinstance(head, nn.Linear) or hasattr(head, "folded")):
        way_out = "a .pt2 or .onnx holds the whole network" if classifier.views else "load it from Python"
        raise UserError(f"--out {out}: a {type(head).__name__} is not affine in the features: {way_out}")
    last = (head.weight, head.bias) if isinstance(head, nn.Linear) else head.folded()
    arrays = dict(zip(("weight", "bias"), (value.float().cpu().numpy() for value in last), strict=True))
    arrays["class_names"] = np.array(classifier.class_names)
    features = inputs
    if classifier.views is not None:
        features = classifier.seen(inputs, network.forward_features).mean(dim=0)

    def read(written: Path) -> None:
        with np.load(written) as kept:
            check(features.cpu().numpy() @ kept["weight"].T + kept["bias"])

    write_atomically(out, lambda handle: np.savez(handle, **arrays), read)
    return f"weight {list(last[0].shape)} and bias"


def _program(out: Path, classifier: Classifier, inputs: Tensor, check: Check) -> str:
    """A program of torch.export; class_names.json lies in it."""
    classifier.to(memory_format=torch.contiguous_format)  # torch warns that it may not save others
    try:
        program = torch.export.export(classifier, (inputs,), dynamic_shapes=_BATCH)
    except Exception as error:  # a user's own network can raise anything
        raise UserError(f"torch.export cannot take the network: {reason(error):.200}") from error
    names = {"class_names.json": json.dumps(classifier.class_names)}

    def write(handle: BinaryIO) -> None:
        torch.export.save(program, handle, extra_files=names)

    write_atomically(out, write, lambda written: check(_loaded(written)(inputs)))
    return _takes(classifier)


def _loaded(path: Path) -> nn.Module:
    with open(path, "rb") as handle:  # a name must end in .pt2
        return torch.export.load(handle).module()


def _onnx(out: Path, classifier: Classifier, inputs: Tensor, check: Check) -> str:
    """An ONNX model; class_names stand in its metadata as JSON."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise UserError(f"--out {out} needs packages: pip install onnx onnxscript onnxruntime") from error
    try:
        program = torch.onnx.export(
            classifier, (inputs,), dynamo=True, dynamic_shapes=_BATCH, input_names=["images"], verbose=False
        )
    except Exception as error:  # a user's own network can raise anything
        raise UserError(f"torch.onnx cannot take the network: {reason(error):.200}") from error
    program.model.metadata_props["class_names"] = json.dumps(classifier.class_names)

    def read(written: Path) -> None:
        session = onnxruntime.InferenceSession(written.read_bytes())
        check(session.run(None, {"images": inputs.cpu().numpy()})[0])

    write_atomically(out, lambda handle: program.save(handle.name), read)
    return _takes(classifier)


def _takes(classifier: Classifier) -> str:
    """What a program of images takes."""
    size, views = classifier.views.size, classifier.views
    cut = f"the centre of images resized to {views.resize} on the shorter side"
    seen = f"images resized to {size} x {size}" if views.augment == "pad_crop" else cut
    return f"logits of uint8 [N, 3, {size}, {size}], {seen}"


_BATCH = {"images": {0: torch.export.Dim("batch")}}
# ending -> how it is written, what an earlier output has in its beginning
_KINDS = {
    ".npz": (_arrays, b"weight.npy"),
    ".pt2": (_program, b"/data/weights/"),
    ".onnx": (_onnx, b"pytorch"),
}

if __name__ == "__main__":
    exit_cleanly(main)
