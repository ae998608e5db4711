//! The other server: chat completions over HTTP, as OpenAI streams them.

use reqwest::{Client, Url, header::CONTENT_TYPE};
use serde::Deserialize;
use serde_json::json;

use super::{Ask, MIN_P, TEMPERATURE, TOP_K, TOP_P, Tokens};
use crate::{
    error::{Failure, Result},
    http,
};

/// A server and the model that is asked for there.
pub(super) struct Server {
    client: Client,
    url: Url,
    model: String,
}

/// One event of the stream, as far as it is of use.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Chunk {
    choices: Vec<Choice>,
    usage: Option<Usage>,
}

/// How much was read and written, as the API of OpenAI has it.
#[derive(Debug, Deserialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Choice {
    delta: Delta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Delta {
    content: Option<String>,
}

impl Server {
    /// The server at an address such as `http://127.0.0.1:8080`.
    ///
    /// # Errors
    ///
    /// Fails where that is no address of HTTP.
    pub(super) fn new(url: &str, model: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Failure::usage(format!("{url} is no address of a server: {why}"))
                .hint("such as --against http://127.0.0.1:8080")
        };
        let url = Url::parse(&format!("{}/v1/chat/completions", url.trim_end_matches('/')))
            .map_err(|error| wrong(&error.to_string()))?;
        if url.scheme() != "http" {
            return Err(wrong("it is not http"));
        }
        // A connection that was kept may be closed by the time that it is used again.
        let client = http::client(|client| client.no_proxy().pool_max_idle_per_host(0))?;
        Ok(Self { client, url, model: model.to_owned() })
    }

    /// Asks once; `on_piece` is called for every piece of text.
    ///
    /// # Errors
    ///
    /// Fails where the server does not answer, or not in that form.
    pub(super) async fn ask(&self, ask: &Ask, mut on_piece: impl FnMut()) -> Result<Tokens> {
        let failed = |why: String| Failure::failed(format!("the server at {}: {why}", self.url));
        let system = ask.system.iter().map(|text| json!({ "role": "system", "content": text }));
        let messages: Vec<_> = system.chain([json!({ "role": "user", "content": ask.prompt })]).collect();
        let body = json!({
            "model": self.model,
            "messages": messages,
            "max_tokens": ask.max_tokens,
            "temperature": TEMPERATURE,
            "top_k": TOP_K,
            "top_p": TOP_P,
            "min_p": MIN_P,
            "seed": ask.seed,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        let request = self.client.post(self.url.clone()).header(CONTENT_TYPE, "application/json");
        let response = request.body(body.to_string()).send().await;
        let mut response = response.map_err(|error| failed(error.to_string()))?;
        if !response.status().is_success() {
            let status = response.status();
            let text = response.text().await.unwrap_or_default();
            return Err(failed(format!("{status}: {}", text.trim())));
        }
        let (mut line, mut usage) = (Vec::new(), None);
        while let Some(bytes) = response.chunk().await.map_err(|error| failed(error.to_string()))? {
            for byte in bytes {
                if byte != b'\n' {
                    line.push(byte);
                    continue;
                }
                if let Some(chunk) = event(&line).map_err(|error| failed(error.to_string()))? {
                    let content = chunk.choices.first().and_then(|choice| choice.delta.content.as_deref());
                    if content.is_some_and(|text| !text.is_empty()) {
                        on_piece();
                    }
                    usage = chunk.usage.or(usage);
                }
                line.clear();
            }
        }
        let Usage { prompt_tokens, completion_tokens } =
            usage.ok_or_else(|| failed("the answer ended without usage".into()))?;
        Ok(Tokens { prompt: prompt_tokens, answer: completion_tokens })
    }
}

/// What a line says; nothing where it is no data, or the mark of the end.
fn event(line: &[u8]) -> serde_json::Result<Option<Chunk>> {
    match line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) {
        Some(data) if data != b"[DONE]" => serde_json::from_slice(data).map(Some),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Read, Write},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn only_http_is_spoken() {
        for url in ["ftp://x", "127.0.0.1:8080", "https://x"] {
            assert!(Server::new(url, "m").is_err(), "{url}");
        }
        let server = Server::new("http://127.0.0.1:8080/", "m").unwrap();
        assert_eq!(server.url.as_str(), "http://127.0.0.1:8080/v1/chat/completions");
    }

    /// Answers one request with these bytes.
    fn answering(answer: &'static str) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server::new(&format!("http://{}", listener.local_addr().unwrap()), "m").unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = BufReader::new(stream.try_clone().unwrap());
            let mut length = 0;
            loop {
                let mut line = String::new();
                request.read_line(&mut line).unwrap();
                match line.trim_end().split_once(": ") {
                    Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                        length = value.parse().unwrap();
                    }
                    None if line.trim_end().is_empty() => break,
                    _ => {}
                }
            }
            request.read_exact(&mut vec![0; length]).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        });
        server
    }

    #[tokio::test]
    async fn every_piece_of_text_is_told_and_usage_comes_last() {
        let server = answering(
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n\
             data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":null}}]}\n\n\
             data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n: still here\n\n\
             data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\n\
             data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\n\
             data: [DONE]\n\n",
        );
        let mut pieces = 0;
        let tokens = server.ask(&Ask::default(), || pieces += 1).await.unwrap();
        assert_eq!((pieces, tokens.prompt, tokens.answer), (2, 7, 2));
    }

    #[tokio::test]
    async fn a_refusal_is_told_with_what_the_server_says() {
        let server = answering("HTTP/1.1 503 Busy\r\nconnection: close\r\n\r\nloading the model");
        let failure = server.ask(&Ask::default(), || ()).await.unwrap_err();
        assert!(failure.message.contains("503") && failure.message.contains("loading the model"));
    }
}
