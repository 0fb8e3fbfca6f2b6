"""A llama-architecture GGUF as a transformers model: weights dequantized by the gguf package, the
file's order of q/k rows (alternating pairs) put back to transformers' (first and second half)."""
import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import LlamaConfig, LlamaForCausalLM

NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
         "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj"}


def load(path, dtype=torch.float32):
    r = GGUFReader(path)
    key = lambda k, default=None: r.fields[k].contents() if k in r.fields else default
    assert key("general.architecture") == "llama", "only llama files"
    heads, kv = key("llama.attention.head_count"), key("llama.attention.head_count_kv")
    tensors = {t.name: np.array(dequantize(t.data, t.tensor_type)) for t in r.tensors}
    assert "rope_freqs.weight" not in tensors, "rope scaling is not needed here"
    tied = "output.weight" not in tensors
    width = key("llama.embedding_length")
    config = LlamaConfig(
        vocab_size=tensors["token_embd.weight"].shape[0], hidden_size=width,
        intermediate_size=key("llama.feed_forward_length"),
        num_hidden_layers=key("llama.block_count"), num_attention_heads=heads,
        num_key_value_heads=kv, head_dim=key("llama.attention.key_length", width // heads),
        max_position_embeddings=key("llama.context_length"),
        rms_norm_eps=key("llama.attention.layer_norm_rms_epsilon"), tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": key("llama.rope.freq_base")},
        attn_implementation="eager")
    state = {}
    for name, w in tensors.items():
        if name.startswith("blk."):
            _, layer, part, end = name.split(".")
            if part in ("attn_q", "attn_k"):
                n = heads if part == "attn_q" else kv
                w = w.reshape(n, -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
            state[f"model.layers.{layer}.{NAMES[part]}.{end}"] = w
        else:
            state[{"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight",
                   "output_norm.weight": "model.norm.weight"}[name]] = w
    model = LlamaForCausalLM(config).eval()
    state = {k: torch.from_numpy(np.array(v, np.float32)) for k, v in state.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model.to(dtype)
