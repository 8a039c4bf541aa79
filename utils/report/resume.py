"""Going on with a run that was cut off, from its last.pth."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from datasets import LongTailedData
from datasets.fetch import nothing_fetched_into
from models.pretrained import load_state
from utils.base.distributed import World
from utils.base.errors import NoMemoryError, UserError, about, reason
from utils.base.files import read_json, require_file
from utils.engine.device import environment
from utils.engine.loop import Progress, load_optimizer
from utils.features.source import find_source
from utils.heads.epochs import settings_of
from utils.heads.head import HeadRun
from utils.heads.plan import HeadPlan
from utils.run import checkpoint
from utils.run.checkpoint import Checkpoint
from utils.run.facts import compared
from utils.run.folder import stage_folder
from utils.run.lock import FolderLock
from utils.settings.checks import check_known
from utils.settings.config import Config, resolve
from utils.settings.presets import made_alike, preset_for
from utils.settings.table import ARGUMENTS, FREE, RUNNING, STAGE1

# not taken from a last.pth; an older one may hold the second, an option that is gone
_NOT_KEPT = ("resume", "force_resume")
_UNFIXED = (*FREE, *_NOT_KEPT, "cur_stage", "pack_dtype")
# of these what the user said is said again: last.pth may not choose them, or is not asked for them
_AGAIN = set(FREE) - {"resume", "pretrained"}
_SAME_BITS = (
    *("threads", "processes", "device", "torch", "numpy", "cpu_capability", "layout", "float32_convolutions"),
    *("float32_products", "deterministic"),
)
_ORIGINS = {"stage1_digest": "another stage 1", "features_digest": "other features"}  # of stage 2
_NO_PLACE = "no file chooses where is written"
# what a state of another form raises where it is put to use
_UNFIT = (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError)
AUTO_FOUND_NONE = "--resume auto: no unfinished run of this configuration, this is a fresh one"


@dataclass(frozen=True)
class Resumed:
    """A last.pth and the run folder it lies in."""

    folder: Path
    source: Checkpoint
    config: dict
    given: dict  # the words with which the run goes on: its own, and what may change
    lock: FolderLock | None = None  # on the folder, in the process that writes there

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        data: LongTailedData,
        config: Config,
        world: World,
    ) -> Progress:
        """Stage 1: load weights, optimiser and scaler; return how far the run was."""
        self._compare(data)
        facts = self.source.facts
        best = self._check_best(model, config)
        checkpoint.load_weights(model, self.source, config.network)
        with self._fitting():
            load_optimizer(optimizer, facts["optimizer"])
            scaler.load_state_dict(facts.get("scaler", {}))
            progress = Progress(**facts["progress"])
            if best and best["epoch"] == progress.epoch + 1:
                # killed between the two files: where bits do not repeat, the epoch to come may not be as good
                progress.best_epoch, progress.best_score = best["epoch"], best["progress"]["best_score"]
            if "partial" in facts:
                progress.go_on(facts["partial"], world, next(model.parameters()).device)
        return progress

    def _check_best(self, model: nn.Module, config: Config) -> dict | None:
        """The facts of best.pth, where the run needs it; raises a UserError now, and not after all epochs."""
        progress, path = self.source.facts["progress"], self.folder / "best.pth"
        best, done = progress["best_epoch"], progress["epoch"]
        if config.select == "last" or (best is None and done < config.epochs):
            return None
        try:
            found = checkpoint.read(path)
            checkpoint.load_weights(model, found, config.network)
            if found.facts.get("epoch") not in (best, done + 1):  # a run may be killed between best and last
                raise UserError(f"{path} does not hold epoch {best}, the best so far")
            return found.facts
        except NoMemoryError:
            raise
        except UserError as error:
            raise UserError(f"{error}; --select {config.select} needs it: restore it") from error

    def restore_heads(self, heads: list[HeadRun], model: nn.Module) -> int:
        """Stage 2: put every head where it was, and a drifting backbone; returns how many heads go on."""
        stored = self._states()
        if not stored:  # the run had come no further than its features
            return 0
        frozen = heads[0].frozen
        if frozen.drifting:  # an earlier version has its only head's statistics in the network alone
            kept = {name: value for name, value in self.source.state.items() if not name.startswith("fc.")}
            load_state(model, model.state_dict() | kept)
            frozen.train.moved()
        with self._fitting():
            for head in heads:
                head.restore(stored[_key(head.plan.key)])
        for group in settings_of(heads) if heads[0].select != "last" else ():
            if len({head.progress.best_epoch for head in group if not head.failed}) > 1:
                problem = "has a chosen epoch for each seed, where this code has one for all seeds"
                raise UserError(f"{self.source.path} {problem}: start a new run")
        return len(heads)

    def _states(self) -> dict[tuple, dict]:
        return {_key(state): state for state in self.source.facts["heads"]}

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        """Within, a state of another form ends the run in a line."""
        try:
            yield
        except _UNFIT as error:
            raise UserError(f"{self.source.path} cannot be resumed: {reason(error)}") from error

    def _compare(self, data: LongTailedData) -> str:
        """What of the training files was compared; raises a UserError where they are not the run's."""
        changed, looked = compared(self.source.facts, data.train)
        if changed:
            raise UserError(f"{self.source.path} was trained on other images: {changed}; start a new run")
        return looked

    def check_stage2(
        self, data: LongTailedData, plans: list[HeadPlan], origins: dict, device: torch.device
    ) -> list[str]:
        """The notes; raises a UserError where stage 2 would go on with other images, heads or features."""
        path, stored, notes = self.source.path, self._states(), self.notes(data, device)
        new = [plan.key for plan in plans if _key(plan.key) not in stored]
        if new and stored:
            raise UserError(f"{path} knows no head {new[0]}: this code plans other heads")
        for name, what in _ORIGINS.items():
            before, now = self.source.facts.get(name), origins.get(name)
            if before != now:
                other = f"{what} ({name} {str(before)[:12]}, now {str(now)[:12]})"
                raise UserError(f"{path} was trained on {other}: leave --resume out")
        return notes

    def notes(self, data: LongTailedData, device: torch.device) -> list[str]:
        """For the log: how the images were compared, and what differs from the run's own machine."""
        looked, before, now = self._compare(data), self.source.facts["environment"], environment(device)
        notes = [f"the training images were compared with those of the run {looked}"] if looked else []
        other = [name for name in _SAME_BITS if before.get(name, now[name]) != now[name]]
        changes = [f"{name} was {before[name]}, is {now[name]}" for name in other]
        return notes + [f"the last bits may differ from the unbroken run's: {one}" for one in changes]


def read_resume(script: str, given: dict, world: World, held: ExitStack) -> Resumed | None:
    """The run that `--resume` names (its last.pth, its folder, auto); None without one.

    Its folder is locked before anything is read, so that what is read is what no other run goes on with;
    `held` gives it back.
    """
    if "resume" not in given:
        return None
    path = given["resume"]
    if str(path) == "auto":
        path = world.agree(_newest_unfinished(script, given))
        if path is None:
            return None
    path = path / "last.pth" if path.is_dir() else path
    with about("--resume"):
        require_file(path)
    lock = FolderLock(path.parent) if world.main else None
    if lock:
        held.callback(lock.close)
    world.wait()
    with about("--resume"):
        source = checkpoint.read(path)
    facts, stage = source.facts, "stage1" if script == STAGE1 else "stage2"
    _check_facts(path, facts, stage, given)
    args = {name: value for name, value in facts["args"].items() if name not in _NOT_KEPT}
    # what its code did not know yet was as the preset has it
    ran = preset_for(facts["dataset"], facts["network"]) | args
    contradictions = [
        f"--{name} {value}, the run to resume has --{name} {ran[name]}"
        for name, value in given.items()
        # a list of one may have been given without a comma
        if name in ran and name not in FREE and _plain(value) != ran[name] and [_plain(value)] != ran[name]
    ]
    if contradictions:
        raise UserError(f"{'; '.join(contradictions)}: leave the argument out, or start a new run")
    paths = {argument.name for argument in ARGUMENTS if argument.kind is Path}
    words = {n: Path(value) if n in paths else value for n, value in facts.get("given", {}).items()}
    words |= {name: value for name, value in given.items() if name in FREE}
    words |= {} if "seeds" in words else {"seed": ran["seed"]}
    held.enter_context(nothing_fetched_into(_check_places(path, facts, given)))
    return Resumed(path.parent, source, args, words, lock)


def _check_facts(path: Path, facts: dict, stage: str, given: dict) -> None:
    """Raise a UserError unless these are of a last.pth of `stage`, and obey the rules of the arguments."""
    state, own = {"stage1": ("optimizer", "progress"), "stage2": ("heads", "given")}[stage]
    if state not in facts or facts["stage"] != stage:
        raise UserError(f"{path} is not the last.pth of a stage-{stage[-1]} run, only that can be resumed")
    for name in ("args", "train_digest", "environment", own):
        if name not in facts:
            raise UserError(f"{path} cannot be resumed: it lacks {name}")
    for words in (facts["args"], facts.get("given", {})):
        check_known(path, words, given)


def _check_places(path: Path, facts: dict, given: dict) -> list[Path]:
    """No file chooses where is written: the places in it count where it lies in the folder of its run.

    Returns those that it chooses for reading, into which nothing may be downloaded.
    """
    folder, usual = path.parent, preset_for(facts["dataset"], facts["network"])
    wanted = {name: value for name, value in facts["args"].items() if name not in _UNFIXED}
    wanted |= {name: facts[name] for name in ("dataset", "network")}
    others = {name for name in os.listdir(folder) if not name.startswith(".")}
    others -= {path.name, "best.pth", "log.txt"}
    if not (_has(folder / "config.json", wanted) if "config.json" in others else not others):
        problem = f"{folder} is not the folder of the run in {path.name}"
        raise UserError(f"{problem}: put that into a folder of its own")
    had = facts.get("given", facts["args"])  # stage 2 goes on with its words, stage 1 with its settings
    had = usual | {name: value for name, value in had.items() if value is not None}
    places = ("save_features", "ckpt_dir", "data_dir", "split_dir")
    chosen = [name for name in places if name not in given and had.get(name) != usual.get(name)]
    if "save_features" in chosen:
        problem = f"was started with --save_features {had['save_features']}: {_NO_PLACE}"
        raise UserError(f"{path} {problem}, so name that place again, or another")
    if "ckpt_dir" in chosen and folder.resolve().parent.parent != Path(had["out"]).resolve():
        problem = f"does not lie where its run wrote it: {_NO_PLACE}"
        raise UserError(f"{path} {problem}, so give --ckpt_dir (its run had {had['ckpt_dir']})")
    return [Path(had[name]) for name in ("data_dir", "split_dir") if name in chosen]


def _key(named: dict) -> tuple[str, str, int]:
    """What tells heads apart, of a HeadPlan's name or of a stored head."""
    return named["method"], named["setting"], named["seed"]


def words_to_resume(config: Config, script: str) -> list[str]:
    """What a command that goes on with this run says beside --resume: places, and what no file chooses."""
    own_code = {name for name in ("network", "method") if name in config and ":" in getattr(config, name)}
    return config.given_words(script, _AGAIN | own_code)


def own_words(given: dict) -> dict:
    """What the user gave, as plain data: in stage 2 it decides which heads there are."""
    return {name: _plain(value) for name, value in given.items() if name not in _NOT_KEPT}


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _newest_unfinished(script: str, given: dict) -> Path | None:
    """The newest run folder of the configuration that `given` resolves to, without a summary; None: none.

    In stage 2 it must have begun from the same stage 1 and with the same words, too: what the user names is
    no preset any more.
    """
    words = {name: value for name, value in given.items() if name != "resume"}
    source = None if script == STAGE1 else find_source(script, words, "stage1")
    config = resolve(script, words, source.known if source else None)
    free = RUNNING if {"seed", "seeds"} & set(given) else (*RUNNING, "seed", "seeds")

    def fixed(values: dict) -> dict:
        return {name: value for name, value in values.items() if name not in free}

    def began_alike(last: Path) -> bool:
        facts = checkpoint.read(last).facts
        same = fixed(facts.get("given", {})) == fixed(own_words(words))
        origins = source.origins()
        return same and all(facts.get(name) == origins.get(name) for name in _ORIGINS)

    folders = [folder for folder in stage_folder(config, config.cur_stage).glob("*") if folder.is_dir()]
    for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime_ns, reverse=True):
        last = folder / "last.pth"
        unfinished = last.is_file() and not (folder / "summary.json").exists()
        alike = unfinished and _has(folder / "config.json", fixed(config.as_dict()))
        if alike and (source is None or began_alike(last)):
            return folder
    return None


def _has(note: Path, wanted: dict) -> bool:
    """Does a config.json hold these values? One that is gone or spoilt is of another run."""
    try:
        return made_alike(read_json(note)["config"], wanted)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
