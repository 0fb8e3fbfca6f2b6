"""Which layers need softmax most: KL(teacher || teacher with one layer's attention swapped) on the
validation sequences, one layer at a time, with the maps of a finished stage 1."""
import torch

from ..config import TrainError, write_json
from .data import Sequences
from .distill import Divergence, shifted, sums_of_rows
from .llama import Llama
from .run import compile_layers, make_student, spread, weights_of
from .settings import sensitivity_path, stage_folder


def measure(student, sequences, n, say=print):
    llama = student.llama
    total, numbers = torch.zeros(llama.n_layers), spread(sequences, n)
    with torch.no_grad():
        for at, number in enumerate(numbers, 1):
            ids = sequences.rows("validation", [number]).to(llama.device)
            inputs = [student.start(ids, 0)]
            for weights in llama.layers:
                inputs.append(llama.layer(weights, inputs[-1]))
            t = llama.end(inputs[-1])[0]
            for i, weights in enumerate(llama.layers):
                x = student.layer(weights, student.own(i), inputs[i])
                for later in llama.layers[i + 1:]:
                    x = llama.layer(later, x)
                kl, _ = Divergence.apply(llama.end(x)[0], t, llama.head, shifted(ids), "kl", sums_of_rows)
                total[i] += kl.item() / len(numbers)
            say(f"sequence {at} of {len(numbers)}", flush=True)
    return total.tolist()


def run(config, base, data, runs, n, products="float32", device="cpu", compile=False):
    """-> what it writes beside the maps: KL by layer, and the layers from most to least sensitive"""
    folder = stage_folder(runs, config["name"], "transfer")
    path = sensitivity_path(runs, config["name"])
    if n < 1:
        raise TrainError(f"--sequences is {n}, expected at least 1")
    llama = Llama(base, products, device)
    sequences = Sequences(data, config["seed"], llama.vocab)
    student = make_student(config, "transfer", llama, runs)
    student.load(weights_of(folder))
    if compile:
        compile_layers(llama, student)
    kl = measure(student, sequences, n)
    order = sorted(range(len(kl)), key=lambda i: -kl[i])
    write_json(path, {"sequences": len(spread(sequences, n)), "kl": [round(v, 6) for v in kl], "order": order})
    return path
