// Scheduler, barriers, warp collectives and the memory checker of the emulator.
//
// Compiled without -fsanitize; it defines the functions that -fsanitize=thread calls, in place of the real run time.
// Whether two accesses race is decided by what orders them (barriers of the block, __syncwarp within a warp; shuffles
// order nothing), not by how the fibers happened to run. Shared memory starts as NaN.
#include "simt.hpp"
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_map>
#include <dlfcn.h>
#include <sys/mman.h>
#undef threadIdx
#undef blockIdx

extern "C" void simt_switch(void** save_sp, void* to_sp);
#if defined(__x86_64__)
asm(R"(.text
.globl simt_switch
.hidden simt_switch
.type simt_switch,@function
simt_switch: push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
 mov %rsp,(%rdi); mov %rsi,%rsp
 pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret
)");
#else
#error "the context switch of this CPU is missing"
#endif
extern "C" char __start_simt_shared[] __attribute__((weak, visibility("hidden"))),
    __stop_simt_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __ehdr_start[] __attribute__((visibility("hidden"))), _end[] __attribute__((visibility("hidden")));

namespace simt {
enum State : uint8_t { READY, BARRIER, WARP, DONE };
// The values of the collective that a warp is in, and of the one before, which slow lanes still read.
struct Warp {
    uint64_t val[2][32];
    unsigned arrived = 0, present[2] = {0, 0}, mask = 0;
    int gen = 0, kind = 0, line = 0;
    uint32_t clocks[32][32];  // of each lane, what it knows of the others: moved by __syncwarp alone
};
struct Fiber : Tid {
    void* sp = nullptr;
    State state = READY;
    int line = 0, index = 0, gen = 0;
    Warp* w = nullptr;
};
// One access: by whom, and when in terms of barriers (epoch) and of the warp's clocks.
struct Stamp {
    void* pc = nullptr;
    uint32_t launch = 0, block = 0, epoch = 0, wclock = 0;
    uint16_t tid = 0;
    uint8_t kind = 0;  // 0 none, 1 plain, 2 atomic
};
// What is known of two bytes: the last write, and two reads that nothing orders.
struct Cell {
    Stamp w, r1, r2;
    uint32_t shared_launch = 0, shared_block = 0;
    bool init = false;
};
constexpr int GRANULE = 2;  // bytes per shadow cell
struct Page {
    Cell c[4096 / GRANULE];
};

// Device memory, and which launch read and wrote it last.
struct Region {
    size_t bytes = 0;
    uint32_t touched[2] = {0, 0};
};

Tid* cur = nullptr;
static struct {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    void* sched_sp = nullptr;
    char* stacks = nullptr;
    size_t stack = 0, nstacks = 0;
    Call call;
    void** params;
    Options o;
    Report* rep;
    uint64_t rng = 1;
    uint32_t launch_no = 0, block_no = 0, epoch = 0;
    std::vector<char> dyn;
    const char* name = "";
    std::unordered_map<uintptr_t, std::unique_ptr<Page>> shadow;
    uintptr_t last_page = ~0ull;
    Page* last = nullptr;
    std::map<uintptr_t, Region> mem;
    std::set<std::string> seen;
    bool trapped = false;
} machine;
static std::mutex launch_mutex;
static Fiber* me() {
    return static_cast<Fiber*>(cur);
}
static uint64_t rnd() {
    machine.rng ^= machine.rng << 13;
    machine.rng ^= machine.rng >> 7;
    machine.rng ^= machine.rng << 17;
    return machine.rng;
}
std::vector<Kernel>& kernels() {
    static std::vector<Kernel> k;
    return k;
}
const Kernel* find(const char* n) {
    for (auto& k : kernels())
        if (!strcmp(k.name, n)) return &k;
    return nullptr;
}

void error(const char* fmt, ...) {
    char b[400];
    va_list a;
    va_start(a, fmt);
    vsnprintf(b, sizeof b, fmt, a);
    va_end(a);
    std::string key;
    for (char* p = b; *p; ++p) {
        if (isdigit(*p) && p > b && p[-1] == ' ')
            key += '#';
        else if (!(isdigit(*p) && !key.empty() && key.back() == '#'))
            key += *p;
    }  // thread and block numbers do not make a new error
    if (machine.rep && machine.rep->errors.size() < 50 && machine.seen.insert(key).second)
        machine.rep->errors.push_back(std::string(machine.name) + ": " + b);
}
static std::string where(void* pc) {  // " at file:line" through addr2line, cached
    static std::map<void*, std::string> cache;
    auto it = cache.find(pc);
    if (it != cache.end()) return it->second;
    Dl_info i;
    std::string r;
    char cmd[1024], line[512];
    if (pc && dladdr(pc, &i)) {
        snprintf(cmd, sizeof cmd, "addr2line -e '%s' %lx 2>/dev/null", i.dli_fname,
                 (unsigned long)((char*)pc - 1 - (char*)i.dli_fbase));
        if (FILE* p = popen(cmd, "r")) {
            if (fgets(line, sizeof line, p)) {
                r = line;
                size_t sl = r.rfind('/');
                r = " at " + r.substr(sl == std::string::npos ? 0 : sl + 1);
                r = r.substr(0, r.find_first_of(" \n", 4));
            }
            pclose(p);
        }
    }
    return cache[pc] = r;
}
static void yield() {
    Fiber* f = me();
    ++machine.rep->switches;
    simt_switch(&f->sp, machine.sched_sp);
}
static void trap() {
    machine.trapped = true;
    me()->state = DONE;
    yield();
}  // like a GPU: the access never happens, the launch ends
void expect_global(const void* p) {
    const char* first = machine.dyn.data();
    if (p >= first && p < first + machine.dyn.size()) error("a store to global memory goes to shared memory");
}

void* dyn_shared() {
    return machine.dyn.data();
}

void sync_block(int line) {
    Fiber* f = me();
    f->line = line;
    f->state = BARRIER;
    yield();
}
const uint64_t* exchange(unsigned mask, uint64_t v, int kind, int line, unsigned* present) {
    Fiber* f = me();
    Warp& w = *f->w;
    if (!(mask >> f->lane & 1))
        error("warp collective: lane %d calls with mask %08x that leaves it out", f->lane, mask);
    if (!w.arrived) {
        w.mask = mask;
        w.kind = kind;
        w.line = line;
    } else if (w.mask != mask || w.kind != kind)
        error("warp collective mismatch: lane %d mask %08x kind %d meets mask %08x kind %d", f->lane, mask, kind,
              w.mask, w.kind);
    int g = w.gen & 1;
    w.val[g][f->lane] = v;
    w.arrived |= 1u << f->lane;
    if ((w.arrived & w.mask) == w.mask) {  // last one in: release
        w.present[g] = w.arrived;
        w.arrived = 0;
        ++w.gen;
        if (kind == 3) {  // __syncwarp orders memory; shuffles do not
            uint32_t j[32] = {0};
            for (int l = 0; l < 32; ++l)
                if (mask >> l & 1)
                    for (int k = 0; k < 32; ++k)
                        j[k] = w.clocks[l][k] > j[k] ? w.clocks[l][k] : j[k];
            for (int l = 0; l < 32; ++l)
                if (mask >> l & 1) {
                    memcpy(w.clocks[l], j, sizeof j);
                    ++w.clocks[l][l];
                }
        }
        for (auto& o : machine.fibers)
            if (o.w == &w && o.state == WARP) o.state = READY;
    } else {
        f->state = WARP;
        f->line = line;
        yield();
    }
    *present = w.present[g];
    return w.val[g];
}
void sync_warp(unsigned mask, int line) {
    unsigned p;
    exchange(mask, 0, 3, line, &p);
}

static void fiber_main() {
    machine.call(machine.params);
    me()->state = DONE;
    yield();
    abort();
}
static void run_block(dim3 grid, dim3 block) {
    size_t n = machine.fibers.size();
    size_t live = n;
    while (live) {
        // pick a runnable fiber by the policy
        std::vector<int> ready;
        ready.reserve(n);
        size_t waiting = 0, done = 0;
        for (size_t i = 0; i < n; ++i) {
            if (machine.fibers[i].state == READY) ready.push_back(int(i));
            waiting += machine.fibers[i].state == BARRIER;
            done += machine.fibers[i].state == DONE;
        }
        live = n - done;
        if (!live) break;
        if (ready.empty()) {
            if (waiting == live) {  // everyone is at the barrier
                if (done) error("__syncthreads reached by %zu threads after %zu left the kernel", waiting, done);
                int l0 = 0;
                for (auto& f : machine.fibers)
                    if (f.state == BARRIER) {
                        if (!l0)
                            l0 = f.line;
                        else if (f.line != l0)
                            error("divergent __syncthreads: lines %d and %d", l0, f.line);
                        f.state = READY;
                    }
                ++machine.epoch;
                continue;
            }
            error("deadlock: %zu at __syncthreads, %zu waiting in a warp collective, %zu exited", waiting,
                  live - waiting, done);
            machine.trapped = true;
            return;
        }
        if (machine.o.order == REVERSE) std::reverse(ready.begin(), ready.end());
        if (machine.o.order == RANDOM)
            for (size_t i = ready.size(); i > 1; --i)
                std::swap(ready[i - 1], ready[rnd() % i]);
        if (machine.o.order == WARP_RANDOM) {
            int k = machine.fibers[ready[rnd() % ready.size()]].index / 32;
            std::vector<int> q;
            for (int i : ready)
                if (i / 32 == k) q.push_back(i);
            ready.swap(q);
        }
        for (int i : ready) {
            Fiber& f = machine.fibers[i];
            if (f.state != READY) continue;
            cur = &f;
            simt_switch(&machine.sched_sp, f.sp);
            if (machine.trapped) return;
        }
    }
}

Report launch(const Kernel& k, dim3 grid, dim3 block, size_t shared_bytes, void** params, const Options& o) {
    std::lock_guard<std::mutex> lock(launch_mutex);
    Report rep;
    machine.rep = &rep;
    machine.o = o;
    machine.rng = o.seed * 0x9E3779B97F4A7C15ull | 1;
    machine.name = k.name;
    machine.call = k.call;
    machine.params = params;
    machine.seen.clear();
    machine.trapped = false;
    ++machine.launch_no;
    size_t n = size_t(block.x) * block.y * block.z;
    if (!n || n > 1024 || shared_bytes > 232448) {
        error("bad launch: %zu threads, %zu bytes of shared memory", n, shared_bytes);
        machine.rep = nullptr;
        return rep;
    }
    if (machine.nstacks < n || machine.stack != o.stack) {
        if (machine.stacks) munmap(machine.stacks, machine.nstacks * machine.stack);
        machine.stack = o.stack;
        machine.nstacks = n;
        machine.stacks = (char*)mmap(nullptr, n * o.stack, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    std::vector<uint64_t> blocks(size_t(grid.x) * grid.y * grid.z);
    for (size_t i = 0; i < blocks.size(); ++i)
        blocks[i] = i;
    if (o.order == REVERSE) std::reverse(blocks.begin(), blocks.end());
    if (o.order >= RANDOM)
        for (size_t i = blocks.size(); i > 1; --i)
            std::swap(blocks[i - 1], blocks[rnd() % i]);
    for (uint64_t b : blocks) {
        machine.block_no = uint32_t(b);
        machine.epoch = 0;
        machine.dyn.assign(shared_bytes, char(0xff));  // shared memory starts as NaNs
        if (__start_simt_shared) memset(__start_simt_shared, 0xff, __stop_simt_shared - __start_simt_shared);
        machine.warps.assign((n + 31) / 32, Warp{});
        machine.fibers.assign(n, Fiber{});
        for (auto& w : machine.warps)
            for (int i = 0; i < 32; ++i) {
                memset(w.clocks[i], 0, sizeof w.clocks[i]);
                w.clocks[i][i] = 1;
            }
        for (size_t t = 0; t < n; ++t) {
            Fiber& f = machine.fibers[t];
            f.index = int(t);
            f.lane = int(t % 32);
            f.w = &machine.warps[t / 32];
            f.bdim = block;
            f.gdim = grid;
            f.tid = {unsigned(t % block.x), unsigned(t / block.x % block.y), unsigned(t / block.x / block.y)};
            f.bid = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
            void** sp = (void**)(machine.stacks + (t + 1) * machine.stack);
            *--sp = nullptr;
            *--sp = (void*)fiber_main;
            sp -= 6;
            memset(sp, 0, 48);
            f.sp = sp;
        }
        run_block(grid, block);
        if (machine.trapped) break;
    }
    cur = nullptr;
    machine.rep = nullptr;
    return rep;
}

// ---- memory checker -------------------------------------------------------
static Cell* cell(uintptr_t a) {
    uintptr_t p = a >> 12;
    if (p != machine.last_page) {
        auto& u = machine.shadow[p];
        if (!u) u = std::make_unique<Page>();
        machine.last = u.get();
        machine.last_page = p;
    }
    return &machine.last->c[(a & 4095) / GRANULE];
}
void mem_init(void* p, size_t n, bool init) {
    for (size_t i = 0; i < n; i += GRANULE) {
        Cell* c = cell(uintptr_t(p) + i);
        c->init = init;
    }
}
bool mem_is_init(const void* p, size_t n) {
    for (size_t i = 0; i < n; i += GRANULE)
        if (!cell(uintptr_t(p) + i)->init) return false;
    return true;
}
void mem_add(void* p, size_t n, bool init) {
    std::lock_guard<std::mutex> l(launch_mutex);
    machine.mem[uintptr_t(p)] = {n};
    for (size_t i = 0; i < n; i += GRANULE)
        *cell(uintptr_t(p) + i) = Cell{};
    mem_init(p, n, init);
}
void mem_del(void* p) {
    std::lock_guard<std::mutex> l(launch_mutex);
    machine.mem.erase(uintptr_t(p));
}

static bool ordered(const Stamp& a, const Fiber* f, bool shared) {  // a happens before this fiber's access?
    if (!a.kind || a.launch != machine.launch_no) return true;
    if (a.block != machine.block_no) return shared;  // nothing orders two blocks
    if (a.tid == f->index || a.epoch != machine.epoch) return true;
    return a.tid / 32 == f->index / 32 && f->w->clocks[f->lane][a.tid % 32] >= a.wclock;  // through a __syncwarp
}
static void access(uintptr_t a, size_t n, bool write, bool atomic, void* pc) {
    if (!cur || !machine.o.races) return;
    Fiber* f = me();
    ++machine.rep->accesses;
    if (a - uintptr_t(machine.stacks) < machine.nstacks * machine.stack) return;  // a thread's own stack
    uintptr_t d0 = uintptr_t(machine.dyn.data()), s0 = uintptr_t(__start_simt_shared),
              s1 = uintptr_t(__stop_simt_shared);
    bool dyn = a >= d0 && a < d0 + machine.dyn.size(), shared = dyn || (a >= s0 && a < s1);
    const char* what = shared ? "shared" : "global";
    if (dyn && a + n > d0 + machine.dyn.size()) {
        error("%s of %zu bytes runs over the end of dynamic shared memory", write ? "write" : "read", n);
        return trap();
    }
    if (!shared && !write && a >= uintptr_t(__ehdr_start) && a < uintptr_t(_end)) return;  // constant tables
    if (!shared) {
        auto it = machine.mem.upper_bound(a);
        bool ok = false;
        if (it != machine.mem.begin()) {
            --it;
            ok = a + n <= it->first + it->second.bytes;
        }
        if (ok && it->second.touched[write] != machine.launch_no) {
            it->second.touched[write] = machine.launch_no;
            machine.rep->touched.push_back({it->first, write});
        }
        if (!ok) {
            if (write || !machine.mem.empty())
                error("%s of %zu bytes out of bounds%s (block %u thread %d)%s", write ? "write" : "read", n,
                      where(pc).c_str(), machine.block_no, f->index,
                      a - (d0 + machine.dyn.size()) < 65536 ? ", just past dynamic shared memory" : "");
            if (!machine.mem.empty()) return trap();
        }
    }
    if (a % n && (n & (n - 1)) == 0) error("misaligned %zu-byte access", n);
    Stamp st{pc,
             machine.launch_no,
             machine.block_no,
             machine.epoch,
             f->w->clocks[f->lane][f->lane],
             uint16_t(f->index),
             uint8_t(atomic ? 2 : 1)};
    for (uintptr_t p = a; p < a + n; p += GRANULE) {
        Cell* c = cell(p);
        auto race = [&](const Stamp& o, const char* k) {
            error("race in %s memory: %s%s by thread %d and %s%s by thread %d%s", what, k, where(o.pc).c_str(),
                  int(o.tid), write ? "write" : "read", where(pc).c_str(), f->index,
                  o.block != machine.block_no ? " of another block" : "");
        };
        if (shared ? (c->shared_launch != machine.launch_no || c->shared_block != machine.block_no) : !c->init)
            if (!write || atomic)
                error("read of uninitialised %s memory%s (thread %d)", what, where(pc).c_str(), f->index);
        if (!(atomic && c->w.kind == 2) && !ordered(c->w, f, shared)) race(c->w, c->w.kind == 2 ? "atomic" : "write");
        if (write) {
            if (!ordered(c->r1, f, shared))
                race(c->r1, "read");
            else if (!ordered(c->r2, f, shared))
                race(c->r2, "read");
            c->w = st;
            c->r1 = c->r2 = Stamp{};
            c->init = true;
            c->shared_launch = machine.launch_no;
            c->shared_block = machine.block_no;
        } else if (ordered(c->r1, f, shared))
            c->r1 = st;
        else if (ordered(c->r2, f, shared))
            c->r2 = st;
    }
}
void note_atomic(const void* p, size_t n) {
    access(uintptr_t(p), n, true, true, __builtin_return_address(0));
}
}  // namespace simt

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
#define HOOK(n)                                                                   \
    void __tsan_read##n(void* p) {                                                \
        simt::access(uintptr_t(p), n, false, false, __builtin_return_address(0)); \
    }                                                                             \
    void __tsan_write##n(void* p) {                                               \
        simt::access(uintptr_t(p), n, true, false, __builtin_return_address(0));  \
    }                                                                             \
    void __tsan_unaligned_read##n(void* p) {                                      \
        simt::access(uintptr_t(p), n, false, false, __builtin_return_address(0)); \
    }                                                                             \
    void __tsan_unaligned_write##n(void* p) {                                     \
        simt::access(uintptr_t(p), n, true, false, __builtin_return_address(0));  \
    }
HOOK(1) HOOK(2) HOOK(4) HOOK(8) HOOK(16) void __tsan_read_range(void* p, unsigned long n) {
    simt::access(uintptr_t(p), n, false, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, unsigned long n) {
    simt::access(uintptr_t(p), n, true, false, __builtin_return_address(0));
}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void* __tsan_memcpy(void* d, const void* s, unsigned long n) {
    simt::access(uintptr_t(s), n, false, false, __builtin_return_address(0));
    simt::access(uintptr_t(d), n, true, false, __builtin_return_address(0));
    return memcpy(d, s, n);
}
void* __tsan_memset(void* d, int v, unsigned long n) {
    simt::access(uintptr_t(d), n, true, false, __builtin_return_address(0));
    return memset(d, v, n);
}
}
extern "C" void __ubsan_handle_type_mismatch_v1(void*, void* p) {
    simt::error("misaligned access (address ends in %x)", unsigned(uintptr_t(p) & 15));
}
