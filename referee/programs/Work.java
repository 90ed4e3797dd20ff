import java.util.ArrayList;
import java.util.HashMap;

/** Threads that allocate, hash, sort, and throw, for ever; the compilers and the collector join in. */
public class Work {
    static long sink;

    static int deep(int n) {
        if (n == 0) throw new IllegalStateException("deep");
        return deep(n - 1) + 1;
    }

    static void work() {
        for (int round = 0; ; round++) {
            var map = new HashMap<String, byte[]>();
            for (int i = 0; i < 500; i++) map.put("key" + (i ^ round), new byte[i * 64]);
            var keys = new ArrayList<>(map.keySet());
            keys.sort((a, b) -> a.hashCode() - b.hashCode());
            try {
                sink += deep(round % 50);
            } catch (IllegalStateException e) {
                sink += e.getStackTrace().length + keys.size();
            }
            if (round % 2000 == 0) System.gc();
        }
    }

    public static void main(String[] args) {
        for (int i = 0; i < 3; i++) new Thread(Work::work).start();
    }
}
