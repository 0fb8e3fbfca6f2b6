"""The mixers of docs/mixers.md in plain PyTorch, over whole sequences: [B, T, d] -> [B, T, d].

Linear attention and the delta rule go chunk by chunk with a state between, everything else is a
masked [T, T] product. No kernels but PyTorch's own of 1.13 and later."""
import math

import torch
import torch.nn.functional as F
from torch import nn

CHUNK = 64


class Linear(nn.Linear):
    def __init__(self, n_in, n_out, bias=False):
        super().__init__(n_in, n_out, bias)


def split(x, heads):
    """[B, T, heads * n] -> [B, heads, T, n]"""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def join(x):
    return x.transpose(1, 2).flatten(2)


def ages(n, device):
    """[n, n]: how many positions the key (column) lies before the query (row)."""
    at = torch.arange(n, device=device)
    return at[:, None] - at[None]


def rope(x, base):
    """Rotates the pairs (i, i + D/2) of x [B, H, T, D]."""
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angle = torch.arange(x.shape[2], device=x.device, dtype=torch.float64)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def causal_conv(x, taps, bias=None):
    """Per channel, the last tap on the current token: x [B, T, C], taps [C, W]."""
    width, n = taps.shape[1], x.shape[1]
    padded = F.pad(x, (0, 0, width - 1, 0))
    y = sum(padded[:, j:j + n] * taps[:, j] for j in range(width))
    return y if bias is None else y + bias


def chunked_linear_attention(q, k, v, weight, phi_q, phi_k, eps, chunk=CHUNK * 4):
    """y_t = sum_(j <= t) w_tj v_j / (sum w_tj + eps), w = weight(q k^T) = phi_q(q) . phi_k(k).
    The product form inside a chunk, features and a state of all earlier chunks across."""
    v = torch.cat([v, torch.ones_like(v[..., :1])], -1)  # the last column sums the weights
    state, out = None, []
    for at in range(0, q.shape[2], chunk):
        qc, kc, vc = q[:, :, at:at + chunk], k[:, :, at:at + chunk], v[:, :, at:at + chunk]
        future = ages(qc.shape[2], q.device) < 0
        y = weight(qc, kc).masked_fill(future, 0) @ vc
        if state is not None:
            y = y + phi_q(qc) @ state
        if at + chunk < q.shape[2]:
            new = phi_k(kc).transpose(2, 3) @ vc
            state = new if state is None else state + new
        out.append(y)
    y = torch.cat(out, 2)
    return y[..., :-1] / (y[..., -1:] + eps)


def chunked_delta_rule(q, k, v, beta, decay=None, chunk=CHUNK):
    """S = a S; S += k (b (v - S^T k))^T; o = S^T q  by chunks (Yang et al. 2024, 2025).
    q, k [B, H, T, K], v [B, H, T, V], beta and decay (log a) [B, H, T].

    With c_i the decay from the chunk's start to i, the chunk's updates u solve
    u_i + sum_(j < i) b_i e^(c_i - c_j) (k_i . k_j) u_j = b_i (v_i - e^(c_i) S^T k_i)."""
    B, H, T, K = k.shape
    pad = -T % chunk
    if pad:
        q, k, v = (F.pad(x, (0, 0, 0, pad)) for x in (q, k, v))
        beta = F.pad(beta, (0, pad))
        decay = None if decay is None else F.pad(decay, (0, pad))
    n = (T + pad) // chunk
    q, k, v = (x.reshape(B, H, n, chunk, -1) for x in (q, k, v))
    beta = beta.reshape(B, H, n, chunk, 1)
    age = ages(chunk, q.device)
    inside = (k @ k.transpose(-1, -2)).masked_fill(age <= 0, 0) * beta
    seen = (q @ k.transpose(-1, -2)).masked_fill(age < 0, 0)
    k_in, k_out, q_in, whole = k, k, q, None
    if decay is not None:
        c = decay.reshape(B, H, n, chunk, 1).cumsum(3)
        between = (c - c.transpose(-1, -2)).masked_fill(age < 0, -math.inf).exp()
        inside, seen = inside * between, seen * between
        k_in, q_in = k * c.exp(), q * c.exp()
        k_out, whole = k * (c[..., -1:, :] - c).exp(), c[..., -1:, :].exp()
    # By substitution: the product of powers loses all digits where keys are alike.
    solved = torch.linalg.solve_triangular(inside, torch.cat((beta * v, beta * k_in), -1), upper=False,
                                           unitriangular=True)
    from_values, from_state = solved.split((v.shape[-1], K), -1)
    state, out = v.new_zeros(B, H, K, v.shape[-1]), []
    for i in range(n):
        u = from_values[:, :, i] - from_state[:, :, i] @ state
        out.append(q_in[:, :, i] @ state + seen[:, :, i] @ u)
        if whole is not None:
            state = state * whole[:, :, i]
        state = state + k_out[:, :, i].transpose(-1, -2) @ u
    return torch.cat(out, 2)[:, :, :T]


class Softmax(nn.Module):
    """Attention over all earlier positions, or a window of them; no positions unless `rope`."""

    def __init__(self, dim, heads=1, kv_heads=None, head_dim=None, window=0, rope=None):
        super().__init__()
        D = head_dim or dim // heads
        self.heads, self.kv_heads, self.window, self.rope = heads, kv_heads or heads, window, rope
        self.q = Linear(dim, heads * D)
        self.k = Linear(dim, self.kv_heads * D)
        self.v = Linear(dim, self.kv_heads * D)
        self.o = Linear(heads * D, dim)

    def qkv(self, x):
        q = split(self.q(x), self.heads)
        k, v = split(self.k(x), self.kv_heads), split(self.v(x), self.kv_heads)
        if self.rope:
            q, k = rope(q, self.rope), rope(k, self.rope)
        group = self.heads // self.kv_heads
        return q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)

    def attend(self, q, k, v):
        age = ages(q.shape[2], q.device)
        hidden = (age < 0) | (age >= self.window) if self.window else age < 0
        s = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        return s.masked_fill(hidden, -math.inf).softmax(-1) @ v

    def forward(self, x):
        return self.o(join(self.attend(*self.qkv(x))))


class Hedgehog(Softmax):
    """Linear attention with learned features [softmax(u); softmax(-u)], u = x W per head; with a
    window (LoLCATs) softmax inside it and linear attention over what is older.

    While `transfer` is set it gives what softmax attention over everything gives, and `difference`
    is the mean square of what its own output lacks: LoLCATs' attention transfer."""
    eps, least, transfer, difference = 1e-12, 1e-12, False, None

    def __init__(self, dim, heads=1, kv_heads=None, head_dim=None, window=0, rope=None,
                 features=None):
        super().__init__(dim, heads, kv_heads, head_dim, window, rope)
        D = head_dim or dim // heads
        features = features or D
        eye = torch.eye(D, features)[None] if features == D else torch.randn(heads, D, features) / D**0.5
        self.map_q = nn.Parameter(eye.repeat(heads if features == D else 1, 1, 1))
        self.map_k = nn.Parameter(self.map_q.detach().clone())
        if window:
            self.window_factor = nn.Parameter(torch.full((heads,), math.log(0.1 / 0.9)))

    def feature(self, x, weights):
        u = x @ weights
        return torch.cat([u.softmax(-1), (-u).softmax(-1)], -1).clamp(min=self.least)

    def attend(self, q, k, v):
        if not self.transfer:
            return self.linearized(q, k, v)
        s = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        want = s.masked_fill(ages(q.shape[2], q.device) < 0, -math.inf).softmax(-1) @ v
        self.difference = (self.linearized(q, k, v) - want).square().mean()
        return want

    def linearized(self, q, k, v):
        fq, fk = self.feature(q, self.map_q), self.feature(k, self.map_k)
        if not self.window:
            return chunked_linear_attention(fq, fk, v, lambda a, b: a @ b.transpose(2, 3),
                                            lambda a: a, lambda b: b, self.eps)
        age = ages(q.shape[2], q.device)
        s = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        s = s.masked_fill((age < 0) | (age >= self.window), -math.inf)
        gamma = self.window_factor.sigmoid()[:, None, None]
        w = gamma * (s - s.amax(-1, keepdim=True)).exp()
        w = w + (fq @ fk.transpose(2, 3)).masked_fill(age < self.window, 0)
        return w @ v / w.sum(-1, keepdim=True)


class Taylor(nn.Module):
    """BASED's linear attention, weights 1 + s + s^2 / 2 of s = q . k / sqrt(features)."""
    eps = 1e-12

    def __init__(self, dim, heads=1, features=16, head_dim=None):
        super().__init__()
        self.heads, self.features = heads, features
        values = heads * (head_dim or dim // heads)
        self.q, self.k = Linear(dim, heads * features), Linear(dim, heads * features)
        self.v, self.o = Linear(dim, values), Linear(values, dim)

    def feature(self, x):
        """[1; x; x x^T / sqrt(2)] of x scaled by features^(-1/4): its products are the weights."""
        x = x * self.features ** -0.25
        pairs = (x[..., :, None] * x[..., None, :]).flatten(-2) / math.sqrt(2)
        return torch.cat([torch.ones_like(x[..., :1]), x, pairs], -1)

    def forward(self, x):
        q, k, v = (split(w(x), self.heads) for w in (self.q, self.k, self.v))

        def weight(a, b):
            s = a @ b.transpose(2, 3) / math.sqrt(self.features)
            return 1 + s + s * s / 2

        return self.o(join(chunked_linear_attention(q, k, v, weight, self.feature, self.feature,
                                                    self.eps)))


class Delta(nn.Module):
    """DeltaNet as flash-linear-attention has it: short convolution, silu, l2 norm of q and k, a
    norm of the output; `gated` adds the decay of Gated DeltaNet, `gate` an output gate."""

    def __init__(self, dim, heads=2, key_dim=None, value_dim=None, taps=4, gated=False, gate=False,
                 norm_eps=1e-5):
        super().__init__()
        self.heads, self.norm_eps = heads, norm_eps
        self.K, self.V = key_dim or dim // heads, value_dim or dim // heads
        channels = heads * (2 * self.K + self.V)
        self.qkv = Linear(dim, channels)
        self.conv = nn.Parameter((torch.rand(channels, taps) * 2 - 1) / math.sqrt(taps))
        self.beta = Linear(dim, heads)
        if gated:
            self.alpha = Linear(dim, heads)
            # Forgetting begins slowly, in the first head slowest: with flash-linear-attention's
            # random rates a single head forgets too fast to learn recall at all.
            self.A_log = nn.Parameter(torch.zeros(heads))
            dt = 0.001 * 100 ** (torch.arange(heads) / heads)
            self.dt = nn.Parameter(dt.expm1().log())  # softplus gives dt
        self.gate = Linear(dim, heads * self.V) if gate else None
        self.norm = nn.Parameter(torch.ones(self.V))
        self.o = Linear(heads * self.V, dim)

    def parts(self, x):
        qk = self.heads * self.K
        y = F.silu(causal_conv(self.qkv(x), self.conv))
        q, k, v = (split(p, self.heads) for p in y.split([qk, qk, self.heads * self.V], -1))
        q, k = (p * (p.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for p in (q, k))
        beta = self.beta(x).sigmoid().transpose(1, 2)
        decay = None
        if hasattr(self, "alpha"):
            decay = (-self.A_log.exp() * F.softplus(self.alpha(x) + self.dt)).transpose(1, 2)
        return q / math.sqrt(self.K), k, v, beta, decay

    def forward(self, x):
        o = chunked_delta_rule(*self.parts(x))
        o = o * (o.square().mean(-1, keepdim=True) + self.norm_eps).rsqrt() * self.norm
        y = join(o)
        if self.gate is not None:
            y = y * F.silu(self.gate(x))
        return self.o(y)


class ShortConv(nn.Module):
    """BASED's gated short convolution."""

    def __init__(self, dim, taps=3, inner=None):
        super().__init__()
        self.inner = inner or dim
        self.inp = Linear(dim, 2 * self.inner, bias=True)
        self.conv = nn.Parameter((torch.rand(self.inner, taps) * 2 - 1) / math.sqrt(taps))
        self.conv_bias = nn.Parameter(torch.zeros(self.inner))
        self.out = Linear(self.inner, dim)

    def forward(self, x):
        a, g = self.inp(x).chunk(2, -1)
        return self.out(F.silu(causal_conv(a, self.conv, self.conv_bias)) * g)


def make_mixer(dim, options):
    options = dict(options)
    name = options.pop("mixer")
    kinds = {"softmax": Softmax, "hedgehog": Hedgehog, "lolcats": Hedgehog, "based_taylor": Taylor,
             "delta_net": Delta, "gated_delta_net": Delta, "short_conv": ShortConv}
    if name == "gated_delta_net":
        options["gated"] = True
    return kinds[name](dim, **options)
