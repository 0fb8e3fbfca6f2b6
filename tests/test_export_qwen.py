"""Tests of export/families/qwen_hybrid.py and olmo.py: python3 -m unittest tests.test_export_qwen

That the files give upstream's logits is in test_forward.c (tests/golden/make_qwen_hybrid.py)."""
import os
import sys
import unittest

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "tests")]
from test_export import Case, random

D, I, ROWS, Nh, Nkv, d, H, HV, K, V, W = 32, 64, 40, 4, 2, 12, 2, 6, 5, 3, 4
r, KD, VD = HV // H, H * K, HV * V
TEXT = dict(model_type="qwen3_5_text", vocab_size=ROWS, hidden_size=D, intermediate_size=I,
            num_hidden_layers=2, num_attention_heads=Nh, num_key_value_heads=Nkv, head_dim=d,
            linear_num_key_heads=H, linear_num_value_heads=HV, linear_key_head_dim=K,
            linear_value_head_dim=V, linear_conv_kernel_dim=W, full_attention_interval=2,
            rms_norm_eps=1e-5, max_position_embeddings=128, hidden_act="silu",
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6,
                             "partial_rotary_factor": 0.5})
NEXT = dict(TEXT, model_type="qwen3_next", num_experts=0)
OLMO = dict({k: v for k, v in TEXT.items() if k != "full_attention_interval"},
            model_type="olmo_hybrid", layer_types=["linear_attention", "full_attention"],
            rope_parameters={"rope_type": "default", "rope_theta": None})


def numbered(shapes):
    return {n: random(k, *s) for k, (n, s) in enumerate(shapes.items())}


def mlp(at):
    return {at + "mlp.gate_proj.weight": (I, D), at + "mlp.up_proj.weight": (I, D),
            at + "mlp.down_proj.weight": (D, I)}


def qwen_tensors(kind, prefix="model.", bias=False, tied=False):
    shapes = {prefix + "embed_tokens.weight": (ROWS, D), prefix + "norm.weight": (D,)}
    if not tied:
        shapes["lm_head.weight"] = (ROWS, D)
    for i in range(2):
        at = f"{prefix}layers.{i}."
        shapes.update({at + "input_layernorm.weight": (D,),
                       at + "post_attention_layernorm.weight": (D,), **mlp(at)})
    at = prefix + "layers.0.linear_attn."
    shapes.update({at + "conv1d.weight": (2 * KD + VD, 1, W), at + "A_log": (HV,),
                   at + "dt_bias": (HV,), at + "norm.weight": (V,), at + "out_proj.weight": (D, VD)})
    if kind == "qwen3_next":
        shapes.update({at + "in_proj_qkvz.weight": (2 * KD + 2 * VD, D),
                       at + "in_proj_ba.weight": (2 * HV, D)})
    else:
        shapes.update({at + "in_proj_qkv.weight": (2 * KD + VD, D),
                       at + "in_proj_z.weight": (VD, D), at + "in_proj_a.weight": (HV, D),
                       at + "in_proj_b.weight": (HV, D)})
    at = prefix + "layers.1.self_attn."
    for x, rows in (("q", 2 * Nh * d), ("k", Nkv * d), ("v", Nkv * d)):
        shapes[f"{at}{x}_proj.weight"] = (rows, D)
        if bias:
            shapes[f"{at}{x}_proj.bias"] = (rows,)
    shapes.update({at + "o_proj.weight": (D, Nh * d), at + "q_norm.weight": (d,),
                   at + "k_norm.weight": (d,)})
    if bias:
        shapes[at + "o_proj.bias"] = (D,)
    return numbered(shapes)


def olmo_tensors(names="published", conv="published"):
    old = names == "published"
    shapes = {"model.embed_tokens.weight": (ROWS, D), "model.norm.weight": (D,),
              "lm_head.weight": (ROWS, D), **mlp("model.layers.0."), **mlp("model.layers.1.")}
    at = "model.layers.0."
    for n in (("attention_layer_norm", "feedforward_layer_norm") if names != "module" else
              ("input_layernorm", "post_attention_layernorm")):
        shapes[f"{at}{n}.weight"] = (D,)
    at += "linear_attn."
    for x, rows in (("q", KD), ("k", KD), ("v", VD), ("g", VD), ("a", HV), ("b", HV)):
        shapes[f"{at}{x}_proj.weight"] = (rows, D)
    total = 2 * KD + VD
    third = -(-total // 3)
    sizes = {"published": (KD, KD, VD), "thirds": (third, third, total - 2 * third)}.get(conv)
    if sizes:
        for x, rows in zip("qkv", sizes):
            shapes[f"{at}{x}_conv1d.weight"] = (rows, 1, W)
    else:
        shapes[at + "conv1d.weight"] = (total, 1, W)
    shapes.update({at + "A_log": (HV,), at + "dt_bias": (HV,), at + "o_norm.weight": (V,),
                   at + "o_proj.weight": (D, VD)})
    at = "model.layers.1."
    shapes[at + ("post_attention_layernorm" if old else "feedforward_layer_norm") + ".weight"] = (D,)
    if names == "module":
        del shapes[at + "feedforward_layer_norm.weight"]
        shapes[at + "post_attention_layernorm.weight"] = (D,)
    shapes[at + "post_feedforward_layernorm.weight"] = (D,)
    at += "self_attn."
    for x, rows in (("q", Nh * d), ("k", Nkv * d), ("v", Nkv * d)):
        shapes[f"{at}{x}_proj.weight"] = (rows, D)
    shapes.update({at + "o_proj.weight": (D, Nh * d), at + "q_norm.weight": (Nh * d,),
                   at + "k_norm.weight": (Nkv * d,)})
    return numbered(shapes)


class Hybrid(Case):
    def both(self, config, tensors, kind=None):
        meta, out = self.read(self.export(self.folder(config, tensors), kind))
        self.types = {n: t.tensor_type.name for n, t in out.items()}
        return meta, {n: self.values(t) for n, t in out.items()}

    def same(self, got, expected):
        np.testing.assert_array_equal(got, expected)


class Qwen(Hybrid):
    def test_qwen35_metadata(self):
        meta, out = self.both(TEXT, qwen_tensors("qwen3_5"))
        expected = {"general.architecture": "qwen35", "qwen35.block_count": 2,
                    "qwen35.context_length": 128, "qwen35.embedding_length": D,
                    "qwen35.feed_forward_length": I, "qwen35.attention.head_count": Nh,
                    "qwen35.attention.head_count_kv": Nkv, "qwen35.attention.key_length": d,
                    "qwen35.attention.value_length": d, "qwen35.ssm.conv_kernel": W,
                    "qwen35.ssm.state_size": K, "qwen35.ssm.group_count": H,
                    "qwen35.ssm.time_step_rank": HV, "qwen35.ssm.inner_size": VD,
                    "qwen35.attention.recurrent_layers": [True, False],
                    "qwen35.full_attention_interval": 2, "qwen35.rope.dimension_count": 6,
                    "qwen35.rope.freq_base": 1e6,
                    "qwen35.rope.dimension_sections": [11, 11, 10, 0]}
        self.assertEqual({k: meta.get(k) for k in expected}, expected)
        self.assertAlmostEqual(meta["qwen35.attention.layer_norm_rms_epsilon"], 1e-5, 12)
        self.assertEqual(len(out), 3 + 2 * 5 + 9 + 6)

    def test_qwen35_rows(self):
        t = qwen_tensors("qwen3_5")
        _, out = self.both(TEXT, t)
        at = "model.layers.0.linear_attn."
        qkv, z = t[at + "in_proj_qkv.weight"], t[at + "in_proj_z.weight"]
        conv, o = t[at + "conv1d.weight"], t[at + "out_proj.weight"]
        self.same(out["blk.0.attn_qkv.weight"][:2 * KD], qkv[:2 * KD])
        for j in range(HV):  # ours; it uses q/k head j mod H, so it is place j / H of that group
            theirs = j % H * r + j // H
            mine, his = slice(j * V, (j + 1) * V), slice(theirs * V, (theirs + 1) * V)
            after = slice(2 * KD + j * V, 2 * KD + (j + 1) * V)
            self.same(out["blk.0.attn_qkv.weight"][after], qkv[2 * KD:][his])
            self.same(out["blk.0.ssm_conv1d.weight"][after], conv[2 * KD:, 0][his])
            self.same(out["blk.0.attn_gate.weight"][mine], z[his])
            self.same(out["blk.0.ssm_out.weight"][:, mine], o[:, his])
            for ours, name in (("ssm_beta.weight", "in_proj_b.weight"), ("ssm_dt.bias", "dt_bias"),
                               ("ssm_alpha.weight", "in_proj_a.weight")):
                self.same(out["blk.0." + ours][j], t[at + name][theirs])
            self.same(out["blk.0.ssm_a"][j],
                      np.float32(-np.exp(np.float64(t[at + "A_log"][theirs]))))
        self.same(out["blk.0.ssm_norm.weight"], t[at + "norm.weight"])
        for ours, name in (("blk.0.attn_norm", "layers.0.input_layernorm"),
                           ("blk.1.post_attention_norm", "layers.1.post_attention_layernorm"),
                           ("blk.1.attn_q_norm", "layers.1.self_attn.q_norm"),
                           ("blk.1.attn_k_norm", "layers.1.self_attn.k_norm"),
                           ("output_norm", "norm")):
            self.same(out[ours + ".weight"], t[f"model.{name}.weight"] + np.float32(1))
        self.same(out["blk.1.attn_q.weight"], t["model.layers.1.self_attn.q_proj.weight"])

    def test_types(self):
        t = {n: (a.view(np.uint32) >> 16).astype(np.uint16)
             for n, a in qwen_tensors("qwen3_5").items()}
        _, out = self.both(TEXT, t)
        for name, kind in (("attn_qkv", "BF16"), ("ssm_out", "BF16"), ("ssm_alpha", "BF16"),
                           ("ssm_conv1d", "F32"), ("ssm_norm", "F32"), ("attn_norm", "F32")):
            self.assertEqual(self.types[f"blk.0.{name}.weight"], kind, name)
        self.assertEqual((self.types["blk.0.ssm_a"], self.types["blk.0.ssm_dt.bias"]), ("F32",) * 2)
        wide = (t["model.norm.weight"].astype(np.uint32) << 16).view(np.float32)
        self.same(out["output_norm.weight"], wide + np.float32(1))
        self.both(TEXT, t, "q8_0")
        self.assertEqual(self.types["blk.0.attn_qkv.weight"], "Q8_0")
        self.assertEqual(self.types["blk.0.ssm_conv1d.weight"], "F32")

    def test_image_and_text(self):
        t = qwen_tensors("qwen3_5", "model.language_model.")
        extra = {"model.visual.blocks.0.norm1.weight": random(1, 8), "mtp.fc.weight": random(2, 8, 8)}
        text = dict(TEXT, rope_parameters=dict(TEXT["rope_parameters"], mrope_interleaved=True,
                                               mrope_section=[2, 1, 0]))
        meta, out = self.both({"model_type": "qwen3_5", "text_config": text,
                               "vision_config": {"depth": 1}}, {**t, **extra})
        self.assertIn("ignored: model.visual.blocks.0.norm1.weight, mtp.fc.weight", self.said)
        self.assertEqual(meta["qwen35.rope.dimension_sections"], [2, 1, 0, 0])
        _, plain = self.both(TEXT, qwen_tensors("qwen3_5"))
        self.assertEqual(out.keys(), plain.keys())
        for name in out:
            self.same(out[name], plain[name])

    def test_image_and_text_tied(self):
        t = qwen_tensors("qwen3_5", "model.language_model.", tied=True)
        _, out = self.both({"model_type": "qwen3_5", "tie_word_embeddings": True,
                            "text_config": TEXT}, t)
        self.assertNotIn("output.weight", out)
        text = dict(TEXT, tie_word_embeddings=True)
        _, out = self.both({"model_type": "qwen3_5", "text_config": text}, t)
        self.assertNotIn("output.weight", out)

    def test_qwen3_next_rows(self):
        t = qwen_tensors("qwen3_next")
        meta, out = self.both(NEXT, t)
        self.assertEqual(meta["general.architecture"], "qwen3next")
        self.assertNotIn("qwen3next.rope.dimension_sections", meta)
        at = "model.layers.0.linear_attn."
        group = 2 * K + 2 * r * V
        for h in range(H):
            rows = t[at + "in_proj_qkvz.weight"][h * group:(h + 1) * group]
            qkv, z = out["blk.0.attn_qkv.weight"], out["blk.0.attn_gate.weight"]
            self.same(qkv[h * K:(h + 1) * K], rows[:K])
            self.same(qkv[KD + h * K:KD + (h + 1) * K], rows[K:2 * K])
            self.same(qkv[2 * KD + h * r * V:2 * KD + (h + 1) * r * V], rows[2 * K:2 * K + r * V])
            self.same(z[h * r * V:(h + 1) * r * V], rows[2 * K + r * V:])
        self.same(out["blk.0.ssm_ba.weight"], t[at + "in_proj_ba.weight"])
        self.same(out["blk.0.ssm_out.weight"], t[at + "out_proj.weight"])
        self.same(out["blk.0.ssm_conv1d.weight"], t[at + "conv1d.weight"][:, 0])

    def test_biases_and_layer_types(self):
        t = qwen_tensors("qwen3_5", bias=True)
        c = dict(TEXT, attention_bias=True, full_attention_interval=None,
                 layer_types=["linear_attention", "full_attention"])
        meta, out = self.both(c, t)
        self.assertEqual(meta["qwen35.attention.recurrent_layers"], [True, False])
        self.assertEqual(out["blk.1.attn_q.bias"].shape, (2 * Nh * d,))
        self.assertIn("blk.1.attn_output.bias", out)

    def test_partial_rotary_anywhere(self):
        t = qwen_tensors("qwen3_5")
        for change, dims, base in (
                (dict(rope_parameters=None, rope_theta=5e5, partial_rotary_factor=1.0), 12, 5e5),
                (dict(rope_parameters=None, partial_rotary_factor=0.5), 6, 1e4),
                (dict(rope_parameters={"rope_type": "default", "rope_theta": 1e4,
                                       "partial_rotary_factor": 0.34},
                      partial_rotary_factor=0.5), 4, 1e4)):
            meta, _ = self.both(dict(TEXT, **change), t)
            self.assertEqual((meta["qwen35.rope.dimension_count"], meta["qwen35.rope.freq_base"]),
                             (dims, base))
        meta, _ = self.both(dict(TEXT, rope_parameters={
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "partial_rotary_factor": 0.5,
            "original_max_position_embeddings": 32}), t)
        self.assertEqual(meta["qwen35.rope.scaling.type"], "yarn")

    def test_refusals(self):
        t, n = qwen_tensors("qwen3_5"), qwen_tensors("qwen3_next")

        def refused(pattern, config, tensors):
            self.refused(pattern, self.folder(config, tensors))
        refused("'qwen3_5_moe' is a mixture of experts", dict(TEXT, model_type="qwen3_5_moe"), t)
        refused("layer 0 is a mixture of 8 experts", dict(NEXT, num_experts=8), n)
        refused("layer 1 is a mixture of 512 experts",
                dict({k: v for k, v in NEXT.items() if k != "num_experts"}, mlp_only_layers=[0]), n)
        refused("linear_num_value_heads 5 is not a multiple of linear_num_key_heads 2",
                dict(TEXT, linear_num_value_heads=5), t)
        refused("layer type 'sliding_attention' is not supported",
                dict(TEXT, layer_types=["linear_attention", "sliding_attention"]), t)
        refused("layer_types is not a list of 2", dict(TEXT, layer_types=["full_attention"]), t)
        refused("partial_rotary_factor 0.25 of head_dim 12 is 3 dimensions, expected an even",
                dict(TEXT, rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.25}),
                t)
        refused("hidden_act = 'gelu'", dict(TEXT, hidden_act="gelu"), t)
        refused(r"in_proj_qkv.weight has shape \[38, 32\], expected \[46, 32\]",
                dict(TEXT, linear_key_head_dim=7), t)
        refused("tensor model.layers.0.linear_attn.A_log is missing", TEXT,
                {k: a for k, a in t.items() if "A_log" not in k})
        refused("tensor model.layers.0.linear_attn.extra.* is neither used", TEXT,
                dict(t, **{"model.layers.0.linear_attn.extra.weight": random(1, 3)}))
        refused("in_proj_qkvz.weight is missing", NEXT, t)

    def test_dense_by_list(self):
        meta, _ = self.both(dict(NEXT, num_experts=8, mlp_only_layers=[0, 1]),
                            qwen_tensors("qwen3_next"))
        self.assertNotIn("qwen3next.expert_count", meta)


class Olmo(Hybrid):
    def test_published(self):
        t = olmo_tensors()
        meta, out = self.both(OLMO, t)
        expected = {"general.architecture": "linnet", "linnet.format_version": 1,
                    "linnet.mixers": ["gated_delta_net", "softmax"],
                    "linnet.rope.pairing": "none", "linnet.delta.head_count": H,
                    "linnet.delta.value_head_count": HV, "linnet.delta.key_length": K,
                    "linnet.delta.value_length": V, "linnet.delta.conv_kernel": W,
                    "linnet.delta.beta_scale": 2.0}
        self.assertEqual({k: meta.get(k) for k in expected}, expected)
        self.assertAlmostEqual(meta["linnet.delta.norm_epsilon"], 1e-5, 12)
        self.assertNotIn("linnet.rope.freq_base", meta)
        at = "model.layers.0.linear_attn."
        self.same(out["blk.0.attn_qkv.weight"],
                  np.concatenate([t[f"{at}{x}_proj.weight"] for x in "qkv"]))
        self.same(out["blk.0.ssm_conv1d.weight"],
                  np.concatenate([t[f"{at}{x}_conv1d.weight"][:, 0] for x in "qkv"]))
        for ours, name in (("blk.0.attn_norm", "layers.0.attention_layer_norm"),
                           ("blk.0.ffn_norm", "layers.0.feedforward_layer_norm"),
                           ("blk.1.post_attention_norm", "layers.1.post_attention_layernorm"),
                           ("blk.1.post_ffw_norm", "layers.1.post_feedforward_layernorm"),
                           ("blk.1.attn_q_norm", "layers.1.self_attn.q_norm"),
                           ("blk.0.ssm_norm", "layers.0.linear_attn.o_norm"),
                           ("output_norm", "norm")):
            self.same(out[ours + ".weight"], t[f"model.{name}.weight"])
        self.assertNotIn("blk.1.attn_norm.weight", out)
        self.same(out["blk.0.ssm_a"], -np.exp(t[at + "A_log"].astype(np.float64)).astype(np.float32))

    def test_other_spellings(self):
        """As transformers 5.23 saves it, and with the names of its modules."""
        for names, conv in (("resaved", "thirds"), ("module", "joined")):
            t = olmo_tensors(names, conv)
            _, out = self.both(OLMO, t)
            at = "model.layers.0.linear_attn."
            whole = (t[at + "conv1d.weight"] if conv == "joined" else
                     np.concatenate([t[f"{at}{x}_conv1d.weight"] for x in "qkv"]))
            self.same(out["blk.0.ssm_conv1d.weight"], whole[:, 0])
            norm = "feedforward_layer_norm" if names == "resaved" else "post_attention_layernorm"
            self.same(out["blk.1.post_attention_norm.weight"], t[f"model.layers.1.{norm}.weight"])
            name = "attention_layer_norm" if names == "resaved" else "input_layernorm"
            self.same(out["blk.0.attn_norm.weight"], t[f"model.layers.0.{name}.weight"])

    def test_positions(self):
        """As transformers 5 reads the keys: null means none, absence 10000."""
        t = olmo_tensors()
        for change, base in (({"rope_parameters": {"rope_theta": 500.0}}, 500.0),
                             ({"rope_parameters": {"rope_type": "default"}}, 10000.0),
                             ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 7.0}, 7.0),
                             ({"rope_parameters": None}, 10000.0),
                             ({"rope_parameters": {"rope_theta": None}, "rope_theta": 7.0}, None),
                             ({"rope_parameters": None, "rope_theta": None}, None)):
            meta, _ = self.both(dict(OLMO, **change), t)
            self.assertEqual(meta.get("linnet.rope.freq_base"), base, change)
            self.assertEqual(meta.get("linnet.rope.pairing"), None if base else "none")

    def test_defaults(self):
        """Head counts of the softmax layers, K = 3/4 D/H, V = 2K; the last layer is full."""
        c = {k: v for k, v in OLMO.items()
             if not k.startswith("linear_") and k not in ("layer_types", "head_dim")}
        with self.assertRaisesRegex(Exception, r"q_proj.weight has shape \[10, 32\], expected "
                                               r"\[24, 32\]"):
            self.both(dict(c, num_attention_heads=4), olmo_tensors())

    def test_refusals(self):
        t = olmo_tensors()
        self.refused("layer type 'mamba' is not supported",
                     self.folder(dict(OLMO, layer_types=["linear_attention", "mamba"]), t))
        cut = dict(t, **{"model.layers.0.linear_attn.k_conv1d.weight": random(1, KD - 1, 1, W)})
        self.refused(r"k_conv1d.weight has shape \[9, 1, 4\], expected \[10, 1, 4\]",
                     self.folder(OLMO, cut))
        del cut["model.layers.0.linear_attn.k_conv1d.weight"]
        self.refused("k_conv1d.weight is missing", self.folder(OLMO, cut))
        self.refused("head_dim 11 must be even", self.folder(dict(OLMO, head_dim=11), t))


if __name__ == "__main__":
    unittest.main()
