"""A stage of a linearization as a run that can be killed at any point: the same command goes on from
its last checkpoint and ends with the same curve and weights, on a CPU bit for bit on the same machine."""
import hashlib
import json
import math
import os
import time

import torch

from ..config import TrainError, read_json, write_json
from ..run import cut_curve, keep_config, learning_rate, save
from .data import Sequences
from .distill import Distill
from .llama import Llama
from .settings import goes_on, sensitivity_path, source_of, stage_folder
from .student import Student
from .transfer import Transfer


def weights_of(folder):
    path = os.path.join(folder, "weights.pt")
    if not os.path.exists(path):
        raise TrainError(f"{folder}: not a finished run")
    return torch.load(path, map_location="cpu")


def chosen_layers(config, runs):
    """softmax_layers as a list: those given, or the most sensitive as `sensitivity` measured them."""
    layers = config["student"]["softmax_layers"]
    if isinstance(layers, list):
        return layers
    path = sensitivity_path(runs, config["transfer_from"])
    try:
        order = read_json(path)["order"]
    except OSError:
        raise TrainError(f"{path} is missing; python3 -m train.linearize sensitivity makes it")
    return sorted(order[:layers["most_sensitive"]])


def make_student(config, stage, llama, runs):
    """As the stage begins: identity maps, or what it goes on from."""
    options = {**config["student"], "softmax_layers": chosen_layers(config, runs)}
    wrong = [i for i in options["softmax_layers"] if type(i) is not int or not 0 <= i < llama.n_layers]
    if wrong:
        raise TrainError(f"softmax_layers: {wrong[0]!r:.20} is no layer of {llama.folder}")
    torch.manual_seed(config["seed"])
    if stage == "transfer":
        return Student(llama, {**options, "softmax_layers": []})
    student = Student(llama, options, config["distill"])
    if goes_on(config, stage):
        student.load(weights_of(stage_folder(runs, *source_of(config))))
    return student


class Window:
    """Means over the steps since the last row of the curve."""

    def __init__(self, values=None):
        self.values = values or {"n": 0}

    def add(self, row):
        self.values["n"] += 1
        for key, v in row.items():
            self.values[key] = self.values.get(key, 0.0) + v

    def take(self):
        n = self.values.pop("n")
        row = {key: v / n for key, v in self.values.items()}
        self.values = {"n": 0}
        return row


def run(config, stage, base, data, runs, products="float32", device="cpu", until=None, cache=None,
        recompute=False, compile=False, say=print):
    """Runs a stage or goes on, up to step `until`. -> the run's folder"""
    options = config.get(stage)
    if options is None:
        raise TrainError(f"{config['name']} has no {stage} stage")
    folder = stage_folder(runs, config["name"], stage)
    if os.path.exists(os.path.join(folder, "result.json")):
        return folder
    llama = Llama(base, products, device)
    sequences = Sequences(data, config["seed"], llama.vocab)
    student = make_student(config, stage, llama, runs)
    if compile:
        compile_layers(llama, student)
    os.makedirs(folder, exist_ok=True)
    keep_config({**config, "stage": stage, "products": products, "device": llama.device.type, "data": sequences.info,
                 "teacher": llama.fingerprint(), "softmax": sorted(student.softmax),
                 "source": source_sum(config, stage, runs)}, folder)
    if stage == "transfer":
        task = Transfer(student, sequences, options, compile)
    else:
        task = Distill(student, sequences, options, cache, recompute, compile)
    loop(task, config, options, folder, llama.device, until or options["steps"], say)
    return folder


def compile_layers(llama, student):
    """One machine program for layers of a kind, whose intermediate results stay out of memory."""
    if not hasattr(torch, "compile"):
        raise TrainError(f"--compile needs PyTorch 2 or later, this is {torch.__version__}")
    from torch import _dynamo
    _dynamo.config.cache_size_limit = 32  # kinds: softmax or not, learning or not, sizes of a batch
    for model in llama, student:
        model.layer = torch.compile(model.layer, dynamic=False)


def source_sum(config, stage, runs):
    """Stage 2 belongs to the weights that it began with."""
    if not goes_on(config, stage):
        return None
    with open(os.path.join(stage_folder(runs, *source_of(config)), "weights.pt"), "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def spread(sequences, n):
    """n of the validation sequences, evenly."""
    n = min(n, len(sequences.validation))
    return [i * len(sequences.validation) // n for i in range(n)]


def loop(task, config, options, folder, device, until, say):
    student, sequences = task.student, task.sequences
    optimizer = torch.optim.Adam(student.groups(options["lr"]), betas=(0.9, 0.99))
    checkpoint, curve = (os.path.join(folder, n) for n in ("checkpoint.pt", "curve.jsonl"))
    step, seconds, window = 0, 0.0, Window()
    held = spread(sequences, config["validation"])
    if os.path.exists(checkpoint):
        saved = torch.load(checkpoint, map_location="cpu")
        student.load(saved["parameters"])
        optimizer.load_state_dict(saved["optimizer"])
        step, seconds, window = saved["step"], saved["seconds"], Window(saved["window"])
    cut_curve(curve, step or -1)
    # What the work took: the processor's time, or, as a GPU has none, the clock's.
    clock, unit = (time.process_time, "cpu_seconds") if device.type == "cpu" else (time.monotonic, "seconds")
    end, started = min(until, options["steps"]), clock()
    tokens = options["batch"] * sequences.length

    def spent():
        return round(seconds + clock() - started, 1)

    def put(row):
        row = {"step": step, "tokens": step * tokens, **row, unit: spent()}
        with open(curve, "a") as f:
            f.write(json.dumps(row) + "\n")
        shown = {**row, **{f"held {k}": v for k, v in row.get("validation", {}).items()}}
        say(f"{config['name']} {type(task).__name__.lower()} " + " ".join(
            f"{k} {v:.5g}" for k, v in shown.items() if isinstance(v, (int, float))), flush=True)

    if step == 0:
        put({"validation": task.validate(held)})
    while step < end:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(options, group["rate"], step)
        optimizer.zero_grad(set_to_none=True)
        values = task.learn(sequences.numbers(step, options["batch"]), sequences.first(step, options))
        if not math.isfinite(values["loss"]):
            raise TrainError(f"{folder}: the loss is {values['loss']} at step {step}: try a smaller lr")
        if "clip" in options:
            torch.nn.utils.clip_grad_norm_(list(student.parameters.values()), options["clip"])
        optimizer.step()
        step += 1
        window.add(values)
        row = window.take() if step % config["log_every"] == 0 or step == options["steps"] else {}
        if step % config["evaluate_every"] == 0 or step == options["steps"]:
            row["validation"] = task.validate(held)
        if row:
            put(row)
        if step % config["checkpoint_every"] == 0 or step == end:
            save(checkpoint, {"parameters": student.state(), "optimizer": optimizer.state_dict(),
                              "step": step, "seconds": spent(), "window": window.values})
    if step == options["steps"]:
        save(os.path.join(folder, "weights.pt"), student.state())
        write_json(os.path.join(folder, "result.json"), {
            "name": config["name"], "steps": step, "tokens": step * tokens,
            "validation": task.validate(spread(sequences, 4 * config["validation"])),
            "parameters": sum(p.numel() for p in student.parameters.values()),
            unit: spent(), "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
            "torch": torch.__version__})
        os.unlink(checkpoint)
