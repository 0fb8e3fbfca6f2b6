"""Tests of export/: python3 -m unittest tests.test_export (needs numpy, gguf, safetensors).

Checkpoints are written here, torch.save files included: no PyTorch."""
import base64
import contextlib
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import types
import unittest
import zipfile
from argparse import Namespace
from collections import OrderedDict
from unittest import mock

import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf import GGUFReader
from gguf.quants import dequantize, quantize

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from export.errors import ExportError
from export.job import run
from export.sentencepiece import add_pieces, length

V, D, I, L, H, KV, d = 40, 32, 64, 2, 4, 2, 8
LLAMA = dict(model_type="llama", vocab_size=V, hidden_size=D, intermediate_size=I,
             num_hidden_layers=L, num_attention_heads=H, num_key_value_heads=KV, rms_norm_eps=1e-5,
             max_position_embeddings=128, hidden_act="silu", rope_theta=10000.0,
             tie_word_embeddings=False)
GPT2 = dict(model_type="gpt2", vocab_size=V, n_embd=D, n_layer=L, n_head=H, n_positions=16,
            activation_function="gelu_new", layer_norm_epsilon=1e-5)


def random(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def llama_tensors(config=LLAMA, dtype=np.float32):
    head = config.get("head_dim") or d
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (V, D)
    for i in range(L):
        at = f"model.layers.{i}."
        qkv = {"q": H * head, "k": KV * head, "v": KV * head}
        for x, rows in qkv.items():
            shapes[f"{at}self_attn.{x}_proj.weight"] = (rows, D)
            if config["model_type"] == "qwen2" or config.get("attention_bias"):
                shapes[f"{at}self_attn.{x}_proj.bias"] = (rows,)
        shapes[at + "self_attn.o_proj.weight"] = (D, H * head)
        if config.get("attention_bias"):
            shapes[at + "self_attn.o_proj.bias"] = (D,)
        if config["model_type"] == "qwen3":
            shapes[at + "self_attn.q_norm.weight"] = shapes[at + "self_attn.k_norm.weight"] = (head,)
        for x, s in (("gate", (I, D)), ("up", (I, D)), ("down", (D, I))):
            shapes[f"{at}mlp.{x}_proj.weight"] = s
            if config.get("mlp_bias"):
                shapes[f"{at}mlp.{x}_proj.bias"] = s[:1]
        shapes[at + "input_layernorm.weight"] = shapes[at + "post_attention_layernorm.weight"] = (D,)
    return {n: random(k, *s, dtype=dtype) for k, (n, s) in enumerate(shapes.items())}


def gpt2_tensors(inner=4 * D):
    shapes = {"wte.weight": (V, D), "wpe.weight": (16, D), "ln_f.weight": (D,), "ln_f.bias": (D,)}
    for i in range(L):
        at = f"h.{i}."
        for n in ("ln_1", "ln_2"):
            shapes[f"{at}{n}.weight"] = shapes[f"{at}{n}.bias"] = (D,)
        for n, a, b in (("attn.c_attn", D, 3 * D), ("attn.c_proj", D, D), ("mlp.c_fc", D, inner),
                        ("mlp.c_proj", inner, D)):
            shapes[f"{at}{n}.weight"], shapes[f"{at}{n}.bias"] = (a, b), (b,)
    return {"transformer." + n: random(k, *s) for k, (n, s) in enumerate(shapes.items())}


# ---- writers of checkpoints ----------------------------------------

ST_NAMES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int64": "I64", "float64": "F64",
            "bool": "BOOL"}


def save_safetensors(path, tensors):
    """uint16 arrays stand for bfloat16."""
    header, data = {}, b""
    for name, a in tensors.items():
        raw = np.ascontiguousarray(a).tobytes()
        header[name] = {"dtype": ST_NAMES[a.dtype.name], "shape": list(a.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


@contextlib.contextmanager
def fake_torch():
    """Just enough modules for pickle to write torch's names."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("FloatStorage", "HalfStorage", "BFloat16Storage", "LongStorage", "DoubleStorage",
                 "BoolStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def function(name):
        def f(*args):
            raise AssertionError
        f.__module__, f.__qualname__, f.__name__ = "torch._utils", name, name
        setattr(utils, name, f)
        return f
    torch.rebuild = function("_rebuild_tensor_v2")
    torch.parameter = function("_rebuild_parameter")
    saved = {k: sys.modules.get(k) for k in ("torch", "torch._utils")}
    sys.modules.update({"torch": torch, "torch._utils": utils})
    try:
        yield torch
    finally:
        for k, v in saved.items():
            if v is None:
                del sys.modules[k]
            else:
                sys.modules[k] = v


class Stored:
    def __init__(self, kind, key, array):
        self.kind, self.key, self.array = kind, key, array


class Reduced:
    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


STORAGE = {"float32": "FloatStorage", "float16": "HalfStorage", "uint16": "BFloat16Storage",
           "int64": "LongStorage", "float64": "DoubleStorage", "bool": "BoolStorage"}


class TorchPickler(pickle.Pickler):
    def __init__(self, file, legacy):
        super().__init__(file, 2)
        self.legacy = legacy

    def persistent_id(self, obj):
        if isinstance(obj, Stored):
            pid = ("storage", obj.kind, obj.key, "cpu", obj.array.size)
            return pid + (None,) if self.legacy else pid


def torch_object(torch, tensors, parameters=False, geometry=None):
    """-> (OrderedDict as a state dict, [Stored]); 2-D tensors are stored transposed now and then,
    as a .t() would be saved."""
    state, stored = OrderedDict(), []
    for n, (name, a) in enumerate(tensors.items()):
        flip = a.ndim == 2 and n % 3 == 1
        flat = np.ascontiguousarray(a.T if flip else a).ravel()
        flat = np.concatenate([flat[:0], np.zeros(2, a.dtype), flat])  # a storage with an offset
        s = Stored(getattr(torch, STORAGE[a.dtype.name]), str(n), flat)
        stored.append(s)
        stride = tuple(x // a.itemsize for x in np.ascontiguousarray(a).strides)
        stride = (1, a.shape[0]) if flip else stride
        offset, shape = 2, a.shape
        if geometry:
            offset, shape, stride = geometry
        t = Reduced(torch.rebuild, (s, offset, shape, stride, False, OrderedDict()))
        state[name] = Reduced(torch.parameter, (t, True, OrderedDict())) if parameters else t
    return state, stored


def save_torch(path, tensors, legacy=False, wrap=None, **kw):
    with fake_torch() as torch:
        state, stored = torch_object(torch, tensors, **kw)
        value = {wrap: state, "epoch": 3} if wrap else state
        body = io.BytesIO()
        TorchPickler(body, legacy).dump(value)
    if legacy:
        with open(path, "wb") as f:
            for head in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001,
                                                         "little_endian": True, "type_sizes": {}}):
                pickle.dump(head, f, 2)
            f.write(body.getvalue())
            pickle.dump([s.key for s in stored], f, 2)
            for s in stored:
                f.write(struct.pack("<q", s.array.size) + s.array.tobytes())
    else:
        with zipfile.ZipFile(path, "w") as z:
            z.writestr("archive/data.pkl", body.getvalue())
            z.writestr("archive/byteorder", "little")
            for s in stored:
                z.writestr(f"archive/data/{s.key}", s.array.tobytes())


def save_pickle(path, raw):
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("archive/data.pkl", raw)


class Case(unittest.TestCase):
    def setUp(self):
        self.tmp = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.tmp)

    def folder(self, config=LLAMA, tensors=None, name="tiny", **files):
        """A checkpoint folder; files: name with __ for . -> text or JSON value."""
        path = os.path.join(tempfile.mkdtemp(dir=self.tmp), name)
        os.mkdir(path)
        if config is not None:
            self.write(path, "config.json", config)
        if tensors is None:
            tensors = gpt2_tensors() if config is GPT2 else llama_tensors(config)
        if tensors:
            save_safetensors(path + "/model.safetensors", tensors)
        for key, value in files.items():
            self.write(path, key.replace("__", "."), value)
        return path

    def write(self, folder, name, value):
        mode = "wb" if isinstance(value, bytes) else "w"
        with open(os.path.join(folder, name), mode) as f:
            f.write(value if isinstance(value, (bytes, str)) else json.dumps(value))

    def export(self, source, kind=None, tokenizer=None, out=None):
        """-> path; what was said is in self.said"""
        out = out or os.path.join(tempfile.mkdtemp(dir=self.tmp), "out.gguf")
        self.out, said = out, io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                run(Namespace(source=source, out=out, type=kind, tokenizer=tokenizer))
        finally:
            self.said = said.getvalue()
        return out

    def read(self, path):
        r = GGUFReader(path)
        meta = {k: f.contents() for k, f in r.fields.items()}
        return meta, {t.name: t for t in r.tensors}

    def values(self, t):
        return np.array(dequantize(t.data, t.tensor_type))

    def refused(self, pattern, source, **kw):
        with self.assertRaisesRegex(ExportError, pattern):
            self.export(source, **kw)
        self.assertEqual(os.listdir(os.path.dirname(self.out)), [], "something was written")


class Families(Case):
    def test_llama(self):
        t = llama_tensors()
        meta, got = self.read(self.export(self.folder(tensors=t)))
        expected = {"general.architecture": "llama", "general.name": "tiny", "general.file_type": 0,
                    "llama.block_count": L, "llama.context_length": 128,
                    "llama.embedding_length": D, "llama.feed_forward_length": I,
                    "llama.attention.head_count": H, "llama.attention.head_count_kv": KV,
                    "llama.vocab_size": V, "llama.rope.dimension_count": d,
                    "llama.rope.freq_base": 10000.0}
        self.assertEqual({k: meta[k] for k in expected}, expected)
        self.assertAlmostEqual(meta["llama.attention.layer_norm_rms_epsilon"], 1e-5, 12)
        self.assertNotIn("llama.attention.key_length", meta)
        self.assertEqual(len(got), len(t))
        self.assertTrue(np.array_equal(self.values(got["output.weight"]), t["lm_head.weight"]))
        q = t["model.layers.1.self_attn.q_proj.weight"]
        ours = self.values(got["blk.1.attn_q.weight"])
        for head in range(H):
            for j in range(d // 2):  # pair j of a head is rows 2j and 2j+1
                for half in range(2):
                    self.assertTrue(np.array_equal(ours[head * d + 2 * j + half],
                                                   q[head * d + half * d // 2 + j]))
        v = t["model.layers.0.self_attn.v_proj.weight"]
        self.assertTrue(np.array_equal(self.values(got["blk.0.attn_v.weight"]), v))

    def test_head_dim_and_biases(self):
        c = dict(LLAMA, head_dim=12, attention_bias=True, mlp_bias=True)
        t = llama_tensors(c)
        meta, got = self.read(self.export(self.folder(c, t)))
        self.assertEqual((meta["llama.attention.key_length"], meta["llama.attention.value_length"]),
                         (12, 12))
        bias = t["model.layers.0.self_attn.k_proj.bias"].reshape(KV, 2, 6)
        self.assertTrue(np.array_equal(self.values(got["blk.0.attn_k.bias"]),
                                       np.stack([bias[:, 0], bias[:, 1]], -1).ravel()))
        for name in ("attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            self.assertIn(f"blk.1.{name}.bias", got)

    def test_tied(self):
        c = dict(LLAMA, tie_word_embeddings=True)
        _, got = self.read(self.export(self.folder(c)))
        self.assertNotIn("output.weight", got)
        t = llama_tensors(c)
        same = dict(t, **{"lm_head.weight": t["model.embed_tokens.weight"]})
        _, got = self.read(self.export(self.folder(c, same)))
        self.assertNotIn("output.weight", got)
        self.assertIn("ignored: lm_head.weight", self.said)
        other = dict(t, **{"lm_head.weight": random(99, V, D)})
        _, got = self.read(self.export(self.folder(c, other)))
        self.assertTrue(np.array_equal(self.values(got["output.weight"]), other["lm_head.weight"]))
        self.assertIn("both are kept", self.said)
        wrong = dict(t, **{"lm_head.weight": random(99, V, D + 1)})
        self.refused(r"lm_head.weight has shape \[40, 33\], expected \[40, 32\] as model.embed",
                     self.folder(c, wrong))
        head_only = {("lm_head.weight" if n == "model.embed_tokens.weight" else n): a
                     for n, a in t.items()}
        _, got = self.read(self.export(self.folder(c, head_only)))
        self.assertTrue(np.array_equal(self.values(got["token_embd.weight"]),
                                       t["model.embed_tokens.weight"]))

    def test_older_and_newer_config(self):
        for scaling in (dict(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 4.0}),
                        dict(rope_theta=None, rope_parameters={"rope_type": "linear", "factor": 4,
                                                               "rope_theta": 5e5})):
            meta, _ = self.read(self.export(self.folder(dict(LLAMA, **scaling))))
            self.assertEqual((meta["llama.rope.freq_base"], meta["llama.rope.scaling.type"],
                              meta["llama.rope.scaling.factor"]), (5e5, "linear", 4.0))

    def test_llama3_rope(self):
        p = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 64}
        meta, got = self.read(self.export(self.folder(dict(LLAMA, rope_scaling=p))))
        self.assertNotIn("llama.rope.scaling.type", meta)
        f = 10000.0 ** (-np.arange(0, d, 2) / d)
        expected = []
        for x in f:
            wave = 2 * np.pi / x
            smooth = (64 / wave - 1) / 3
            expected.append(1 if wave < 16 else 8 if wave > 64 else 1 / ((1 - smooth) / 8 + smooth))
        np.testing.assert_allclose(self.values(got["rope_freqs.weight"]), expected, rtol=1e-6)

    def test_yarn_rope(self):
        p = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
        meta, _ = self.read(self.export(self.folder(dict(LLAMA, rope_scaling=p))))
        self.assertEqual((meta["llama.rope.scaling.type"], meta["llama.rope.scaling.factor"],
                          meta["llama.rope.scaling.original_context_length"],
                          meta["llama.rope.scaling.yarn_beta_fast"]), ("yarn", 4.0, 32, 32.0))
        self.assertNotIn("llama.rope.scaling.attn_factor", meta)
        p["attention_factor"] = 1.5
        meta, _ = self.read(self.export(self.folder(dict(LLAMA, rope_scaling=p))))
        self.assertAlmostEqual(meta["llama.rope.scaling.attn_factor"], 1.5 / (1 + 0.1 * np.log(4)), 6)

    def test_mistral(self):
        c = dict(LLAMA, model_type="mistral", sliding_window=13)
        meta, _ = self.read(self.export(self.folder(c)))
        self.assertEqual((meta["general.architecture"], meta["llama.attention.sliding_window"]),
                         ("llama", 13))
        meta, _ = self.read(self.export(self.folder(dict(c, sliding_window=None))))
        self.assertNotIn("llama.attention.sliding_window", meta)

    def test_qwen(self):
        for kind in ("qwen2", "qwen3"):
            c = dict(LLAMA, model_type=kind, head_dim=d)
            t = llama_tensors(c)
            meta, got = self.read(self.export(self.folder(c, t)))
            self.assertEqual(meta["general.architecture"], kind)
            self.assertEqual(len(got), len(t))
            q = t["model.layers.0.self_attn.q_proj.weight"]
            self.assertTrue(np.array_equal(self.values(got["blk.0.attn_q.weight"]), q))
            self.assertIn("blk.0.attn_q.bias" if kind == "qwen2" else "blk.0.attn_q_norm.weight", got)
            windows = dict(c, use_sliding_window=True, sliding_window=7, max_window_layers=1)
            for config in (windows, dict(windows, layer_types=["full_attention",
                                                               "sliding_attention"])):
                meta, _ = self.read(self.export(self.folder(config, t)))
                self.assertEqual((meta[kind + ".attention.sliding_window"],
                                  meta["linnet.attention.window_layers"]), (7, [0, 7]))
            meta, _ = self.read(self.export(self.folder(dict(windows, max_window_layers=0), t)))
            self.assertNotIn("linnet.attention.window_layers", meta)
            meta, _ = self.read(self.export(self.folder(dict(windows, use_sliding_window=False), t)))
            self.assertNotIn(kind + ".attention.sliding_window", meta)

    def test_gpt2(self):
        t = gpt2_tensors()
        meta, got = self.read(self.export(self.folder(GPT2, t)))
        self.assertEqual((meta["general.architecture"], meta["gpt2.feed_forward_length"],
                          meta["gpt2.context_length"]), ("gpt2", 4 * D, 16))
        self.assertEqual(len(got), len(t))
        self.assertTrue(np.array_equal(self.values(got["blk.1.attn_qkv.weight"]),
                                       t["transformer.h.1.attn.c_attn.weight"].T))
        self.assertTrue(np.array_equal(self.values(got["position_embd.weight"]),
                                       t["transformer.wpe.weight"]))
        self.assertNotIn("output.weight", got)
        bare = {n.removeprefix("transformer."): a for n, a in t.items()}
        bare["h.0.attn.bias"] = np.ones((1, 1, 16, 16), bool)
        again = self.export(self.folder(GPT2, bare))
        self.assertIn("ignored: h.0.attn.bias", self.said)
        self.assertTrue(np.array_equal(self.values(self.read(again)[1]["blk.0.ffn_up.weight"]),
                                       t["transformer.h.0.mlp.c_fc.weight"].T))
        small = dict(GPT2, n_inner=24)
        meta, _ = self.read(self.export(self.folder(small, gpt2_tensors(24))))
        self.assertEqual(meta["gpt2.feed_forward_length"], 24)

    def test_ignorable(self):
        t = llama_tensors()
        t["model.layers.0.self_attn.rotary_emb.inv_freq"] = random(1, 4)
        t["model.visual.patch.weight"] = random(1, 4)
        _, got = self.read(self.export(self.folder(tensors=t)))
        self.assertEqual(len(got), len(t) - 2)
        self.assertIn("inv_freq, model.visual.patch.weight\n", self.said)


class Types(Case):
    def kinds(self, path):
        return {n: t.tensor_type for n, t in self.read(path)[1].items()}

    def test_default_is_the_source(self):
        f32 = llama_tensors()
        bf16 = {n: (a.view(np.uint32) >> 16).astype(np.uint16) for n, a in f32.items()}
        f16 = {n: a.astype(np.float16) for n, a in f32.items()}
        f64 = {n: a.astype(np.float64) for n, a in f32.items()}
        for tensors, kind, file_type in ((f32, Q.F32, 0), (bf16, Q.BF16, 32), (f16, Q.F16, 1),
                                         (f64, Q.F32, 0)):
            path = self.export(self.folder(tensors=tensors))
            kinds = self.kinds(path)
            self.assertEqual(kinds["blk.0.ffn_up.weight"], kind)
            self.assertEqual(kinds["output_norm.weight"], Q.F32)
            self.assertEqual(self.read(path)[0]["general.file_type"], file_type)
        up = self.read(self.export(self.folder(tensors=bf16)))[1]["blk.0.ffn_up.weight"]
        self.assertEqual(up.data.tobytes(), bf16["model.layers.0.mlp.up_proj.weight"].tobytes())

    def test_every_type(self):
        t = llama_tensors()
        source = self.folder(tensors=t)
        up = t["model.layers.1.mlp.up_proj.weight"]
        for name, kind, file_type in (("f32", Q.F32, 0), ("f16", Q.F16, 1), ("bf16", Q.BF16, 32),
                                      ("q8_0", Q.Q8_0, 7), ("q4_0", Q.Q4_0, 2)):
            path = self.export(source, name)
            kinds = self.kinds(path)
            for tensor, k in kinds.items():
                expected = Q.F32 if tensor.endswith("norm.weight") else kind
                self.assertEqual(k, expected, tensor)
            meta, got = self.read(path)
            self.assertEqual(meta["general.file_type"], file_type)
            want = up.astype(np.float16) if kind == Q.F16 else quantize(up, kind)
            self.assertEqual(got["blk.1.ffn_up.weight"].data.tobytes(), want.tobytes())

    def test_rows_that_do_not_divide(self):
        c = dict(LLAMA, head_dim=6)
        path = self.export(self.folder(c), "q8_0")
        self.assertEqual(self.kinds(path)["blk.0.attn_output.weight"], Q.F16)  # rows of 4 * 6
        self.assertEqual(self.kinds(path)["blk.0.attn_q.weight"], Q.Q8_0)
        self.assertIn("blk.0.attn_output.weight, blk.1.attn_output.weight stay f16: rows of 24 "
                      "do not divide by 32", self.said)

    def test_tied_embedding_in_q4_0(self):
        c = dict(LLAMA, tie_word_embeddings=True)
        path = self.export(self.folder(c), "q4_0")
        self.assertEqual(self.kinds(path)["token_embd.weight"], Q.Q8_0)
        self.assertIn("token_embd.weight stays q8_0", self.said)

    def test_positions_stay_f32(self):
        self.assertEqual(self.kinds(self.export(self.folder(GPT2), "q8_0"))["position_embd.weight"],
                         Q.F32)

    def test_f16_overflow(self):
        t = llama_tensors()
        t["lm_head.weight"][3, 3] = 1e5
        self.refused("lm_head|output.weight has values up to 100000, more than f16 holds",
                     self.folder(tensors=t), kind="f16")


class Sources(Case):
    def variants(self, t):
        half = len(t) // 2
        parts = [dict(list(t.items())[:half]), dict(list(t.items())[half:])]
        for ending, save in (("safetensors", save_safetensors), ("bin", save_torch)):
            stem = "model" if ending == "safetensors" else "pytorch_model"
            f = self.folder(tensors={})
            names = {}
            for n, part in enumerate(parts):
                shard = f"{stem}-0000{n + 1}-of-00002.{ending}"
                save(f"{f}/{shard}", part)
                names.update(dict.fromkeys(part, shard))
            self.write(f, f"{stem}.{ending}.index.json", {"metadata": {}, "weight_map": names})
            yield f"sharded {ending}", f
        for label, kw in (("zip", {}), ("legacy", {"legacy": True}), ("parameters", {"parameters": True}),
                          ("wrapped", {"wrap": "state_dict"}), ("legacy wrapped",
                                                                {"legacy": True, "wrap": "model"})):
            f = self.folder(tensors={})
            save_torch(f + "/pytorch_model.bin", t, **kw)
            yield label, f
        f = self.folder(tensors={})
        save_torch(f + "/state.pt", t)
        yield "state.pt", f

    def test_same_file_from_every_layout(self):
        for dtype in (np.float32, np.float16):
            t = llama_tensors(dtype=dtype)
            with open(self.export(self.folder(tensors=t)), "rb") as f:
                want = f.read()
            for label, folder in self.variants(t):
                with self.subTest(label), open(self.export(folder), "rb") as f:
                    self.assertEqual(f.read(), want)

    def test_bfloat16_pickle(self):
        bits = {n: (a.view(np.uint32) >> 16).astype(np.uint16) for n, a in llama_tensors().items()}
        f = self.folder(tensors={})
        save_torch(f + "/pytorch_model.bin", bits)
        with open(self.export(f), "rb") as a, open(self.export(self.folder(tensors=bits)), "rb") as b:
            self.assertEqual(a.read(), b.read())

    def test_output_is_replaced_only_when_complete(self):
        out = os.path.join(self.tmp, "keep.gguf")
        self.write(self.tmp, "keep.gguf", b"precious")
        t = llama_tensors()
        t["lm_head.weight"][0, 0] = 1e6
        with self.assertRaises(ExportError):  # fails in the middle of writing
            self.export(self.folder(tensors=t), "f16", out=out)
        with open(out, "rb") as f:
            self.assertEqual(f.read(), b"precious")
        self.assertEqual([n for n in os.listdir(self.tmp) if "gguf" in n], ["keep.gguf"])
        self.export(self.folder(), out=out)
        self.assertEqual(self.read(out)[0]["general.architecture"], "llama")
        self.assertEqual(os.stat(out).st_mode & 0o777, 0o666 & ~umask())


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


class Refusals(Case):
    def test_config_values(self):
        for change, pattern in (
                ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported, expected 'silu'"),
                ({"model_type": "mamba"}, "model_type 'mamba' is not supported; supported are llama"),
                ({"model_type": None}, "model_type 'none' is not supported"),
                ({"hidden_size": None}, "config.json has no hidden_size"),
                ({"hidden_size": "32"}, "hidden_size is '32', expected an integer"),
                ({"hidden_size": 0}, "hidden_size is 0, expected an integer of at least 1"),
                ({"hidden_size": 1 << 40}, "hidden_size is 1099511627776"),
                ({"hidden_size": True}, "hidden_size is True"),
                ({"hidden_size": float("inf")}, "hidden_size is inf"),
                ({"hidden_size": 32.5}, "hidden_size is 32.5"),
                ({"rope_scaling": {"type": 3}}, "type is 3, expected a string"),
                ({"rope_scaling": {"rope_theta": 1e4, "mrope_section": [1]}}, "mrope_section"),
                ({"hidden_size": 34}, "hidden_size 34 is not a multiple of num_attention_heads 4"),
                ({"num_key_value_heads": 3}, "a multiple of num_key_value_heads 3"),
                ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, expected a number above 0"),
                ({"rms_norm_eps": -1}, "rms_norm_eps is -1"),
                ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', expected true or false"),
                ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic' is not"),
                ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type 'longrope' is not supported"),
                ({"rope_scaling": {"type": "linear"}}, "has no factor"),
                ({"rope_scaling": [1]}, "rope_scaling is .1., expected an object"),
                ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": False}},
                 "truncate = False is not supported"),
                ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 4.0,
                                   "high_freq_factor": 1.0}}, "high_freq_factor 1 is not above"),
                ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "by kind of layer"),
                ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported"),
                ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}},
                 "partial_rotary_factor = 0.25"),
                ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
                ({"embedding_multiplier": 12.0}, "embedding_multiplier = 12.0 is not supported"),
                ({"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0 is not"),
                ({"num_local_experts": 8}, "num_local_experts = 8 is not supported"),
                ({"model_type": "mistral", "attention_bias": True}, "attention_bias in a mistral"),
                ({"model_type": "qwen3", "head_dim": 8, "layer_types": ["full_attention"]},
                 "layer_types is not a list of 2 entries"),
                ({"model_type": "qwen3", "head_dim": 8, "layer_types": ["linear_attention"] * 2},
                 "layer type 'linear_attention' is not supported"),
                ({"model_type": "qwen3", "head_dim": 8, "layer_types": ["sliding_attention"] * 2},
                 "sliding_window is not set")):
            with self.subTest(change):
                self.refused(pattern, self.folder(dict(LLAMA, **change), llama_tensors()))

    def test_gpt2_options(self):
        for change in ({"activation_function": "relu"}, {"scale_attn_weights": False},
                       {"scale_attn_by_inverse_layer_idx": True}, {"reorder_and_upcast_attn": True},
                       {"add_cross_attention": True}):
            key, value = next(iter(change.items()))
            with self.subTest(key):
                self.refused(f"{key} = {value!r} is not supported",
                             self.folder(dict(GPT2, **change), gpt2_tensors()))

        self.refused("n_embd 32 is not a multiple of n_head 5",
                     self.folder(dict(GPT2, n_head=5), gpt2_tensors()))

    def test_tensors(self):
        name = "model.layers.1.mlp.up_proj.weight"
        t = llama_tensors()
        del t[name]
        self.refused(f"tensor {re.escape(name)} is missing .expected shape .64, 32", self.folder(tensors=t))
        t[name] = random(1, I, D + 1)
        self.refused(rf"tensor {re.escape(name)} has shape \[64, 33\], expected \[64, 32\]",
                     self.folder(tensors=t))
        t[name] = np.zeros((I, D), np.int64)
        self.refused(f"tensor {re.escape(name)} has dtype I64, expected one of F64", self.folder(tensors=t))
        t = dict(llama_tensors(), **{"model.layers.0.mlp.extra": random(1, 3)})
        self.refused("tensor model.layers.0.mlp.extra is neither used by a llama model nor known",
                     self.folder(tensors=t))
        t["model.layers.9.x"] = random(1, 3)
        self.refused("and 1 more", self.folder(tensors=t))
        t = llama_tensors()
        del t["lm_head.weight"]
        self.refused("tensor lm_head.weight is missing", self.folder(tensors=t))
        self.refused(r"embed_tokens.weight has shape \[40, 32\], expected \[41, 32\]",
                     self.folder(dict(LLAMA, vocab_size=41), llama_tensors()))

    def test_files(self):
        self.refused("/nowhere does not exist", self.tmp + "/nowhere")
        f = self.folder()
        self.refused("is a file, expected a folder", f + "/config.json")
        self.refused("config.json is missing", self.folder(config=None, tensors=llama_tensors()))
        self.refused("has no weights; expected model.safetensors", self.folder(tensors={}))
        for text, pattern in ((b"{", "not valid JSON"), (b"[]", "holds a JSON list, expected dict"),
                              (b"\xff\xfe", "not valid JSON"), (b"[" * 100000, "not valid JSON")):
            self.refused(pattern, self.folder(tensors=llama_tensors(), config__json=text))
        two = self.folder(tensors={})
        for n in "ab":
            save_safetensors(f"{two}/{n}.safetensors", llama_tensors())
        self.refused("has 2 .safetensors files and no index", two)

    def test_damaged_safetensors(self):
        whole = self.folder() + "/model.safetensors"
        with open(whole, "rb") as f:
            data = f.read()
        for damaged, pattern in ((b"", "is empty"), (data[:7], "is damaged"), (data[:200], "is damaged"),
                                 (data[:-1], "is damaged"), (data + b"x", "is damaged"),
                                 (b"\xff" * 8 + data[8:], "is damaged"),
                                 (b"<!DOCTYPE html><html>", "is a web page"),
                                 (b"version https://git-lfs.github.com/spec/v1\n", "Git-LFS pointer")):
            with self.subTest(pattern):
                self.refused(pattern, self.folder(tensors={}, model__safetensors=damaged))

    def test_shards(self):
        t = llama_tensors()
        name = "model.safetensors.index.json"
        f = self.folder(tensors={})
        self.write(f, name, {"weight_map": dict.fromkeys(t, "model-1.safetensors")})
        self.refused("model-1.safetensors, named in model.safetensors.index.json, is missing", f)
        save_safetensors(f + "/model-1.safetensors", t)
        self.export(f)
        self.write(f, name, {"weight_map": dict.fromkeys([*t, "ghost"], "model-1.safetensors")})
        self.refused("tensor ghost is missing in .*model-1.safetensors", f)
        save_safetensors(f + "/model-2.safetensors", {"lm_head.weight": t["lm_head.weight"]})
        self.write(f, name, {"weight_map": {**dict.fromkeys(t, "model-1.safetensors"),
                                            "lm_head.weight": "model-2.safetensors"}})
        self.refused("tensor lm_head.weight is in .*model-1.safetensors and again in", f)
        for bad in ("../model.safetensors", "/etc/passwd", ".."):
            self.write(f, name, {"weight_map": {"a": bad}})
            self.refused("expected a plain file name", f)
        self.write(f, name, {})
        self.refused("has no weight_map", f)

    def test_output_path(self):
        f = self.folder()
        with self.assertRaisesRegex(ExportError, "is a folder, expected a file name"):
            self.export(f, out=self.tmp)
        with self.assertRaisesRegex(ExportError, "/none does not exist"):
            self.export(f, out=self.tmp + "/none/x.gguf")
        with mock.patch("os.access", return_value=False):  # as anyone but root would find it
            self.refused("cannot be written to", f)

    def test_full_disk(self):
        with mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")):
            self.refused("No space left on device", self.folder())

    def test_huge_json(self):
        with mock.patch("export.checkpoint.MAX_JSON", 10):
            self.refused("is larger than 0 MB", self.folder())


class Pickles(Case):
    """Nothing but the names of the allow-list is ever looked up, and no geometry is trusted."""

    def source(self, raw):
        f = self.folder(tensors={})
        save_pickle(f + "/pytorch_model.bin", raw)
        return f

    def test_code_is_refused_and_not_run(self):
        mark = os.path.join(self.tmp, "mark")
        command = f"touch {mark}"
        text = lambda s: b"X" + struct.pack("<I", len(s)) + s.encode()
        attacks = {
            "os.system": b"cos\nsystem\n(" + text(command) + b"tR.",
            "posix.system": pickle.dumps(Reduced(os.system, (command,)), 2),
            "builtins.eval": b"cbuiltins\neval\n(" + text(f"open({mark!r}, 'w')") + b"tR.",
            "builtins.getattr": b"cbuiltins\ngetattr\n.",
            "subprocess.Popen": b"(" + text(command) + b"isubprocess\nPopen\n.",  # INST
            "torch.load": b"ctorch\nload\n.",
            "torch.storage._load_from_bytes": b"ctorch.storage\n_load_from_bytes\n.",
            "collections.OrderedDict.__init__":
                b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.",
            "numpy.core.multiarray.scalar": b"cnumpy.core.multiarray\nscalar\n.",
        }
        for name, raw in attacks.items():
            for legacy in (False, True):
                with self.subTest(name, legacy=legacy):
                    source = self.source(raw)
                    if legacy:
                        self.write(source, "pytorch_model.bin",
                                   raw if raw.startswith(b"\x80") else b"\x80\x02" + raw)
                    self.refused(f"asks for {re.escape(name)}, .*nothing in it was run", source)
                    self.assertFalse(os.path.exists(mark))

    def test_objects_cannot_be_changed(self):
        # BUILD on what an allowed name gives: functions, storage types, tensors
        for module, name in (("torch._utils", "_rebuild_tensor_v2"), ("torch", "FloatStorage")):
            raw = f"c{module}\n{name}\n".encode() + b"(N}X\x03\x00\x00\x00runK\x01stb."
            self.refused("is damaged: .*(attempt to change|no attribute)", self.source(raw))
        raw = f"c{module}\n{name}\n".encode() + b"}X\x03\x00\x00\x00runK\x01sb."
        self.refused("is damaged", self.source(raw))

    def test_geometry(self):
        t = {"lm_head.weight": random(1, V, D)}
        for geometry in ((0, (V, D + 1), (D + 1, 1)), (4, (V, D), (D, 1)), (-1, (V, D), (D, 1)),
                         (0, (V, D), (1 << 40, 1)), (0, (V, D), (-D, 1)), (0, (1 << 47, 1 << 40), (0, 0)),
                         (0, (V, D), (D,)), (0, (V, 1.5), (D, 1)), (0, "ab", (D, 1)), (None, (V,), (1,))):
            for legacy in (False, True):
                with self.subTest(geometry):
                    f = self.folder(tensors={})
                    save_torch(f + "/pytorch_model.bin", t, legacy=legacy, geometry=geometry)
                    self.refused("is damaged: UnpicklingError: a tensor", f)

    def test_damaged_files(self):
        t = llama_tensors()
        for legacy in (False, True):
            f = self.folder(tensors={})
            path = f + "/pytorch_model.bin"
            save_torch(path, t, legacy=legacy)
            with open(path, "rb") as g:
                data = g.read()
            rng = np.random.default_rng(5)
            for cut in rng.integers(1, len(data) - 1, 40):
                self.write(f, "pytorch_model.bin", data[:cut])
                self.refused("", f)
            for _ in range(120):  # bits of the pickle: an answer or a sentence, never another error
                broken = bytearray(data)
                for at in rng.integers(0, min(len(data), 9000), 3):
                    broken[at] ^= 1 << int(rng.integers(8))
                self.write(f, "pytorch_model.bin", bytes(broken))
                with contextlib.suppress(ExportError, OSError, MemoryError):
                    self.export(f)

    def rewrite(self, change, **kw):
        """A good zip file with its entries passed through change(name, data) -> data or None."""
        f = self.folder(tensors={})
        path = f + "/pytorch_model.bin"
        save_torch(path, llama_tensors())
        with zipfile.ZipFile(path) as z:
            entries = [(n, change(n, z.read(n))) for n in z.namelist()]
        with zipfile.ZipFile(path, "w", **kw) as z:
            for name, data in entries:
                if data is not None:
                    z.writestr(name, data)
        return f

    def test_zip_archives(self):
        key = "archive/data/3"
        self.export(self.rewrite(lambda n, x: x))
        for change, pattern in ((lambda n, x: None if n == key else x, "storage 3 has 0 bytes, expected"),
                                (lambda n, x: x[:-1] if n == key else x, "storage 3 has [0-9]+ bytes"),
                                (lambda n, x: b"big" if n.endswith("order") else x, "is big-endian")):
            self.refused(pattern, self.rewrite(change))
        self.refused("is compressed", self.rewrite(lambda n, x: x, compression=zipfile.ZIP_DEFLATED))
        with mock.patch("export.unpickle.MAX_PICKLE", 10):
            self.refused("has a pickle of [0-9]+ bytes, too large", self.rewrite(lambda n, x: x))

    def test_legacy_stream(self):
        f = self.folder(tensors={})
        t = {"lm_head.weight": random(1, V, D)}
        save_torch(f + "/pytorch_model.bin", t, legacy=True)
        with open(f + "/pytorch_model.bin", "rb") as g:
            data = g.read()
        magic, protocol = (pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001))
        system = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)
        head = magic + protocol + system
        self.assertTrue(data.startswith(head))
        keys = pickle.dumps(["0"], 2)
        at = data.rindex(keys)
        big = magic + protocol + pickle.dumps({"little_endian": False}, 2)
        for broken, pattern in ((magic + pickle.dumps(1002, 2), "unknown torch.save protocol"),
                                (big + data[len(head):], "is big-endian"),
                                (data[:at] + pickle.dumps(3, 2) + data[at + len(keys):], "no list of"),
                                (data[:at] + pickle.dumps(["7"], 2) + data[at + len(keys):], "truncated"),
                                (data[:at] + pickle.dumps([], 2) + data[at + len(keys):], "is missing"),
                                (data[:at] + keys + struct.pack("<q", 3) + b"0" * 12, "has 3 numbers")):
            self.write(f, "pytorch_model.bin", broken)
            self.refused(pattern, self.only_head(f))

    def only_head(self, folder):
        """The other tensors in a second shard, so that the broken one is needed."""
        save_safetensors(folder + "/rest.safetensors",
                         {n: a for n, a in llama_tensors().items() if n != "lm_head.weight"})
        self.write(folder, "pytorch_model.bin.index.json", {"weight_map": {
            "lm_head.weight": "head.bin", "model.norm.weight": "rest.safetensors"}})
        if os.path.exists(folder + "/pytorch_model.bin"):
            os.replace(folder + "/pytorch_model.bin", folder + "/head.bin")
        return folder

    def test_a_tensor_without_a_storage(self):
        raw = b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))tR."
        self.refused("is damaged: UnpicklingError: a tensor without a storage", self.source(raw))
        for raw in (b"(X\x01\x00\x00\x00aK\x01tQ.", b"K\x05Q."):
            self.refused("a storage reference of an unknown form", self.source(raw))

    def test_not_a_checkpoint(self):
        for raw, pattern in ((b"hello", "neither a zip archive nor a pickle"), (b"", "is empty"),
                             (pickle.dumps([1, 2], 2), "is not a torch.save file"),
                             (b"version https://git-lfs.github.com/spec/v1", "Git-LFS pointer")):
            f = self.folder(tensors={})
            self.write(f, "pytorch_model.bin", raw)
            self.refused(pattern, f)
        self.refused("holds a list, expected a state dict", self.source(pickle.dumps([1, 2], 2)))
        self.refused("holds no tensors", self.source(pickle.dumps({"a": 1}, 2)))
        f = self.folder(tensors={})
        with zipfile.ZipFile(f + "/pytorch_model.bin", "w") as z:
            z.writestr("readme", "x")
        self.refused("a zip archive without data.pkl", f)


# ---- tokenizers ----------------------------------------

def tokenizer_json(pre, tokens=None, merges=("a b", "c d"), added=(), **model):
    tokens = dict(tokens or {c: i for i, c in enumerate("abcdefghij")})
    for m in merges:
        tokens.setdefault("".join(m.split(" ") if isinstance(m, str) else m), len(tokens))
    return {"version": "1.0", "added_tokens": list(added), "normalizer": None, "pre_tokenizer": pre,
            "post_processor": None, "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "vocab": tokens, "merges": list(merges), **model}}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def split_then_bytes(*expressions):
    return {"type": "Sequence", "pretokenizers": [
        *({"type": "Split", "pattern": {"Regex": e}, "behavior": "Isolated", "invert": False}
          for e in expressions), dict(BYTE_LEVEL, use_regex=False)]}


def special(i, text, is_special=True):
    return {"id": i, "content": text, "special": is_special, "normalized": False, "lstrip": False,
            "rstrip": False, "single_word": False}


LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
          r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


class Tokenizers(Case):
    T = "tokenizer.ggml."

    def meta(self, **files):
        return self.read(self.export(self.folder(**files)))[0]

    def test_none(self):
        meta = self.meta()
        self.assertNotIn(self.T + "model", meta)
        self.assertIn("has no tokenizer", self.said)
        self.meta(tekken__json="{}")
        self.assertIn("tekken.json is not read", self.said)
        self.refused("has no tokenizer; expected tokenizer.model", self.folder(),
                     tokenizer=self.folder(tensors={}))

    def test_pre_tokenizers(self):
        digits = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True},
                                                        BYTE_LEVEL]}
        for pre, ignore, name in ((BYTE_LEVEL, False, "gpt-2"), (digits, False, "smollm"),
                                  (split_then_bytes(LLAMA3), True, "llama-bpe"),
                                  (split_then_bytes(LLAMA3), False, "dbrx"),
                                  (split_then_bytes(LLAMA3.replace("{1,3}", "")), False, "qwen2"),
                                  (split_then_bytes(TEKKEN), True, "tekken")):
            with self.subTest(name):
                meta = self.meta(tokenizer__json=tokenizer_json(pre, ignore_merges=ignore))
                self.assertEqual((meta[self.T + "model"], meta[self.T + "pre"]), ("gpt2", name))
        removed = split_then_bytes(LLAMA3.replace("{1,3}", ""))
        removed["pretokenizers"][0].update(behavior="Removed", invert=True)
        meta = self.meta(tokenizer__json=tokenizer_json(removed))
        self.assertEqual(meta[self.T + "pre"], "qwen2")
        merged = split_then_bytes("x")
        merged["pretokenizers"][0].update(behavior="MergedWithNext")
        twice = {"type": "Sequence", "pretokenizers": [BYTE_LEVEL, BYTE_LEVEL]}
        for pre, pattern in ((None, "there is no pre-tokenizer"),
                             (merged, "a Split with 'MergedWithNext' is not supported"),
                             (twice, "a ByteLevel after ByteLevel is not supported"),
                             ({"type": "Whitespace"}, "'Whitespace' is not supported"),
                             (split_then_bytes(r"\w+"), "is not one that is known"),
                             (split_then_bytes(TEKKEN), "is not one that is known"),  # ignore_merges off
                             (dict(BYTE_LEVEL, add_prefix_space=True), "add_prefix_space is not"),
                             ({"type": "Digits", "individual_digits": True}, "ByteLevel is missing"),
                             ({"type": "Sequence", "pretokenizers": 3}, "None is not supported")):
            with self.subTest(pattern):
                self.refused(pattern, self.folder(tokenizer__json=tokenizer_json(pre)))

    def test_byte_level(self):
        added = [special(12, "<|end|>"), special(13, "<think>", False), special(14, "<|odd|>", False),
                 special(99, "<far>")]
        tj = tokenizer_json(BYTE_LEVEL, merges=[["a", "b"], ["c", "d"]], added=added)
        tj["post_processor"] = {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A"}}]}
        meta = self.meta(tokenizer__json=tj, chat_template__jinja="{{ x }}", tokenizer_config__json={
            "eos_token": {"content": "<|end|>"}, "bos_token": "<|end|>", "chat_template": "old"})
        tokens, kinds = meta[self.T + "tokens"], meta[self.T + "token_type"]
        self.assertEqual((len(tokens), len(kinds)), (V, V))
        self.assertEqual(tokens[10:16], ["ab", "cd", "<|end|>", "<think>", "<|odd|>", "[PAD15]"])
        self.assertEqual(kinds[9:16], [1, 1, 1, 3, 4, 3, 5])
        self.assertEqual(meta[self.T + "merges"], ["a b", "c d"])
        self.assertEqual((meta[self.T + "bos_token_id"], meta[self.T + "eos_token_id"]), (12, 12))
        self.assertEqual((meta[self.T + "add_bos_token"], meta[self.T + "add_eos_token"]), (True, False))
        self.assertEqual(meta["tokenizer.chat_template"], "{{ x }}")
        self.assertIn("'<far>' with id 99 is left out", self.said)

    def test_settings(self):
        tj = tokenizer_json(BYTE_LEVEL, added=[special(12, "<s>")])
        meta = self.meta(tokenizer__json=tj, tokenizer_config__json={
            "add_bos_token": True, "add_eos_token": True,
            "chat_template": [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]},
            special_tokens_map__json={"bos_token": "<s>"})
        self.assertEqual((meta[self.T + "add_bos_token"], meta[self.T + "add_eos_token"],
                          meta["tokenizer.chat_template"], meta[self.T + "bos_token_id"]),
                         (True, True, "D", 12))
        source = self.folder(dict(LLAMA, eos_token_id=[5, 6]), tokenizer__json=tj)
        self.assertEqual(self.read(self.export(source))[0][self.T + "eos_token_id"], 5)

    def test_elsewhere(self):
        t = self.folder(tensors={}, tokenizer__json=tokenizer_json(BYTE_LEVEL))
        source = self.folder()
        for where in (t, t + "/tokenizer.json"):
            meta, _ = self.read(self.export(source, tokenizer=where))
            self.assertEqual(meta[self.T + "pre"], "gpt-2")
        self.refused("gone does not exist", source, tokenizer=self.tmp + "/gone")

    def test_vocab_and_merges(self):
        files = dict(vocab__json={c: i for i, c in enumerate(["a", "b", "ab", "#", "##"])},
                     merges__txt="#version: 0.2\na b\n# #\n")
        meta = self.meta(**files, tokenizer_config__json={"tokenizer_class": "GPT2Tokenizer"})
        self.assertEqual((meta[self.T + "pre"], meta[self.T + "merges"]), ("gpt-2", ["a b", "# #"]))
        self.refused("tokenizer_class 'Odd' does not tell", self.folder(
            **files, tokenizer_config__json={"tokenizer_class": "Odd"}))
        source = self.folder(GPT2, **files, added_tokens__json={"<|x|>": 7, "ab": 2})
        meta, _ = self.read(self.export(source))
        self.assertEqual((meta[self.T + "pre"], meta[self.T + "tokens"][7],
                          meta[self.T + "token_type"][2:8]), ("gpt-2", "<|x|>", [1, 1, 1, 5, 5, 3]))
        self.refused("add_prefix_space is not supported with byte-level", self.folder(
            GPT2, **files, tokenizer_config__json={"tokenizer_class": "GPT2Tokenizer",
                                                   "add_prefix_space": True}))

    def test_refusals(self):
        good = lambda **m: tokenizer_json(BYTE_LEVEL, **m)
        many = {chr(0x4E00 + i): i for i in range(V + 1)}
        for tj, pattern in ((good(type="Unigram"), "model type 'Unigram' is not supported"),
                            (good(type="WordPiece"), "model type 'WordPiece' is not supported"),
                            (good(end_of_word_suffix="</w>"), "end_of_word_suffix '</w>'"),
                            (good(merges=["a b c"]), "merge 'a b c' is not a pair"),
                            (good(tokens={"a": 0, "b": 0}, merges=[]), "has the id 0, expected one of its own"),
                            (good(tokens={"a": -1}, merges=[]), "has the id -1"),
                            (good(tokens=many, merges=[]), "embedding has only 40 rows"),
                            (dict(good(), normalizer={"type": "Lowercase"}), "normalizer 'Lowercase'"),
                            (good(added=[{"content": "x"}]), "has no content or no id"),
                            (good(added=[3]), "has no content or no id"),
                            ({"a": 1}, "has no model.vocab"), ([], "holds a JSON list")):
            with self.subTest(pattern):
                self.refused(pattern, self.folder(tokenizer__json=tj))
        meta = self.meta(tokenizer__json=dict(good(), normalizer={"type": "NFC"}))
        self.assertEqual(meta[self.T + "pre"], "gpt-2")


def sentencepiece_model(pieces, kind=2, dummy_prefix=True):
    raw = add_pieces(b"", pieces)
    trainer = b"\x18" + bytes([kind]) + b"\xc0\x02\x00" + b"\xd8\x02" + b"\xff" * 9 + b"\x01"
    normalizer = b"\x0a\x08identity\x18" + bytes([dummy_prefix])
    return raw + b"\x12" + length(len(trainer)) + trainer + b"\x1a" + length(len(normalizer)) + normalizer


PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("<0x0A>", 0.0, 6), ("\u2581a", -0.0, 1),
          ("ab", -1.0, 1), ("a", -2.0, 1), ("b", -3.0, 1), ("\u2581", -4.0, 1)]


class SentencePiece(Case):
    T = Tokenizers.T

    def test_model(self):
        raw = sentencepiece_model(PIECES)
        source = self.folder(tokenizer__model=raw, tokenizer_config__json={
            "bos_token": "<s>", "eos_token": {"content": "</s>"},
            "added_tokens_decoder": {"9": special(9, "<|user|>"), "10": special(10, "<t>", False)}})
        meta, _ = self.read(self.export(source))
        self.assertEqual((meta[self.T + "model"], meta[self.T + "pre"]), ("llama", "default"))
        self.assertEqual(meta[self.T + "tokens"][:12], [p[0] for p in PIECES] + ["<|user|>", "<t>",
                                                                                 "[PAD11]"])
        self.assertEqual(meta[self.T + "token_type"][:12], [p[2] for p in PIECES] + [3, 4, 5])
        self.assertEqual(meta[self.T + "scores"][4:9], [-0.0, -1.0, -2.0, -3.0, -4.0])
        self.assertEqual([meta[self.T + k] for k in ("bos_token_id", "eos_token_id",
                         "unknown_token_id", "add_bos_token", "add_eos_token", "add_space_prefix")],
                         [1, 2, 0, True, False, True])
        self.assertNotIn(self.T + "padding_token_id", meta)
        embedded = bytes(meta["linnet.tokenizer.sentencepiece_model"])
        self.assertEqual(embedded, add_pieces(raw, [("<|user|>", -1000.0, 3), ("<t>", -1000.0, 4)]))

    def test_changes_leave_the_raw_model_out(self):
        raw = sentencepiece_model(PIECES)
        for settings in ({"added_tokens_decoder": {"7": special(7, "c")}}, {"add_prefix_space": False}):
            source = self.folder(tokenizer__model=raw, tokenizer_config__json=settings)
            meta, _ = self.read(self.export(source))
            self.assertNotIn("linnet.tokenizer.sentencepiece_model", meta)
        self.assertFalse(meta[self.T + "add_space_prefix"])

    def test_no_dummy_prefix(self):
        source = self.folder(tokenizer__model=sentencepiece_model(PIECES, dummy_prefix=False))
        self.assertFalse(self.read(self.export(source))[0][self.T + "add_space_prefix"])

    def test_refusals(self):
        for raw, pattern in ((sentencepiece_model(PIECES, kind=1), "of type unigram; only bpe"),
                             (sentencepiece_model(PIECES)[:-3], "is not a SentencePiece model"),
                             (b"", "it has no pieces"), (b"\xff" * 30, "is not a SentencePiece model"),
                             (base64.b64encode(b"x") + b" 0\n", "is not a SentencePiece model"),
                             (sentencepiece_model(PIECES + [("\u2581a", -9.0, 1)]), "the same text"),
                             (sentencepiece_model([(str(i), -i, 1) for i in range(V + 1)]),
                              "the embedding has only 40 rows")):
            with self.subTest(pattern):
                self.refused(pattern, self.folder(tokenizer__model=raw))

    def fallback(self, normalizer=None, pre=None, **changes):
        tokens = {t: i for i, (t, _, _) in enumerate(PIECES)}
        merges = changes.pop("merges", ["\u2581 a", "a b"])
        tj = tokenizer_json(pre, tokens, merges, [special(0, "<unk>"), special(1, "<s>"),
                                                  special(2, "</s>")],
                            byte_fallback=True, unk_token="<unk>")
        tj["normalizer"] = normalizer
        return self.folder(tokenizer__json=tj, **changes)

    def test_llama_tokenizer_json(self):
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
        prepend = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, replace]}
        metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first",
                     "split": False}
        for normalizer, pre, prefix in ((prepend, None, True), (None, metaspace, True),
                                        (replace, None, False),
                                        (None, dict(metaspace, prepend_scheme="never"), False)):
            meta, _ = self.read(self.export(self.fallback(normalizer, pre)))
            self.assertEqual(meta[self.T + "model"], "llama")
            self.assertEqual(meta[self.T + "add_space_prefix"], prefix)
            self.assertEqual(meta[self.T + "token_type"][:9], [2, 3, 3, 6, 1, 1, 1, 1, 1])
            scores = meta[self.T + "scores"]
            self.assertTrue(scores[4] > scores[5] > max(scores[6:9]))
            self.assertTrue(meta[self.T + "add_bos_token"])
        for normalizer, pre, pattern in (
                (None, None, "pre-tokenizer None is not supported"),
                (None, dict(metaspace, split=True), "pre-tokenizer 'Metaspace' is not supported"),
                ({"type": "NFKC"}, metaspace, "normalizer 'NFKC' is not supported")):
            self.refused(pattern, self.fallback(normalizer, pre))
        self.refused("'a' . 'b' make a token without being a merge",
                     self.fallback(prepend, merges=["\u2581 a"]))

    def test_llama_tokenizer_json_without_unknown(self):
        for named, expected in (("<unk>", 2), (None, None)):
            source = self.fallback({"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
                                   tokenizer_config__json={"unk_token": named})
            with open(source + "/tokenizer.json") as f:
                tj = json.load(f)
            tj["model"]["unk_token"] = None
            self.write(source, "tokenizer.json", tj)
            if expected:
                meta, _ = self.read(self.export(source))
                self.assertEqual(meta[self.T + "token_type"][0], expected)
            else:
                self.refused("has no unknown token, which SentencePiece needs", source)

    def test_merges_out_of_order(self):
        tokens = {t: i for i, t in enumerate(["<unk>", "\u2581", *"abcdefgh"])}
        with mock.patch("export.tokenizer.MOST_TIES", 3):
            tj = tokenizer_json({"type": "Metaspace", "replacement": "\u2581", "split": False,
                                 "prepend_scheme": "always"}, tokens,
                                ["a bc", "c d", "e f", "g h", "b c", "a b", "ab c"], [special(0, "<unk>")],
                                byte_fallback=True, unk_token="<unk>")
            self.refused("not in the order of a SentencePiece model", self.folder(tokenizer__json=tj))

    def test_tokenizer_json_beside_another_kind_of_model(self):
        source = self.folder(tokenizer__model=base64.b64encode(b"abc") + b" 0\n",
                             tokenizer__json=tokenizer_json(BYTE_LEVEL))
        self.assertEqual(self.read(self.export(source))[0][self.T + "pre"], "gpt-2")
        self.assertIn("is not a SentencePiece model", self.said)


# ---- the command line ----------------------------------------

class CommandLine(Case):
    def command(self, *args, python=(sys.executable,), cwd=ROOT, env=None):
        r = subprocess.run([*python, "-m", "export", *args], cwd=cwd, text=True, capture_output=True,
                           env=dict(os.environ, PYTHONDONTWRITEBYTECODE="1", **(env or {})))
        self.assertNotIn("Traceback", r.stderr)
        return r

    def test_success_and_failure(self):
        out = self.tmp + "/x.gguf"
        r = self.command(self.folder(), "-o", out, "--type", "q8_0")
        self.assertEqual((r.returncode, r.stdout), (0, ""))
        self.assertTrue(os.path.exists(out))
        r = self.command(self.tmp + "/none", "-o", self.tmp + "/y.gguf")
        self.assertEqual(r.returncode, 1)
        self.assertEqual(r.stderr, f"export: {self.tmp}/none does not exist\n")
        self.assertFalse(os.path.exists(self.tmp + "/y.gguf"))

    def test_flags(self):
        for args, names in ((("a", "-o", "b", "--lala"), "--lala"), (("a",), "-o"), (("-o", "b"), "SOURCE"),
                            (("a", "-o", "b", "--type", "q3"), "'q3'"),
                            (("a", "-o", "b", "--typ", "f32"), "--typ"), (("a", "b", "-o", "c"), "b")):
            r = self.command(*args)
            self.assertEqual(r.returncode, 2, args)
            self.assertIn(names, r.stderr)
            self.assertIn("--help", r.stderr)
            self.assertEqual(r.stderr.count("\n"), 1)
        r = self.command("--help")
        self.assertEqual((r.returncode, r.stderr), (0, ""))
        self.assertIn("--tokenizer", r.stdout)

    def test_progress_bar(self):
        class Terminal(io.StringIO):
            def isatty(self):
                return True
        with contextlib.redirect_stderr(Terminal()) as screen:
            run(Namespace(source=self.folder(), out=self.tmp + "/x.gguf", type=None, tokenizer=None))
        self.assertIn("writing [##############################] 100%", screen.getvalue())

    def test_interrupt_leaves_nothing(self):
        with mock.patch("export.writer.encode", side_effect=KeyboardInterrupt):
            with self.assertRaises(KeyboardInterrupt):
                self.export(self.folder())
        self.assertEqual(os.listdir(os.path.dirname(self.out)), [])

    def test_unforeseen_errors_are_sentences(self):
        source = self.folder(tokenizer__json=tokenizer_json(BYTE_LEVEL),
                             tokenizer_config__json={"bos_token": []}, special_tokens_map__json="[]")
        r = self.command(source, "-o", self.tmp + "/x.gguf")
        self.assertEqual((r.returncode, r.stderr.count("\n")), (1, 1))

    def test_venv_beside_the_package(self):
        root = os.path.join(self.tmp, "root")
        shutil.copytree(os.path.join(ROOT, "export"), root + "/export",
                        ignore=shutil.ignore_patterns("__pycache__"))
        bare = (sys.executable, "-S")  # without site-packages the imports are missing
        source, out = self.folder(), self.tmp + "/v.gguf"
        r = self.command(source, "-o", out, python=bare, cwd=root)
        self.assertEqual(r.returncode, 1)
        self.assertRegex(r.stderr, "^export: the Python package numpy is missing; run `make deps`")
        os.makedirs(root + "/.venv/bin")
        python = root + "/.venv/bin/python"
        self.write(root, ".venv/bin/python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        os.chmod(python, 0o755)
        r = self.command(source, "-o", out, python=bare, cwd=root)
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assertTrue(os.path.exists(out))
        self.write(root, ".venv/bin/python", f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
        r = self.command(source, "-o", out, python=bare, cwd=root)  # an empty .venv: no endless loop
        self.assertEqual(r.returncode, 1)
        self.assertIn("numpy is missing", r.stderr)
        r = self.command("--help", python=bare, cwd=root)
        self.assertEqual(r.returncode, 0)


if __name__ == "__main__":
    unittest.main()
