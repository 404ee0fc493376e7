/* How fast a multiply instruction is whose operands stay in registers: billions of multiply-accumulates a
 * second of the loops that the kernels are made of, the best of many slices of a millisecond.
 * register_loops NAME; a name per line below. */
#include <immintrin.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { TURNS = 4000, SLICES = 200 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* sums of a type, a step that adds the products of `macs` pairs to one of them; the empty assembly keeps every step */
#define LOOP(name, features, type, zero, chains, macs, step)                                    \
    __attribute__((target(features))) static double name(void) {                                \
        double best = 0;                                                                        \
        for (int slice = 0; slice < SLICES; slice++) {                                          \
            type sum[chains], x = zero, w = zero, ones = zero;                                  \
            for (int i = 0; i < chains; i++) sum[i] = zero;                                     \
            __asm__ volatile("" : "+v"(x), "+v"(w), "+v"(ones));                                \
            double start = now();                                                               \
            for (int turn = 0; turn < TURNS; turn++)                                            \
                for (int i = 0; i < chains; i++) {                                              \
                    step;                                                                       \
                    __asm__ volatile("" : "+v"(sum[i]));                                        \
                }                                                                               \
            double rate = (double)(macs) * chains * TURNS / (now() - start) * 1e-9;             \
            if (rate > best) best = rate;                                                       \
        }                                                                                       \
        return best;                                                                            \
    }

/* four byte-pair multiplies summed in int16, then widened: direct_*_d4 */
#define QUAD(p, x, w, ones)                                                                              \
    p##_add_epi32(sum[i], p##_madd_epi16(p##_add_epi16(p##_add_epi16(BYTES(p, x, w), BYTES(p, w, x)),    \
                                                       p##_add_epi16(BYTES(p, x, x), BYTES(p, w, w))), ones))
#define BYTES(p, a, b) p##_maddubs_epi16(barrier_##p(a), b)
#define BARRIER(p, type, features)                                                 \
    __attribute__((target(features), always_inline)) static inline type barrier_##p(type a) { \
        __asm__ volatile("" : "+v"(a));                                            \
        return a;                                                                  \
    }
BARRIER(_mm256, __m256i, "avx2")
BARRIER(_mm512, __m512i, "avx512bw")

LOOP(avx2_bytes, "avx2", __m256i, _mm256_setzero_si256(), 7, 128, sum[i] = QUAD(_mm256, x, w, ones))
LOOP(avx2_words, "avx2", __m256i, _mm256_setzero_si256(), 8, 16,
     sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(barrier__mm256(x), w)))
LOOP(avx512bw_bytes, "avx512bw", __m512i, _mm512_setzero_si512(), 14, 256, sum[i] = QUAD(_mm512, x, w, ones))
LOOP(avx512bw_words, "avx512bw", __m512i, _mm512_setzero_si512(), 14, 32,
     sum[i] = _mm512_add_epi32(sum[i], _mm512_madd_epi16(barrier__mm512(x), w)))
LOOP(avx512vnni_bytes, "avx512bw,avx512vnni", __m512i, _mm512_setzero_si512(), 14, 64,
     sum[i] = _mm512_dpbusd_epi32(sum[i], x, w))
LOOP(avx512vnni_words, "avx512bw,avx512vnni", __m512i, _mm512_setzero_si512(), 14, 32,
     sum[i] = _mm512_dpwssd_epi32(sum[i], x, w))

static const struct {
    const char *name;
    double (*run)(void);
} LOOPS[] = {
    {"avx2_bytes", avx2_bytes},           {"avx2_words", avx2_words},
    {"avx512bw_bytes", avx512bw_bytes},   {"avx512bw_words", avx512bw_words},
    {"avx512vnni_bytes", avx512vnni_bytes}, {"avx512vnni_words", avx512vnni_words},
};

int main(int count, char **arguments) {
    for (unsigned i = 0; count > 1 && i < sizeof LOOPS / sizeof *LOOPS; i++)
        if (!strcmp(LOOPS[i].name, arguments[1])) {
            printf("%.2f\n", LOOPS[i].run());
            return 0;
        }
    fprintf(stderr, "error: name a loop\n");
    return 1;
}
