"""python3 -m train.queue CONFIG... -o FOLDER: trains many configs in the order given, each with all of
its learning rates, then tests the better run; a few at a time, each on one thread. It can be killed,
and started again with the same command: every run goes on from its last checkpoint."""
import argparse
import contextlib
import fcntl
import os
import subprocess
import sys
import time

from .config import TrainError, load, reason


def jobs_of(paths, more):
    """-> [(name, module and arguments, names of jobs that must have ended)]"""
    jobs = []
    for path in paths:
        config = load(path)
        names = [f"{config['name']} lr {lr:g}" for lr in config["lr"]]
        first = tuple(n for n, _, _ in jobs if n.split()[0] == config.get("start_from"))
        for name, lr in zip(names, config["lr"]):
            jobs.append((name, ["train", path, "--lr", str(lr)] + more, first))
        jobs.append((f"{config['name']} test", ["train", path, "--test"] + more, tuple(names)))
    return jobs


def say(text):
    print(time.strftime("%H:%M:%S"), text, flush=True)


def work(jobs, most, log):
    """A failed job is reported and left; what depends on it runs all the same."""
    if most < 1:
        raise TrainError(f"--jobs is {most}, expected at least 1")
    environment = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    running, ended, failed = {}, set(), []
    waiting = list(jobs)
    while waiting or running:
        for job in list(waiting):
            if len(running) < most and all(n in ended for n in job[2]):
                waiting.remove(job)
                say(f"start {job[0]}")
                running[job[0]] = subprocess.Popen(
                    [sys.executable, "-m", *job[1]], env=environment, stdout=log, stderr=log)
        time.sleep(1)
        for name, process in list(running.items()):
            if process.poll() is not None:
                del running[name]
                ended.add(name)
                if process.returncode:
                    failed.append(name)
                say(f"{'FAILED' if process.returncode else 'done'} {name}, {len(waiting)} jobs left")
    return failed


@contextlib.contextmanager
def locked(out):
    """One queue in a folder; its number is in queue.pid."""
    with open(os.path.join(out, "queue.pid"), "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrainError(f"another queue works in {out}")
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def main():
    parser = argparse.ArgumentParser(prog="python3 -m train.queue",
                                     description=__doc__.split(": ", 1)[1])
    parser.add_argument("config", nargs="+")
    parser.add_argument("-o", "--out", default="runs")
    parser.add_argument("--data", help="folder of prepared text, for language models")
    parser.add_argument("--jobs", type=int, default=2, help="at once (default 2)")
    args = parser.parse_args()
    more = ["-o", args.out] + (["--data", args.data] if args.data else [])
    try:
        jobs = jobs_of(args.config, more)
        os.makedirs(args.out, exist_ok=True)
        with locked(args.out), open(os.path.join(args.out, "queue.log"), "a") as log:
            failed = work(jobs, args.jobs, log)
    except TrainError as e:
        sys.exit(f"train.queue: {e}")
    except OSError as e:
        sys.exit(f"train.queue: {reason(e)}")
    sys.exit(f"train.queue: {len(failed)} failed: {', '.join(failed)}" if failed else None)


if __name__ == "__main__":
    main()
