/* The format of saved states (docs/state.md), for the two files that write and read it. */
#ifndef STATE_H
#define STATE_H

#include "../model.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers are saved as they lie");

enum { STATE_VERSION = 1, NAME_BYTES = 32, HAS_LOGITS = 1 };

#define STATE_MAGIC "LINNETST"

typedef struct {
    char magic[8];
    uint32_t version, flags;
    uint64_t bytes;       /* of all, the checksum included */
    uint64_t identity[2]; /* of the model: metadata, weights */
    uint32_t n_layers, n_rows;
    uint32_t kv_kind, activations; /* kv_kind: 0 f16, 1 f32, 2 q8_0 */
    uint32_t kv_heads, head_dim;
    uint32_t window_mode, reserved;
    uint64_t n_tokens, n_pages;
} state_head;
_Static_assert(sizeof(state_head) == 88, "no padding");

typedef struct {
    char mixer[NAME_BYTES]; /* padded with zeros */
    uint32_t window, keeps_kv;
    uint64_t state_bytes;
} state_layer;
_Static_assert(sizeof(state_layer) == 48, "no padding");

size_t state_layer_bytes(const linnet_model *m, int layer); /* of fixed size */
state_layer state_describe_layer(const linnet_model *m, int layer);
size_t state_pages(const linnet_model *m, size_t n_tokens);
/* What a state has of a page. */
enum {
    PAGE_NONE,  /* nothing: it has left every window */
    PAGE_WHOLE, /* all layers that keep keys and values */
    PAGE_ALL,   /* those without a window: it has left the others */
    PAGE_HAVES
};
bool state_holds(const kv_table *t, size_t page);
uint8_t state_has(const linnet_session *x, size_t page);
size_t state_filled(size_t page, size_t n_tokens); /* its positions that hold tokens */
size_t state_most_packed(const kv_layout *l);      /* that a head takes of a position */
bool state_page_has(uint8_t has, kv_table_id table);
/* Bytes of what a state has of a page's tokens. */
uint64_t state_page_bytes(const kv_layout *l, uint8_t has, size_t page, size_t n_tokens);
/* Everything but the pages. */
uint64_t state_fixed_bytes(const linnet_model *m, size_t n_tokens, bool has_logits);
/* Room for what the host cannot reach in place, a page of each table or all layers' state; *out
 * NULL: needs none. */
linnet_status state_transfer_buffer(const linnet_session *x, uint8_t **out, linnet_error *err);

/* What the beginning of a file says. */
typedef struct {
    uint64_t bytes;
    kv_kind kind;
    linnet_window_mode mode;
    linnet_activations act;
    bool has_logits;
    int32_t *tokens; /* malloc'ed */
    size_t n_tokens;
} state_summary;
/* Reads no more than that. An error for anything that is no state of this model. */
linnet_status state_peek(linnet_model *m, const char *path, state_summary *out, linnet_error *err);

#endif
