"""One module per family: recognise(config, tensor names) and plan(config, tensor names) -> Plan.
The first that recognises a checkpoint exports it."""
from ..errors import ExportError
from . import gpt2, llama
from .base import Config

FAMILIES = [llama, gpt2]
SUPPORTED = "llama, mistral, qwen2, qwen3, gpt2"


def make_plan(values, path, names):
    config = Config(values, path)
    for family in FAMILIES:
        if family.recognise(config, names):
            return family.plan(config, names)
    kind = values.get("model_type") or ", ".join(map(str, values.get("architectures") or ["none"]))
    raise ExportError(f"{path}: model_type {kind!r} is not supported; supported are {SUPPORTED}")
