"""A run's config: YAML (or JSON, which is YAML), on top of the file that its `base` names."""
import json
import os

import yaml


class TrainError(Exception):
    """One sentence for the user."""


def reason(error):
    """An OSError as a sentence; a full disk's has no file."""
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)


REQUIRED = {"name": str, "seed": int, "steps": int, "batch_tokens": int, "lr": list,
            "weight_decay": float, "warmup": int, "model": dict, "task": dict}
OPTIONAL = {"clip": float, "log_every": int, "evaluate_every": int, "checkpoint_every": int,
            "start_from": str, "transfer": int, "dtype": str, "about": str}
MODEL = {"vocab", "dim", "feed_forward", "context", "layers"}


def merge(base, top):
    out = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out


def read(path, above=()):
    """`above`: the files that named this one as their base"""
    if os.path.realpath(path) in above:
        raise TrainError(f"{path} is its own base, by way of the files that it names")
    try:
        with open(path, encoding="utf-8") as f:
            values = yaml.safe_load(f)
    except OSError as e:
        raise TrainError(f"{path}: {e.strerror}")
    except UnicodeDecodeError as e:
        raise TrainError(f"{path}: byte {e.start} is not UTF-8")
    except yaml.YAMLError as e:
        raise TrainError(f"{path}: not YAML: {' '.join(str(e).split())}")
    if not isinstance(values, dict):
        raise TrainError(f"{path}: expected keys and values")
    base = values.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise TrainError(f"{path}: base is {base!r:.60}, expected the name of a file")
        below = os.path.join(os.path.dirname(path), base)
        values = merge(read(below, (*above, os.path.realpath(path))), values)
    return values


def load(path):
    """The checked config of `path`."""
    values = merge({"log_every": 50, "evaluate_every": 500, "checkpoint_every": 100, "clip": 1.0,
                    "dtype": "f16", "model": {"feed_forward": 0}}, read(path))
    known = {**REQUIRED, **OPTIONAL}
    for key, value in values.items():
        if key not in known:
            raise TrainError(f"{path}: {key} is not an option; there are {', '.join(sorted(known))}")
        kind = (int, float) if known[key] is float else known[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TrainError(f"{path}: {key} is {value!r:.60}, expected {known[key].__name__}")
    for key in REQUIRED:
        if key not in values:
            raise TrainError(f"{path} has no {key}")
    for key in ("steps", "batch_tokens", "log_every", "evaluate_every", "checkpoint_every"):
        if values[key] < 1:
            raise TrainError(f"{path}: {key} is {values[key]}, expected at least 1")
    if not values["lr"] or not all(type(v) in (int, float) and v > 0 for v in values["lr"]):
        raise TrainError(f"{path}: lr is {values['lr']!r:.60}, expected a list of numbers above 0")
    model = values["model"]
    missing, extra = MODEL - set(model), set(model) - MODEL
    if missing or extra:
        raise TrainError(f"{path}: model has {'no ' if missing else ''}"
                         f"{sorted(missing or extra)[0]}; expected {', '.join(sorted(MODEL))}")
    if values["dtype"] not in ("f16", "bf16", "f32"):
        raise TrainError(f"{path}: dtype is {values['dtype']!r:.40}, expected f16, bf16 or f32")
    return values


def write_json(path, value):
    """Complete or not at all."""
    with open(path + ".part", "w") as f:
        json.dump(value, f, indent=1)
        f.write("\n")
        f.flush()
        os.fsync(f.fileno())
    os.replace(path + ".part", path)


def read_json(path):
    with open(path) as f:
        return json.load(f)
