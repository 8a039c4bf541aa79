"""A cell of a grid: what its runs are told, and what there is of them; nothing is trained here."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models import network_label
from utils.base.digest import file_digest
from utils.base.errors import UserError, reason
from utils.base.files import read_json, read_text
from utils.metrics.percent import SCALE
from utils.packs.pack import Pack
from utils.plots.tables import read_table
from utils.run.checkpoint import RELEASED, Checkpoint, published_path, read
from utils.run.facts import compared
from utils.run.folder import stage_folder
from utils.settings.config import Config, resolve
from utils.settings.data import load_data
from utils.settings.parse import parse
from utils.settings.presets import made_alike
from utils.settings.table import FREE, STAGE1, STAGE2

# what may differ between a run and the grid that asks for it: how it runs; weights to start from may not
_FREE = {*FREE, "cur_stage", "cuda_graphs", "eval_every"} - {"pretrained"}
_DATA = ("dataset", "imb_ratio", "network")
_SUMMARY = ("digest", "train_digest", "table_digest")
_COLUMNS = ("method", "setting", "n", "failed", "overall", SCALE)
_AGAIN = "move it away, and the next run of the grid makes it again"


@dataclass(frozen=True)
class Stage1:
    """The model or pack of a cell's stage 1, and where it comes from: "trained", else the name of a file."""

    model: Checkpoint | Pack
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


@dataclass(frozen=True)
class Cell:
    """One stage 1 of one seed, or its pack, and the stage 2 of each selection; below `out`/reproduce."""

    out: Path
    data: tuple[str, ...]  # --dataset, --network, --imb_ratio, --data_dir; a pack names them itself
    seed: int
    recipe: str
    stage2_recipe: str
    methods: tuple[str, ...]
    stage2_seeds: tuple[int, ...]
    selections: tuple[str, ...]
    views: str | int
    pack: Pack | None = None

    def config(self, placed: bool = True) -> Config:
        """Stage 1 resolved, in the folders of its runs if `placed`; raises UserError for wrong words."""
        return resolve(STAGE1, parse(STAGE1, self.stage1_words() if placed else self._recipe_words()))

    def _recipe_words(self) -> list[str]:
        return [*self.data, "--seed", str(self.seed), *shlex.split(self.recipe)]

    @property
    def protocol(self) -> dict[str, str]:
        """What makes results of stage 1 comparable, as text; the selection is told apart beside it."""
        if self.pack:
            known = self.pack.known
        else:
            config = self.config(placed=False)  # the folders have names by what is found here
            known = config.as_dict() | {"dataset": config.data_name}
        facts = {name: known.get(name) for name in _DATA}
        facts["imb_ratio"] = "" if facts["imb_ratio"] is None else f"{facts['imb_ratio']:g}"
        return facts | {"recipe": self.recipe, "stage2": self.stage2_recipe, "views": str(self.views)}

    @property
    def name(self) -> str:
        """The name of its folder: no two cells of any grid share one unless they share their stage 1."""
        pack = "_pack" if self.pack else ""
        return slug(self.protocol, (*_DATA, "recipe")) + f"_seed{self.seed}{pack}"

    @property
    def place(self) -> Path:
        return self.out / "reproduce" / self.name

    def label(self, select: str) -> str:
        """The name of a stage 2 within the cell."""
        return slug({"select": select, **self.protocol}, ("select", "views", "stage2"))

    def stage1_words(self) -> list[str]:
        """The whole command line of main_stage1.py but for `--resume`."""
        return [*self._recipe_words(), *_places(self.place)]

    def stage2_words(self, select: str, stage1: Stage1 | None = None) -> list[str]:
        """The whole command line of main_stage2.py but for `--resume`; None: stage 1 has still to be made."""
        seeds = ",".join(map(str, self.stage2_seeds))
        words = ["--method", ",".join(self.methods), "--seeds", seeds, "--select", select]
        words += ["--views", str(self.views)] if isinstance(self.views, int) else []
        if self.pack:
            words += ["--features", str(self.pack.path)]
        elif stage1:
            words += ["--pretrained_pth", str(stage1.model.path)]
        places = _places(self.place / self.label(select))
        return [*self.data, *words, *shlex.split(self.stage2_recipe), *places]

    def hours(self, label: str) -> str:
        """How long the commands of a stage took, all together, where the runner has seen them; in hours."""
        try:
            seconds = [float(word) for word in read_text(self.place / f"{label}.seconds").split()]
        except (OSError, ValueError):
            return ""
        return f"{sum(seconds) / 3600:.4f}"

    def finished_stage1(self) -> Path | None:
        """The run folder of a stage 1 at its end: a resume leaves its model again where that is gone."""
        return _finished(self.config())

    def stage1(self, look: bool = False) -> Stage1 | None:
        """The finished stage 1: the cell's pack, its own, else a released one like it; None: there is none.

        `look`: at the images too, which must be those that a released model was trained on.
        """
        if self.pack:
            path, root = self.pack.path, RELEASED.parent.parent
            return Stage1(self.pack, str(path.relative_to(root) if path.is_relative_to(root) else path))
        config = self.config()
        folder = _finished(config)
        if folder is not None:
            path = published_path(config, "stage1", config.network)
            if not path.is_file():
                return None
            summary, model = _read_json(folder / "summary.json", ("digest",)), read(path)
            if model.digest != summary["digest"] or not _of_configuration(model, config):
                raise UserError(f"{path} is not the model that {folder}/summary.json tells of: {_AGAIN}")
            return Stage1(model, "trained")
        for path in sorted(RELEASED.rglob(f"{network_label(config.network)}_stage1.pth")):
            model = read(path)
            alike = _of_configuration(model, config)
            if alike and not (look and compared(model.facts, load_data(config).train)[0]):
                return Stage1(model, f"checkpoints/{path.relative_to(RELEASED.parent)}")
        return None

    def found(self) -> tuple[Stage1 | None, dict[str, Stage2 | None]]:
        """What there is: stage 1, and the stage 2 of each selection; no images are read."""
        stage1 = self.stage1()
        return stage1, {s: self.stage2(s, stage1) if stage1 else None for s in self.selections}

    def stage2(self, select: str, stage1: Stage1) -> Stage2 | None:
        """The finished stage 2 of a selection; None: it is missing or unfinished."""
        words = parse(STAGE2, self.stage2_words(select, stage1))
        folder = _finished(resolve(STAGE2, words, stage1.model.known))
        if folder is None:
            return None
        summary = _read_json(folder / "summary.json", _SUMMARY)
        if "test" not in summary:
            raise UserError(f"{folder} tells of validation images: a grid needs test images with labels")
        # features that a user brought know of no stage 1, the run names their pack in its place
        origin = summary.get("stage1_digest") or summary["train_digest"].removeprefix("pack ")
        if origin != stage1.digest:
            its = f"({origin!s:.12}) than that of its cell ({stage1.digest:.12}, {stage1.model.path})"
            raise UserError(f"{folder} is a stage 2 of another stage 1 {its}: {_AGAIN}")
        rows = read_rows(folder / "table.csv", _COLUMNS)
        if file_digest(folder / "table.csv") != summary["table_digest"]:
            raise UserError(f"{folder}/table.csv was changed after the run: {_AGAIN}")
        return Stage2(folder, _read_json(folder / "config.json", ("config", "environment")), summary, rows)


def slug(facts: dict[str, str], names: Sequence[str]) -> str:
    """Values as one name of a file; what a file's name should not hold becomes a dash."""
    ratio, network = facts.get("imb_ratio"), network_label(facts.get("network") or "")
    shown = facts | {"imb_ratio": f"IR={ratio}" if ratio else "", "network": network}
    words = [re.sub(r"[^\w.=]+", "-", shown[name]).strip("-") for name in names]
    return "_".join(filter(None, words))


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """A csv file as rows of text, an empty text where there is nothing; raises as `read_table`."""
    return read_table(path, columns, dtype=str, keep_default_na=False).to_dict("records")


def _places(folder: Path) -> list[str]:
    return ["--out", str(folder), "--ckpt_dir", str(folder / "checkpoints")]


def _finished(config: Config) -> Path | None:
    """The newest run folder of a configuration that has its summary.json; None: there is none."""
    found = stage_folder(config, config.cur_stage).glob("*/summary.json")
    # a link to nothing has no time, and a pipe nothing to say
    files = [path for path in found if path.is_file()]
    for summary in sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        made = _read_json(summary.parent / "config.json", ("config",))["config"]
        if _alike(made, config):
            return summary.parent
    return None


def _alike(made: dict, config: Config) -> bool:
    return made_alike(made, {name: value for name, value in config.as_dict().items() if name not in _FREE})


def _of_configuration(model: Checkpoint, config: Config) -> bool:
    facts, same = model.facts, _alike(model.facts.get("args", {}), config)
    return same and facts.get("stage") == "stage1" and {"train_digest", "environment"} <= facts.keys()


def _read_json(path: Path, needed: Sequence[str]) -> dict:
    try:
        content = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {reason(error)}; {_AGAIN}") from error
    kinds = {"config": dict, "environment": dict}
    found = content if isinstance(content, dict) else {}
    for name in needed:
        if not isinstance(found.get(name), kinds.get(name, str)):
            raise UserError(f"{path} has no {name}: {_AGAIN}")
    return content
