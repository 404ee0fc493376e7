/* What the core can do at most: float32 multiply-adds of 256-bit vectors that stay in registers.
 * Prints billions of multiply-accumulates a second, the best of many slices of a millisecond. */
#include <immintrin.h>
#include <stdio.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

int main(void) {
    enum { CHAINS = 12, TURNS = 5000, SLICES = 400 };
    double best = 0;
    for (int slice = 0; slice < SLICES; slice++) {
        __m256 sum[CHAINS], x = _mm256_set1_ps(1e-9f), y = _mm256_set1_ps(1e-9f);
        for (int i = 0; i < CHAINS; i++) sum[i] = _mm256_set1_ps(i);
        double start = now();
        for (int turn = 0; turn < TURNS; turn++)
            for (int i = 0; i < CHAINS; i++) {
                sum[i] = _mm256_fmadd_ps(x, y, sum[i]);
                __asm__ volatile("" : "+x"(sum[i])); /* nothing is merged or left out */
            }
        double rate = 8.0 * CHAINS * TURNS / (now() - start) * 1e-9;
        if (rate > best) best = rate;
    }
    printf("%.2f\n", best);
    return 0;
}
