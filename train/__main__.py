"""python3 -m train CONFIG [--lr X] [-o FOLDER]: trains a model, or goes on training it."""
import argparse
import os
import sys

from .config import TrainError, load, reason


def main():
    parser = argparse.ArgumentParser(prog="python3 -m train", description=__doc__.split(": ")[1])
    parser.add_argument("config", help="a file like those in train/configs")
    parser.add_argument("--lr", type=float, help="only this one of the config's learning rates")
    parser.add_argument("-o", "--out", default="runs", help="where runs lie (default: runs)")
    parser.add_argument("--until", type=int, help="stop after this step; a later call goes on")
    parser.add_argument("--data", help="folder of prepared text, instead of the config's task.data")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--test", action="store_true",
                        help="then measure the best run on the test sequences")
    args = parser.parse_args()
    try:
        config = load(args.config)
        if args.data and config["task"].get("kind") == "text":
            config["task"]["data"] = args.data
        try:
            import torch
        except ImportError:
            raise TrainError("training needs PyTorch 1.13 or later (Debian: python3-torch and "
                             "libopenblas0-pthread)")
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 0)) or torch.get_num_threads())
        from .run import train
        from .test import test
        for lr in [args.lr] if args.lr else config["lr"]:
            train(config, lr, args.out, args.until, args.device)
        if args.test:
            test(config, args.out)
    except TrainError as e:
        sys.exit(f"train: {e}")
    except OSError as e:
        sys.exit(f"train: {reason(e)}")
    except KeyboardInterrupt:
        sys.exit("train: stopped; the same command goes on from the last checkpoint")


main()
