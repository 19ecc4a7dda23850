/* What ThreadSanitizer has to be told of Rust's standard library, which comes compiled without it. Linked with --wrap, so that
 * the real functions are still called.
 *
 * Arc: the last owner learns that the others are done from a decrement with release order and a fence with acquire order after
 * it. ThreadSanitizer does not know fences. Here every decrement that releases acquires, too: for the last owner the same
 * order of events, put into the instruction.
 *
 * Mutex: an uncontended lock is taken by code that is compiled with the program and so is known; one that has to be waited
 * for, by a function of the library. What it acquires is said after it.
 */
enum { RELEASE = 3, ACQUIRE_RELEASE = 4 };

unsigned long long __real___tsan_atomic64_fetch_sub(volatile unsigned long long *, unsigned long long, int);
void __tsan_acquire(void *);
void REAL_LOCK_CONTENDED(void *);

unsigned long long __wrap___tsan_atomic64_fetch_sub(volatile unsigned long long *at, unsigned long long by, int order) {
    return __real___tsan_atomic64_fetch_sub(at, by, order == RELEASE ? ACQUIRE_RELEASE : order);
}

void WRAP_LOCK_CONTENDED(void *mutex) {
    REAL_LOCK_CONTENDED(mutex);
    __tsan_acquire(mutex);
}
