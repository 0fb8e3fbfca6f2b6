"""A model file whose answers are known: it says one of the given texts, or one text for ever.

Embeddings are one-hot and the layers add nothing, so the logits depend on the last token alone: the
output matrix gives each token its successor. An answer starts after the line feed that opens it
(ChatML) and is a chain of tokens of its own; of several answers each is equally likely. All else is
as in any model: vocabulary, template, layers, state."""
import numpy as np
from gguf import GGUFWriter, TokenType

from tests.golden.make_text_model import SPECIALS, byte_letters

CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
          "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
WIDTH, HEADS = 1024, 4


def cut(text, taken):
    """Four characters a piece, more where a piece is taken: a vocabulary has no token twice."""
    out, at = [], 0
    while at < len(text):
        n = 4
        while text[at:at + n] in taken and at + n < len(text):
            n += 1
        out.append(text[at:at + n])
        at += n
        if out[-1] in taken:  # the text's end: with the piece before it
            out[-2:] = [out[-2] + out[-1]]
        taken.add(out[-1])
    return out


def write(path, answers, endless=False, mixer="softmax", layers=2, feed=32, context=8192):
    """`endless`: an answer begins again where it ends. `feed`: the width of the feed-forward, which
    is all zero: the wider, the slower the model."""
    letters = byte_letters()
    tokens, taken, follows, starts = list(letters), set(map(chr, range(128))), {}, []
    for text in answers:
        chain = cut(text, taken)
        ids = range(len(tokens), len(tokens) + len(chain))
        tokens += ["".join(letters[b] for b in piece.encode()) for piece in chain]
        starts.append(ids[0])
        follows.update(zip(ids, ids[1:]))
        if endless:
            follows[ids[-1]] = ids[0]
    end = len(tokens) + SPECIALS.index("<|im_end|>")
    tokens += SPECIALS
    assert len(tokens) <= WIDTH

    arch = "llama" if mixer == "softmax" else "linnet"
    w = GGUFWriter(path, arch)
    w.add_name("scripted")
    w.add_context_length(context)
    w.add_embedding_length(WIDTH)
    w.add_block_count(layers)
    w.add_feed_forward_length(feed)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(len(tokens))
    if mixer == "softmax":
        w.add_head_count(HEADS)
        w.add_head_count_kv(HEADS)
        w.add_rope_dimension_count(WIDTH // HEADS)
    else:
        w.add_uint32("linnet.format_version", 1)
        w.add_array("linnet.mixers", [mixer] * layers)
        w.add_uint32("linnet.delta.head_count", HEADS)
        w.add_uint32("linnet.delta.key_length", WIDTH // HEADS)
        w.add_uint32("linnet.delta.value_length", WIDTH // HEADS)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types([TokenType.NORMAL] * (len(tokens) - 3) + [TokenType.CONTROL] * 3)
    w.add_token_merges(["h e"])
    w.add_bos_token_id(end)
    w.add_eos_token_id(end)
    w.add_add_bos_token(False)
    w.add_chat_template(CHATML)

    output = np.zeros((len(tokens), WIDTH), np.float32)
    output[end, :len(tokens)] = 1
    for token, successor in follows.items():
        output[end, token], output[successor, token] = 0, 1
    output[end, ord("\n")] = 0
    output[starts, ord("\n")] = 1

    def matrix(name, rows, columns):
        w.add_tensor(name, np.zeros((rows, columns), np.float32))

    w.add_tensor("token_embd.weight", np.eye(len(tokens), WIDTH, dtype=np.float32))
    w.add_tensor("output.weight", output)
    w.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for i in range(layers):
        b = f"blk.{i}."
        w.add_tensor(b + "attn_norm.weight", np.ones(WIDTH, np.float32))
        w.add_tensor(b + "ffn_norm.weight", np.ones(WIDTH, np.float32))
        if mixer == "softmax":
            for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
                matrix(b + name + ".weight", WIDTH, WIDTH)
        else:
            matrix(b + "attn_qkv.weight", 3 * WIDTH, WIDTH)
            matrix(b + "ssm_beta.weight", HEADS, WIDTH)
            matrix(b + "ssm_out.weight", WIDTH, WIDTH)
            w.add_tensor(b + "ssm_norm.weight", np.ones(WIDTH // HEADS, np.float32))
        matrix(b + "ffn_gate.weight", feed, WIDTH)
        matrix(b + "ffn_up.weight", feed, WIDTH)
        matrix(b + "ffn_down.weight", WIDTH, feed)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
