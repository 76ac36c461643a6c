//! Request heads.

use std::mem::MaybeUninit;

/// Headers of one request; more are answered with 431.
const MAX_HEADERS: usize = 64;
/// The longest request target in bytes; a longer one is answered with 414.
pub const MAX_TARGET: usize = 8 * 1024;

/// The longest request id in bytes; a longer one is taken for none.
const MAX_REQUEST_ID: usize = 64;

/// The method, as far as this server knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `GET`
    Get,
    /// `HEAD`
    Head,
    /// `PUT`
    Put,
    /// `DELETE`
    Delete,
    /// `OPTIONS`
    Options,
    /// Any other.
    Other,
}

impl Method {
    /// Its name for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
            Self::Other => "other",
        }
    }
}

/// How the request's body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunked.
    Chunked,
}

/// A request head, with the fields this server looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The path, still percent-encoded.
    pub path: String,
    /// The query without `?`, still percent-encoded; empty when there is none.
    pub query: String,
    /// Whether the connection stays open after the answer.
    pub keep_alive: bool,
    /// Whether the client speaks HTTP/1.1.
    pub http11: bool,
    /// The body's framing.
    pub framing: Framing,
    /// `Expect: 100-continue`.
    pub expects_continue: bool,
    /// The header fields this server looks at.
    pub fields: Fields,
}

/// Header fields this server looks at; `None` when absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    /// `Range`
    pub range: Option<String>,
    /// `If-Range`
    pub if_range: Option<String>,
    /// `If-Match`
    pub if_match: Option<String>,
    /// `If-None-Match`
    pub if_none_match: Option<String>,
    /// `If-Modified-Since`
    pub if_modified_since: Option<String>,
    /// `If-Unmodified-Since`
    pub if_unmodified_since: Option<String>,
    /// `Content-Type`
    pub content_type: Option<String>,
    /// `Origin`
    pub origin: Option<String>,
    /// `Reel-Content-Crc32`
    pub content_crc32: Option<String>,
    /// `X-Request-Id`, when it is one: at most 64 visible ASCII characters.
    pub request_id: Option<String>,
    /// `Reel-Request-Id`: the id under which an HTTP server passes a request on. For the log, not for the answer.
    pub forwarded_id: Option<String>,
    /// `Access-Control-Request-Headers`
    pub request_headers: Option<String>,
}

impl Fields {
    /// The request's id: the client's own, or the one an HTTP server gave it.
    pub fn id(&self) -> Option<&str> {
        self.request_id.as_deref().or(self.forwarded_id.as_deref())
    }

    /// Whether nothing is asked of a GET but the file: no range, no condition, no id in the answer.
    pub fn are_plain(&self) -> bool {
        self.range.is_none() && self.are_unconditional()
    }

    /// Whether nothing is asked of a GET but the file or ranges of it.
    pub fn are_unconditional(&self) -> bool {
        (self.range.is_none() || self.if_range.is_none())
            && self.if_match.is_none()
            && self.if_none_match.is_none()
            && self.if_modified_since.is_none()
            && self.if_unmodified_since.is_none()
            && self.request_id.is_none()
    }
}

/// A head that is refused: the connection is closed after the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// The HTTP status.
    pub status: u16,
    /// A stable word for programs.
    pub error: &'static str,
    /// One line for people.
    pub message: &'static str,
}

const fn refused(status: u16, error: &'static str, message: &'static str) -> Refused {
    Refused { status, error, message }
}

const BAD: Refused = refused(400, "bad_request", "the request head is not HTTP/1.1 (RFC 9112)");
/// A head beyond the configured size, or with too many fields.
pub const TOO_BIG: Refused = refused(431, "header_too_big", "the request head is too big");

/// Reads a head at the start of `bytes`: the request and the bytes it took, or `None` while it is
/// not complete.
pub fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, Refused> {
    let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut []);
    let used = match head.parse_with_uninit_headers(bytes, &mut headers) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) => {
            let line = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
            if line > MAX_TARGET + 64 {
                return Err(refused(
                    414,
                    "uri_too_long",
                    "the request target is longer than 8 KiB",
                ));
            }
            return Ok(None);
        }
        Err(httparse::Error::TooManyHeaders) => return Err(TOO_BIG),
        Err(httparse::Error::Version) => {
            return Err(refused(505, "http_version", "this server speaks HTTP/1.1 and HTTP/1.0"));
        }
        Err(_) => return Err(BAD),
    };
    let http11 = head.version == Some(1);
    let target = head.path.unwrap_or("/");
    if target.len() > MAX_TARGET {
        return Err(refused(414, "uri_too_long", "the request target is longer than 8 KiB"));
    }
    let method = match head.method.unwrap_or("") {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        "OPTIONS" => Method::Options,
        _ => Method::Other,
    };
    let mut seen = Seen::default();
    for header in head.headers.iter() {
        seen.take(header.name, header.value)?;
    }
    let framing = seen.framing(http11)?;
    if http11 && seen.hosts != 1 || seen.hosts > 1 {
        return Err(refused(
            400,
            "bad_request",
            "an HTTP/1.1 request has exactly one Host (RFC 9112 §3.2)",
        ));
    }
    let (path, query) = split_target(target, method)?;
    Ok(Some((
        Request {
            method,
            path,
            query,
            keep_alive: if http11 { !seen.close } else { seen.keep_alive },
            http11,
            framing,
            expects_continue: http11 && seen.expects_continue,
            fields: seen.fields,
        },
        used,
    )))
}

/// Path and query of a request target in origin form, absolute form or asterisk form (RFC 9112
/// §3.2).
fn split_target(target: &str, method: Method) -> Result<(String, String), Refused> {
    let origin = if target.starts_with('/') {
        target
    } else if target == "*" && method == Method::Options {
        "*"
    } else {
        let after = target
            .get(..7)
            .filter(|scheme| scheme.eq_ignore_ascii_case("http://"))
            .map(|_| &target[7..])
            .ok_or(BAD)?;
        after.find('/').map_or("/", |at| &after[at..])
    };
    let (path, query) = match origin.bytes().position(|byte| byte == b'?') {
        Some(at) => (&origin[..at], &origin[at + 1..]),
        None => (origin, ""),
    };
    Ok((path.to_owned(), query.to_owned()))
}

#[derive(Default)]
struct Seen {
    hosts: u32,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
    length: Option<u64>,
    chunked: bool,
    fields: Fields,
}

impl Seen {
    fn take(&mut self, name: &str, value: &[u8]) -> Result<(), Refused> {
        // The longest name looked at has 30 bytes; lower-casing on the stack costs no allocation.
        let mut lower = [0u8; 32];
        let Some(lower) = lower.get_mut(..name.len()) else { return Ok(()) };
        lower.copy_from_slice(name.as_bytes());
        lower.make_ascii_lowercase();
        let fields = &mut self.fields;
        let slot = match &*lower {
            b"host" => {
                self.hosts += 1;
                return text(value).map(drop);
            }
            b"range" => &mut fields.range,
            b"if-range" => &mut fields.if_range,
            b"if-match" => return join(&mut fields.if_match, text(value)?),
            b"if-none-match" => return join(&mut fields.if_none_match, text(value)?),
            b"if-modified-since" => &mut fields.if_modified_since,
            b"if-unmodified-since" => &mut fields.if_unmodified_since,
            b"content-type" => &mut fields.content_type,
            b"origin" => &mut fields.origin,
            b"x-request-id" | b"reel-request-id" => {
                let slot = match &*lower {
                    b"x-request-id" => &mut fields.request_id,
                    _ => &mut fields.forwarded_id,
                };
                let fits = (1..=MAX_REQUEST_ID).contains(&value.len());
                if fits && value.iter().all(u8::is_ascii_graphic) {
                    *slot = Some(text(value)?.to_owned());
                }
                return Ok(());
            }
            b"reel-content-crc32" => &mut fields.content_crc32,
            b"access-control-request-headers" => &mut fields.request_headers,
            b"connection" => {
                for option in text(value)?.split(',').map(str::trim) {
                    self.close |= option.eq_ignore_ascii_case("close");
                    self.keep_alive |= option.eq_ignore_ascii_case("keep-alive");
                }
                return Ok(());
            }
            b"expect" => {
                if !text(value)?.trim().eq_ignore_ascii_case("100-continue") {
                    return Err(refused(
                        417,
                        "expectation_failed",
                        "the only expectation met is 100-continue",
                    ));
                }
                self.expects_continue = true;
                return Ok(());
            }
            b"content-length" => return self.take_length(text(value)?),
            b"transfer-encoding" => {
                if self.chunked || !text(value)?.trim().eq_ignore_ascii_case("chunked") {
                    return Err(refused(
                        501,
                        "transfer_coding",
                        "the only transfer coding known is chunked",
                    ));
                }
                self.chunked = true;
                return Ok(());
            }
            _ => return Ok(()),
        };
        *slot = Some(text(value)?.to_owned());
        Ok(())
    }

    /// Digits only; a second, different or repeated length is refused (RFC 9112 §6.3).
    fn take_length(&mut self, value: &str) -> Result<(), Refused> {
        let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        if !digits || self.length.is_some() {
            return Err(refused(
                400,
                "bad_request",
                "Content-Length is not one number (RFC 9112 §6.3)",
            ));
        }
        match value.parse() {
            Ok(length) => {
                self.length = Some(length);
                Ok(())
            }
            Err(_) => Err(refused(413, "too_large", "Content-Length is beyond all bounds")),
        }
    }

    /// Both framings at once are how requests are smuggled: refused (RFC 9112 §6.1).
    fn framing(&self, http11: bool) -> Result<Framing, Refused> {
        match (self.length, self.chunked) {
            (Some(_), true) => Err(refused(
                400,
                "bad_request",
                "Content-Length and Transfer-Encoding exclude one another (RFC 9112 §6.1)",
            )),
            (_, true) if !http11 => Err(refused(
                400,
                "bad_request",
                "HTTP/1.0 has no Transfer-Encoding (RFC 9112 §6.1)",
            )),
            (None, true) => Ok(Framing::Chunked),
            (Some(0) | None, false) => {
                Ok(if self.length.is_some() { Framing::Length(0) } else { Framing::None })
            }
            (Some(length), false) => Ok(Framing::Length(length)),
        }
    }
}

fn text(value: &[u8]) -> Result<&str, Refused> {
    std::str::from_utf8(value).map_err(|_| BAD)
}

/// A list field may come in several lines (RFC 9110 §5.3).
fn join(slot: &mut Option<String>, value: &str) -> Result<(), Refused> {
    match slot {
        Some(list) => {
            list.push_str(", ");
            list.push_str(value);
        }
        None => *slot = Some(value.to_owned()),
    }
    Ok(())
}

/// The value of `name` in a query, still percent-encoded.
pub fn query_value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ok(head: &str) -> Request {
        let (request, used) = parse(head.as_bytes()).expect("accepted").expect("complete");
        assert_eq!(used, head.len());
        request
    }

    fn status(head: &str) -> u16 {
        parse(head.as_bytes()).expect_err("refused").status
    }

    #[test]
    fn a_plain_request() {
        let request = ok("GET /u/a%20b?x=1 HTTP/1.1\r\nHost: h\r\nrange: bytes=0-1\r\n\r\n");
        assert_eq!((request.path.as_str(), request.query.as_str()), ("/u/a%20b", "x=1"));
        assert!(request.keep_alive && request.framing == Framing::None);
        assert_eq!(request.fields.range.as_deref(), Some("bytes=0-1"));
        assert_eq!(query_value("a=1&b=2", "b"), Some("2"));
    }

    #[test]
    fn what_smuggles_is_refused() {
        for (head, expected) in [
            (
                "PUT /u/f HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
                400,
            ),
            ("PUT /u/f HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", 400),
            ("PUT /u/f HTTP/1.1\r\nHost: h\r\nContent-Length: +3\r\n\r\n", 400),
            ("PUT /u/f HTTP/1.1\r\nHost: h\r\nContent-Length: 3, 3\r\n\r\n", 400),
            ("PUT /u/f HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
            (
                "PUT /u/f HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                501,
            ),
            ("PUT /u/f HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("GET /u/f HTTP/1.1\r\nHost : h\r\n\r\n", 400),
            ("GET /u/f HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n", 400),
            ("GET /u/f HTTP/1.1\r\n\r\n", 400),
            ("GET /u/f HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            ("GET /u/f HTTP/2.0\r\nHost: a\r\n\r\n", 505),
            ("GET u/f HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("PUT /u/f HTTP/1.1\r\nHost: h\r\nExpect: magic\r\n\r\n", 417),
            ("PUT /u/f HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999\r\n\r\n", 413),
        ] {
            assert_eq!(status(head), expected, "{head}");
        }
        assert_eq!(
            status(&format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(MAX_TARGET))),
            414
        );
        let many = "X: y\r\n".repeat(MAX_HEADERS + 1);
        assert_eq!(status(&format!("GET / HTTP/1.1\r\n{many}\r\n")), 431);
    }

    #[test]
    fn connections_stay_open_as_the_version_says() {
        assert!(!ok("GET / HTTP/1.0\r\n\r\n").keep_alive);
        assert!(ok("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").keep_alive);
        assert!(!ok("GET / HTTP/1.1\r\nHost: h\r\nConnection: Close\r\n\r\n").keep_alive);
        assert_eq!(ok("GET http://h/u/f HTTP/1.1\r\nHost: h\r\n\r\n").path, "/u/f");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn a_head_cut_anywhere_is_incomplete(cut in 0usize..58) {
            let head = b"GET /u/f HTTP/1.1\r\nHost: example.net\r\nRange: bytes=0-1\r\n\r\n";
            prop_assert_eq!(parse(&head[..cut.min(head.len() - 1)]), Ok(None));
        }
    }
}
