"""A checkpoint folder as a table of tensors: config.json, and weights from safetensors or
torch.save files, single or sharded. Tensors are read one at a time; nothing here needs PyTorch."""
import json
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .errors import ExportError
from .unpickle import load_torch

# safetensors' dtype names; BF16 travels as its raw 16 bits.
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16,
          "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8,
          "BOOL": np.bool_}
FLOATS = ("F64", "F32", "F16", "BF16")

MAX_JSON = 256 << 20  # tokenizer.json of a 256k vocabulary is about 40 MB


@dataclass
class Tensor:
    name: str
    file: str  # shown in errors
    dtype: str
    shape: tuple
    read: Callable[[], np.ndarray]  # of DTYPES[dtype] and `shape`

    @property
    def size(self):
        n = 1
        for d in self.shape:
            n *= d
        return n


def to_float32(array, dtype):
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def read_json(path, what=dict):
    """A JSON file whose top level is `what`."""
    try:
        if os.path.getsize(path) > MAX_JSON:
            raise ExportError(f"{path} is larger than {MAX_JSON >> 20} MB, too large for its kind")
        with open(path, encoding="utf-8") as f:
            value = json.load(f)
    except (ValueError, RecursionError) as e:
        raise ExportError(f"{path} is not valid JSON: {e}")
    except OSError as e:
        raise ExportError(f"{path} cannot be read: {e.strerror}")
    if not isinstance(value, what):
        raise ExportError(f"{path} holds a JSON {type(value).__name__}, expected {what.__name__}")
    return value


def refuse_stand_ins(path):
    """Files that are not weights at all: empty, a Git-LFS pointer, a web page."""
    try:
        with open(path, "rb") as f:
            head = f.read(64)
    except OSError as e:
        raise ExportError(f"{path} cannot be read: {e.strerror}")
    if not head:
        raise ExportError(f"{path} is empty")
    if head.startswith(b"version https://git-lfs"):
        raise ExportError(f"{path} is a Git-LFS pointer, not the weights; run `git lfs pull` there")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise ExportError(f"{path} is a web page, not weights")


def load_safetensors(path):
    from safetensors import safe_open
    refuse_stand_ins(path)
    try:
        with safe_open(path, framework="numpy") as f:  # validates sizes, offsets and overlaps
            names = list(f.keys())
    except Exception as e:  # the package's own error type has changed its place over versions
        raise ExportError(f"{path} is damaged: {e}")
    with open(path, "rb") as f:
        header_bytes = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(header_bytes))
    table = {}
    for name in names:
        entry = header[name]
        begin, end = entry["data_offsets"]
        table[name] = Tensor(name, path, entry["dtype"], tuple(entry["shape"]),
                             safetensors_reader(path, entry, 8 + header_bytes + begin, end - begin))
    return table


def safetensors_reader(path, entry, offset, n_bytes):
    def read():
        dtype = DTYPES[entry["dtype"]]
        with open(path, "rb") as f:
            f.seek(offset)
            data = f.read(n_bytes)
        if len(data) != n_bytes:
            raise ExportError(f"{path} ended early; was it changed during the export?")
        return np.frombuffer(data, dtype).reshape(entry["shape"])
    return read


def load_pickled(path):
    refuse_stand_ins(path)
    table = {}
    for name, t in load_torch(path).items():
        table[name] = Tensor(name, path, t.dtype, t.shape, t.read)
    return table


def load_file(path):
    return load_safetensors(path) if path.endswith(".safetensors") else load_pickled(path)


def load_shards(index_path):
    folder = os.path.dirname(index_path)
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ExportError(f"{index_path} has no weight_map")
    table = {}
    for shard in sorted({str(v) for v in weight_map.values()}):
        if os.path.basename(shard) != shard or shard in ("", ".", ".."):
            raise ExportError(f"{index_path} names the shard {shard!r}, expected a plain file name")
        path = os.path.join(folder, shard)
        if not os.path.isfile(path):
            raise ExportError(f"{path}, named in {os.path.basename(index_path)}, is missing")
        for name, tensor in load_file(path).items():
            if name in table:
                raise ExportError(f"tensor {name} is in {table[name].file} and again in {path}")
            table[name] = tensor
    for name, shard in weight_map.items():
        if name not in table:
            raise ExportError(f"tensor {name} is missing in {os.path.join(folder, str(shard))}, "
                              f"where {os.path.basename(index_path)} puts it")
    return table


def find_weights(folder):
    """-> (path, loader). transformers' own order of preference, then any single file."""
    for name, loader in (("model.safetensors", load_file),
                         ("model.safetensors.index.json", load_shards),
                         ("pytorch_model.bin", load_file),
                         ("pytorch_model.bin.index.json", load_shards)):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path, loader
    for ending in (".safetensors", ".bin", ".pt", ".pth"):
        found = sorted(f for f in os.listdir(folder)
                       if f.endswith(ending) and f not in ("training_args.bin", "optimizer.pt",
                                                           "scheduler.pt"))
        if len(found) == 1:
            return os.path.join(folder, found[0]), load_file
        if found:
            raise ExportError(f"{folder} has {len(found)} {ending} files and no index; expected one "
                              f"file or {'model' if ending == '.safetensors' else 'pytorch_model'}"
                              f"{ending}.index.json")
    raise ExportError(f"{folder} has no weights; expected model.safetensors, pytorch_model.bin or "
                      "their shards with an index")


def open_checkpoint(folder):
    """-> (config dict, {name: Tensor})"""
    if not os.path.exists(folder):
        raise ExportError(f"{folder} does not exist")
    if not os.path.isdir(folder):
        raise ExportError(f"{folder} is a file, expected a folder with config.json and weights")
    config_path = os.path.join(folder, "config.json")
    if not os.path.isfile(config_path):
        raise ExportError(f"{config_path} is missing")
    config = read_json(config_path)
    path, loader = find_weights(folder)
    return config, loader(path)
