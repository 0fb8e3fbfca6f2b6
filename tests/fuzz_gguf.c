/* libFuzzer target: the GGUF reader over arbitrary bytes, then everything that an accepted file
 * offers. */
#include "../weights/gguf.h"

#include <stdlib.h>

static volatile unsigned sink;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    gguf *g;
    linnet_error err;
    linnet_status status = gguf_open_memory(&g, data, size, "fuzz", &err);
    if (status) {
        if (g || err.code != status || !err.text[0]) abort();
        return 0;
    }
    char text[80];
    for (size_t i = 0; i < gguf_n_kv(g); i++) {
        const gguf_kv *kv = gguf_kv_at(g, i), *array;
        const char *key = kv->key.p;
        int64_t integer;
        double number;
        bool yes;
        gguf_str s;
        if (gguf_find(g, key) != kv) abort();
        for (size_t n = 0; n <= sizeof text; n += 16)
            gguf_kv_text(kv, text, n);
        gguf_get_int(g, key, true, -5, 5, &integer, &err);
        gguf_get_float(g, key, true, &number, &err);
        gguf_get_bool(g, key, true, &yes, &err);
        if (gguf_get_str(g, key, true, &s, &err) == LINNET_OK)
            for (size_t k = 0; k < s.n; k++)
                sink += (unsigned char)s.p[k];
        if (gguf_get_array(g, key, kv->element, true, &array, &err) == LINNET_OK) {
            size_t cursor = 0;
            for (uint64_t k = 0; k < kv->count; k++) {
                s = gguf_next_str(kv, &cursor);
                for (size_t m = 0; m < s.n; m++)
                    sink += (unsigned char)s.p[m];
                sink += (unsigned)gguf_int_at(kv, kv->element == GGUF_STRING ? 0 : k);
                if (kv->element != GGUF_STRING) sink += gguf_float_at(kv, k) > 0;
            }
            if (gguf_next_str(kv, &cursor).p) abort();
        }
    }
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        const void *p;
        if (gguf_find_tensor(g, t->name) != t) abort();
        if (gguf_read(g, t, 0, (size_t)t->bytes, NULL, &p, &err)) abort();
        for (uint64_t k = 0; k < t->bytes; k++)
            sink += ((const uint8_t *)p)[k];
        const dtype_info *info = dtype_get(t->type);
        if (info && t->bytes) {
            float x[256];
            dequantize_row((dtype)t->type, p, x, info->block);
            sink += x[0] > 0;
        }
        gguf_release(g, t, 0, t->bytes);
    }
    gguf_close(g);
    return 0;
}
