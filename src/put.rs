//! `reel put`

use std::path::Path;

use reel_control::client::{Client, Source};
use reel_control::names;

use crate::cli::PutArgs;
use crate::output::{Bar, Failure, complain, say, say_json};

pub async fn run(client: &Client, args: PutArgs, json: bool) -> Result<(), Failure> {
    names::check_user(&args.user)?;
    if args.name.is_some() && args.files.len() > 1 {
        return Err(Failure::usage("--name goes with one file only"));
    }
    let mut failed = 0;
    let single = args.files.len() == 1;
    for file in &args.files {
        match put_one(client, &args, file, json).await {
            Ok(()) => {}
            Err(failure) if single || failure.code == 2 => return Err(failure),
            Err(failure) => {
                complain(&failure.message);
                failed += 1;
            }
        }
    }
    if failed > 0 {
        return Err(Failure::failed(format!(
            "{failed} of {} files were not uploaded",
            args.files.len()
        )));
    }
    Ok(())
}

async fn put_one(client: &Client, args: &PutArgs, file: &Path, json: bool) -> Result<(), Failure> {
    let stdin = file == Path::new("-");
    let name = match (&args.name, stdin) {
        (Some(name), _) => name.clone(),
        (None, true) => return Err(Failure::usage("give --name with standard input")),
        (None, false) => own_name(file)?,
    };
    names::check_name(&name)?;
    let (source, total) = if stdin {
        (Source::Once(Box::new(tokio::io::stdin())), None)
    } else {
        let metadata = std::fs::metadata(file)
            .map_err(|error| Failure::failed(format!("{}: {error}", file.display())))?;
        if !metadata.is_file() {
            return Err(Failure::failed(format!(
                "{}: not a file; `reel import` uploads a folder",
                file.display()
            )));
        }
        (Source::File { path: file.to_owned(), bytes: metadata.len() }, Some(metadata.len()))
    };
    let bar = Bar::new(&name, total);
    let result =
        client.put(&args.user, &name, args.content_type.as_deref(), source, bar.progress()).await;
    bar.finish();
    let uploaded = result.map_err(|error| Failure {
        message: format!("{}: {error}", file.display()),
        ..Failure::from(error)
    })?;
    if json {
        say_json(&uploaded)
    } else {
        say(format_args!(
            "{}/{}  {} bytes  crc32 {}",
            uploaded.user, uploaded.name, uploaded.bytes, uploaded.crc32
        ));
        Ok(())
    }
}

fn own_name(file: &Path) -> Result<String, Failure> {
    let name = file.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned)
        .ok_or_else(|| Failure::usage(format!("{}: give --name", file.display())))
}
