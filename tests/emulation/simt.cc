/* Threads as fibers: the block that runs, its barriers, warps and shared memory. One host thread
 * runs all launches of all devices (device.cc holds a lock), so plain globals say who runs. */
#include "scheduler.h"

#include <sys/mman.h>

#include <cstdarg>
#include <cstdlib>
#include <map>
#include <memory>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#define ASAN 1
#elif defined __has_feature
#if __has_feature(address_sanitizer)
#define ASAN 1
#endif
#endif
#ifdef ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

/* ---- Fibers ------------------------------------------------------------------------------ */
/* simt_switch(&mine, other) keeps the callee-saved registers on the stack, its pointer in `mine`,
 * and goes on where `other` left. */
#if defined __x86_64__
extern "C" void simt_switch(void **mine, void *other);
__asm__(".text\n"
        ".globl simt_switch\n"
        ".hidden simt_switch\n"
        ".type simt_switch, @function\n"
        "simt_switch:\n"
        "    push %rbp\n    push %rbx\n    push %r12\n    push %r13\n    push %r14\n    push %r15\n"
        "    mov %rsp, (%rdi)\n"
        "    mov %rsi, %rsp\n"
        "    pop %r15\n    pop %r14\n    pop %r13\n    pop %r12\n    pop %rbx\n    pop %rbp\n"
        "    ret\n"
        ".size simt_switch, . - simt_switch\n");
/* At a function's first instruction the stack is 8 bytes off a multiple of 16. */
enum { SAVED_WORDS = 7, RETURN_WORD = 6, SPARE_WORDS = 3 };
#elif defined __aarch64__
extern "C" void simt_switch(void **mine, void *other);
__asm__(".text\n"
        ".globl simt_switch\n"
        ".hidden simt_switch\n"
        ".type simt_switch, %function\n"
        "simt_switch:\n"
        "    sub sp, sp, #160\n"
        "    stp x19, x20, [sp, #0]\n    stp x21, x22, [sp, #16]\n    stp x23, x24, [sp, #32]\n"
        "    stp x25, x26, [sp, #48]\n    stp x27, x28, [sp, #64]\n    stp x29, x30, [sp, #80]\n"
        "    stp d8, d9, [sp, #96]\n    stp d10, d11, [sp, #112]\n    stp d12, d13, [sp, #128]\n"
        "    stp d14, d15, [sp, #144]\n"
        "    mov x9, sp\n    str x9, [x0]\n    mov sp, x1\n"
        "    ldp x19, x20, [sp, #0]\n    ldp x21, x22, [sp, #16]\n    ldp x23, x24, [sp, #32]\n"
        "    ldp x25, x26, [sp, #48]\n    ldp x27, x28, [sp, #64]\n    ldp x29, x30, [sp, #80]\n"
        "    ldp d8, d9, [sp, #96]\n    ldp d10, d11, [sp, #112]\n    ldp d12, d13, [sp, #128]\n"
        "    ldp d14, d15, [sp, #144]\n"
        "    add sp, sp, #160\n"
        "    ret\n"
        ".size simt_switch, . - simt_switch\n");
enum { SAVED_WORDS = 20, RETURN_WORD = 11, SPARE_WORDS = 2 };
#else
#error "the emulation of kernels_cuda knows x86-64 and 64-bit ARM"
#endif

namespace {

enum { STACK_BYTES = 256 << 10, GUARD_BYTES = 64 << 10 };
enum state { READY, AT_BARRIER, AT_EXCHANGE, AT_PREVIOUS, DONE };

struct block;

struct copy {
    void *to;
    const void *from;
    size_t bytes;
    simt_site site;
};

/* A thread: the fiber stays with it from one block to the next. */
struct thread {
    simt_place place;
    state at;
    simt_site site;
    unsigned mask; /* of the exchange it waits in */
    block *in;
    unsigned index;
    std::vector<std::vector<copy>> committed;
    std::vector<copy> copies; /* not yet committed */
    char *stack;
    void *sp;
    void *fake_stack; /* AddressSanitizer's */
};

/* Lanes that meet; two sets of slots, since a lane can be one exchange ahead of another. */
struct meeting {
    unsigned mask, arrived, phase;
    simt_site site;
    unsigned char slots[2][32 * 32];
};

struct warp {
    unsigned ready;         /* lanes that can run: how many */
    unsigned done, waiting; /* lanes that have returned, that wait in an exchange: which */
    std::vector<std::unique_ptr<meeting>> meetings;
};

struct shared_array {
    void *bytes;
    size_t size;
    uint64_t used_by; /* the block's number, when it was last filled */
};

struct block {
    std::vector<thread *> threads;
    std::vector<warp> warps;
    unsigned n_ready, n_done, n_arrived;
    thread *first_arrived; /* at the barrier */
    uint64_t number;
    uint64_t releases; /* of the barrier: the scheduler starts its order anew */
    simt_votes votes, result;
    std::map<const void *, shared_array> arrays;
    void *dynamic;
    size_t static_bytes;
    bool waited;
};

struct running {
    const simt_grid *grid;
    const std::function<bool()> *previous;
    bool previous_ran;
    void *scheduler_sp;
    bool failed;
    std::string failure;
};

running *now;
thread *self;
/* Never destroyed: what they hold is no leak at the end of the process. */
std::vector<thread *> &idle_threads = *new std::vector<thread *>;
std::vector<block *> &idle_blocks = *new std::vector<block *>;
uint64_t n_blocks;

simt_order order = SIMT_FORWARD;
uint64_t random_state;

uint64_t next_random() {
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* 0 ... n - 1 in the order that is set. */
void draw_order(std::vector<unsigned> &to, unsigned n) {
    to.resize(n);
    for (unsigned i = 0; i < n; i++)
        to[i] = order == SIMT_REVERSE ? n - 1 - i : i;
    for (unsigned i = n; order == SIMT_SHUFFLED && i > 1; i--)
        std::swap(to[i - 1], to[next_random() % i]);
}

#ifdef ASAN
const void *scheduler_stack;
size_t scheduler_stack_bytes;
#endif

/* From the thread that runs to the scheduler; returns when it is resumed. */
void leave(bool for_good = false) {
    thread *t = self;
#ifdef ASAN
    __sanitizer_start_switch_fiber(for_good ? nullptr : &t->fake_stack, scheduler_stack,
                                   scheduler_stack_bytes);
#endif
    simt_switch(&t->sp, now->scheduler_sp);
#ifdef ASAN
    __sanitizer_finish_switch_fiber(t->fake_stack, &scheduler_stack, &scheduler_stack_bytes);
#endif
    (void)for_good;
}

void finished();

void entry() {
#ifdef ASAN
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
    for (;;) {
        now->grid->body();
        finished();
        leave();
    }
}

void start_fiber(thread *t) {
#ifdef ASAN
    __asan_unpoison_memory_region(t->stack, STACK_BYTES);
    t->fake_stack = nullptr;
#endif
    void **top = reinterpret_cast<void **>(t->stack + STACK_BYTES) - SPARE_WORDS - SAVED_WORDS;
    memset(top, 0, (SAVED_WORDS + SPARE_WORDS) * sizeof *top);
    top[RETURN_WORD] = reinterpret_cast<void *>(entry);
    t->sp = top;
}

thread *take_thread() {
    if (!idle_threads.empty()) {
        thread *t = idle_threads.back();
        idle_threads.pop_back();
        return t;
    }
    thread *t = new thread();
    char *base =
        static_cast<char *>(mmap(nullptr, GUARD_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (base == MAP_FAILED || mprotect(base, GUARD_BYTES, PROT_NONE)) {
        fprintf(stderr, "simt: no memory for the stack of a thread\n");
        abort();
    }
    t->stack = base + GUARD_BYTES;
    start_fiber(t);
    return t;
}

void resume(thread *t) {
    self = t;
    simt_here = &t->place;
#ifdef ASAN
    void *fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, t->stack, STACK_BYTES);
#endif
    simt_switch(&now->scheduler_sp, t->sp);
#ifdef ASAN
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
    self = nullptr;
    simt_here = nullptr;
}

warp &warp_of(const thread *t) {
    return t->in->warps[t->index / 32];
}

void set_ready(thread *t) {
    t->at = READY;
    warp_of(t).ready++;
    t->in->n_ready++;
}

void wait(state at, simt_site site) {
    thread *t = self;
    t->at = at;
    t->site = site;
    warp_of(t).ready--;
    t->in->n_ready--;
    leave();
}

/* What a thread does, in one of two buffers: a fiber that fails never frees anything. */
const char *where(const thread *t) {
    static char texts[2][400];
    static unsigned n;
    char *text = texts[n++ % 2];
    size_t size = sizeof texts[0];
    if (t->at == DONE)
        snprintf(text, size, "thread %u has returned", t->index);
    else if (t->at == AT_EXCHANGE)
        snprintf(text, size, "thread %u waits in %s with mask %08x (%s:%d)", t->index, t->site.what,
                 t->mask, t->site.file, t->site.line);
    else
        snprintf(text, size, "thread %u waits in %s (%s:%d)", t->index, t->site.what, t->site.file,
                 t->site.line);
    return text;
}

void set_failure(const thread *t, const char *sentence) {
    char text[900], place[128] = "";
    if (t)
        snprintf(place, sizeof place, ", block (%u,%u,%u), thread (%u,%u,%u)", t->place.block.x,
                 t->place.block.y, t->place.block.z, t->place.thread.x, t->place.thread.y,
                 t->place.thread.z);
    snprintf(text, sizeof text, "kernel %s%s: %s", now->grid->name.c_str(), place, sentence);
    if (!now->failed) now->failure = text;
    now->failed = true;
}

/* Of the thread that runs, when it returns from the kernel. */
void finished() {
    thread *t = self;
    block *b = t->in;
    warp &w = warp_of(t);
    unsigned lane = 1u << t->index % 32;
    if (b->n_arrived) simt_fail("it returns while %s", where(b->first_arrived));
    thread *const *lanes = &b->threads[t->index / 32 * 32];
    unsigned waiting = w.waiting;
    for (unsigned i = 0; waiting >> i; i++)
        if (waiting >> i & 1 && lanes[i]->mask & lane)
            simt_fail("it returns while %s", where(lanes[i]));
    if (!t->copies.empty() || !t->committed.empty())
        simt_fail("it returns before it has waited for its cp.async (%s:%d)",
                  (t->copies.empty() ? t->committed[0] : t->copies)[0].site.file,
                  (t->copies.empty() ? t->committed[0] : t->copies)[0].site.line);
    t->at = DONE;
    w.ready--;
    w.done |= lane;
    b->n_ready--;
    b->n_done++;
}

/* ---- Blocks ------------------------------------------------------------------------------ */
block *take_block(const simt_grid &grid, unsigned index) {
    block *b;
    if (idle_blocks.empty()) {
        b = new block();
    } else {
        b = idle_blocks.back();
        idle_blocks.pop_back();
    }
    const unsigned *g = grid.shape.grid, *s = grid.shape.block;
    unsigned n = s[0] * s[1] * s[2];
    b->threads.clear();
    b->warps.resize((n + 31) / 32);
    for (warp &w : b->warps) {
        w.ready = w.done = w.waiting = 0;
        for (auto &m : w.meetings)
            m->arrived = 0;
    }
    b->n_ready = b->n_done = b->n_arrived = 0;
    b->number = ++n_blocks;
    b->releases = 0;
    b->votes = {0, 1, 0};
    b->static_bytes = 0;
    b->waited = false;
    b->dynamic = malloc(grid.shape.shared_bytes ? grid.shape.shared_bytes : 1);
    if (!b->dynamic) abort();
    memset(b->dynamic, 0xff, grid.shape.shared_bytes);
    for (unsigned i = 0; i < n; i++) {
        thread *t = take_thread();
        t->place.thread = {i % s[0], i / s[0] % s[1], i / s[0] / s[1]};
        t->place.block = {index % g[0], index / g[0] % g[1], index / g[0] / g[1]};
        t->place.block_size = dim3(s[0], s[1], s[2]);
        t->place.grid_size = dim3(g[0], g[1], g[2]);
        t->in = b;
        t->index = i;
        t->copies.clear();
        t->committed.clear();
        b->threads.push_back(t);
        set_ready(t);
    }
    return b;
}

void give_block(block *b) {
    for (thread *t : b->threads) {
        if (t->at != DONE) start_fiber(t); /* it was left in the middle */
        idle_threads.push_back(t);
    }
    free(b->dynamic);
    idle_blocks.push_back(b);
}

/* Until every thread waits or is done. */
void run_block(block *b) {
    std::vector<unsigned> warps, lanes;
    while (b->n_ready && !now->failed) {
        uint64_t releases = b->releases;
        draw_order(warps, (unsigned)b->warps.size());
        for (size_t i = 0; i < warps.size(); i++) {
            warp &w = b->warps[warps[i]];
            unsigned first = warps[i] * 32;
            /* A warp runs as far as it comes; shuffled, warps take turns. */
            while (w.ready) {
                draw_order(lanes, std::min((unsigned)b->threads.size() - first, 32u));
                for (unsigned lane : lanes) {
                    thread *t = b->threads[first + lane];
                    if (t->at != READY) continue;
                    resume(t);
                    if (now->failed) return;
                    if (b->releases != releases) goto anew;
                }
                if (order == SIMT_SHUFFLED) break;
            }
        }
    anew:;
    }
}

void deadlock(const block *b) {
    const thread *first = nullptr, *second = nullptr;
    for (const thread *t : b->threads) {
        if (t->at == DONE) continue;
        if (!first)
            first = t;
        else if (t->at != first->at || t->site.line != first->site.line || t->mask != first->mask) {
            second = t;
            break;
        }
    }
    /* Else those that do not come have returned, or are in a warp that ends early. */
    for (const thread *t : b->threads)
        if (!second && t->at == DONE) second = t;
    char text[850];
    snprintf(text, sizeof text, "the threads wait for each other: %s, %s", where(first),
             second ? where(second) : "and nobody else comes");
    set_failure(first, text);
}

bool run_previous() {
    now->previous_ran = true;
    running *mine = now;
    bool ok = !mine->previous || (*mine->previous)();
    now = mine;
    if (!ok) mine->failed = true;
    return ok;
}

void run_to_end(block *b) {
    for (;;) {
        run_block(b);
        if (now->failed || b->n_done == b->threads.size()) return;
        bool at_previous = false;
        for (thread *t : b->threads)
            at_previous |= t->at == AT_PREVIOUS;
        if (!at_previous) return deadlock(b);
        if (!run_previous()) return;
        for (thread *t : b->threads)
            if (t->at == AT_PREVIOUS) set_ready(t);
    }
}

} // namespace

simt_place *simt_here;

bool simt_run(const simt_grid &grid, const std::function<bool()> *previous, std::string *failure) {
    running run = {&grid, previous, false, nullptr, false, {}};
    running *outer = now;
    thread *outer_self = self;
    simt_place *outer_here = simt_here;
    now = &run;
    const unsigned *g = grid.shape.grid;
    unsigned n = g[0] * g[1] * g[2];
    std::vector<unsigned> turn;
    draw_order(turn, n);
    if (!previous) run.previous_ran = true;
    for (size_t i = 0; i < n && !run.failed; i++) {
        block *b = take_block(grid, turn[i]);
        run_to_end(b);
        if (!run.failed && grid.shape.overlapped && !b->waited)
            set_failure(b->threads[0], "it was launched to overlap the kernel in front, but no "
                                       "thread of the block calls wait_for_previous");
        give_block(b);
    }
    if (!run.failed && !run.previous_ran) run_previous();
    now = outer;
    self = outer_self;
    simt_here = outer_here;
    if (run.failed && !run.failure.empty()) *failure = run.failure;
    return !run.failed;
}

/* ---- What kernels call ------------------------------------------------------------------- */
void simt_fail(const char *format, ...) {
    char text[700];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    set_failure(self, text);
    leave(true);
    abort(); /* a thread that has failed is not resumed */
}

static bool same_site(simt_site a, simt_site b) {
    return a.line == b.line && (a.what == b.what || !strcmp(a.what, b.what)) &&
           (a.file == b.file || !strcmp(a.file, b.file));
}

simt_votes simt_barrier(simt_site site, bool vote) {
    thread *t = self;
    block *b = t->in;
    if (b->n_done)
        for (thread *other : b->threads)
            if (other->at == DONE)
                simt_fail("it waits in %s (%s:%d), but %s", site.what, site.file, site.line,
                          where(other));
    if (!b->n_arrived) {
        b->first_arrived = t;
        t->site = site;
    }
    if (!same_site(b->first_arrived->site, site))
        simt_fail("it waits in %s (%s:%d) while %s", site.what, site.file, site.line,
                  where(b->first_arrived));
    b->votes.any |= vote;
    b->votes.all &= vote;
    b->votes.count += vote;
    if (++b->n_arrived == b->threads.size()) {
        b->result = b->votes;
        b->votes = {0, 1, 0};
        b->n_arrived = 0;
        b->releases++;
        for (thread *other : b->threads)
            if (other != t) set_ready(other);
        leave(); /* who goes first is the scheduler's choice */
    } else {
        wait(AT_BARRIER, site);
    }
    return b->result;
}

void wait_for_previous() {
    self->in->waited = true;
    if (!now->previous_ran) wait(AT_PREVIOUS, {"wait_for_previous", __FILE__, __LINE__});
}

unsigned simt_lane() {
    return self->index % 32;
}

unsigned simt_live_lanes() {
    size_t left = self->in->threads.size() - self->index / 32 * 32;
    return (left < 32 ? (1u << left) - 1 : ~0u) & ~warp_of(self).done;
}

const unsigned char *simt_exchange(simt_site site, unsigned mask, const void *mine, size_t bytes) {
    thread *t = self;
    warp &w = warp_of(t);
    unsigned lane = simt_lane();
    if (!(mask >> lane & 1))
        simt_fail("lane %u calls %s with mask %08x, which does not name it (%s:%d)", lane,
                  site.what, mask, site.file, site.line);
    if (mask & ~simt_live_lanes())
        simt_fail("%s with mask %08x, but of its lanes only %08x are there (%s:%d)", site.what,
                  mask, simt_live_lanes(), site.file, site.line);
    meeting *m = nullptr;
    for (auto &known : w.meetings)
        if (known->mask == mask) m = known.get();
    if (!m) {
        w.meetings.emplace_back(new meeting());
        m = w.meetings.back().get();
        m->mask = mask;
        m->arrived = m->phase = 0;
    }
    if (!m->arrived) m->site = site;
    if (!same_site(m->site, site))
        simt_fail("lane %u calls %s (%s:%d) while others of its mask are in %s (%s:%d)", lane,
                  site.what, site.file, site.line, m->site.what, m->site.file, m->site.line);
    unsigned char *slots = m->slots[m->phase];
    if (bytes) memcpy(slots + lane * 32, mine, bytes);
    m->arrived |= 1u << lane;
    if (m->arrived != mask) {
        t->mask = mask;
        w.waiting |= 1u << lane;
        wait(AT_EXCHANGE, site);
        return slots;
    }
    m->arrived = 0;
    m->phase ^= 1;
    w.waiting &= ~mask;
    thread *const *first = &t->in->threads[t->index / 32 * 32];
    for (unsigned i = 0; i < 32; i++)
        if (mask >> i & 1 && i != lane) set_ready(first[i]);
    return slots;
}

unsigned simt_ballot(simt_site site, unsigned mask, bool vote) {
    const unsigned char *all = simt_exchange(site, mask, &vote, sizeof vote);
    unsigned result = 0;
    for (unsigned i = 0; i < 32; i++)
        if (mask >> i & 1) result |= (unsigned)all[i * 32] << i;
    return result;
}

void *simt_shared(const void *site, const char *name, size_t bytes) {
    block *b = self->in;
    shared_array &a = b->arrays[site];
    if (a.used_by == b->number) return a.bytes;
    if (a.size != bytes) {
        free(a.bytes);
        if (posix_memalign(&a.bytes, 16, bytes)) abort();
        a.size = bytes;
    }
    a.used_by = b->number;
    memset(a.bytes, 0xff, bytes);
    b->static_bytes += (bytes + 15) / 16 * 16;
    if (b->static_bytes > 48 << 10)
        simt_fail("its arrays up to %s take %zu bytes of shared memory, and 49152 can be declared",
                  name, b->static_bytes);
    if (b->static_bytes + now->grid->shape.shared_bytes > shared_limit)
        simt_fail("its arrays up to %s and the launch take %zu bytes of shared memory, and there "
                  "are %zu",
                  name, b->static_bytes + now->grid->shape.shared_bytes, shared_limit);
    return a.bytes;
}

void *simt_dynamic_shared() {
    return self->in->dynamic;
}

void simt_copy_async(void *shared, const void *global, size_t bytes, simt_site site) {
    simt_aligned(shared, 16, "cp.async to");
    simt_aligned(global, 16, "cp.async from");
    memset(shared, 0xff, 16);
    self->copies.push_back({shared, global, bytes, site});
}

void simt_copy_commit() {
    self->committed.push_back(self->copies);
    self->copies.clear();
}

void simt_copy_wait(size_t groups_left) {
    auto &groups = self->committed;
    while (groups.size() > groups_left) {
        for (const copy &c : groups[0]) {
            memset(c.to, 0, 16);
            memcpy(c.to, c.from, c.bytes);
        }
        groups.erase(groups.begin());
    }
}

/* ---- What tests call --------------------------------------------------------------------- */
void simt_set_order(simt_order o, uint64_t seed) {
    order = o;
    random_state = seed;
}
