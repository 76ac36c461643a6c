//! Whether bytes of a file lie in the page cache: cachestat(2), since Linux 6.5.

#![expect(unsafe_code, reason = "a system call that no crate wraps yet")]

use std::fs::File;
use std::os::fd::AsRawFd;

const PAGE: u64 = 4096;
/// How often a short count is asked for.
const ASKS: usize = 3;
/// `cachestat`, the same number on every architecture.
const CACHESTAT: libc::c_long = 451;

#[repr(C)]
struct Range {
    offset: u64,
    length: u64,
}

#[repr(C)]
#[derive(Default)]
struct Stat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Whether all of these bytes are resident. False when that cannot be known (an older kernel): they are
/// then read as if they were not.
pub(super) fn is_resident(file: &File, offset: u64, length: u64) -> bool {
    let range = pages(offset, length);
    // When the kernel is to let another thread run while it counts, it may pass over pages (Linux 6.18: of 123 that were
    // all there it found less in one answer of a thousand, beside threads on the same core; never at the second time). A
    // place that was thought cold for that was read from the disk, and its reader waited long on a busy core.
    for _ in 0..ASKS {
        match cached(file, &range) {
            0 => return false,
            bytes if bytes >= range.length => return true,
            _ => {}
        }
    }
    false
}

/// Whether at least half of the pages of these bytes are resident; false when that cannot be known.
pub(super) fn is_mostly_resident(file: &File, offset: u64, length: u64) -> bool {
    let range = pages(offset, length);
    let cached = cached(file, &range);
    cached > 0 && cached >= range.length / 2
}

/// The pages that these bytes lie in.
fn pages(offset: u64, length: u64) -> Range {
    let first = offset / PAGE;
    let end = (offset + length).div_ceil(PAGE);
    Range { offset: first * PAGE, length: (end - first) * PAGE }
}

/// Bytes of a range that lie in the page cache; 0 when that cannot be known.
fn cached(file: &File, range: &Range) -> u64 {
    let range: *const Range = range;
    let mut stat = Stat::default();
    // SAFETY: both structures live through the call, and are laid out as the kernel's (include/uapi/linux/mman.h).
    let result = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), range, &raw mut stat, 0) };
    if result == 0 { stat.cached * PAGE } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_was_just_written_is_resident_and_what_was_given_up_is_not() {
        let mut file = tempfile::tempfile_in(".").expect("file");
        file.write_all(&vec![7; 1 << 20]).expect("written");
        assert!(is_resident(&file, 5000, 900_000));
        assert!(!is_resident(&file, 0, 2 << 20), "beyond the end there is nothing");
        file.sync_all().expect("synced");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advised");
        assert!(!is_resident(&file, 0, 1 << 20));
        assert!(!is_mostly_resident(&file, 0, 1 << 20));
    }

    #[test]
    fn what_has_a_hole_is_mostly_resident() {
        let mut file = tempfile::tempfile_in(".").expect("file");
        file.write_all(&vec![7; 1 << 20]).expect("written");
        file.sync_all().expect("synced");
        // Nothing is read ahead.
        for advice in [rustix::fs::Advice::DontNeed, rustix::fs::Advice::Random] {
            rustix::fs::fadvise(&file, 0, None, advice).expect("advised");
        }
        file.read_exact_at(&mut vec![0; 768 << 10], 0).expect("read");
        assert!(!is_resident(&file, 0, 1 << 20));
        assert!(is_mostly_resident(&file, 0, 1 << 20));
        assert!(!is_mostly_resident(&file, 768 << 10, 256 << 10));
    }
}
