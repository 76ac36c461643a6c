//! Names a shard remembers, so that a read by name costs no SQL when it was read lately.
//!
//! Two things keep them true. Epochs: an entry whose name has changed since it was asked for is not used. And age: an
//! entry older than the configured one is still used, but the catalog is asked beside the answer; before it, when peers'
//! records may be missing (`following`).

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState as FastHash;
use reel_control::catalog::Row;
use reel_control::config::{CacheRule, StorageConfig};

use super::Following;
use super::epochs::{Epoch, Epochs, NameHash};
use crate::http::response::Head;
use crate::tally::Count;

/// A file as a shard remembers it.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) row: Row,
    pub(crate) etag: String,
    /// `Cache-Control`.
    pub(crate) cache_control: Option<Box<str>>,
    /// Made when it is first read: most uploads are not, soon.
    fields: OnceCell<Box<str>>,
}

/// Bytes of [`File::fields`] at most, beside the values of `ETag` and `Cache-Control`.
const FIELDS: usize = 128;

impl File {
    pub(crate) fn new(row: Row, rules: &[CacheRule]) -> Self {
        let etag = etag(row.object, row.crc);
        let cache_control = cache_control(&row, rules).map(Box::from);
        Self { row, etag, cache_control, fields: OnceCell::new() }
    }

    /// `Last-Modified`.
    pub(crate) fn modified(&self) -> String {
        crate::http::date::format(self.row.modified_ms / 1000)
    }

    /// The fields that every 200 and 206 has.
    pub(crate) fn fields(&self) -> &str {
        self.fields.get_or_init(|| {
            let mut head = Head::fields();
            head.field("ETag", &self.etag)
                .field("Last-Modified", self.modified())
                .field("Accept-Ranges", "bytes")
                .field("Reel-Crc32", format_args!("{:08x}", self.row.crc));
            if let Some(value) = &self.cache_control {
                head.field("Cache-Control", value);
            }
            head.unfinished().into()
        })
    }

    /// Those and the others of a 200 to a GET, to the end of the head.
    pub(crate) fn whole(&self) -> Vec<u8> {
        let mut head = Head::fields();
        head.prepared(self.fields());
        head.field("Content-Type", &self.row.content_type).field("Content-Length", self.row.bytes);
        head.end()
    }

    /// Bytes of memory it takes, its fields among them: they may be made at any time.
    fn weight(&self) -> usize {
        let row = &self.row;
        let texts = [&row.user, &row.name, &row.path, &row.content_type, &self.etag];
        size_of::<Self>()
            + texts.iter().map(|text| text.capacity()).sum::<usize>()
            + FIELDS
            + self.etag.len()
            + 2 * self.cache_control.as_ref().map_or(0, |value| value.len())
    }
}

/// What the longest rule that fits says.
fn cache_control<'a>(row: &Row, rules: &'a [CacheRule]) -> Option<&'a str> {
    let fits = |rule: &&CacheRule| {
        let rest =
            rule.prefix.strip_prefix(row.user.as_str()).and_then(|rest| rest.strip_prefix('/'));
        match rest {
            Some(rest) => row.name.starts_with(rest),
            // A rule for a user, or for users that begin so.
            None => !rule.prefix.contains('/') && row.user.starts_with(&rule.prefix),
        }
    };
    let longest = rules.iter().filter(fits).max_by_key(|rule| rule.prefix.len());
    longest.map(|rule| rule.value.as_str())
}

/// The entity tag of an object: the same on every node of its group, another one after a replace.
pub(crate) fn etag(object: u64, crc: u32) -> String {
    format!("\"{object:x}-{crc:08x}\"")
}

#[derive(Clone)]
struct Entry {
    file: Rc<File>,
    hash: NameHash,
    epoch: Epoch,
    /// When the catalog was asked.
    asked: Instant,
    asking: Rc<Cell<bool>>,
}

impl Entry {
    /// Bytes of memory it takes, with its key and its place in the map (maps are half full at least).
    fn weight(&self, key: &str) -> usize {
        const PLACE: usize = 2 * size_of::<(Box<str>, Entry)>();
        // The two counts of each Rc.
        const COUNTS: usize = 4 * size_of::<usize>() + size_of::<usize>();
        PLACE + COUNTS + key.len() + self.file.weight()
    }
}

/// Some of the names, and what they weigh.
#[derive(Default)]
struct Generation {
    entries: HashMap<Box<str>, Entry, FastHash>,
    bytes: usize,
}

impl Generation {
    fn insert(&mut self, key: Box<str>, entry: Entry) {
        self.remove(&key);
        self.bytes += entry.weight(&key);
        self.entries.insert(key, entry);
    }

    fn remove(&mut self, key: &str) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.bytes -= entry.weight(key);
        Some(entry)
    }
}

/// What is remembered of a name.
pub(crate) enum Remembered {
    /// Use it.
    Fresh(Rc<File>),
    /// Use it, and ask the catalog beside the answer.
    Aged(Rc<File>),
    /// Not to be used unless the catalog is away.
    Stale(Rc<File>),
    /// Not to be used: it has changed since.
    Changed,
    /// Nothing.
    Unknown,
}

/// A shard's names: two generations, so that what is asked for stays and the bound costs nothing.
pub(crate) struct NameCache {
    young: RefCell<Generation>,
    old: RefCell<Generation>,
    /// Bytes of a generation.
    half: usize,
    age: Duration,
    rules: Vec<CacheRule>,
    hits: Count,
    misses: Count,
}

fn key(user: &str, name: &str) -> String {
    let mut key = String::with_capacity(user.len() + 1 + name.len());
    key.push_str(user);
    key.push('/');
    key.push_str(name);
    key
}

impl NameCache {
    /// As many bytes of names as are configured, asked again after the configured age.
    pub(crate) fn new(config: &StorageConfig) -> Self {
        Self {
            rules: config.cache_control.clone(),
            ..Self::with(config.name_cache.0 as usize, config.name_age.0)
        }
    }

    fn with(bytes: usize, age: Duration) -> Self {
        Self {
            rules: Vec::new(),
            young: RefCell::default(),
            old: RefCell::default(),
            half: bytes / 2,
            age,
            hits: Count::of(metrics::counter!("reel_name_cache_total", "result" => "hit")),
            misses: Count::of(metrics::counter!("reel_name_cache_total", "result" => "miss")),
        }
    }

    /// Brings what was counted to the process's metrics.
    pub(crate) fn flush_metrics(&self) {
        self.hits.flush();
        self.misses.flush();
    }

    /// A name (`USER/NAME`) that may be used as it is remembered, when it is among those asked for lately.
    pub(crate) fn fresh(
        &self,
        epochs: &Epochs,
        key: &str,
        following: &Following,
        now: Instant,
    ) -> Option<Rc<File>> {
        let young = self.young.borrow();
        let entry = young.entries.get(key)?;
        let epoch = epochs.of(entry.hash);
        // Who finds it aged first asks the catalog; until that answers, it is used.
        let aged = now.saturating_duration_since(entry.asked) > self.age
            && (!entry.asking.get() || !following.vouches_for(entry.asked, now));
        if entry.epoch != epoch || aged {
            return None;
        }
        self.hits.add(1);
        Some(Rc::clone(&entry.file))
    }

    /// What is remembered of a name whose epoch is `epoch` now.
    pub(crate) fn get(
        &self,
        user: &str,
        name: &str,
        epoch: Epoch,
        following: &Following,
    ) -> Remembered {
        let key = key(user, name);
        let found = self.young.borrow().entries.get(key.as_str()).cloned();
        let entry = match found {
            Some(entry) => entry,
            None => match self.old.borrow_mut().remove(key.as_str()) {
                Some(entry) => {
                    self.insert_entry(key.into_boxed_str(), entry.clone());
                    entry
                }
                None => {
                    self.misses.add(1);
                    return Remembered::Unknown;
                }
            },
        };
        let now = Instant::now();
        if epoch.concerns(entry.hash, entry.epoch) {
            self.misses.add(1);
            return Remembered::Changed;
        }
        let aged = now.saturating_duration_since(entry.asked) > self.age;
        if entry.epoch != epoch || aged && !following.vouches_for(entry.asked, now) {
            self.misses.add(1);
            return Remembered::Stale(entry.file);
        }
        self.hits.add(1);
        if aged && !entry.asking.replace(true) {
            return Remembered::Aged(entry.file);
        }
        Remembered::Fresh(entry.file)
    }

    /// Remembers a row that was asked for at `asked`, when the name's epoch was `epoch`.
    pub(crate) fn insert(&self, row: Row, epoch: Epoch, asked: Instant) -> Rc<File> {
        let key = key(&row.user, &row.name).into_boxed_str();
        let file = Rc::new(File::new(row, &self.rules));
        let entry = Entry {
            hash: NameHash::of(&file.row.user, &file.row.name),
            file: Rc::clone(&file),
            epoch,
            asked,
            asking: Rc::default(),
        };
        self.old.borrow_mut().remove(&key);
        self.insert_entry(key, entry);
        file
    }

    fn insert_entry(&self, key: Box<str>, entry: Entry) {
        let mut young = self.young.borrow_mut();
        if young.bytes + entry.weight(&key) > self.half {
            *self.old.borrow_mut() = std::mem::take(&mut *young);
        }
        young.insert(key, entry);
    }

    /// Forgets a name.
    pub(crate) fn remove(&self, user: &str, name: &str) {
        let key = key(user, name);
        self.young.borrow_mut().remove(key.as_str());
        self.old.borrow_mut().remove(key.as_str());
    }

    /// The catalog could not be asked again: the entry may be asked again later.
    pub(crate) fn ask_later(&self, user: &str, name: &str) {
        if let Some(entry) = self.young.borrow().entries.get(key(user, name).as_str()) {
            entry.asking.set(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reel_control::catalog::Stamp;

    fn current() -> Following {
        let following = Following::new();
        let now = Some(Instant::now());
        following.is_until(now, now);
        following
    }

    fn row(name: &str, object: u64) -> Row {
        let mut row = Row::mark("u".into(), name.into(), Stamp::default());
        row.object = object;
        row
    }

    #[test]
    fn the_longest_rule_that_fits_counts() {
        let rule = |prefix: &str| CacheRule { prefix: prefix.into(), value: prefix.into() };
        let rules = [rule(""), rule("u/live/"), rule("u/live/a"), rule("v"), rule("u/x")];
        let of = |name: &str| File::new(row(name, 1), &rules).cache_control;
        assert_eq!(of("live/abc").as_deref(), Some("u/live/a"));
        assert_eq!(of("live/b").as_deref(), Some("u/live/"));
        assert_eq!(of("film").as_deref(), Some(""));
        assert!(File::new(row("a", 1), &rules).fields().ends_with("Cache-Control: \r\n"));
        assert_eq!(File::new(row("a", 1), &rules[3..]).cache_control, None);
    }

    #[test]
    fn fields_are_within_what_they_were_weighed_with() {
        let rules = [CacheRule { prefix: "".into(), value: "public, max-age=60".into() }];
        let mut longest = row("a", u64::MAX);
        (longest.crc, longest.modified_ms) = (u32::MAX, u64::MAX);
        for file in [File::new(longest.clone(), &rules), File::new(longest, &[])] {
            let values =
                file.etag.len() + file.cache_control.as_ref().map_or(0, |value| value.len());
            assert!(file.fields().len() <= FIELDS + values, "{}", file.fields());
            let whole = String::from_utf8(file.whole()).expect("text");
            assert!(whole.starts_with(file.fields()) && whole.ends_with("\r\n\r\n"), "{whole}");
        }
    }

    #[test]
    fn a_raised_epoch_hides_an_entry_at_once() {
        let epochs = Epochs::new();
        let cache = NameCache::with(1 << 20, Duration::from_secs(60));
        let now = || epochs.of(NameHash::of("u", "a"));
        cache.insert(row("a", 7), now(), Instant::now());
        assert!(
            matches!(cache.get("u", "a", now(), &current()), Remembered::Fresh(file) if file.row.object == 7)
        );
        epochs.raise("u", "a");
        assert!(matches!(cache.get("u", "a", now(), &current()), Remembered::Changed));
    }

    #[test]
    fn the_bytes_of_names_are_bounded_and_those_in_use_stay() {
        const LIMIT: usize = 100_000;
        let cache = NameCache::with(LIMIT, Duration::from_secs(60));
        cache.insert(row("hot", 1), Epoch::default(), Instant::now());
        for at in 0..2_000 {
            let name = format!("cold-{}-{}", at % 700, "x".repeat(at % 97));
            cache.insert(row(&name, 2), Epoch::default(), Instant::now());
            assert!(
                matches!(cache.get("u", "hot", Epoch::default(), &current()), Remembered::Fresh(_)),
                "after {at}"
            );
            let (young, old) = (cache.young.borrow(), cache.old.borrow());
            assert!(young.bytes + old.bytes <= LIMIT);
            for generation in [&young, &old] {
                let all = generation.entries.iter();
                let weighed: usize = all.map(|(key, entry)| entry.weight(key)).sum();
                assert_eq!(generation.bytes, weighed);
            }
            assert!(at < 200 || young.entries.len() + old.entries.len() > 50);
        }
    }

    #[test]
    fn an_aged_entry_is_asked_again_once() {
        let cache = NameCache::with(1 << 20, Duration::ZERO);
        cache.insert(row("a", 1), Epoch::default(), Instant::now());
        std::thread::sleep(Duration::from_millis(1));
        assert!(matches!(cache.get("u", "a", Epoch::default(), &current()), Remembered::Aged(_)));
        assert!(matches!(cache.get("u", "a", Epoch::default(), &current()), Remembered::Fresh(_)));
        cache.ask_later("u", "a");
        assert!(matches!(cache.get("u", "a", Epoch::default(), &current()), Remembered::Aged(_)));
    }

    #[test]
    fn an_aged_entry_is_not_used_when_peers_are_not_followed() {
        let (cache, epochs) = (NameCache::with(1 << 20, Duration::ZERO), Epochs::new());
        cache.insert(row("a", 1), Epoch::default(), Instant::now());
        std::thread::sleep(Duration::from_millis(1));
        let (nobody, now) = (Following::new(), Instant::now());
        assert!(matches!(cache.get("u", "a", Epoch::default(), &nobody), Remembered::Stale(_)));
        assert!(cache.fresh(&epochs, "u/a", &nobody, now).is_none());
        assert!(matches!(cache.get("u", "a", Epoch::default(), &current()), Remembered::Aged(_)));
        assert!(cache.fresh(&epochs, "u/a", &current(), now).is_some(), "it is being asked for");
        assert!(cache.fresh(&epochs, "u/a", &nobody, now).is_none());
    }
}
