"""Many linearizations in order, a few at a time, each on one thread: what `queue` runs."""
import os

from ..config import TrainError
from ..queue import locked, work
from .settings import load, sensitivity_path, source_of


def jobs_of(paths, runs, more):
    """-> [(name, command, names of jobs that must have ended)], stage 1 of all configs first"""
    configs, jobs = [(p, load(p)) for p in paths], []
    for stage in ("transfer", "distill"):
        for path, config in configs:
            if stage not in config:
                continue
            first = [" ".join(source_of(config))] if stage == "distill" else []
            source = next((p for p, c in configs if c["name"] == config.get("transfer_from")), None)
            if isinstance(config["student"]["softmax_layers"], dict) and stage == "distill":
                if source is None:
                    raise TrainError(f"{path} needs the config of {config['transfer_from']} in the queue too")
                name = f"{config['transfer_from']} sensitivity"
                measured = os.path.exists(sensitivity_path(runs, config["transfer_from"]))
                if name not in [j[0] for j in jobs] and not measured:
                    jobs.append((name, command("sensitivity", source, runs, more), tuple(first)))
                first.append(name)
            waits = tuple(n for n in first if n in [j[0] for j in jobs])
            jobs.append((f"{config['name']} {stage}", command(stage, path, runs, more), waits))
    return jobs


def command(what, path, runs, more):
    return ["train.linearize", what, path, "-o", runs, *more]


def run(paths, runs, at_once, more):
    """-> names of failed jobs"""
    jobs = jobs_of(paths, runs, more)
    os.makedirs(runs, exist_ok=True)
    with locked(runs), open(os.path.join(runs, "queue.log"), "a") as log:
        return work(jobs, at_once, log)


