/* linnet info: what a model file holds, for people and as JSON. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "../linnet_tools.h"
#include "commands.h"
#include "describe.h"
#include "engine.h"

static const char about[] =
    "Shows what a model file holds: architecture, the mixer of every layer, dtypes, sizes, bytes "
    "of state by depth, tokenizer, chat template and metadata. Reads no weights unless --check is "
    "given. A file that holds only a vocabulary works too.\n"
    "Memory while running is at most: weights + state + activations of one prefill piece + 10 MB.";

static const uint64_t depths[] = {0, 1024, 8192, 32768};
enum { N_DEPTHS = sizeof depths / sizeof *depths };

typedef struct {
    engine e;
    const char *model;
    bool json, check;
    const char *check_result; /* NULL: not checked; "ok", or the error's sentence */
} info_options;

/* ---- for people --------------------------------------------------------------------------- */

static void print_name(const char *name) {
    printf("%-16s ", name);
}

static void print_text(const char *name, const char *text) {
    print_name(name);
    print_escaped(*text ? text : "-");
    printf("\n");
}

static void print_bytes(const char *name, uint64_t bytes) {
    char text[32];
    human_bytes(text, sizeof text, bytes);
    print_name(name);
    printf("%s", text);
    if (bytes >= 1000) printf(" (%" PRIu64 ")", bytes);
}

/* Layers with the same mixer and window, next to each other, share a line. */
static void print_mixers(const linnet_model *model, int n_layers) {
    for (int first = 0, last; first < n_layers; first = last + 1) {
        int window, next;
        const char *mixer = linnet_model_mixer(model, first, &window);
        for (last = first; last + 1 < n_layers; last++) {
            const char *other = linnet_model_mixer(model, last + 1, &next);
            if (strcmp(mixer, other) || window != next) break;
        }
        char layers[48];
        snprintf(layers, sizeof layers, first == last ? "  layer %d" : "  layers %d-%d", first,
                 last);
        print_name(layers);
        if (window)
            printf("%s, window %d\n", mixer, window);
        else
            printf("%s\n", mixer);
    }
}

static void print_for_people(const info_options *o, const linnet_model *model) {
    const linnet_model_info *info = linnet_model_get_info(model);
    char text[160];
    print_text("file", o->model);
    print_text("name", info->name);
    print_text("architecture", info->architecture);
    if (info->n_layers) {
        print_name("shape");
        printf("%d layers, %d wide, %d heads (%d KV) of %d, feed-forward %d\n", info->n_layers,
               info->n_embd, info->n_heads, info->n_kv_heads, info->head_dim, info->n_ff);
        print_name("parameters");
        printf("%.1f M (%" PRIu64 ")\n", (double)info->n_params / 1e6, info->n_params);
        print_name("context");
        printf("%d tokens%s\n", info->n_ctx_train,
               info->ctx_is_limit ? " (learned positions: a hard limit)" : "");
        printf("mixers\n");
        print_mixers(model, info->n_layers);
    }
    print_bytes("file size", info->file_bytes);
    printf("\n");
    if (info->n_tensors) {
        dtype_count counts[MAX_DTYPES];
        size_t n = count_dtypes(model, counts);
        printf("dtypes\n");
        for (size_t i = 0; i < n; i++) {
            snprintf(text, sizeof text, "  %s", counts[i].name);
            print_bytes(text, counts[i].bytes);
            printf(", %" PRIu64 " tensor%s\n", counts[i].tensors,
                   counts[i].tensors == 1 ? "" : "s");
        }
    }
    if (info->n_layers) {
        print_bytes("weights", info->weight_bytes);
        printf("\n");
        print_bytes("activations", linnet_model_activation_bytes(model));
        printf("\n");
        linnet_kv_type kv = engine_kv(&o->e);
        printf("state            KV kept as %s\n", kv_name(kv));
        for (int i = 0; i < N_DEPTHS; i++) {
            snprintf(text, sizeof text, "  at %" PRIu64, depths[i]);
            print_bytes(text, linnet_model_state_bytes(model, kv, depths[i]));
            printf("\n");
        }
    }
    print_text("tokenizer", info->tokenizer);
    if (info->n_vocab) {
        print_name("vocabulary");
        printf("%d tokens, BOS %d%s, EOS %d\n", info->n_vocab, info->bos,
               info->add_bos ? " (added)" : " (not added)", info->eos);
    }
    print_text("chat template", info->chat_template);
    if (o->check_result)
        print_text("check",
                   !strcmp(o->check_result, "ok") ? "every weight is finite" : o->check_result);
    printf("metadata         %" PRIu64 " entries\n", info->n_metadata);
    for (size_t i = 0; i < info->n_metadata; i++) {
        const char *key = linnet_model_metadata(model, i, text, sizeof text);
        printf("  ");
        print_escaped(key);
        printf(" = ");
        print_escaped(text);
        printf("\n");
    }
}

/* ---- as JSON ------------------------------------------------------------------------------ */

static json_t *as_json(const info_options *o, const linnet_model *model) {
    const linnet_model_info *info = linnet_model_get_info(model);
    linnet_kv_type kv = engine_kv(&o->e);
    json_t *root = json_object();
    json_object_set_new(root, "file", json_text(o->model));
    json_object_set_new(root, "name", json_text(info->name));
    json_object_set_new(root, "architecture", json_text(info->architecture));
    json_object_set_new(root, "mixers", mixers_json(model));
    json_object_set_new(root, "windows", windows_json(model));

    dtype_count counts[MAX_DTYPES];
    size_t n = count_dtypes(model, counts);
    json_t *dtypes = json_object();
    for (size_t i = 0; i < n; i++)
        json_set_int(dtypes, counts[i].name, counts[i].tensors);
    json_object_set_new(root, "dtypes", dtypes);

    json_set_int(root, "params", info->n_params);
    json_set_int(root, "file_bytes", info->file_bytes);
    json_set_int(root, "weight_bytes", info->weight_bytes);
    json_set_int(root, "activation_bytes",
                 info->n_layers ? linnet_model_activation_bytes(model) : 0);
    json_t *state = json_object();
    for (int i = 0; i < N_DEPTHS; i++) {
        char depth[24];
        snprintf(depth, sizeof depth, "%" PRIu64, depths[i]);
        json_set_int(state, depth,
                     info->n_layers ? linnet_model_state_bytes(model, kv, depths[i]) : 0);
    }
    json_object_set_new(root, "state_bytes", state);
    json_object_set_new(root, "kv", json_string(kv_name(kv)));
    json_object_set_new(root, "activations", json_string(o->e.activations));

    json_set_int(root, "context", (uint64_t)info->n_ctx_train);
    json_object_set_new(root, "context_is_limit", json_boolean(info->ctx_is_limit));
    json_set_int(root, "layers", (uint64_t)info->n_layers);
    json_set_int(root, "embedding", (uint64_t)info->n_embd);
    json_set_int(root, "heads", (uint64_t)info->n_heads);
    json_set_int(root, "kv_heads", (uint64_t)info->n_kv_heads);
    json_set_int(root, "head_dim", (uint64_t)info->head_dim);
    json_set_int(root, "feed_forward", (uint64_t)info->n_ff);
    json_set_int(root, "rows", (uint64_t)info->n_rows);

    json_object_set_new(root, "tokenizer", json_text(info->tokenizer));
    json_set_int(root, "vocabulary", (uint64_t)info->n_vocab);
    json_object_set_new(root, "bos", info->bos < 0 ? json_null() : json_integer(info->bos));
    json_object_set_new(root, "eos", info->eos < 0 ? json_null() : json_integer(info->eos));
    json_object_set_new(root, "add_bos", json_boolean(info->add_bos));
    json_object_set_new(root, "template", json_text(info->chat_template));
    if (o->check_result) json_object_set_new(root, "check", json_text(o->check_result));

    json_set_int(root, "tensors", info->n_tensors);
    json_t *metadata = json_object();
    for (size_t i = 0; i < info->n_metadata; i++) {
        char value[4096];
        const char *key = linnet_model_metadata(model, i, value, sizeof value);
        json_t *safe_key = json_text(key);
        json_object_set_new(metadata, json_string_value(safe_key), json_text(value));
        json_decref(safe_key);
    }
    json_object_set_new(root, "metadata", metadata);
    return root;
}

static int print_json(const info_options *o, const linnet_model *model) {
    json_t *root = as_json(o, model);
    char *text = json_dumps(root, JSON_INDENT(2));
    json_decref(root);
    if (!text) return failed("out of memory");
    put(text, strlen(text));
    put("\n", 1);
    free(text);
    return EXIT_WORKED;
}

int command_info(int argc, char **argv) {
    info_options o = {0};
    flag_table f;
    flags_begin(&f, "info", "MODEL [--json] [--check]", about);
    flags_argument(&f, "MODEL", &o.model);
    flags_title(&f, "Output");
    flag_switch(&f, "--json", &o.json, "one JSON object");
    flag_switch(&f, "--check", &o.check,
                "read every weight; NaN or infinity is an error that names the tensor");
    precision_flags(&f, &o.e, "auto");
    engine_flags(&f, &o.e);

    int code = flags_parse(&f, argc, argv);
    if (code != KEEP_GOING) return code;
    linnet_model *model = NULL;
    linnet_error err;
    catch_interrupts(false);
    if ((code = engine_open(&o.e, o.model, true, &model))) return code;
    if (o.check) {
        bool bad = linnet_model_check(model, &err) != LINNET_OK;
        if (bad) code = failed_with(&err);
        o.check_result = bad ? err.text : "ok";
    }
    if (!o.json)
        print_for_people(&o, model);
    else if (print_json(&o, model))
        code = EXIT_FAILED;
    linnet_model_close(model);
    int out = finish_stdout();
    return code ? code : out;
}
