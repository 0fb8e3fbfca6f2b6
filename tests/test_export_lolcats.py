"""Tests of the export of LoLCATs, Hedgehog and T2R: python3 -m unittest tests.test_export_lolcats.

Checkpoints are written here; no PyTorch."""
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from argparse import Namespace

import numpy as np
from gguf import GGUFReader

from tests import test_export as common

from export.errors import ExportError
from export.families.lolcats import number, round_to, short_name
from export.job import run

H, KV, d, D, L, F = common.H, common.KV, common.d, common.D, common.L, 6
ATTENTION = dict(attention_type="lolcats_llama_window_tk", window_size=16, feature_map="softmax_dim",
                 feature_map_kwargs=dict(eps="1e-12", fullspace=True),
                 learned_kernel="untied_head_einsum",
                 learned_kernel_kwargs=dict(feature_dim=F, skip_connection=False, bias=False,
                                            zero_init=True),
                 affine_attention_factors=False, init_window_factor=-2.1972245773362196,
                 tie_qk_kernels=False, train_qk=False)
random = common.random


def maps(prefix="model.", windowed=True, F=F, bias=False):
    t = {}
    for i in range(L):
        at = f"{prefix}layers.{i}.self_attn."
        for k, x in enumerate("qk"):
            t[f"{at}feature_map_{x}.mlp.layer"] = random(10 * i + k, H, d, F)
            if bias:
                t[f"{at}feature_map_{x}.mlp.bias"] = random(10 * i + k + 5, 1, H, 1, 1)
        if windowed:
            t[at + "window_factors"] = random(10 * i + 7, 1, H, 1, 1)
    return t


def lora(r=2, prefix="base_model.model.model.", targets="qkvo"):
    t = {}
    shapes = {"q": (H * d, D), "k": (KV * d, D), "v": (KV * d, D), "o": (D, H * d)}
    for i in range(L):
        for n, x in enumerate(targets):
            at, (rows, cols) = f"{prefix}layers.{i}.self_attn.{x}_proj.", shapes[x]
            t[at + "lora_A.default.weight"] = random(100 + 10 * i + n, r, cols)
            t[at + "lora_B.default.weight"] = random(200 + 10 * i + n, rows, r)
    return t


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.base = os.path.join(self.folder, "base")
        self.tensors = common.llama_tensors()
        self.write_base(common.LLAMA)

    def path(self, name):
        return os.path.join(self.folder, name)

    def write_base(self, config, tensors=None):
        os.makedirs(self.base, exist_ok=True)
        with open(os.path.join(self.base, "config.json"), "w") as f:
            json.dump(config, f)
        common.save_safetensors(os.path.join(self.base, "model.safetensors"),
                                self.tensors if tensors is None else tensors)

    def save(self, name, tensors, wrap=None):
        common.save_torch(self.path(name), tensors, wrap=wrap)
        return self.path(name)

    def config(self, attention=None, kernel=None, name="run.json", **other):
        a = {**ATTENTION, **(attention or {})}
        a["learned_kernel_kwargs"] = {**ATTENTION["learned_kernel_kwargs"], **(kernel or {})}
        with open(self.path(name), "w") as f:
            json.dump({"attention": {k: v for k, v in a.items() if v is not ...}, **other}, f)
        return self.path(name)

    def export(self, lolcats, config=..., **more):
        """-> (reader, what it said)"""
        args = Namespace(source=self.base, out=self.path("out.gguf"), type=None, tokenizer=None,
                         lolcats=[lolcats] if isinstance(lolcats, str) else lolcats,
                         lolcats_config=self.config() if config is ... else config,
                         lora=None, lora_config=None, set=None)
        vars(args).update(more)
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            run(args)
        return GGUFReader(args.out), said.getvalue()

    def refused(self, *words, **more):
        with self.assertRaises(ExportError) as e:
            self.export(**more)
        for word in words:
            self.assertIn(word, str(e.exception))
        self.assertFalse(os.path.exists(self.path("out.gguf")))

    def tensor(self, reader, name):
        found = {t.name: t for t in reader.tensors}[name]
        return np.array(found.data).reshape(tuple(int(x) for x in reversed(found.shape)))

    def value(self, reader, key):
        return reader.fields[key].contents()


class Layouts(Case):
    def test_maps_keep_their_layout_and_options(self):
        m = maps()
        r, said = self.export(self.save("maps.pt", m, wrap="model_state_dict"))
        at = "model.layers.1.self_attn."
        np.testing.assert_array_equal(self.tensor(r, "blk.1.attn_feature_k.weight"),
                                      m[at + "feature_map_k.mlp.layer"])
        gamma = 1 / (1 + np.exp(-m[at + "window_factors"].astype(np.float64))).reshape(-1)
        np.testing.assert_allclose(self.tensor(r, "blk.1.attn_window_factor.weight"), gamma,
                                   rtol=1e-7)
        np.testing.assert_array_equal(self.tensor(r, "blk.0.attn_q.weight"),  # not permuted
                                      self.tensors["model.layers.0.self_attn.q_proj.weight"])
        self.assertEqual(self.value(r, "general.architecture"), "linnet")
        self.assertEqual(self.value(r, "linnet.mixers"), ["lolcats"] * L)
        self.assertEqual(self.value(r, "linnet.attention.sliding_window"), 16)
        self.assertEqual(self.value(r, "linnet.lolcats.feature_map"), "softmax_dim")
        self.assertEqual(self.value(r, "linnet.lolcats.feature_dim"), F)
        self.assertEqual(self.value(r, "linnet.lolcats.eps"), np.float32(1e-12))
        self.assertTrue(self.value(r, "linnet.lolcats.terrace"))
        self.assertIn("rope_theta 10000 is from", said)
        self.assertFalse([k for k in r.fields if k.startswith("llama.")])

    def test_lora_is_merged_with_its_own_scale(self):
        name = "layers.1.self_attn.k_proj."
        u = lora(r=2)
        w = self.tensors[f"model.{name}weight"].astype(np.float64)
        a = u[f"base_model.model.model.{name}lora_A.default.weight"].astype(np.float64)
        b = u[f"base_model.model.model.{name}lora_B.default.weight"].astype(np.float64)
        with open(self.path("ft.yaml"), "w") as f:
            f.write("finetune:\n  method: lora\n  kwargs:\n    r: 2\n    lora_alpha: 6\n")
        with open(self.path("adapter_config.json"), "w") as f:
            json.dump({"r": 2, "lora_alpha": 10}, f)
        file = self.save("ft.pt", u, wrap="model_state_dict")
        for scale, more in ((2, {}), (3, {"lora_config": self.path("ft.yaml")}),
                            (5, {"lora_config": self.path("adapter_config.json")}),
                            (4, {"lora_config": self.path("ft.yaml"), "set": ["lora_alpha=8"]}),
                            (0.5, {"set": ["finetune.kwargs.lora_alpha=1"]})):
            r, said = self.export(self.save("maps.pt", maps()), lora=file, **more)
            np.testing.assert_allclose(self.tensor(r, "blk.1.attn_k.weight"), w + scale * b @ a,
                                       rtol=1e-5, atol=1e-5)
            self.assertEqual("taken as 2" in said, not more)

    def test_flat_full_and_wrapped_names(self):
        u = lora(targets="qv")
        flat = self.save("flat.pt", {**maps("base_model.model.model."), **u})
        whole = {**maps("base_model.model.model."), **u}
        for n, x in self.tensors.items():
            n = n.replace("self_attn.q_proj.", "self_attn.q_proj.base_layer.")
            whole["base_model.model." + n] = x
        whole["base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq"] = random(1, 4)
        whole["base_model.model.model.layers.0.self_attn.window_factor"] = random(2, 1, H, 1, 1)
        sharded = {n.replace("layers.", "_fsdp_wrapped_module.layers."): x for n, x in maps().items()}
        sharded = {n.replace(".mlp.layer", ".mlp._flat_param"): x for n, x in sharded.items()}
        first, _ = self.export(flat)
        expected = self.tensor(first, "blk.0.attn_q.weight").copy()
        # a full state's own base matrices win over the folder's
        self.write_base(common.LLAMA, {n: np.zeros_like(x) for n, x in self.tensors.items()})
        r, _ = self.export(self.save("whole.pt", whole, wrap="model"))
        np.testing.assert_array_equal(self.tensor(r, "blk.0.attn_q.weight"), expected)
        np.testing.assert_array_equal(self.tensor(r, "blk.1.ffn_up.weight"),
                                      self.tensors["model.layers.1.mlp.up_proj.weight"])
        self.export(self.save("sharded.pt", sharded))
        self.assertEqual(short_name("model.model.layers.0.x"), "layers.0.x")

    def test_the_second_stage_overrides_the_first(self):
        name = "model.layers.0.self_attn.feature_map_q.mlp.layer"
        later = random(99, H, d, F)
        ft = {**lora(targets="q"), "base_model.model." + name: later}
        r, _ = self.export(self.save("maps.pt", maps()), lora=self.save("ft.pt", ft))
        np.testing.assert_array_equal(self.tensor(r, "blk.0.attn_feature_q.weight"), later)

    def test_blocks_of_layers_count_from_zero(self):
        m = maps()
        a = self.save("x-in=000-out=000_distill.pt", {n: x for n, x in m.items() if "s.0." in n})
        b = self.save("x-in=001-out=001_distill.pt",
                      {n.replace("s.1.", "s.0."): x for n, x in m.items() if "s.1." in n})
        r, _ = self.export([a, b])
        np.testing.assert_array_equal(self.tensor(r, "blk.1.attn_feature_q.weight"),
                                      m["model.layers.1.self_attn.feature_map_q.mlp.layer"])

    def test_options(self):
        r, said = self.export(
            self.save("maps.pt", maps(windowed=False, bias=True)),
            self.config(dict(attention_type="lolcats_llama", feature_map="relu"), dict(bias=True)))
        self.assertEqual(self.value(r, "linnet.mixers"), ["hedgehog"] * L)
        self.assertEqual(self.tensor(r, "blk.0.attn_feature_q.bias").shape, (H,))
        self.assertNotIn("linnet.attention.sliding_window", r.fields)

        one = {n: x for n, x in maps().items() if ".0." in n and "map_k" not in n}
        r, said = self.export(
            self.save("maps.pt", one),
            self.config(dict(softmax_attentions=[1], tie_qk_kernels=True,
                             attention_type="lolcats_llama_window_sw")), set=["n_sink=4", "trained_length=1024"])
        self.assertEqual(self.value(r, "linnet.mixers"), ["lolcats", "softmax"])
        self.assertEqual(self.value(r, "linnet.attention.window_layers"), [16, 0])
        self.assertEqual(self.value(r, "linnet.attention.n_sink"), 4)
        self.assertEqual(self.value(r, "linnet.lolcats.trained_length"), 1024)
        self.assertTrue(self.value(r, "linnet.lolcats.tied"))
        self.assertFalse(self.value(r, "linnet.lolcats.terrace"))

    def test_windows_without_a_linear_part(self):
        def config(**more):
            with open(self.path("w.json"), "w") as f:
                json.dump({"attention": {"attention_type": "window_softmax", "window_size": 16,
                                         "n_sink": 4, "softmax_attentions": [1], **more}}, f)
            return self.path("w.json")

        name = "blk.0.attn_q.weight"
        r, _ = self.export([], config())
        self.assertEqual(self.value(r, "linnet.attention.window_layers"), [16, 0])
        self.assertEqual(self.value(r, "linnet.attention.n_sink"), 4)
        w = self.tensor(r, name)
        r, said = self.export(self.save("ft.pt", lora()), config())
        self.assertIn("8 LoRA updates of rank 2", said)
        self.assertGreater(np.abs(self.tensor(r, name) - w).max(), 0)
        os.remove(self.path("out.gguf"))
        self.refused("attention.feature_map has no meaning", lolcats=[], config=config(feature_map="relu"))
        self.refused("takes LoRA matrices alone", lolcats=self.save("maps.pt", maps()), config=config())
        self.refused("needs feature maps", lolcats=[], config=self.config())

    def test_adapters(self):
        adapters = {n: x for n, x in maps().items() if "window" in n}
        for i in range(L):
            for x in "qk":
                at = f"model.layers.{i}.self_attn.feature_map_{x}.mlp."
                adapters |= {at + "layer0": random(1, H, d, 3), at + "bias0": random(2, 1, H, 1, 3),
                             at + "layer1": random(3, H, 3, d), at + "bias1": random(4, 1, H, 1, d)}
        file = self.save("maps.pt", adapters)
        adapter = dict(learned_kernel="untied_head_adapter")
        r, _ = self.export(file, self.config(adapter, dict(feature_dim=None, hidden_dim=3)))
        self.assertEqual(self.value(r, "linnet.lolcats.adapter_rank"), 3)
        self.assertEqual(self.tensor(r, "blk.1.attn_feature_k_up.bias").shape, (H, d))
        os.unlink(self.path("out.gguf"))
        self.refused("[4, 8, 3]", "[4, 8, 2]", lolcats=file,
                     config=self.config(adapter, dict(feature_dim=d, hidden_dim=2)))

    def test_every_option_of_upstreams_configs(self):
        file = self.save("maps.pt", maps())
        self.export(file, self.config(dict(attention_type="lolcats_long_llama_window_tk",
                                           state_chunk_len=512, layer_idx=None, rotary_config=None,
                                           train_window_factor=True, train_attention_weights=False,
                                           eps="1e-12"), dict(normal_init=False)))

    def test_window_factors_follow_the_models_dtype(self):
        m = maps()
        raw = m["model.layers.0.self_attn.window_factors"]
        file = self.save("maps.pt", m)
        r, _ = self.export(file, self.config(dict(affine_attention_factors=True),
                                             model=dict(torch_dtype="bfloat16")))
        gamma = self.tensor(r, "blk.0.attn_window_factor.weight")
        self.assertTrue(np.all(gamma.view(np.uint32) & 0xFFFF == 0))
        np.testing.assert_allclose(gamma, 1 / (1 + np.exp(-raw.reshape(-1))), rtol=0.02)
        np.testing.assert_array_equal(self.tensor(r, "blk.0.attn_linear_factor.weight"),
                                      round_to("BF16", 1 - gamma))
        untrained = {n: x for n, x in m.items() if "window" not in n}
        r, said = self.export(self.save("maps.pt", untrained),
                              self.config(dict(train_window_factor=False)))
        np.testing.assert_allclose(self.tensor(r, "blk.1.attn_window_factor.weight"), 0.1, rtol=1e-6)
        self.assertIn("init_window_factor -2.19722 is used", said)
        r, said = self.export(self.save("maps.pt", untrained),  # upstream's own default is 0
                              self.config(dict(train_window_factor=False, init_window_factor=...)))
        np.testing.assert_array_equal(self.tensor(r, "blk.1.attn_window_factor.weight"), 0.5)

    def test_rope_and_mistral(self):
        file = self.save("maps.pt", maps())
        r, said = self.export(file, self.config(model=dict(rope_theta="5e5", rope_scaling=dict(
            rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=64))))
        self.assertEqual(self.value(r, "linnet.rope.freq_base"), 5e5)
        self.assertEqual(self.tensor(r, "rope_freqs.weight").shape, (d // 2,))
        self.assertIn("rope_theta 500000 is from " + self.path("run.json"), said)
        self.export(file, self.config(model=dict(rope_scaling=dict(type="linear", factor="2e0"))))
        os.unlink(self.path("out.gguf"))
        for scaling, word in ((dict(factor=8.0), "has no rope_type"),
                              (dict(rope_type="llama3"), "has no factor"),
                              (dict(rope_type="llama3", factor="x"), "factor is 'x'")):
            self.refused(self.path("run.json"), word, lolcats=file,
                         config=self.config(model=dict(rope_scaling=scaling)))
        self.write_base({**common.LLAMA, "model_type": "mistral", "sliding_window": 5})
        r, said = self.export(file)
        self.assertEqual(self.value(r, "linnet.attention.sliding_window"), 16)
        self.assertIn("config.json", said)

    def test_set_needs_no_file_and_wins(self):
        file = self.save("maps.pt", maps())
        options = ["attention_type=lolcats_llama_window_sw", "learned_kernel=untied_head_einsum",
                   f"feature_dim={F}", "window_size=5", "feature_map=relu",
                   "feature_map_kwargs={eps: 1e-3}"]
        r, _ = self.export(file, None, set=options)
        self.assertEqual(self.value(r, "linnet.attention.sliding_window"), 5)
        self.assertEqual(self.value(r, "linnet.lolcats.eps"), np.float32(1e-3))
        scaling = "{rope_type: llama3, factor: 8, original_max_position_embeddings: 64}"
        r, _ = self.export(file, set=[f"rope_scaling={scaling}"])
        self.assertEqual(self.tensor(r, "rope_freqs.weight").shape, (d // 2,))
        r, _ = self.export(file, set=["attention.window_size=6"])
        self.assertEqual(self.value(r, "linnet.attention.sliding_window"), 6)

    def test_yaml_numbers(self):
        self.assertEqual(number({"eps": "1e-12"}, "eps", 0, "x"), 1e-12)
        for bad in ("nan", "tiny", True, [1], "inf"):
            with self.assertRaises(ExportError):
                number({"eps": bad}, "eps", 0, "x")


class Refusals(Case):
    def test_options_upstream_does_not_have(self):
        file = self.save("maps.pt", maps())
        for attention, words in (
                (dict(attention_type="lolcats_llama_window_sw_scale"), ("sw_scale", "not supported")),
                (dict(attention_type="softmax"), ("'softmax'",)),
                (dict(feature_map="cosine"), ("cosine", "softmax_dim")),
                (dict(learned_kernel=None), ("learned_kernel", "untied_head_einsum")),
                (dict(window_siez=3), ("attention.window_siez", "not an option")),
                (dict(window_size=0), ("window_size", "0")),
                (dict(decode_window_size=32), ("decode_window_size", "16")),
                (dict(softmax_attentions=[7]), ("softmax_attentions",)),
                (dict(softmax_attentions=0), ("softmax_attentions is 0",)),
                (dict(num_feature_maps=2), ("num_feature_maps",)),
                (dict(rotary_config=dict(rope_theta=1)), ("rotary_config",)),
                (dict(attention_type="lolcats_llama", eps=1e-6), ("eps", "1e-06", "1e-12")),
                (dict(feature_map=None), ("no feature_map",)),
                (dict(feature_map_kwargs=dict(eps=-1)), ("eps is -1", "0 to 1")),
                (dict(train_window_factor="no"), ("train_window_factor",)),
                (dict(init_window_factor="x"), ("init_window_factor",)),
                (dict(n_sink=1025), ("n_sink is 1025", "at most 1024")),
                (dict(trained_length=64, attention_type="lolcats_llama_window_tk"), ("trained_length", "terraces")),
                (dict(feature_map_kwargs=[1]), ("feature_map_kwargs",))):
            self.refused(*words, lolcats=file, config=self.config(attention))
        self.refused("feature_dim is 6", "8", lolcats=file,
                     config=self.config(kernel=dict(skip_connection=True)))
        for kernel, word in ((dict(hidden_dim=3), "hidden_dim"), (dict(rank=3), "rank")):
            self.refused(word, lolcats=file, config=self.config(kernel=kernel))
        self.refused("torch_dtype is 'int8'", lolcats=file,
                     config=self.config(model=dict(torch_dtype="int8")))
        self.refused("--set window_size=", lolcats=file, set=["window_size="])
        self.refused("feature_map_kwargs.esp", lolcats=file, set=["feature_map_kwargs={esp: 1}"])
        self.refused("--set wndow=3", lolcats=file, set=["wndow=3"])
        self.refused("--set window_size", lolcats=file, set=["window_size"])

    def test_files_that_do_not_fit(self):
        m = maps()
        file = self.save("maps.pt", m)
        self.refused("--lolcats-config", lolcats=file, config=None)
        self.refused("does not exist", lolcats=self.path("none.pt"))
        self.refused("does not exist", lolcats=file, config=self.path("none.yaml"))
        self.refused("[4, 8, 6]", "[4, 8, 5]", self.base, lolcats=file,
                     config=self.config(kernel=dict(feature_dim=5)))
        for part in ("layers.1.self_attn.feature_map_k.mlp.layer", "layers.0.self_attn.window_factors"):
            some = {n: x for n, x in m.items() if not n.endswith(part)}
            self.refused(part, "missing", lolcats=self.save("some.pt", some))
        self.refused("layers.5.other", lolcats=self.save("more.pt",
                                                        {**m, "model.layers.5.other": random(1, 2)}))
        self.refused("mlp.bias", lolcats=file, config=self.config(kernel=dict(bias=True)))
        self.refused("feature_map_q.mlp.bias", lolcats=self.save("b.pt", maps(bias=True)))
        self.refused("not a file", lolcats=self.base)
        self.refused("both layers.0", lolcats=self.save("twice.pt", {**m, **maps("model.model.")}))
        broken = self.path("broken.pt")
        with open(broken, "wb") as f:
            f.write(b"PK\x03\x04 nothing")
        self.refused("broken.pt", lolcats=broken)
        with open(self.path("bad.yaml"), "w") as f:
            f.write("a: [1\n")
        self.refused("YAML", lolcats=file, config=self.path("bad.yaml"))

    def test_numbers_that_are_none(self):
        part = "model.layers.1.self_attn."
        for name, bad in ((part + "feature_map_k.mlp.layer", np.nan), (part + "window_factors", np.inf)):
            m = maps()
            m[name].flat[1] = bad
            self.refused(name, "not finite", lolcats=self.save("maps.pt", m))
        u = lora()
        name = next(iter(u))
        u[name].flat[0] = np.nan
        self.refused(name, "not finite", lolcats=self.save("maps.pt", maps()),
                     lora=self.save("ft.pt", u))

    def test_lora_that_does_not_fit(self):
        file, u = self.save("maps.pt", maps()), lora()
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
        self.refused("lora_B", "missing", lolcats=file,
                     lora=self.save("ft.pt", {n: x for n, x in u.items() if n != name +
                                              "B.default.weight"}))
        self.refused("[32, 3]", "[32, 2]", lolcats=file, lora=self.save("ft.pt", {
            **u, name + "B.default.weight": random(1, 32, 3)}))
        self.refused("no LoRA", lolcats=file, lora=self.save("ft.pt", maps()))
        self.refused("z_proj", lolcats=file, lora=self.save("ft.pt", {
            n.replace("q_proj", "z_proj"): x for n, x in u.items()}))
        self.refused("a second update", lolcats=self.save("both.pt", {**maps(), **u}),
                     lora=self.save("ft.pt", u))
        self.refused("rank", lolcats=file, lora=self.save("ft.pt", {
            name + "A.default.weight": np.zeros((0, D), np.float32),
            name + "B.default.weight": np.zeros((H * d, 0), np.float32)}))
        with open(self.path("pattern.yaml"), "w") as f:
            f.write("lora_alpha: 4\nalpha_pattern: {q_proj: 3}\n")
        self.refused("alpha_pattern", lolcats=file, lora=self.save("ft.pt", u),
                     lora_config=self.path("pattern.yaml"))
        with open(self.path("ft.yaml"), "w") as f:
            f.write("finetune:\n  kwargs:\n    r: 8\n    lora_alpha: 16\n")
        self.refused("r is 8", "rank 2", lolcats=file, lora=self.save("ft.pt", u),
                     lora_config=self.path("ft.yaml"))

    def test_bases_that_are_none(self):
        self.write_base(common.GPT2, common.gpt2_tensors())
        self.refused("gpt2", "llama or mistral", lolcats=self.save("maps.pt", maps()))

    def test_flags_need_maps(self):
        r = subprocess.run([sys.executable, "-m", "export", self.base, "-o", self.path("out.gguf"),
                            "--lora", "x.pt"], cwd=common.ROOT, capture_output=True, text=True)
        self.assertEqual(r.returncode, 2)
        self.assertIn("--lora needs --lolcats", r.stderr)
        self.assertNotIn("Traceback", r.stderr)


if __name__ == "__main__":
    unittest.main()
