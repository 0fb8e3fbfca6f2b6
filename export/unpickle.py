"""torch.save files without PyTorch. The pickle inside may only name the globals in the table
below, each replaced by an inert object of this file; anything else is refused by name before it
is looked up, so no code of a checkpoint ever runs.

Two layouts: since 1.6 a zip archive (NAME/data.pkl, NAME/data/KEY); before that a stream of
pickles (magic, protocol, system, object, storage keys) followed by the storages."""
import io
import pickle
import sys
import zipfile
from collections import OrderedDict

import numpy as np

from .errors import ExportError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_PICKLE = 1 << 30
ZIP_ERRORS = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError)

STORAGES = {"DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16",
            "BFloat16Storage": "BF16", "LongStorage": "I64", "IntStorage": "I32",
            "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8", "BoolStorage": "BOOL"}
ITEM = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16,
        "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8,
        "BOOL": np.bool_}


class Inert:
    """Base of everything a pickle can reach: its fields are fixed once made."""
    __slots__ = ()

    def __init__(self, **fields):
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name, value):
        raise pickle.UnpicklingError(f"an attempt to change {type(self).__name__}.{name}")

    __delattr__ = None


class StorageType(Inert):
    __slots__ = ("dtype",)


class Storage(Inert):
    """numel items of dtype behind `fetch()` -> bytes-like."""
    __slots__ = ("dtype", "numel", "fetch")


class PickledTensor(Inert):
    __slots__ = ("storage", "offset", "shape", "stride")

    @property
    def dtype(self):
        return self.storage.dtype

    def read(self):
        dtype = np.dtype(ITEM[self.dtype])
        flat = np.frombuffer(self.storage.fetch(), dtype)
        if flat.size < self.storage.numel:
            raise ExportError(f"a storage holds {flat.size} numbers, its tensor expects "
                              f"{self.storage.numel}; the file is damaged")
        if 0 in self.shape:
            return np.zeros(self.shape, dtype)
        view = np.lib.stride_tricks.as_strided(flat[self.offset:], self.shape,
                                               [s * dtype.itemsize for s in self.stride],
                                               writeable=False)
        return np.ascontiguousarray(view)


class Call(Inert):
    """A function the pickle may call."""
    __slots__ = ("run",)

    def __call__(self, *args):
        return self.run(*args)


def sizes(value, what):
    if not isinstance(value, (tuple, list)) or len(value) > 16 or \
            not all(type(v) is int and 0 <= v < 1 << 48 for v in value):
        raise pickle.UnpicklingError(f"a tensor's {what} is {value!r:.80}")
    return tuple(value)


def rebuild_tensor(storage, offset, shape, stride, *rest):
    """torch._utils._rebuild_tensor(_v2): a strided view of a storage, every index inside it."""
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    shape, stride = sizes(shape, "shape"), sizes(stride, "stride")
    if type(offset) is not int or offset < 0 or len(shape) != len(stride):
        raise pickle.UnpicklingError(f"a tensor with offset {offset!r:.40} and {len(stride)} strides")
    if 0 not in shape:
        count = 1
        for d in shape:
            count *= d
        last = offset + sum((d - 1) * s for d, s in zip(shape, stride))
        if last >= storage.numel or count > storage.numel:
            raise pickle.UnpicklingError(f"a tensor of shape {list(shape)} reaches past its storage "
                                         f"of {storage.numel} numbers")
    return PickledTensor(storage=storage, offset=offset, shape=shape, stride=stride)


def rebuild_parameter(data, *rest):
    return data


def size(*args):
    return sizes(args[0] if args else (), "size")


ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): Call(run=rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Call(run=rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): Call(run=rebuild_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): Call(run=rebuild_parameter),
    ("torch", "Size"): Call(run=size),
}
for torch_name, short in STORAGES.items():
    ALLOWED["torch", torch_name] = StorageType(dtype=short)


class Unpickler(pickle.Unpickler):
    def __init__(self, file, path, storage):
        super().__init__(file)
        self.path, self.storage = path, storage

    def find_class(self, module, name):
        found = ALLOWED.get((module, name))
        if found is None:
            raise ExportError(f"{self.path} asks for {module}.{name}, which is not among the names "
                              "a checkpoint needs; refused, nothing in it was run")
        return found

    def persistent_load(self, pid):
        # ("storage", type, key, device, numel[, view])
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or \
                not isinstance(pid[1], StorageType) or not isinstance(pid[2], str) or \
                type(pid[4]) is not int or pid[4] < 0 or (len(pid) > 5 and pid[5] is not None):
            raise pickle.UnpicklingError("a storage reference of an unknown form")
        return self.storage(pid[1].dtype, pid[2], pid[4])


def unpickle(file, path, storage):
    try:
        return Unpickler(file, path, storage).load()
    except (ExportError, OSError):
        raise
    except Exception as e:  # a damaged pickle can raise nearly anything
        raise ExportError(f"{path} is damaged: {type(e).__name__}: {e!s:.200}")


def load_zip(path):
    archive = zipfile.ZipFile(path)
    names = {n: archive.getinfo(n) for n in archive.namelist()}
    pickles = [n for n in names if n == "data.pkl" or n.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ExportError(f"{path} is a zip archive without data.pkl, not a torch.save file")
    prefix = pickles[0][:-len("data.pkl")]
    if prefix + "byteorder" in names and archive.read(prefix + "byteorder").strip() != b"little":
        raise ExportError(f"{path} is big-endian, only little-endian files are read")
    if any(info.compress_type != zipfile.ZIP_STORED for info in names.values()):
        raise ExportError(f"{path} is compressed, which torch.save never does")
    if names[pickles[0]].file_size > MAX_PICKLE:
        raise ExportError(f"{path} has a pickle of {names[pickles[0]].file_size} bytes, too large")

    def storage(dtype, key, numel):
        info = names.get(f"{prefix}data/{key}")
        want = numel * np.dtype(ITEM[dtype]).itemsize
        if info is None or info.file_size < want:
            raise ExportError(f"{path}: storage {key} has {info.file_size if info else 0} bytes, "
                              f"expected {want}")

        def fetch():
            with zipfile.ZipFile(path) as z:  # reopened: a handle kept open would hold the file
                try:
                    return z.read(info.filename)
                except ZIP_ERRORS as e:
                    raise ExportError(f"{path} is damaged: {e}")
        return Storage(dtype=dtype, numel=numel, fetch=fetch)

    with archive:
        return unpickle(io.BytesIO(archive.read(pickles[0])), path, storage)


def load_legacy(path):
    offsets = {}  # storage key -> (first byte, numel), known once the object has been read

    def no_storage(dtype, key, numel):
        raise pickle.UnpicklingError("a storage in the header")

    def storage(dtype, key, numel):
        def fetch():
            if key not in offsets:
                raise ExportError(f"{path}: storage {key} is missing")
            start, count = offsets[key]
            if count < numel:
                raise ExportError(f"{path}: storage {key} has {count} numbers, expected {numel}")
            with open(path, "rb") as f:
                f.seek(start)
                return f.read(numel * np.dtype(ITEM[dtype]).itemsize)
        widths[key] = np.dtype(ITEM[dtype]).itemsize
        return Storage(dtype=dtype, numel=numel, fetch=fetch)

    widths = {}
    with open(path, "rb") as f:
        if unpickle(f, path, no_storage) != LEGACY_MAGIC:
            raise ExportError(f"{path} is not a torch.save file")
        if unpickle(f, path, no_storage) != LEGACY_PROTOCOL:
            raise ExportError(f"{path} has an unknown torch.save protocol")
        system = unpickle(f, path, no_storage)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise ExportError(f"{path} is big-endian, only little-endian files are read")
        value = unpickle(f, path, storage)
        keys = unpickle(f, path, no_storage)
        if not isinstance(keys, list):
            raise ExportError(f"{path} has no list of storages")
        start = f.tell()  # the C unpickler leaves a buffered file just after the pickle's end
        end = f.seek(0, io.SEEK_END)
        f.seek(start)
        for key in keys:
            count = int.from_bytes(f.read(8), "little")
            at = f.tell()
            if key not in widths or at + count * widths[key] > end:
                raise ExportError(f"{path} is truncated at storage {key!r:.40}")
            offsets[key] = (at, count)
            f.seek(at + count * widths[key])
    return value


def flatten(value, path):
    """The tensors of a state dict; common wrappers are opened, other entries are passed over."""
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(value, dict) and isinstance(value.get(wrapper), dict) and \
                not any(isinstance(v, PickledTensor) for v in value.values()):
            value = value[wrapper]
    if not isinstance(value, dict):
        raise ExportError(f"{path} holds a {type(value).__name__}, expected a state dict")
    table = {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, PickledTensor)}
    if not table:
        raise ExportError(f"{path} holds no tensors")
    return table


def load_torch(path):
    """-> {name: PickledTensor}"""
    if sys.byteorder != "little":
        raise ExportError("this machine is big-endian; export on a little-endian one")
    try:
        if zipfile.is_zipfile(path):
            return flatten(load_zip(path), path)
    except ZIP_ERRORS as e:
        raise ExportError(f"{path} is damaged: {e}")
    with open(path, "rb") as f:
        head = f.read(2)
    if head[:1] != b"\x80":
        raise ExportError(f"{path} is neither a zip archive nor a pickle, so not a torch.save file")
    return flatten(load_legacy(path), path)
