/* How long a line of memory takes from one core to another: nanoseconds, the least of many rounds of a ball that two
 * threads throw to each other. core_to_core CPU CPU */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { THROWS = 20000, ROUNDS = 10 };

static _Alignas(64) atomic_int ball;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void on(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static void *other(void *cpu) {
    on(*(int *)cpu);
    for (int i = 0; i < THROWS; i++) {
        while (atomic_load(&ball) != 2 * i + 1) {
        }
        atomic_store(&ball, 2 * i + 2);
    }
    return NULL;
}

int main(int count, char **arguments) {
    if (count != 3) {
        fprintf(stderr, "error: name two CPUs\n");
        return 1;
    }
    int mine = atoi(arguments[1]), theirs = atoi(arguments[2]);
    double best = 1e9;
    on(mine);
    for (int round = 0; round < ROUNDS; round++) {
        pthread_t thread;
        atomic_store(&ball, 0);
        if (pthread_create(&thread, NULL, other, &theirs))
            return 1;
        double start = now();
        for (int i = 0; i < THROWS; i++) {
            atomic_store(&ball, 2 * i + 1);
            while (atomic_load(&ball) != 2 * i + 2) {
            }
        }
        double each = (now() - start) / THROWS / 2 * 1e9;
        pthread_join(thread, NULL);
        if (each < best)
            best = each;
    }
    printf("%.0f\n", best);
    return 0;
}
