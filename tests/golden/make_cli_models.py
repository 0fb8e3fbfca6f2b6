#!/usr/bin/env python3
"""Remakes tests/data/cli: what tests/test_cli.sh runs on. Needs numpy and gguf.

    python3 tests/golden/make_cli_models.py

chat.gguf     a random llama (2 layers, 32 wide, F32, tied) with a byte-level BPE vocabulary of 262
              tokens (256 bytes, 3 merges, 3 special tokens), BOS, and a ChatML template
vocab.gguf    its vocabulary alone, with a chat template that nobody knows
Byte b is token b: tests can force any text with --logit-bias.
"""
import os

import numpy as np
from gguf import GGUFWriter, TokenType

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OUT = os.path.join(ROOT, "tests", "data", "cli")
CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
          "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
LAYERS, WIDTH, HEADS, KV_HEADS, FEED, CONTEXT = 2, 32, 4, 2, 64, 256


def byte_characters():
    """GPT-2's printable stand-ins for bytes (openai/gpt-2, encoder.py)."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    out, extra = {}, 0
    for b in range(256):
        if b in keep:
            out[b] = chr(b)
        else:
            out[b] = chr(256 + extra)
            extra += 1
    return out


def vocabulary(w, template):
    chars = byte_characters()
    merges = ["h e", "l l", "he ll"]
    tokens = [chars[b] for b in range(256)] + ["he", "ll", "hell"]
    tokens += ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types([TokenType.NORMAL] * 259 + [TokenType.CONTROL] * 3)
    w.add_token_merges(merges)
    w.add_bos_token_id(259)
    w.add_eos_token_id(261)
    w.add_add_bos_token(True)
    w.add_chat_template(template)


def model(path):
    rng = np.random.default_rng(3)
    w = GGUFWriter(path, "llama")
    w.add_name("tiny chat")
    w.add_context_length(CONTEXT)
    w.add_embedding_length(WIDTH)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(FEED)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(WIDTH // HEADS)
    w.add_vocab_size(262)
    vocabulary(w, CHATML)

    def add(name, *shape):
        x = (rng.standard_normal(shape) * (2 / shape[-1]) ** 0.5).astype(np.float32)
        if len(shape) == 1:
            x = np.ones(shape, np.float32)
        w.add_tensor(name, x)

    add("token_embd.weight", 262, WIDTH)
    add("output_norm.weight", WIDTH)
    for i in range(LAYERS):
        b = f"blk.{i}."
        kv = WIDTH // HEADS * KV_HEADS
        add(b + "attn_norm.weight", WIDTH)
        add(b + "attn_q.weight", WIDTH, WIDTH)
        add(b + "attn_k.weight", kv, WIDTH)
        add(b + "attn_v.weight", kv, WIDTH)
        add(b + "attn_output.weight", WIDTH, WIDTH)
        add(b + "ffn_norm.weight", WIDTH)
        add(b + "ffn_gate.weight", FEED, WIDTH)
        add(b + "ffn_up.weight", FEED, WIDTH)
        add(b + "ffn_down.weight", WIDTH, FEED)
    finish(w)


def finish(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    os.makedirs(OUT, exist_ok=True)
    model(os.path.join(OUT, "chat.gguf"))
    w = GGUFWriter(os.path.join(OUT, "vocab.gguf"), "llama")
    vocabulary(w, "{{ messages | mystery }}")
    finish(w)


main()
