"""A model file, and the prefix cache of one."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from ._native import (Handle, Ids, Progress, Watch, c_text, call, choice, ffi, growing, ids_of, lib, on_progress,
                      pointer_of, text_of)
from .batch import Prompt, batch_generate
from .sampling import Generated, SamplingOptions, Stop
from .session import Path, Session

if TYPE_CHECKING:
    from typing_extensions import Unpack

Message = Union[Tuple[str, str], Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What linnet.h's linnet_model_info says."""

    architecture: str
    name: str
    tokenizer: str
    chat_template: str
    isa: str
    backend: str
    note: str
    threads: int
    n_layers: int
    n_embd: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_ff: int
    n_vocab: int
    """Tokens in the vocabulary, 0 without one."""
    n_rows: int
    """Numbers in a row of logits."""
    n_ctx_train: int
    ctx_is_limit: bool
    add_bos: bool
    bos: int
    eos: int
    n_tensors: int
    n_metadata: int
    n_params: int
    file_bytes: int
    weight_bytes: int


@dataclasses.dataclass(frozen=True)
class Mixer:
    """What a layer uses to move information between positions."""

    name: str
    window: int
    """Tokens that it sees; 0: all."""


class Model:
    """An open GGUF file: weights, config and tokenizer. Many threads may use it."""

    def __init__(self, path: Path, *, threads: int = 0, isa: str = "auto", backend: str = "auto",
                 activations: str = "auto", mmap: bool = True, metadata_only: bool = False,
                 progress: Optional[Progress] = None) -> None:
        """threads: 0 = the physical cores. activations: "auto", "exact" or "q8". metadata_only: no weights; info and
        tokenizer work, sessions do not. progress(what, done, total) may return False to cancel."""
        options, watch, out = ffi.new("linnet_model_options *"), Watch(progress), ffi.new("linnet_model **")
        texts = c_text(isa, "isa"), c_text(backend, "backend")
        options.threads, (options.isa, options.backend) = threads, texts
        options.no_mmap, options.metadata_only = not mmap, metadata_only
        options.activations = choice(activations, ("auto", "exact", "q8"), "LINNET_ACT_", "activations")
        options.progress, options.user = on_progress, watch.handle
        watch.call(lib.linnet_model_open, out, os.fsencode(path), options)
        self._handle = Handle("model", out[0], lib.linnet_model_close)
        c = lib.linnet_model_get_info(out[0])[0]
        found: Dict[str, Any] = {}
        for field in dataclasses.fields(ModelInfo):
            value = getattr(c, field.name)
            found[field.name] = text_of(value) if isinstance(value, ffi.CData) else value
        self.info = ModelInfo(**found)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees it now. Sessions that are left can only be closed."""
        self._handle.close()

    def __repr__(self) -> str:
        i = self.info
        return f"<linnet.Model {i.name or i.architecture}: {i.n_layers} layers, {i.n_params} parameters, {i.backend}>"

    # ---- what it is

    @property
    def mixers(self) -> List[Mixer]:
        """Of every layer."""
        window, out = ffi.new("int *"), []
        with self._handle.use() as m:
            for layer in range(self.info.n_layers):
                name = text_of(lib.linnet_model_mixer(m, layer, window))
                out.append(Mixer(name, window[0]))
        return out

    @property
    def metadata(self) -> Dict[str, str]:
        """The file's metadata, values as text, long ones cut."""
        value, out = ffi.new("char[65536]"), {}
        with self._handle.use() as m:
            for i in range(self.info.n_metadata):
                key = text_of(lib.linnet_model_metadata(m, i, value, len(value)))
                out[key] = text_of(value)
        return out

    def state_bytes(self, n_tokens: int, kv: str = "f16") -> int:
        """Bytes of state that a session of n_tokens holds."""
        kind = choice(kv, ("f16", "f32", "q8_0"), "LINNET_KV_", "kv")
        with self._handle.use() as m:
            held: int = lib.linnet_model_state_bytes(m, kind, n_tokens)
        return held

    def check(self) -> None:
        """Reads every weight; NaN or infinity is an error that names the tensor."""
        with self._handle.use() as m:
            call(lib.linnet_model_check, m)

    # ---- text and tokens

    def tokenize(self, text: str, *, bos: bool = True, parse_special: bool = False, middle: bool = False) -> List[int]:
        """bos: BOS in front where the file asks for it. parse_special: spellings of special tokens become those.
        middle: not the beginning of a text."""
        data = text.encode()
        flags = (lib.LINNET_ADD_BOS * bos | lib.LINNET_PARSE_SPECIAL * parse_special | lib.LINNET_MIDDLE * middle)
        with self._handle.use() as m:
            ids, n = growing(len(data) + 2, "int32_t",
                             lambda at, cap, n: call(lib.linnet_tokenize, m, data, len(data), flags, at, cap, n))
        return list(ffi.unpack(ids, n)) if n else []

    def detokenize(self, tokens: Union[Sequence[int], Ids], *, parse_special: bool = False, middle: bool = False) -> str:
        """parse_special: special tokens give their spelling, else nothing."""
        ids = ids_of(tokens)
        flags = lib.LINNET_PARSE_SPECIAL * parse_special | lib.LINNET_MIDDLE * middle
        with self._handle.use() as m:
            text, n = growing(8 * len(ids) + 16, "char", lambda at, cap, n: call(
                lib.linnet_detokenize, m, pointer_of(ids), len(ids), flags, at, cap, n))
        decoded: str = ffi.unpack(text, n).decode("utf-8", "replace") if n else ""
        return decoded

    def chat(self, messages: Sequence[Message], *, after: int = 0, answer: bool = True,
             template: Optional[str] = None) -> List[int]:
        """Messages, (role, content) or {"role": ..., "content": ...}, as the model's chat template writes them; `answer`
        opens the answer. after=k: only what messages [k:] add to a session that holds those before, up to the end
        token of answer k - 1 (generate it with feed_end=True)."""
        pairs = [(m["role"], m["content"]) if isinstance(m, Mapping) else m for m in messages]
        texts = [(c_text(role, "role"), c_text(content, "content")) for role, content in pairs]
        array, name = ffi.new("linnet_message[]", texts), c_text(template, "template")
        with self._handle.use() as m:
            ids, n = growing(256, "int32_t", lambda at, cap, n: call(
                lib.linnet_chat_continue, m, name, array, len(pairs), after, answer, at, cap, n))
        return list(ffi.unpack(ids, n)) if n else []

    def is_end(self, token: int) -> bool:
        """Whether the token ends a text."""
        with self._handle.use() as m:
            ends: bool = lib.linnet_is_end(m, token)
        return ends

    # ---- work

    def session(self, *, ctx: int = 0, kv: str = "f16", window_mode: str = "sliding") -> Session:
        """A new session. ctx: the most tokens; 0 = the trained length, or no limit where no state grows. kv: how keys
        and values are kept, "f16", "f32" or "q8_0"."""
        return Session(self, ctx=ctx, kv=kv, window_mode=window_mode)

    def cache(self, *, bytes: int = 0, dir: Optional[Path] = None, dir_bytes: int = 0, every: int = 0) -> Cache:
        """A prefix cache for this model's sessions."""
        return Cache(self, bytes=bytes, dir=dir, dir_bytes=dir_bytes, every=every)

    def batch_generate(self, prompts: Iterable[Prompt], *, batch: int = 16, ctx: int = 0, kv: str = "f16",
                       cache: Optional[Cache] = None, max_tokens: int = 0, stop: Stop = (),
                       **sampling: Unpack[SamplingOptions]) -> List[Generated]:
        """Texts for many prompts (text, ids, or a session that holds logits), up to `batch` decoded together: one that
        is finished makes room for the next. Each is, token for token, what it would be alone. With a cache, prompts
        that begin alike compute the beginning once."""
        found = dict(batch_generate(self, prompts, batch, ctx, kv, cache, max_tokens, stop, sampling))
        return [found[i] for i in range(len(found))]


@dataclasses.dataclass(frozen=True)
class CacheStats:
    entries: int
    bytes: int
    files: int
    file_bytes: int
    hits: int
    misses: int
    evictions: int


class Cache:
    """What sessions held, found again by their tokens. Many threads may use it."""

    def __init__(self, model: Model, *, bytes: int = 0, dir: Optional[Path] = None, dir_bytes: int = 0,
                 every: int = 0) -> None:
        """bytes: in memory, 0 = 1 GiB. dir: a folder whose files survive a restart, of dir_bytes, 0 = 16 GiB. every:
        tokens of a prefill between snapshots, 0 = 1024."""
        options, out = ffi.new("linnet_cache_options *"), ffi.new("linnet_cache **")
        folder = ffi.NULL if dir is None else ffi.new("char[]", os.fsencode(dir))
        options.bytes, options.dir, options.dir_bytes, options.every = bytes, folder, dir_bytes, every
        with model._handle.use() as m:
            call(lib.linnet_cache_new, out, m, options)
        self._handle = Handle("cache", out[0], lib.linnet_cache_free, model._handle)
        self.model = model

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Writes what the folder lacks, and frees it."""
        self._handle.close()

    def flush(self) -> None:
        """Writes what the folder lacks, now."""
        with self._handle.use() as c:
            call(lib.linnet_cache_flush, c)

    @property
    def stats(self) -> CacheStats:
        out = ffi.new("linnet_cache_stats *")
        with self._handle.use() as c:
            lib.linnet_cache_get_stats(c, out)
        return CacheStats(**{f.name: getattr(out, f.name) for f in dataclasses.fields(CacheStats)})
