//! The catalog's suite: the same calls, the same outcomes, on SQLite and on PostgreSQL.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod postgres;

use reel_control::api::GroupSettings;
use reel_control::catalog::{Catalog, Held, Outcome, Row, Stamp, Write};
use sqlx::Connection as _;

fn stamp(hlc: u64, node: u32) -> Stamp {
    Stamp { hlc, node }
}

fn row(name: &str, object: u64, stamp: Stamp) -> Row {
    Row {
        user: "ann".into(),
        name: name.into(),
        object,
        group: 2,
        path: "01/00/000000000001.seg".into(),
        bytes: 1 << 40,
        content_type: "video/mp4".into(),
        crc: u32::MAX,
        modified_ms: 1_700_000_000_000,
        stamp,
    }
}

fn put(name: &str, object: u64, stamp: Stamp) -> Write {
    Write::Put { row: row(name, object, stamp), only_new: false }
}

fn done(previous: Option<u64>, stamp: Stamp) -> Outcome {
    Outcome::Done { previous: previous.map(|object| Held { object, group: 2 }), stamp }
}

async fn suite(catalog: Catalog, other: Catalog) {
    users_are_settled_once(&catalog, &other).await;
    groups_are_as_operators_say(&catalog, &other).await;
    rows_round_trip_and_the_higher_version_wins(&catalog).await;
    a_delete_leaves_a_mark_that_older_writes_cannot_pass(&catalog).await;
    listings_are_in_order_and_paged(&catalog).await;
    a_batch_is_applied_in_order(&catalog).await;
    new_names_beside_present_ones(&catalog, &other).await;
    writers_of_the_same_names_at_once_agree(&catalog, &other).await;
}

async fn users_are_settled_once(one: &Catalog, two: &Catalog) {
    assert_eq!(one.group_of("bob").await.unwrap(), None);
    let (first, second) = tokio::join!(one.settle_user("bob", 1), two.settle_user("bob", 2));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first, second, "two trackers asked at once agree");
    assert_eq!(one.settle_user("bob", 9).await.unwrap(), first);
    assert_eq!(two.group_of("bob").await.unwrap(), Some(first));
}

async fn groups_are_as_operators_say(one: &Catalog, two: &Catalog) {
    assert_eq!(one.groups().await.unwrap(), []);
    let light = GroupSettings { weight: 10, readonly: false };
    assert!(one.set_group(3, light, true).await.unwrap());
    let closed = GroupSettings { weight: 100, readonly: true };
    assert!(!two.set_group(3, closed, true).await.unwrap(), "it is there already");
    assert_eq!(two.groups().await.unwrap(), [(3, light)]);
    assert!(two.set_group(3, closed, false).await.unwrap());
    assert_eq!(one.groups().await.unwrap(), [(3, closed)]);
    one.settle_user("eve", 1).await.unwrap();
    let (first, second) =
        tokio::join!(one.move_user_from("eve", 1, 2), two.move_user_from("eve", 1, 3));
    assert_eq!(first.unwrap(), second.unwrap(), "two trackers asked at once agree");
}

async fn rows_round_trip_and_the_higher_version_wins(catalog: &Catalog) {
    let high_bit = 1u64 << 63 | 5;
    let first = row("a b/ü.mp4", high_bit, stamp(10, 1));
    let outcomes =
        catalog.apply(&[Write::Put { row: first.clone(), only_new: true }]).await.unwrap();
    assert_eq!(outcomes, [done(None, stamp(10, 1))]);
    assert_eq!(catalog.lookup("ann", "a b/ü.mp4").await.unwrap(), Some(first));
    assert_eq!(catalog.lookup("ann", "nothing").await.unwrap(), None);
    // The same again changes nothing: a restart offers its last records once more.
    assert_eq!(
        catalog.apply(&[put("a b/ü.mp4", high_bit, stamp(10, 1))]).await.unwrap(),
        [done(None, stamp(10, 1))]
    );
    let older = catalog.apply(&[put("a b/ü.mp4", 6, stamp(9, 9))]).await.unwrap();
    assert_eq!(older, [Outcome::Lost { winner: stamp(10, 1), object: Some(high_bit) }]);
    let newer = catalog.apply(&[put("a b/ü.mp4", 7, stamp(10, 2))]).await.unwrap();
    assert_eq!(newer, [done(Some(high_bit), stamp(10, 2))], "equal clocks: the higher node wins");
    let only_new = Write::Put { row: row("a b/ü.mp4", 8, stamp(99, 1)), only_new: true };
    assert_eq!(catalog.apply(&[only_new]).await.unwrap(), [Outcome::Exists]);
    assert_eq!(catalog.lookup("ann", "a b/ü.mp4").await.unwrap().unwrap().object, 7);
}

async fn a_delete_leaves_a_mark_that_older_writes_cannot_pass(catalog: &Catalog) {
    let delete =
        |hlc| Write::Delete { user: "ann".into(), name: "gone".into(), stamp: stamp(hlc, 1) };
    assert_eq!(catalog.apply(&[delete(1)]).await.unwrap(), [Outcome::NotFound]);
    catalog.apply(&[put("gone", 20, stamp(50, 2))]).await.unwrap();
    // The deleting node's clock is behind; the delete is still above what it deletes.
    assert_eq!(catalog.apply(&[delete(3)]).await.unwrap(), [done(Some(20), stamp(51, 1))]);
    assert_eq!(catalog.lookup("ann", "gone").await.unwrap(), None);
    assert_eq!(catalog.apply(&[delete(4)]).await.unwrap(), [Outcome::NotFound]);
    let back = catalog.apply(&[put("gone", 20, stamp(50, 2))]).await.unwrap();
    assert_eq!(
        back,
        [Outcome::Lost { winner: stamp(51, 1), object: None }],
        "nothing deleted comes back"
    );
    catalog.apply(&[put("gone", 21, stamp(60, 1))]).await.unwrap();
    let late = Write::Mark { user: "ann".into(), name: "gone".into(), stamp: stamp(55, 9) };
    assert_eq!(
        catalog.apply(&[late]).await.unwrap(),
        [Outcome::Lost { winner: stamp(60, 1), object: Some(21) }]
    );
    assert_eq!(catalog.lookup("ann", "gone").await.unwrap().unwrap().object, 21);
}

async fn listings_are_in_order_and_paged(catalog: &Catalog) {
    let names = ["list/a", "list/b/1", "list/b/2", "list/é", "list0", "lis"];
    let writes: Vec<Write> = names
        .iter()
        .enumerate()
        .map(|(at, name)| put(name, 100 + at as u64, stamp(1, 1)))
        .collect();
    catalog.apply(&writes).await.unwrap();
    let list = async |prefix: &str, after: &str, limit| -> Vec<String> {
        catalog
            .list("ann", prefix, after, limit)
            .await
            .unwrap()
            .into_iter()
            .map(|row| row.name)
            .collect()
    };
    assert_eq!(list("list/", "", 100).await, ["list/a", "list/b/1", "list/b/2", "list/é"]);
    assert_eq!(list("list/", "list/a", 2).await, ["list/b/1", "list/b/2"]);
    assert_eq!(list("list/é", "", 9).await, ["list/é"]);
    assert_eq!(list("li%", "", 9).await, [""; 0], "no wildcards");
    assert!(catalog.list("nobody", "", "", 9).await.unwrap().is_empty());
}

async fn a_batch_is_applied_in_order(catalog: &Catalog) {
    let writes: Vec<Write> = (0..300)
        .map(|at| put(&format!("batch-{}", at % 150), 1000 + at, stamp(1 + at, 1)))
        .collect();
    let outcomes = catalog.apply(&writes).await.unwrap();
    assert_eq!(outcomes[0], done(None, stamp(1, 1)));
    assert_eq!(outcomes[150], done(Some(1000), stamp(151, 1)));
    assert_eq!(catalog.lookup("ann", "batch-7").await.unwrap().unwrap().object, 1157);
    assert!(catalog.apply(&[]).await.unwrap().is_empty());
}

/// Names that are new are written without being asked for first, when those before them were new.
async fn new_names_beside_present_ones(one: &Catalog, two: &Catalog) {
    let new = |from: u64, to: u64| -> Vec<Write> {
        (from..to).map(|at| put(&format!("new-{at:03}"), 5000 + at, stamp(10 + at, 1))).collect()
    };
    let all_new = |from: u64, to: u64| -> Vec<Outcome> {
        (from..to).map(|at| done(None, stamp(10 + at, 1))).collect()
    };
    // The second of them met none that was there.
    one.apply(&new(0, 1)).await.unwrap();
    one.apply(&new(1, 2)).await.unwrap();
    assert_eq!(one.apply(&new(2, 150)).await.unwrap(), all_new(2, 150));
    // One of them is there since, by another process.
    two.apply(&new(170, 171)).await.unwrap();
    let mut mixed = new(150, 190);
    mixed[20] = put("new-170", 9000, stamp(900, 1));
    let mut expected = all_new(150, 190);
    expected[20] = done(Some(5170), stamp(900, 1));
    assert_eq!(one.apply(&mixed).await.unwrap(), expected);
    for (name, object) in [("new-150", 5150), ("new-170", 9000), ("new-189", 5189)] {
        assert_eq!(two.lookup("ann", name).await.unwrap().unwrap().object, object);
    }
    // And an older one that comes late, between new ones.
    one.apply(&new(190, 191)).await.unwrap();
    let late = [put("new-191", 5191, stamp(201, 1)), put("new-170", 7000, stamp(20, 1))];
    let outcomes = one.apply(&late).await.unwrap();
    let lost = Outcome::Lost { winner: stamp(900, 1), object: Some(9000) };
    assert_eq!(outcomes, [done(None, stamp(201, 1)), lost]);
    // A name that is stored and deleted in one batch leaves a mark; one that is not there is not found.
    let delete = |name: &str, hlc| Write::Delete {
        user: "ann".into(),
        name: name.into(),
        stamp: stamp(hlc, 1),
    };
    one.apply(&new(192, 193)).await.unwrap();
    let brief = [put("new-brief", 6000, stamp(300, 1)), delete("new-brief", 301)];
    let outcomes = one.apply(&brief).await.unwrap();
    assert_eq!(outcomes, [done(None, stamp(300, 1)), done(Some(6000), stamp(301, 1))]);
    assert!(two.lookup("ann", "new-brief").await.unwrap().is_none());
    let outcomes = one.apply(&[delete("new-none", 302)]).await.unwrap();
    assert_eq!(outcomes, [Outcome::NotFound]);
    // Two processes write the same new names.
    for round in 0..30u64 {
        let batch = |node: u32| -> Vec<Write> {
            let object = 10_000 + round * 100 + u64::from(node);
            let write = |at| put(&format!("both-{round}-{at}"), object, stamp(1000, node));
            let mut writes: Vec<Write> = (0..12).map(write).collect();
            if node == 2 {
                writes.reverse();
            }
            writes
        };
        let (first, second) = (batch(1), batch(2));
        let (a, b) = tokio::join!(one.apply(&first), two.apply(&second));
        let (a, b) = (a.unwrap(), b.unwrap());
        for at in 0..12 {
            let there = two.lookup("ann", &format!("both-{round}-{at}")).await.unwrap().unwrap();
            assert_eq!(there.stamp, stamp(1000, 2), "the higher version stands");
            let taken = [&a[at], &b[11 - at]]
                .iter()
                .filter(|outcome| matches!(outcome, Outcome::Done { previous: None, .. }))
                .count();
            assert_eq!(taken, 1, "one of them found the name free: {a:?} {b:?}");
        }
    }
}

async fn writers_of_the_same_names_at_once_agree(one: &Catalog, two: &Catalog) {
    let mut winners = Vec::new();
    for round in 0..40u64 {
        let batch = |node: u32| -> Vec<Write> {
            let mut names: Vec<u64> = (0..12).collect();
            if node == 2 {
                names.reverse();
            }
            let object = round * 100 + u64::from(node);
            names
                .into_iter()
                .map(|name| put(&format!("race-{name}"), object, stamp(100 + round, node)))
                .collect()
        };
        let first: Vec<Write> = batch(1);
        let second: Vec<Write> = batch(2);
        let (a, b) = tokio::join!(one.apply(first.as_slice()), two.apply(second.as_slice()));
        a.unwrap();
        b.unwrap();
        winners.push(one.lookup("ann", "race-3").await.unwrap().unwrap().object);
    }
    let expected: Vec<u64> = (0..40).map(|round| round * 100 + 2).collect();
    assert_eq!(winners, expected, "whoever comes last, the higher version stands");
}

/// The server ends its sessions, as when it is started anew, and answers again at once.
async fn nobody_learns_of_a_restart_between_two_calls(catalog: &Catalog, url: &str) {
    let mut operator = sqlx::PgConnection::connect(url).await.unwrap();
    let names = |from: u64| -> Vec<(String, String)> {
        (from..from + 3).map(|at| ("ann".to_owned(), format!("again-{at}"))).collect()
    };
    // Puts of new names, puts over rows, a look-up of one name, and of several.
    for round in 0..12u64 {
        let first = 10 * (round / 2);
        let writes = |hlc: u64| -> Vec<Write> {
            names(first).iter().map(|(_, name)| put(name, hlc, stamp(hlc, 1))).collect()
        };
        let end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'reel'";
        let ended = sqlx::query(end).execute(&mut operator).await.unwrap().rows_affected();
        assert!(ended > 0, "round {round}");
        let hlc = 10 + round;
        match round % 4 {
            0 | 1 => assert_eq!(catalog.apply(&writes(hlc)).await.unwrap().len(), 3),
            2 => {
                catalog.apply(&writes(hlc)).await.unwrap();
                assert!(catalog.lookup("ann", &names(first)[0].1).await.unwrap().is_some());
            }
            _ => {
                let rows = catalog.rows_of(&names(first)).await.unwrap();
                assert!(rows.iter().all(Option::is_some));
                assert!(catalog.lookup("ann", &names(first)[0].1).await.unwrap().is_some());
            }
        }
    }
    operator.close().await.unwrap();
}

#[tokio::test]
async fn the_suite_on_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", dir.path().join("sub").join("catalog.db").display());
    let (one, two) = tokio::join!(Catalog::open(&url), Catalog::open(&url));
    suite(one.unwrap(), two.unwrap()).await;
}

#[tokio::test]
async fn the_suite_on_postgresql() {
    let Some(server) = postgres::Postgres::start("the_suite_on_postgresql") else { return };
    let url = server.url();
    let (one, two) = tokio::join!(Catalog::open(&url), Catalog::open(&url));
    let (one, two) = (one.unwrap(), two.unwrap());
    nobody_learns_of_a_restart_between_two_calls(&one, &url).await;
    let mut taken = Vec::new();
    for _ in 0..50 {
        let (a, b) = tokio::join!(one.take_numbers(10), two.take_numbers(7));
        taken.extend((0..10).map(|at| a.as_ref().unwrap() + at));
        taken.extend((0..7).map(|at| b.as_ref().unwrap() + at));
    }
    let count = taken.len();
    taken.sort_unstable();
    taken.dedup();
    assert_eq!(taken.len(), count, "no segment number twice");
    suite(one.clone(), two).await;
    server.crash();
    assert!(one.lookup("ann", "list/a").await.is_err());
    server.begin();
    let back = one.lookup("ann", "list/a").await;
    let back = if back.is_err() { one.lookup("ann", "list/a").await } else { back };
    assert!(back.unwrap().is_some(), "it recovers by itself");
}
