"""Pickles read without trust: containers, numbers, text and stubs of arrays; nothing is imported or called.

A pickle is a program. The standard library's lexer takes it apart, and a machine that knows plain containers
alone reads it. What it asks for must stand in a table of makers, which look at every bit of what they get.
Neither memory nor time grows faster than the file: keys are short and cannot collide, what a maker copies is
counted, and text is never encoded.
"""

import math
import pickletools
import re
from collections.abc import Callable
from typing import BinaryIO, Self

import numpy as np

MAX_STEPS = 4_000_000  # a value takes one step, a container or an entry of the memo four
MAX_BITS, MAX_KEY = 512, 1024  # of a number, of a key in characters
MAX_DIMENSIONS = 64
Makers = dict[str, Callable[..., object] | None]  # None: it is only named
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_FRESH = {
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
    **{"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": set},
}
_LIGHT = _VALUES | {"NONE", "NEWTRUE", "NEWFALSE", "EMPTY_TUPLE", "GET", "BINGET", "LONG_BINGET", "POP"}
_NUMBERS = re.compile("[<>|=]?(b1|[iu][1248]|f[248])")


class UnwantedError(ValueError):
    """The pickle asks for something that is no plain data."""


class Name(str):
    """What a pickle names, as "module name"; it stands in the table of makers and is not imported."""


class Dtype:
    """The name of a kind of numbers."""

    def __init__(self, text: str, align: object = False, copy: object = False) -> None:
        if not isinstance(text, str) or not _NUMBERS.fullmatch(text):
            raise UnwantedError(f"it holds an array of {text if isinstance(text, str) else 'objects':.40}")
        self.text = text

    def fill(self, version: object, order: object, *rest: object) -> None:
        """Take the byte order, as NumPy pickles it after the name."""
        if order not in ("<", ">", "|", "=") or any(one is not None for one in rest[:3]):
            raise UnwantedError("it holds an array of objects")
        self.text = order + self.text[-2:]


class Array:
    """What an array would be: `dtype` in NumPy's words, `shape`, order, its bytes or the text for them."""

    def __init__(self, *_: object) -> None:
        self.dtype, self.shape, self.order, self.data = "|u1", (0,), "C", b""

    def fill(self, version: object, shape: object, dtype: object, fortran: object, data: object) -> Self:
        """Take what NumPy pickles of an array. Raises ValueError: it does not fit together."""
        fits = isinstance(dtype, Dtype) and isinstance(data, str | bytes | bytearray) and are_lengths(shape)
        if not fits or math.prod(shape) * int(dtype.text[-1]) != len(data):
            raise ValueError("the shape of an array does not fit its bytes")
        self.dtype, self.shape, self.data = dtype.text, shape, data
        self.order = "F" if fortran is True else "C"
        return self

    def numbers(self) -> np.ndarray:
        """The array; it may be read-only."""
        data = self.data.encode("latin-1") if isinstance(self.data, str) else self.data
        return np.frombuffer(data, dtype=self.dtype).reshape(self.shape, order=self.order)


def are_lengths(value: object) -> bool:
    """Is it a tuple of whole numbers that can be lengths?"""
    fits = isinstance(value, tuple) and len(value) <= MAX_DIMENSIONS
    return fits and all(type(one) is int and 0 <= one < 1 << 62 for one in value)


def _as_text(text: object, codec: object) -> str:
    """Bytes of an old protocol, left as the text that stands for them: many copies could be asked for."""
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise UnwantedError("it asks for another codec than latin-1")
    return text


def _set(values: object = ()) -> set:
    if not isinstance(values, list | tuple):
        raise ValueError("a set is made of something else than a list")
    return {_key(value) for value in values}


def _dict(pairs: object = ()) -> dict:
    return {_key(key): value for key, value in (pairs.items() if isinstance(pairs, dict) else pairs)}


def _key(value: object) -> object:
    """A key that takes no time to look up. Raises ValueError: it is long, or built so that it might."""
    short = isinstance(value, str | bytes) and len(value) <= MAX_KEY
    few_alike = type(value) is int and value.bit_length() <= 60  # beyond, many numbers have one hash
    if short or few_alike or value is None or type(value) in (bool, float):
        return value
    raise ValueError(f"a key is long, or a {type(value).__name__}")


PLAIN: Makers = {
    "_codecs encode": _as_text,
    **dict.fromkeys(("collections OrderedDict", "collections Counter"), _dict),
    **dict.fromkeys(("builtins set", "__builtin__ set"), _set),
    **{"numpy ndarray": None, "numpy dtype": Dtype},
}
for _core in ("core", "_core"):  # before and since NumPy 2
    PLAIN[f"numpy.{_core}.multiarray _reconstruct"] = Array
    PLAIN[f"numpy.{_core}.multiarray scalar"] = lambda dtype, data: (
        Array().fill(1, (), dtype, False, data).numbers().item()
    )
    PLAIN[f"numpy.{_core}.numeric _frombuffer"] = lambda data, dtype, shape, order: Array().fill(
        1, shape, dtype, order == "F", data
    )


class _Bounded:
    """A file up to `end`: whatever length a pickle states, no more is asked for than is there."""

    def __init__(self, source: BinaryIO, end: int) -> None:
        self.tell = source.tell
        self.read = lambda count: source.read(min(count, end - source.tell()))
        self.readline = lambda: source.readline(end - source.tell())


def load(
    source: BinaryIO, end: int, makers: Makers = PLAIN, stored: Callable[[object], object] | None = None
) -> object:
    """What the pickle at the place of `source` holds; `stored` gets what it says of things kept elsewhere.

    Raises UnwantedError where it asks for what is not in `makers`, anything where it is broken.
    """
    stack, marks, memo, left = [], [], {}, MAX_STEPS

    def popped() -> list:
        mark = marks.pop()
        items = stack[mark:]
        del stack[mark:]
        return items

    for code, argument, _ in pickletools.genops(_Bounded(source, end)):
        name = code.name
        left -= 1 if name in _LIGHT else 4
        if name in _VALUES:
            if type(argument) is int and argument.bit_length() > MAX_BITS:
                raise ValueError(f"it holds a number of more than {MAX_BITS} bits")
            stack.append(argument)
        elif name in _FRESH:
            stack.append(_FRESH[name]())
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[_key(argument)])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[_key(argument)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "LIST":
            stack.append(popped())
        elif name == "TUPLE":
            stack.append(tuple(popped()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack[-int(name[-1]) :] = [tuple(stack[-int(name[-1]) :])]
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else popped()
            list.extend(stack[-1], items)
        elif name in ("SETITEM", "SETITEMS", "DICT"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else popped()
            if name == "DICT":
                stack.append({})
            dict.update(stack[-1], zip(map(_key, items[::2]), items[1::2], strict=True))
        elif name == "ADDITEMS":
            items = popped()
            set.update(stack[-1], map(_key, items))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                stack[-2:] = [" ".join(stack[-2:])]
            wanted = argument or stack.pop()
            if wanted not in makers:
                raise UnwantedError(f"it asks for {wanted.replace(' ', '.')!r:.80}")
            stack.append(Name(wanted))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, maker = stack.pop(), stack.pop()
            if not (isinstance(maker, Name) and isinstance(arguments, tuple) and makers[maker]):
                raise UnwantedError("it calls what is no plain data")
            left -= len(arguments)  # and what a maker may copy
            left -= sum(len(one) for one in arguments if isinstance(one, dict | list | tuple | set))
            if left >= 0:
                stack.append(makers[maker](*arguments))
        elif name == "BUILD":
            state, target = stack.pop(), stack[-1]
            if isinstance(target, Dtype | Array) and isinstance(state, tuple) and len(state) < 10:
                target.fill(*state)
            elif not isinstance(target, dict):  # the attributes of an OrderedDict are passed over
                raise UnwantedError("it changes what is no plain data")
        elif name == "BINPERSID" and stored:
            stack.append(stored(stack.pop()))
        elif name in ("POP", "POP_MARK"):
            popped() if name == "POP_MARK" else stack.pop()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise UnwantedError(f"it asks for the operation {name}")
        if left < 0:
            raise ValueError(f"it holds over {MAX_STEPS} values")
    return stack.pop()
