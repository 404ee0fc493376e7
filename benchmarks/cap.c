/* Answers CPUID as a CPU of an older instruction set would: preloaded by cap.py into a runtime whose cpuid
 * instructions were replaced by ud2. $EASYQUANT_CAP is "avx2" or "avx512" (AVX-512 without VNNI). */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define AVX512_EBX 0xdc230000u /* f, dq, ifma, pf, er, cd, bw, vl */
#define AVX512_ECX 0x00005842u /* vbmi, vbmi2, vnni, bitalg, vpopcntdq */
#define VNNI_ECX 0x00000800u
#define LATER_EDX 0x03c0010cu /* 4vnniw, 4fmaps, vp2intersect, amx, fp16 */

static int avx512;

static void answer(int signal_number, siginfo_t *info, void *context) {
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)regs[REG_RIP];
    unsigned leaf = regs[REG_RAX], sub = regs[REG_RCX], a, b, c, d;
    if (code[0] != 0x0f || code[1] != 0x0b) {
        signal(signal_number, SIG_DFL);
        return;
    }
    __cpuid_count(leaf, sub, a, b, c, d);
    if (leaf == 7 && sub == 0) {
        b &= avx512 ? ~0u : ~AVX512_EBX;
        c &= avx512 ? ~VNNI_ECX : ~AVX512_ECX;
        d &= ~LATER_EDX;
    } else if (leaf == 7) { /* avx_vnni, avx512_bf16 and what came after */
        a = b = c = d = 0;
    }
    regs[REG_RAX] = a, regs[REG_RBX] = b, regs[REG_RCX] = c, regs[REG_RDX] = d;
    regs[REG_RIP] += 2;
}

__attribute__((constructor)) static void install(void) {
    struct sigaction action;
    const char *cap = getenv("EASYQUANT_CAP");
    avx512 = cap && !strcmp(cap, "avx512");
    memset(&action, 0, sizeof action);
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGILL, &action, 0);
}
