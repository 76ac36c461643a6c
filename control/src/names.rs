//! What users and files may be called.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// The longest user name in bytes.
pub const MAX_USER: usize = 128;
/// The longest file name in bytes, slashes included.
pub const MAX_NAME: usize = 1024;

/// Bytes that stand for themselves in a path (RFC 3986 §3.3 `pchar`, and the slash).
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/')
    .remove(b'!')
    .remove(b'$')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@');

/// Why a name is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The path does not name a user and a file.
    #[error("the path must be /USER/FILE")]
    NotAFile,
    /// A user name with a character it may not have.
    #[error("a user name is a-z, 0-9, '.', '_' and '-', and starts with a letter or a digit")]
    User,
    /// More than [`MAX_USER`] bytes.
    #[error("the user name is longer than 128 bytes")]
    UserTooLong,
    /// More than [`MAX_NAME`] bytes.
    #[error("the file name is longer than 1024 bytes")]
    NameTooLong,
    /// Nothing between two slashes, or at the end.
    #[error("the file name has an empty part")]
    EmptyPart,
    /// `.` or `..` between slashes.
    #[error("the file name has a part '.' or '..'")]
    DotPart,
    /// A control character.
    #[error("the file name has a control character")]
    Control,
    /// `%` without two hexadecimal digits.
    #[error("the path has a '%' without two hexadecimal digits behind it")]
    Percent,
    /// Not UTF-8 after decoding.
    #[error("the path is not UTF-8")]
    Utf8,
}

impl NameError {
    /// Whether the name is well-formed but too long (HTTP 414 rather than 400).
    pub fn is_too_long(self) -> bool {
        matches!(self, Self::UserTooLong | Self::NameTooLong)
    }
}

/// Checks `[a-z0-9][a-z0-9._-]{0,127}`.
pub fn check_user(user: &str) -> Result<(), NameError> {
    let start = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let inside = |byte: u8| start(byte) || matches!(byte, b'.' | b'_' | b'-');
    match user.as_bytes() {
        [first, rest @ ..] if start(*first) && rest.iter().all(|byte| inside(*byte)) => {
            if user.len() > MAX_USER { Err(NameError::UserTooLong) } else { Ok(()) }
        }
        _ => Err(NameError::User),
    }
}

/// Checks a decoded file name.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if name.len() > MAX_NAME {
        return Err(NameError::NameTooLong);
    }
    if name.chars().any(char::is_control) {
        return Err(NameError::Control);
    }
    for part in name.split('/') {
        match part {
            "" => return Err(NameError::EmptyPart),
            "." | ".." => return Err(NameError::DotPart),
            _ => {}
        }
    }
    Ok(())
}

/// User and file name of a request path `/USER/FILE…` without its query. Percent-decoding happens
/// once, after the split at the first slash, so an encoded slash cannot move the border.
pub fn parse_path(path: &str) -> Result<(String, String), NameError> {
    let (user, name) =
        path.strip_prefix('/').and_then(|rest| rest.split_once('/')).ok_or(NameError::NotAFile)?;
    let user = decode(user)?;
    check_user(&user)?;
    let name = decode(name)?;
    check_name(&name)?;
    Ok((user, name))
}

/// Percent-decodes once; every `%` must be followed by two hexadecimal digits.
pub fn decode(text: &str) -> Result<String, NameError> {
    let bytes = text.as_bytes();
    if !bytes.contains(&b'%') {
        return Ok(text.to_owned());
    }
    for (at, byte) in bytes.iter().enumerate() {
        let digits = bytes.get(at + 1..at + 3);
        let hex = digits.is_some_and(|pair| pair.iter().all(u8::is_ascii_hexdigit));
        if *byte == b'%' && !hex {
            return Err(NameError::Percent);
        }
    }
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| NameError::Utf8)?;
    Ok(decoded.into_owned())
}

/// The request path of a file.
pub fn encode_path(user: &str, name: &str) -> String {
    format!("/{user}/{}", utf8_percent_encode(name, PATH))
}

/// A text as one query value.
pub fn encode_query(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Splits `USER/NAME` as the command line takes it.
pub fn parse_target(target: &str) -> Result<(String, String), NameError> {
    let (user, name) = target.split_once('/').ok_or(NameError::NotAFile)?;
    check_user(user)?;
    check_name(name)?;
    Ok((user.to_owned(), name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bad_paths_are_refused_by_reason() {
        use NameError::*;
        for (path, reason) in [
            ("/u", NotAFile),
            ("u/a", NotAFile),
            ("/u/", EmptyPart),
            ("/u//a", EmptyPart),
            ("/u/a/../b", DotPart),
            ("/u/a/%2e%2e/b", DotPart),
            ("/u/%2e", DotPart),
            ("/u/a%00b", Control),
            ("/u/a%0ab", Control),
            ("/u/a%2", Percent),
            ("/u/a%zz", Percent),
            ("/u/%ff", Utf8),
            ("/U/a", User),
            ("/-/health", User),
            ("/%2fu/a", User),
        ] {
            assert_eq!(parse_path(path), Err(reason), "{path}");
        }
        let long = format!("/u/{}", "a".repeat(1025));
        assert_eq!(parse_path(&long), Err(NameTooLong));
        assert_eq!(parse_path(&format!("/{}/a", "u".repeat(129))), Err(UserTooLong));
    }

    #[test]
    fn decoding_happens_once() {
        assert_eq!(parse_path("/u/a%2541"), Ok(("u".into(), "a%41".into())));
        assert_eq!(parse_path("/u/a%2Fb"), Ok(("u".into(), "a/b".into())));
    }

    proptest! {
        #[test]
        fn every_good_name_survives_its_path(name in "[^/\\p{Cc}]{1,40}(/[^/\\p{Cc}]{1,40}){0,3}") {
            prop_assume!(check_name(&name).is_ok());
            let path = encode_path("u", &name);
            prop_assert!(path.is_ascii());
            prop_assert_eq!(parse_path(&path), Ok(("u".to_owned(), name)));
        }

        #[test]
        fn no_path_panics(path in "\\PC{0,60}") {
            let _ = parse_path(&path);
        }
    }
}
