// Keeps buffers that compiled methods make, until it is told to end. For java -XX:+PreserveFramePointer.
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;

public class Jit {
    static final List<ByteBuffer> kept = new ArrayList<>();

    static void decodeFrame(int bytes) {
        kept.add(ByteBuffer.allocateDirect(bytes));
    }

    static void decodeAll(int frames) {
        for (int i = 0; i < frames; i++) decodeFrame(1 << 20);
    }

    public static void main(String[] args) throws Exception {
        decodeAll(4);
        // The compiler's own account of its code, in /tmp/perf-PID.map.
        String pid = Long.toString(ProcessHandle.current().pid());
        new ProcessBuilder("jcmd", pid, "Compiler.perfmap").inheritIO().start().waitFor();
        System.out.println("ready");
        while (System.in.available() == 0) {
            decodeAll(2);
            Thread.sleep(20);
        }
    }
}
