import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.util.concurrent.Executors;

/**
 * A real java as an HTTP server: every POST is answered with its own body. Says its port on stdout, serves
 * until SIGTERM, and is quiet otherwise. Each request makes and drops memory on the heap and outside of it.
 */
public class Serve {
    static byte[] throughDirectMemory(byte[] body) {
        var outside = ByteBuffer.allocateDirect(body.length + 65536);
        outside.put(body).flip();
        var copy = new byte[body.length];
        outside.get(copy);
        return copy;
    }

    public static void main(String[] args) throws Exception {
        var server = HttpServer.create(new InetSocketAddress("127.0.0.1", 0), 64);
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.createContext("/", exchange -> {
            var body = throughDirectMemory(exchange.getRequestBody().readAllBytes());
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
        System.out.println(server.getAddress().getPort());
    }
}
