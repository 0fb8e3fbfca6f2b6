"""A Llama in a GGUF file, of any type of weights, also one that train.collect wrote, as the folder that
save_pretrained would leave: config.json, float32 safetensors, tokenizer. Needs NumPy, gguf and
safetensors, not PyTorch."""
import os

import numpy as np

from ..config import TrainError, write_json

NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
         "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj"}
OUTER = {"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight",
         "output_norm.weight": "model.norm.weight"}
CONTROL = 3  # tokenizer.ggml.token_type
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PRE = {"gpt-2": BYTE_LEVEL,
       "smollm": {"type": "Sequence",
                  "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]}}


class File:
    def __init__(self, path):
        from gguf import GGUFReader
        try:
            self.reader = GGUFReader(path)
        except (OSError, ValueError, IndexError) as e:
            raise TrainError(f"{path} cannot be read as GGUF: {e}")
        self.path, self.architecture = path, self.get("general.architecture")

    def get(self, key, default=None):
        field = self.reader.fields.get(key)
        return default if field is None else field.contents()

    def tensors(self):
        from gguf.quants import dequantize
        for t in self.reader.tensors:
            yield t.name, np.ascontiguousarray(dequantize(t.data, t.tensor_type), np.float32)


def config_of(f):
    def get(key, default=None):
        return f.get(f"{f.architecture}.{key}", default)

    def need(key):
        value = get(key)
        if value is None:
            raise TrainError(f"{f.path} has no {f.architecture}.{key}")
        return value

    if f.architecture not in ("llama", "linnet"):
        raise TrainError(f"{f.path} is a {f.architecture} model, expected llama")
    if set(get("mixers", ["softmax"])) != {"softmax"} or get("rope.pairing", "halves") != "halves" or \
            np.any(get("attention.sliding_window", 0)):
        raise TrainError(f"{f.path}: expected softmax attention over all keys with rotary positions in every layer")
    if get("feed_forward.activation", "silu") != "silu":
        raise TrainError(f"{f.path}: its feed-forward has {get('feed_forward.activation')}, expected silu")
    tokens = f.get("tokenizer.ggml.tokens")
    if not tokens:
        raise TrainError(f"{f.path} has no vocabulary")
    heads, width = need("attention.head_count"), need("embedding_length")
    names = {t.name for t in f.reader.tensors}
    if "rope_freqs.weight" in names or get("rope.scaling.type") not in (None, "none"):
        raise TrainError(f"{f.path} has scaled rotary positions: take the model's own folder instead")
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32",
              "vocab_size": len(tokens), "hidden_size": width,
              "intermediate_size": need("feed_forward_length"),
              "num_hidden_layers": need("block_count"), "num_attention_heads": heads,
              "num_key_value_heads": get("attention.head_count_kv", heads),
              "head_dim": get("attention.key_length", width // heads),
              "max_position_embeddings": need("context_length"), "hidden_act": "silu",
              "rms_norm_eps": need("attention.layer_norm_rms_epsilon"),
              "rope_theta": get("rope.freq_base", 10000.0),
              "tie_word_embeddings": "output.weight" not in names}
    for role in ("bos", "eos"):
        if f.get(f"tokenizer.ggml.{role}_token_id") is not None:
            config[f"{role}_token_id"] = f.get(f"tokenizer.ggml.{role}_token_id")
    return config


def state_of(f, config):
    """A llama file's order of q/k rows, alternating pairs, put back to first and second halves."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, w in f.tensors():
        if name in OUTER:
            yield OUTER[name], w
            continue
        _, layer, part, end = name.split(".") if name.count(".") == 3 else ("", "", "", "")
        if part not in NAMES or end != "weight":
            raise TrainError(f"{f.path}: tensor {name} is not part of a plain Llama")
        if part in heads and f.architecture == "llama":
            w = w.reshape(heads[part], -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
        yield f"model.layers.{layer}.{NAMES[part]}.weight", np.ascontiguousarray(w)


def tokenizer_of(f):
    """-> {file name: bytes, or what JSON says}"""
    def get(key):
        return f.get("tokenizer.ggml." + key)

    tokens, types = get("tokens"), get("token_type") or []
    settings = {"add_bos_token": bool(get("add_bos_token"))}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        if get(f"{key}_token_id") is not None:
            settings[f"{role}_token"] = tokens[get(f"{key}_token_id")]
    if f.get("tokenizer.chat_template"):
        settings["chat_template"] = f.get("tokenizer.chat_template")
    pieces = f.get("linnet.tokenizer.sentencepiece_model")
    if pieces is not None:
        return {"tokenizer.model": bytes(pieces),
                "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", **settings}}
    if get("model") != "gpt2" or get("pre") not in PRE:
        raise TrainError(f"{f.path}: a {get('model')} vocabulary ({get('pre')}) cannot be written "
                         f"back, only byte-level ones ({', '.join(PRE)}): take the model's own folder")
    special = [i for i, kind in enumerate(types) if kind == CONTROL]
    added = [{"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for i in special]
    fast = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            "normalizer": None, "pre_tokenizer": PRE[get("pre")], "post_processor": None,
            "decoder": BYTE_LEVEL,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "byte_fallback": False,
                      "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False,
                      "vocab": {t: i for i, t in enumerate(tokens)}, "merges": get("merges")}}
    return {"tokenizer.json": fast, "tokenizer_config.json": {
        "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, **settings}}


def write(path, out):
    """-> the folder's config"""
    try:
        from safetensors.numpy import save_file
        f = File(path)
    except ImportError as e:
        raise TrainError(f"{path}: reading it needs the Python package {e.name}")
    config = config_of(f)
    tokenizer = tokenizer_of(f)
    os.makedirs(out, exist_ok=True)
    part = os.path.join(out, "model.safetensors.part")
    save_file(dict(state_of(f, config)), part, metadata={"format": "pt"})
    os.replace(part, os.path.join(out, "model.safetensors"))
    for name, value in tokenizer.items():
        if isinstance(value, bytes):
            with open(os.path.join(out, name), "wb") as file:
                file.write(value)
        else:
            write_json(os.path.join(out, name), value)
    write_json(os.path.join(out, "config.json"), config)
    return config
