/* What the hook (tako_vm_hook.py) cannot do in Python: to speak after the interpreter's own end, and to
 * go through the calls of its beginning and its end before there is a program.
 *
 * An extension module in the stable binary interface of Python, declared here by hand, so that no headers
 * of Python are needed to build it. It is told nothing and holds nothing of a program.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <wchar.h>

/* https://docs.python.org/3/c-api/stable.html; the layout is that of Include/moduleobject.h and
 * Include/methodobject.h of Python 3.11, for an interpreter with a global lock. */
typedef struct object {
    ssize_t references;
    void *type;
} PyObject;
extern PyObject PyType_Type, _PyWeakref_RefType, _Py_NoneStruct;
typedef struct {
    const char *name;
    PyObject *(*function)(PyObject *, PyObject *);
    int flags;
    const char *doc;
} PyMethodDef;
typedef struct {
    struct {
        ssize_t references;
        void *type;
        PyObject *(*init)(void);
        ssize_t index;
        PyObject *copy;
    } base;
    const char *name, *doc;
    ssize_t size;
    PyMethodDef *methods;
    void *slots, *traverse, *clear, *free;
} PyModuleDef;
enum { METH_NOARGS = 4, METH_O = 8, PYTHON_API_VERSION = 1013 };
enum { TP_DEL = 53, TP_FINALIZE = 80, TPFLAGS_HAVE_GC = 1 << 14 };
PyObject *PyModule_Create2(PyModuleDef *, int);
PyObject *Py_BuildValue(const char *, ...);
PyObject *PyUnicode_FromString(const char *);
PyObject *PyObject_Type(PyObject *);
PyObject *PyObject_GetAttrString(PyObject *, const char *);
ssize_t PyList_Size(PyObject *);
PyObject *PyList_GetItem(PyObject *, ssize_t);
unsigned long PyType_GetFlags(PyObject *);
void *PyType_GetSlot(PyObject *, int);
int PyType_IsSubtype(PyObject *, PyObject *);
void Py_DecRef(PyObject *);
int PyRun_AnyFileExFlags(FILE *, const char *, int, void *);
/* The interpreter's own; another version may not have them. */
__attribute__((weak)) int _Py_wreadlink(const wchar_t *, wchar_t *, size_t);
__attribute__((weak)) wchar_t *_Py_wrealpath(const wchar_t *, wchar_t *, size_t);
__attribute__((weak)) FILE *_Py_fopen_obj(PyObject *, const char *);

static const char report[] = "/run/tako-vm/report";
static const char program[] = "/code/main.py";

/* The process that speaks: a forked child inherits the handler. */
static pid_t main_pid;

/* Writes one record of at most PIPE_BUF bytes; the descriptor, or -1 when it was not taken whole. */
static int tell(const char *record, size_t length) {
    int fifo = open(report, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (fifo < 0 || write(fifo, record, length) == (ssize_t)length)
        return fifo;
    close(fifo);
    return -1;
}

/* Tells init the status and lets it kill this process, since what is left is to take its memory apart, which
 * in gVisor takes longer than a short program. It stands still meanwhile, for a processor that it shares
 * with init. Where init cannot be told, the process ends by itself, and init learns the status from that. */
static void leave(int status) {
    if (getpid() != main_pid)
        return;
    /* As exit(3) does after the last handler. */
    fflush(NULL);
    char record[64];
    /* A NUL first: whatever somebody else has begun to write ends there. */
    int length = snprintf(record, sizeof record, "%cended\n%d\n%d", 0, (int)main_pid, status & 0xff);
    if (tell(record, (size_t)length + 1) < 0)
        return;
    for (;;)
        /* Not pause(3), whose place gVisor would rewrite now, once, for nothing. */
        syscall(SYS_pause);
}

/* How often a library was loaded. */
static int count(struct dl_phdr_info *info, size_t size, void *loaded) {
    (void)size;
    *(unsigned long long *)loaded = info->dlpi_adds;
    return 1;
}

static unsigned long long loaded(void) {
    unsigned long long times = 0;
    dl_iterate_phdr(count, &times);
    return times;
}

static unsigned long long loaded_before;

/* The last of the handlers of exit(3): the interpreter has ended. Libraries that the program has loaded may
 * have something to do after that. */
static void at_exit(int status, void *nothing) {
    (void)nothing;
    if (loaded() == loaded_before)
        leave(status);
}

/* watch(): from now on the end of this process is told. */
static PyObject *watch(PyObject *module, PyObject *nothing) {
    (void)module;
    (void)nothing;
    main_pid = getpid();
    on_exit(at_exit, NULL);
    return Py_BuildValue("");
}

/* settle(): the libraries that are there now leave nothing to do for the end. */
static PyObject *settle(PyObject *module, PyObject *nothing) {
    (void)module;
    (void)nothing;
    loaded_before = loaded();
    return Py_BuildValue("");
}

/* Whether objects of a type have something to say when they are finalised. */
static int is_outspoken(PyObject *type) {
    return PyType_GetSlot(type, TP_FINALIZE) || PyType_GetSlot(type, TP_DEL);
}

/* Whether somebody would hear of it if this object came to its end. */
static int would_be_heard(PyObject *object) {
    PyObject *type = PyObject_Type(object);
    int heard = is_outspoken(type);
    if (PyType_IsSubtype(type, &PyType_Type))
        /* A class, whose objects the collector may not know of. */
        heard |= !(PyType_GetFlags(object) & TPFLAGS_HAVE_GC) && is_outspoken(object);
    if (PyType_IsSubtype(type, &_PyWeakref_RefType)) {
        PyObject *callback = PyObject_GetAttrString(object, "__callback__");
        heard |= callback != &_Py_NoneStruct;
        if (callback)
            Py_DecRef(callback);
    }
    Py_DecRef(type);
    return heard;
}

/* succeed(objects): the program has returned and the status will be 0; these are all the objects of it that
 * the collector knows. Where nobody would hear of the end of any, none is made: for a short program it is
 * the longer part. */
static PyObject *succeed(PyObject *module, PyObject *objects) {
    (void)module;
    int heard = loaded() != loaded_before;
    for (ssize_t i = 0; !heard && i < PyList_Size(objects); i++)
        heard = would_be_heard(PyList_GetItem(objects, i));
    if (!heard)
        leave(0);
    return Py_BuildValue("");
}

/* Opens the program as main() of the interpreter does (Modules/main.c, Python/pathconfig.c), with the same
 * functions, since each is found in the libraries when it is first called. */
static FILE *open_program(void) {
    wchar_t link[PATH_MAX];
    const wchar_t wide[] = L"/code/main.py";
    if (_Py_wreadlink)
        _Py_wreadlink(wide, link, PATH_MAX);
    if (_Py_wrealpath)
        _Py_wrealpath(wide, link, PATH_MAX);
    if (!_Py_fopen_obj)
        return fopen(program, "rb");
    PyObject *path = PyUnicode_FromString(program);
    FILE *file = path ? _Py_fopen_obj(path, "rb") : NULL;
    Py_DecRef(path);
    return file;
}

/* Of the dynamic linker: where main() stands. */
extern void *__libc_stack_end;

/* Reaches each page of the stack up to that of main(), which goes on there when the hook has returned. */
static void reach_stack(void) {
    for (volatile char *page = __builtin_frame_address(0); page < (char *)__libc_stack_end; page += 4096)
        *page = *page;
}

/* What the interpreter calls for the first time at its end (`LD_DEBUG=bindings`): to find it, the tables of
 * all libraries are looked through. */
static const char *const last_found[] = {"munmap", "pthread_key_delete", "fflush"};

/* rehearse(): opens, reads and runs the program as main() does, and makes the calls of its end, without
 * effect. Returns 0 if all went well. */
static PyObject *rehearse(PyObject *module, PyObject *nothing) {
    (void)module;
    (void)nothing;
    reach_stack();
    FILE *file = open_program();
    int failed = file ? PyRun_AnyFileExFlags(file, program, 1, NULL) : -1;
    struct sigaction action;
    struct timespec now;
    failed |= sigaction(SIGINT, NULL, &action) | clock_gettime(CLOCK_REALTIME, &now);
    fflush(NULL);
    void *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    failed |= memory == MAP_FAILED ? -1 : munmap(memory, 4096);
    for (size_t i = 0; i < sizeof last_found / sizeof *last_found; i++)
        failed |= dlsym(RTLD_DEFAULT, last_found[i]) ? 0 : -1;
    /* An empty record, which says nothing. */
    int fifo = tell("", 1);
    failed |= getpid() < 0 || fifo < 0 || close(fifo);
    return Py_BuildValue("i", failed);
}

static PyMethodDef methods[] = {
    {"watch", watch, METH_NOARGS, NULL},
    {"settle", settle, METH_NOARGS, NULL},
    {"succeed", succeed, METH_O, NULL},
    {"rehearse", rehearse, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef definition = {
    .base = {.references = 1}, .name = "tako_vm_end", .size = -1, .methods = methods};

__attribute__((visibility("default"))) PyObject *PyInit_tako_vm_end(void) {
    return PyModule_Create2(&definition, PYTHON_API_VERSION);
}
