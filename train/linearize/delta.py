"""A finished run as a delta: feature maps, window factors and LoRA in float16, and the options that
python3 -m export needs, both in upstream's layout; and a card: recipe, seed, data, curves, hashes."""
import json
import os

import torch
import yaml

from ..cards import refresh_readme, rounded, sha256, write_card
from ..config import TrainError, read_json
from ..run import save
from .settings import goes_on, source_of, stage_folder
from .student import Student, group_of


def read_run(folder):
    try:
        return read_json(os.path.join(folder, "config.json"))
    except OSError as e:
        raise TrainError(f"{folder}: not a run: {e.strerror}")


def trained_on(folder):
    """What the run's linear part was trained on; 0 without one."""
    config = read_run(folder)
    if not config["student"]["linear"]:
        return 0
    return config["student"].get("trained_length") or positions_of(config)


def positions_of(config):
    return max(config["data"]["length"], config[config["stage"]].get("positions", 0))


def options_of(config, head_dim, length):
    """The run's config as LoLCATs' yaml, with this trained length."""
    s = config["student"]
    attention = {"attention_type": "lolcats_llama_window_sw" if s["linear"] else "window_softmax",
                 "window_size": s["window"], "n_sink": s["n_sink"],
                 "softmax_attentions": config["softmax"] if config["stage"] != "transfer" else []}
    if s["linear"]:
        attention.update(
            affine_attention_factors=s["affine"], init_window_factor=s["init_factor"],
            **({"trained_length": length} if length else {}),
            feature_map="softmax_dim", feature_map_kwargs={"eps": 1e-12, "fullspace": True},
            learned_kernel="untied_head_einsum", tie_qk_kernels=False,
            learned_kernel_kwargs={"feature_dim": head_dim, "skip_connection": False, "bias": False})
    out = {"attention": attention, "model": {"torch_dtype": "float32"}}
    if config["stage"] == "distill":
        d = config["distill"]
        out["finetune"] = {"method": "lora", "kwargs": {"r": d["rank"], "lora_alpha": d["alpha"]}}
    return out


def tensors_of(folder):
    """-> (run's config, {name: float16})"""
    config, path = read_run(folder), os.path.join(folder, "weights.pt")
    if not os.path.exists(path):
        raise TrainError(f"{folder} is not finished: {path} is missing")
    tensors = {n: t.half() for n, t in torch.load(path, map_location="cpu").items()}
    for name, t in tensors.items():
        if not torch.isfinite(t).all():
            raise TrainError(f"{folder}: {name} has values that float16 does not hold")
    return config, tensors


def stages(folder, config):
    """-> folders of the stages that made a run, in their order, its own last"""
    if not goes_on(config, config["stage"]):
        return [folder]
    before = stage_folder(os.path.dirname(os.path.dirname(os.path.abspath(folder))), *source_of(config))
    return stages(before, read_run(before)) + [folder]


def card(folder, config, name, file, held):
    out = {"name": name, "parameters": read_json(os.path.join(folder, "result.json"))["parameters"],
           "sha256": sha256(file), "seed": config["seed"], "softmax layers": config["softmax"]}
    curve, places = [], stages(folder, config)
    for place in places:
        own, result = read_run(place), read_json(os.path.join(place, "result.json"))
        key = own["stage"] if own["stage"] == "transfer" or place == places[-1] else "distill before"
        out[key] = {"run": own["name"], **own[own["stage"]], "tokens": result["tokens"], "length": own["data"]["length"],
                    **{k: result[k] for k in ("cpu_seconds", "seconds", "device") if k in result},
                    "products": own["products"], "torch": result["torch"],
                    "held out": {k: v for k, v in result["validation"].items() if k != "layers"}}
        with open(os.path.join(place, "curve.jsonl")) as f:
            curve += [{"stage": key, **rounded(json.loads(line))} for line in f]
        measured = os.path.join(place, "sensitivity.json")
        if out["softmax layers"] and os.path.exists(measured):
            out["sensitivity"] = read_json(measured)
    for row in curve:
        row.get("validation", {}).pop("layers", None)
    length = positions_of(config)
    return {**out, "student": {**config["student"], "trained_length": held}, "teacher": config["teacher"],
            "data": config["data"],
            "limits": [f"trained on {length} positions: whatever is longer is extrapolation" +
                       (f", with the linear part held as it is at {held}" if held else ""),
                       "of texts of the kinds in `data`", "one seed; no other rates were tried in this run"],
            "curve": curve}


def stem_of(out):
    """-> OUT without .pt, in a folder that is there"""
    stem = out[:-3] if out.endswith(".pt") else out
    os.makedirs(os.path.dirname(stem) or ".", exist_ok=True)
    return stem


def write(folder, out, length):
    """OUT.pt, and OUT.yaml and OUT.json beside it. `length`: the linear part's trained length, 0 for
    none. -> the paths of the first two"""
    config, tensors = tensors_of(folder)
    maps = next((t for n, t in tensors.items() if group_of(n) == "maps"), None)
    stem = stem_of(out)
    save(stem + ".pt", tensors)
    with open(stem + ".yaml", "w") as f:
        yaml.safe_dump(options_of(config, maps.shape[-1] if maps is not None else 0, length), f, sort_keys=False)
    write_card(stem + ".json", card(folder, config, os.path.basename(stem), stem + ".pt", length))
    refresh_readme(os.path.dirname(stem) or ".")
    return stem + ".pt", stem + ".yaml"


def untrained(llama, config, out):
    """The same of a student as it begins: what training is compared with."""
    options = {**config["student"], "softmax_layers": []}
    student = Student(llama, options)
    stem = stem_of(out)
    save(stem + ".pt", {n: t.half() for n, t in student.state().items()})
    with open(stem + ".yaml", "w") as f:
        yaml.safe_dump(options_of({**config, "stage": "transfer"}, llama.head_dim, options["trained_length"]), f, sort_keys=False)
    return stem + ".pt", stem + ".yaml"


def load_student(llama, folder):
    """The student of a finished run as its delta has it: float16 values, float32 products."""
    config, tensors = tensors_of(folder)
    options = {**config["student"],
               "softmax_layers": config["softmax"] if config["stage"] == "distill" else []}
    student = Student(llama, options, config["distill"] if config["stage"] == "distill" else None)
    student.load({n: t.float() for n, t in tensors.items()})
    return json.loads(json.dumps(options)), student
