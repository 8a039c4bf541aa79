"""Names that are there at once, and what they stand for when it is asked for: to load torch takes seconds."""

from collections import UserDict
from collections.abc import Callable, Mapping
from importlib import import_module


class Registry(UserDict):
    """Name -> class or function: itself, or written as "module:name" and imported when it is taken out."""

    def __getitem__(self, name: str) -> Callable:
        found = self.data[name]
        if isinstance(found, str):
            module, _, attribute = found.partition(":")
            found = getattr(import_module(module), attribute)
        return found


def face(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], object], list[str]]:
    """`__getattr__` and `__all__` of a package: its public names by the module they live in, blanks between.

    `from losses import FocalLoss` so loads losses.focal, and nothing else of the package.
    """
    home = {name: module for module, names in homes.items() for name in names.split()}

    def find(name: str) -> object:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home[name]}"), name)

    return find, sorted(home)
