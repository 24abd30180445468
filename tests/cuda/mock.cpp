// The part of libcuda, libcublas and libcusolver that the crate calls, on the host: one shared object under three
// names.
//
// Kernels run under the emulator (simt.hpp), which must find nothing wrong: a race is an illegal address here. Images
// must be fat binaries that hold the machine code of the kernel that is asked for. cuBLAS and cuSOLVER are plain loops
// in double.
//
//   MOCK_LAZY=1      a stream's work runs as late as CUDA allows: at the first call that must wait for it
//   MOCK_MEMORY      bytes of device memory (2 GiB)
//   MOCK_DEVICES     number of devices (1)
//   MOCK_INIT        what cuInit answers (0)
//   MOCK_SEED        order of threads and blocks
//   MOCK_CHECK=0     emulation without the checker: faster
//   MOCK_DEAF        stream: streams do not wait for events; host: nor does the host. The tests must miss it.
//
// Streams are checked as threads are: whatever uses an allocation must come after its last write, and a write or the
// free after all reads, by the order of a stream, by events, or because the host waited. What the queues happened to do
// decides nothing.
//
// For the tests: mock_fail(what, after) makes the call number `after` from now on fail, once for an allocation, for
// good for a kernel or the driver; mock_calls(what) counts the calls that could have; mock_live() counts what was
// created and not destroyed; mock_home() counts the bytes that were copied to the host.
#include "simt.hpp"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sys/mman.h>

using Status = int;
using Address = unsigned long long;
using Handle = void*;
enum {
    OK = 0,
    INVALID = 1,
    OUT_OF_MEMORY = 2,
    DEINITIALIZED = 4,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_FAILED = 719
};

static std::recursive_mutex mutex;
#define LOCK std::lock_guard<std::recursive_mutex> lock(mutex)

static long long setting(const char* name, long long otherwise) {
    const char* text = getenv(name);
    return text ? atoll(text) : otherwise;
}
static const bool lazy = setting("MOCK_LAZY", 0);

// ---- faults and leaks
enum { FAIL_ALLOCATION, FAIL_LAUNCH, FAIL_DRIVER, FAILURES };
static long long countdown[FAILURES] = {-1, -1, -1}, calls[FAILURES] = {0, 0, 0};
static Status sticky = OK;  // the first fault stays, as in a real context
static std::set<void*> objects;
static long long home = 0;

static bool due(int what) {
    ++calls[what];
    return countdown[what] >= 0 && countdown[what]-- == 0;
}
static void fail(Status status, const char* what) {
    fprintf(stderr, "mock: %s\n", what);
    if (!sticky) sticky = status;
}
// Every call of the driver passes here.
static bool gone() {
    if (due(FAIL_DRIVER)) {
        sticky = DEINITIALIZED;
        countdown[FAIL_DRIVER] = -1;
    }
    return sticky == DEINITIALIZED;
}
#define DRIVER_CALL \
    LOCK;           \
    if (gone()) return sticky;

template <class T, class... A>
static T* create(A... arguments) {
    T* object = new T(arguments...);
    objects.insert(object);
    return object;
}
template <class T>
static Status destroy(Handle h) {
    if (!objects.erase(h)) return INVALID;
    delete static_cast<T*>(h);
    return OK;
}

// ---- order: of each stream, how many of its steps are known to be over
using Clock = std::vector<uint32_t>;
static Clock host;  // by the host
static void merge(Clock& into, const Clock& from) {
    if (into.size() < from.size()) into.resize(from.size());
    for (size_t i = 0; i < from.size(); ++i)
        into[i] = std::max(into[i], from[i]);
}
// A step of a stream: what it knows, itself included.
struct Step {
    int stream = 0;
    Clock clock{0};
    bool after(int other, uint32_t step) const {
        return step == 0 || (size_t(other) < clock.size() && clock[other] >= step);
    }
};
static Step running;

// ---- memory: every allocation has its own pages
struct Allocation {
    size_t bytes;
    int writer = 0;
    uint32_t written = 0;
    std::map<int, uint32_t> read;  // by stream, since then
};
static std::map<Address, Allocation> allocations;
static size_t used = 0;
static const size_t memory = setting("MOCK_MEMORY", 2ll << 30);
static size_t pages(size_t bytes) {
    return (bytes + 8191) & ~size_t(4095);
}
static Status allocate(Address* at, size_t bytes, const Step& step) {
    if (!bytes) return INVALID;
    if (due(FAIL_ALLOCATION) || used + bytes > memory) return OUT_OF_MEMORY;
    void* p = mmap(nullptr, pages(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return OUT_OF_MEMORY;
    memset(p, 0xff, bytes);
    simt::mem_add(p, bytes, false);
    allocations[Address(p)] = {bytes, step.stream, step.clock[step.stream], {}};
    used += bytes;
    *at = Address(p);
    return OK;
}
static Status release(Address at) {
    auto it = allocations.find(at);
    if (it == allocations.end()) return INVALID;
    used -= it->second.bytes;
    simt::mem_del((void*)at);
    munmap((void*)at, pages(it->second.bytes));
    allocations.erase(it);
    return OK;
}
enum Use { IN = 1, OUT = 2, IN_OUT = 3 };
// The step that runs uses an allocation.
static void touch(Allocation& a, int use, const char* what) {
    bool ordered = running.after(a.writer, a.written);
    if (use & OUT)
        for (auto& [stream, step] : a.read)
            ordered = ordered && running.after(stream, step);
    if (!ordered) {
        fprintf(stderr, "mock: streams: nothing orders this after what another stream does to the same memory\n");
        fail(ILLEGAL_ADDRESS, what);
    }
    const uint32_t step = running.clock[running.stream];
    if (use & OUT) {
        a.writer = running.stream;
        a.written = step;
        a.read.clear();
    } else
        a.read[running.stream] = step;
}
// Without the checker nobody has seen what kernels wrote.
static const bool checked = setting("MOCK_CHECK", 1);
static bool is_written(const void* at, size_t bytes) { return !checked || simt::mem_is_init(at, bytes); }

static bool check(Address at, size_t bytes, int use, const char* what) {
    auto it = allocations.upper_bound(at);
    if (it == allocations.begin() || (--it, at + bytes > it->first + it->second.bytes))
        fail(ILLEGAL_ADDRESS, what);
    else if (!sticky)
        touch(it->second, use, what);
    return !sticky;
}

// ---- streams: a queue each; an event remembers how far a queue must have run
static int streams = 1;
struct Stream {
    std::deque<std::pair<std::function<void()>, Step>> queue;
    size_t done = 0, pushed = 0;
    Step last;
    explicit Stream(int number = 0) { last.stream = number; }
    // The next step: after what the stream did, and after what the host has waited for.
    const Step& next() {
        merge(last.clock, host);
        if (last.clock.size() <= size_t(last.stream)) last.clock.resize(last.stream + 1);
        ++last.clock[last.stream];
        return last;
    }
};
struct Event {
    Stream* stream = nullptr;
    size_t upto = 0;
    Clock clock;
};
static Stream* stream_of(Handle h) {
    static Stream null;
    return h ? static_cast<Stream*>(h) : &null;
}
static void drain(Stream* s, size_t upto) {
    while (s->done < upto && !s->queue.empty()) {
        auto [work, step] = std::move(s->queue.front());
        s->queue.pop_front();
        ++s->done;
        std::swap(running, step);
        work();
        std::swap(running, step);
    }
}
static Status push(Handle h, std::function<void()> work) {
    Stream* s = stream_of(h);
    s->queue.push_back({std::move(work), s->next()});
    ++s->pushed;
    if (!lazy) drain(s, s->pushed);
    return sticky;
}
// The host waits for all of a stream.
static void wait_for(Handle h) {
    Stream* s = stream_of(h);
    drain(s, ~0ull);
    merge(host, s->last.clock);
}
static bool deaf(const char* who) {
    const char* text = getenv("MOCK_DEAF");
    return text && !strcmp(text, who);
}

struct Function {
    const simt::Kernel* kernel;
    int max_dynamic = 48 << 10;
};
struct Module {
    std::string image;
    std::map<std::string, Function> functions;
};
static std::map<Address, size_t> pinned;
static bool is_pinned(const void* p) {
    auto it = pinned.upper_bound(Address(p));
    return it != pinned.begin() && (--it, Address(p) < it->first + it->second);
}
static int contexts = 0;

#pragma GCC visibility push(default)
extern "C" {
void mock_fail(int what, long long after) {
    LOCK;
    countdown[what] = after;
}
long long mock_calls(int what) {
    LOCK;
    return calls[what];
}
long long mock_home() {
    LOCK;
    return home;
}
long long mock_live() {
    LOCK;
    return objects.size() + allocations.size() + pinned.size() + contexts;
}

Status cuInit(unsigned) {
    LOCK;
    if (!contexts) sticky = OK;  // a driver that was lost before there was a context is back, too
    return setting("MOCK_INIT", 0);
}
Status cuDeviceGetCount(int* n) {
    DRIVER_CALL;
    *n = setting("MOCK_DEVICES", 1);
    return OK;
}
Status cuDeviceGet(int* device, int ordinal) {
    DRIVER_CALL;
    *device = ordinal;
    return ordinal < setting("MOCK_DEVICES", 1) ? OK : INVALID_DEVICE;
}
Status cuDeviceGetName(char* name, int n, int) {
    DRIVER_CALL;
    snprintf(name, n, "SIMT emulator");
    return OK;
}
Status cuDeviceGetAttribute(int* value, int attribute, int) {
    DRIVER_CALL;
    // sm_80 with memory pools and few multiprocessors.
    *value = attribute == 75 ? 8 : attribute == 76 ? 0 : attribute == 115 ? 1 : attribute == 16 ? 4 : 0;
    return OK;
}
Status cuDeviceTotalMem_v2(size_t* bytes, int) {
    DRIVER_CALL;
    *bytes = memory;
    return OK;
}
Status cuDevicePrimaryCtxRetain(Handle* context, int) {
    DRIVER_CALL;
    if (!contexts++) {
        host.clear();
        streams = 1;
    }
    *context = Handle(0x1000);
    return OK;
}
Status cuDevicePrimaryCtxRelease_v2(int) {
    LOCK;
    if (contexts && --contexts == 0) {
        for (auto left = allocations; auto& [at, _] : left)  // a context takes its memory with it
            release(at);
        sticky = OK;  // the next one is new, and a driver that was lost is back
    }
    return OK;
}
Status cuCtxSetCurrent(Handle) {
    DRIVER_CALL;
    return OK;
}
Status cuGetErrorName(int status, const char** name) {
    switch (status) {
        case OUT_OF_MEMORY:
            *name = "CUDA_ERROR_OUT_OF_MEMORY";
            break;
        case DEINITIALIZED:
            *name = "CUDA_ERROR_DEINITIALIZED";
            break;
        case ILLEGAL_ADDRESS:
            *name = "CUDA_ERROR_ILLEGAL_ADDRESS";
            break;
        case LAUNCH_FAILED:
            *name = "CUDA_ERROR_LAUNCH_FAILED";
            break;
        case 100:
            *name = "CUDA_ERROR_NO_DEVICE";
            break;
        default:
            *name = "CUDA_ERROR";
            break;
    }
    return OK;
}
Status cuStreamCreate(Handle* s, unsigned) {
    DRIVER_CALL;
    *s = create<Stream>(streams++);
    return OK;
}
Status cuStreamDestroy_v2(Handle s) {
    LOCK;
    drain(stream_of(s), ~0ull);
    return destroy<Stream>(s);
}
Status cuStreamSynchronize(Handle s) {
    DRIVER_CALL;
    wait_for(s);
    return sticky;
}
Status cuStreamWaitEvent(Handle s, Handle e, unsigned) {
    DRIVER_CALL;
    if (deaf("stream")) return OK;
    const Event event = *static_cast<Event*>(e);
    merge(stream_of(s)->last.clock, event.clock);
    return push(s, [event] {
        if (event.stream && objects.count(event.stream)) drain(event.stream, event.upto);
    });
}
Status cuEventCreate(Handle* e, unsigned) {
    DRIVER_CALL;
    *e = create<Event>();
    return OK;
}
Status cuEventDestroy_v2(Handle e) {
    LOCK;
    return destroy<Event>(e);
}
Status cuEventRecord(Handle e, Handle s) {
    DRIVER_CALL;
    *static_cast<Event*>(e) = {stream_of(s), stream_of(s)->pushed, stream_of(s)->last.clock};
    return OK;
}
Status cuEventSynchronize(Handle e) {
    DRIVER_CALL;
    Event* event = static_cast<Event*>(e);
    if (deaf("host")) return OK;
    if (event->stream) drain(event->stream, event->upto);
    merge(host, event->clock);
    return sticky;
}
Status cuEventElapsedTime_v2(float* ms, Handle, Handle) {
    DRIVER_CALL;
    *ms = 1;
    return OK;
}
Status cuMemAllocAsync(Address* at, size_t bytes, Handle s) {
    DRIVER_CALL;
    return sticky ? sticky : allocate(at, bytes, stream_of(s)->next());
}
Status cuMemFreeAsync(Address at, Handle s) {
    LOCK;
    return push(s, [at] {
        auto it = allocations.find(at);
        if (it != allocations.end() && !sticky) touch(it->second, OUT, "freed while in use");
        if (release(at)) fail(ILLEGAL_ADDRESS, "freed twice, or never allocated");
    });
}
Status cuDeviceGetDefaultMemPool(Handle* pool, int) {
    DRIVER_CALL;
    *pool = Handle(0x2000);
    return OK;
}
Status cuMemPoolSetAttribute(Handle, int attribute, void*) {
    DRIVER_CALL;
    return attribute == 4 ? OK : INVALID;  // the release threshold
}
Status cuMemPoolTrimTo(Handle, size_t) {
    return OK;
}
Status cuMemHostAlloc(Handle* at, size_t bytes, unsigned) {
    DRIVER_CALL;
    if (due(FAIL_ALLOCATION)) return OUT_OF_MEMORY;
    *at = aligned_alloc(4096, (bytes + 4095) & ~size_t(4095));
    pinned[Address(*at)] = bytes;
    return OK;
}
Status cuMemFreeHost(Handle at) {
    LOCK;
    if (!pinned.erase(Address(at))) return INVALID;
    free(at);
    return OK;
}
static void to_device(Address dst, const void* src, size_t bytes) {
    if (check(dst, bytes, OUT, "copy to the device")) {
        memcpy((void*)dst, src, bytes);
        simt::mem_init((void*)dst, bytes, true);
    }
}
Status cuMemcpyHtoDAsync_v2(Address dst, const void* src, size_t bytes, Handle s) {
    DRIVER_CALL;
    if (is_pinned(src))  // read when the stream gets there
        return push(s, [=] { to_device(dst, src, bytes); });
    auto copy = std::make_shared<std::string>(static_cast<const char*>(src), bytes);
    return push(s, [=] { to_device(dst, copy->data(), bytes); });
}
Status cuMemcpyDtoHAsync_v2(void* dst, Address src, size_t bytes, Handle s) {
    DRIVER_CALL;
    Status status = push(s, [=] {
        if (!check(src, bytes, IN, "copy to the host")) return;
        if (!is_written((void*)src, bytes))
            fail(ILLEGAL_ADDRESS, "copy to the host of memory that nothing was written to");
        memcpy(dst, (void*)src, bytes);
        home += bytes;
    });
    if (is_pinned(dst)) return status;
    wait_for(s);  // pageable: over when the call returns
    return sticky;
}
Status cuMemcpyDtoDAsync_v2(Address dst, Address src, size_t bytes, Handle s) {
    DRIVER_CALL;
    return push(s, [=] {
        if (check(src, bytes, IN, "copy on the device")) to_device(dst, (void*)src, bytes);
    });
}
Status cuMemsetD8Async(Address dst, unsigned char value, size_t bytes, Handle s) {
    DRIVER_CALL;
    return push(s, [=] {
        if (check(dst, bytes, OUT, "memset")) {
            memset((void*)dst, value, bytes);
            simt::mem_init((void*)dst, bytes, true);
        }
    });
}
Status cuModuleLoadData(Handle* module, const void* image) {
    DRIVER_CALL;
    uint32_t magic;
    uint16_t header;
    uint64_t body;
    memcpy(&magic, image, 4);
    memcpy(&header, static_cast<const char*>(image) + 6, 2);
    memcpy(&body, static_cast<const char*>(image) + 8, 8);
    if (magic != 0xBA55ED50u) return INVALID_IMAGE;
    auto* m = create<Module>();
    m->image.assign(static_cast<const char*>(image), header + body);
    *module = m;
    return OK;
}
Status cuModuleUnload(Handle module) {
    LOCK;
    return destroy<Module>(module);
}
Status cuModuleGetFunction(Handle* function, Handle module, const char* name) {
    DRIVER_CALL;
    auto* m = static_cast<Module*>(module);
    if (m->image.find(std::string(".text.") + name + '\0') == std::string::npos) return NOT_FOUND;
    const simt::Kernel* kernel = simt::find(name);
    if (!kernel) {
        fprintf(stderr, "mock: kernel %s is compiled and not emulated\n", name);
        return NOT_FOUND;
    }
    Function& f = m->functions[name];
    f.kernel = kernel;
    *function = &f;
    return OK;
}
Status cuFuncSetAttribute(Handle function, int attribute, int value) {
    DRIVER_CALL;
    if (attribute == 8) static_cast<Function*>(function)->max_dynamic = value;
    return OK;
}
Status cuFuncGetParamInfo(Handle function, size_t i, size_t* offset, size_t* size) {
    DRIVER_CALL;
    const auto& sizes = static_cast<Function*>(function)->kernel->sizes;
    if (i >= sizes.size()) return INVALID;
    *offset = 0;
    *size = sizes[i];
    return OK;
}
Status cuLaunchKernel(Handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, Handle s, void** parameters, void**) {
    DRIVER_CALL;
    auto* f = static_cast<Function*>(function);
    if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || uint64_t(bx) * by * bz > 1024 ||
        int(shared) > f->max_dynamic) {
        fprintf(stderr, "mock: bad launch of %s: grid %u,%u,%u block %u,%u,%u shared %u\n", f->kernel->name, gx, gy, gz,
                bx, by, bz, shared);
        return INVALID;
    }
    const bool fails = due(FAIL_LAUNCH);
    std::vector<uint64_t> copy(f->kernel->sizes.size());
    for (size_t i = 0; i < copy.size(); ++i)
        memcpy(&copy[i], parameters[i], f->kernel->sizes[i]);
    return push(s, [=]() mutable {
        if (sticky) return;
        if (fails) return fail(LAUNCH_FAILED, "a launch that was told to fail");
        std::vector<void*> pointers;
        for (auto& word : copy)
            pointers.push_back(&word);
        simt::Options options;
        options.seed = setting("MOCK_SEED", 1);
        options.races = checked;
        const auto report = simt::launch(*f->kernel, {gx, gy, gz}, {bx, by, bz}, shared, pointers.data(), options);
        for (auto& error : report.errors)
            fail(ILLEGAL_ADDRESS, error.c_str());
        for (auto& [at, wrote] : report.touched)
            if (!sticky) touch(allocations.at(at), wrote ? OUT : IN, f->kernel->name);
    });
}
}

// ---- cuBLAS: column-major, scalars on the host
enum { BLAS_FAILED = 13, BLAS_UNSUPPORTED = 15 };
enum { F32 = 0, F64 = 1, F16 = 2, BF16 = 14 };
struct Library {
    Handle stream = nullptr;
};
static size_t size_of(int type) {
    return type == F64 ? 8 : type == F32 ? 4 : 2;
}
static double get(const void* p, int type, size_t i) {
    switch (type) {
        case F64:
            return static_cast<const double*>(p)[i];
        case F32:
            return static_cast<const float*>(p)[i];
        case F16:
            return __half2float(static_cast<const __half*>(p)[i]);
        default:
            return __bfloat162float(static_cast<const __nv_bfloat16*>(p)[i]);
    }
}
static void set(void* p, int type, size_t i, double x) {
    if (type == F64)
        static_cast<double*>(p)[i] = x;
    else
        static_cast<float*>(p)[i] = float(x);
}
static bool need(const void* p, int ld, int rows, int columns, int type, int use, const char* what) {
    if (ld < std::max(rows, 1)) {
        fail(ILLEGAL_ADDRESS, what);
        return false;
    }
    for (int j = 0; j < columns && rows > 0; ++j) {
        const char* at = static_cast<const char*>(p) + size_t(j) * ld * size_of(type);
        if (!check(Address(at), rows * size_of(type), use, what)) return false;
        if ((use & IN) && !is_written(at, rows * size_of(type))) {
            fail(ILLEGAL_ADDRESS, what);
            return false;
        }
    }
    return !sticky;
}
static void written(void* p, int ld, int rows, int columns, int type) {
    for (int j = 0; j < columns; ++j)
        simt::mem_init(static_cast<char*>(p) + size_t(j) * ld * size_of(type), rows * size_of(type), true);
}
static std::vector<double> matrix(const void* p, int type, int rows, int columns, int ld) {
    std::vector<double> a(size_t(rows) * columns);
    for (int j = 0; j < columns; ++j)
        for (int i = 0; i < rows; ++i)
            a[size_t(j) * rows + i] = get(p, type, size_t(j) * ld + i);
    return a;
}
static void store(void* p, int type, int rows, int columns, int ld, const double* a) {
    for (int j = 0; j < columns; ++j)
        for (int i = 0; i < rows; ++i)
            set(p, type, size_t(j) * ld + i, a[size_t(j) * rows + i]);
    written(p, ld, rows, columns, type);
}
// op(A) by rows: k-vectors that are adjacent.
static std::vector<double> by_rows(const void* p, int type, bool transposed, int m, int k, int ld) {
    std::vector<double> a(size_t(m) * k);
    for (int i = 0; i < m; ++i)
        for (int l = 0; l < k; ++l)
            a[size_t(i) * k + l] = get(p, type, transposed ? size_t(i) * ld + l : size_t(l) * ld + i);
    return a;
}
static Status blas_status(Status driver) {
    return driver ? Status(BLAS_FAILED) : Status(OK);
}
static Status solver_status(Status driver) {
    return driver ? 6 : OK;
}

extern "C" {
Status cublasCreate_v2(Handle* h) {
    LOCK;
    if (gone()) return 1;  // not initialized
    *h = create<Library>();
    return OK;
}
Status cublasDestroy_v2(Handle h) {
    LOCK;
    return destroy<Library>(h);
}
Status cublasSetStream_v2(Handle h, Handle s) {
    static_cast<Library*>(h)->stream = s;
    return OK;
}
Status cublasSetMathMode(Handle, int) {
    return OK;
}
Status cublasGemmEx(Handle h, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int at, int lda,
                    const void* b, int bt, int ldb, const void* beta, void* c, int ct, int ldc, int compute, int) {
    LOCK;
    if (gone()) return BLAS_FAILED;
    // The combinations of cuBLAS's table that are used here; f32 scalars with f32 sums, f64 with f64.
    const bool known = at == bt && ((at == F64 && ct == F64 && compute == 70) ||
                                    (at != F64 && ct == F32 && (compute == 68 || (compute == 77 && at == F32))));
    if (!known) return BLAS_UNSUPPORTED;
    const double scale = get(alpha, ct, 0), keep = get(beta, ct, 0);
    return blas_status(push(static_cast<Library*>(h)->stream, [=] {
        if (!need(a, lda, ta ? k : m, ta ? m : k, at, IN, "gemm: A") ||
            !need(b, ldb, tb ? n : k, tb ? k : n, bt, IN, "gemm: B") || !need(c, ldc, m, n, ct, keep != 0 ? IN_OUT : OUT, "gemm: C"))
            return;
        const auto x = by_rows(a, at, ta, m, k, lda), y = by_rows(b, bt, !tb, n, k, ldb);
        for (int j = 0; j < n; ++j)
            for (int i = 0; i < m; ++i) {
                double sum = 0;
                for (int l = 0; l < k; ++l)
                    sum += x[size_t(i) * k + l] * y[size_t(j) * k + l];
                const size_t at = size_t(j) * ldc + i;
                set(c, ct, at, scale * sum + (keep == 0 ? 0 : keep * get(c, ct, at)));
            }
        written(c, ldc, m, n, ct);
    }));
}
}
// Lower triangle.
static Status syrk(Handle h, int type, int uplo, int trans, int n, int k, const void* alpha, const void* a, int lda,
                   const void* beta, void* c, int ldc) {
    LOCK;
    if (gone()) return BLAS_FAILED;
    if (uplo != 0) return BLAS_UNSUPPORTED;
    const double scale = get(alpha, type, 0), keep = get(beta, type, 0);
    return blas_status(push(static_cast<Library*>(h)->stream, [=] {
        if (!need(a, lda, trans ? k : n, trans ? n : k, type, IN, "syrk: A") ||
            !need(c, ldc, n, n, type, keep != 0 ? IN_OUT : OUT, "syrk: C"))
            return;
        const auto x = by_rows(a, type, trans, n, k, lda);
        for (int j = 0; j < n; ++j) {
            for (int i = j; i < n; ++i) {
                double sum = 0;
                for (int l = 0; l < k; ++l)
                    sum += x[size_t(i) * k + l] * x[size_t(j) * k + l];
                const size_t at = size_t(j) * ldc + i;
                set(c, type, at, scale * sum + (keep == 0 ? 0 : keep * get(c, type, at)));
            }
            simt::mem_init(static_cast<char*>(c) + (size_t(j) * ldc + j) * size_of(type), (n - j) * size_of(type),
                           true);
        }
    }));
}
// y <- alpha x + keep y, elements `incx` and `incy` apart. Of a vector every element is looked at, and nothing between.
static Status vectors(Handle h, int type, int n, double alpha, const void* x, int incx, void* y, int incy, double keep, const char* what) {
    LOCK;
    if (gone()) return BLAS_FAILED;
    if (incx < 1 || incy < 1) return BLAS_UNSUPPORTED;
    return blas_status(push(static_cast<Library*>(h)->stream, [=] {
        if (!need(x, incx, 1, n, type, IN, what) || !need(y, incy, 1, n, type, keep != 0 ? IN_OUT : OUT, what)) return;
        for (int i = 0; i < n; ++i) {
            const size_t at = size_t(i) * incy;
            set(y, type, at, alpha * get(x, type, size_t(i) * incx) + (keep == 0 ? 0 : keep * get(y, type, at)));
        }
        written(y, incy, 1, n, type);
    }));
}
// B <- alpha B L^-T.
static Status trsm(Handle h, int type, int side, int uplo, int trans, int diag, int m, int n, const void* alpha,
                   const void* l, int ldl, void* b, int ldb) {
    LOCK;
    if (gone()) return BLAS_FAILED;
    if (side != 1 || uplo != 0 || trans != 1 || diag != 0) return BLAS_UNSUPPORTED;
    const double scale = get(alpha, type, 0);
    return blas_status(push(static_cast<Library*>(h)->stream, [=] {
        if (!need(l, ldl, n, n, type, IN, "trsm: L") || !need(b, ldb, m, n, type, IN_OUT, "trsm: B")) return;
        const auto t = matrix(l, type, n, n, ldl);
        auto x = matrix(b, type, m, n, ldb);
        for (int j = 0; j < n; ++j)
            for (int i = 0; i < m; ++i) {
                double sum = scale * x[size_t(j) * m + i];
                for (int p = 0; p < j; ++p)
                    sum -= t[size_t(p) * n + j] * x[size_t(p) * m + i];
                x[size_t(j) * m + i] = sum / t[size_t(j) * n + j];
            }
        store(b, type, m, n, ldb, x.data());
    }));
}

// ---- cuSOLVER
static void potrf(std::vector<double>& a, int n, int* info) {
    for (int j = 0; j < n; ++j)
        for (int i = j; i < n; ++i) {
            double sum = a[size_t(j) * n + i];
            for (int l = 0; l < j; ++l)
                sum -= a[size_t(l) * n + i] * a[size_t(l) * n + j];
            if (i > j)
                a[size_t(j) * n + i] = sum / a[size_t(j) * n + j];
            else if (!(sum > 0)) {
                *info = j + 1;
                return;
            } else
                a[size_t(j) * n + j] = std::sqrt(sum);
        }
}
// LAPACK's conventions: v(0) = 1, H = I - tau v vᵀ.
static void geqrf(std::vector<double>& a, int m, int n, std::vector<double>& tau) {
    for (int j = 0; j < n; ++j) {
        double* x = &a[size_t(j) * m];
        double tail = 0;
        for (int i = j + 1; i < m; ++i)
            tail += x[i] * x[i];
        tau[j] = 0;
        if (tail == 0) continue;
        const double beta = -std::copysign(std::sqrt(x[j] * x[j] + tail), x[j]);
        tau[j] = (beta - x[j]) / beta;
        for (int i = j + 1; i < m; ++i)
            x[i] /= x[j] - beta;
        x[j] = beta;
        for (int c = j + 1; c < n; ++c) {
            double* y = &a[size_t(c) * m];
            double dot = y[j];
            for (int i = j + 1; i < m; ++i)
                dot += x[i] * y[i];
            y[j] -= tau[j] * dot;
            for (int i = j + 1; i < m; ++i)
                y[i] -= tau[j] * dot * x[i];
        }
    }
}
static void orgqr(std::vector<double>& a, int m, int n, const std::vector<double>& tau) {
    std::vector<double> q(size_t(m) * n, 0.0);
    for (int c = 0; c < n; ++c) {
        double* y = &q[size_t(c) * m];
        y[c] = 1;
        for (int j = n - 1; j >= 0; --j) {
            const double* x = &a[size_t(j) * m];
            double dot = y[j];
            for (int i = j + 1; i < m; ++i)
                dot += x[i] * y[i];
            y[j] -= tau[j] * dot;
            for (int i = j + 1; i < m; ++i)
                y[i] -= tau[j] * dot * x[i];
        }
    }
    a.swap(q);
}
// One-sided Jacobi: a V has orthogonal columns; v starts as the identity.
static void jacobi(std::vector<double>& a, int m, int n, std::vector<double>& v) {
    auto rotate = [](double* x, double* y, int count, double c, double s) {
        for (int i = 0; i < count; ++i) {
            const double t = c * x[i] - s * y[i];
            y[i] = s * x[i] + c * y[i];
            x[i] = t;
        }
    };
    for (int sweep = 0, more = 1; sweep < 60 && more; ++sweep) {
        more = 0;
        for (int p = 0; p < n; ++p)
            for (int q = p + 1; q < n; ++q) {
                double *x = &a[size_t(p) * m], *y = &a[size_t(q) * m], xx = 0, yy = 0, xy = 0;
                for (int i = 0; i < m; ++i)
                    xx += x[i] * x[i], yy += y[i] * y[i], xy += x[i] * y[i];
                if (std::fabs(xy) <= 1e-15 * std::sqrt(xx * yy)) continue;
                more = 1;
                const double zeta = (yy - xx) / (2 * xy);
                const double t = std::copysign(1 / (std::fabs(zeta) + std::sqrt(1 + zeta * zeta)), zeta);
                const double c = 1 / std::sqrt(1 + t * t);
                rotate(x, y, m, c, c * t);
                rotate(&v[size_t(p) * n], &v[size_t(q) * n], n, c, c * t);
            }
    }
}
static std::vector<double> identity(int n) {
    std::vector<double> v(size_t(n) * n, 0.0);
    for (int i = 0; i < n; ++i)
        v[size_t(i) * n + i] = 1;
    return v;
}
// Columns of a and v in the order of the columns' lengths, longest first; the lengths go to s and are divided out of a.
static void sort_by_length(std::vector<double>& a, int m, int n, std::vector<double>& v, std::vector<double>& s) {
    std::vector<std::pair<double, int>> order;
    for (int j = 0; j < n; ++j) {
        double sum = 0;
        for (int i = 0; i < m; ++i)
            sum += a[size_t(j) * m + i] * a[size_t(j) * m + i];
        order.push_back({-std::sqrt(sum), j});
    }
    std::sort(order.begin(), order.end());
    auto from_a = a, from_v = v;
    for (int j = 0; j < n; ++j) {
        s[j] = -order[j].first;
        for (int i = 0; i < m; ++i)
            a[size_t(j) * m + i] = s[j] > 0 ? from_a[size_t(order[j].second) * m + i] / s[j] : i == j;
        for (int i = 0; i < n; ++i)
            v[size_t(j) * n + i] = from_v[size_t(order[j].second) * n + i];
    }
}
static Status solve(Handle h, std::function<void(int* info)> work, int* info) {
    LOCK;
    if (gone()) return 6;
    return solver_status(push(static_cast<Library*>(h)->stream, [=] {
        if (!check(Address(info), 4, OUT, "info")) return;
        *info = 0;
        simt::mem_init(info, 4, true);
        work(info);
    }));
}
static Status solve_potrf(Handle h, int type, int uplo, int n, void* a, int lda, int* info) {
    if (uplo != 0) return 3;
    auto work = [=](int* info) {
        if (!need(a, lda, n, n, type, IN_OUT, "potrf")) return;
        auto x = matrix(a, type, n, n, lda);
        potrf(x, n, info);
        store(a, type, n, n, lda, x.data());
    };
    return solve(h, work, info);
}
static Status solve_geqrf(Handle h, int type, int m, int n, void* a, int lda, void* tau, int* info) {
    auto work = [=](int*) {
        if (!need(a, lda, m, n, type, IN_OUT, "geqrf") || !need(tau, n, n, 1, type, OUT, "geqrf: tau")) return;
        auto x = matrix(a, type, m, n, lda);
        std::vector<double> t(n);
        geqrf(x, m, n, t);
        store(a, type, m, n, lda, x.data());
        store(tau, type, n, 1, n, t.data());
    };
    return solve(h, work, info);
}
static Status solve_orgqr(Handle h, int type, int m, int n, int k, void* a, int lda, const void* tau, int* info) {
    if (k != n) return 3;
    auto work = [=](int*) {
        if (!need(a, lda, m, n, type, IN_OUT, "orgqr") || !need(tau, n, n, 1, type, IN, "orgqr: tau")) return;
        auto x = matrix(a, type, m, n, lda);
        orgqr(x, m, n, matrix(tau, type, n, 1, n));
        store(a, type, m, n, lda, x.data());
    };
    return solve(h, work, info);
}
static Status solve_syevd(Handle h, int type, int job, int uplo, int n, void* a, int lda, void* w, int* info) {
    if (job != 1 || uplo != 0) return 3;
    auto work = [=](int*) {
        if (!need(a, lda, n, n, type, IN_OUT, "syevd") || !need(w, n, n, 1, type, OUT, "syevd: values")) return;
        auto x = matrix(a, type, n, n, lda);
        double bound = 0;
        for (int j = 0; j < n; ++j)
            for (int i = 0; i < j; ++i)
                x[size_t(j) * n + i] = x[size_t(i) * n + j];
        for (int j = 0; j < n; ++j) {
            double row = 0;
            for (int i = 0; i < n; ++i)
                row += std::fabs(x[size_t(j) * n + i]);
            bound = std::max(bound, row);
        }
        // A + bound I is semidefinite: its singular vectors are its eigenvectors.
        for (int j = 0; j < n; ++j)
            x[size_t(j) * n + j] += bound;
        auto v = identity(n);
        std::vector<double> s(n);
        jacobi(x, n, n, v);
        sort_by_length(x, n, n, v, s);
        std::vector<double> vectors(size_t(n) * n), values(n);
        for (int j = 0; j < n; ++j) {
            values[j] = s[n - 1 - j] - bound;
            std::copy_n(&v[size_t(n - 1 - j) * n], n, &vectors[size_t(j) * n]);
        }
        store(a, type, n, n, lda, vectors.data());
        store(w, type, n, 1, n, values.data());
    };
    return solve(h, work, info);
}
static Status solve_gesvdj(Handle h, int type, int job, int econ, int m, int n, void* a, int lda, void* s, void* u,
                           int ldu, void* v, int ldv, int* info) {
    if (job != 1 || econ != 1 || m < n) return 3;
    auto work = [=](int*) {
        if (!need(a, lda, m, n, type, IN_OUT, "gesvdj") || !need(u, ldu, m, n, type, OUT, "gesvdj: U") ||
            !need(v, ldv, n, n, type, OUT, "gesvdj: V") || !need(s, n, n, 1, type, OUT, "gesvdj: s"))
            return;
        auto x = matrix(a, type, m, n, lda), y = identity(n);
        std::vector<double> values(n);
        jacobi(x, m, n, y);
        sort_by_length(x, m, n, y, values);
        store(u, type, m, n, ldu, x.data());
        store(v, type, n, n, ldv, y.data());
        store(s, type, n, 1, n, values.data());
    };
    return solve(h, work, info);
}

extern "C" {
#define BOTH(F, T, TYPE)                                                                                              \
    Status cublas##F##syrk_v2(Handle h, int uplo, int trans, int n, int k, const T* alpha, const T* a, int lda,       \
                              const T* beta, T* c, int ldc) {                                                         \
        return syrk(h, TYPE, uplo, trans, n, k, alpha, a, lda, beta, c, ldc);                                         \
    }                                                                                                                 \
    Status cublas##F##trsm_v2(Handle h, int side, int uplo, int trans, int diag, int m, int n, const T* alpha,        \
                              const T* l, int ldl, T* b, int ldb) {                                                   \
        return trsm(h, TYPE, side, uplo, trans, diag, m, n, alpha, l, ldl, b, ldb);                                   \
    }                                                                                                                 \
    Status cublas##F##axpy_v2(Handle h, int n, const T* alpha, const T* x, int incx, T* y, int incy) {                \
        return vectors(h, TYPE, n, get(alpha, TYPE, 0), x, incx, y, incy, 1, "axpy");                                 \
    }                                                                                                                 \
    Status cublas##F##copy_v2(Handle h, int n, const T* x, int incx, T* y, int incy) {                                \
        return vectors(h, TYPE, n, 1, x, incx, y, incy, 0, "copy");                                                   \
    }                                                                                                                 \
    Status cusolverDn##F##potrf_bufferSize(Handle, int, int, T*, int, int* length) {                                  \
        return *length = 1, OK;                                                                                       \
    }                                                                                                                 \
    Status cusolverDn##F##potrf(Handle h, int uplo, int n, T* a, int lda, T*, int, int* info) {                       \
        return solve_potrf(h, TYPE, uplo, n, a, lda, info);                                                           \
    }                                                                                                                 \
    Status cusolverDn##F##geqrf_bufferSize(Handle, int, int, T*, int, int* length) {                                  \
        return *length = 1, OK;                                                                                       \
    }                                                                                                                 \
    Status cusolverDn##F##geqrf(Handle h, int m, int n, T* a, int lda, T* tau, T*, int, int* info) {                  \
        return solve_geqrf(h, TYPE, m, n, a, lda, tau, info);                                                         \
    }                                                                                                                 \
    Status cusolverDn##F##orgqr_bufferSize(Handle, int, int, int, const T*, int, const T*, int* length) {             \
        return *length = 1, OK;                                                                                       \
    }                                                                                                                 \
    Status cusolverDn##F##orgqr(Handle h, int m, int n, int k, T* a, int lda, const T* tau, T*, int, int* info) {     \
        return solve_orgqr(h, TYPE, m, n, k, a, lda, tau, info);                                                      \
    }                                                                                                                 \
    Status cusolverDn##F##syevd_bufferSize(Handle, int, int, int, const T*, int, const T*, int* length) {             \
        return *length = 1, OK;                                                                                       \
    }                                                                                                                 \
    Status cusolverDn##F##syevd(Handle h, int job, int uplo, int n, T* a, int lda, T* w, T*, int, int* info) {        \
        return solve_syevd(h, TYPE, job, uplo, n, a, lda, w, info);                                                   \
    }                                                                                                                 \
    Status cusolverDn##F##gesvdj_bufferSize(Handle, int, int, int, int, const T*, int, const T*, const T*, int,       \
                                            const T*, int, int* length, Handle) {                                     \
        return *length = 1, OK;                                                                                       \
    }                                                                                                                 \
    Status cusolverDn##F##gesvdj(Handle h, int job, int econ, int m, int n, T* a, int lda, T* s, T* u, int ldu, T* v, \
                                 int ldv, T*, int, int* info, Handle) {                                               \
        return solve_gesvdj(h, TYPE, job, econ, m, n, a, lda, s, u, ldu, v, ldv, info);                               \
    }
BOTH(S, float, F32)
BOTH(D, double, F64)
Status cusolverDnCreate(Handle* h) {
    LOCK;
    if (gone()) return 1;  // not initialized
    *h = create<Library>();
    return OK;
}
Status cusolverDnDestroy(Handle h) {
    LOCK;
    return destroy<Library>(h);
}
Status cusolverDnSetStream(Handle h, Handle s) {
    static_cast<Library*>(h)->stream = s;
    return OK;
}
Status cusolverDnCreateGesvdjInfo(Handle* info) {
    LOCK;
    *info = create<Event>();
    return OK;
}
Status cusolverDnDestroyGesvdjInfo(Handle info) {
    LOCK;
    return destroy<Event>(info);
}
}
#pragma GCC visibility pop
