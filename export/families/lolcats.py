"""LoLCATs, Hedgehog and T2R: a Llama or Mistral base whose attention was linearized by feature maps
(and window factors) in a file of their own, with LoRA matrices in the same file or another.
HazyResearch/lolcats; not recognised from config.json: `--lolcats` asks for it."""
import os
import re
from functools import partial

import numpy as np

from ..checkpoint import FLOATS, Tensor, load_file, to_float32
from ..errors import ExportError, names
from . import llama
from .base import Config, Out, refuse_present, write_windows
from .lolcats_options import OPTIONS, apply_settings, level, load_config, need_file, number

# attention_type -> (windowed, trained with terraces)
TYPES = {"lolcats_llama": (False, False),
         "lolcats_llama_window_sw": (True, False),
         "lolcats_llama_window_sw_linear": (True, False),
         "lolcats_long_llama_window_sw": (True, False),
         "lolcats_llama_window_tk": (True, True),
         "lolcats_llama_window_tk_gen": (True, True),
         "lolcats_llama_window_tk_bf16": (True, True),
         "lolcats_llama_window_tk_fa2": (True, True),
         "lolcats_llama_window_tk_sdpa": (True, True),
         "lolcats_long_llama_window_tk": (True, True)}
# Not upstream's: softmax over the window and the sinks alone, what a linear part is compared with.
WINDOW_ALONE = "window_softmax"
MAPS = ("softmax_dim", "exp_dim", "pos_elu", "relu")
KERNELS = ("untied_head_einsum", "untied_head_adapter")

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
IGNORABLE = [r".*rotary_emb\..*", r".*metrics.*", r".*\.base_attn\..*", r".*\.window_factor"]


def short_name(name):
    """Upstream's prefixes (model., base_model.model.model., FSDP's wrappers) fall away: what
    follows the last "model." names the tensor."""
    for wrapper in ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module."):
        name = name.replace(wrapper, "")
    name = name.replace(".mlp._flat_param", ".mlp.layer").replace("._flat_param", ".weight")
    return name.rpartition("model.")[2].replace(".base_layer.", ".")


def block_offset(path):
    """Files of one block of layers count them from 0; the first is in the name: -in=9-out=17."""
    found = re.search(r"-in=(\d+)-out=(\d+)", os.path.basename(path))
    return int(found[1]) if found else 0


def finite_reader(t, name, path):
    def read():
        array = t.read()
        if t.dtype in FLOATS and not np.isfinite(to_float32(array, t.dtype)).all():
            raise ExportError(f"{path}: tensor {name} has values that are not finite numbers")
        return array
    return read


def read_maps(paths, tensors):
    """-> {short name: Tensor}; what belongs to the base itself replaces its tensor there."""
    base = {short_name(n): n for n in tensors}
    extra = {}
    for path in paths:
        need_file(path)
        first, here = block_offset(path), {}
        for name, t in load_file(path).items():
            short = short_name(name)
            if short in here:
                raise ExportError(f"{path}: {here[short]} and {name} are both {short}")
            here[short] = name
            if first:
                short = re.sub(r"^layers\.(\d+)\.", lambda m: f"layers.{int(m[1]) + first}.", short)
            if ".lora_" in short and short in extra and extra[short].file != path:
                raise ExportError(f"{path}: {name} is a second update of one matrix, after the one in "
                                  f"{extra[short].file}; merge one of them into the base first")
            t = Tensor(name, path, t.dtype, t.shape, finite_reader(t, name, path))
            if short in base:
                tensors[base[short]] = t
            else:
                extra[short] = t
    return extra


class Maps:
    """The extra tensors of a linearized model, taken one by one, each of the shape expected."""

    def __init__(self, tensors, where, base):
        self.tensors, self.where, self.base, self.used = tensors, where, base, set()

    def take(self, name, shape, what):
        t = self.tensors.get(name)
        if t is None:
            raise ExportError(f"{self.where}: tensor {name} is missing (expected shape "
                              f"{list(shape)}: {what})")
        if t.shape != tuple(shape):
            raise ExportError(f"{t.file}: tensor {t.name} has shape {list(t.shape)}, but the base "
                              f"{self.base} and the config want {list(shape)} ({what})")
        if t.dtype not in FLOATS:
            raise ExportError(f"{t.file}: tensor {t.name} has dtype {t.dtype}, expected one of "
                              f"{', '.join(FLOATS)}")
        self.used.add(name)
        return t


def round_to(dtype, x):
    """Float32 numbers as the model's own dtype holds them."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return x.astype(np.float16).astype(np.float32) if dtype == "F16" else x.astype(np.float32)


def window_factor(dtype, x):
    """gamma = sigmoid(parameter), evaluated by upstream in the model's dtype."""
    x = round_to(dtype, np.asarray(x, np.float32)).reshape(-1).astype(np.float64)
    return round_to(dtype, (1 / (1 + np.exp(-x))).astype(np.float32))


def linear_factor(dtype, x):
    return round_to(dtype, 1 - window_factor(dtype, x))


def merge_lora(scale, w, a, b):
    """W + (alpha / r) B A"""
    if w.dtype == np.bool_:  # only the shape is asked for
        return w
    return w + np.float32(scale) * (b @ a)


def flat(*shape):
    return partial(np.reshape, newshape=shape) if np.lib.NumpyVersion(np.__version__) < "2.1.0" \
        else partial(np.reshape, shape=shape)


def softmax_layers(attention, n, path):
    layers = attention.values.get("softmax_attentions")
    layers = [] if layers is None else layers
    if not isinstance(layers, list) or any(type(i) is not int or not 0 <= i < n for i in layers):
        raise ExportError(f"{path}: softmax_attentions is {layers!r:.60}, expected a list of layers "
                          f"from 0 to {n - 1}")
    return layers


def window_alone(args, values, config_path, tensors, options, path, attention):
    """The base with windows and sinks, and LoRA if a file is given."""
    for key, value in attention.values.items():
        if value not in ({}, None) and key not in ("attention_type", "window_size", "n_sink", "softmax_attentions"):
            raise ExportError(f"{path}: attention.{key} has no meaning for {WINDOW_ALONE}")
    notes = []
    config = base_config(values, config_path, options, path, notes)
    plan = base_plan(config, tensors)
    n = config.int("num_hidden_layers")
    softmax = softmax_layers(attention, n, path)
    extra = read_maps([*args.lolcats, *([args.lora] if args.lora else [])], tensors)
    maps = Maps(extra, args.lolcats[0] if args.lolcats else args.lora, args.source)
    add_lora(args, options, path, plan, tensors, maps, notes)
    unknown = [name for name in extra if name not in maps.used]
    if unknown:
        raise ExportError(f"{extra[unknown[0]].file}: {names(unknown, 3)}: {WINDOW_ALONE} takes LoRA "
                          "matrices alone")
    tensors.update(extra)
    window = attention.int("window_size", default=64, high=1 << 28)
    write_windows(plan, [0 if i in softmax else window for i in range(n)])
    plan.u32("format_version", 1)
    plan.u32("attention.n_sink", attention.int("n_sink", default=0, low=0, high=1025))
    plan.notes += notes
    return plan


def linearize(args, values, config_path, tensors):
    """-> Plan; `tensors` receives the maps and LoRA matrices under their short names."""
    source = args.source
    options, path = {}, "--set"
    if args.lolcats_config:
        path = args.lolcats_config
        options = load_config(path)
        if "attention" not in options and "attention_type" in options:
            options = {"attention": options}
    elif not any("attention_type=" in s for s in args.set or ()):
        raise ExportError(f"{args.lolcats[0]} holds maps without their options; give the yaml of its "
                          "run with --lolcats-config FILE (or at least --set attention_type=NAME)")
    settings = {}
    apply_settings(settings, args.set, path)
    for place in OPTIONS:
        level(options, place, path).update(
            {k: v for k, v in level(settings, place, path).items() if (*place, k) not in OPTIONS})
    for place in list(OPTIONS)[:3]:
        for key in level(options, place, path):
            if key not in OPTIONS[place]:
                raise ExportError(f"{path}: {'.'.join(place)}.{key} is not an option of LoLCATs")

    attention = Config(options["attention"], f"{path}: attention")
    kernel_options = Config(level(options, ("attention", "learned_kernel_kwargs"), path),
                            f"{path}: learned_kernel_kwargs")
    map_options = Config(level(options, ("attention", "feature_map_kwargs"), path),
                         f"{path}: feature_map_kwargs")
    notes = []
    kind = attention.str("attention_type")
    if kind not in (*TYPES, WINDOW_ALONE):
        raise ExportError(f"{path}: attention_type {kind!r} is not supported, expected one of "
                          f"{', '.join((*TYPES, WINDOW_ALONE))}")
    if kind == WINDOW_ALONE:
        return window_alone(args, values, config_path, tensors, options, path, attention)
    windowed, terrace = TYPES[kind]
    if kind.startswith("lolcats_long"):
        notes.append(f"{kind}: a long prompt is computed as one, not in chunks of state_chunk_len "
                     "between which upstream loses the window")
    feature_map = attention.str("feature_map")
    kernel = attention.str("learned_kernel", default=None)
    for what, value, allowed in (("feature_map", feature_map, MAPS),
                                 ("learned_kernel", kernel, KERNELS)):
        if value not in allowed:
            raise ExportError(f"{path}: {what} {value!r:.60} is not supported, expected "
                              f"{' or '.join(allowed)}")
    attention.only("num_feature_maps", 1)
    refuse_present(attention, "rotary_config")
    if not windowed and number(attention.values, "eps", 1e-12, path) != 1e-12:
        attention.only("eps", 1e-12)
    window = attention.int("window_size", default=64, high=1 << 28) if windowed else 0
    attention.only("decode_window_size", window)
    n_sink = attention.int("n_sink", default=0, low=0, high=1025)
    trained_length = attention.int("trained_length", default=0, low=0, high=1 << 28)
    if trained_length and terrace:
        raise ExportError(f"{attention.path}: trained_length is for sliding windows, {kind} has terraces")
    eps = number(map_options.values, "eps", 1e-12, map_options.path)
    if not 0 <= eps <= 1:
        raise ExportError(f"{map_options.path}: eps is {eps:g}, expected 0 to 1")
    adapter = kernel == "untied_head_adapter"
    skip = adapter or kernel_options.bool("skip_connection", default=False)
    bias = kernel_options.bool("bias", default=False)
    tied = attention.bool("tie_qk_kernels", default=False)
    affine = attention.bool("affine_attention_factors", default=False)
    trained = attention.bool("train_window_factor", default=True)
    start = number(attention.values, "init_window_factor", 0.0, path)  # upstream's own default
    if not adapter:
        refuse_present(kernel_options, "hidden_dim")

    config = base_config(values, config_path, options, path, notes)
    plan = base_plan(config, tensors)
    L = config.int("num_hidden_layers")
    H = config.int("num_attention_heads")
    D = next(o.shapes[0][0] for o in plan.tensors if o.name == "blk.0.attn_q.weight") // H
    F = kernel_options.int("feature_dim", default=D, high=1025)
    if skip and F != D:
        raise ExportError(f"{path}: feature_dim is {F}, but a skip connection or an adapter adds to "
                          f"the head's {D} dimensions, which it must equal")
    softmax = softmax_layers(attention, L, path)
    if not args.lolcats:
        raise ExportError(f"{path}: attention_type {kind} needs feature maps: --lolcats MAPS.pt")
    extra = read_maps([*args.lolcats, *([args.lora] if args.lora else [])], tensors)
    maps = Maps(extra, args.lolcats[0], source)
    dtype = options["model"].get("torch_dtype")
    if dtype is not None and str(dtype).removeprefix("torch.") not in DTYPES:
        raise ExportError(f"{path}: torch_dtype is {dtype!r:.60}, expected {', '.join(DTYPES)}")
    dtype = DTYPES.get(str(dtype).removeprefix("torch."))

    def add(name, source_name, shape, what, make=None, computes=False):
        maps.take(source_name, shape, what)
        plan.tensors.append(Out(name, (source_name,), (tuple(shape),), make, f32=True,
                                computes=computes))

    def add_map(i, x):
        src, dst = f"layers.{i}.self_attn.feature_map_{x}.mlp.", f"blk.{i}.attn_feature_{x}"
        if not adapter:
            add(dst + ".weight", src + "layer", (H, D, F), "heads, head dimension, feature_dim")
            if bias:
                add(dst + ".bias", src + "bias", (1, H, 1, 1), "one bias for each head", flat(H))
            return 0
        layer0 = extra.get(src + "layer0")
        R = layer0.shape[-1] if layer0 is not None and layer0.shape else 1
        R = kernel_options.int("hidden_dim", default=R, high=1025)
        add(dst + "_down.weight", src + "layer0", (H, D, R), "heads, head dimension, inner width")
        add(dst + "_down.bias", src + "bias0", (1, H, 1, R), "heads, inner width", flat(H, R))
        add(dst + "_up.weight", src + "layer1", (H, R, F), "heads, inner width, feature_dim")
        add(dst + "_up.bias", src + "bias1", (1, H, 1, F), "heads, feature_dim", flat(H, F))
        return R

    ranks, buffered = set(), False
    for i in range(L):
        if i in softmax:
            continue
        for x in "q" if tied else "qk":
            ranks.add(add_map(i, x))
        if not windowed:
            continue
        src = f"layers.{i}.self_attn.window_factors"
        if src not in extra and f"layers.{i}.self_attn.window_factor" in extra:
            src = f"layers.{i}.self_attn.window_factor"
        made = [("attn_window_factor", window_factor)]
        if affine:
            made.append(("attn_linear_factor", linear_factor))
        for name, make in made:
            name = f"blk.{i}.{name}.weight"
            if src not in extra and not trained:
                plan.constant(name, make(dtype, np.full(H, start, np.float32)))
                buffered = True
                continue
            add(name, src, (1, H, 1, 1), "one factor for each head",
                partial(make, dtype or extra[src].dtype if src in extra else dtype), computes=True)
    if len(ranks) > 1:
        raise ExportError(f"{args.lolcats[0]}: adapters of inner widths "
                          f"{', '.join(map(str, sorted(ranks)))}, expected one")
    if buffered:
        notes.append("window factors are not in the file (train_window_factor is false): "
                     f"init_window_factor {start:g} is used")
    add_lora(args, options, path, plan, tensors, maps, notes)

    skipped = [r"layers\.(" + "|".join(map(str, softmax)) + r")\.self_attn\.(feature_map|window).*"]
    if tied:
        skipped.append(r"layers\.\d+\.self_attn\.feature_map_k\..*")
    plan.ignorable += IGNORABLE + (skipped if softmax or tied else [])
    for name, t in extra.items():
        tensors[name] = t
    unknown = [n for n in extra if n not in maps.used
               and not any(re.fullmatch(p, n) for p in plan.ignorable)]
    if unknown:
        raise ExportError(f"{extra[unknown[0]].file}: {names(unknown, 3)} "
                          f"{'is' if len(unknown) == 1 else 'are'} not part of a {kind} model over "
                          f"{source} with these options")

    linear = [i not in softmax for i in range(L)]
    mixer = "lolcats" if windowed else "hedgehog"
    write_windows(plan, [window if x else 0 for x in linear])
    plan.metadata += [("linnet.format_version", "u32", 1),
                      ("linnet.mixers", "array", [mixer if x else "softmax" for x in linear]),
                      ("linnet.lolcats.feature_map", "str", feature_map),
                      ("linnet.lolcats.feature_dim", "u32", F),
                      ("linnet.lolcats.full_space", "bool",
                       map_options.bool("fullspace", default=True)),
                      ("linnet.lolcats.eps", "f32", eps),
                      ("linnet.lolcats.skip", "bool", skip),
                      ("linnet.lolcats.tied", "bool", tied),
                      ("linnet.lolcats.terrace", "bool", terrace)]
    if adapter and ranks:
        plan.metadata.append(("linnet.lolcats.adapter_rank", "u32", ranks.pop()))
    if n_sink:
        plan.metadata.append(("linnet.attention.n_sink", "u32", n_sink))
    if trained_length:
        plan.metadata.append(("linnet.lolcats.trained_length", "u32", trained_length))
    plan.notes += notes
    return plan


def base_config(values, config_path, options, path, notes):
    """The base's config.json with the rotary options that the run's yaml has."""
    values = dict(values)
    model = level(options, ("model",), path)
    theta = number(model, "rope_theta", None, path)
    scaling = model.get("rope_scaling")
    if theta is not None and not theta > 0:
        raise ExportError(f"{path}: rope_theta is {theta:g}, expected a positive number")
    if scaling is not None and not isinstance(scaling, dict):
        raise ExportError(f"{path}: rope_scaling is {scaling!r:.60}, expected a mapping")
    if scaling:
        if not (scaling.get("rope_type") or scaling.get("type")):
            raise ExportError(f"{path}: rope_scaling has no rope_type")
        for key in scaling:
            if key.endswith(("factor", "embeddings")):
                scaling[key] = number(scaling, key, None, f"{path}: rope_scaling")
    new = dict(values.pop("rope_parameters", None) or {})
    old = new.pop("rope_theta", None) or values.get("rope_theta")
    if new:
        values["rope_scaling"] = new
    values["rope_theta"] = theta if theta is not None else old
    if scaling is not None:
        values["rope_scaling"] = scaling
    said = values["rope_theta"] or 10000.0
    notes.append(f"rope_theta {said:g} is from {path if theta is not None else config_path}"
                 + (f", rope_scaling from {path}" if scaling is not None else ""))
    return Config(values, f"{config_path} with {path}" if scaling else config_path)


def base_plan(config, tensors):
    """The base as architecture `linnet`: rows of q and k stay as they are, and Mistral's own window
    is never applied, as upstream runs it through the Llama classes."""
    kind = config.values.get("model_type")
    if kind not in ("llama", "mistral"):
        raise ExportError(f"{config.path}: model_type {kind!r:.60} cannot be the base of a LoLCATs "
                          "model, expected llama or mistral")
    plan = llama.plan(config, {name: t.shape for name, t in tensors.items()})
    plan.arch = "linnet"
    plan.metadata = [(re.sub("^llama[.]", "linnet.", key), kind, value)
                     for key, kind, value in plan.metadata
                     if not key.endswith("sliding_window") and not key.endswith("window_layers")]
    for out in plan.tensors:
        if re.fullmatch(r"blk\.\d+\.attn_[qk]\.(weight|bias)", out.name):
            out.make = None
    return plan


def lora_scale(args, options, path, ranks, notes):
    """alpha / r"""
    own = load_config(args.lora_config) if args.lora_config else {}
    where = args.lora_config or path
    kwargs = level(own, ("finetune", "kwargs"), where) or own  # or a peft adapter_config.json
    mine = level(options, ("finetune", "kwargs"), path)
    chosen = [s for s in args.set or () if s.partition("=")[0].split(".")[-1] in
              ("lora_alpha", "alpha")]
    for values in (kwargs, mine):
        for key in ("use_rslora", "use_dora", "alpha_pattern"):
            if values.get(key):
                raise ExportError(f"{where}: {key} is not supported")
    alpha = number(mine, "lora_alpha", None, path) if chosen else \
        number(kwargs, "lora_alpha", number(mine, "lora_alpha", None, path), where)
    r = kwargs.get("r", mine.get("r"))
    if isinstance(r, int) and ranks - {r}:
        raise ExportError(f"{where}: r is {r}, but the LoRA matrices have rank "
                          f"{', '.join(map(str, sorted(ranks)))}")
    if alpha is None:
        notes.append("LoRA's alpha / r is taken as 2, as in every upstream config (--set "
                     "lora_alpha=N or --lora-config FILE says otherwise)")
        return lambda rank: 2.0
    return lambda rank: alpha / rank


def add_lora(args, options, path, plan, tensors, maps, notes):
    pairs = {}
    for name in maps.tensors:
        found = re.fullmatch(r"(.+)\.lora_([AB])\.(?:[^.]+\.)?weight", name)
        if found:
            pairs.setdefault(found[1], {})[found[2]] = name
    if args.lora and not pairs:
        raise ExportError(f"{args.lora} has no LoRA matrices (names with lora_A and lora_B)")
    if not pairs:
        if args.lora_config:
            notes.append(f"{args.lora_config} is not used: there are no LoRA matrices (--lora FT.pt)")
        return
    outs = {short_name(o.sources[0]): o for o in plan.tensors if len(o.sources) == 1}
    work = []
    for target, pair in pairs.items():
        file = maps.tensors[next(iter(pair.values()))].file
        out = outs.get(target + ".weight")
        if out is None or len(out.shapes[0]) != 2:
            raise ExportError(f"{file}: LoRA matrices for {target}, which the base {maps.base} does "
                              "not have")
        for x in "AB":
            if x not in pair:
                raise ExportError(f"{file}: tensor {target}.lora_{x}.default.weight is missing")
        rows, cols = out.shapes[0]
        shape = maps.tensors[pair["A"]].shape
        r = max(shape[0], 1) if shape else 1
        maps.take(pair["A"], (r, cols), "rank, columns of the matrix")
        maps.take(pair["B"], (rows, r), "rows of the matrix, rank")
        work.append((out, pair, r))
    scale = lora_scale(args, options, path, {r for _, _, r in work}, notes)
    for out, pair, r in work:
        out.make = partial(merge_lora, scale(r))
        out.sources += (pair["A"], pair["B"])
        out.shapes += (maps.tensors[pair["A"]].shape, maps.tensors[pair["B"]].shape)
        out.computes = True
    notes.append(f"{len(work)} LoRA updates of rank {', '.join(str(r) for r in sorted({r for _, _, r in work}))} "
                 "are merged")
