#!/usr/bin/env python3
"""Remakes tests/data/tokenizer/chat.txt: published chat templates, conversations, and the ids that
transformers' apply_chat_template(tokenize=True) gives. Needs what make_tokenizers.py needs and its
vocabularies.

    python3 tests/golden/make_chat.py TEMPLATE_FOLDER SMOLLM2.gguf

TEMPLATE_FOLDER holds templates that are too long to repeat here, as llama.cpp ships them in
models/templates (2026-09); SMOLLM2.gguf is SmolLM2-135M-Instruct. The others are written out below
as their models' tokenizer_config.json have them. One record a line, strings escaped as in C:

  template NAME VOCABULARY FAMILY TEXT      FAMILY "-": must not be recognised
  message ROLE CONTENT                      collected until
  prompt 0|1 IDS...                         or: refused 0|1
"""
import os
import sys

import gguf
from make_tokenizers import bpe_reference, read_gguf, sp_encode
import sentencepiece as spm
from transformers import PreTrainedTokenizerFast

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "data", "tokenizer")

ALTERNATE = ("{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...')"
             " }}")
CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
          "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}"
          "{{ '<|im_start|>assistant\\n' }}{% endif %}")
QWEN2 = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
         "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
         "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
         "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
LLAMA2 = ("{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
          "{% set system_message = messages[0]['content'] %}{% else %}"
          "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
          "{% for message in loop_messages %}"
          "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}" + ALTERNATE +
          "{% endif %}{% if loop.index0 == 0 and system_message != false %}"
          "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
          "{% else %}{% set content = message['content'] %}{% endif %}"
          "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
          "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}"
          "{% endif %}{% endfor %}")
LLAMA3 = ("{% set loop_messages = messages %}{% for message in loop_messages %}"
          "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ "
          "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
          "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}")
HEADER = "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
MISTRAL = ("{{ bos_token }}{% for message in messages %}"
           "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}" + ALTERNATE +
           "{% endif %}{% if message['role'] == 'user' %}"
           "{{ '[INST] ' + message['content'] + ' [/INST]' }}"
           "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token ANSWER}}"
           "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
           "{% endif %}{% endfor %}")
MISTRAL_SYSTEM = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}

{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the optional system message, conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.FIRST and system_message is defined %}
            {{- "OPEN" + system_message + "\\n\\n" + message["content"] + "CLOSE" }}
        {%- else %}
            {{- "OPEN" + message["content"] + "CLOSE" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]TRIM + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"""


def mistral(first, opening, closing, trim=""):
    return (MISTRAL_SYSTEM.replace("FIRST", first).replace("OPEN", opening)
            .replace("CLOSE", closing).replace("TRIM", trim))


ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
PHI3 = ("{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + "
        "message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + "
        "message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}")
PHI4 = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '<|im_sep|>' + "
        "message['content'] + '<|im_end|>'}}{% endfor %}")


def templates(folder, smollm2):
    def read(name):
        return open(os.path.join(folder, name + ".jinja"), encoding="utf-8").read()
    smol = gguf.GGUFReader(smollm2).fields["tokenizer.chat_template"].contents()
    return [
        ("SmolLM2", "bpe", "chatml", smol),
        ("OpenHermes-2.5", "bpe", "chatml", CHATML),
        ("ChatML-default", "bpe", "chatml", "{% if not add_generation_prompt is defined %}"
         "{% set add_generation_prompt = false %}{% endif %}" + CHATML),
        ("InternLM2", "bpe", "chatml", "{{ bos_token }}" + CHATML),
        ("Qwen2", "bpe", "chatml", QWEN2),
        ("ChatML-SentencePiece", "sp", "chatml", CHATML),
        ("Qwen2.5", "bpe", "qwen", read("Qwen-Qwen2.5-7B-Instruct")),
        ("Qwen3", "bpe", "qwen3", read("Qwen-Qwen3-0.6B")),
        ("Qwen3.5", "bpe", "qwen3.5", read("Qwen3.5-4B")),
        ("Llama-2", "sp", "llama2", LLAMA2),
        ("Llama-3-first", "bpe", "llama3", LLAMA3 + HEADER),
        ("Llama-3", "bpe", "llama3",
         LLAMA3 + "{% if add_generation_prompt %}" + HEADER + "{% endif %}"),
        ("Llama-3.1", "bpe", "llama3.1", read("meta-llama-Llama-3.1-8B-Instruct")),
        ("Llama-3.2", "bpe", "llama3.1", read("meta-llama-Llama-3.2-3B-Instruct")),
        ("Llama-3.3", "bpe", "llama3.1", read("meta-llama-Llama-3.3-70B-Instruct")),
        ("Mistral-v0.1", "sp", "mistral-v1", MISTRAL.replace("ANSWER", "+ ' ' ")),
        ("Mistral-v0.2", "sp", "mistral-v1", MISTRAL.replace("ANSWER", "")),
        ("Mistral-v0.2-system", "sp", "mistral-v1", mistral("first", " [INST] ", " [/INST]")),
        ("Mistral-v0.3", "sp_v3", "mistral-v3", mistral("last", "[INST] ", "[/INST]")),
        ("Mistral-v0.3-trim", "sp_v3", "mistral-v3", mistral("last", "[INST] ", "[/INST]", "|trim")),
        ("Mistral-tekken", "bpe", "mistral-v3",
         mistral("last", "[INST]", "[/INST]").replace('{{- " " + message', "{{- message")),
        ("Zephyr", "sp", "zephyr", ZEPHYR),
        ("plain", "bpe", "plain", "{% for message in messages %}{{ message['content'] }}{% endfor %}"),
        ("Phi-3", "sp", "-", PHI3),
        ("Phi-4", "bpe", "-", PHI4),
        ("QwQ", "bpe", "-", read("Qwen-QwQ-32B")),
        ("DeepSeek-R1", "bpe", "-", read("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B")),
        ("Gemma-2", "sp", "-", read("google-gemma-2-2b-it")),
        ("SmolLM3", "bpe", "-", read("HuggingFaceTB-SmolLM3-3B")),
        ("Hermes-3-tools", "bpe", "-", read("NousResearch-Hermes-3-Llama-3.1-8B-tool_use")),
        ("Mistral-Small-3.2", "bpe", "-", read("Mistral-Small-3.2-24B-Instruct-2506")),
        ("Granite-3.3", "bpe", "-", read("ibm-granite-granite-3.3-2B-Instruct")),
    ]


def talk(*turns):
    names = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": names.get(r, r), "content": c} for r, c in turns]


CONVERSATIONS = [
    talk(("u", "Hello")),
    talk(("s", "Be brief."), ("u", "What is 2+2?")),
    talk(("u", "Hi"), ("a", "Hello! How can I help?"), ("u", "Tell me a joke,\n\nplease ")),
    talk(("s", " You are\na pirate. "), ("u", "  spaced  "), ("a", " ahoy \n"), ("u", "\u3000x\xa0")),
    talk(("u", "one"), ("a", "two")),
    talk(("u", ""), ("a", ""), ("u", "")),
    talk(("u", "\u00e9\u4e2d\U0001f642 12345\t\n"), ("a", "def f():\n    return 1\n"), ("u", "'s")),
    talk(("s", ""), ("u", "empty system")),
    talk(("u", "a"), ("a", "<think>\nhmm\n</think>\n\nanswer\n"), ("u", "b")),
    talk(("u", "a"), ("a", "<think>\n\nhmm\n\n</think>\n\n\nanswer")),
    talk(("u", "a"), ("a", "no thought"), ("a", "again")),
    talk(("u", "a"), ("a", "x</think>y</think>z"), ("u", "<tool_response>1</tool_response>"),
         ("a", "<think>t</think>c"), ("a", "d")),
    talk(("u", "a"), ("u", "b")),
    talk(("a", "first")),
    talk(("s", "only system")),
    talk(("u", "a"), ("s", "late system"), ("u", "b")),
    talk(("s", "one"), ("s", "two"), ("u", "b")),
    talk(("u", "a"), ("strange", "b"), ("u", "c")),
]


def escape(s):
    out = ""
    for b in s.encode():
        c = chr(b)
        out += ("\\\\" if c == "\\" else "\\n" if c == "\n" else "\\s" if c == " " else
                c if 0x20 < b < 0x7F else f"\\x{b:02x}")
    return out or "\\e"


def main():
    bpe = read_gguf("bpe.gguf")
    tokens = bpe["tokenizer.ggml.tokens"]
    raw = bytes(read_gguf("sp_raw.gguf")["linnet.tokenizer.sentencepiece_model"])
    sp = spm.SentencePieceProcessor(model_proto=raw)
    n_sp = sp.get_piece_size()
    sp_specials = {"<unk>": 0, "<s>": 1, "</s>": 2}
    with open(os.path.join(OUT, "chat.txt"), "w") as f:
        for name, vocab, family, text in templates(*sys.argv[1:3]):
            f.write(f"template {name} {vocab} {family} {escape(text)}\n")
            if family == "-":
                continue
            base = bpe_reference(bpe, "smollm", True)
            # The fixed date of Llama-3.2's template, as for a caller without a clock.
            text = text.replace("strftime_now is defined", "false")
            fast = PreTrainedTokenizerFast(
                tokenizer_object=base, chat_template=text,
                bos_token="<|begin_of_text|>" if vocab == "bpe" else "<s>",
                eos_token="<|endoftext|>" if vocab == "bpe" else "</s>")
            for messages in CONVERSATIONS:
                for prompt in (False, True):
                    for m in messages:
                        f.write(f"message {m['role']} {escape(m['content'])}\n")
                    try:
                        if vocab == "bpe":
                            ids = fast.apply_chat_template(messages, tokenize=True,
                                                           add_generation_prompt=prompt,
                                                           return_dict=False)
                        else:
                            s = fast.apply_chat_template(messages, tokenize=False,
                                                         add_generation_prompt=prompt)
                            more = {"[INST]": n_sp, "[/INST]": n_sp + 1} if vocab == "sp_v3" else {}
                            ids = sp_encode(sp, s, {**sp_specials, **more}, vocab == "sp")
                        f.write(f"prompt {int(prompt)} {' '.join(map(str, ids))}\n")
                    except Exception as e:
                        # jinja2's errors only: raise_exception or an undefined message
                        assert type(e).__module__.startswith("jinja2"), e
                        f.write(f"refused {int(prompt)}\n")


if __name__ == "__main__":
    main()
