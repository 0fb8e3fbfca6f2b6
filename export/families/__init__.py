"""One module per family: recognise(config, names) and plan(config, names) -> Plan, where `names`
maps the checkpoint's tensor names to their shapes.
The first that recognises a checkpoint exports it."""
from ..errors import ExportError
from . import based, fla, gpt2, llama, olmo, qwen_hybrid
from .base import Config

FAMILIES = [based, llama, gpt2, qwen_hybrid, olmo, fla]
SUPPORTED = ("llama, mistral, qwen2, qwen3, gpt2, qwen3_next, qwen3_5, olmo_hybrid, "
             "delta_net, gated_deltanet, based")


def make_plan(values, path, names):
    config = Config(values, path)
    for family in FAMILIES:
        if family.recognise(config, names):
            return family.plan(config, names)
    kind = values.get("model_type") or ", ".join(map(str, values.get("architectures") or ["none"]))
    raise ExportError(f"{path}: model_type {kind!r:.60} is not supported; supported are {SUPPORTED}")
