//! The smallest external node: gives back every event it is given, and does what text tells it to.
//!
//! An example of [`rspp_proto::external`], and what the suites drive: a text that begins with a
//! command makes it misbehave.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    net::{TcpStream, UdpSocket},
    os::unix::process::CommandExt,
    process::Command,
    thread,
    time::Duration,
};

use rspp_proto::{
    Payload, TextChunk,
    external::{Down, Up, encode, read, write},
};
use serde_json::Value;

fn main() -> io::Result<()> {
    let mut input = io::stdin().lock();
    let mut output = io::stdout().lock();
    let mut config = BTreeMap::new();
    while let Some(frame) = read(&mut input)? {
        match frame {
            Down::Hello(hello) => {
                if hello.config.contains_key("never_ready") {
                    sleep_for_ever();
                }
                config = hello.config;
                write(&mut output, &Up::ready())?;
            }
            Down::Event { id, event, .. } => {
                let error = match event.payload {
                    Some(payload) => deal_with(payload, &config, &mut input, &mut output)?,
                    None => None,
                };
                write(&mut output, &Up::Done { id, error })?;
            }
            Down::Cancel { .. } => {} // What it had been doing was done at once.
            Down::Stop => break,
        }
    }
    Ok(())
}

/// Gives `payload` back; says what is wrong with it, if something is.
fn deal_with(
    payload: Payload,
    config: &BTreeMap<String, Value>,
    input: &mut impl Read,
    output: &mut impl Write,
) -> io::Result<Option<String>> {
    let Payload::Text(chunk) = &payload else {
        write(output, &Up::emit(payload))?;
        return Ok(None);
    };
    let mut told = chunk.text.split_whitespace();
    match told.next() {
        Some("refuse") => return Ok(Some("it was told to".to_owned())),
        Some("crash") => std::process::abort(),
        Some("exit") => std::process::exit(3),
        // Heeds its cancel: stops as soon as it is told to.
        Some("wait") => while !matches!(read(input)?, Some(Down::Cancel { .. }) | None) {},
        // Heeds nothing.
        Some("hang") => sleep_for_ever(),
        Some("spin") => loop {
            std::hint::spin_loop();
        },
        Some("swell") => {
            let mut held: Vec<Vec<u8>> = Vec::new();
            loop {
                held.push(vec![1; 1 << 20]);
            }
        }
        Some("spawn") => {
            // Known by the name that this process was given.
            let name = std::env::args().nth(1).unwrap_or_default();
            Command::new("/bin/sleep").arg0(name).arg("1000").spawn()?;
        }
        // Goes on and on, deaf, and never says that it is done.
        Some("babble") => loop {
            let word = says(chunk, "Word. ");
            write(output, &Up::emit(word))?;
            thread::park_timeout(Duration::from_millis(20));
        },
        Some("probe") => {
            let found = says(chunk, &probe(config));
            write(output, &Up::emit(found))?;
        }
        Some("flood") => {
            for _ in 0..100_000 {
                write(output, &Up::emit(payload.clone()))?;
            }
        }
        Some("garbage") => {
            output.write_all(&[0, 0, 0, 2, 0xc1, 0xc1])?;
            output.flush()?;
            sleep_for_ever();
        }
        Some("endless") => {
            // A frame of four gigabytes, announced.
            output.write_all(&u32::MAX.to_be_bytes())?;
            output.flush()?;
            sleep_for_ever();
        }
        Some("double") => {
            let done = encode(&Up::Done { id: 0, error: None })?;
            output.write_all(&done)?;
        }
        Some(_) | None => write(output, &Up::emit(payload))?,
    }
    Ok(None)
}

/// A piece of what `chunk` is a piece of, with these words.
fn says(chunk: &TextChunk, words: &str) -> Payload {
    Payload::Text(Box::new(TextChunk {
        text: words.into(),
        ..chunk.clone()
    }))
}

/// What the process gets at, of what its settings name.
fn probe(config: &BTreeMap<String, Value>) -> String {
    let named = |name: &str| config.get(name).and_then(Value::as_str).unwrap_or_default();
    let can = |able: bool| if able { "yes" } else { "no" };
    let reads = fs::read(named("secret")).is_ok();
    let writes = fs::write(named("target"), "written").is_ok();
    let connects = TcpStream::connect(named("address")).is_ok();
    let binds = UdpSocket::bind("127.0.0.1:0").is_ok();
    let runs = Command::new("/bin/true").status().is_ok();
    format!(
        "reads {} writes {} connects {} binds {} runs {} environment {}",
        can(reads),
        can(writes),
        can(connects),
        can(binds),
        can(runs),
        std::env::vars_os().count(),
    )
}

fn sleep_for_ever() -> ! {
    loop {
        std::thread::park_timeout(Duration::from_hours(1));
    }
}
