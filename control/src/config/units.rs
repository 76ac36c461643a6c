//! Sizes and times as configurations write them.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// A number of bytes: an integer, or a text such as `"256 MiB"` (KiB, MiB, GiB, TiB; kB, MB, GB, TB).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub u64);

/// A time span: a text such as `"250 ms"`, `"2 s"`, `"5 min"`, `"1 h"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl std::str::FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text)
            .ok_or_else(|| format!("{text:?} is not a size: write 4096, 64 MiB or 10 GB"))
    }
}

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text)
            .ok_or_else(|| format!("{text:?} is not a time: write 250 ms, 2 s, 5 min or 1 h"))
    }
}

fn split_unit(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim()))
}

impl ByteSize {
    /// Understands `"64 MiB"` and the like.
    pub fn parse(text: &str) -> Option<Self> {
        let (number, unit) = split_unit(text)?;
        let scale: u64 = match unit {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            "kB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            _ => return None,
        };
        Some(Self((number * scale as f64) as u64))
    }
}

impl Span {
    /// Understands `"250 ms"` and the like.
    pub fn parse(text: &str) -> Option<Self> {
        let (number, unit) = split_unit(text)?;
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "min" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        Duration::try_from_secs_f64(number * seconds).ok().map(Self)
    }

    pub(super) const fn ms(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(bytes) => Ok(Self(bytes)),
            Form::Text(text) => Self::parse(&text).ok_or_else(|| {
                de::Error::custom(format!("{text:?} is not a size such as \"256 MiB\""))
            }),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            de::Error::custom(format!("{text:?} is not a time such as \"500 ms\" or \"2 s\""))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times() {
        assert_eq!(ByteSize::parse("256 MiB"), Some(ByteSize(256 << 20)));
        assert_eq!(ByteSize::parse("1.5GB"), Some(ByteSize(1_500_000_000)));
        assert_eq!(ByteSize::parse("x"), None);
        assert_eq!(Span::parse("250 ms"), Some(Span::ms(250)));
        assert_eq!(Span::parse("2"), None);
    }
}
