/* A stand-in for Ascend's runtime (libascendcl.so) on a machine without a card: device memory is host memory, queued
 * work is done at once, events are points of the clock. It knows just enough to let the real torch_npu start.
 *
 * In: calls by the names and arguments of torch_npu's own headers (include/third_party/acl). Out: 0, or 500000 where
 * a caller must not believe that an operator was computed. What is not here answers 0 (`building.py` writes those).
 * Read from the environment: NPUSTUB_COUNT (cards, 2), NPUSTUB_SOC (Ascend910B2), NPUSTUB_VERBOSE (names each call
 * to stderr).
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { FINE = 0, NO_MEMORY = 207001, NOT_COMPUTED = 500000, CARDS = 16, LINE = 512 };
static const size_t GIB = (size_t)1 << 30;
typedef void *handle;
typedef const void *source;
#define OUT __attribute__((visibility("default")))
#define SAYS(result) { said(__func__); result; return FINE; }
#define ANSWERS(name, arguments, result) OUT int name arguments SAYS(result)

void said(const char *name) {
    static int loud = -1;
    if (loud < 0) loud = getenv("NPUSTUB_VERBOSE") != NULL;
    if (loud) fprintf(stderr, "npustub: %s\n", name);
}

/* ---- cards: a context is the address of its card's place in a row */
static char row[CARDS];
static __thread int card = 0;
static __thread handle context = row;

static int cards(void) {
    const char *wanted = getenv("NPUSTUB_COUNT");
    int count = wanted ? atoi(wanted) : 2;
    return count > CARDS ? CARDS : count;
}
ANSWERS(aclInit, (const char *config), )
ANSWERS(aclFinalize, (void), )
ANSWERS(aclrtSetDevice, (int number), card = number; context = row + number)
ANSWERS(aclrtGetDevice, (int *number), *number = card)
ANSWERS(aclrtGetDeviceCount, (uint32_t *count), *count = (uint32_t)cards())
ANSWERS(aclrtGetCurrentContext, (handle *found), *found = context)
ANSWERS(aclrtSetCurrentContext, (handle wanted), context = wanted; card = (int)((char *)wanted - row))
ANSWERS(aclrtGetPrimaryCtxState, (int number, uint32_t *flags, int *active), if (flags) *flags = 0; *active = 1)
ANSWERS(aclrtDeviceCanAccessPeer, (int *can, int one, int other), *can = 1)
OUT const char *aclrtGetSocName(void) {
    const char *wanted = getenv("NPUSTUB_SOC");
    return wanted ? wanted : "Ascend910B2";
}
enum { CORES = 24, TOTAL_MEMORY = 301 };
ANSWERS(aclGetDeviceCapability, (uint32_t number, int which, int64_t *value), *value = CORES)
ANSWERS(aclrtGetDeviceInfo, (uint32_t number, int which, int64_t *value),
        *value = which == TOTAL_MEMORY ? (int64_t)(64 * GIB) : CORES)
ANSWERS(aclrtGetMemInfo, (int which, size_t *left, size_t *total), *left = 60 * GIB; *total = 64 * GIB)

/* ---- memory: malloc, or reserved pages opened one by one where segments may grow */
static int take(handle *found, size_t size) {
    return posix_memalign(found, LINE, size ? size : LINE) ? NO_MEMORY : FINE;
}
OUT int aclrtMalloc(handle *found, size_t size, int policy) { return take(found, size); }
OUT int aclrtMallocAlign32(handle *found, size_t size, int policy) { return take(found, size); }
OUT int aclrtMallocHost(handle *found, size_t size) { return take(found, size); }
OUT int aclrtMallocHostWithCfg(handle *found, uint64_t size, handle config) { return take(found, size); }
ANSWERS(aclrtFree, (handle memory), free(memory))
ANSWERS(aclrtFreeHost, (handle memory), free(memory))
OUT int aclrtReserveMemAddress(handle *found, size_t size, size_t alignment, handle wanted, uint64_t flags) {
    *found = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return *found == MAP_FAILED ? NO_MEMORY : FINE;
}
OUT int aclrtMapMem(handle memory, size_t size, size_t offset, handle physical, uint64_t flags) {
    return mprotect(memory, size, PROT_READ | PROT_WRITE) ? NO_MEMORY : FINE;
}
ANSWERS(aclrtMallocPhysical, (handle *found, size_t size, source kind, uint64_t flags), *found = malloc(1))
ANSWERS(aclrtFreePhysical, (handle physical), free(physical))
ANSWERS(aclrtMemcpy, (handle to, size_t room, source from, size_t size, int kind), if (size) memmove(to, from, size))
ANSWERS(aclrtMemcpyAsync, (handle to, size_t room, source from, size_t size, int kind, handle stream),
        if (size) memmove(to, from, size))
ANSWERS(aclrtMemcpyAsyncWithCondition, (handle to, size_t room, source from, size_t size, int kind, handle stream),
        if (size) memmove(to, from, size))
ANSWERS(aclrtMemset, (handle to, size_t room, int byte, size_t size), memset(to, byte, size))
ANSWERS(aclrtMemsetAsync, (handle to, size_t room, int byte, size_t size, handle stream), memset(to, byte, size))
struct where { uint32_t card; int kind; uint32_t page; uint32_t more[4]; };
enum { UNREGISTERED = 2 };
ANSWERS(aclrtPointerGetAttributes, (source memory, struct where *found),
        memset(found, 0, sizeof *found); found->kind = UNREGISTERED; found->page = 4096)

/* ---- streams and events */
static int32_t streams = 0;
ANSWERS(aclrtCreateStream, (handle *stream), *stream = malloc(sizeof streams); *(int32_t *)*stream = streams++)
OUT int aclrtCreateStreamWithConfig(handle *stream, uint32_t rank, uint32_t flags) { return aclrtCreateStream(stream); }
ANSWERS(aclrtDestroyStream, (handle stream), free(stream))
ANSWERS(aclrtDestroyStreamForce, (handle stream), free(stream))
ANSWERS(aclrtStreamGetId, (handle stream, int32_t *number), *number = stream ? *(int32_t *)stream : 0)
enum { COMPLETE = 1, WAITED = 0 };
ANSWERS(aclrtStreamQuery, (handle stream, int *status), *status = COMPLETE)
ANSWERS(aclrtCreateEventExWithFlag, (handle *event, uint32_t flags), *event = calloc(1, sizeof(struct timespec)))
OUT int aclrtCreateEventWithFlag(handle *event, uint32_t flags) { return aclrtCreateEventExWithFlag(event, flags); }
ANSWERS(aclrtDestroyEvent, (handle event), free(event))
ANSWERS(aclrtRecordEvent, (handle event, handle stream), clock_gettime(CLOCK_MONOTONIC, event))
ANSWERS(aclrtQueryEventStatus, (handle event, int *status), *status = COMPLETE)
ANSWERS(aclrtQueryEventWaitStatus, (handle event, int *status), *status = WAITED)
OUT int aclrtEventElapsedTime(float *milliseconds, handle from, handle to) {
    struct timespec *a = from, *b = to;
    *milliseconds = (b->tv_sec - a->tv_sec) * 1e3f + (b->tv_nsec - a->tv_nsec) / 1e6f;
    return FINE;
}

/* ---- what it says of itself */
OUT const char *aclGetRecentErrMsg(void) { return ""; }
ANSWERS(aclrtGetStreamOverflowSwitch, (handle stream, uint32_t *on), *on = 0)
ANSWERS(aclrtGetSysParamOpt, (int which, int64_t *value), *value = 0)
ANSWERS(aclGetCannAttribute, (int which, int *value), *value = 1)
OUT size_t aclGetCompileoptSize(int which) { return 256; }
ANSWERS(aclGetCompileopt, (int which, char *value, size_t room), if (room) value[0] = 0)
struct cann { char version[128], major[64], minor[64], release[64], patch[64], more[128]; };
ANSWERS(aclsysGetCANNVersion, (int package, struct cann *found), memset(found, 0, sizeof *found);
        strcpy(found->version, "8.5.0"); strcpy(found->major, "8"); strcpy(found->minor, "5"); strcpy(found->release, "0"))
ANSWERS(aclsysGetVersionStr, (char *package, char *version), strcpy(version, "8.5.0"))

/* ---- operators of the old kind: described, never computed */
OUT handle aclCreateDataBuffer(handle memory, size_t size) { return malloc(1); }
ANSWERS(aclDestroyDataBuffer, (handle buffer), free(buffer))
OUT handle aclCreateTensorDesc(int type, int dims, const int64_t *sizes, int format) { return malloc(1); }
OUT void aclDestroyTensorDesc(handle description) { free(description); }
OUT handle aclopCreateAttr(void) { return malloc(1); }
OUT void aclopDestroyAttr(handle attributes) { free(attributes); }
static int refused(const char *name) {
    fprintf(stderr, "npustub: nothing here computes %s\n", name);
    return NOT_COMPUTED;
}
OUT int aclopCompileAndExecute(const char *name, ...) { return refused(name); }
OUT int aclopCompileAndExecuteV2(const char *name, ...) { return refused(name); }
OUT uint64_t MsprofGetHashId(const char *text, size_t size) { return 0; }
OUT uint64_t MsprofSysCycleTime(void) { return 0; }
