"""What there is of a cell of a grid: its stage 1, the stage 2 of each selection; nothing is trained here."""

import csv
import io
import json
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.fetch import scratch_folder
from utils.base.digest import file_digest
from utils.base.errors import UserError, reason
from utils.base.files import open_regular, read_json, read_text
from utils.packs.pack import Pack, read_pack
from utils.plots.tables import SCORES, STDS
from utils.reproduce.grid import Cell
from utils.run.checkpoint import RELEASED, Checkpoint, published_path, read
from utils.run.facts import compared
from utils.run.folder import stage_folder
from utils.settings.checks import check_against
from utils.settings.config import Config, resolve
from utils.settings.data import load_data
from utils.settings.parse import parse
from utils.settings.presets import made_alike
from utils.settings.table import FREE, STAGE1, STAGE2

RUNNING = RELEASED.parent / "running"
# what may differ between a run and the grid that asks for it: how it runs; weights to start from may not
_FREE = {*FREE, "cur_stage", "cuda_graphs", "eval_every"} - {"pretrained"}
_DIGESTS = ("digest", "train_digest", "table_digest")
_COLUMNS = ("method", "setting", "n", "failed", *SCORES, *STDS)
_ROUNDING = 1e-9
_AGAIN = "move it away, and the next run of the grid makes it again"
_STAMP = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d+)?")


@dataclass(frozen=True)
class Stage1:
    """The model or pack of a cell's stage 1; its run folder (None: released, a pack), a name, a digest."""

    model: Checkpoint | Pack
    folder: Path | None
    source: str

    @property
    def digest(self) -> str:
        """Of the checkpoint, or of that which the pack was made with; where it knows none, its own."""
        return self.model.identity or self.model.digest


@dataclass(frozen=True)
class Stage2:
    """A finished stage 2: its folder, config.json and summary.json, the rows of table.csv as text."""

    folder: Path
    record: dict
    summary: dict
    rows: list[dict[str, str]]


class CellRuns:
    """The folders of a cell below `out`/reproduce, and what is in them."""

    def __init__(self, cell: Cell, out: Path) -> None:
        self.cell, self.place = cell, out / "reproduce" / cell.name

    def hours(self, label: str) -> str:
        """How long the commands of a stage took, all together, where the runner has seen them; in hours."""
        try:
            seconds = [float(word) for word in read_text(self.place / f"{label}.seconds").split()]
        except (OSError, ValueError):
            return ""
        return f"{sum(seconds) / 3600:.4f}"

    def stage1_config(self) -> Config:
        return resolve(STAGE1, parse(STAGE1, "", self.stage1_words()))

    def stage1_words(self) -> list[str]:
        """The whole command line of main_stage1.py but for `--resume`."""
        places = ["--out", str(self.place), "--ckpt_dir", str(self.place / "checkpoints")]
        return [*self.cell.stage1_words(), *places]

    def stage2_words(self, select: str, stage1: Stage1) -> list[str]:
        """The whole command line of main_stage2.py but for `--resume`."""
        place = self.place / self.cell.label(select)
        places = ["--out", str(place), "--ckpt_dir", str(place / "checkpoints")]
        source = [] if self.cell.features else ["--pretrained_pth", str(stage1.model.path)]
        return [*self.cell.stage2_words(select), *source, *places]

    def stage1(self, same_data: Callable[[Checkpoint, Config], bool]) -> Stage1 | None:
        """The finished stage 1: the cell's pack, its own, else a released one like it; None: there is none.

        `same_data` says whether a released model was trained on the images of the configuration.

        Raises:
            UserError: the folder is not what a run leaves, or the pack cannot be read, or is not of the
                cell's data set, network and ratio; names the file.
        """
        if self.cell.features:
            pack = read_pack(Path(self.cell.features))
            if self.cell.known is None:
                config = self.cell.config()
                said = {name: getattr(config, name) for name in ("dataset", "network", "imb_ratio")}
                check_against(pack.known, said)
            return Stage1(pack, None, self.cell.features)
        config = self.stage1_config()
        folder = _finished(config)
        if folder is not None:
            path = _published(config)
            if not path.is_file():
                return None
            summary, model = _read_json(folder / "summary.json", ("digest",)), read(path)
            if model.digest != summary["digest"] or not _of_configuration(model, config):
                raise UserError(f"{path} is not the model that {folder}/summary.json tells of: {_AGAIN}")
            return Stage1(
                model, folder, f"checkpoints/running/{folder.name}" if _adopted(folder) else "trained"
            )
        for path in sorted(RELEASED.rglob("*_stage1.pth")):
            model = read(path)
            if _of_configuration(model, config) and same_data(model, config):
                return Stage1(model, None, f"checkpoints/{path.relative_to(RELEASED.parent)}")
        return None

    def adopt(self, roots: Iterable[Path] = (RUNNING,)) -> Path | None:
        """The folder with which stage 1 goes on where `--resume auto` would not find it; None: there is none.

        A run of the cell's configuration below `roots` is copied in, whether it is at its end or not.
        """
        config = self.stage1_config()
        folder = _finished(config)
        if folder is not None:  # its model is gone, a resume at the end leaves it again
            return folder
        parent = stage_folder(config, "stage1")
        if there := sorted(parent.glob("*")):
            return next((place for place in there if _adopted(place)), None)
        for path in sorted(path for root in roots for path in root.glob("*/last.pth")):
            model = read(path)
            if _of_configuration(model, config) and same_training_images(model, config):
                parent.mkdir(parents=True, exist_ok=True)
                with scratch_folder(self.place) as scratch:  # what is cut off must not be taken for a run
                    copied = shutil.copytree(path.parent, scratch / "run")
                    return copied.rename(parent / path.parent.name)
        return None

    def stage2(self, select: str, stage1: Stage1) -> Stage2 | None:
        """The finished stage 2 of a selection; None: it is missing or unfinished.

        Raises:
            UserError: its files do not agree, or it has another stage 1; names the folder.
        """
        given = parse(STAGE2, "", self.stage2_words(select, stage1))
        folder = _finished(resolve(STAGE2, given, stage1.model.known))
        if folder is None:
            return None
        summary = _read_json(folder / "summary.json", ("test", "selected_on", "method", "setting", *_DIGESTS))
        # features that a user brought know of no stage 1, the run names their pack in its place
        origin = summary.get("stage1_digest") or summary["train_digest"].removeprefix("pack ")
        if origin != stage1.digest:
            raise UserError(
                f"{folder} is a stage 2 of another stage 1 ({origin!s:.12}) than that of "
                f"its cell ({stage1.digest:.12}, {stage1.model.path}): {_AGAIN}"
            )
        try:
            changed = file_digest(folder / "table.csv") != summary["table_digest"]
        except OSError as error:
            raise UserError(f"{folder}/table.csv cannot be read: {error.strerror}") from error
        if changed:
            raise UserError(f"{folder}/table.csv was changed after the run: {_AGAIN}")
        rows = read_rows(folder / "table.csv", _COLUMNS)
        try:
            _check_summary(folder, summary, rows)
        except (ValueError, ArithmeticError) as error:
            raise UserError(f"{folder}/table.csv has a figure that is none: {error}: {_AGAIN}") from error
        return Stage2(folder, _read_json(folder / "config.json", ("config", "environment")), summary, rows)


def same_training_images(model: Checkpoint, config: Config) -> bool:
    """Was the model trained on the very images of the configuration? Reads the data."""
    return compared(model.facts, load_data(config).train)[0] is None


def epochs_done(parent: Path) -> int:
    """How many epochs the newest run below `parent` has behind it, by its metrics.csv."""
    found = _newest_first(parent.glob("*/metrics.csv"))
    return max(0, len(read_text(found[0]).splitlines()) - 1) if found else 0


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    """The regular files among them: a link to nothing has no time, and a pipe nothing to say."""
    files = [path for path in paths if path.is_file()]
    return sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def read_rows(path: Path, needed: Sequence[str] = ()) -> list[dict[str, str]]:
    """A csv file as rows of text, an empty text where there is nothing.

    Raises:
        UserError: it cannot be read, is ragged, or lacks a column that is `needed`.
    """
    try:
        with open_regular(path) as handle:
            table = csv.DictReader(io.StringIO(handle.read().decode("utf-8-sig")), strict=True)
            rows = list(table)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    if missing := [name for name in needed if name not in (table.fieldnames or [])]:
        raise UserError(f"{path} has no column {missing[0]}")
    if ragged := [number for number, row in enumerate(rows, 2) if None in row or None in row.values()]:
        raise UserError(f"{path}, line {ragged[0]}, has more or fewer cells than the header")
    return rows


def _finished(config: Config) -> Path | None:
    """The newest run folder of a configuration that has its summary.json; None: there is none."""
    wanted = _computed(config)
    found = stage_folder(config, config.cur_stage).glob("*/summary.json")
    for summary in _newest_first(found):
        made = _read_json(summary.parent / "config.json", ("config",))["config"]
        if made_alike(made, wanted):
            return summary.parent
    return None


def _computed(config: Config) -> dict:
    """What a configuration computes, as JSON holds it."""
    return {
        name: value for name, value in json.loads(json.dumps(config.as_dict())).items() if name not in _FREE
    }


def _of_configuration(model: Checkpoint, config: Config) -> bool:
    """Is it a stage 1 of this configuration?"""
    facts = model.facts
    same = made_alike(facts.get("args", {}), _computed(config))
    return same and facts.get("stage") == "stage1" and {"train_digest", "environment"} <= facts.keys()


def _published(config: Config) -> Path:
    return published_path(config, "stage1", config.network)


def _adopted(folder: Path) -> bool:
    """Runs of the scripts' own are named by the time at which they began."""
    return folder.is_dir() and not _STAMP.fullmatch(folder.name)


def _read_json(path: Path, needed: Sequence[str]) -> dict:
    try:
        content = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {reason(error)}; {_AGAIN}") from error
    kinds = {"test": dict, "config": dict, "environment": dict}
    found = content if isinstance(content, dict) else {}
    missing = [name for name in needed if not isinstance(found.get(name), kinds.get(name, str))]
    if missing:
        raise UserError(f"{path} has no {missing[0]}: {_AGAIN}")
    return content


def _check_summary(folder: Path, summary: dict, rows: list[dict[str, str]]) -> None:
    """The head of summary.json is one of the seeds over which table.csv has mean and deviation.

    None of n values is further from their mean than (n - 1) / √n deviations.
    """
    head = (summary["method"], summary["setting"])
    row = next((row for row in rows if (row["method"], row["setting"]) == head), None)
    if row is None:
        raise UserError(f"{folder}/summary.json tells of {head[0]}, which table.csv has not: {_AGAIN}")
    for name in SCORES:
        figure, mean, n = summary["test"].get(name), row[name], int(row["n"])
        if figure is None and not mean:
            continue
        reach = float(row[f"{name}_std"] or 0) * (n - 1) / n**0.5
        if type(figure) is not float or not mean or abs(figure - float(mean)) > reach + _ROUNDING:
            raise UserError(
                f"{folder}: {name} of {head[0]} is {figure} in summary.json, {mean} in table.csv: {_AGAIN}"
            )
