"""Tokenizers as GGUF metadata. Three sources, in this order: SentencePiece's tokenizer.model,
tokenizer.json (byte-level BPE, or Llama's BPE with byte fallback), vocab.json + merges.txt.
tokenizer_config.json and its kin say which tokens begin and end a text, and the chat template."""
import os

from . import pretokenizers
from .checkpoint import read_json
from .errors import ExportError, note
from .sentencepiece import BPE, add_pieces, parse_model

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"
MAX_ID = 1 << 24
MOST_TIES = 64  # pieces that may share one score (runs of spaces do)
UNREACHED = -1000.0  # score of tokens that no merge makes


class Vocab:
    """tokens by id; `added` = tokens that come on top of a model, found in text as a whole."""

    def __init__(self, model, pre):
        self.model, self.pre = model, pre
        self.tokens, self.types, self.scores = {}, {}, {}
        self.merges = None
        self.raw, self.n_raw = None, 0  # SentencePiece's own model and the number of its pieces
        self.n_real = 0                # one past the last token that is not padding
        self.ids = {}                  # special tokens by role, as the model itself says
        self.add_space_prefix = True
        self.add = {"bos": None, "eos": None}
        self.changed = False           # an added token altered a piece of the model

    def put(self, i, text, kind, score=0.0):
        self.tokens[i], self.types[i], self.scores[i] = text, kind, score

    def id_of(self, text):
        for kind in (CONTROL, USER_DEFINED, UNKNOWN, NORMAL):
            for i, t in self.tokens.items():
                if t == text and self.types[i] == kind:
                    return i
        return None


def looks_special(text):
    """Some files forget to mark their own control tokens."""
    return text in ("<pad>", "<mask>") or text.startswith("<|") and text.endswith("|>")


def load_tokenizer(path, config, n_rows, required):
    """-> metadata entries (key, kind, value) or None; `path` is a folder or one of its files."""
    if not os.path.exists(path):
        raise ExportError(f"{path} does not exist")
    if os.path.isdir(path):
        folder = path
        vocab = find_vocab(folder)
    else:
        folder = os.path.dirname(path) or "."
        vocab = from_json(path) if path.endswith(".json") else from_sentencepiece(path, alone=True)
    if vocab is None:
        if required:
            raise ExportError(f"{path} has no tokenizer; expected tokenizer.model, tokenizer.json or "
                              "vocab.json with merges.txt")
        return None
    settings = optional_json(folder, "tokenizer_config.json")
    add_tokens(vocab, folder, settings)
    fit(vocab, n_rows, path)
    return entries(vocab, folder, settings, config)


def optional_json(folder, name):
    path = os.path.join(folder, name)
    return read_json(path) if os.path.isfile(path) else {}


def find_vocab(folder):
    model, fast, slow = (os.path.join(folder, n) for n in ("tokenizer.model", "tokenizer.json",
                                                           "vocab.json"))
    vocab = None
    if os.path.isfile(model):
        vocab = from_sentencepiece(model, alone=not os.path.isfile(fast))
    if vocab is None and os.path.isfile(fast):
        vocab = from_json(fast)
    if vocab is None and os.path.isfile(slow) and os.path.isfile(os.path.join(folder, "merges.txt")):
        vocab = from_merges(folder)
    if vocab is None and os.path.isfile(os.path.join(folder, "tekken.json")):
        note(f"{folder}/tekken.json is not read; a tokenizer.json of the same model is (--tokenizer)")
    return vocab


# ---- SentencePiece ----------------------------------------

def from_sentencepiece(path, alone):
    with open(path, "rb") as f:
        raw = f.read()
    try:
        model = parse_model(raw)
    except ValueError as e:
        if alone:
            raise ExportError(f"{path} is not a SentencePiece model: {e}")
        note(f"{path} is not a SentencePiece model ({e}); tokenizer.json is used")
        return None
    if model.kind != BPE:
        raise ExportError(f"{path} is a SentencePiece model of type {model.kind_name}; only bpe is "
                          "supported")
    vocab = Vocab("llama", "default")
    for i, (text, score, kind) in enumerate(model.pieces):
        vocab.put(i, text, kind, score)
    vocab.raw = raw
    vocab.n_raw = len(model.pieces)
    vocab.add_space_prefix = model.add_dummy_prefix
    vocab.add["bos"] = True
    vocab.ids = model.ids
    return vocab


# ---- tokenizer.json ----------------------------------------

def from_json(path):
    value = read_json(path)
    model = value.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), (dict, list)):
        raise ExportError(f"{path} has no model.vocab, so it is not a tokenizer.json")
    if model.get("type", "BPE") != "BPE" or not isinstance(model["vocab"], dict):
        raise ExportError(f"{path}: model type {model.get('type')!r} is not supported, expected BPE")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ExportError(f"{path}: {key} {model[key]!r:.40} is not supported")
    merges = [pair_of(m, path) for m in model.get("merges") or []]
    tokens = checked_vocab(model["vocab"], path)
    if model.get("byte_fallback"):
        vocab = from_fallback(value, tokens, merges, path)
    else:
        refuse_normalizer(value.get("normalizer"), path)
        pre = pretokenizers.name_of(value.get("pre_tokenizer"), model.get("ignore_merges"), path)
        vocab = byte_level(tokens, merges, pre)
    read_post_processor(vocab, value.get("post_processor"))
    for entry in value.get("added_tokens") or []:
        add_token(vocab, entry.get("id") if isinstance(entry, dict) else None, entry, path)
    return vocab


def checked_vocab(tokens, path):
    seen = {}
    for text, i in tokens.items():
        if type(i) is not int or not 0 <= i < MAX_ID or i in seen:
            raise ExportError(f"{path}: token {text!r:.60} has the id {i!r:.20}, expected one of its "
                              "own")
        seen[i] = text
    return tokens


def pair_of(merge, path):
    pair = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(p, str) for p in pair):
        raise ExportError(f"{path}: merge {merge!r:.60} is not a pair of tokens")
    return pair


def byte_level(tokens, merges, pre):
    vocab = Vocab("gpt2", pre)
    for text, i in tokens.items():
        vocab.put(i, text, NORMAL)
    # byte-level tokens hold no spaces; should one, it is spelled as its byte is
    vocab.merges = [" ".join(p.replace(" ", "\u0120") for p in pair) for pair in merges]
    vocab.add["bos"] = False
    return vocab


def refuse_normalizer(normalizer, path):
    if normalizer is None:
        return
    kind = normalizer.get("type") if isinstance(normalizer, dict) else normalizer
    if kind == "Sequence" and not normalizer.get("normalizers"):
        return
    if kind != "NFC":  # NFC is what Qwen's files ask for; GGUF has no word for it and readers skip it
        raise ExportError(f"{path}: normalizer {kind!r} is not supported")


def from_fallback(value, tokens, merges, path):
    """Llama's tokenizer.json is its SentencePiece model written as merges: every pair of pieces
    that makes a piece, best piece first. So a piece's place among the merges is its score."""
    vocab = Vocab("llama", "default")
    vocab.add_space_prefix = space_prefix(value, path)
    vocab.add["bos"] = True
    added = {e.get("content") for e in value.get("added_tokens") or [] if isinstance(e, dict)}
    unknown = value["model"].get("unk_token")
    first, last, pairs = {}, {}, set()
    for rank, (left, right) in enumerate(merges):
        first.setdefault(left + right, rank)
        last[left + right] = rank
        pairs.add((left, right))
    check_complete(tokens, pairs, added, path)
    scores = {}
    group, end = [], -1
    for text in sorted(first, key=first.get):
        if first[text] > end:
            group = []
        group.append(text)
        if len(group) > MOST_TIES:
            raise ExportError(f"{path}: its merges are not in the order of a SentencePiece model; "
                              "give the tokenizer.model it was made from (--tokenizer)")
        end = max(end, last[text])
        scores[text] = -float(first[group[0]])
    for text, i in tokens.items():
        if text == unknown:
            vocab.put(i, text, UNKNOWN)
        elif len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            vocab.put(i, text, BYTE)
        else:
            vocab.put(i, text, NORMAL, scores.get(text, -float(len(merges))))
    return vocab


def check_complete(tokens, pairs, added, path):
    for text in tokens:
        if text in added or text.startswith("<0x"):
            continue
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in tokens and right in tokens and left not in added and right not in added and \
                    (left, right) not in pairs:
                raise ExportError(f"{path}: {left!r} + {right!r} make a token without being a merge, "
                                  "so this is not a SentencePiece model; give its tokenizer.model "
                                  "(--tokenizer)")


def space_prefix(value, path):
    """Is a space put in front of a text? Also refuses everything but Llama's way with spaces."""
    steps = value.get("normalizer") or {}
    steps = steps.get("normalizers", [steps]) if steps else []
    pre = value.get("pre_tokenizer")
    prefix, replaced = False, False
    for step in steps:
        if step.get("type") == "Prepend" and step.get("prepend") == SPACE:
            prefix = True
        elif step.get("type") == "Replace" and step.get("content") == SPACE and \
                step.get("pattern") == {"String": " "}:
            replaced = True
        else:
            raise ExportError(f"{path}: normalizer {step.get('type')!r} is not supported with byte "
                              "fallback")
    if isinstance(pre, dict) and pre.get("type") == "Metaspace" and pre.get("replacement") == SPACE \
            and pre.get("split") is False:
        scheme = pre.get("prepend_scheme", "always")
        if not prefix and scheme != "never":
            note("Metaspace puts no second space before a text that begins with one; SentencePiece's "
                 "rule, which the model file can say, does")
        return prefix or scheme != "never"
    if pre is not None or not replaced:
        raise ExportError(f"{path}: pre-tokenizer {pre.get('type') if pre else None!r} is not "
                          "supported with byte fallback")
    return prefix


def read_post_processor(vocab, processor):
    """Does its template put a token before or after a text?"""
    if not isinstance(processor, dict):
        return
    for step in processor.get("processors") or [processor]:
        if step.get("type") == "TemplateProcessing":
            single = step.get("single") or [{}]
            vocab.add["bos"] = "SpecialToken" in single[0]
            vocab.add["eos"] = "SpecialToken" in single[-1]


# ---- vocab.json + merges.txt ----------------------------------------

PRE_OF_CLASS = {"GPT2Tokenizer": "gpt-2", "GPT2TokenizerFast": "gpt-2", "Qwen2Tokenizer": "qwen2",
                "Qwen2TokenizerFast": "qwen2"}


def from_merges(folder):
    path = os.path.join(folder, "vocab.json")
    kind = optional_json(folder, "tokenizer_config.json").get("tokenizer_class")
    if kind is None:
        model = optional_json(folder, "config.json").get("model_type")
        kind = {"gpt2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer"}.get(model)
    if kind not in PRE_OF_CLASS:
        raise ExportError(f"{path}: tokenizer_class {kind!r} does not tell the pre-tokenizer, "
                          f"expected one of {', '.join(sorted(PRE_OF_CLASS))} or a tokenizer.json")
    merges = []
    merges_path = os.path.join(folder, "merges.txt")
    with open(merges_path, encoding="utf-8") as f:
        for n, line in enumerate(f):
            line = line.rstrip("\r\n")
            if line and not (n == 0 and line.startswith("#version")):
                merges.append(pair_of(line, merges_path))
    return byte_level(checked_vocab(read_json(path), path), merges, PRE_OF_CLASS[kind])


# ---- tokens on top, special tokens, templates ----------------------------------------

def add_token(vocab, i, entry, path):
    text = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(text, str) or type(i) is not int or not 0 <= i < MAX_ID:
        raise ExportError(f"{path}: added token {entry!r:.80} has no content or no id")
    kind = CONTROL if entry.get("special") or looks_special(text) else USER_DEFINED
    if vocab.types.get(i) == UNKNOWN:
        kind = UNKNOWN
    if i in vocab.tokens and (vocab.tokens[i] != text or vocab.types[i] != kind):
        vocab.changed = True
    vocab.put(i, text, kind, vocab.scores.get(i, UNREACHED) if vocab.model == "llama" else 0.0)


def add_tokens(vocab, folder, settings):
    path = os.path.join(folder, "tokenizer_config.json")
    for text, i in optional_json(folder, "added_tokens.json").items():
        if i not in vocab.tokens:
            add_token(vocab, i, {"content": text}, os.path.join(folder, "added_tokens.json"))
    decoder = settings.get("added_tokens_decoder")
    for i, entry in (decoder.items() if isinstance(decoder, dict) else ()):
        add_token(vocab, int(i) if str(i).isdecimal() else None, entry, path)


def fit(vocab, n_rows, path):
    """Every row of the embedding has a token: gaps and padding become unused ones; added tokens
    past the last row can never be looked up and are left out."""
    beyond = [i for i in sorted(vocab.tokens) if i >= n_rows]
    for i in beyond:
        if vocab.types[i] == NORMAL:
            raise ExportError(f"{path} has the token {vocab.tokens[i]!r:.40} with id {i}, but the "
                              f"embedding has only {n_rows} rows; the tokenizer is another model's")
        note(f"token {vocab.tokens[i]!r:.40} with id {i} is left out: the embedding has {n_rows} rows")
        del vocab.tokens[i], vocab.types[i], vocab.scores[i]
    vocab.n_real = max(vocab.tokens, default=-1) + 1
    for i in range(n_rows):
        if i not in vocab.tokens:
            vocab.put(i, f"[PAD{i}]", UNUSED, -10000.0)
    if vocab.model == "llama" and len(set(vocab.tokens.values())) < n_rows:
        raise ExportError(f"{path}: two tokens have the same text")


def text_of(value):
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def entries(vocab, folder, settings, config):
    t = "tokenizer.ggml."
    order = range(len(vocab.tokens))
    named = optional_json(folder, "special_tokens_map.json")
    if vocab.model == "llama" and UNKNOWN not in vocab.types.values():
        unknown = special_id(vocab, "unk", (settings, named), config)
        if unknown is None:
            raise ExportError(f"{folder}: the tokenizer has no unknown token, which SentencePiece needs")
        vocab.types[unknown] = UNKNOWN
    out = [(t + "model", "str", vocab.model), (t + "pre", "str", vocab.pre),
           (t + "tokens", "array", [vocab.tokens[i] for i in order])]
    if vocab.model == "llama":
        out.append((t + "scores", "array", [float(vocab.scores[i]) for i in order]))
    out.append((t + "token_type", "array", [int(vocab.types[i]) for i in order]))
    if vocab.merges:
        out.append((t + "merges", "array", vocab.merges))

    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        i = special_id(vocab, role, (settings, named), config)
        if i is not None:
            out.append((f"{t}{key}_token_id", "u32", i))
    for role in ("bos", "eos"):
        value = settings.get(f"add_{role}_token")
        value = value if isinstance(value, bool) else bool(vocab.add[role])
        out.append((f"{t}add_{role}_token", "bool", value))
    prefix = settings.get("add_prefix_space")
    if vocab.model == "llama":
        if isinstance(prefix, bool) and prefix != vocab.add_space_prefix:
            vocab.add_space_prefix, vocab.changed = prefix, True
        out.append((t + "add_space_prefix", "bool", vocab.add_space_prefix))
        raw = raw_model(vocab)
        if raw is not None:
            out.append(("linnet.tokenizer.sentencepiece_model", "u8s", raw))
    elif prefix:
        raise ExportError(f"{os.path.join(folder, 'tokenizer_config.json')}: add_prefix_space is not "
                          "supported with byte-level tokens")
    template = chat_template(folder, settings)
    if template:
        out.append(("tokenizer.chat_template", "str", template))
    return out


def raw_model(vocab):
    """The SentencePiece model with the added tokens as further pieces; None when something was
    changed that only the arrays say."""
    if vocab.raw is None or vocab.changed or vocab.n_raw > len(vocab.tokens):
        return None
    more = [(vocab.tokens[i], vocab.scores[i], vocab.types[i])
            for i in range(vocab.n_raw, vocab.n_real)]
    return add_pieces(vocab.raw, more)


def special_id(vocab, role, sources, config):
    for source in sources:
        text = text_of(source.get(f"{role}_token"))
        i = vocab.id_of(text) if text else None
        if i is not None:
            return i
    if role == "unk" and UNKNOWN in vocab.types.values():
        return next(i for i, kind in vocab.types.items() if kind == UNKNOWN)
    i = config.get(f"{role}_token_id")
    if isinstance(i, list) and i:
        i = i[0]
    if type(i) is int and 0 <= i < len(vocab.tokens):
        return i
    i = vocab.ids.get(role)
    return i if i is not None and 0 <= i < len(vocab.tokens) else None


def chat_template(folder, settings):
    path = os.path.join(folder, "chat_template.jinja")
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as f:
            return f.read()
    template = optional_json(folder, "chat_template.json").get("chat_template")
    template = template or settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {e.get("name"): e.get("template") for e in template if isinstance(e, dict)}
        template = named.get("default") or next(iter(named.values()), None)
    return template if isinstance(template, str) else None
