"""Tests of export/families/based.py: python3 -m unittest tests.test_export_based."""
import copy
import os
import unittest

import numpy as np
from gguf import GGMLQuantizationType as Q

from tests.test_export import Case, save_torch

V, D, H = 61, 32, 2
ROWS = 64  # of V, padded to 8
FF = 40
HYBRID = dict(model_type="gpt2", vocab_size=V, pad_vocab_size_multiple=8, n_embd=D, n_layer=4,
              n_head=H, n_positions=0, rms_norm=True, activation_function="swiglu",
              rotary_emb_fraction=1, qkv_proj_bias=False, out_proj_bias=False, mlp_fc1_bias=False,
              mlp_fc2_bias=False, alt_mixer_layers=[1, 2], alt_mixer_2_layers=[2],
              mixer=dict(_target_="based.models.mixers.convolution.BaseConv", use_bias=True,
                         l_max=512, expand_proj=4, kernel_sizes=3),
              alt_mixer=dict(_target_="based.models.mixers.linear_attention.LinearAttention",
                             num_heads=4, feature_dim=16, parallel_implementation="fla_parallel",
                             feature_map=dict(_target_="based.models.mixers.linear_attention"
                                                       ".TaylorExp", input_dim=16)),
              alt_mixer_2=dict(_target_="based.models.mixers.slide_attention.SlidingAttention",
                               window_size=256, num_heads=9))
ATTENTION = dict(vocab_size=V, pad_vocab_size_multiple=16, n_embd=70, n_layer=2, n_head=1,
                 n_positions=2048, rms_norm=True, activation_function="swiglu",
                 rotary_emb_fraction=0.5, qkv_proj_bias=False, out_proj_bias=False,
                 mlp_fc1_bias=False, mlp_fc2_bias=False)


def random(name, *shape):
    rng = np.random.default_rng(sum(map(ord, name)))
    return rng.standard_normal(shape).astype(np.float32)


def tensors(kinds, d=D, rows=ROWS, heads=H):
    shapes = {"transformer.embeddings.word_embeddings.weight": (rows, d),
              "transformer.ln_f.weight": (d,)}
    for i, kind in enumerate(kinds):
        at = f"transformer.layers.{i}."
        shapes[at + "norm1.weight"] = shapes[at + "norm2.weight"] = (d,)
        shapes[at + "mlp.fc1.weight"], shapes[at + "mlp.fc2.weight"] = (2 * FF, d), (d, FF)
        if kind == "conv":
            for n, s in (("in_proj.weight", (4 * d, d)), ("in_proj.bias", (4 * d,)),
                         ("out_proj.weight", (d, 2 * d)), ("out_proj.bias", (d,)),
                         ("conv.conv.weight", (2 * d, 1, 3))):
                shapes[at + "mixer." + n] = s
        elif kind == "taylor":
            for n, s in (("proj_q", (64, d)), ("proj_k", (64, d)), ("proj_v", (d, d)),
                         ("out_proj", (d, d))):
                shapes[f"{at}mixer.{n}.weight"] = s
        else:
            shapes[at + "mixer.Wqkv.weight"] = (3 * d, d)
            shapes[at + "mixer.out_proj.weight"] = (d, d)
    return {n: random(n, *s) for n, s in shapes.items()}


def hybrid():
    return tensors(("conv", "taylor", "slide", "conv"))


def changed(config, path, value):
    config = copy.deepcopy(config)
    at = config
    *parents, last = path.split(".")
    for key in parents:
        at = at[key]
    at[last] = value
    return config


class Based(Case):
    def test_hybrid(self):
        t = hybrid()
        meta, got = self.read(self.export(self.folder(HYBRID, t)))
        expected = {"general.architecture": "linnet", "linnet.format_version": 1,
                    "linnet.block_count": 4, "linnet.context_length": 512,
                    "linnet.embedding_length": D, "linnet.feed_forward_length": FF,
                    "linnet.attention.head_count": H, "linnet.attention.key_length": 16,
                    "linnet.mixers": ["short_conv", "based_taylor", "softmax", "short_conv"],
                    "linnet.attention.sliding_window": 129,
                    "linnet.attention.window_layers": [0, 0, 129, 0],
                    "linnet.rope.dimension_count": 16, "linnet.rope.freq_base": 10000.0,
                    "linnet.based.head_count": 4, "linnet.based.feature_length": 16,
                    "linnet.based.value_length": 8, "linnet.shortconv.l_cache": 3,
                    "linnet.shortconv.inner_length": 2 * D}
        self.assertEqual({k: meta[k] for k in expected}, expected)
        self.assertAlmostEqual(meta["linnet.based.epsilon"], 1e-6, 12)
        self.assertAlmostEqual(meta["linnet.attention.layer_norm_rms_epsilon"], 1e-5, 12)
        self.assertNotIn("linnet.feed_forward.activation", meta)
        self.assertNotIn("output.weight", got)
        self.assertEqual(got["token_embd.weight"].shape.tolist(), [D, ROWS])
        self.assertIn("no tokenizer", self.said)

        def same(ours, theirs):
            self.assertTrue(np.array_equal(self.values(got[ours]), theirs), ours)
        at = "transformer.layers."
        for i in range(4):  # the value's rows come first
            same(f"blk.{i}.ffn_up.weight", t[f"{at}{i}.mlp.fc1.weight"][:FF])
            same(f"blk.{i}.ffn_gate.weight", t[f"{at}{i}.mlp.fc1.weight"][FF:])
        same("blk.0.shortconv.in_proj.weight", t[at + "0.mixer.in_proj.weight"])
        same("blk.3.shortconv.out_proj.bias", t[at + "3.mixer.out_proj.bias"])
        same("blk.0.shortconv.conv.weight", t[at + "0.mixer.conv.conv.weight"][:, 0, :])
        same("blk.1.attn_k.weight", t[at + "1.mixer.proj_k.weight"])
        same("blk.1.attn_output.weight", t[at + "1.mixer.out_proj.weight"])
        for n, x in enumerate("qkv"):
            same(f"blk.2.attn_{x}.weight", t[at + "2.mixer.Wqkv.weight"][n * D:(n + 1) * D])

    def test_trainer_file(self):
        """.bin with a prefix, metrics, the unused decay, and the embedding under both names."""
        t = hybrid()
        odd = {"model." + n: a for n, a in t.items()}
        odd["model.lm_head.weight"] = t["transformer.embeddings.word_embeddings.weight"]
        odd["model.transformer.decay.decay"] = random("decay", H)
        odd["val_metrics.num-tokens.count"] = np.array([3], np.int64)
        folder = self.folder(HYBRID, {})
        save_torch(folder + "/pytorch_model.bin", odd)
        _, got = self.read(self.export(folder))
        plain = self.read(self.export(self.folder(HYBRID, t)))[1]
        self.assertEqual(sorted(got), sorted(plain))
        for name in got:
            self.assertTrue(np.array_equal(self.values(got[name]), self.values(plain[name])), name)
        del t["transformer.embeddings.word_embeddings.weight"]
        t["lm_head.weight"] = odd["model.lm_head.weight"]
        _, got = self.read(self.export(self.folder(HYBRID, t)))
        self.assertTrue(np.array_equal(self.values(got["token_embd.weight"]), t["lm_head.weight"]))

    def test_types(self):
        _, got = self.read(self.export(self.folder(HYBRID, hybrid()), kind="q8_0"))
        self.assertEqual(got["blk.0.shortconv.in_proj.weight"].tensor_type, Q.Q8_0)
        self.assertEqual(got["blk.0.shortconv.conv.weight"].tensor_type, Q.F32)
        self.assertEqual(got["blk.1.attn_q.weight"].tensor_type, Q.Q8_0)

    def test_attention_baseline(self):
        t = tensors(("mha", "mha"), 70, 64)
        meta, got = self.read(self.export(self.folder(ATTENTION, t)))
        self.assertEqual((meta["general.architecture"], meta["linnet.mixers"],
                          meta["linnet.attention.key_length"],
                          meta["linnet.rope.dimension_count"], meta["linnet.context_length"]),
                         ("linnet", ["softmax", "softmax"], 70, 36, 2048))
        self.assertNotIn("linnet.attention.sliding_window", meta)
        m = np.arange(18)
        np.testing.assert_allclose(meta["linnet.rope.freq_base"] ** (-2 * m / 36),
                                   10000.0 ** (-2 * m / 35), rtol=1e-6)

    def test_interleaved_rotary(self):
        c = dict(ATTENTION, n_embd=D, n_head=2, rotary_emb_interleaved=True, n_layer=1)
        t = tensors(("mha",), D, 64)
        _, got = self.read(self.export(self.folder(c, t)))
        w = t["transformer.layers.0.mixer.Wqkv.weight"][D:2 * D].reshape(2, 16, D)
        w = w[:, [0, 2, 4, 6, 1, 3, 5, 7, *range(8, 16)]].reshape(D, D)
        self.assertTrue(np.array_equal(self.values(got["blk.0.attn_k.weight"]), w))

    def test_scales_go_to_the_queries(self):
        c = dict(ATTENTION, n_embd=D, n_head=2, scale_attn_weights=False,
                 scale_attn_by_inverse_layer_idx=True, rotary_emb_fraction=0.0)
        t = tensors(("mha", "mha"), D, 64)
        meta, got = self.read(self.export(self.folder(c, t)))
        self.assertEqual(meta["linnet.rope.pairing"], "none")
        w = t["transformer.layers.1.mixer.Wqkv.weight"]
        np.testing.assert_allclose(self.values(got["blk.1.attn_q.weight"]), w[:D] * 4 / 2, rtol=1e-6)
        self.assertTrue(np.array_equal(self.values(got["blk.1.attn_k.weight"]), w[D:2 * D]))

    def test_options(self):
        for path, value, key, seen in (
                ("activation_function", "geglu", "linnet.feed_forward.activation", "gelu"),
                ("activation_function", "glu", "linnet.feed_forward.activation", "sigmoid"),
                ("alt_mixer_2.window_size", 33, "linnet.attention.sliding_window", 17),
                ("alt_mixer_2.window_size", 128, "linnet.attention.sliding_window", 65),
                ("rotary_emb_base", 500.0, "linnet.rope.freq_base", 500.0),
                ("n_positions", 1024, "linnet.context_length", 1024),
                ("rotary_emb_fraction", 0.5, "linnet.rope.dimension_count", 8)):
            meta, _ = self.read(self.export(self.folder(changed(HYBRID, path, value), hybrid())))
            self.assertEqual(meta[key], seen, path)
        for how, eps in (("quadratic", 1e-12), ("linear", 1e-12), ("fla_chunk", 1e-6)):
            c = changed(HYBRID, "alt_mixer.parallel_implementation", how)
            meta, _ = self.read(self.export(self.folder(c, hybrid())))
            np.testing.assert_allclose(meta["linnet.based.epsilon"], eps, rtol=1e-6)
        t = hybrid()  # the CUDA convolution has a bias
        t["transformer.layers.0.mixer.conv.conv.bias"] = random("b", 2 * D)
        _, got = self.read(self.export(self.folder(HYBRID, t)))
        self.assertIn("blk.0.shortconv.conv.bias", got)
        self.assertNotIn("blk.3.shortconv.conv.bias", got)

    def test_mixers_without_targets(self):
        c = copy.deepcopy(HYBRID)
        for key in ("mixer", "alt_mixer", "alt_mixer_2"):
            del c[key]["_target_"]
        meta, _ = self.read(self.export(self.folder(c, hybrid())))
        self.assertEqual(meta["linnet.mixers"],
                         ["short_conv", "based_taylor", "softmax", "short_conv"])

    def test_alt_mlp(self):
        c = dict(ATTENTION, mlp_type="alt", n_layer=1)
        t = tensors(("mha",), 70, 64)
        at = "transformer.layers.0.mlp."
        t[at + "fc1.weight"], t[at + "fc3.weight"] = random("a", FF, 70), random("b", FF, 70)
        _, got = self.read(self.export(self.folder(c, t)))
        self.assertTrue(np.array_equal(self.values(got["blk.0.ffn_gate.weight"]),
                                       t[at + "fc1.weight"]))
        self.assertTrue(np.array_equal(self.values(got["blk.0.ffn_up.weight"]),
                                       t[at + "fc3.weight"]))

    def test_tokenizer_of_another_folder(self):
        folder = self.folder(None, {}, vocab__json={c: i for i, c in enumerate("abcde")},
                             merges__txt="#version: 0.2\n",
                             tokenizer_config__json={"tokenizer_class": "GPT2Tokenizer"})
        meta, _ = self.read(self.export(self.folder(HYBRID, hybrid()), tokenizer=folder))
        self.assertEqual(meta["tokenizer.ggml.tokens"][:5], list("abcde"))
        self.assertEqual(len(meta["tokenizer.ggml.tokens"]), ROWS)

    def test_refused_options(self):
        for path, value, words in (
                ("rms_norm", False, "LayerNorm"),
                ("activation_function", "gelu_new", "activation_function 'gelu_new'"),
                ("activation_function", "relu", "expected swiglu, geglu, glu"),
                ("parallel_block", True, "parallel_block = True"),
                ("mup_width_scale", 0.5, "mup_width_scale = 0.5"),
                ("word_embed_proj_dim", 16, "word_embed_proj_dim"),
                ("rotary_emb_scale_base", 512, "rotary_emb_scale_base"),
                ("rotary_emb_fraction", 1.5, "rotary_emb_fraction is 1.5"),
                ("alt_mixer_layers", 3, "alt_mixer_layers is 3, expected a list"),
                ("alt_mixer_layers", [1, "2"], "expected a list of layer numbers"),
                ("mixer._target_", "based.models.mamba.Mamba", "Mamba.*expected a BaseConv"),
                ("mixer", [1], "mixer is .1., expected an object"),
                ("mixer.kernel_size", 0, "mixer: kernel_size is 0"),
                ("mixer.kernel_size", 5, r"conv.conv.weight has shape \[64, 1, 3\], expected \[64, 1, 5\]"),
                ("alt_mixer.feature_map.input_dim", 8, "input_dim 8 differs from feature_dim 16"),
                ("alt_mixer.feature_map._target_", "x.PerformerFeatureMap", "PerformerFeatureMap"),
                ("alt_mixer.parallel_implementation", "tk", "'tk' is not supported"),
                ("alt_mixer.feature_dim", 100, "feature_dim is 100"),
                ("alt_mixer.num_heads", "4", "num_heads is '4'"),
                ("alt_mixer_2.window_size", -2, "window_size is -2"),
                ("n_head", 3, "n_embd 32 with n_head 3"),
                ("head_dim", 8, "head_dim 8 is not n_embd 32"),
                ("mlp_type", "moe", "mlp_type = 'moe'")):
            with self.subTest(path):
                c = changed(HYBRID, path, value)
                self.refused(words, self.folder(c, hybrid()))
        two = changed(HYBRID, "alt_mixer_2", dict(HYBRID["alt_mixer"], num_heads=2))
        self.refused("alt_mixer and alt_mixer_2 are based_taylor mixers with different options",
                     self.folder(two, hybrid()))

    def test_refused_tensors(self):
        for name in ("transformer.layers.0.mixer.conv.conv.weight",
                     "transformer.layers.1.mixer.proj_v.weight",
                     "transformer.layers.2.mixer.Wqkv.weight", "transformer.layers.3.mlp.fc2.weight",
                     "transformer.layers.0.mlp.fc1.weight", "transformer.ln_f.weight",
                     "transformer.layers.3.mixer.in_proj.bias"):
            with self.subTest(name):
                t = hybrid()
                del t[name]
                self.refused(f"{name} is missing", self.folder(HYBRID, t))
        t = hybrid()
        t["transformer.layers.1.mixer.proj_q.weight"] = random("q", 36, D)
        self.refused(r"proj_q.weight has shape \[36, 32\], expected \[64, 32\]",
                     self.folder(HYBRID, t))
        t = dict(hybrid(), **{"transformer.layers.1.mixer.g_norm.weight": random("g", 8)})
        self.refused("g_norm.weight is neither used", self.folder(HYBRID, t))
        name = "transformer.embeddings.position_embeddings.weight"
        self.refused("learned positions", self.folder(HYBRID, dict(hybrid(), **{name: random("p", 9, D)})))
        self.assertFalse(os.path.exists(self.out))


if __name__ == "__main__":
    unittest.main()
