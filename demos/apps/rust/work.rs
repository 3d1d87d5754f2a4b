// SPDX-License-Identifier: Apache-2.0
// Threads, a channel, files that are renamed, a server and its client on the loopback.
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::{fs, sync::mpsc, thread};

fn main() -> std::io::Result<()> {
    let (sender, receiver) = mpsc::channel();
    for part in 0..4u64 {
        let sender = sender.clone();
        thread::spawn(move || sender.send((1..=250_000).map(|n| n + part * 250_000).sum::<u64>()));
    }
    drop(sender);
    assert_eq!(receiver.iter().sum::<u64>(), 500_000_500_000);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let place = listener.local_addr()?;
    let server = thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.write_all(&vec![7; 1 << 20])
    });
    let mut got = Vec::new();
    TcpStream::connect(place)?.read_to_end(&mut got)?;
    server.join().unwrap()?;
    fs::create_dir_all("/root/work")?;
    for n in 0..100 {
        fs::write("/root/work/new", &got[..n * 1000])?;
        fs::rename("/root/work/new", format!("/root/work/{n}"))?;
    }
    let bytes: u64 = fs::read_dir("/root/work")?.map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(bytes, 4_950_000);
    println!("rust: threads, loopback, files: {bytes} bytes");
    Ok(())
}
