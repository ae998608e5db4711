//! Pulling from a server on this machine that does what servers do.

use std::{
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use super::*;

/// One answer of the server: the bytes of its head and of its body.
type Answer = Box<dyn Fn(&str) -> Vec<u8> + Send>;

/// A server that gives these answers, one for each connection, and what it was
/// asked.
struct Server {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        std::thread::spawn(move || {
            for answer in answers {
                let Ok((stream, _)) = listener.accept() else { return };
                let head = head(&stream);
                let bytes = answer(&head);
                seen.lock().unwrap().push(head);
                // Whoever asked may be gone already.
                let _ = (&stream).write_all(&bytes);
            }
        });
        Self { url, asked }
    }

    fn source(&self, path: &str) -> Source {
        Source::parse(&format!("{}/{path}", self.url)).unwrap()
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn head(stream: &TcpStream) -> String {
    let mut head = String::new();
    let mut reader = BufReader::new(stream);
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).is_ok_and(|read| read > 0) {}
    head.to_lowercase()
}

fn model() -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend((0..200_000_u32).flat_map(u32::to_le_bytes));
    bytes
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

/// All of the file, of which only `sent` bytes come.
fn whole(sent: usize) -> Answer {
    Box::new(move |_| {
        let file = model();
        let headers = format!("etag: \"v1\"\r\ncontent-length: {}\r\n", file.len());
        answer("200 OK", &headers, &file[..sent.min(file.len())])
    })
}

/// The part that is asked for.
fn rest() -> Answer {
    Box::new(|head| {
        let file = model();
        let from: usize = head.split("bytes=").nth(1).unwrap().split('-').next().unwrap().parse().unwrap();
        let headers = format!(
            "etag: \"v1\"\r\ncontent-length: {}\r\ncontent-range: bytes {from}-{}/{}\r\n",
            file.len() - from,
            file.len() - 1,
            file.len()
        );
        answer("206 Partial Content", &headers, &file[from..])
    })
}

fn status(line: &'static str) -> Answer {
    Box::new(move |_| answer(line, "content-length: 0\r\n", b""))
}

async fn fetch(dir: &Path, source: &Source, sha256: Option<Digest>) -> Result<Entry> {
    pull(dir, source, Some("x"), sha256, |_, _| ()).await
}

/// Names in the directory.
fn names(dir: &Path) -> Vec<String> {
    let read = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        read.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_model_arrives_whole_and_leaves_nothing_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(vec![whole(usize::MAX)]);
    let mut last = (0, None);
    let source = server.source("some/model-q8.gguf");
    let entry = pull(dir.path(), &source, None, Some(Digest::of(&model())), |done, all| last = (done, all))
        .await
        .unwrap();
    assert_eq!(entry.name, "model-q8");
    assert_eq!(fs::read(&entry.path).unwrap(), model());
    assert_eq!(last, (model().len() as u64, Some(model().len() as u64)));
    assert_eq!(names(dir.path()), ["model-q8.gguf"]);
}

#[tokio::test]
async fn a_pull_that_was_cut_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(vec![whole(300_000), status("503 Service Unavailable"), rest()]);
    let entry = fetch(dir.path(), &server.source("m.gguf"), Some(Digest::of(&model()))).await.unwrap();
    assert_eq!(fs::read(&entry.path).unwrap(), model());
    let asked = server.asked();
    assert!(asked[2].contains("range: bytes=300000-") && asked[2].contains("if-range: \"v1\""), "{asked:?}");
}

#[tokio::test]
async fn another_run_goes_on_too_unless_the_file_has_changed() {
    let dir = tempfile::tempdir().unwrap();
    // A part of another version, as an earlier run has left it.
    let mut answers = vec![whole(300_000)];
    answers.extend((0..ATTEMPTS_MAX).map(|_| status("503 Service Unavailable")));
    answers.push(whole(usize::MAX));
    let server = Server::start(answers);
    let source = server.source("m.gguf");
    let failure = fetch(dir.path(), &source, None).await.unwrap_err();
    assert!(failure.message.contains("503"), "{failure}");
    assert_eq!(names(dir.path()), [".x.pull", ".x.pull.json"]);
    let entry = fetch(dir.path(), &source, None).await.unwrap();
    assert_eq!(fs::read(&entry.path).unwrap(), model(), "a whole answer replaces the part");
    assert!(server.asked().last().unwrap().contains("range: bytes=300000-"));
}

#[tokio::test]
async fn a_wrong_digest_or_content_leaves_no_model() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(vec![
        whole(usize::MAX),
        Box::new(|_| answer("200 OK", "content-length: 15\r\n", b"<html>no</html>")),
        status("404 Not Found"),
        status("403 Forbidden"),
    ]);
    let source = server.source("m.gguf");
    let other = Some(Digest::of(b"another"));
    for (sha256, exit, part) in [
        (other, Exit::Failed, "digest"),
        (None, Exit::Failed, "no GGUF"),
        (None, Exit::NotFound, "no such file"),
        (None, Exit::Denied, "403"),
    ] {
        let failure = fetch(dir.path(), &source, sha256).await.unwrap_err();
        assert_eq!(failure.exit, exit, "{failure}");
        assert!(failure.message.contains(part), "{failure}");
        assert!(!dir.path().join("x.gguf").exists());
    }
}

#[tokio::test]
async fn a_hub_that_sends_elsewhere_says_what_comes() {
    let dir = tempfile::tempdir().unwrap();
    let digest = Digest::of(&model());
    let moved = move |digest: Digest| -> Answer {
        Box::new(move |_| {
            let headers = format!(
                "location: /elsewhere\r\nx-linked-etag: \"{digest}\"\r\nx-linked-size: {}\r\ncontent-length: 0\r\n",
                model().len()
            );
            answer("302 Found", &headers, b"")
        })
    };
    let wrong = Digest::of(b"other");
    let server = Server::start(vec![moved(digest), whole(usize::MAX), moved(wrong), whole(usize::MAX)]);
    let source = server.source("o/r/resolve/main/m.gguf");
    let entry = fetch(dir.path(), &source, None).await.unwrap();
    assert_eq!(fs::read(&entry.path).unwrap(), model());
    fs::remove_file(&entry.path).unwrap();
    let failure = fetch(dir.path(), &source, None).await.unwrap_err();
    assert!(failure.message.contains("digest"), "{failure}");
    assert!(server.asked()[1].starts_with("get /elsewhere"), "{:?}", server.asked());
}

#[tokio::test]
async fn circles_taken_names_and_second_pulls_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let circle =
        || -> Answer { Box::new(|_| answer("302 Found", "location: /a\r\ncontent-length: 0\r\n", b"")) };
    let server = Server::start((0..=REDIRECTS_MAX).map(|_| circle()).collect());
    let source = server.source("m.gguf");
    let failure = fetch(dir.path(), &source, None).await.unwrap_err();
    assert!(failure.message.contains("circles"), "{failure}");
    let held = Part::open(dir.path(), "x").unwrap();
    assert_eq!(fetch(dir.path(), &source, None).await.unwrap_err().exit, Exit::Conflict);
    drop(held);
    fs::write(dir.path().join("x.gguf"), "").unwrap();
    assert_eq!(fetch(dir.path(), &source, None).await.unwrap_err().exit, Exit::Conflict);
}

#[test]
fn sources_are_read_as_people_write_them() {
    let hub = Source::parse("hf:owner/repo/dir/model.Q8_0.gguf").unwrap();
    assert_eq!(hub.url.path(), "/owner/repo/resolve/main/dir/model.Q8_0.gguf");
    assert_eq!(hub.name(), "model.Q8_0");
    let revision = Source::parse("hf:owner/repo@v2/model.gguf").unwrap();
    assert_eq!(revision.url.path(), "/owner/repo/resolve/v2/model.gguf");
    for wrong in ["", "model.gguf", "hf:owner/repo", "hf://x", "ftp://h/x.gguf", "file:///x.gguf", "hf:a//b"]
    {
        assert_eq!(Source::parse(wrong).unwrap_err().exit, Exit::Usage, "{wrong}");
    }
}
