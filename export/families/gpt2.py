"""GPT-2: learned positions, LayerNorm, fused qkv, tanh GELU, Conv1D weights stored [in, out]."""
import numpy as np

from ..errors import ExportError
from .base import COMMON_IGNORABLE, Plan, choose_prefix, refuse_foreign_options
from .llama import embedding


def recognise(config, names):
    return config.values.get("model_type") == "gpt2"


def plan(config, names):
    p = Plan("gpt2", config.int("vocab_size"))
    refuse_foreign_options(config)
    config.only("activation_function", "gelu_new", "gelu_pytorch_tanh")  # one formula, two names
    config.only("scale_attn_weights", True)
    config.only("scale_attn_by_inverse_layer_idx", False)
    config.only("reorder_and_upcast_attn", False)

    n_layers = config.int("n_layer", "num_hidden_layers", high=1 << 16)
    D = config.int("n_embd", "hidden_size")
    H = config.int("n_head", "num_attention_heads")
    T = config.int("n_positions", "max_position_embeddings", "n_ctx")
    I = config.int("n_inner", default=None) or 4 * D
    if D % H:
        raise ExportError(f"{config.path}: n_embd {D} is not a multiple of n_head {H}")

    p.u32("block_count", n_layers)
    p.u32("context_length", T)
    p.u32("embedding_length", D)
    p.u32("feed_forward_length", I)
    p.u32("attention.head_count", H)
    p.f32("attention.layer_norm_epsilon", config.number("layer_norm_epsilon", default=1e-5))

    at = choose_prefix(names, "transformer.", "wte.weight")
    embedding(config, p, names, at + "wte.weight", D, default_tied=True)
    p.matrix("position_embd.weight", at + "wpe.weight", (T, D))
    p.tensors[-1].f32 = True
    for part in ("weight", "bias"):
        p.vector("output_norm." + part, f"{at}ln_f.{part}", D)
    for i in range(n_layers):
        src, dst = f"{at}h.{i}.", f"blk.{i}."
        for norm, ours in (("ln_1", "attn_norm"), ("ln_2", "ffn_norm")):
            for part in ("weight", "bias"):
                p.vector(f"{dst}{ours}.{part}", f"{src}{norm}.{part}", D)
        for conv, ours, n_in, n_out in (("attn.c_attn", "attn_qkv", D, 3 * D),
                                        ("attn.c_proj", "attn_output", D, D),
                                        ("mlp.c_fc", "ffn_up", D, I),
                                        ("mlp.c_proj", "ffn_down", I, D)):
            p.matrix(f"{dst}{ours}.weight", f"{src}{conv}.weight", (n_in, n_out), np.transpose)
            p.vector(f"{dst}{ours}.bias", f"{src}{conv}.bias", n_out)
    p.ignorable += COMMON_IGNORABLE + [r"(transformer\.)?h\.\d+\.attn\.bias"]  # the causal mask
    return p
