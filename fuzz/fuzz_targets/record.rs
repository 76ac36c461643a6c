//! A record head that is understood is written again as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reel_engine::format::record::RecordHead;
use reel_engine::format::segment_header::SegmentHeader;
use reel_engine::format::table::TableHeader;

fuzz_target!(|input: (u32, &[u8])| {
    let (salt, bytes) = input;
    if let Ok(head) = RecordHead::decode(bytes, salt) {
        let mut again = Vec::new();
        head.encode(salt, &mut again);
        assert_eq!(RecordHead::decode(&again, salt), Ok(head));
    }
    let _ = SegmentHeader::decode(bytes);
    let _ = TableHeader::decode(bytes);
});
