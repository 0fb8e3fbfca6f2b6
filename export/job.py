"""One export: checkpoint -> plan -> checks -> model file."""
import os
import re

import numpy as np

from .checkpoint import FLOATS, open_checkpoint, to_float32
from .errors import ExportError, names, note
from .families import make_plan
from .families.base import Out
from .families.lolcats import linearize
from .tokenizer import load_tokenizer
from .writer import write_model


def run(args):
    source, out = args.source, args.out
    check_out(out)
    values, tensors = open_checkpoint(source)
    config_path = os.path.join(source, "config.json")
    if getattr(args, "lolcats", None) is not None:
        plan = linearize(args, values, config_path, tensors)
    else:
        plan = make_plan(values, config_path, {name: t.shape for name, t in tensors.items()})
    settle_twin(plan, tensors)
    check_tensors(plan, tensors, source)
    tokenizer = load_tokenizer(args.tokenizer or source, values, plan.n_rows,
                               required=args.tokenizer is not None)
    for text in plan.notes:
        note(text)
    if tokenizer is None:
        note(f"{source} has no tokenizer; the model file will have no vocabulary")
    write_model(out, plan, tensors, tokenizer, args.type, model_name(values, source))


def check_out(out):
    folder = os.path.dirname(os.path.abspath(out))
    if os.path.isdir(out):
        raise ExportError(f"{out} is a folder, expected a file name")
    if not os.path.isdir(folder):
        raise ExportError(f"{folder} does not exist")
    if not os.access(folder, os.W_OK):
        raise ExportError(f"{folder} cannot be written to")


def model_name(values, source):
    path = values.get("_name_or_path")
    if not isinstance(path, str) or not path.strip("/."):
        path = os.path.realpath(source)
    return os.path.basename(path.rstrip("/")) or "model"


def settle_twin(plan, tensors):
    """A tied config with both matrices in the file: equal, so one is enough; else both are kept."""
    if plan.twin is None:
        return
    embedding, head = (tensors.get(n) for n in plan.twin)
    plan.ignorable.append(re.escape(plan.twin[1]))
    if embedding.shape != head.shape:
        raise ExportError(f"{head.file}: tensor {head.name} has shape {list(head.shape)}, expected "
                          f"{list(embedding.shape)} as {embedding.name}, to which it is tied")
    if not np.array_equal(*(to_float32(t.read(), t.dtype) for t in (embedding, head))):
        plan.notes.append(f"tie_word_embeddings is true but {head.name} differs from "
                          f"{embedding.name}; both are kept, as transformers does")
        plan.tensors.append(Out("output.weight", (head.name,), (head.shape,)))
        plan.tied = False


def check_tensors(plan, tensors, source):
    used = set()
    for out in plan.tensors:
        for name, shape in zip(out.sources, out.shapes):
            tensor = tensors.get(name)
            if tensor is None:
                raise ExportError(f"{source}: tensor {name} is missing (expected shape "
                                  f"{list(shape)})")
            if tensor.shape != shape:
                raise ExportError(f"{tensor.file}: tensor {name} has shape {list(tensor.shape)}, "
                                  f"expected {list(shape)}")
            if tensor.dtype not in FLOATS:
                raise ExportError(f"{tensor.file}: tensor {name} has dtype {tensor.dtype}, expected "
                                  f"one of {', '.join(FLOATS)}")
            used.add(name)
    left = sorted(set(tensors) - used)
    ignored = [n for n in left if any(re.fullmatch(p, n) for p in plan.ignorable)]
    unknown = [n for n in left if n not in set(ignored)]
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise ExportError(f"{tensors[unknown[0]].file}: tensor {unknown[0]}{more} is neither used by "
                          f"a {plan.arch} model nor known to be ignorable")
    if ignored:
        note(f"ignored: {names(ignored)}")
