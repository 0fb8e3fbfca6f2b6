"""The config of a linearization: YAML or JSON, on top of the file that its `base` names; where its runs lie
and what they begin with."""
import os

from ..config import TrainError, merge, read

DEFAULTS = {
    "seed": 1, "log_every": 10, "evaluate_every": 100, "checkpoint_every": 50, "validation": 6,
    "student": {"window": 64, "n_sink": 0, "softmax_layers": [], "affine": False, "linear": True,
                "init_scale": 1.0, "init_factor": -2.1972245773362196, "trained_length": 0},
    "distill": {"rank": 8, "alpha": 16, "loss": "kl", "clip": 1.0},
}
STAGE = {"steps": int, "batch": int, "warmup": int, "lr": dict}
KEYS = {
    "": {"name": str, "about": str, "seed": int, "log_every": int, "evaluate_every": int,
         "checkpoint_every": int, "validation": int, "student": dict, "transfer": dict,
         "transfer_from": str, "distill_from": str, "distill": dict},
    "student": {"window": int, "n_sink": int, "softmax_layers": (list, dict), "affine": bool,
                "linear": bool, "init_scale": float, "init_factor": float, "trained_length": int},
    "transfer": {**STAGE, "positions": int},
    "distill": {**STAGE, "positions": int, "rank": int, "alpha": float, "loss": str, "clip": float},
    "lr": {"maps": float, "factors": float, "lora": float},
}
LEAST = {"log_every": 1, "evaluate_every": 1, "checkpoint_every": 1, "validation": 1, "window": 1,
         "n_sink": 0, "trained_length": 0, "steps": 1, "batch": 1, "warmup": 0, "rank": 1, "positions": 0}


def check(values, kind, path):
    for key, value in values.items():
        known = KEYS[kind]
        if key not in known:
            raise TrainError(f"{path}: {key} is not an option; there are {', '.join(sorted(known))}")
        want = (int, float) if known[key] is float else known[key]
        if not isinstance(value, want) or isinstance(value, bool) != (known[key] is bool):
            name = want.__name__ if isinstance(want, type) else " or ".join(w.__name__ for w in want)
            raise TrainError(f"{path}: {key} is {value!r:.60}, expected {name}")
        if key in LEAST and value < LEAST[key]:
            raise TrainError(f"{path}: {key} is {value}, expected at least {LEAST[key]}")
        if key in KEYS:
            check(value, key, f"{path}: {key}")


def load(path):
    values = read(path)
    defaults = DEFAULTS if "distill" in values else {k: v for k, v in DEFAULTS.items() if k != "distill"}
    values = merge(defaults, values)
    check(values, "", path)
    if "name" not in values:
        raise TrainError(f"{path} has no name")
    for stage in ("transfer", "distill"):
        missing = [k for k in STAGE if k not in values.get(stage, STAGE)]
        if missing:
            raise TrainError(f"{path}: {stage} has no {missing[0]}")
    student = values["student"]
    begins = [key for key in ("transfer", "transfer_from", "distill_from") if key in values]
    if student["linear"] and len(begins) != 1:
        raise TrainError(f"{path}: expected one of transfer, transfer_from and distill_from")
    if not student["linear"] and "transfer" in values:
        raise TrainError(f"{path}: without a linear part there is nothing to transfer")
    maps = ("maps", "factors") if student["linear"] else ()
    for stage, groups in (("transfer", maps), ("distill", (*maps, "lora"))):
        missing = [g for g in groups if stage in values and g not in values[stage]["lr"]]
        if missing:
            raise TrainError(f"{path}: {stage}: lr has no {missing[0]}")
    if values.get("distill", {}).get("loss", "kl") not in ("kl", "ce"):
        raise TrainError(f"{path}: distill: loss is {values['distill']['loss']!r:.20}, expected kl or ce")
    chosen = student["softmax_layers"]
    if isinstance(chosen, dict) and (set(chosen) != {"most_sensitive"} or "transfer_from" not in values):
        raise TrainError(f"{path}: softmax_layers is a list of layers, or most_sensitive: N together with "
                         "transfer_from")
    return values


def stage_folder(runs, name, stage):
    return os.path.join(runs, name, stage)


def source_of(config):
    """-> the name of a config and its stage, with which this one's stage 2 begins"""
    if "distill_from" in config:
        return config["distill_from"], "distill"
    return config.get("transfer_from", config["name"]), "transfer"


def goes_on(config, stage):
    """Whether a stage begins with weights of another."""
    return stage == "distill" and (config["student"]["linear"] or "distill_from" in config)


def sensitivity_path(runs, name):
    return os.path.join(stage_folder(runs, name, "transfer"), "sensitivity.json")
