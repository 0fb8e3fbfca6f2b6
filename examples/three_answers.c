/* Three answers to one question. The question is computed once; each answer goes on from a fork of
 * its state, which shares its pages and copies the rest, and all three are decoded together: a step
 * reads the weights once for all.
 *     cc three_answers.c $(pkg-config --cflags --libs linnet) -o three_answers
 *     ./three_answers model.gguf "Name a bird." */
#include <linnet.h>
#include <stdio.h>
#include <stdlib.h>

enum { ANSWERS = 3, IDS = 32768, MOST = 100 };

typedef struct {
    linnet_session *session;
    linnet_text *text; /* turns tokens into whole characters */
    FILE *out;
    char *shown;
    size_t bytes;
    bool over;
} answer;

static void show(answer *a, int32_t token) {
    size_t n;
    const char *text = linnet_text_push(a->text, token, &n, NULL, NULL);
    fwrite(text, 1, n, a->out);
}

int main(int argc, char **argv) {
    static int32_t ids[IDS];
    static answer all[ANSWERS];
    linnet_error err;
    linnet_model *model;
    linnet_session *question;
    size_t n;
    if (argc != 3) return fprintf(stderr, "usage: three_answers MODEL.gguf QUESTION\n"), 2;
    linnet_message message = {"user", argv[2]};
    if (linnet_model_open(&model, argv[1], NULL, &err) ||
        linnet_session_new(&question, model, NULL, &err) ||
        linnet_chat_tokenize(model, NULL, &message, 1, true, ids, IDS, &n, &err) ||
        linnet_feed(question, ids, n < IDS ? n : IDS, LINNET_LOGITS_LAST, &err))
        goto failed; /* a longer question is cut */
    for (int i = 0; i < ANSWERS; i++) {
        if (linnet_session_fork(question, &all[i].session, &err) ||
            linnet_text_new(&all[i].text, question, NULL, 0, &err))
            goto failed;
        all[i].out = open_memstream(&all[i].shown, &all[i].bytes);
    }
    for (int step = 0; step < MOST; step++) {
        linnet_item items[ANSWERS] = {{0}};
        int32_t token[ANSWERS];
        size_t n_items = 0;
        for (int i = 0; i < ANSWERS; i++) {
            linnet_sampling sampling = LINNET_SAMPLING_DEFAULT;
            sampling.temperature = 0.8f;
            sampling.seed = (uint64_t)i + 1;
            if (all[i].over) continue;
            if (linnet_sample(all[i].session, &sampling, &token[i], &err)) goto failed;
            if ((all[i].over = linnet_is_end(model, token[i]))) continue;
            items[n_items++] = (linnet_item){.session = all[i].session,
                                             .tokens = &token[i],
                                             .n_tokens = 1,
                                             .want = LINNET_LOGITS_LAST,
                                             .sampled = true};
            show(&all[i], token[i]);
        }
        if (!n_items) break;
        if (linnet_forward(items, n_items, NULL, NULL, &err)) goto failed;
    }
    for (int i = 0; i < ANSWERS; i++) {
        show(&all[i], -1);
        fclose(all[i].out);
        printf("%d: %s\n", i + 1, all[i].shown);
        free(all[i].shown);
        linnet_text_free(all[i].text);
        linnet_session_free(all[i].session);
    }
    linnet_session_free(question);
    linnet_model_close(model);
    return 0;
failed:
    fprintf(stderr, "three_answers: %s\n", err.text);
    return 1;
}
