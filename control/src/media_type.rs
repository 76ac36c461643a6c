//! The content type of a file whose uploader named none: by its ending.

/// What is said of bytes nobody knows (RFC 9110 §8.3).
pub const UNKNOWN: &str = "application/octet-stream";

/// Guesses a content type from a file name.
pub fn guess(name: &str) -> &'static str {
    let file = name.rsplit('/').next().unwrap_or(name);
    let Some((_, ending)) = file.rsplit_once('.') else { return UNKNOWN };
    match ending.to_ascii_lowercase().as_str() {
        "mp4" | "m4v" => "video/mp4",
        "m4s" | "cmfv" => "video/iso.segment",
        "ts" | "m2ts" => "video/mp2t",
        "m3u8" => "application/vnd.apple.mpegurl",
        "mpd" => "application/dash+xml",
        "webm" => "video/webm",
        "mkv" => "video/x-matroska",
        "mov" => "video/quicktime",
        "avi" => "video/x-msvideo",
        "mpg" | "mpeg" => "video/mpeg",
        "ogv" => "video/ogg",
        "flv" => "video/x-flv",
        "mp3" => "audio/mpeg",
        "m4a" | "cmfa" => "audio/mp4",
        "aac" => "audio/aac",
        "flac" => "audio/flac",
        "ogg" | "oga" | "opus" => "audio/ogg",
        "wav" => "audio/wav",
        "jpg" | "jpeg" => "image/jpeg",
        "png" => "image/png",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "svg" => "image/svg+xml",
        "ico" => "image/vnd.microsoft.icon",
        "vtt" => "text/vtt; charset=utf-8",
        "srt" => "application/x-subrip",
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "json" => "application/json",
        "xml" => "application/xml",
        "txt" | "log" => "text/plain; charset=utf-8",
        "pdf" => "application/pdf",
        "wasm" => "application/wasm",
        "zip" => "application/zip",
        "gz" => "application/gzip",
        _ => UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_count_and_folders_do_not() {
        assert_eq!(guess("a/b.mp4"), "video/mp4");
        assert_eq!(guess("A.M3U8"), "application/vnd.apple.mpegurl");
        assert_eq!(guess("a.mp4/b"), UNKNOWN);
        assert_eq!(guess("b"), UNKNOWN);
    }
}
