//! What a crash of the process leaves.

use std::path::Path;

/// What is on the disk now, as after a crash of the process. Without another program: between its fork and its start it would
/// hold the lock of a store that a test beside closes.
pub fn crash_image(from: &Path) -> tempfile::TempDir {
    fn fill(from: &Path, to: &Path) {
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let to = to.join(path.file_name().unwrap());
            if path.is_dir() {
                std::fs::create_dir(&to).unwrap();
                fill(&path, &to);
            } else {
                std::fs::copy(&path, &to).unwrap();
            }
        }
    }
    let to = tempfile::tempdir().unwrap();
    fill(from, to.path());
    to
}
