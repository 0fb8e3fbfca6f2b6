"""Many texts at once."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np

from ._native import Ids, Watch, call, ffi, lib, on_progress, pointer_of
from .sampling import Generated, Sampling, SamplingOptions, Stop, Writer
from .session import Session

if TYPE_CHECKING:
    from .model import Cache, Model

Prompt = Union[str, Sequence[int], Ids, Session]


class _Row:
    """One text on its way."""

    def __init__(self, number: int, session: Session, ids: Ids, stop: Stop) -> None:
        self.number, self.session, self.ids, self.held = number, session, ids, 0
        self.stop, self.writer = stop, None  # type: Stop, Optional[Writer]
        self.tokens: List[int] = []
        self.shown: List[str] = []
        self.end: Optional[str] = None

    def over(self, end: str) -> None:
        if self.writer:
            self.shown.append(self.writer.push(-1))
        self.end = "stop" if self.writer and self.writer.stop is not None else end

    def draw(self, sampling: Sampling, max_tokens: int) -> None:
        """The next token, into ids; or `end` is set."""
        if max_tokens and len(self.tokens) == max_tokens:
            return self.over("length")
        if len(self.session) >= self.session.ctx:
            return self.over("context")
        with self.session._handle.use(alone=True) as s:
            if self.writer is None:
                self.writer = Writer(s, self.stop)
            token = sampling.draw(s)
        if self.session.model.is_end(token):
            return self.over("token")
        self.ids, self.held = np.array([token], np.int32), 0

    def fed(self, n: int, decoding: bool) -> None:
        self.held += n
        if decoding and self.writer:
            token = int(self.ids[0])
            self.tokens.append(token)
            self.shown.append(self.writer.push(token))
            if self.writer.stop is not None:
                self.end = "stop"

    def result(self) -> Generated:
        return Generated("".join(self.shown), self.tokens, self.end or "", self.writer.stop if self.writer else None)


def batch_generate(model: Model, prompts: Iterable[Prompt], batch: int, ctx: int, kv: str, cache: Optional[Cache],
                   max_tokens: int, stop: Stop, options: SamplingOptions) -> Iterator[Tuple[int, Generated]]:
    """The number of a prompt and its text, as they are finished."""
    if batch < 1:
        raise ValueError(f"batch: expected at least 1, found {batch}")
    sampling = Sampling(model.info.n_vocab, options)
    waiting, rows = enumerate(prompts), []  # type: Iterator[Tuple[int, Prompt]], List[_Row]
    while True:
        while len(rows) < batch:
            for number, prompt in waiting:
                rows.append(_start(model, number, prompt, ctx, kv, cache, stop))
                break
            else:
                break
        for row in rows:
            if row.held == len(row.ids) and row.end is None:
                row.draw(sampling, max_tokens)
        yield from ((row.number, row.result()) for row in rows if row.end is not None)
        if not rows:
            return
        rows = [row for row in rows if row.end is None]
        if rows:
            _step(model, rows, cache)
            yield from ((row.number, row.result()) for row in rows if row.end is not None)
            rows = [row for row in rows if row.end is None]


def _start(model: Model, number: int, prompt: Prompt, ctx: int, kv: str, cache: Optional[Cache], stop: Stop) -> _Row:
    if isinstance(prompt, Session):
        return _Row(number, prompt, np.zeros(0, np.int32), stop)
    session = Session(model, ctx=ctx, kv=kv)
    row = _Row(number, session, session._ids(prompt), stop)
    if len(row.ids) >= session.ctx:
        row.end = "context"
    elif cache:
        reuse = ffi.new("linnet_reuse *")
        with cache._handle.use() as c, session._handle.use(alone=True) as s:
            call(lib.linnet_cache_restore, c, s, pointer_of(row.ids), len(row.ids), reuse)
        row.held = reuse.n_reused
    return row


def _step(model: Model, rows: List[_Row], cache: Optional[Cache]) -> None:
    """Advances all rows in one forward: those that read their prompt, and those that write."""
    items, keep, steps = ffi.new("linnet_item[]", len(rows)), [], []  # type: Any, List[Any], List[int]
    watch = Watch()
    with contextlib.ExitStack() as using:
        using.enter_context(model._handle.use())
        c = using.enter_context(cache._handle.use()) if cache else None
        for row, item in zip(rows, items):
            left = len(row.ids) - row.held
            if c is not None and row.writer is None:
                left = lib.linnet_cache_next(c, row.held, len(row.ids), 0)
            item.session = using.enter_context(row.session._handle.use(alone=True))
            keep.append(pointer_of(row.ids[row.held:]))
            item.tokens, item.n_tokens, item.sampled = keep[-1], left, row.writer is not None
            item.want = lib.LINNET_LOGITS_LAST if row.held + left == len(row.ids) else lib.LINNET_LOGITS_NONE
            steps.append(left)
        watch.call(lib.linnet_forward, items, len(rows), on_progress, watch.handle)
        if c is not None:
            for row, item in zip(rows, items):
                if row.writer is None:
                    call(lib.linnet_cache_keep, c, item.session)
    for row, n in zip(rows, steps):
        row.fed(n, row.writer is not None)
