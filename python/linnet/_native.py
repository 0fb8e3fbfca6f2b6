"""The shared library: finding it, its errors, handles, and calls that take their turns.

cffi reads the declarations from linnet.h when the package is built, so no struct or prototype is
written twice, and calls release the interpreter lock."""

from __future__ import annotations

import contextlib
import enum
import importlib
import os
import subprocess
import threading
import weakref
from typing import Any, Callable, Iterator, Optional, Sequence, Tuple

import numpy as np
import numpy.typing as npt

try:
    _declarations: Any = importlib.import_module("linnet._declarations")
except ImportError as error:  # pragma: no cover
    raise ImportError("linnet is not built here: pip install the folder python/ of linnet's sources") from error

Ids = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]
Progress = Callable[[str, int, int], Optional[bool]]

ffi: Any = _declarations.ffi
VERSION: str = _declarations.VERSION
SONAME = "liblinnet.so." + VERSION.split(".")[0]


class Status(enum.IntEnum):
    """Codes of errors, as linnet.h explains them."""

    OK = 0
    ERR_ARGUMENT = 1
    ERR_IO = 2
    ERR_FORMAT = 3
    ERR_UNSUPPORTED = 4
    ERR_MEMORY = 5
    ERR_CONTEXT = 6
    ERR_TOKENIZER = 7
    ERR_NUMERIC = 8
    ERR_CANCELLED = 9
    ERR_DEVICE = 10


class LinnetError(Exception):
    """What the library refused, in its own sentence. `code` tells the kind."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = Status(code)

    def __reduce__(self) -> Tuple[Any, ...]:
        return (LinnetError, (int(self.code), str(self)))


def _places() -> Iterator[str]:
    wanted = os.environ.get("LINNET_LIBRARY")
    if wanted:
        yield wanted
        return
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), SONAME)
    if os.path.exists(beside):
        yield beside
        return
    yield SONAME
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        folder = subprocess.run(["pkg-config", "--variable=libdir", "linnet"], check=True, capture_output=True,
                                text=True).stdout.strip()
        yield os.path.join(folder, SONAME)


def _load() -> Any:
    why = ""
    for path in _places():
        try:
            library = ffi.dlopen(path)
        except OSError as error:
            why = why or str(error)
            continue
        try:
            found = ffi.string(library.linnet_version()).decode()
        except AttributeError:
            found = "another version"
        if found != VERSION:
            raise ImportError(f"{path} is linnet {found}, but this package was built for {VERSION}")
        return library
    raise ImportError(f"linnet's shared library was not found (LINNET_LIBRARY=path says where it is): {why}")


lib: Any = _load()


def failed(status: int, text: str) -> LinnetError:
    return LinnetError(status, text)


class Handle:
    """An object of the library, freed when nothing refers to it any more, at the latest at exit."""

    def __init__(self, kind: str, pointer: Any, free: Callable[[Any], None], *needs: object) -> None:
        """What `needs` names is freed later."""
        self._kind = kind
        self._pointer = pointer
        self._lock = threading.Lock()
        self._users = 0
        self._free = weakref.finalize(self, Handle._release, free, pointer, needs)

    @staticmethod
    def _release(free: Callable[[Any], None], pointer: Any, needs: object) -> None:
        free(pointer)

    @contextlib.contextmanager
    def use(self, alone: bool = False) -> Iterator[Any]:
        """The pointer. Nobody else may use it meanwhile if `alone`, and nobody may free it."""
        with self._lock:
            if not self._free.alive:
                raise failed(Status.ERR_ARGUMENT, f"the {self._kind} is closed")
            if alone and self._users:
                raise failed(Status.ERR_ARGUMENT, f"the {self._kind} is in use by another thread, or by a callback's caller")
            self._users += 1
        try:
            yield self._pointer
        finally:
            with self._lock:
                self._users -= 1

    @property
    def closed(self) -> bool:
        return not self._free.alive

    def close(self) -> None:
        with self._lock:
            if self._users:
                raise failed(Status.ERR_ARGUMENT, f"the {self._kind} cannot be closed: a call uses it")
            self._free()


def call(function: Any, *arguments: Any) -> None:
    """Calls a function that returns a status and takes a linnet_error last."""
    error = ffi.new("linnet_error *")
    if function(*arguments, error):
        raise failed(error.code, ffi.string(error.text).decode("utf-8", "replace"))


# ---- callbacks: an exception in one stops the work and is raised where that was called

_stray = threading.local()  # of a callback that was interrupted before its own code began


def _keep_stray(kind: Any, value: BaseException, where: Any) -> None:
    _stray.error = value


class Watch:
    """What the callbacks of one call need to know."""

    def __init__(self, progress: Optional[Progress] = None, rows: Optional[Callable[[int, Logits], None]] = None,
                 width: int = 0) -> None:
        self.progress, self.rows, self.width = progress, rows, width
        self.error: Optional[BaseException] = None
        self.handle = ffi.new_handle(self)

    def call(self, function: Any, *arguments: Any) -> None:
        _stray.error = None
        try:
            call(function, *arguments)
        except LinnetError as error:
            cause = self.error or _stray.error
            if error.code == Status.ERR_CANCELLED and cause is not None:
                raise cause
            raise


# They also let Python see Ctrl-C in the middle of a long prefill.
def _on_progress(user: Any, what: Any, done: int, total: int) -> bool:
    watch: Watch = ffi.from_handle(user)
    try:
        return not watch.progress or watch.progress(ffi.string(what).decode(), done, total) is not False
    except BaseException as error:
        watch.error = error
        return False


def _on_rows(user: Any, first: int, n: int, logits: Any) -> bool:
    watch: Watch = ffi.from_handle(user)
    try:
        if watch.rows:
            watch.rows(first, np.frombuffer(ffi.buffer(logits, n * watch.width * 4), np.float32).reshape(n, -1))
        return True
    except BaseException as error:
        watch.error = error
        return False


on_progress: Any = ffi.callback("linnet_progress_fn", _on_progress, onerror=_keep_stray)
on_rows: Any = ffi.callback("linnet_rows_fn", _on_rows, onerror=_keep_stray)


# ---- values in and out

def ids_of(tokens: Sequence[int] | Ids) -> Ids:
    """Token ids as C has them."""
    array = np.asarray(tokens)
    if array.size == 0:
        return np.zeros(0, np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(f"token ids: expected a flat sequence of whole numbers, found {array.ndim} dimensions of "
                        f"{array.dtype}")
    if array.min() < -(2**31) or array.max() >= 2**31:
        raise ValueError("token ids: a number does not fit 32 bits")
    return np.ascontiguousarray(array, np.int32)


def pointer_of(ids: Ids) -> Any:
    return ffi.from_buffer("int32_t[]", ids)


def text_of(pointer: Any) -> str:
    return "" if pointer == ffi.NULL else ffi.string(pointer).decode("utf-8", "replace")


def c_text(text: Optional[str], what: str) -> Any:
    """NUL-terminated UTF-8, or NULL for None."""
    if text is None:
        return ffi.NULL
    data = text.encode()
    if b"\0" in data:
        raise ValueError(f"{what}: expected a text without NUL characters")
    return ffi.new("char[]", data)


def choice(value: str, names: Sequence[str], prefix: str, what: str) -> int:
    """A name like "f16" as the constant of its enum."""
    if value not in names:
        raise ValueError(f"{what}: expected one of {', '.join(names)}, found {value!r}")
    number: int = getattr(lib, prefix + value.upper().replace("-", "_"))
    return number


def growing(capacity: int, kind: str, fill: Callable[[Any, int, Any], None]) -> Tuple[Any, int]:
    """A buffer of the library's "call again with a larger one" rule, and how much of it is filled."""
    n = ffi.new("size_t *")
    while True:
        buffer = ffi.new(f"{kind}[]", max(capacity, 1))
        fill(buffer, capacity, n)
        if n[0] <= capacity:
            return buffer, n[0]
        capacity = n[0]
