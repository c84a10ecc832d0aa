//! An object store behind a real socket: as much of the protocol as archives use, with trouble on demand.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use rspp_archive::{ObjectArchive, Place};
use rspp_proto::WallClock;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It is answered with this status, and nothing is kept.
    Status(u16),
    /// It is answered after so long.
    Slow(Duration),
    /// The connection is cut in the middle of what is sent.
    CutWhileSending,
    /// It is kept, and the connection is cut before the answer.
    CutBeforeAnswering,
    /// It is kept, and never answered.
    NeverAnswers,
}

#[derive(Default)]
struct Shelf {
    objects: BTreeMap<String, Bytes>,
    /// When each was put.
    taken: BTreeMap<String, SystemTime>,
    /// Keys that may not be deleted, as under an object lock.
    locked: Vec<String>,
    /// What happens to the next `PUT`s, in order.
    troubles: Vec<Trouble>,
    /// Keys and bytes of each `PUT` that came in whole, in order.
    puts: Vec<(String, Bytes)>,
    /// What a request was signed with.
    signatures: Vec<Option<String>>,
}

/// A bucket named `calls`.
pub(crate) struct Server {
    address: std::net::SocketAddr,
    shelf: Arc<Mutex<Shelf>>,
    accepting: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::resume("127.0.0.1:0", Arc::default()).await
    }

    async fn resume(address: &str, shelf: Arc<Mutex<Shelf>>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::clone(&shelf);
        let accepting = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let shelf = Arc::clone(&shared);
                open.spawn(async move {
                    let _hung_up = serve(stream, shelf).await;
                });
            }
        });
        Self {
            address,
            shelf,
            accepting,
        }
    }

    /// Nobody listens at its address, as if its machine were gone; what it has it keeps.
    pub(crate) async fn stop(self) -> Stopped {
        self.accepting.abort();
        let _aborted = self.accepting.await;
        Stopped {
            address: self.address.to_string(),
            shelf: self.shelf,
        }
    }

    pub(crate) fn place(&self) -> String {
        format!("http://{}/calls/timelines", self.address)
    }

    pub(crate) fn archive(&self) -> ObjectArchive {
        let place: Place = self.place().parse().unwrap();
        ObjectArchive::open(&place).unwrap()
    }

    /// Does not let go of what has this in its key.
    pub(crate) fn lock(&self, part: &str) {
        self.shelf.lock().unwrap().locked.push(part.to_owned());
    }

    pub(crate) fn trouble(&self, troubles: &[Trouble]) {
        self.shelf.lock().unwrap().troubles.extend(troubles);
    }

    /// Troubles that have not happened yet.
    pub(crate) fn troubles_left(&self) -> usize {
        self.shelf.lock().unwrap().troubles.len()
    }

    pub(crate) fn puts(&self) -> Vec<(String, Bytes)> {
        self.shelf.lock().unwrap().puts.clone()
    }

    pub(crate) fn objects(&self) -> BTreeMap<String, Bytes> {
        self.shelf.lock().unwrap().objects.clone()
    }

    pub(crate) fn signatures(&self) -> Vec<Option<String>> {
        self.shelf.lock().unwrap().signatures.clone()
    }
}

/// A server that is gone, and will come back with what it has.
pub(crate) struct Stopped {
    address: String,
    shelf: Arc<Mutex<Shelf>>,
}

impl Stopped {
    pub(crate) async fn start(self) -> Server {
        Server::resume(&self.address, self.shelf).await
    }
}

struct Request {
    method: String,
    target: String,
    headers: BTreeMap<String, String>,
    length: usize,
}

async fn head(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => {
                headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
            }
            None => break,
        }
    }
    let length = headers
        .get("content-length")
        .map_or(0, |it| it.parse().unwrap());
    Ok(Some(Request {
        method,
        target,
        headers,
        length,
    }))
}

async fn serve(stream: TcpStream, shelf: Arc<Mutex<Shelf>>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = head(&mut stream).await? {
        let signature = request.headers.get("authorization").cloned();
        shelf.lock().unwrap().signatures.push(signature);
        let (path, query) = request
            .target
            .split_once('?')
            .unwrap_or((&request.target, ""));
        let key = decoded(path.strip_prefix("/calls").unwrap_or_default());
        let key = key.trim_start_matches('/').to_owned();
        match request.method.as_str() {
            "PUT" => {
                let next = {
                    let mut shelf = shelf.lock().unwrap();
                    (!shelf.troubles.is_empty()).then(|| shelf.troubles.remove(0))
                };
                if next == Some(Trouble::CutWhileSending) {
                    let mut some = vec![0; request.length / 2];
                    stream.read_exact(&mut some).await?;
                    return Ok(());
                }
                let mut body = vec![0; request.length];
                stream.read_exact(&mut body).await?;
                let body = Bytes::from(body);
                let keep = || {
                    let mut shelf = shelf.lock().unwrap();
                    shelf.puts.push((key.clone(), body.clone()));
                    shelf.taken.insert(key.clone(), SystemTime::now());
                    shelf.objects.insert(key.clone(), body.clone());
                };
                match next {
                    Some(Trouble::Status(status)) => {
                        answer(
                            &mut stream,
                            status,
                            "",
                            b"<Error><Code>Trouble</Code></Error>",
                        )
                        .await?;
                        continue;
                    }
                    Some(Trouble::Slow(time)) => {
                        tokio::time::sleep(time).await;
                        keep();
                    }
                    Some(Trouble::CutBeforeAnswering) => {
                        keep();
                        return Ok(());
                    }
                    Some(Trouble::NeverAnswers) => {
                        keep();
                        std::future::pending::<()>().await;
                    }
                    Some(Trouble::CutWhileSending) | None => keep(),
                }
                answer(&mut stream, 200, "ETag: \"1\"\r\n", b"").await?;
            }
            "GET" if query.contains("list-type=2") => {
                let list = listing(&shelf.lock().unwrap(), query);
                answer(
                    &mut stream,
                    200,
                    "Content-Type: application/xml\r\n",
                    list.as_bytes(),
                )
                .await?;
            }
            "GET" => {
                let found = shelf.lock().unwrap().objects.get(&key).cloned();
                match found {
                    Some(bytes) => {
                        let headers =
                            "ETag: \"1\"\r\nLast-Modified: Tue, 22 Sep 2026 10:00:00 GMT\r\n";
                        answer(&mut stream, 200, headers, &bytes).await?;
                    }
                    None => {
                        answer(
                            &mut stream,
                            404,
                            "",
                            b"<Error><Code>NoSuchKey</Code></Error>",
                        )
                        .await?;
                    }
                }
            }
            "DELETE" => {
                let is_locked = {
                    let mut shelf = shelf.lock().unwrap();
                    let is_locked = shelf.locked.iter().any(|locked| key.contains(locked));
                    if !is_locked {
                        shelf.objects.remove(&key);
                    }
                    is_locked
                };
                let status = if is_locked { 403 } else { 204 };
                answer(&mut stream, status, "", b"").await?;
            }
            other => panic!("{other} {}", request.target),
        }
    }
    Ok(())
}

async fn answer(
    stream: &mut BufReader<TcpStream>,
    status: u16,
    headers: &str,
    body: &[u8],
) -> std::io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} Told\r\nContent-Length: {length}\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    stream.flush().await
}

/// At most three at a time, so that whoever lists has to ask again.
fn listing(shelf: &Shelf, query: &str) -> String {
    const PAGE: usize = 3;
    let parameter = |name: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let mut values = pairs.filter(|(key, _)| *key == name);
        values.next().map(|(_, value)| decoded(value))
    };
    let prefix = parameter("prefix").unwrap_or_default();
    let after = parameter("continuation-token").or_else(|| parameter("start-after"));
    let mut matching = shelf
        .objects
        .iter()
        .filter(|(key, _)| key.starts_with(&prefix))
        .filter(|(key, _)| after.as_ref().is_none_or(|after| *key > after));
    let page: Vec<_> = matching.by_ref().take(PAGE).collect();
    let mut contents = String::new();
    for (key, bytes) in &page {
        let size = bytes.len();
        let since = shelf.taken[*key].duration_since(SystemTime::UNIX_EPOCH);
        let taken = WallClock(since.unwrap().as_millis() as u64).to_utc();
        write!(
            contents,
            "<Contents><Key>{key}</Key><Size>{size}</Size><LastModified>{taken}\
             </LastModified><ETag>\"1\"</ETag></Contents>"
        )
        .unwrap();
    }
    let more = match (matching.next(), page.last()) {
        (Some(_), Some((last, _))) => format!(
            "<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>"
        ),
        _ => "<IsTruncated>false</IsTruncated>".to_owned(),
    };
    format!("<?xml version=\"1.0\"?><ListBucketResult>{more}{contents}</ListBucketResult>")
}

fn decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
            let digits = std::str::from_utf8(&digits).unwrap();
            out.push(u8::from_str_radix(digits, 16).unwrap());
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).unwrap()
}
