// The only C++ of the CPU build. libsentencepiece-dev ships no protobuf header, so the few fields
// that matter are read and written by hand; numbers from sentencepiece_model.proto.
#include "sentencepiece_shim.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <cmath>
#include <new>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace sentencepiece {
namespace logging {
void SetMinLogLevel(int level) __attribute__((weak)); // exported, in no installed header
}
} // namespace sentencepiece

namespace {

// ModelProto
enum { MODEL_PIECES = 1, MODEL_TRAINER = 2, MODEL_NORMALIZER = 3, MODEL_DENORMALIZER = 5 };
// SentencePiece
enum { PIECE_TEXT = 1, PIECE_SCORE = 2, PIECE_TYPE = 3 };
// TrainerSpec
enum {
    TRAINER_MODEL_TYPE = 3,
    TRAINER_VOCAB_SIZE = 4,
    TRAINER_SPACE_SUFFIX = 24,
    TRAINER_BYTE_FALLBACK = 35,
    TRAINER_UNK = 40,
    TRAINER_BOS = 41,
    TRAINER_EOS = 42,
    TRAINER_PAD = 43
};
enum { MODEL_TYPE_UNIGRAM = 1, MODEL_TYPE_BPE = 2 };
// NormalizerSpec
enum {
    NORMALIZER_NAME = 1,
    NORMALIZER_CHARSMAP = 2,
    NORMALIZER_DUMMY_PREFIX = 3,
    NORMALIZER_REMOVE_SPACES = 4,
    NORMALIZER_ESCAPE_SPACES = 5
};

const char space_mark[] = "\xE2\x96\x81";

// The library's matcher of user-defined pieces and its normalizer look at this many nested
// prefixes and trust that there are no more.
const int max_nested_user = 64, max_nested_rules = 32;

void put_varint(std::string &s, uint64_t v) {
    for (; v >= 0x80; v >>= 7)
        s += static_cast<char>(v | 0x80);
    s += static_cast<char>(v);
}

void put_int(std::string &s, int field, int64_t v) {
    put_varint(s, static_cast<uint64_t>(field) << 3);
    put_varint(s, static_cast<uint64_t>(v));
}

void put_bytes(std::string &s, int field, const char *p, size_t n) {
    put_varint(s, static_cast<uint64_t>(field) << 3 | 2);
    put_varint(s, n);
    s.append(p, n);
}

void put_float(std::string &s, int field, float v) {
    put_varint(s, static_cast<uint64_t>(field) << 3 | 5);
    s.append(reinterpret_cast<const char *>(&v), 4);
}

// Reads one field after the other; `failed` when the bytes are not a protobuf message.
struct reader {
    const char *p, *end;
    bool failed = false;
    int field = 0, wire = 0;
    uint64_t value = 0; // varint, or the bits of a fixed one
    const char *data = nullptr;
    size_t n = 0;

    reader(const char *at, size_t size) : p(at), end(at + size) {}

    uint64_t varint() {
        uint64_t v = 0;
        for (int shift = 0; shift < 64; shift += 7) {
            if (p == end) break;
            unsigned char c = static_cast<unsigned char>(*p++);
            v |= static_cast<uint64_t>(c & 0x7F) << shift;
            if (c < 0x80) return v;
        }
        failed = true;
        return 0;
    }

    bool next() {
        if (failed || p == end) return false;
        uint64_t key = varint();
        field = static_cast<int>(key >> 3 & 0x1FFFFFFF);
        wire = static_cast<int>(key & 7);
        size_t left = static_cast<size_t>(end - p), fixed = wire == 1 ? 8 : 4;
        value = 0;
        if (failed) return false;
        if (wire == 0) {
            value = varint();
        } else if (wire == 1 || wire == 5) {
            failed = left < fixed;
            if (!failed) memcpy(&value, p, fixed), p += fixed;
        } else if (wire == 2) {
            uint64_t size = varint();
            failed = failed || size > static_cast<uint64_t>(end - p);
            if (!failed) data = p, n = static_cast<size_t>(size), p += n;
        } else {
            failed = true;
        }
        return !failed;
    }
};

// What decides how a model may be used.
struct traits {
    int model_type = MODEL_TYPE_UNIGRAM;
    bool byte_fallback = false, space_suffix = false;
    bool dummy_prefix = true, remove_spaces = true, escape_spaces = true;
    std::string charsmap;
    bool denormalizer = false;
};

} // namespace

struct sp_model {
    sentencepiece::SentencePieceProcessor processor;
    std::vector<sp_piece> pieces; // of a raw model
    std::string raw;              // what their texts point into
    bool dummy_prefix = false;
    bool own_prefix = false;       // the shim, not the library, adds the dummy prefix
    size_t overlap = 0;            // of the windows that long texts are encoded in; 0: whole texts
    bool lone_replacement = false; // no piece contains U+FFFD
};

namespace {

linnet_status no_memory(const char *path, linnet_error *err) {
    return fail(err, LINNET_ERR_MEMORY, "%s: no memory for the SentencePiece model", path);
}

const char replacement[] = "\xEF\xBF\xBD"; // U+FFFD, which bad bytes become

// Texts longer than this are encoded window by window: the library's queue then stays in the cache.
const size_t window_bytes = 4096;

// Decides whether windows give the same ids (see encode_windows), and how much they overlap. Unused
// pieces are taken apart by a table that belongs to the whole text, and a run of unknown characters
// without byte pieces is one token: then texts are encoded whole.
void plan_windows(sp_model *m, const sp_piece *pieces, size_t n, bool byte_fallback) {
    size_t longest = 0;
    m->overlap = 0;
    m->lone_replacement = true;
    for (size_t i = 0; i < n; i++) {
        if (pieces[i].type == TOKEN_UNUSED) return;
        if (pieces[i].type == TOKEN_NORMAL || pieces[i].type == TOKEN_USER)
            longest = std::max(longest, pieces[i].n);
        if (absl::string_view(pieces[i].text, pieces[i].n).find(replacement) !=
            absl::string_view::npos)
            m->lone_replacement = false;
    }
    if (byte_fallback && longest <= window_bytes / 8) m->overlap = 2 * longest + 64;
}

// The longest chain of user-defined pieces that start with one another.
int nested_user_pieces(const sp_piece *pieces, size_t n) {
    std::vector<std::string> user;
    for (size_t i = 0; i < n; i++)
        if (pieces[i].type == TOKEN_USER) user.emplace_back(pieces[i].text, pieces[i].n);
    std::sort(user.begin(), user.end());
    std::vector<const std::string *> chain;
    size_t most = 0;
    for (const std::string &s : user) {
        while (!chain.empty() && s.compare(0, chain.back()->size(), *chain.back()) != 0)
            chain.pop_back();
        chain.push_back(&s);
        most = std::max(most, chain.size());
    }
    return static_cast<int>(most);
}

linnet_status check_user_pieces(const sp_piece *pieces, size_t n, const char *path,
                                linnet_error *err) {
    for (size_t i = 0; i < n; i++)
        if (pieces[i].type == TOKEN_USER && memchr(pieces[i].text, 0, pieces[i].n))
            return fail(err, LINNET_ERR_FORMAT,
                        "%s: the user-defined token %zu contains a NUL byte", path, i);
    int nested = nested_user_pieces(pieces, n);
    if (nested > max_nested_user)
        return fail(err, LINNET_ERR_UNSUPPORTED,
                    "%s: %d user-defined tokens start with one another, at most %d can be matched",
                    path, nested, max_nested_user);
    return LINNET_OK;
}

linnet_status load(sp_model *m, const std::string &proto, const char *path, linnet_error *err) {
    // The library reports through a status; its log would only repeat that on stderr.
    if (sentencepiece::logging::SetMinLogLevel) sentencepiece::logging::SetMinLogLevel(3);
    const auto status = m->processor.LoadFromSerializedProto(proto);
    if (!status.ok())
        return fail(err, LINNET_ERR_FORMAT, "%s: the SentencePiece model is refused: %s", path,
                    status.error_message());
    return LINNET_OK;
}

// Two hexadecimal capitals of "<0xHH>", or -1.
int byte_of(const sp_piece &s) {
    static const char digits[] = "0123456789ABCDEF";
    if (s.n != 6 || memcmp(s.text, "<0x", 3) || s.text[5] != '>') return -1;
    const char *high = static_cast<const char *>(memchr(digits, s.text[3], 16));
    const char *low = static_cast<const char *>(memchr(digits, s.text[4], 16));
    return high && low ? static_cast<int>((high - digits) * 16 + (low - digits)) : -1;
}

linnet_status build(sp_model *m, const sp_piece *pieces, size_t n, bool dummy_prefix,
                    const char *path, linnet_error *err) {
    int byte_at[256], n_bytes = 0;
    int64_t unknown = -1;
    std::fill(byte_at, byte_at + 256, -1);
    std::unordered_map<std::string, size_t> last; // of the texts that can be matched
    for (size_t i = 0; i < n; i++) {
        const sp_piece &s = pieces[i];
        if (!std::isfinite(s.score))
            return fail(err, LINNET_ERR_FORMAT,
                        "%s: tokenizer.ggml.scores[%zu] must be finite, found %g", path, i,
                        static_cast<double>(s.score));
        if (s.type == TOKEN_UNKNOWN && unknown < 0) unknown = static_cast<int64_t>(i);
        if (s.type == TOKEN_NORMAL || s.type == TOKEN_USER || s.type == TOKEN_UNUSED)
            last[std::string(s.text, s.n)] = i;
        if (s.type != TOKEN_BYTE) continue;
        int byte = byte_of(s);
        if (byte < 0)
            return fail(err, LINNET_ERR_FORMAT,
                        "%s: the byte token %zu must be spelled <0x00> to <0xFF>, found \"%.*s\"",
                        path, i, static_cast<int>(min_size(s.n, 40)), s.text);
        n_bytes += byte_at[byte] < 0;
        byte_at[byte] = static_cast<int>(i);
    }
    if (n_bytes != 0 && n_bytes != 256)
        return fail(err, LINNET_ERR_FORMAT,
                    "%s: the vocabulary has %d byte tokens, expected 256 "
                    "or none",
                    path, n_bytes);
    if (unknown < 0)
        return fail(err, LINNET_ERR_FORMAT,
                    "%s: the vocabulary has no token of type unknown (2), expected one", path);
    linnet_status status = check_user_pieces(pieces, n, path, err);
    if (status) return status;

    std::string proto, part;
    for (size_t i = 0; i < n; i++) {
        const sp_piece &s = pieces[i];
        std::string name(s.text, s.n);
        int type = s.type;
        bool kept = type == TOKEN_BYTE ? byte_at[byte_of(s)] == static_cast<int>(i)
                    : type == TOKEN_NORMAL || type == TOKEN_USER || type == TOKEN_UNUSED
                        ? s.n > 0 && last[name] == i
                        : false;
        if (!kept) {
            // A name that no text can have: the library replaces bytes that are not UTF-8.
            name = "\xFF" + std::to_string(i);
            type = static_cast<int64_t>(i) == unknown ? TOKEN_UNKNOWN : TOKEN_CONTROL;
        }
        part.clear();
        put_bytes(part, PIECE_TEXT, name.data(), name.size());
        put_float(part, PIECE_SCORE, s.score);
        put_int(part, PIECE_TYPE, type);
        put_bytes(proto, MODEL_PIECES, part.data(), part.size());
    }
    part.clear();
    put_int(part, TRAINER_MODEL_TYPE, MODEL_TYPE_BPE);
    put_int(part, TRAINER_VOCAB_SIZE, static_cast<int64_t>(n));
    put_int(part, TRAINER_BYTE_FALLBACK, n_bytes == 256);
    put_int(part, TRAINER_UNK, unknown);
    put_int(part, TRAINER_BOS, -1);
    put_int(part, TRAINER_EOS, -1);
    put_int(part, TRAINER_PAD, -1);
    put_bytes(proto, MODEL_TRAINER, part.data(), part.size());
    part.clear();
    put_bytes(part, NORMALIZER_NAME, "identity", 8);
    put_int(part, NORMALIZER_DUMMY_PREFIX, 0);
    put_int(part, NORMALIZER_REMOVE_SPACES, 0);
    put_int(part, NORMALIZER_ESCAPE_SPACES, 1);
    put_bytes(proto, MODEL_NORMALIZER, part.data(), part.size());

    m->dummy_prefix = dummy_prefix;
    m->own_prefix = true;
    plan_windows(m, pieces, n, n_bytes == 256);
    return load(m, proto, path, err);
}

bool read_piece(const char *data, size_t n, sp_piece *out) {
    *out = sp_piece{"", 0, 0, TOKEN_NORMAL};
    reader r(data, n);
    while (r.next()) {
        if (r.field == PIECE_TEXT && r.wire == 2) out->text = r.data, out->n = r.n;
        if (r.field == PIECE_SCORE && r.wire == 5) memcpy(&out->score, &r.value, 4);
        if (r.field == PIECE_TYPE && r.wire == 0 && r.value >= 1 && r.value <= 6)
            out->type = static_cast<uint8_t>(r.value);
    }
    return !r.failed;
}

bool read_traits(const std::string &raw, std::vector<sp_piece> *pieces, traits *t) {
    reader r(raw.data(), raw.size());
    bool ok = true;
    while (ok && r.next()) {
        if (r.wire != 2) continue;
        reader in(r.data, r.n);
        if (r.field == MODEL_PIECES) {
            sp_piece s;
            ok = read_piece(r.data, r.n, &s);
            pieces->push_back(s);
        } else if (r.field == MODEL_TRAINER) {
            while (in.next()) {
                if (in.wire != 0) continue;
                if (in.field == TRAINER_MODEL_TYPE) t->model_type = static_cast<int>(in.value & 7);
                if (in.field == TRAINER_SPACE_SUFFIX) t->space_suffix = in.value != 0;
                if (in.field == TRAINER_BYTE_FALLBACK) t->byte_fallback = in.value != 0;
            }
        } else if (r.field == MODEL_NORMALIZER) {
            while (in.next()) {
                if (in.field == NORMALIZER_CHARSMAP && in.wire == 2)
                    t->charsmap.assign(in.data, in.n);
                if (in.wire != 0) continue;
                if (in.field == NORMALIZER_DUMMY_PREFIX) t->dummy_prefix = in.value != 0;
                if (in.field == NORMALIZER_REMOVE_SPACES) t->remove_spaces = in.value != 0;
                if (in.field == NORMALIZER_ESCAPE_SPACES) t->escape_spaces = in.value != 0;
            }
        } else if (r.field == MODEL_DENORMALIZER) {
            while (in.next())
                if (in.field == NORMALIZER_CHARSMAP && in.wire == 2 && in.n) t->denormalizer = true;
        }
        ok = ok && !in.failed;
    }
    return ok && !r.failed;
}

// The normalizer walks a double array (darts-clone) that comes with the model, without looking at
// its bounds; so they are looked at here, once, for everything a text can reach.
bool is_safe_charsmap(const std::string &map) {
    uint32_t trie_bytes;
    if (map.size() <= 4) return false;
    memcpy(&trie_bytes, map.data(), 4);
    if (trie_bytes % 4 || trie_bytes == 0 || trie_bytes > map.size() - 4) return false;
    const size_t n = trie_bytes / 4, n_text = map.size() - 4 - trie_bytes;
    std::vector<uint32_t> unit(n);
    memcpy(unit.data(), map.data() + 4, trie_bytes);
    auto offset = [&](size_t i) {
        return static_cast<size_t>(unit[i] >> 10) << ((unit[i] & (1u << 9)) >> 6);
    };
    std::vector<uint8_t> most(n);   // rules on the longest way to a unit, plus 1; 0: never met
    std::vector<size_t> todo = {0}; // units whose ways have grown; a cycle with a rule never ends
    most[0] = 1;
    while (!todo.empty()) {
        const size_t i = todo.back(), base = i ^ offset(i);
        todo.pop_back();
        if ((base | 0xFF) >= n) return false;
        int rules = most[i];
        if (i && unit[i] & 1u << 8) { // a rule ends here; its text is at this value
            if ((unit[base] & 0x7FFFFFFFu) >= n_text) return false;
            if (rules++ > max_nested_rules) return false;
        }
        for (size_t c = 0; c < 256; c++) {
            const size_t child = base ^ c;
            if ((unit[child] & (1u << 31 | 0xFF)) != c || most[child] >= rules) continue;
            most[child] = static_cast<uint8_t>(rules);
            todo.push_back(child);
        }
    }
    return true;
}

linnet_status open_raw(sp_model *m, const void *data, size_t n, const char *path,
                       linnet_error *err) {
    traits t;
    m->raw.assign(static_cast<const char *>(data), n);
    if (n == 0 || n > INT32_MAX - 64 || !read_traits(m->raw, &m->pieces, &t) || m->pieces.empty())
        return fail(err, LINNET_ERR_FORMAT,
                    "%s: linnet.tokenizer.sentencepiece_model is not a SentencePiece model", path);
    if (m->pieces.size() > VOCAB_MAX_TOKENS)
        return fail(err, LINNET_ERR_FORMAT,
                    "%s: the SentencePiece model has %zu pieces, at most %d are supported", path,
                    m->pieces.size(), VOCAB_MAX_TOKENS);
    if (t.denormalizer)
        return fail(err, LINNET_ERR_UNSUPPORTED,
                    "%s: the SentencePiece model has a denormalizer, which is not supported", path);
    if (!t.charsmap.empty() && !is_safe_charsmap(t.charsmap))
        return fail(err, LINNET_ERR_FORMAT,
                    "%s: the normalization rules of the SentencePiece model are damaged", path);
    linnet_status status = check_user_pieces(m->pieces.data(), m->pieces.size(), path, err);
    if (status) return status;
    m->dummy_prefix = t.dummy_prefix || t.remove_spaces;
    m->own_prefix = t.charsmap.empty() && !t.remove_spaces && !t.space_suffix && t.escape_spaces;
    std::string proto = m->raw;
    if (m->own_prefix) {
        // In protobuf a later field of the same number wins: the library adds no prefix, we do.
        std::string part;
        put_int(part, NORMALIZER_DUMMY_PREFIX, 0);
        put_bytes(proto, MODEL_NORMALIZER, part.data(), part.size());
        if (t.model_type == MODEL_TYPE_BPE)
            plan_windows(m, m->pieces.data(), m->pieces.size(), t.byte_fallback);
    }
    return load(m, proto, path, err);
}

linnet_status encode_part(const sp_model *m, absl::string_view text, std::vector<int> *ids,
                          linnet_error *err) {
    const auto status = m->processor.Encode(text, ids);
    if (status.ok()) return LINNET_OK;
    return fail(err, LINNET_ERR_ARGUMENT, "SentencePiece cannot encode the text: %s",
                status.error_message());
}

linnet_status push_all(id_list *out, const std::vector<int> &ids, size_t n, linnet_error *err) {
    linnet_status status = LINNET_OK;
    for (size_t i = 0; i < n && !status; i++)
        status = ids_push(out, ids[i], err);
    return status;
}

// The text as the normalizer sees it, but with plain spaces: U+2581 is one, a bad byte is U+FFFD.
// Then a piece is as long as its text.
std::string normal_text(const char *text, size_t n, bool prefix) {
    std::string out(prefix ? 1 : 0, ' ');
    out.reserve(n + 1);
    for (size_t i = 0, length; i < n; i += length) {
        bool good = utf8_step(text + i, n - i, &length) == 1;
        if (!good) {
            length = 1;
            out += replacement;
        } else if (length == 3 && !memcmp(text + i, space_mark, 3)) {
            out += ' ';
        } else {
            out.append(text + i, length);
        }
    }
    return out;
}

// Bytes of such a text that the piece of this id stands for.
size_t text_length(const sp_model *m, int id) {
    if (m->processor.IsByte(id)) return 1;
    const std::string &piece = m->processor.IdToPiece(id);
    size_t n = piece.size();
    for (size_t at = 0; (at = piece.find(space_mark, at)) != std::string::npos; at += 3)
        n -= 2;
    return n;
}

bool is_inside_character(char c) {
    return (static_cast<unsigned char>(c) & 0xC0) == 0x80;
}

// Encodes window after window, each from a token boundary of the one before, and accepts a boundary
// when both windows have the same token behind it. That is exact: BPE joins the best pair, then the
// leftmost, so what happens inside two neighbouring tokens is the same in every text in which no
// merge crosses their outer boundaries. Take a sequence of tokens in which every two neighbours,
// encoded alone, come out as themselves. The first merge of the whole text that crossed one of its
// boundaries would also happen when those two neighbours are encoded alone; so there is none, and
// the sequence is the encoding. Neighbours within one window have that property, and those at an
// accepted boundary are neighbours in the window before. User-defined pieces are found from the
// left, and are shorter than the overlap.
linnet_status encode_windows(const sp_model *m, const std::string &text, id_list *out,
                             linnet_error *err) {
    std::vector<int> ids, next;
    const absl::string_view all = text;
    size_t at = 0, size = window_bytes;
    linnet_status status = LINNET_OK;
    auto window = [&](size_t from, std::vector<int> *to) {
        size_t end = std::min(from + size, all.size());
        while (end < all.size() && is_inside_character(all[end]))
            end--;
        status = encode_part(m, all.substr(from, end - from), to, err);
        return end;
    };
    size_t end = window(at, &ids);
    while (!status) {
        if (end == all.size()) return push_all(out, ids, ids.size(), err);
        // The last boundary that is far enough from the end.
        size_t boundary = at, count = 0, k = 0;
        for (size_t p = at; k < ids.size(); k++) {
            if (p + m->overlap > end) break;
            if (!is_inside_character(all[p])) boundary = p, count = k;
            p += text_length(m, ids[k]);
        }
        size_t next_end = count ? window(boundary, &next) : 0;
        if (status) break;
        if (count && !next.empty() && next[0] == ids[count]) {
            status = push_all(out, ids, count, err);
            at = boundary;
            end = next_end;
            ids.swap(next);
            size = window_bytes;
        } else {
            size *= 4; // see further; in the end the whole rest
            end = window(at, &ids);
        }
    }
    return status;
}

// A long text. Where no piece contains U+FFFD, nothing joins across it: it always gives the same
// ids, which the library makes slowly, three for each bad byte, and what lies between is apart.
linnet_status encode_long(const sp_model *m, const std::string &text, id_list *out,
                          linnet_error *err) {
    std::vector<int> bad;
    if (!m->lone_replacement || text.find(replacement) == std::string::npos)
        return encode_windows(m, text, out, err);
    linnet_status status = encode_part(m, replacement, &bad, err);
    for (size_t at = 0; at < text.size() && !status;) {
        size_t end = std::min(text.find(replacement, at), text.size());
        if (end > at) status = encode_windows(m, text.substr(at, end - at), out, err);
        for (at = end; !status && text.compare(at, 3, replacement) == 0; at += 3)
            status = push_all(out, bad, bad.size(), err);
    }
    return status;
}

linnet_status encode(const sp_model *m, const char *text, size_t n, bool continues, id_list *out,
                     linnet_error *err) {
    if (!n) return LINNET_OK;
    bool prefix = m->own_prefix && m->dummy_prefix && !continues;
    if (m->overlap && n > window_bytes)
        return encode_long(m, normal_text(text, n, prefix), out, err);
    std::vector<int> ids;
    std::string prefixed;
    absl::string_view input(text, n);
    if (prefix) {
        prefixed.assign(1, ' ');
        prefixed.append(text, n);
        input = prefixed;
    }
    linnet_status status = encode_part(m, input, &ids, err);
    return status ? status : push_all(out, ids, ids.size(), err);
}

} // namespace

extern "C" {

linnet_status sp_new(sp_model **out, const sp_piece *pieces, size_t n, bool dummy_prefix,
                     const char *path, linnet_error *err) {
    *out = nullptr;
    sp_model *m = nullptr;
    linnet_status status;
    try {
        m = new sp_model;
        status = build(m, pieces, n, dummy_prefix, path, err);
    } catch (const std::bad_alloc &) {
        status = no_memory(path, err);
    } catch (const std::exception &e) {
        status = fail(err, LINNET_ERR_FORMAT, "%s: the SentencePiece model is refused: %s", path,
                      e.what());
    } catch (...) {
        status = fail(err, LINNET_ERR_FORMAT, "%s: the SentencePiece model is refused", path);
    }
    if (status)
        delete m;
    else
        *out = m;
    return status;
}

linnet_status sp_new_raw(sp_model **out, const void *data, size_t n, const char *path,
                         linnet_error *err) {
    *out = nullptr;
    sp_model *m = nullptr;
    linnet_status status;
    try {
        m = new sp_model;
        status = open_raw(m, data, n, path, err);
    } catch (const std::bad_alloc &) {
        status = no_memory(path, err);
    } catch (const std::exception &e) {
        status = fail(err, LINNET_ERR_FORMAT, "%s: the SentencePiece model is refused: %s", path,
                      e.what());
    } catch (...) {
        status = fail(err, LINNET_ERR_FORMAT, "%s: the SentencePiece model is refused", path);
    }
    if (status)
        delete m;
    else
        *out = m;
    return status;
}

void sp_free(sp_model *m) {
    delete m;
}

size_t sp_size(const sp_model *m) {
    return m->pieces.size();
}

sp_piece sp_get(const sp_model *m, size_t i) {
    return m->pieces[i];
}

int32_t sp_bos(const sp_model *m) {
    return m->processor.bos_id();
}

int32_t sp_eos(const sp_model *m) {
    return m->processor.eos_id();
}

bool sp_dummy_prefix(const sp_model *m) {
    return m->dummy_prefix;
}

linnet_status sp_encode(const sp_model *m, const char *text, size_t n, bool continues, id_list *out,
                        linnet_error *err) {
    try {
        return encode(m, text, n, continues, out, err);
    } catch (const std::bad_alloc &) {
        return fail(err, LINNET_ERR_MEMORY, "no memory to encode a text of %zu bytes", n);
    } catch (const std::exception &e) {
        return fail(err, LINNET_ERR_ARGUMENT, "SentencePiece cannot encode the text: %s", e.what());
    } catch (...) {
        return fail(err, LINNET_ERR_ARGUMENT, "SentencePiece cannot encode the text");
    }
}
}
