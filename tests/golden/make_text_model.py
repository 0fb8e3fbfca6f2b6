#!/usr/bin/env python3
"""Remakes tests/data/models/text.gguf: a tiny llama with a byte-level BPE vocabulary.

    python3 tests/golden/make_text_model.py        # needs numpy and gguf

Random weights, 300 tokens: the 256 bytes, merges that make words and characters of several bytes,
and three special tokens. It speaks nonsense, but deterministic nonsense whose characters and words
span tokens: what the tests of text generation need.
"""
import os

import gguf
import numpy as np

OUT = os.path.join(os.path.dirname(__file__), "..", "data", "models", "text.gguf")
EMBD, HEADS, KV_HEADS, FF, LAYERS, CTX = 32, 2, 1, 48, 2, 256
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Each merge joins two tokens that exist by then. Two thirds of the euro sign and of a smiling face
# are tokens as well, so characters end inside and between tokens.
MERGES = ["t h", "th e", "i n", "a n", "an d", "e r", "o n", "r e", "s t", "e n", "a t", "o r",
          "Ġ t", "Ġ a", "Ġ th", "Ġth e", "Ġ and", "Ġ i", "in g", "l l", "o u", "Ġ w", "h e", "e d",
          "Ġ s", "Ġ o", "Ã ©", "â Ĥ", "âĤ ¬", "ð Ł", "Ł ĺ", "ðŁ ĺ", "s Ġ", "e Ġ", "\u010a \u010a",
          "a b", "c d", "b c", "ab cd", "x y", "xy x"]


def byte_letters():
    """GPT-2's printable stand-in for each byte, in the order of the bytes."""
    keep = set(range(33, 127)) | set(range(161, 173)) | set(range(174, 256))
    letters, extra = [], 256
    for b in range(256):
        letters.append(chr(b) if b in keep else chr(extra))
        extra += b not in keep
    return letters


def main():
    tokens = byte_letters()
    for merge in MERGES:
        a, b = merge.split(" ")
        assert a in tokens and b in tokens and a + b not in tokens, merge
        tokens.append(a + b)
    tokens += SPECIALS
    n = len(tokens)
    assert n == 300, n
    w = gguf.GGUFWriter(OUT, "llama")
    w.add_name("text")
    w.add_context_length(CTX)
    w.add_embedding_length(EMBD)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(FF)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(EMBD // HEADS)
    w.add_vocab_size(n)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types([gguf.TokenType.NORMAL] * (n - 3) + [gguf.TokenType.CONTROL] * 3)
    w.add_token_merges(MERGES)
    w.add_bos_token_id(n - 3)
    w.add_eos_token_id(n - 3)
    w.add_add_bos_token(False)
    rng = np.random.default_rng(300)

    def matrix(name, rows, cols, scale=1.0):
        w.add_tensor(name, (rng.standard_normal((rows, cols)) * scale / cols**0.5)
                     .astype(np.float32))

    def ones(name):
        w.add_tensor(name, np.ones(EMBD, np.float32))

    matrix("token_embd.weight", n, EMBD, 3)
    for i in range(LAYERS):
        ones(f"blk.{i}.attn_norm.weight")
        matrix(f"blk.{i}.attn_q.weight", EMBD, EMBD)
        matrix(f"blk.{i}.attn_k.weight", EMBD // HEADS * KV_HEADS, EMBD)
        matrix(f"blk.{i}.attn_v.weight", EMBD // HEADS * KV_HEADS, EMBD)
        matrix(f"blk.{i}.attn_output.weight", EMBD, EMBD)
        ones(f"blk.{i}.ffn_norm.weight")
        matrix(f"blk.{i}.ffn_gate.weight", FF, EMBD)
        matrix(f"blk.{i}.ffn_up.weight", FF, EMBD)
        matrix(f"blk.{i}.ffn_down.weight", EMBD, FF)
    ones("output_norm.weight")
    matrix("output.weight", n, EMBD, 1.5)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    print(f"{OUT}: {os.path.getsize(OUT)} bytes")


if __name__ == "__main__":
    main()
