#include "describe.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "../linnet_tools.h"
#include "files.h"
#include "flags.h"

size_t count_dtypes(const linnet_model *model, dtype_count counts[MAX_DTYPES]) {
    size_t n = 0;
    for (size_t i = 0; i < linnet_model_get_info(model)->n_tensors; i++) {
        const char *dtype;
        uint64_t dims[4], bytes;
        linnet_model_tensor(model, i, &dtype, dims, &bytes);
        size_t k = 0;
        while (k < n && strcmp(counts[k].name, dtype))
            k++;
        if (k == MAX_DTYPES) continue;
        if (k == n) counts[n++] = (dtype_count){.name = dtype};
        counts[k].tensors++;
        counts[k].bytes += bytes;
    }
    return n;
}

/* The dtype of most bytes. */
static const char *main_dtype(const linnet_model *model) {
    dtype_count counts[MAX_DTYPES];
    size_t n = count_dtypes(model, counts), most = 0;
    for (size_t i = 1; i < n; i++)
        if (counts[i].bytes > counts[most].bytes) most = i;
    return n ? counts[most].name : "";
}

const char *kv_name(linnet_kv_type kv) {
    return kv == LINNET_KV_F32 ? "f32" : kv == LINNET_KV_Q8_0 ? "q8_0" : "f16";
}

json_t *mixers_json(const linnet_model *model) {
    json_t *mixers = json_array();
    for (int i = 0; i < linnet_model_get_info(model)->n_layers; i++)
        json_array_append_new(mixers, json_text(linnet_model_mixer(model, i, NULL)));
    return mixers;
}

json_t *windows_json(const linnet_model *model) {
    json_t *windows = json_array();
    for (int i = 0; i < linnet_model_get_info(model)->n_layers; i++) {
        int window = 0;
        linnet_model_mixer(model, i, &window);
        json_array_append_new(windows, json_integer(window));
    }
    return windows;
}

void set_model_keys(json_t *row, const linnet_model *model, const char *path, const char *hash) {
    const linnet_model_info *info = linnet_model_get_info(model);
    char type[128];
    dtype_count dtypes[MAX_DTYPES];
    uint64_t tensor_bytes = 0;
    for (size_t i = count_dtypes(model, dtypes); i-- > 0;)
        tensor_bytes += dtypes[i].bytes;
    snprintf(type, sizeof type, "%s %.0fM %s", info->architecture, (double)info->n_params / 1e6,
             main_dtype(model));
    json_object_set_new(row, "model_filename", json_text(path));
    json_object_set_new(row, "model_hash", json_string(hash));
    json_object_set_new(row, "model_type", json_text(type));
    json_set_int(row, "model_size", tensor_bytes);
    json_set_int(row, "model_n_params", info->n_params);
}

static bool keeps_kv(const char *mixer) {
    return !strcmp(mixer, "softmax") || !strcmp(mixer, "lolcats");
}

/* What the state is kept in: "f16" (keys and values alone), "f32" (no keys and values), "f16+f32".
 */
static void state_dtype(const linnet_model *model, linnet_kv_type kv, char *out, size_t size) {
    bool any_kv = false, any_fixed = false;
    for (int i = 0; i < linnet_model_get_info(model)->n_layers; i++) {
        const char *mixer = linnet_model_mixer(model, i, NULL);
        any_kv = any_kv || keeps_kv(mixer);
        any_fixed = any_fixed || strcmp(mixer, "softmax");
    }
    bool both = any_kv && any_fixed && kv != LINNET_KV_F32;
    snprintf(out, size, "%s%s", any_kv ? kv_name(kv) : "f32", both ? "+f32" : "");
}

void set_precision_keys(json_t *row, const linnet_model *model, linnet_kv_type kv,
                        const char *activations) {
    char text[32];
    state_dtype(model, kv, text, sizeof text);
    json_object_set_new(row, "dtype_state", json_string(text));
    json_object_set_new(row, "kv", json_string(kv_name(kv)));
    json_object_set_new(row, "activations", json_string(activations));
    json_object_set_new(row, "architecture", json_text(linnet_model_get_info(model)->architecture));
    json_object_set_new(row, "mixers", mixers_json(model));
    json_object_set_new(row, "windows", windows_json(model));
}

void time_now(char out[TIME_TEXT]) {
    time_t seconds = time(NULL);
    struct tm utc;
    strftime(out, TIME_TEXT, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&seconds, &utc));
}

/* ---- state -------------------------------------------------------------------------------- */

/* A mixer's state as the papers count it, from the file's metadata alone. */
typedef struct {
    const linnet_model *model;
    char arch[64];
} source;

static bool find(const source *s, const char *key, char *value, size_t size) {
    uint64_t n = linnet_model_get_info(s->model)->n_metadata;
    for (size_t i = 0; i < n; i++)
        if (!strcmp(linnet_model_metadata(s->model, i, value, size), key)) return true;
    return false;
}

/* ARCH.SUFFIX as a whole number; `absent` where there is none. */
static uint64_t number(const source *s, const char *suffix, uint64_t absent) {
    char key[128], value[32];
    uint64_t v;
    snprintf(key, sizeof key, "%s.%s", s->arch, suffix);
    return find(s, key, value, sizeof value) && parse_u64(value, &v) ? v : absent;
}

/* G K V: value heads, key and value dimensions. */
static uint64_t delta_elements(const source *s) {
    uint64_t inner = number(s, "ssm.inner_size", 0); /* G V, of Qwen's hybrids */
    if (inner) return inner * number(s, "ssm.state_size", 0);
    uint64_t heads = number(s, "delta.head_count", 0);
    return number(s, "delta.value_head_count", heads) * number(s, "delta.key_length", 0) *
           number(s, "delta.value_length", 0);
}

/* H (V + 1) F, the pairs of features counted once. */
static uint64_t taylor_elements(const source *s) {
    uint64_t f = number(s, "based.feature_length", 0);
    return number(s, "based.head_count", 0) * (number(s, "based.value_length", 0) + 1) *
           (1 + f + f * (f + 1) / 2);
}

/* H (D + 1) F; softmax_dim and exp_dim have features of -u too unless full_space is off. */
static uint64_t feature_elements(const source *s) {
    const linnet_model_info *info = linnet_model_get_info(s->model);
    char map[32] = "", full[8] = "true";
    find(s, "linnet.lolcats.feature_map", map, sizeof map);
    find(s, "linnet.lolcats.full_space", full, sizeof full);
    bool both = strstr(map, "_dim") && strcmp(full, "false");
    return (uint64_t)info->n_heads * (uint64_t)(info->head_dim + 1) *
           number(s, "lolcats.feature_dim", 0) * (both ? 2 : 1);
}

/* Float32 numbers of a layer's fixed-size state. */
static uint64_t fixed_elements(const source *s, const char *mixer) {
    if (strstr(mixer, "delta_net")) return delta_elements(s);
    if (!strcmp(mixer, "based_taylor")) return taylor_elements(s);
    if (!strcmp(mixer, "lolcats") || !strcmp(mixer, "hedgehog")) return feature_elements(s);
    if (!strcmp(mixer, "short_conv"))
        return number(s, "shortconv.l_cache", 0) * number(s, "shortconv.inner_length", 0);
    return 0;
}

uint64_t state_bytes_by_formula(const linnet_model *model, linnet_kv_type kv, uint64_t n_tokens) {
    const linnet_model_info *info = linnet_model_get_info(model);
    source s = {.model = model};
    snprintf(s.arch, sizeof s.arch, "%s", info->architecture);
    char sinks[32];
    uint64_t n_sink = 0, bytes = 0;
    if (find(&s, "linnet.attention.n_sink", sinks, sizeof sinks)) parse_u64(sinks, &n_sink);
    uint64_t token = 2 * (uint64_t)info->n_kv_heads * (uint64_t)info->head_dim; /* numbers */
    token = kv == LINNET_KV_F32 ? 4 * token : kv == LINNET_KV_Q8_0 ? token / 32 * 34 : 2 * token;
    for (int i = 0; i < info->n_layers; i++) {
        int window;
        const char *mixer = linnet_model_mixer(model, i, &window);
        uint64_t seen = window ? (uint64_t)window + n_sink : n_tokens;
        if (keeps_kv(mixer)) bytes += token * (seen < n_tokens ? seen : n_tokens);
        bytes += 4 * fixed_elements(&s, mixer);
    }
    return bytes;
}
