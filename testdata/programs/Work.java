import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.ArrayList;

/** Work for a real java: threads that allocate and drop, and the collector. The same output each run. */
public class Work {
    static long churn(int seed) {
        long sum = 0;
        for (int i = 0; i < 300; i++) {
            byte[] b = new byte[64 * 1024 + i * 512];
            b[i] = (byte) seed;
            sum += b[i] + b.length;
        }
        return sum;
    }

    public static void main(String[] args) throws Exception {
        var pool = Executors.newFixedThreadPool(6);
        var results = new ArrayList<Future<Long>>();
        for (int i = 0; i < 24; i++) {
            int seed = i;
            results.add(pool.submit(() -> churn(seed)));
        }
        long sum = 0;
        for (var r : results) sum += r.get();
        pool.shutdown();
        System.gc();
        System.out.println("sum " + sum);
    }
}
