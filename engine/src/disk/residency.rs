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
    let first = offset / PAGE;
    let end = (offset + length).div_ceil(PAGE);
    let range = Range { offset: first * PAGE, length: (end - first) * PAGE };
    // When the kernel is to let another thread run while it counts, it may pass over pages (Linux 6.18: of 123 that were
    // all there it found less in one answer of a thousand, beside threads on the same core; never at the second time). A
    // place that was thought cold for that was read from the disk, and its reader waited long on a busy core.
    for _ in 0..ASKS {
        let mut stat = Stat::default();
        // SAFETY: both structures live through the call, and are laid out as the kernel's
        // (include/uapi/linux/mman.h).
        let result = unsafe {
            libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut stat, 0)
        };
        if result != 0 || stat.cached == 0 {
            return false;
        }
        if stat.cached >= end - first {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_was_just_written_is_resident_and_what_was_given_up_is_not() {
        let mut file = tempfile::tempfile_in(".").expect("file");
        file.write_all(&vec![7; 1 << 20]).expect("written");
        assert!(is_resident(&file, 5000, 900_000));
        assert!(!is_resident(&file, 0, 2 << 20), "beyond the end there is nothing");
        file.sync_all().expect("synced");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advised");
        assert!(!is_resident(&file, 0, 1 << 20));
    }
}
