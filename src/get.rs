//! `reel get`

use std::io::Read;
use std::path::{Path, PathBuf};

use reel_control::client::Client;
use reel_control::names;
use tokio::io::AsyncWriteExt;

use crate::cli::GetArgs;
use crate::output::{Bar, Failure, say, say_json};

pub async fn run(client: &Client, args: GetArgs, json: bool) -> Result<(), Failure> {
    let (user, name) = names::parse_target(&args.target)?;
    let (start, end) = match &args.range {
        Some(range) => parse_range(range)?,
        None => (0, None),
    };
    let output = args
        .output
        .clone()
        .unwrap_or_else(|| PathBuf::from(name.rsplit('/').next().unwrap_or(&name)));
    if output == Path::new("-") {
        if args.resume {
            return Err(Failure::usage("--continue needs a FILE"));
        }
        let mut stdout = tokio::io::stdout();
        client.get(&user, &name, start, end, &mut stdout, std::sync::Arc::new(|_| {})).await?;
        return Ok(());
    }
    let file = client.stat(&user, &name).await?;
    let at = if args.resume { partial(&output, file.bytes)? } else { start };
    let fail = |error: std::io::Error| Failure::failed(format!("{}: {error}", output.display()));
    let opened = if args.resume {
        tokio::fs::OpenOptions::new().append(true).create(true).open(&output).await
    } else {
        tokio::fs::File::create(&output).await
    };
    let mut sink = opened.map_err(fail)?;
    let total = end.unwrap_or(file.bytes).min(file.bytes).saturating_sub(at);
    let bar = Bar::new(&name, Some(total));
    let result = if args.resume && at == file.bytes {
        Ok(0)
    } else {
        client.get(&user, &name, at, end, &mut sink, bar.progress()).await
    };
    bar.finish();
    let written = result?;
    sink.flush().await.map_err(fail)?;
    if args.resume {
        let found = crc_of(&output).map_err(fail)?;
        if format!("{found:08x}") != file.crc32 {
            let path = output.display();
            return Err(Failure::failed(format!(
                "{path}: its beginning is not that of {}: remove it and get it anew",
                args.target
            )));
        }
    }
    if json {
        say_json(
            &serde_json::json!({ "file": output.display().to_string(), "bytes": written, "from": at }),
        )
    } else {
        say(format_args!("{}  {written} bytes", output.display()));
        Ok(())
    }
}

/// The length of a partial file.
fn partial(output: &Path, whole: u64) -> Result<u64, Failure> {
    match std::fs::metadata(output) {
        Ok(metadata) if metadata.len() <= whole => Ok(metadata.len()),
        Ok(metadata) => {
            let message =
                format!("{} has {} bytes, the file only {whole}", output.display(), metadata.len());
            Err(Failure::failed(message))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(Failure::failed(format!("{}: {error}", output.display()))),
    }
}

/// CRC-32 of a local file.
pub fn crc_of(path: &Path) -> std::io::Result<u32> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = crc32fast::Hasher::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hasher.finalize()),
            read => hasher.update(&piece[..read]),
        }
    }
}

/// First byte, and the byte after the last, of `A-B` or `A-`.
fn parse_range(range: &str) -> Result<(u64, Option<u64>), Failure> {
    let bad = || Failure::usage(format!("--range {range:?}: write A-B (both included) or A-"));
    let (first, last) = range.split_once('-').ok_or_else(bad)?;
    let first: u64 = first.parse().map_err(|_| bad())?;
    if last.is_empty() {
        return Ok((first, None));
    }
    let last: u64 = last.parse().map_err(|_| bad())?;
    if last < first {
        return Err(bad());
    }
    Ok((first, Some(last + 1)))
}
