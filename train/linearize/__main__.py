"""python3 -m train.linearize COMMAND: docs/linearize.md walks through them."""
import argparse
import os
import sys

from ..config import TrainError, reason


def need_torch():
    try:
        import torch
    except ImportError:
        raise TrainError("this needs PyTorch 1.13 or later (Debian: python3-torch and libopenblas0-pthread)")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 0)) or torch.get_num_threads())


def base(args):
    from . import base
    config = base.write(args.model, args.out)
    print(f"{args.out}: {config['num_hidden_layers']} layers of width {config['hidden_size']}")


def sample(args):
    from .sample import Sampler, sample as run, serving
    with serving(args.linnet, args.model, args.at_once, args.threads) as url:
        run(Sampler(url, args.text, args.seed, args.n), args.out, range(args.documents), args.at_once)


def tokens(args):
    from . import data
    print(data.prepare(args.linnet, args.model, args.text, args.out, args.length, args.separator, args.seed,
                       args.repeats))


def stage(args):
    from .settings import load
    config = load(args.config)
    need_torch()
    from .run import run
    run(config, args.command, args.base, args.data, args.out, args.products, args.device, args.until, args.cache,
        args.recompute, args.compile)


def sensitivity(args):
    from .settings import load
    config = load(args.config)
    need_torch()
    from .sensitivity import run
    print(run(config, args.base, args.data, args.out, args.sequences, args.products, args.device,
              args.compile))


def trained_length(args):
    if args.trained_length is not None:
        if args.trained_length < 0:
            raise TrainError(f"--trained-length is {args.trained_length}, expected at least 0")
        return args.trained_length
    from .delta import trained_on
    return trained_on(args.run)


def delta(args):
    need_torch()
    from .delta import write
    print(*write(args.run, args.out, trained_length(args)))


def untrained(args):
    from .settings import load
    config = load(args.config)
    need_torch()
    from .delta import untrained
    from .llama import Llama
    print(*untrained(Llama(args.base), config, args.out))


def check(args):
    need_torch()
    from .check import compare
    error = compare(args.run, args.base, args.data, args.linnet, trained_length(args))
    print(f"largest difference of a logit: {error:.2e} of the RMS")
    if not error <= args.limit:
        raise TrainError(f"the logits of linnet and PyTorch differ by {error:.2e} of their RMS, expected at most "
                         f"{args.limit:g}")


def curves(args):
    from .curves import write
    write(args.run, args.out)


def queue(args):
    from .jobs import run
    more = ["--base", args.base, "--data", args.data, "--products", args.products, "--device", args.device]
    more += ["--cache", args.cache] if args.cache else []
    more += ["--compile"] if args.compile else []
    failed = run(args.config, args.out, args.jobs, more)
    if failed:
        raise TrainError(f"{len(failed)} failed: {', '.join(failed)}")


def parse(argv):
    parser = argparse.ArgumentParser(prog="python3 -m train.linearize", description=__doc__.split(": ", 1)[1])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name, work, help):
        p = commands.add_parser(name, help=help, description=help)
        p.set_defaults(work=work)
        return p

    def add_length(p):
        p.add_argument("--trained-length", type=int, metavar="L", help="hold the linear part beyond L tokens as it is "
                       "there (default: what it was trained on; 0: never, as upstream)")

    def add_training(p):
        p.add_argument("--base", required=True, help="folder of the teacher")
        p.add_argument("--data", required=True, help="folder that `tokens` prepared")
        p.add_argument("-o", "--out", default="runs", help="where runs lie (default: runs)")
        p.add_argument("--products", choices=("float32", "bf16"), default="float32",
                       help="of the teacher's matrices; bf16 is fast where the processor multiplies it")
        p.add_argument("--device", default="cpu", help="cpu (default) or cuda")
        p.add_argument("--compile", action="store_true", help="layers by torch.compile: for a GPU")
        p.add_argument("--cache", help="folder that keeps the teacher's last hidden states for all of stage 2,"
                       " or `memory`: the device's, for this run alone")

    p = add("base", base, "a GGUF file as a folder in Hugging Face layout")
    p.add_argument("model")
    p.add_argument("-o", "--out", required=True)
    p = add("sample", sample, "text of the teacher's own, for training")
    p.add_argument("model", help="the teacher as GGUF")
    p.add_argument("text", nargs="+", help="books that give it something to begin with")
    p.add_argument("-o", "--out", required=True, help="JSON Lines file; goes on where it was cut off")
    p.add_argument("--documents", type=int, default=400)
    p.add_argument("--at-once", type=int, default=16, help="documents at a time; which does not change them")
    p.add_argument("-n", type=int, default=700, help="most tokens of a piece")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--linnet", default="./linnet")
    p = add("tokens", tokens, "texts and sampled documents as packed sequences of ids")
    p.add_argument("model", help="GGUF file with the vocabulary")
    p.add_argument("text", nargs="+")
    p.add_argument("-o", "--out", required=True)
    p.add_argument("--length", type=int, default=1024)
    p.add_argument("--repeats", type=int, default=0, help="documents that say a passage of the texts twice")
    p.add_argument("--separator", type=int, required=True, help="id between documents: the model's end of text")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--linnet", default="./linnet")
    for name, text in (("transfer", "stage 1: maps learn softmax attention"),
                       ("distill", "stage 2: LoRA and maps learn the teacher's predictions")):
        p = add(name, stage, text)
        p.add_argument("config", help="a file like train/configs/linearize-sinks.yaml")
        add_training(p)
        p.add_argument("--until", type=int, help="stop after this step; a later call goes on")
        p.add_argument("--recompute", action="store_true", help="less memory for a third more time")
    p = add("sensitivity", sensitivity, "which layers need softmax most")
    p.add_argument("config", help="whose stage 1 is finished")
    add_training(p)
    p.add_argument("--sequences", type=int, default=12)
    p = add("delta", delta, "a finished run as OUT.pt and OUT.yaml, for python3 -m export --lolcats, and its card, OUT.json")
    p.add_argument("run", help="a run's folder: FOLDER/NAME/transfer or FOLDER/NAME/distill")
    p.add_argument("-o", "--out", required=True)
    add_length(p)
    p = add("untrained", untrained, "a config's model before any training, for comparison")
    p.add_argument("config")
    p.add_argument("--base", required=True)
    p.add_argument("-o", "--out", required=True)
    p = add("check", check, "the logits of linnet against PyTorch's")
    p.add_argument("run")
    p.add_argument("--base", required=True)
    p.add_argument("--data", required=True)
    p.add_argument("--linnet", default="./linnet")
    p.add_argument("--limit", type=float, default=1e-3, help="of the largest difference over the RMS (1e-3)")
    add_length(p)
    p = add("curves", curves, "loss curves as SVG")
    p.add_argument("run", nargs="+")
    p.add_argument("-o", "--out", required=True)
    p = add("queue", queue, "both stages of many configs, a few at a time, each on one thread")
    p.add_argument("config", nargs="+")
    add_training(p)
    p.add_argument("--jobs", type=int, default=2, help="at once (default 2)")
    return parser.parse_args(argv)


def main():
    args = parse(sys.argv[1:])
    try:
        args.work(args)
    except TrainError as e:
        sys.exit(f"train.linearize: {e}")
    except OSError as e:
        sys.exit(f"train.linearize: {reason(e)}")
    except KeyboardInterrupt:
        sys.exit("train.linearize: stopped; the same command goes on from the last checkpoint")


main()
