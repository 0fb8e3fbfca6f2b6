"""How the next token is drawn, and texts that come as they are generated."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Iterator, List, Mapping, Optional, Sequence, TypedDict, Union

import numpy as np
import numpy.typing as npt

from ._native import Handle, c_text, call, ffi, lib

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .session import Session

Stop = Union[str, Sequence[str]]


class SamplingOptions(TypedDict, total=False):
    """What generate(), sample() and batch_generate() take by name. Without any: greedy."""

    seed: int
    """With it and its position a token's random number is fixed: forks and batches change nothing."""
    temperature: float
    """0: the likeliest token, always."""
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    repeat_last: int
    logit_bias: Mapping[int, float]
    """Added to a token's logit; -inf forbids it."""
    allowed: Optional[npt.NDArray[np.bool_]]
    """Which tokens may be drawn, [n_vocab]; None: any."""


class Sampling:
    """SamplingOptions as the library wants them."""

    def __init__(self, n_vocab: int, options: SamplingOptions) -> None:
        unknown = set(options) - set(SamplingOptions.__annotations__)
        if unknown:
            raise TypeError(f"unknown sampling option {sorted(unknown)[0]!r}; there are "
                            f"{', '.join(SamplingOptions.__annotations__)}")
        self.c: Any = ffi.new("linnet_sampling *")
        self.c.top_p, self.c.repeat_penalty, self.c.repeat_last = 1, 1, 64
        for name in ("seed", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last"):
            if name in options:
                setattr(self.c, name, options[name])
        bias = options.get("logit_bias") or {}
        if bias:
            self._bias = ffi.new("linnet_logit_bias[]", list(bias.items()))
            self.c.bias, self.c.n_bias = self._bias, len(bias)
        self.allow(n_vocab, options.get("allowed"))

    def allow(self, n_vocab: int, allowed: Optional[npt.NDArray[np.bool_]]) -> None:
        """Another choice of tokens that may be drawn from here on."""
        self.c.allowed = ffi.NULL
        if allowed is None:
            return
        mask = np.asarray(allowed)
        if mask.dtype != np.bool_ or mask.shape != (n_vocab,):
            raise ValueError(f"allowed: expected {n_vocab} truth values, one for each token of the vocabulary, found "
                             f"{mask.dtype} {mask.shape}")
        bits = np.packbits(mask, bitorder="little")
        self._mask = np.zeros(-(-n_vocab // 32) * 4, np.uint8)
        self._mask[:bits.size] = bits
        self.c.allowed = ffi.cast("uint32_t *", ffi.from_buffer(self._mask))

    def draw(self, session: Any) -> int:
        token = ffi.new("int32_t *")
        call(lib.linnet_sample, session, self.c, token)
        drawn: int = token[0]
        return drawn


class Writer:
    """linnet_text: tokens in, whole characters out, up to a stop string."""

    def __init__(self, after: Any, stop: Stop) -> None:
        stops = [stop] if isinstance(stop, str) else list(stop)
        texts = [c_text(s, "stop") for s in stops]
        out = ffi.new("linnet_text **")
        call(lib.linnet_text_new, out, after, ffi.new("char *[]", texts) if texts else ffi.NULL, len(texts))
        self._handle = Handle("text", out[0], lib.linnet_text_free)
        self.stop: Optional[str] = None

    def push(self, token: int) -> str:
        """What can be shown now; -1: the text is over."""
        size, stop = ffi.new("size_t *"), ffi.new("char **")
        with self._handle.use(alone=True) as text:
            shown = ffi.unpack(lib.linnet_text_push(text, token, size, ffi.NULL, stop), size[0])
            if stop[0] != ffi.NULL:
                self.stop = ffi.string(stop[0]).decode()
        decoded: str = shown.decode("utf-8", "replace")
        return decoded


@dataclasses.dataclass(frozen=True)
class Generated:
    """A finished text."""

    text: str
    tokens: List[int]
    """What was sampled, the token that ended the text not counted."""
    end: str
    """"token": the text's own end; "stop": a stop string; "length": max_tokens; "context": no room."""
    stop: Optional[str]
    """The stop string that ended it."""


class Generation(Iterator[str]):
    """Iterates over the text as it comes, in whole characters. Whatever was shown is in the session, with the logits
    after it: stop iterating whenever you like."""

    def __init__(self, session: Session, max_tokens: int, stop: Stop, feed_end: bool,
                 **sampling: Unpack[SamplingOptions]) -> None:
        self.session = session
        self.tokens: List[int] = []
        """Sampled so far."""
        self.end: Optional[str] = None
        """Why it ended (Generated.end, or "cancelled" after close()); None: it goes on."""
        self._max_tokens, self._feed_end = max_tokens, feed_end
        self._sampling = Sampling(session.model.info.n_vocab, sampling)
        with session._handle.use(alone=True) as pointer:
            self._writer = Writer(pointer, stop)

    @property
    def stop(self) -> Optional[str]:
        """The stop string that ended it."""
        return self._writer.stop

    def allow(self, allowed: Optional[npt.NDArray[np.bool_]]) -> None:
        """Which tokens may be drawn from here on, as in SamplingOptions: for grammars."""
        self._sampling.allow(self.session.model.info.n_vocab, allowed)

    def __next__(self) -> str:
        while self.end is None:
            shown = self._step()
            if shown:
                return shown
        raise StopIteration

    def _step(self) -> str:
        session = self.session
        if self._max_tokens and len(self.tokens) == self._max_tokens:
            return self._over("length")
        if len(session) >= session.ctx:
            return self._over("context")
        with session._handle.use(alone=True) as pointer:
            token = self._sampling.draw(pointer)
        ends = session.model.is_end(token)
        if not ends or self._feed_end:
            session._advance(token)
        if ends:
            return self._over("token")
        self.tokens.append(token)
        shown = self._writer.push(token)
        if self.stop is not None:
            self.end = "stop"
        return shown

    def _over(self, end: str) -> str:
        shown = self._writer.push(-1)
        self.end = end if self.stop is None else "stop"
        return shown

    def close(self) -> None:
        """Ends it: the next step of the iteration stops."""
        if self.end is None:
            self.end = "cancelled"

    def text(self) -> str:
        """The rest, at once."""
        return "".join(self)
