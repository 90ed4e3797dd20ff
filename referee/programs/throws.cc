// Exceptions in flight, for single-stepping and for stopping at random: thrown, cleaned up after, caught,
// thrown again, and lost in a destructor's way.
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#define FUNCTION __attribute__((noipa)) int
static volatile int one = 1;

struct Guard {
    std::vector<int> held;
    explicit Guard(int n) : held(n) {}
    __attribute__((noipa)) ~Guard() { one = held.size() > 0; }
};
FUNCTION throws(int n) {
    Guard guard(n + 1);
    if (n % 3 == 0) throw n;
    if (n % 3 == 1) throw std::runtime_error("a text that is too long for the string itself");
    throw std::string("and another one that is too long for it");
}
FUNCTION cleans(int n) { Guard guard(n + 2); return throws(n) + one; }
FUNCTION aligned(int n) {
    alignas(64) volatile char space[128];
    Guard guard(n + 3);
    space[n & 127] = 1;
    return cleans(n) + space[n & 127];
}
FUNCTION again(int n) {
    try { return aligned(n); }
    catch (const std::exception &) { throw; }
}
FUNCTION catches(int n) {
    try { return again(n) + one; }
    catch (int caught) { return caught; }
    catch (const std::exception &caught) { return caught.what()[0]; }
    catch (...) { return one; }
}
int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 3;
    for (int i = 0; i != rounds; i++) one = catches(i & 1023) >= 0;
}
