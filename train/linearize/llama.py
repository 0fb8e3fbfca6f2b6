"""A Llama from a folder in Hugging Face layout, its weights frozen: the teacher, and what a
linearized student shares with it. The residual stream is float32 whatever the products are."""
import hashlib

import torch
import torch.nn.functional as F

from export.checkpoint import open_checkpoint, to_float32
from export.errors import ExportError

from ..config import TrainError
from ..run import device_of
from .attention import softmax_attention


def product(x, w):
    """x W^T in W's type."""
    return (x.to(w.dtype) @ w.t()).to(x.dtype)


def norm(x, weight, eps):
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Llama:
    """`products`: "float32", or "bf16" for the large matrices (not the output's); with it, a GPU may
    compute softmax attention in bf16 and all else of matrices in TF32."""

    def __init__(self, folder, products="float32", device="cpu"):
        try:
            values, tensors = open_checkpoint(folder)
        except ExportError as e:
            raise TrainError(str(e))
        except ImportError as e:
            raise TrainError(f"{folder}: reading it needs the Python package {e.name}")
        self.folder, self.device = folder, device_of(device)
        kind = values.get("model_type")
        scaled = values.get("rope_scaling") or {
            k: v for k, v in (values.get("rope_parameters") or {}).items() if k != "rope_theta" and v != "default"}
        for what, wrong in (("model_type " + repr(kind), kind not in ("llama", "mistral")),
                            (f"hidden_act {values.get('hidden_act')!r}", values.get("hidden_act", "silu") != "silu"),
                            ("scaled rotary positions", scaled),
                            ("attention_bias", values.get("attention_bias")), ("mlp_bias", values.get("mlp_bias"))):
            if wrong:
                raise TrainError(f"{folder}/config.json: {what} cannot be linearized here")
        try:
            self.n_layers, self.dim = values["num_hidden_layers"], values["hidden_size"]
            self.heads = values["num_attention_heads"]
            self.vocab = values["vocab_size"]
        except KeyError as e:
            raise TrainError(f"{folder}/config.json has no {e.args[0]}")
        self.kv_heads = values.get("num_key_value_heads") or self.heads
        self.head_dim = values.get("head_dim") or self.dim // self.heads
        self.eps = values.get("rms_norm_eps", 1e-6)
        self.theta = (values.get("rope_parameters") or values).get("rope_theta") or 10000.0
        self.dtype = big = torch.bfloat16 if products == "bf16" else torch.float32
        if self.device.type == "cuda":
            if not hasattr(F, "scaled_dot_product_attention"):
                raise TrainError(f"--device {device} needs PyTorch 2 or later, this is {torch.__version__}")
            torch.backends.cuda.matmul.allow_tf32 = products == "bf16"

        def read(name, dtype=torch.float32):
            if name not in tensors:
                raise TrainError(f"{folder}: tensor {name} is missing")
            t = tensors[name]
            return torch.from_numpy(to_float32(t.read(), t.dtype).copy()).to(self.device, dtype)

        def stack(at, *names):
            return torch.cat([read(f"{at}{n}.weight", big) for n in names])

        try:
            self.embed = read("model.embed_tokens.weight")
            self.final = read("model.norm.weight")
            tied = values.get("tie_word_embeddings") or "lm_head.weight" not in tensors
            self.head = self.embed if tied else read("lm_head.weight")
            self.layers = []
            for i in range(self.n_layers):
                at = f"model.layers.{i}."
                self.layers.append({
                    "norm": read(at + "input_layernorm.weight"),
                    "qkv": stack(at + "self_attn.", "q_proj", "k_proj", "v_proj"),
                    "o": stack(at + "self_attn.", "o_proj"),
                    "ff_norm": read(at + "post_attention_layernorm.weight"),
                    "gate_up": stack(at + "mlp.", "gate_proj", "up_proj"),
                    "down": stack(at + "mlp.", "down_proj")})
        except ExportError as e:
            raise TrainError(str(e))
        self.table = self.angles = None  # of rotary positions: all so far, and those of the sequences at hand

    def fingerprint(self):
        h = hashlib.sha256()
        for t in (self.embed, self.final, self.layers[-1]["norm"], self.layers[-1]["down"]):
            h.update(t.float().cpu().numpy().tobytes())
        return h.hexdigest()[:16]

    def qkv(self, weights, x, lora=None):
        """A layer's inputs x [B, T, d] -> rotated q [B, H, T, D] and k [B, KV, T, D], v."""
        B, T, _ = x.shape
        h = norm(x, weights["norm"], self.eps).view(B * T, -1)
        y = product(h, weights["qkv"])
        if lora is not None:
            y = y + lora(h)
        y = y.view(B, T, -1, self.head_dim).transpose(1, 2)
        q, k, v = y.split([self.heads, self.kv_heads, self.kv_heads], 1)
        cos, sin = self.angles
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def after(self, weights, x, y, lora=None):
        """The rest of a layer from attention's output y [B, H, T, D]."""
        B, H, T, D = y.shape
        y = y.transpose(1, 2).reshape(B * T, H * D)
        o = product(y, weights["o"])
        if lora is not None:
            o = o + lora(y)
        x = x + o.view(B, T, -1)
        gate, up = product(norm(x, weights["ff_norm"], self.eps).view(B * T, -1), weights["gate_up"]).chunk(2, -1)
        return x + product(F.silu(gate) * up, weights["down"]).view(B, T, -1)

    def softmax(self, q, k, v):
        return softmax_attention(q, k, v, self.dtype)

    def layer(self, weights, x):
        q, k, v = self.qkv(weights, x)
        return self.after(weights, x, self.softmax(q, k, v))

    def hidden(self, ids):
        """[B, T] -> [B, T, d], which the output matrix multiplies."""
        x = self.start(ids)
        for weights in self.layers:
            x = self.layer(weights, x)
        return self.end(x)

    def start(self, ids, first=0):
        """Of sequences whose tokens are at positions `first` and on. Softmax attention knows only their
        differences; feature maps see the positions themselves."""
        end = first + ids.shape[1]
        if self.table is None or len(self.table[0]) < end:
            half = self.head_dim // 2
            frequency = self.theta ** (-torch.arange(half, dtype=torch.float64) / half)
            angle = torch.arange(end, dtype=torch.float64)[:, None] * frequency
            self.table = [f(angle).float().to(self.device) for f in (torch.cos, torch.sin)]
        self.angles = [a[first:end] for a in self.table]
        return self.embed[ids]

    def end(self, x):
        return norm(x, self.final, self.eps)
