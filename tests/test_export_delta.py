"""Tests of export/families/fla.py: python3 -m unittest tests.test_export_delta"""
import os
import sys
import unittest
import warnings

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "tests"), os.path.join(ROOT, "tests", "golden")]
import make_delta as golden
from test_export import Case, ExportError

PLAIN, GATED = golden.DELTA, golden.GATED


class Delta(Case):
    def checkpoint(self, config, change=None):
        """-> (folder, its tensors); `change` edits the tensors first."""
        tensors = golden.random_weights("test", {**PLAIN, **GATED, **config} | config)
        if change:
            change(tensors)
        return self.folder(config, tensors), tensors

    def both(self, config, kind=None, change=None):
        """-> metadata, tensors as values, source tensors"""
        source, tensors = self.checkpoint(config, change)
        meta, out = self.read(self.export(source, kind))
        self.types = {n: t.tensor_type.name for n, t in out.items()}
        return meta, {n: self.values(t) for n, t in out.items()}, tensors

    def refused(self, pattern, config, change=None):
        source, _ = self.checkpoint(config, change)
        with self.assertRaisesRegex(ExportError, pattern):
            self.export(source)
        self.assertEqual(os.listdir(os.path.dirname(self.out)), [])

    def test_delta_net_layout(self):
        config = {**PLAIN, "qk_activation": "elu", "qk_norm": "sum", "use_gate": True,
                  "allow_neg_eigval": True, "norm_eps": 3e-6}
        meta, out, w = self.both(config)
        for key, value in (("head_count", 2), ("value_head_count", 2), ("key_length", 16),
                           ("value_length", 16), ("conv_kernel", 4), ("qk_activation", "elu"),
                           ("qk_norm", "sum"), ("beta_scale", 2.0), ("gate_activation", "silu")):
            self.assertEqual(meta["linnet.delta." + key], value)
        self.assertAlmostEqual(meta["linnet.delta.norm_epsilon"], 3e-6, places=12)
        self.assertEqual(meta["linnet.mixers"], ["delta_net", "delta_net"])
        self.assertNotIn("linnet.attention.head_count", meta)
        at = "model.layers.1.attn."
        np.testing.assert_array_equal(out["blk.1.attn_qkv.weight"], np.concatenate(
            [w[f"{at}{x}_proj.weight"] for x in "qkv"]))
        np.testing.assert_array_equal(out["blk.1.ssm_conv1d.weight"], np.concatenate(
            [w[f"{at}{x}_conv1d.weight"][:, 0] for x in "qkv"]))
        for ours, theirs in (("ssm_beta", "b_proj"), ("attn_gate", "g_proj"), ("ssm_norm", "o_norm"),
                             ("ssm_out", "o_proj")):
            np.testing.assert_array_equal(out[f"blk.1.{ours}.weight"], w[f"{at}{theirs}.weight"])
        self.assertNotIn("blk.1.ssm_a", out)

    def test_gated_layout_and_hybrid(self):
        config = {**GATED, "num_v_heads": 4, "output_gate_activation": "sigmoid",
                  "num_hidden_layers": 3, "attn": {**golden.WINDOW, "layers": [0, 2]}}
        meta, out, w = self.both(config)
        self.assertEqual(meta["linnet.mixers"], ["softmax", "gated_delta_net", "softmax"])
        self.assertEqual(meta["linnet.attention.window_layers"], [13, 0, 13])
        self.assertEqual(meta["linnet.attention.head_count"], 4)
        self.assertEqual(meta["linnet.attention.head_count_kv"], 2)
        self.assertEqual(meta["linnet.rope.freq_base"], 500.0)
        self.assertEqual(meta["linnet.delta.value_head_count"], 4)
        self.assertEqual(meta["linnet.delta.value_length"], 32)
        self.assertEqual(meta["linnet.delta.gate_activation"], "sigmoid")
        at = "model.layers.1.attn."
        np.testing.assert_allclose(out["blk.1.ssm_a"], -np.exp(w[at + "A_log"]), rtol=1e-6)
        np.testing.assert_array_equal(out["blk.1.ssm_dt.bias"], w[at + "dt_bias"])
        np.testing.assert_array_equal(out["blk.1.ssm_alpha.weight"], w[at + "a_proj.weight"])
        np.testing.assert_array_equal(out["blk.2.attn_k.weight"],
                                      w["model.layers.2.attn.k_proj.weight"])

    def test_entries_that_differ(self):
        """One number for all layers or one for each; the others get the first softmax layer's."""
        one = {"layers": [3], "num_heads": 4, "num_kv_heads": 2}
        base = {**PLAIN, "num_hidden_layers": 4}
        for other, keys in (
                ({"num_heads": 8, "num_kv_heads": 2}, {"attention.head_count": [8, 8, 8, 4],
                                                       "attention.head_count_kv": 2,
                                                       "rope.freq_base": 10000.0}),
                ({"num_heads": 4}, {"attention.head_count": 4,
                                    "attention.head_count_kv": [4, 4, 4, 2],
                                    "rope.freq_base": 10000.0}),
                ({"num_heads": 4, "num_kv_heads": 2, "rope_theta": 500},
                 {"attention.head_count": 4, "attention.head_count_kv": 2,
                  "rope.freq_base": [500.0, 500.0, 500.0, 10000.0]})):
            meta, out, _ = self.both({**base, "attn": [one, {"layers": [1], "window_size": 9,
                                                             "qkv_bias": True, **other}]})
            self.assertEqual({k: meta["linnet." + k] for k in keys}, keys)
            self.assertEqual(meta["linnet.attention.window_layers"], [0, 9, 0, 0])
            self.assertIn("blk.1.attn_q.bias", out)
            self.assertNotIn("blk.3.attn_q.bias", out)

    def test_small_tensors_stay_f32(self):
        for kind in ("q8_0", "q4_0", "f16", "bf16"):
            self.both({**GATED, "num_hidden_layers": 1}, kind)
            for name in ("ssm_conv1d.weight", "ssm_beta.weight", "ssm_alpha.weight", "ssm_a",
                         "ssm_dt.bias", "ssm_norm.weight", "attn_norm.weight"):
                self.assertEqual(self.types["blk.0." + name], "F32", (kind, name))
            for name in ("attn_qkv", "ssm_out", "attn_gate"):
                self.assertEqual(self.types[f"blk.0.{name}.weight"], kind.upper())

    def test_old_names_and_joined_gate(self):
        def old(w):
            for i in range(2):
                at = f"model.layers.{i}."
                gate, up = (w.pop(f"{at}mlp.{x}_proj.weight") for x in ("gate", "up"))
                w[at + "mlp.gate_proj.weight"] = np.concatenate([gate, up])
                for x in ("attn", "mlp"):
                    w[f"{at}{x}.norm.weight"] = w.pop(f"{at}{x}_norm.weight")
                w[at + "attn.D"] = np.ones(2, np.float32)
        _, new, _ = self.both(GATED)
        _, out, _ = self.both({**GATED, "norm_first": True}, change=old)
        self.assertIn("ignored: model.layers.0.attn.D", self.said)
        self.assertEqual(set(new), set(out))
        for name in new:
            np.testing.assert_array_equal(new[name], out[name])

    def test_defaults(self):
        config = {k: GATED[k] for k in ("model_type", "hidden_size", "num_hidden_layers",
                                        "num_heads", "head_dim", "vocab_size")}
        full = {**GATED, "intermediate_size": 256}  # 256 ceil(trunc(32 * 4 * 2 / 3) / 256)
        tensors = golden.random_weights("test", full)
        meta, _ = self.read(self.export(self.folder(config, tensors)))
        self.assertEqual(meta["linnet.feed_forward_length"], 256)
        self.assertEqual(meta["linnet.context_length"], 2048)
        self.assertAlmostEqual(meta["linnet.attention.layer_norm_rms_epsilon"], 1e-6, places=12)

    def test_convolutions_with_bias(self):
        _, out, w = self.both({**GATED, "conv_bias": True})
        self.assertEqual(self.types["blk.0.ssm_conv1d.bias"], "F32")
        np.testing.assert_array_equal(out["blk.1.ssm_conv1d.bias"], np.concatenate(
            [w[f"model.layers.1.attn.{x}_conv1d.bias"] for x in "qkv"]))
        self.refused("k_conv1d.bias is missing", {**GATED, "conv_bias": True},
                     lambda w: w.pop("model.layers.1.attn.k_conv1d.bias"))

    def test_powlu(self):
        meta, _, _ = self.both({**PLAIN, "hidden_act": "powlu"})
        self.assertEqual(meta["linnet.feed_forward.activation"], "powlu")

    def test_widths(self):
        """A product that is whole but for rounding: 100 * 0.29 is 28.999999999999996."""
        meta, _, _ = self.both({**PLAIN, "hidden_size": 100, "num_heads": 1, "expand_k": 0.29})
        self.assertEqual(meta["linnet.delta.key_length"], 29)

    def test_infinite_decay(self):
        def huge(w):
            w["model.layers.0.attn.A_log"] = np.full(2, 200, np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _, out, _ = self.both(GATED, change=huge)
        self.assertTrue(np.isinf(out["blk.0.ssm_a"]).all())

    def test_tied(self):
        _, out, _ = self.both({**PLAIN, "tie_word_embeddings": True})
        self.assertNotIn("output.weight", out)

    def test_without_options(self):
        meta, out, _ = self.both({**PLAIN, "use_beta": False, "use_short_conv": False,
                                  "use_output_norm": False})
        self.assertNotIn("linnet.delta.conv_kernel", meta)
        for name in ("ssm_beta", "ssm_conv1d", "attn_gate"):
            self.assertNotIn(f"blk.0.{name}.weight", out)
        self.assertIn("blk.0.ssm_norm.weight", out)  # whatever use_output_norm says

    def test_refused_options(self):
        for change, pattern in (
                ({"attnres_block_size": 2}, "attnres_block_size = 2 is not supported"),
                ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported, expected 'swish' or "
                                         "'silu' or 'powlu'"),
                ({"norm_eps": 10 ** 400}, "norm_eps is 10*, expected a number above 0"),
                ({"norm_eps": 1e-320}, "norm_eps is 1e-320, expected .* that float32 holds"),
                ({"share_conv_kernel": True}, "share_conv_kernel = True"),
                ({"use_rope": True}, "use_rope = True"),
                ({"use_elu": True}, "use_elu = True")):
            self.refused(pattern, {**GATED, **change})
            self.refused(pattern, {**PLAIN, **change})
        for change, pattern in (
                ({"qk_norm": "l1"}, "qk_norm = 'l1' is not supported, expected 'l2' or 'sum'"),
                ({"qk_activation": "gelu"}, "qk_activation = 'gelu'"),
                ({"expand_k": 0}, "expand_k is 0, expected a number above 0"),
                ({"num_heads": 3}, "not multiples of num_heads 3")):
            source = self.folder({**PLAIN, **change}, golden.random_weights("test", PLAIN))
            with self.assertRaisesRegex(ExportError, pattern):
                self.export(source)
        for change, pattern in (
                ({"num_v_heads": 3}, "num_v_heads 3 is not a multiple of num_heads 2"),
                ({"output_gate_activation": "relu"}, "output_gate_activation = 'relu'"),
                ({"use_gate": 1}, "use_gate is 1, expected true or false")):
            source = self.folder({**GATED, **change}, golden.random_weights("test", GATED))
            with self.assertRaisesRegex(ExportError, pattern):
                self.export(source)

    def test_refused_attn(self):
        ok = golden.WINDOW
        for attn, pattern in (
                ([ok, ok], "layer 1 is in two entries"),
                ({**ok, "layers": [2]}, "layers is .2., expected a list of layer numbers below 2"),
                ({**ok, "layers": None}, "expected a list of layer numbers"),
                ({"layers": [1]}, "attn has no num_heads"),
                ({**ok, "num_heads": 5}, "must cut hidden_size 32 into even parts"),
                ({**ok, "num_kv_heads": 3}, "a multiple of num_kv_heads 3"),
                ({**ok, "window_size": -1}, "window_size is -1"),
                ("all", "attn is 'all', expected an object")):
            source = self.folder({**PLAIN, "attn": attn}, golden.random_weights("test", PLAIN))
            with self.assertRaisesRegex(ExportError, pattern):
                self.export(source)

    def test_refused_tensors(self):
        at = "model.layers.0.attn."
        self.refused(r"tensor model.layers.0.attn.k_conv1d.weight is missing .expected shape "
                     r".32, 1, 4", PLAIN, lambda w: w.pop(at + "k_conv1d.weight"))
        self.refused("tensor model.layers.0.attn.b_proj.weight has shape .3, 32., expected .2, 32",
                     PLAIN, lambda w: w.update({at + "b_proj.weight": np.ones((3, 32), np.float32)}))
        self.refused("tensor model.layers.0.attn.A_log is neither used",
                     PLAIN, lambda w: w.update({at + "A_log": np.ones(2, np.float32)}))
        self.refused("tensor model.layers.1.mlp.up_proj.weight is missing",
                     PLAIN, lambda w: w.pop("model.layers.1.mlp.up_proj.weight"))


if __name__ == "__main__":
    unittest.main()
