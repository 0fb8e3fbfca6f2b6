"""One run: a config and a learning rate. Killed at any point it goes on from its last checkpoint,
and ends with the same numbers as if nothing had happened."""
import glob
import io
import json
import math
import os
import time

import numpy as np
import torch

from .config import TrainError, read_json, write_json
from .mixers import Hedgehog
from .model import Model, is_matrix
from .tasks import make_task


def device_of(name):
    """What --device names, if it is here: PyTorch itself says so in three ways, and late."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    found = device and {"cpu": 1, "cuda": torch.cuda.device_count()}.get(device.type, 0)
    if not found or (device.index or 0) >= found:
        raise TrainError(f"--device is {name}: PyTorch finds no such device here, expected cpu or cuda")
    return device


def run_folder(out, config, lr):
    return os.path.join(out, config["name"], f"lr-{lr:g}")


class Loss(torch.autograd.Function):
    """Mean cross-entropy of h E^T against labels, and how many are right: as PyTorch's, without
    its copies of the [n, vocab] logits."""

    @staticmethod
    def forward(ctx, h, E, labels):
        logits = h @ E.t()
        best, ids = logits.max(-1)
        own = logits.gather(1, labels[:, None])[:, 0]
        p = logits.sub_(best[:, None]).exp_()
        total = p.sum(-1)
        ctx.save_for_backward(h, E, labels, p.div_(total[:, None]))
        hits = (ids == labels).sum()
        ctx.mark_non_differentiable(hits)
        return (total.log() + best - own).mean(), hits

    @staticmethod
    def backward(ctx, grad, _):
        h, E, labels, p = ctx.saved_tensors
        p[torch.arange(len(labels), device=p.device), labels] -= 1
        p.mul_(grad / len(labels))
        return p @ E, p.t() @ h, None


def learning_rate(config, lr, step):
    """Warm-up, then a cosine to 0, per step."""
    warm = min(1.0, (step + 1) / max(1, config["warmup"]))
    return lr * warm * 0.5 * (1 + math.cos(math.pi * step / config["steps"]))


def train(config, lr, out, until=None, device="cpu", say=print):
    """Runs or goes on up to step `until` (default: the end). -> the run's folder"""
    device, folder = device_of(device), run_folder(out, config, lr)
    os.makedirs(folder, exist_ok=True)
    if os.path.exists(os.path.join(folder, "result.json")):
        return folder
    keep_config(config, folder)
    torch.manual_seed(config["seed"])
    model, task = Model(config["model"]).to(device), make_task(config)
    if config.get("start_from"):
        start_from(model, os.path.join(out, config["start_from"]))
    if hasattr(task, "attach"):
        task.attach(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=config["weight_decay"])
    checkpoint, curve = (os.path.join(folder, n) for n in ("checkpoint.pt", "curve.jsonl"))
    step, seconds, window = 0, 0.0, new_window()
    if os.path.exists(checkpoint):
        saved = torch.load(checkpoint, map_location=device)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step, seconds, window = saved["step"], saved["seconds"], saved["window"]
    cut_curve(curve, step)
    end, started = min(until or config["steps"], config["steps"]), time.process_time()

    def spent():
        return round(seconds + time.process_time() - started, 1)

    while step < end:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, lr, step)
        x, y = (a.to(device) for a in task.batch(step))
        labelled = y != -100
        transferring = set_transfer(model, step < config.get("transfer", 0))
        h = model.hidden(x)[labelled]
        loss, hits = Loss.apply(h, model.embed.weight, y[labelled])
        if transferring:
            loss = sum(m.difference for m in transferring)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config["clip"])
        optimizer.step()
        if not math.isfinite(loss.item()):
            raise TrainError(f"{folder}: the loss is {loss.item()} at step {step}: try a smaller lr")
        step += 1
        window["n"] += 1
        window["loss"] += loss.item()
        window["hits"] += int(hits)
        window["labels"] += int(labelled.sum())
        row = {}
        if step % config["log_every"] == 0 or step == config["steps"]:
            row = {"loss": window["loss"] / window["n"],
                   "accuracy": window["hits"] / window["labels"]}
            window = new_window()
        if step % config["evaluate_every"] == 0 and step < config["steps"]:
            row["validation"] = task.validate(model, few=True)
        if row:
            row = {"step": step, **row, "cpu_seconds": spent()}
            with open(curve, "a") as f:
                f.write(json.dumps(row) + "\n")
            say(f"{config['name']} lr {lr:g} " + " ".join(
                f"{k} {v:.4g}" for k, v in row.items() if k != "validation"))
        if step % config["checkpoint_every"] == 0 or step == end:
            save(checkpoint, dict(model=model.state_dict(), optimizer=optimizer.state_dict(),
                                  step=step, seconds=spent(), window=window))
    if step == config["steps"]:
        finish(config, lr, folder, model, task, spent)
    return folder


def set_transfer(model, on):
    """LoLCATs' first stage: only feature maps and window factors learn, from softmax attention.
    -> the mixers that do"""
    mixers = [m for m in model.modules() if isinstance(m, Hedgehog)]
    learn = {id(p) for m in mixers for n, p in m.named_parameters(recurse=False)}
    for m in mixers:
        m.transfer = on
    for p in model.parameters():
        p.requires_grad_(not on or id(p) in learn)
    return mixers if on else []


def new_window():
    return {"n": 0, "loss": 0.0, "hits": 0, "labels": 0}


def keep_config(config, folder):
    """A run's folder belongs to one config."""
    path = os.path.join(folder, "config.json")
    if not os.path.exists(path):
        write_json(path, config)
    elif read_json(path) != json.loads(json.dumps(config)):
        raise TrainError(f"{folder} has a run of another config: choose another folder with -o, or "
                         "remove it")


def cut_curve(path, step):
    """Drops what a killed run wrote after its last checkpoint."""
    if not os.path.exists(path):
        return
    rows = []
    with open(path) as f:
        for line in f:
            try:
                if json.loads(line)["step"] <= step:
                    rows.append(line)
            except ValueError:
                pass  # the line it was writing when it was killed
    with open(path + ".part", "w") as f:
        f.writelines(rows)
    os.replace(path + ".part", path)


def save(path, value):
    with io.BytesIO() as whole:  # PyTorch's own writing to a disk that is full ends the process
        torch.save(value, whole)
        with open(path + ".part", "wb") as f:
            f.write(whole.getbuffer())
    os.replace(path + ".part", path)


def start_from(model, path):
    """The weights of the best finished run of a config, wherever names and shapes agree."""
    runs = [(read_json(r)["score"], os.path.dirname(r))
            for r in glob.glob(os.path.join(glob.escape(path), "*", "result.json"))]
    if not runs:
        raise TrainError(f"start_from: {path} has no finished run")
    arrays = np.load(os.path.join(max(runs)[1], "weights.npz"))
    own = model.state_dict()
    for name in arrays.files:
        if name in own and own[name].shape == arrays[name].shape:
            own[name].copy_(torch.from_numpy(arrays[name]))


def rounded(state, dtype):
    """Matrices as the model file will have them, still in float32."""
    kinds = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
    return {name: t.to(kinds[dtype]).float() if is_matrix(name, t) else t
            for name, t in state.items()}


def finish(config, lr, folder, model, task, spent):
    """Rounds the weights to the file's type first: all results are of what is exported."""
    model.load_state_dict(rounded(model.state_dict(), config["dtype"]))
    values = task.validate(model, few=False)
    weights = {name: t.detach().cpu().numpy() for name, t in model.state_dict().items()}
    part = os.path.join(folder, ".weights.part.npz")
    np.savez(part, **weights)
    os.replace(part, os.path.join(folder, "weights.npz"))
    write_json(os.path.join(folder, "result.json"),
               {"name": config["name"], "lr": lr, "steps": config["steps"], "validation": values,
                "score": task.score(values), "parameters": sum(w.size for w in weights.values()),
                "cpu_seconds": spent(), "torch": torch.__version__})
    os.unlink(os.path.join(folder, "checkpoint.pt"))


def load_run(folder, double=False):
    """A finished run's config and model."""
    config = read_json(os.path.join(folder, "config.json"))
    arrays = np.load(os.path.join(folder, "weights.npz"))
    model = Model(config["model"])
    model.load_state_dict({n: torch.from_numpy(arrays[n]) for n in arrays.files})
    return config, (model.double() if double else model).eval()
