//! The first word of a client, looked at before it is served: with a token it
//! speaks as somebody who may be served by other threads than its user.

use bytes::BytesMut;
use ksi_protocol::{
    Frame,
    json::{self, Verb},
    limits::HELLO_BYTES_MAX,
    token::Token,
};
use tokio::net::UnixStream;

use super::socket::read;

/// Waits for the first word; the token that it shows, if it does. All that was
/// read stays in `input`.
pub(super) async fn token(stream: &UnixStream, input: &mut BytesMut, json: bool) -> Option<Token> {
    loop {
        let word = if json { line(input) } else { frame(input) };
        match word {
            Word::Unfinished if input.len() <= 4 + HELLO_BYTES_MAX => {}
            Word::Unfinished | Word::Other => return None,
            Word::Hello(token) => return token,
        }
        // Whoever serves the client finds out what is wrong.
        if !matches!(read(stream, input).await, Ok(1..)) {
            return None;
        }
    }
}

enum Word {
    Unfinished,
    Hello(Option<Token>),
    Other,
}

fn line(input: &BytesMut) -> Word {
    let Some(end) = input.iter().position(|&byte| byte == b'\n') else { return Word::Unfinished };
    let Some(line) = input.get(..end).filter(|line| line.len() <= HELLO_BYTES_MAX) else {
        return Word::Other;
    };
    match json::parse(line.trim_ascii()) {
        Ok(json::Input { verb: Verb::Hello { token }, .. }) => Word::Hello(token),
        _ => Word::Other,
    }
}

fn frame(input: &BytesMut) -> Word {
    let Some(prefix) = input.first_chunk::<4>() else { return Word::Unfinished };
    let length = u32::from_be_bytes(*prefix) as usize;
    if length > HELLO_BYTES_MAX {
        return Word::Other;
    }
    let Some(first) = input.get(..4 + length) else { return Word::Unfinished };
    match Frame::split(&mut BytesMut::from(first)) {
        Ok(Some(Frame::Hello(hello))) => Word::Hello(hello.token),
        _ => Word::Other,
    }
}

#[cfg(test)]
mod tests {
    use ksi_protocol::{PROTOCOL_VERSION, frame::Hello};
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// The token in what a client says, piece by piece, and what of it was read.
    async fn heard(pieces: &[&[u8]], json: bool) -> (Option<String>, BytesMut) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut input = BytesMut::new();
        let says = async {
            for piece in pieces {
                theirs.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(theirs);
        };
        let (token, ()) = tokio::join!(token(&ours, &mut input, json), says);
        (token.map(|token| token.expose().to_owned()), input)
    }

    fn hello(token: Option<Token>) -> Vec<u8> {
        let hello = Hello { version: PROTOCOL_VERSION, client: "a".into(), token, ..Hello::default() };
        let mut bytes = BytesMut::new();
        Frame::Hello(hello).encode(&mut bytes).unwrap();
        bytes.to_vec()
    }

    #[tokio::test]
    async fn a_token_is_found_in_either_encoding_and_nothing_is_taken() {
        let line = b"{\"hello\":{\"token\":\"ksi_a\"}}\n";
        let (token, input) = heard(&[&line[..9], &line[9..]], true).await;
        assert_eq!((token.as_deref(), &input[..]), (Some("ksi_a"), &line[..]));
        let frame = hello(Some(Token::new("ksi_b")));
        let (token, input) = heard(&[&frame[..3], &frame[3..]], false).await;
        assert_eq!((token.as_deref(), &input[..]), (Some("ksi_b"), &frame[..]));
    }

    #[tokio::test]
    async fn what_is_no_greeting_with_a_token_is_left_to_whoever_serves() {
        let long = vec![b'x'; 2 * HELLO_BYTES_MAX];
        let padded =
            [&b"{\"hello\":{\"token\":\"ksi_a\"}}"[..], &vec![b' '; HELLO_BYTES_MAX], b"\n"].concat();
        let lines: [&[u8]; 6] = [
            b"{\"event\":\"echo:say\"}\n",
            b"{\"hello\":{}}\n",
            b"nonsense\n",
            b"{\"hello\"",
            &long,
            &padded,
        ];
        for said in lines {
            assert_eq!(heard(&[said], true).await.0, None);
        }
        let frames: [&[u8]; 4] =
            [&hello(None), &[0, 0, 0, 3, 1, 2, 3], &[0, 0xff, 0xff, 0xff, 1], &[0, 0, 1, 0, 1]];
        for said in frames {
            assert_eq!(heard(&[said], false).await.0, None);
        }
    }
}
