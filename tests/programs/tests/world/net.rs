//! Servers of a few lines on this machine's loopback, for what goes through a proxy or a broker.
//! They live as long as the test's process.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
};

/// Answers each line with `echo LINE`.
pub fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut into = stream.try_clone().unwrap();
                for line in BufReader::new(stream).lines() {
                    let Ok(line) = line else { return };
                    if writeln!(into, "echo {line}").is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// Answers every request with its own head: what came in of a key would be seen there.
pub fn mirror() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                head.push(byte[0]);
            }
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                head.len()
            )
            .unwrap();
            stream.write_all(&head).unwrap();
        }
    });
    port
}
