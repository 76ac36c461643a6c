//! A path that names a file names the same one after being written as a path again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reel_control::names;

fuzz_target!(|path: &str| {
    if let Ok((user, name)) = names::parse_path(path) {
        assert_eq!(names::parse_path(&names::encode_path(&user, &name)), Ok((user, name)));
    }
});
