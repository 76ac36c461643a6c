//! Message bodies: where one ends.

use super::request::Framing;

/// The longest line of a chunked body (size with extensions, or a trailer field) in bytes.
const MAX_LINE: usize = 4096;
/// Bytes of all trailer fields.
const MAX_TRAILERS: usize = 16 * 1024;

/// A body that is not framed as it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// A chunk's size or end is not as RFC 9112 §7.1 wants.
    #[error("the chunked body is malformed (RFC 9112 §7.1)")]
    Chunk,
}

/// Takes a body apart as its bytes come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoder {
    state: State,
    line: Vec<u8>,
    trailers: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many bytes are to come.
    Length(u64),
    /// A chunk's size line.
    Size,
    /// So many bytes of a chunk are to come.
    Chunk(u64),
    /// The line end behind a chunk.
    ChunkEnd,
    /// Trailer fields, up to an empty line.
    Trailers,
    /// Complete.
    Done,
}

/// What a piece of input holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Bytes of input used up.
    pub used: usize,
    /// Which of them are payload.
    pub payload: std::ops::Range<usize>,
}

impl Decoder {
    /// A decoder for this framing.
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size,
        };
        Self { state, line: Vec::new(), trailers: 0 }
    }

    /// Whether the body is complete.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Bytes that must still come, when that is known.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            State::Done => Some(0),
            _ => None,
        }
    }

    /// So many payload bytes of a body of known length went by without being looked at.
    pub fn skip(&mut self, bytes: u64) {
        if let State::Length(left) = self.state {
            self.state = if bytes < left { State::Length(left - bytes) } else { State::Done };
        }
    }

    /// Takes the next input; to be called until all is used or the body is complete. Payload
    /// comes out as it lies in the input.
    pub fn step(&mut self, input: &[u8]) -> Result<Step, BodyError> {
        match self.state {
            State::Done => Ok(Step { used: 0, payload: 0..0 }),
            State::Length(left) => {
                let take = left.min(input.len() as u64);
                self.state = if take == left { State::Done } else { State::Length(left - take) };
                Ok(Step { used: take as usize, payload: 0..take as usize })
            }
            State::Chunk(left) => {
                let take = left.min(input.len() as u64);
                self.state = if take == left { State::ChunkEnd } else { State::Chunk(left - take) };
                Ok(Step { used: take as usize, payload: 0..take as usize })
            }
            State::Size | State::ChunkEnd | State::Trailers => self.line_step(input),
        }
    }

    fn line_step(&mut self, input: &[u8]) -> Result<Step, BodyError> {
        let end = input.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(input.len(), |end| end + 1);
        self.line.extend_from_slice(&input[..used]);
        if self.line.len() > MAX_LINE {
            return Err(BodyError::Chunk);
        }
        if end.is_some() {
            let mut line = std::mem::take(&mut self.line);
            // A bare line feed is where servers differ, and requests are smuggled.
            if line.pop() != Some(b'\n') || line.pop() != Some(b'\r') {
                return Err(BodyError::Chunk);
            }
            self.end_line(&line)?;
        }
        Ok(Step { used, payload: 0..0 })
    }

    fn end_line(&mut self, line: &[u8]) -> Result<(), BodyError> {
        self.state = match self.state {
            State::Size => match chunk_size(line)? {
                0 => State::Trailers,
                size => State::Chunk(size),
            },
            State::ChunkEnd if line.is_empty() => State::Size,
            State::Trailers if line.is_empty() => State::Done,
            State::Trailers => {
                self.trailers += line.len();
                if self.trailers > MAX_TRAILERS || line.contains(&b'\r') {
                    return Err(BodyError::Chunk);
                }
                State::Trailers
            }
            _ => return Err(BodyError::Chunk),
        };
        Ok(())
    }
}

fn chunk_size(line: &[u8]) -> Result<u64, BodyError> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (size, extension) = line.split_at(digits);
    let plain = extension.is_empty() || extension.starts_with(b";");
    if !(1..=15).contains(&digits) || !plain || extension.contains(&b'\r') {
        return Err(BodyError::Chunk);
    }
    let size = std::str::from_utf8(size).map_err(|_| BodyError::Chunk)?;
    u64::from_str_radix(size, 16).map_err(|_| BodyError::Chunk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(input: &[u8], pieces: usize) -> Result<(Vec<u8>, usize), BodyError> {
        let mut decoder = Decoder::new(Framing::Chunked);
        let (mut payload, mut at) = (Vec::new(), 0);
        while !decoder.is_done() && at < input.len() {
            let piece = &input[at..(at + pieces).min(input.len())];
            let step = decoder.step(piece)?;
            payload.extend_from_slice(&piece[step.payload]);
            at += step.used;
        }
        assert!(decoder.is_done(), "incomplete");
        Ok((payload, at))
    }

    proptest! {
        #[test]
        fn a_chunked_body_is_the_same_however_it_comes(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..6),
            pieces in 1usize..40,
        ) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend_from_slice(format!("{:x};x=y\r\n", chunk.len()).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\nTrailer: t\r\n\r\nGET");
            let (payload, used) = decode(&body, pieces).expect("well-formed");
            prop_assert_eq!(payload, chunks.concat());
            prop_assert_eq!(used, body.len() - 3);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 1..80)) {
            let mut decoder = Decoder::new(Framing::Chunked);
            let mut at = 0;
            while at < bytes.len() && !decoder.is_done() {
                match decoder.step(&bytes[at..]) {
                    Ok(step) => at += step.used,
                    Err(_) => break,
                }
            }
        }
    }

    #[test]
    fn loose_framing_is_refused() {
        for body in [
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhelloX\r\n0\r\n\r\n",
            "-1\r\n\r\n",
            "5 \r\nhello\r\n0\r\n\r\n",
            "\r\n",
            "ffffffffffffffff\r\n",
        ] {
            let mut decoder = Decoder::new(Framing::Chunked);
            let mut at = 0;
            let result = loop {
                match decoder.step(&body.as_bytes()[at..]) {
                    Ok(step) => at += step.used,
                    Err(error) => break Err(error),
                }
                if decoder.is_done() || at == body.len() {
                    break Ok(());
                }
            };
            assert_eq!(result, Err(BodyError::Chunk), "{body:?}");
        }
    }
}
