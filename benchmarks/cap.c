/* Answers CPUID as a CPU of a plainer class would: preloaded by cap.py into a runtime whose cpuid instructions
 * were replaced by ud2. $EASYQUANT_CAP is one of the names in `caps`; any other hides nothing. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

/* Of leaf 7: */
#define AVX512_EBX 0xdc230000u /* f, dq, ifma, pf, er, cd, bw, vl */
#define AVX512_ECX 0x00005842u /* vbmi, vbmi2, vnni, bitalg, vpopcntdq */
#define VNNI_ECX 0x00000800u
#define AVX512_EDX 0x0080010cu /* 4vnniw, 4fmaps, vp2intersect, fp16 */
#define AMX_EDX 0x03400000u    /* bf16, tile, int8 */
/* and of its subleaf 1: */
#define AVXVNNI_EAX 0x00000010u
#define BF16_EAX 0x00000020u /* of AVX-512 */

/* What a class does not have in leaf 7, and all that it has in its subleaf 1 of the later instructions: of AMX
 * there are no peers without bf16, which oneDNN asks for before it uses any of it. */
static const struct cap {
    const char *name;
    unsigned no_ebx, no_ecx, no_edx, later_eax;
} caps[] = {
    {"avx2", AVX512_EBX, AVX512_ECX, AVX512_EDX | AMX_EDX, 0},
    {"avxvnni", AVX512_EBX, AVX512_ECX, AVX512_EDX | AMX_EDX, AVXVNNI_EAX},
    {"avx512bw", 0, VNNI_ECX, AVX512_EDX | AMX_EDX, 0},
    {"avx512vnni", 0, 0, AVX512_EDX | AMX_EDX, 0},
    {"amx", 0, 0, 0, AVXVNNI_EAX | BF16_EAX},
};

static const struct cap *cap;

static void choose(const char *name) {
    cap = 0;
    for (unsigned i = 0; name && i < sizeof caps / sizeof *caps; i++)
        if (!strcmp(name, caps[i].name))
            cap = &caps[i];
}

/* Hide what the class lacks in the answer (eax, ebx, ecx, edx) of a leaf. */
static void hide(unsigned leaf, unsigned sub, unsigned *out) {
    if (!cap || leaf != 7)
        return;
    if (sub == 0) {
        out[1] &= ~cap->no_ebx, out[2] &= ~cap->no_ecx, out[3] &= ~cap->no_edx;
    } else {
        out[0] &= sub == 1 ? cap->later_eax : 0;
        out[1] = out[2] = out[3] = 0;
    }
}

static void answer(int signal_number, siginfo_t *info, void *context) {
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)regs[REG_RIP];
    unsigned leaf = regs[REG_RAX], sub = regs[REG_RCX], out[4];
    if (code[0] != 0x0f || code[1] != 0x0b) {
        signal(signal_number, SIG_DFL);
        return;
    }
    __cpuid_count(leaf, sub, out[0], out[1], out[2], out[3]);
    hide(leaf, sub, out);
    regs[REG_RAX] = out[0], regs[REG_RBX] = out[1], regs[REG_RCX] = out[2], regs[REG_RDX] = out[3];
    regs[REG_RIP] += 2;
}

__attribute__((constructor)) static void install(void) {
    struct sigaction action;
    choose(getenv("EASYQUANT_CAP"));
    memset(&action, 0, sizeof action);
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGILL, &action, 0);
}
