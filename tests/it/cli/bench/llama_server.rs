//! A server that speaks llama-server's API as far as it is measured: chat
//! completions in a stream, each on a connection of its own.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};

/// A server on a free port of this machine. It answers for as long as the tests
/// run.
pub(super) struct LlamaServer {
    pub(super) url: String,
    asked: Arc<Mutex<Vec<Value>>>,
}

impl LlamaServer {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it has an address"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, seen) = (stream.expect("a connection"), seen.clone());
                std::thread::spawn(move || answer(stream, &seen));
            }
        });
        Self { url, asked }
    }

    /// The bodies of all requests, as they came.
    pub(super) fn asked(&self) -> Vec<Value> {
        self.asked.lock().expect("nobody panicked").clone()
    }
}

/// Answers one request with as many pieces as it allows, and the usage.
fn answer(mut stream: TcpStream, seen: &Mutex<Vec<Value>>) {
    let body = read(&stream);
    let tokens = body["max_tokens"].as_u64().expect("a limit");
    let texts = body["messages"]
        .as_array()
        .expect("messages")
        .iter()
        .filter_map(|message| message["content"].as_str());
    let prompt_tokens = texts.map(|text| text.split_whitespace().count()).sum::<usize>();
    seen.lock().expect("nobody panicked").push(body);
    let mut send = |text: &str| stream.write_all(text.as_bytes()).expect("the client reads");
    send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n");
    let data = |value: Value| format!("data: {value}\n\n");
    send(&data(json!({"choices": [{"index": 0, "delta": {"role": "assistant", "content": null}}]})));
    for token in 0..tokens {
        send(&data(json!({"choices": [{"index": 0, "delta": {"content": format!(" {token}")}}]})));
    }
    send(&data(json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})));
    let usage = json!({"prompt_tokens": prompt_tokens, "completion_tokens": tokens});
    send(&data(json!({"choices": [], "usage": usage})));
    send("data: [DONE]\n\n");
}

/// The body of a request for a chat completion.
fn read(stream: &TcpStream) -> Value {
    let mut request = BufReader::new(stream);
    let mut line = || {
        let mut line = String::new();
        request.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    };
    assert_eq!(line(), "POST /v1/chat/completions HTTP/1.1");
    let mut length = 0;
    loop {
        let header = line();
        match header.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().expect("a number");
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    request.read_exact(&mut body).expect("the body");
    serde_json::from_slice(&body).expect("JSON")
}
