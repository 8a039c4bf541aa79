"""Names that are there at once, and what they stand for when it is asked for: to load torch takes seconds."""

import importlib
import os
import sys
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pkgutil import resolve_name


class Registry(UserDict):
    """Name -> class or function: itself, or written as "module:name" and imported when it is taken out."""

    def __getitem__(self, name: str) -> Callable:
        found = self.data[name]
        return resolve_name(found) if isinstance(found, str) else found


def face(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], object], list[str]]:
    """`__getattr__` and `__all__` of a package: its public names by the module they live in, blanks between.

    `from losses import FocalLoss` so loads losses.focal, and nothing else of the package.
    """
    home = {name: module for module, names in homes.items() for name in names.split()}

    def find(name: str) -> object:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return resolve_name(f"{package}.{home[name]}:{name}")

    return find, sorted(home)


@contextmanager
def current_folder_first() -> Iterator[None]:
    """Within, modules of the user are looked for in the current folder first."""
    folder = os.getcwd()
    importlib.invalidate_caches()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # a user's module may have taken it out
            sys.path.remove(folder)


def named_function(name: str, what: str) -> Callable:
    """The function of a user's `what`, "module:function"; raises ValueError that says what is wrong."""
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module can raise anything
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            problem = f"there is no module {module_name}, neither in {os.getcwd()} nor installed"
        else:
            problem = f"importing {module_name} fails: {one_line(error)}"
        raise ValueError(f"{what} {name}: {problem}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        found = "no" if function is None else "no function, but a value,"
        place = getattr(module, "__file__", None) or f"module {module_name}"
        raise ValueError(f"{what} {name}: {place} has {found} {function_name}")
    return function


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
