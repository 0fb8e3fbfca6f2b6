"""Which pre-tokenizer a tokenizer.json defines: from its definition to the name that GGUF uses."""
from .errors import ExportError

CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def cl100k(digits, marks=""):
    return (CONTRACTION + rf"|[^\r\n\p{{L}}\p{{N}}]?{'[' * bool(marks)}\p{{L}}{marks}"
            rf"{']' * bool(marks)}+|{digits}| ?[^\s\p{{L}}{marks}\p{{N}}]+[\r\n]*|\s*[\r\n]+"
            r"|\s+(?!\S)|\s+")


def o200k(suffix, digits):
    edge = r"[^\r\n\p{L}\p{N}]?"
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    return (f"{edge}{upper}*{lower}+{suffix}|{edge}{upper}+{lower}*{suffix}|{digits}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


DEEPSEEK = (r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

DIGIT = r"\p{N}"
# (expressions in order, ignore_merges) -> tokenizer.ggml.pre. A piece that is a token as a whole is
# taken as it is where ignore_merges is set; names that only differ by it have the same expression.
NAMES = {
    ((GPT2,), False): "gpt-2",
    ((DIGIT, GPT2), False): "smollm",
    ((cl100k(r"\p{N}{1,3}"),), True): "llama-bpe",
    ((cl100k(r"\p{N}{1,3}"),), False): "dbrx",
    ((cl100k(r"\p{N}"),), False): "qwen2",
    ((cl100k(r"\p{N}", r"\p{M}"),), False): "qwen35",
    ((o200k("", r"\p{N}"),), True): "tekken",
    ((o200k(CONTRACTION + "?", r"\p{N}{1,3}"),), False): "gpt-4o",
    ((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK), False): "deepseek-v3",
}
SUPPORTED = "gpt-2, smollm, llama-bpe, qwen2, qwen35, tekken, gpt-4o, deepseek-v3"


def steps_of(definition, where):
    """The regular expressions that a pre_tokenizer applies, in order; ends with ByteLevel."""
    if not isinstance(definition, dict):
        raise ExportError(f"{where}: there is no pre-tokenizer, expected one of {SUPPORTED}")
    steps = definition.get("pretokenizers") if definition.get("type") == "Sequence" else [definition]
    found, byte_level = [], False
    for step in steps if isinstance(steps, list) else [None]:
        kind = step.get("type") if isinstance(step, dict) else None
        if byte_level:
            raise ExportError(f"{where}: a {kind} after ByteLevel is not supported")
        if kind == "ByteLevel":
            byte_level = True
            if step.get("add_prefix_space"):
                raise ExportError(f"{where}: ByteLevel with add_prefix_space is not supported")
            if step.get("use_regex", True):
                found.append(GPT2)
        elif kind == "Digits" and step.get("individual_digits"):
            found.append(DIGIT)
        elif kind == "Split":
            pattern = step.get("pattern")
            expression = pattern.get("Regex") if isinstance(pattern, dict) else None
            # "Removed" of everything outside the matches leaves the same pieces as "Isolated"
            plain = step.get("behavior") == "Isolated" and not step.get("invert")
            kept = step.get("behavior") == "Removed" and step.get("invert")
            if not isinstance(expression, str) or not (plain or kept):
                raise ExportError(f"{where}: a Split with {step.get('behavior')!r} is not supported")
            found.append(expression)
        else:
            raise ExportError(f"{where}: {kind!r} is not supported, expected Split, Digits or "
                              "ByteLevel")
    if not byte_level:
        raise ExportError(f"{where}: ByteLevel is missing, so these are not byte-level tokens")
    return tuple(found)


def name_of(definition, ignore_merges, path):
    where = f"{path}: pre_tokenizer"
    steps = steps_of(definition, where)
    name = NAMES.get((steps, bool(ignore_merges)))
    if name is None:
        raise ExportError(f"{where} is not one that is known ({' then '.join(steps)[:160]}; "
                          f"ignore_merges {bool(ignore_merges)}); supported are {SUPPORTED}")
    return name
