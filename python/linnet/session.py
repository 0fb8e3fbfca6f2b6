"""One timeline: tokens, state, last logits."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any, Optional, Sequence, Union

import numpy as np

from ._native import (Handle, Ids, LinnetError, Logits, Progress, Status, Watch, call, choice, failed, ffi, ids_of, lib,
                      on_progress, on_rows, pointer_of, text_of)
from .sampling import Generation, Sampling, SamplingOptions, Stop

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .model import Cache, Model

Path = Union[str, "os.PathLike[str]"]


@dataclasses.dataclass(frozen=True)
class Reuse:
    """What Session.sync did."""

    n_reused: int
    """Tokens that were in place."""
    n_fed: int
    """Tokens that were computed."""
    text: str
    """One line: what was reused, and why not more."""


class Session:
    """A mutable timeline of tokens. Made by Model.session(), by fork() of another, for one thread at a time.

    len(session) is the number of tokens in it."""

    def __init__(self, model: Model, *, ctx: int = 0, kv: str = "f16", window_mode: str = "sliding") -> None:
        options = ffi.new("linnet_session_options *")
        options.ctx = ctx
        options.kv = choice(kv, ("f16", "f32", "q8_0"), "LINNET_KV_", "kv")
        options.window_mode = choice(window_mode, ("sliding", "terrace", "terrace-hf"), "LINNET_", "window_mode")
        out = ffi.new("linnet_session **")
        with model._handle.use() as pointer:
            call(lib.linnet_session_new, out, pointer, options)
        self._own(model, out[0])

    def _own(self, model: Model, pointer: Any) -> None:
        self.model = model
        self._handle = Handle("session", pointer, lib.linnet_session_free, model._handle)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees it now; otherwise Python does when nothing refers to it any more."""
        self._handle.close()

    def __len__(self) -> int:
        n = ffi.new("size_t *")
        with self._handle.use(alone=True) as s:
            lib.linnet_session_tokens(s, n)
        count: int = n[0]
        return count

    @property
    def tokens(self) -> Ids:
        """The tokens fed so far, a copy."""
        n = ffi.new("size_t *")
        with self._handle.use(alone=True) as s:
            at = lib.linnet_session_tokens(s, n)
            return np.frombuffer(ffi.buffer(at, n[0] * 4), np.int32).copy() if n[0] else np.zeros(0, np.int32)

    @property
    def ctx(self) -> int:
        """The most tokens it can hold."""
        with self._handle.use() as s:
            most: int = lib.linnet_session_ctx(s)
        return most

    @property
    def state_bytes(self) -> int:
        """Bytes of state held right now."""
        with self._handle.use(alone=True) as s:
            held: int = lib.linnet_session_state_bytes(s)
        return held

    @property
    def logits(self) -> Logits:
        """The logits after the last token, [info.n_rows], a copy. An error if they were not asked for."""
        with self._handle.use(alone=True) as s:
            at = lib.linnet_session_logits(s)
            if at == ffi.NULL:
                raise failed(Status.ERR_ARGUMENT, "the session holds no logits: feed it a token first")
            row: Logits = np.frombuffer(ffi.buffer(at, self.model.info.n_rows * 4), np.float32).copy()
        return row

    def _ids(self, what: Union[str, Sequence[int], Ids]) -> Ids:
        if isinstance(what, str):
            start = len(self) == 0
            return ids_of(self.model.tokenize(what, bos=start, middle=not start))
        return ids_of(what)

    def _forward(self, ids: Ids, want: int, watch: Watch, sampled: bool = False) -> None:
        with self.model._handle.use(), self._handle.use(alone=True) as s:
            items = ffi.new("linnet_item[1]")
            item = items[0]
            item.session, item.tokens, item.n_tokens = s, pointer_of(ids), len(ids)
            item.want, item.sampled = want, sampled
            item.rows, item.user = on_rows, watch.handle
            # One token is too short to be interrupted.
            progress = on_progress if len(ids) > 1 else ffi.NULL
            watch.call(lib.linnet_forward, items, 1, progress, watch.handle)

    def _advance(self, token: int) -> None:
        """Feeds a token that was sampled from this session."""
        self._forward(np.array([token], np.int32), lib.LINNET_LOGITS_LAST, Watch(), sampled=True)

    def feed(self, tokens: Union[str, Sequence[int], Ids], *, logits: bool = True,
             progress: Optional[Progress] = None) -> None:
        """Appends tokens, or a text. progress(what, done, total) is called during long work and cancels it by
        returning False; so does Ctrl-C."""
        want = lib.LINNET_LOGITS_LAST if logits else lib.LINNET_LOGITS_NONE
        self._forward(self._ids(tokens), want, Watch(progress))

    def forward(self, tokens: Union[str, Sequence[int], Ids], *, progress: Optional[Progress] = None) -> Logits:
        """Appends tokens and returns the logits after each, [n, info.n_rows]."""
        ids = self._ids(tokens)
        start, out = len(self), np.empty((len(ids), self.model.info.n_rows), np.float32)

        def keep(first: int, rows: Logits) -> None:
            out[first - start:first - start + len(rows)] = rows

        self._forward(ids, lib.LINNET_LOGITS_ALL, Watch(progress, keep, out.shape[1]))
        return out

    def sync(self, tokens: Union[Sequence[int], Ids], cache: Optional[Cache] = None, *, mark: int = 0) -> Reuse:
        """Makes `tokens` the whole timeline: keeps, or takes from the cache, the longest beginning that is there, and
        computes the rest. `mark`: where the last turn begins."""
        ids, reuse = ids_of(tokens), ffi.new("linnet_reuse *")
        with self.model._handle.use(), self._handle.use(alone=True) as s:
            if cache is None:
                call(lib.linnet_session_sync, s, ffi.NULL, pointer_of(ids), len(ids), mark, reuse)
            else:
                with cache._handle.use() as c:
                    call(lib.linnet_session_sync, s, c, pointer_of(ids), len(ids), mark, reuse)
        return Reuse(reuse.n_reused, reuse.n_fed, text_of(reuse.text))

    def reset(self) -> None:
        """Forgets all tokens."""
        with self._handle.use(alone=True) as s:
            lib.linnet_session_reset(s)

    def sample(self, **sampling: Unpack[SamplingOptions]) -> int:
        """Draws the next token without feeding it."""
        chosen = Sampling(self.model.info.n_vocab, sampling)
        with self._handle.use(alone=True) as s:
            return chosen.draw(s)

    def generate(self, prompt: Union[str, Sequence[int], Ids, None] = None, *, max_tokens: int = 0, stop: Stop = (),
                 feed_end: bool = False, **sampling: Unpack[SamplingOptions]) -> Generation:
        """Feeds the prompt, if there is one, and returns an iterator over the text that follows, until the model ends
        it, a stop string comes, max_tokens were sampled (0: no limit) or the context is full.

        feed_end: also feed the token that ended the text, as a chat needs."""
        if prompt is not None:
            self.feed(prompt)
        return Generation(self, max_tokens, stop, feed_end, **sampling)

    # ---- state is a value

    def fork(self) -> Session:
        """Another session in the same state; both go on independently and share what they can."""
        out = ffi.new("linnet_session **")
        with self.model._handle.use(), self._handle.use(alone=True) as s:
            call(lib.linnet_session_fork, s, out)
        copy = Session.__new__(Session)
        copy._own(self.model, out[0])
        return copy

    def save(self) -> bytes:
        """The state: load() of a session of the same model, anywhere, goes on from it bit for bit."""
        with self.model._handle.use(), self._handle.use(alone=True) as s:
            size = lib.linnet_session_size(s)
            data = bytearray(size)
            call(lib.linnet_session_save, s, ffi.from_buffer(data), size)
        return bytes(data)

    def load(self, state: Union[bytes, bytearray, memoryview]) -> None:
        """Becomes what save() was; refused, and nothing changes, unless it is whole and of this model."""
        with self.model._handle.use(), self._handle.use(alone=True) as s:
            data = ffi.from_buffer(state)
            call(lib.linnet_session_load, s, data, len(data))

    def save_file(self, path: Path) -> None:
        """save() into a file that appears when it is complete."""
        with self.model._handle.use(), self._handle.use(alone=True) as s:
            call(lib.linnet_session_save_file, s, os.fsencode(path))

    def load_file(self, path: Path) -> None:
        """load() from a file."""
        with self.model._handle.use(), self._handle.use(alone=True) as s:
            call(lib.linnet_session_load_file, s, os.fsencode(path))

    def __repr__(self) -> str:
        if self._handle.closed:
            return "<linnet.Session, closed>"
        try:
            return f"<linnet.Session: {len(self)} of {self.ctx} tokens>"
        except LinnetError:
            return "<linnet.Session, in use>"
