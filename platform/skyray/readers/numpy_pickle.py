"""Object arrays of ``.npy`` files read without pickle's powers.

numpy stores an array of objects as a pickle, which is a programme: loaded by ``pickle`` it may call
anything. Here the few opcodes that numpy's own arrays and numbers need are interpreted on plain
values; a name in the file is compared with those numpy writes and never looked up, so there is
nothing a file could run. Everything else is refused by the name of its opcode or global.

DeepLense ships its axion images so: ``[image, axion mass]``.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skyray.readers.pixels import check_size
from skyray.records import InvalidRecord

MAX_OPCODES = 2_000_000
MAX_DEPTH = 8

_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_RECONSTRUCT = tuple(f"{module} _reconstruct" for module in _MODULES)
_SCALAR = tuple(f"{module} scalar" for module in _MODULES)
_KNOWN = {*_RECONSTRUCT, *_SCALAR, "numpy ndarray", "numpy dtype", "_codecs encode"}
_PUSHED = {  # opcodes whose argument is the value
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "BINBYTES", "BINBYTES8", "SHORT_BINBYTES", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = {"PROTO", "FRAME"}


class _Mark:
    """The place on the stack from which on the next collection takes."""


_MARK = _Mark()


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass
class _Dtype:
    code: str
    order: str = "|"


@dataclass
class _Array:
    shape: tuple[int, ...] = ()
    values: list[Any] | np.ndarray = field(default_factory=list)


def load_objects(content: bytes, max_pixels: int) -> tuple[tuple[int, ...], list[Any]]:
    """Return shape and elements of a pickled object array: arrays, numbers, text and None.

    Parameters
    ----------
    content : bytes
        What follows the header of the ``.npy`` file.
    max_pixels : int
        Limit of the elements of each array.

    Raises
    ------
    InvalidRecord
        ``npy_object`` (anything but arrays of numbers and plain values), ``npy_invalid``,
        ``image_too_large``.
    """
    machine = _Machine(max_pixels)
    try:
        found = machine.run(content)
    except InvalidRecord:
        raise
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, EOFError) as error:
        raise InvalidRecord("npy_invalid", f"pickle: {error}"[:300]) from None
    if not isinstance(found, _Array) or not isinstance(found.values, list):
        raise _refused("something other than an array of objects")
    return found.shape, [_plain(value) for value in found.values]


def _refused(found: str) -> InvalidRecord:
    return InvalidRecord(
        "npy_object",
        f"expected arrays of numbers and plain values, found {found}; save the image alone: "
        "np.save(file, image)",
    )


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        if isinstance(value.values, list):
            raise _refused("an array of objects within another")
        return value.values
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise _refused(type(value).__name__.strip("_"))


class _Machine:
    def __init__(self, max_pixels: int):
        self.max_pixels = max_pixels
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.steps: dict[str, Callable[[], None]] = {
            "TUPLE": lambda: self.stack.append(tuple(self._since_mark())),
            "EMPTY_LIST": lambda: self.stack.append([]),
            "LIST": lambda: self.stack.append(self._since_mark()),
            "MARK": lambda: self.stack.append(_MARK),
            "APPEND": lambda: self._extend([self.stack.pop()]),
            "APPENDS": lambda: self._extend(self._since_mark()),
            "REDUCE": self._reduce,
            "BUILD": self._build,
            "STACK_GLOBAL": self._stack_global,
            "MEMOIZE": lambda: self.memo.__setitem__(len(self.memo), self.stack[-1]),
            "POP": lambda: self.stack.pop() and None,
        }

    def run(self, content: bytes) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if count > MAX_OPCODES:
                raise _refused(f"more than {MAX_OPCODES:,} opcodes")
            if opcode.name == "STOP":
                return self.stack.pop()
            self._step(opcode.name, argument)
        raise _refused("no end")

    def _step(self, name: str, argument: Any) -> None:
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            count = _TUPLES[name]
            if len(self.stack) < count:
                raise IndexError("a tuple of more values than there are")
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[int(argument)] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[int(argument)])
        elif name == "GLOBAL":
            self._push_global(str(argument))
        elif name in self.steps:
            self.steps[name]()
        elif name not in _IGNORED:
            raise _refused(f"pickle's opcode {name}")

    def _since_mark(self) -> list[Any]:
        at = len(self.stack) - 1 - self.stack[::-1].index(_MARK)
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def _extend(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError("values appended to something other than a list")
        self.stack[-1].extend(values)

    def _push_global(self, name: str) -> None:
        if name not in _KNOWN:
            raise _refused(f"the global {name[:100]!r}")
        self.stack.append(_Global(name))

    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._push_global(f"{module} {name}")

    def _reduce(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, _Global) or type(arguments) is not tuple:
            raise TypeError("a call of something other than numpy's own")
        if called.name in _RECONSTRUCT and arguments[:2] == (_Global("numpy ndarray"), (0,)):
            made: Any = _Array()
        elif called.name == "numpy dtype" and len(arguments) == 3:
            made = _Dtype(_text(arguments[0]))
        elif called.name in _SCALAR and len(arguments) == 2:
            made = _numbers(arguments[0], arguments[1], (1,), self.max_pixels)[0].item()
        elif called.name == "_codecs encode" and arguments[1:] == ("latin1",):
            made = _text(arguments[0]).encode("latin-1")
        else:
            raise _refused(f"a call of {called.name} with other arguments than numpy's")
        self.stack.append(made)

    def _build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, _Dtype) and _is_plain_dtype(state):
            made.order = state[1]
        elif isinstance(made, _Array) and type(state) is tuple and len(state) == 5:
            _, shape, dtype, fortran, values = state
            if type(shape) is not tuple or len(shape) > MAX_DEPTH or not isinstance(dtype, _Dtype):
                raise _refused("an array of another layout")
            made.shape = tuple(_size(size) for size in shape)
            check_size(math.prod(size or 1 for size in made.shape), self.max_pixels)
            if dtype.code in ("O", "O8", "O4"):
                if type(values) is not list or len(values) != math.prod(made.shape):
                    raise ValueError(f"{made.shape}: a list of other length")
                made.values = values
            else:
                made.values = _numbers(dtype, values, made.shape, self.max_pixels, bool(fortran))
        else:
            raise _refused("a state of another layout than numpy's")


def _is_plain_dtype(state: Any) -> bool:
    """Return whether a dtype has no fields, subarrays or metadata: (3, '<', None, None, None, …)"""
    return (
        type(state) is tuple and len(state) >= 5 and state[1] in ("<", ">", "|", "=")
        and state[2:5] == (None, None, None)
    )  # fmt: skip


def _numbers(
    dtype: Any, content: Any, shape: tuple[int, ...], max_pixels: int, fortran: bool = False
) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or dtype.code[:1] not in ("b", "i", "u", "f"):
        raise _refused(f"values of type {getattr(dtype, 'code', dtype)!r}"[:100])
    kind = np.dtype(dtype.code).newbyteorder(dtype.order)
    size = math.prod(shape)
    check_size(size, max_pixels)
    if type(content) is not bytes or len(content) != size * kind.itemsize:
        raise ValueError(f"expected {size} values of {kind}, found other bytes")
    return np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("text expected")
    return value


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"a shape with {value!r}"[:100])
    return value
