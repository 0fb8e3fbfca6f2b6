"""Attention over whole sequences in PyTorch: softmax, and LoLCATs' window + linear attention as
docs/mixers.md defines it (sliding). q [B, H, T, D], k and v [B, KV, T, D], heads in groups over KV
heads. Nothing is of size T x T: softmax goes by blocks of queries, the rest by chunks."""
import math

import torch
from torch.nn.functional import pad

QUERIES = 64  # of a block of softmax attention
CHUNK = 64    # of linear attention


def fold(x, kv):
    """[B, H, T, D] -> [B * KV, G, T, D]"""
    B, H, T, D = x.shape
    return x.reshape(B * kv, H // kv, T, D)


def softmax_attention(q, k, v, dtype=torch.float32):
    """`dtype`: of the products on a GPU, which has one kernel for it all."""
    B, H, T, D = q.shape
    kv = k.shape[1]
    if q.is_cuda:
        k, v = (x.repeat_interleave(H // kv, 1) for x in (k, v))
        return torch.nn.functional.scaled_dot_product_attention(
            q.to(dtype), k.to(dtype), v.to(dtype), is_causal=True).to(q.dtype)
    q = fold(q, kv) * D ** -0.5
    k, v = k.reshape(B * kv, T, D), v.reshape(B * kv, T, D)
    future = torch.full((QUERIES, QUERIES), -math.inf, device=q.device, dtype=q.dtype).triu(1)
    out = []
    for at in range(0, T, QUERIES):
        end = min(at + QUERIES, T)
        n = end - at
        s = (q[:, :, at:end].reshape(B * kv, -1, D) @ k[:, :end].transpose(1, 2)).view(B * kv, -1, n, end)
        s[..., at:] += future[:n, :n]
        out.append((s.softmax(-1).view(B * kv, -1, end) @ v[:, :end]).view(B * kv, -1, n, D))
    return torch.cat(out, 2).view(B, H, T, D)


def window_mask(n, window, sinks, device):
    """What a block of `window` queries sees of [previous block, own block, sinks]: True where it does
    not. One row of blocks for each of the n blocks: the first has no block before it, the sinks are
    extra only where no window holds them."""
    at = torch.arange(window, device=device)
    i = torch.arange(n * window, device=device).view(n, window, 1)
    before = (at[None, :] <= at[:, None]).expand(n, -1, -1).clone()
    before[0] = True
    own = (at[None, :] > at[:, None]).expand(n, -1, -1)
    pinned = torch.arange(sinks, device=device) > i - window
    return torch.cat([before, own, pinned], -1)


def window_sums(q, k, v, window, sinks):
    """sum over S of e^(s - c) v, and of e^(s - c): [B, H, T, D], [B, H, T, 1]. T a multiple of
    `window`."""
    B, H, T, D = q.shape
    kv, n = k.shape[1], T // window
    group = H // kv
    q = fold(q, kv).view(B * kv, group, n, window, D).transpose(1, 2)
    q = (q * D ** -0.5).reshape(B * kv * n, group * window, D)

    def blocks(x):
        own = x.reshape(B * kv, n, window, D)
        parts = [torch.cat([own[:, :1], own[:, :-1]], 1), own]
        if sinks:
            parts.append(own.flatten(1, 2)[:, None, :sinks].expand(-1, n, -1, -1))
        return torch.cat(parts, 2).view(B * kv * n, -1, D)

    hidden = window_mask(n, window, sinks, q.device)[:, None]
    s = (q @ blocks(k).transpose(1, 2)).view(B * kv, n, group, window, -1)
    s = s.masked_fill(hidden, -math.inf)
    e = (s - s.amax(-1, keepdim=True)).exp()  # c counts: it does not scale the linear part
    num = e.view(B * kv * n, group * window, -1) @ blocks(v)

    def back(x):
        return x.reshape(B * kv, n, group, window, -1).transpose(1, 2).reshape(B, H, T, -1)

    return back(num), back(e.sum(-1, keepdim=True))


class Features(torch.autograd.Function):
    """[softmax(u); softmax(-u)], at least eps, of u [..., F]; keeps only its result. Nothing is changed in
    place: torch.compile 2.11 then gives wrong gradients."""

    @staticmethod
    def forward(ctx, u, eps):
        out = torch.cat([u.softmax(-1), u.neg().softmax(-1)], -1).clamp(min=eps)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, grad):
        f, = ctx.saved_tensors
        n = f.shape[-1] // 2
        g = grad * f
        a, b = g[..., :n], g[..., n:]
        a = torch.addcmul(a, f[..., :n], a.sum(-1, keepdim=True), value=-1)
        b = torch.addcmul(b, f[..., n:], b.sum(-1, keepdim=True), value=-1)
        return a - b, None


def linear_sums(fq, fk, v, chunk=CHUNK):
    """sum over j <= i of (fq_i . fk_j) v_j: [N, T, F], [N, T, F], [N, T, V] -> [N, T, V]"""
    N, T, F = fq.shape
    more = -T % chunk
    if more:
        fq, fk, v = (pad(x, (0, 0, 0, more)) for x in (fq, fk, v))
    n = (T + more) // chunk
    fq, fk, v = (x.reshape(N * n, chunk, -1) for x in (fq, fk, v))
    past = torch.ones(chunk, chunk, device=fq.device, dtype=fq.dtype).tril()
    y = ((fq @ fk.transpose(1, 2)) * past) @ v
    state = (fk.transpose(1, 2) @ v).view(N, n, -1)
    earlier = torch.ones(n, n, device=fq.device, dtype=fq.dtype).tril(-1)
    state = (earlier @ state).view(N * n, F, -1)
    return torch.baddbmm(y, fq, state).view(N, T + more, -1)[:, :T]


def far_sums(fq, fk, v, window, sinks):
    """The linear part of every position from `window` on: sums over N of (fq.fk) v and of (fq.fk), N the
    keys that no window holds, without sinks. fq, fk [B, H, T, F]; v [B, KV, T, D] -> [B, H, T - window, D],
    [B, H, T - window, 1]"""
    B, H, T, F = fq.shape
    kv, D = v.shape[1], v.shape[-1]
    # Keys lag by a window: a plain causal sum over what has left it. A column of ones gives the second
    # sum; columns up to a multiple of 8 are for the GPU's products.
    v = pad(pad(v[:, :, :T - window], (0, 1), value=1.0), (0, -(D + 1) % 8))
    if sinks:
        v = torch.cat([torch.zeros_like(v[:, :, :sinks]), v[:, :, sinks:]], 2)
    v = v[:, :, None].expand(-1, -1, H // kv, -1, -1).reshape(B * H, T - window, -1)
    y = linear_sums(fq[:, :, window:].reshape(B * H, -1, F), fk[:, :, :T - window].reshape(B * H, -1, F), v)
    y = y.view(B, H, T - window, -1)
    return y[..., :D], y[..., D:D + 1]


def features(q, k, map_q, map_k, eps):
    """map_q, map_k [H, D, F] -> features of q and, for each query head, of its group's k"""
    k = k[:, :, None].expand(-1, -1, q.shape[1] // k.shape[1], -1, -1).reshape(q.shape)
    return Features.apply(q @ map_q, eps), Features.apply(k @ map_k, eps)
