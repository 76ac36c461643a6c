//! The catalog alone: look-ups and upserts with many rows beside those with none.

use std::io::{Error, Result};
use std::time::{Duration, Instant};

use reel_control::catalog::{Catalog, Row, Stamp, Write};

use crate::cluster::say;

/// Rows of one transaction: what a busy node sends together.
const BATCH: u64 = 64;
/// Rows of one transaction while the table is filled.
const FILL: u64 = 2048;
/// Files of a user.
const FILES: u64 = 1000;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The catalog: sqlite:PATH or postgres://…; it should be empty
    #[arg(long)]
    catalog: String,
    /// Rows
    #[arg(long, default_value_t = 20_000_000)]
    rows: u64,
    /// Rows that an earlier run has left
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

/// Names as they come: users mixed, so that neighbours in time are none in the table.
fn row(number: u64, hlc: u64) -> Row {
    let users = 1 + number / FILES;
    let user = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % users;
    let mut row = Row::mark(
        format!("user-{user}"),
        format!("films/{number:012}/part.mp4"),
        Stamp { hlc, node: 101 },
    );
    row.object = (number + 1) << 16;
    row.group = 1;
    row.path = "5f/3a/000000003a5f.seg".to_owned();
    row.content_type = "video/mp4".to_owned();
    row.bytes = 4096;
    row
}

struct Rates {
    upserts: f64,
    replaces: f64,
    lookups: f64,
    lookups_p99_ms: f64,
}

/// Runs the measurement, and prints it.
pub(crate) fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(args)).map_err(Error::other)
}

async fn measure(args: &Args) -> reel_control::catalog::Result<()> {
    let catalog = Catalog::open(&args.catalog).await?;
    let time = Duration::from_secs(args.seconds);
    let mut next = args.from;
    let empty = rates(&catalog, &mut next, time).await?;
    show(next, &empty);
    let (begun, first) = (Instant::now(), next);
    let mut said = Instant::now();
    while next < args.rows {
        let writes: Vec<Write> = (next..next + FILL)
            .map(|number| Write::Put { row: row(number, number + 1), only_new: false })
            .collect();
        catalog.apply(&writes).await?;
        catalog.tend().await?;
        next += FILL;
        if said.elapsed() > Duration::from_secs(30) {
            said = Instant::now();
            say(format_args!(
                "  {next} rows, {:.0} rows/s so far",
                (next - first) as f64 / begun.elapsed().as_secs_f64()
            ));
        }
    }
    let full = rates(&catalog, &mut next, time).await?;
    show(next, &full);
    say(format_args!(
        "with {next} rows beside nearly none: upserts of new names {:.2}, replaces {:.2}, look-ups {:.2}",
        full.upserts / empty.upserts,
        full.replaces / empty.replaces,
        full.lookups / empty.lookups
    ));
    Ok(())
}

fn show(rows: u64, rates: &Rates) {
    say(format_args!(
        "{rows} rows: {:.0} upserts of new names/s and {:.0} replaces/s in transactions of {BATCH}; {:.0} look-ups/s one at a time, p99 {:.2} ms",
        rates.upserts, rates.replaces, rates.lookups, rates.lookups_p99_ms
    ));
}

/// Numbers spread over all that are there.
fn spread(count: u64, rows: u64) -> u64 {
    count.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(0x1234_5678) % rows
}

async fn rates(
    catalog: &Catalog,
    next: &mut u64,
    time: Duration,
) -> reel_control::catalog::Result<Rates> {
    let before = *next;
    let begun = Instant::now();
    while begun.elapsed() < time {
        let writes: Vec<Write> = (*next..*next + BATCH)
            .map(|number| Write::Put { row: row(number, number + 1), only_new: false })
            .collect();
        catalog.apply(&writes).await?;
        *next += BATCH;
    }
    let upserts = (*next - before) as f64 / begun.elapsed().as_secs_f64();
    let (begun, mut replaced) = (Instant::now(), 0);
    while begun.elapsed() < time {
        let hlc = 1 << 40;
        let writes: Vec<Write> = (0..BATCH)
            .map(|at| row(spread(replaced + at, *next), hlc + replaced))
            .map(|row| Write::Put { row, only_new: false })
            .collect();
        catalog.apply(&writes).await?;
        replaced += BATCH;
    }
    let replaces = replaced as f64 / begun.elapsed().as_secs_f64();
    let (begun, mut took) = (Instant::now(), Vec::new());
    while begun.elapsed() < time {
        let wanted = row(spread(took.len() as u64 * 7 + 3, *next), 0);
        let asked = Instant::now();
        let found = catalog.lookup(&wanted.user, &wanted.name).await?;
        took.push(asked.elapsed());
        if found.is_none() {
            say(format_args!("  {}/{} is not there", wanted.user, wanted.name));
        }
    }
    let lookups = took.len() as f64 / begun.elapsed().as_secs_f64();
    took.sort_unstable();
    let p99 = took[(took.len() as f64 * 0.99) as usize % took.len()];
    Ok(Rates { upserts, replaces, lookups, lookups_p99_ms: p99.as_secs_f64() * 1000.0 })
}
