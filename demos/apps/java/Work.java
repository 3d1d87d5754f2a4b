// SPDX-License-Identifier: Apache-2.0
// Compiled as it is started; threads, files, a mapping, a socket on the loopback, a child process.
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.channels.FileChannel;
import java.nio.file.*;
import java.util.concurrent.*;
import java.util.stream.*;

class Work {
    static void check(String what, Object expected, Object found) {
        if (!expected.equals(found)) throw new AssertionError(what + ": expected " + expected + ", found " + found);
        System.out.println(what + ": " + found);
    }

    public static void main(String[] arguments) throws Exception {
        check("parallel sum", 500000500000L, LongStream.rangeClosed(1, 1_000_000).parallel().sum());
        Path folder = Files.createTempDirectory(Path.of("/root"), "work");
        for (int n = 0; n < 100; n++) Files.write(folder.resolve("f" + n), new byte[n * 1000]);
        try (Stream<Path> paths = Files.walk(folder)) {
            check("files", 101L, paths.count());
        }
        Path mapped = folder.resolve("mapped");
        try (FileChannel channel = FileChannel.open(mapped, StandardOpenOption.CREATE, StandardOpenOption.READ, StandardOpenOption.WRITE)) {
            var map = channel.map(FileChannel.MapMode.READ_WRITE, 0, 1 << 20);
            map.put(500_000, (byte) 42);
            map.force();
        }
        check("mapping", (byte) 42, Files.readAllBytes(mapped)[500_000]);
        try (ServerSocket server = new ServerSocket(0)) {
            var pool = Executors.newFixedThreadPool(2);
            pool.submit(() -> { try (Socket socket = server.accept()) { socket.getOutputStream().write(new byte[100_000]); } return 0; });
            try (Socket socket = new Socket("127.0.0.1", server.getLocalPort())) {
                check("loopback", 100_000, socket.getInputStream().readAllBytes().length);
            }
            pool.shutdown();
        }
        Process process = new ProcessBuilder("/bin/sha256sum", mapped.toString()).start();
        check("process", 0, process.waitFor());
    }
}
