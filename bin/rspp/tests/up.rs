//! `rspp up`, as a person and a program find it.

#![expect(
    clippy::unwrap_used,
    reason = "a test whose ground gives way should fail"
)]

use std::{net::SocketAddr, process::Stdio, time::Duration};

use rspp_websocket::{
    protocol::{ClientMessage, Hello, ServerMessage, Typed},
    testing::{Client, sound},
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(30);

fn rspp(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rspp"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env_remove("RSPP_LOG")
        .kill_on_drop(true);
    command
}

/// Starts it on a free port; its one line of output is the address.
async fn up() -> (Child, SocketAddr) {
    let mut process = rspp(&["up", "--scripted", "--port", "0"]).spawn().unwrap();
    let mut out = BufReader::new(process.stdout.take().unwrap()).lines();
    let line = timeout(PATIENCE, out.next_line()).await;
    let line = line.expect("an address is printed").unwrap().unwrap();
    let port = line
        .strip_prefix("http://localhost:")
        .and_then(|rest| rest.strip_suffix('/'))
        .and_then(|port| port.parse::<u16>().ok());
    let port = port.unwrap_or_else(|| panic!("no address: {line}"));
    (process, ([127, 0, 0, 1], port).into())
}

/// The head and the body of an answer.
async fn get(address: SocketAddr, path: &str, headers: &str) -> (String, String) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// F-125: one command, one address; the page and a client of one's own; Ctrl-C ends it in order.
#[tokio::test]
async fn one_address_serves_page_and_clients_until_ctrl_c() {
    let (mut process, address) = up().await;
    let (head, body) = get(address, "/", "Host: localhost\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("content-security-policy"), "{head}");
    assert!(body.contains("<button id=\"call\""), "{body}");

    let mut client = Client::begin(address, Hello::default()).await;
    let (_, body) = get(address, "/v1/observe", "Host: localhost\r\n").await;
    let now: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(now["sessions"], 1);
    assert_eq!(now["server"]["sockets"], 1);
    let session = client.ready.clone().unwrap().session;
    let actors = now["actors"].as_array().unwrap();
    let is_of_session = |actor: &&Value| {
        let path = actor["path"].as_str().unwrap();
        path.contains(session.as_str())
    };
    assert!(actors.iter().filter(is_of_session).count() >= 4, "{body}");

    client
        .say(ClientMessage::Text(Typed {
            text: "hello".to_owned(),
            key: None,
        }))
        .await;
    let came = client
        .until(|message| matches!(message, ServerMessage::Audio(_)))
        .await;
    assert!(!sound(&came).is_empty());

    // In the middle of a reply: it is finished, and said to be the last.
    let pid = process.id().unwrap().to_string();
    let killed = std::process::Command::new("kill")
        .args(["-INT", &pid])
        .status();
    assert!(killed.unwrap().success());
    let came = client.until(|_| false).await;
    let draining = |it: &ServerMessage| matches!(it, ServerMessage::Draining(_));
    let end = |it: &ServerMessage| matches!(it, ServerMessage::End(_));
    assert!(
        came.iter().any(draining) && came.iter().any(end),
        "{came:?}"
    );
    let status = timeout(PATIENCE, process.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
}

/// Other people's pages may not look at what runs here, under no name.
#[tokio::test]
async fn pages_from_elsewhere_do_not_look_in() {
    let (_process, address) = up().await;
    for headers in [
        "Host: localhost\r\nOrigin: https://evil.example\r\n",
        "Host: evil.example\r\n",
    ] {
        let (head, _) = get(address, "/v1/observe", headers).await;
        assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_with_the_way_out() {
    let taken = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = rspp(&["up", "--scripted", "--port", &port]).output();
    let output = timeout(PATIENCE, output).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("--port"), "{told}");
}
