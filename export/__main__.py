"""Arguments, the .venv beside the package, and errors as sentences. The work is in job.py."""
import argparse
import importlib.util
import os
import signal
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NEEDED = ("numpy", "gguf", "safetensors", "yaml")
MARK = "LINNET_EXPORT_IN_VENV"  # set for the second run, so that there is never a third


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"export: {message}; see python3 -m export --help\n")


def parse(argv):
    parser = Parser(prog="python3 -m export", allow_abbrev=False,
                    description="Turn a checkpoint folder (config.json with safetensors or "
                                ".bin/.pt weights) into a linnet model file.")
    parser.add_argument("source", metavar="SOURCE", help="folder as save_pretrained leaves it")
    parser.add_argument("-o", dest="out", metavar="OUT.gguf", required=True, help="file to write")
    parser.add_argument("--type", choices=("f32", "f16", "bf16", "q8_0", "q4_0"),
                        help="dtype of the matrices (default: as in the source); norms, biases and "
                             "learned positions stay f32")
    parser.add_argument("--tokenizer", metavar="FOLDER_OR_FILE",
                        help="where the tokenizer is (default: SOURCE)")
    group = parser.add_argument_group(
        "linearized models", "SOURCE is the Llama or Mistral base; LoLCATs, Hedgehog, T2R")
    group.add_argument("--lolcats", metavar="MAPS.pt", action="append",
                       help="feature maps (a flat combined file or a full state file too)")
    group.add_argument("--lora", metavar="FT.pt", help="LoRA matrices, merged in float32")
    group.add_argument("--lolcats-config", metavar="FILE", help="the yaml (or json) of the maps' run")
    group.add_argument("--lora-config", metavar="FILE", help="the yaml of the LoRA run, for alpha / r")
    group.add_argument("--set", metavar="KEY=VALUE", action="append",
                       help="an option over the config's: window_size=64, lora_alpha=16, n_sink=4, ...")
    args = parser.parse_args(argv)
    if args.lolcats_config and not args.lolcats:
        args.lolcats = []  # window_softmax has no maps
    for name in ("lora", "lora_config", "set"):
        if getattr(args, name) and args.lolcats is None:
            parser.error(f"--{name.replace('_', '-')} needs --lolcats MAPS.pt")
    return args


def ensure_imports():
    """Returns only when the packages can be imported; otherwise runs again in .venv or exits."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return
    python = os.path.join(ROOT, ".venv", "bin", "python")
    if os.path.exists(python) and MARK not in os.environ:
        path = os.pathsep.join(p for p in (ROOT, os.environ.get("PYTHONPATH")) if p)
        env = dict(os.environ, PYTHONPATH=path)
        env[MARK] = "1"
        try:
            os.execve(python, [python, "-m", "export", *sys.argv[1:]], env)
        except OSError as e:
            sys.exit(f"export: {python} cannot be run: {e.strerror}; run `make deps` again")
    sys.exit(f"export: the Python package {missing[0]} is missing; run `make deps` in {ROOT}")


def terminated(signum, frame):
    raise KeyboardInterrupt  # so that the half-written file is removed


def main():
    args = parse(sys.argv[1:])
    ensure_imports()
    from .errors import ExportError
    from .job import run

    signal.signal(signal.SIGTERM, terminated)
    try:
        run(args)
    except ExportError as e:
        sys.exit(f"export: {e}")
    except KeyboardInterrupt:
        sys.exit("export: interrupted, nothing was written")
    except MemoryError:
        sys.exit("export: out of memory, nothing was written")
    except OSError as e:
        sys.exit(f"export: {e.filename or args.source}: {e.strerror or e}")
    except Exception as e:  # a malformed file that no check foresaw: still a sentence
        at = e.__traceback__
        while at.tb_next:
            at = at.tb_next
        sys.exit(f"export: {args.source} cannot be exported: {type(e).__name__}: {e} "
                 f"({os.path.basename(at.tb_frame.f_code.co_filename)}:{at.tb_lineno})")


if __name__ == "__main__":
    main()
