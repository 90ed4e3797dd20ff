// Something for a real gcc to compile: recursion, floating point, inlining, a table.
#include <math.h>
#include <stdio.h>

static double table[64];

static int ackermann(int m, int n) { return m == 0 ? n + 1 : n == 0 ? ackermann(m - 1, 1) : ackermann(m - 1, ackermann(m, n - 1)); }

int main(void) {
    for (int i = 0; i < 64; i++) table[i] = sin(i) * sqrt(i);
    double sum = 0;
    for (int i = 0; i < 64; i++) sum += table[i];
    printf("%d %.6f\n", ackermann(2, 5), sum);
    return 0;
}
