//! A record head that is understood is written again as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reel_engine::format::record::RecordHead;
use reel_engine::format::segment_header::SegmentHeader;
use reel_engine::format::table::TableHeader;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(head) = RecordHead::decode(bytes) {
        let mut again = Vec::new();
        head.encode(&mut again);
        assert_eq!(RecordHead::decode(&again), Ok(head));
    }
    let _ = SegmentHeader::decode(bytes);
    let _ = TableHeader::decode(bytes);
});
