"""The model file: GGUF v3 through the gguf package, one tensor in memory at a time, under a
temporary name until it is complete."""
import os
import tempfile

import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf import GGUFValueType as V
from gguf import GGUFWriter
from gguf.quants import quant_shape_to_byte_shape, quantize

from .checkpoint import to_float32
from .errors import ExportError, Progress, names, note

TYPES = {"f32": Q.F32, "f16": Q.F16, "bf16": Q.BF16, "q8_0": Q.Q8_0, "q4_0": Q.Q4_0}
SOURCE_TYPES = {"F64": Q.F32, "F32": Q.F32, "F16": Q.F16, "BF16": Q.BF16}
FILE_TYPE = {Q.F32: 0, Q.F16: 1, Q.Q4_0: 2, Q.Q8_0: 7, Q.BF16: 32}  # general.file_type
QUANTIZATION_VERSION = 2
BLOCK = 32


def choose_type(out, shape, source_dtype, wanted, tied):
    """-> (type, why it is not the wanted one)"""
    if out.f32 or len(shape) < 2:
        return Q.F32, None
    if wanted is None:
        return SOURCE_TYPES[source_dtype], None
    if wanted in (Q.Q8_0, Q.Q4_0) and shape[-1] % BLOCK:
        return Q.F16, f"rows of {shape[-1]} do not divide by {BLOCK}"
    if wanted == Q.Q4_0 and tied and out.name == "token_embd.weight":
        return Q.Q8_0, "the tied embedding is also the output matrix"
    return wanted, None


def encode(array, dtype, target, name):
    """Numbers of a source dtype as the bytes of a GGUF type."""
    if SOURCE_TYPES[dtype] == target and dtype != "F64":
        return np.ascontiguousarray(array)  # bit for bit; BF16 stays raw
    wide = np.ascontiguousarray(to_float32(array, dtype))
    if target == Q.F32:
        return wide
    if target == Q.F16:
        with np.errstate(over="ignore"):
            half = wide.astype(np.float16)
        if not np.array_equal(np.isinf(half), np.isinf(wide)):
            raise ExportError(f"tensor {name} has values up to {np.nanmax(np.abs(wide)):g}, more "
                              "than f16 holds (65504); use --type bf16 or f32")
        return half
    with np.errstate(all="ignore"):
        return quantize(wide, target)


def add_value(w, key, kind, value):
    if kind == "u32s":
        w.add_key_value(key, value, V.ARRAY, sub_type=V.UINT32)
    elif kind == "f32s":
        w.add_key_value(key, value, V.ARRAY, sub_type=V.FLOAT32)
    elif kind == "u8s":
        w.add_key_value(key, value, V.ARRAY, sub_type=V.UINT8)
    else:
        {"u32": w.add_uint32, "f32": w.add_float32, "str": w.add_string, "bool": w.add_bool,
         "array": w.add_array}[kind](key, value)


def write_model(path, plan, tensors, tokenizer, type_name, model_name):
    wanted = TYPES[type_name] if type_name else None
    jobs, wider = [], {}
    sizes = {}  # type -> numbers in matrices, to name the file's main type
    for out in plan.tensors:
        shape = out.shape
        dtype = tensors[out.sources[0]].dtype if out.sources else "F32"
        target, why = choose_type(out, shape, dtype, wanted, plan.tied)
        if why:
            wider.setdefault((target, why), []).append(out.name)
        if len(shape) > 1 and not out.f32:
            sizes[target] = sizes.get(target, 0) + int(np.prod(shape))
        jobs.append((out, shape, target))
    for (target, why), which in wider.items():
        note(f"{names(which)} {'stay' if len(which) > 1 else 'stays'} {target.name.lower()}: {why}")
    main = wanted if wanted is not None else max(sizes, key=sizes.get)

    w = GGUFWriter(None, plan.arch)
    w.add_string("general.type", "model")
    w.add_string("general.name", model_name)
    for key, kind, value in plan.metadata:
        add_value(w, key, kind, value)
    w.add_uint32("general.file_type", FILE_TYPE[main])
    w.add_uint32("general.quantization_version", QUANTIZATION_VERSION)
    for key, kind, value in tokenizer or ():
        add_value(w, key, kind, value)
    for out, shape, target in jobs:
        count = int(np.prod(shape))
        if target in (Q.Q8_0, Q.Q4_0):
            b = quant_shape_to_byte_shape(shape, target)
            w.add_tensor_info(out.name, b, np.dtype(np.uint8), int(np.prod(b)), raw_dtype=target)
        else:
            width = 4 if target == Q.F32 else 2
            w.add_tensor_info(out.name, shape, np.dtype(np.float32), count * width, raw_dtype=target)

    folder, base = os.path.split(os.path.abspath(path))
    handle, part = tempfile.mkstemp(prefix=f".{base}.", suffix=".part", dir=folder)
    os.close(handle)
    try:
        write_parts(w, part, jobs, tensors)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(part, 0o666 & ~mask)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def write_parts(w, part, jobs, tensors):
    bar = Progress("writing", sum(int(np.prod(shape)) for _, shape, _ in jobs))
    try:
        w.write_header_to_file(part)
        w.write_kv_data_to_file()
        w.write_ti_data_to_file()
        for out, shape, target in jobs:
            if out.value is not None:
                array, dtype = out.value, "F32"
            else:
                dtype = tensors[out.sources[0]].dtype
                arrays = [tensors[s].read() for s in out.sources]
                if out.computes or any(tensors[s].dtype != dtype for s in out.sources):
                    arrays = [to_float32(a, tensors[s].dtype)
                              for a, s in zip(arrays, out.sources)]
                    dtype = "F32"
                array = out.make(*arrays) if out.make else arrays[0]
            w.write_tensor_data(encode(array, dtype, target, out.name))
            bar.add(int(np.prod(shape)))
        for f in w.fout:
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        raise ExportError(f"writing {os.path.dirname(part)}: {e.strerror or e}")
    finally:
        bar.close()
        for f in w.fout or ():
            f.close()
