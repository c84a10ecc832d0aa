//! What every store has to do, as tests that any implementation runs.
//!
//! They take real time where leases end. Each works below a place of its own, so that all can run
//! against one store, one after the other or together.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt as _;
use rspp_controlplane::store::{
    Batch, Change, Changes, Compare, Entry, Key, LeaseId, MAX_PAGE, MAX_PAGE_BYTES, MAX_TXN_BYTES,
    MAX_TXN_OPS, MAX_VALUE_BYTES, MIN_LEASE, Mirror, News, Op, Prefix, Query, Revision, Store,
    StoreError, Txn, WatchError,
};
use tokio::time::{Instant, sleep, timeout};

/// A store under test.
pub type Subject = Arc<dyn Store>;

macro_rules! checks {
    ($($name:ident),+ $(,)?) => {
        /// Runs everything, one after the other, and says what passed.
        ///
        /// # Panics
        /// If the store does not do what it has to.
        pub async fn all(store: &Subject) {
            $(
                let begun = Instant::now();
                $name(store).await;
                println!("ok  {} {} ({:?})", store.name(), stringify!($name), begun.elapsed());
            )+
        }
    };
}

checks! {
    a_record_is_read_as_it_was_written,
    a_transaction_writes_all_or_nothing,
    whoever_read_something_old_does_not_write,
    a_listing_shows_what_begins_so_and_nothing_else,
    a_listing_shows_one_moment_over_all_its_pages,
    a_page_is_not_larger_than_one_can_hold,
    all_that_begins_so_is_deleted_at_once,
    what_no_store_takes_is_refused,
    the_largest_value_comes_back,
    a_watcher_sees_every_change_once_and_in_order,
    a_watcher_begins_where_it_stopped,
    what_is_forgotten_is_said_to_be,
    a_mirror_goes_on_after_what_was_forgotten,
    a_lease_takes_its_records_with_it,
    a_lease_that_is_kept_alive_lasts,
    a_revoked_lease_ends_at_once,
    a_record_can_change_its_lease,
    many_writers_lose_nothing,
    a_slow_watcher_holds_nobody_up,
}

const SOON: Duration = Duration::from_secs(10);

fn at(place: &str, names: &[&str]) -> Key {
    Key::of(
        ["conformance", place]
            .into_iter()
            .chain(names.iter().copied()),
    )
}

fn below(place: &str) -> Prefix {
    at(place, &[]).below()
}

async fn put(store: &Subject, key: &Key, value: &str) -> Revision {
    let txn = Txn::default().put(key.clone(), value.to_owned());
    store.commit(txn).await.expect("nothing is in the way")
}

async fn get(store: &Subject, key: &Key) -> Option<Entry> {
    store.get(key).await.expect("the store answers")
}

async fn text(store: &Subject, key: &Key) -> Option<String> {
    let entry = get(store, key).await?;
    Some(String::from_utf8(entry.value.to_vec()).expect("we wrote text"))
}

/// What a store says at once, without a record of ours.
async fn now(store: &Subject) -> Revision {
    let nothing = Query::first(below("nothing"));
    store
        .list(nothing)
        .await
        .expect("the store answers")
        .revision
}

async fn lease(store: &Subject, ttl: Duration) -> LeaseId {
    let granted = store.grant(ttl).await.expect("a lease is granted");
    assert!(
        granted.ttl >= ttl,
        "a lease is never shorter than asked for"
    );
    granted.id
}

async fn next(changes: &mut Changes) -> Batch {
    let batch = timeout(SOON, changes.next())
        .await
        .expect("a change comes soon");
    batch.expect("the watch goes on").expect("without an error")
}

/// Waits until a record is gone, and says how long that took.
async fn gone(store: &Subject, key: &Key, most: Duration) -> Duration {
    let begun = Instant::now();
    while get(store, key).await.is_some() {
        assert!(
            begun.elapsed() < most,
            "{key} is still there after {most:?}"
        );
        sleep(Duration::from_millis(50)).await;
    }
    begun.elapsed()
}

async fn a_record_is_read_as_it_was_written(store: &Subject) {
    let key = at("read", &["é / \u{1F600}"]);
    assert_eq!(get(store, &key).await, None);
    let first = put(store, &key, "1").await;
    let entry = get(store, &key).await.expect("it was written");
    assert_eq!(
        (entry.created, entry.modified, entry.lease),
        (first, first, None)
    );
    let second = put(store, &key, "2").await;
    assert!(second > first, "revisions rise");
    let entry = get(store, &key).await.expect("it was written");
    assert_eq!((entry.created, entry.modified), (first, second));
    assert_eq!((entry.key, entry.value), (key.clone(), Bytes::from("2")));
    store
        .commit(Txn::default().delete(key.clone()))
        .await
        .expect("it is deleted");
    assert_eq!(get(store, &key).await, None);
    // Deleting nothing is fine; and what comes back is new.
    store
        .commit(Txn::default().delete(key.clone()))
        .await
        .expect("nothing happens");
    let third = put(store, &key, "").await;
    let entry = get(store, &key).await.expect("it was written");
    assert_eq!((entry.created, entry.value.len()), (third, 0));
}

async fn a_transaction_writes_all_or_nothing(store: &Subject) {
    let [a, b, c] = ["a", "b", "c"].map(|name| at("all", &[name]));
    let revision = put(store, &a, "1").await;
    let write = || {
        Txn::default()
            .put(b.clone(), "2")
            .put(c.clone(), "3")
            .delete(a.clone())
    };
    for wrong in [
        Compare::Absent(a.clone()),
        Compare::Exists(b.clone()),
        Compare::At(a.clone(), Revision(revision.0 + 1)),
        Compare::At(b.clone(), revision),
    ] {
        let right = Compare::At(a.clone(), revision);
        let refused = store.commit(write().when(right).when(wrong)).await;
        assert_eq!(refused, Err(StoreError::Conflict));
        assert_eq!(text(store, &a).await.as_deref(), Some("1"));
        assert_eq!(get(store, &b).await, None);
    }
    let right = write()
        .when(Compare::At(a.clone(), revision))
        .when(Compare::Absent(b.clone()))
        .when(Compare::Exists(a.clone()));
    let written = store.commit(right).await.expect("all holds");
    assert_eq!(get(store, &a).await, None);
    for key in [&b, &c] {
        let entry = get(store, key).await.expect("it was written");
        assert_eq!(entry.modified, written, "one transaction, one revision");
    }
    // Conditions alone write nothing.
    let before = now(store).await;
    let asked = Txn::default().when(Compare::Exists(b));
    assert!(store.commit(asked).await.expect("it holds") >= before);
}

async fn whoever_read_something_old_does_not_write(store: &Subject) {
    let key = at("old", &["x"]);
    let change = |read: Option<&Entry>, value: &'static str| {
        Txn::default()
            .when(Compare::unchanged(&key, read))
            .put(key.clone(), value)
    };
    store
        .commit(change(None, "1"))
        .await
        .expect("it is not there");
    let refused = store.commit(change(None, "2")).await;
    assert_eq!(refused, Err(StoreError::Conflict));
    let read = get(store, &key).await;
    store
        .commit(change(read.as_ref(), "2"))
        .await
        .expect("it is as it was read");
    let refused = store.commit(change(read.as_ref(), "3")).await;
    assert_eq!(refused, Err(StoreError::Conflict));
    // The same text again is another change.
    let read = get(store, &key).await;
    put(store, &key, "2").await;
    let refused = store.commit(change(read.as_ref(), "3")).await;
    assert_eq!(refused, Err(StoreError::Conflict));
}

async fn a_listing_shows_what_begins_so_and_nothing_else(store: &Subject) {
    for names in [["a", "2"], ["a", "1"], ["a", "10"], ["ab", "1"], ["b", "1"]] {
        put(store, &at("list", &names), "x").await;
    }
    put(store, &at("list", &["a"]), "x").await;
    let found = store
        .list(Query::first(at("list", &["a"]).below()))
        .await
        .expect("it answers");
    let names: Vec<_> = found.entries.iter().map(|entry| entry.key.last()).collect();
    assert_eq!(names, ["1", "10", "2"], "by key");
    assert!(!found.more);
}

async fn a_listing_shows_one_moment_over_all_its_pages(store: &Subject) {
    for number in 0..25 {
        put(store, &at("pages", &[&format!("{number:02}")]), "old").await;
    }
    let mut query = Query {
        limit: 10,
        ..Query::first(below("pages"))
    };
    let mut found = Vec::new();
    loop {
        let page = store.list(query.clone()).await.expect("it answers");
        assert!(page.entries.len() <= 10);
        if query.at.is_none() {
            // What happens now is not in what was begun before.
            put(store, &at("pages", &["12"]), "new").await;
            put(store, &at("pages", &["99"]), "new").await;
            store
                .commit(Txn::default().delete(at("pages", &["20"])))
                .await
                .expect("deleted");
        }
        query.at = Some(page.revision);
        query.after = page.entries.last().map(|entry| entry.key.clone());
        found.extend(page.entries);
        if !page.more {
            break;
        }
    }
    assert_eq!(found.len(), 25);
    assert!(found.iter().all(|entry| entry.value == "old"));
    let fresh = store
        .list(Query::first(below("pages")))
        .await
        .expect("it answers");
    assert_eq!(fresh.entries.len(), 25);
    let future = Query {
        at: Some(Revision(fresh.revision.0 + 1_000_000)),
        ..Query::first(below("pages"))
    };
    let refused = store.list(future).await;
    assert!(
        matches!(refused, Err(StoreError::Future { .. })),
        "{refused:?}"
    );
    let giant = Query {
        limit: MAX_PAGE * 10,
        ..Query::first(below("pages"))
    };
    assert!(
        store.list(giant).await.is_ok(),
        "a page is cut to what is allowed"
    );
}

async fn a_page_is_not_larger_than_one_can_hold(store: &Subject) {
    let count = MAX_PAGE_BYTES / MAX_VALUE_BYTES + 8;
    for number in 0..count {
        let key = at("heavy", &[&format!("{number:03}")]);
        let value = vec![b'x'; MAX_VALUE_BYTES];
        let txn = Txn::default().put(key, value);
        store.commit(txn).await.expect("written");
    }
    let mut query = Query::first(below("heavy"));
    let mut found = Vec::new();
    let mut pages = 0;
    loop {
        let page = store.list(query.clone()).await.expect("it answers");
        let bytes: usize = page.entries.iter().map(|entry| entry.value.len()).sum();
        assert!(bytes <= MAX_PAGE_BYTES + 1024 * 1024, "{bytes}");
        assert!(!page.entries.is_empty());
        pages += 1;
        query.at = Some(page.revision);
        query.after = page.entries.last().map(|entry| entry.key.clone());
        found.extend(page.entries.into_iter().map(|entry| entry.key.last()));
        if !page.more {
            break;
        }
        // What is read as it was then is bounded as well.
        put(store, &at("heavy", &["001"]), "later").await;
    }
    assert!(pages > 1);
    let expected: Vec<_> = (0..count).map(|number| format!("{number:03}")).collect();
    assert_eq!(found, expected);
    let mut txn = Txn::default();
    txn.then.push(Op::DeleteAll(below("heavy")));
    store.commit(txn).await.expect("deleted");
}

async fn all_that_begins_so_is_deleted_at_once(store: &Subject) {
    for name in ["1", "2", "3"] {
        put(store, &at("sweep", &["a", name]), "x").await;
    }
    put(store, &at("sweep", &["ab"]), "x").await;
    let before = now(store).await;
    let mut changes = store.watch(below("sweep"), before);
    let mut txn = Txn::default();
    txn.then.push(Op::DeleteAll(at("sweep", &["a"]).below()));
    let revision = store.commit(txn).await.expect("deleted");
    let left = store
        .list(Query::first(below("sweep")))
        .await
        .expect("it answers");
    assert_eq!(left.entries.len(), 1);
    let batch = next(&mut changes).await;
    assert_eq!((batch.revision, batch.changes.len()), (revision, 3));
}

async fn what_no_store_takes_is_refused(store: &Subject) {
    let key = at("limits", &["x"]);
    let before = now(store).await;
    let large = Txn::default().put(key.clone(), vec![0; MAX_VALUE_BYTES + 1]);
    let twice = Txn::default().put(key.clone(), "1").put(key.clone(), "2");
    let many = (0..=MAX_TXN_OPS).fold(Txn::default(), |txn, n| {
        txn.put(at("limits", &[&n.to_string()]), "x")
    });
    for wrong in [large, twice, many] {
        assert!(store.commit(wrong).await.is_err());
    }
    assert_eq!(get(store, &key).await, None);
    assert_eq!(now(store).await, before, "nothing was written");
}

async fn the_largest_value_comes_back(store: &Subject) {
    let key = |n: u8| at("large", &[&n.to_string()]);
    let value = |n: u8| vec![n; MAX_VALUE_BYTES - 512];
    assert!(2 * value(0).len() + 200 < MAX_TXN_BYTES);
    let txn = Txn::default().put(key(1), value(1)).put(key(2), value(2));
    store.commit(txn).await.expect("it fits");
    for n in [1, 2] {
        let entry = get(store, &key(n)).await.expect("it was written");
        assert!(entry.value == value(n));
    }
    let found = store
        .list(Query::first(below("large")))
        .await
        .expect("it answers");
    assert_eq!(found.entries.len(), 2);
    let full = (0..MAX_TXN_OPS).fold(Txn::default(), |txn, n| {
        let key = at("large-many", &[&n.to_string()]);
        txn.when(Compare::Absent(key.clone())).put(key, "x")
    });
    store.commit(full).await.expect("as many as are allowed");
}

async fn a_watcher_sees_every_change_once_and_in_order(store: &Subject) {
    let key = |name: &str| at("watch", &[name]);
    let before = now(store).await;
    // Some before it looks, some after, some of others.
    put(store, &key("a"), "1").await;
    put(store, &at("watch-not", &["a"]), "x").await;
    let mut changes = store.watch(below("watch"), before);
    put(store, &key("a"), "2").await;
    let txn = Txn::default()
        .put(key("b"), "3")
        .delete(key("a"))
        .put(at("watch-not", &["b"]), "x");
    let third = store.commit(txn).await.expect("written");
    put(store, &key("b"), "4").await;
    let mut told = Vec::new();
    let mut last = before;
    for _ in 0..4 {
        let batch = next(&mut changes).await;
        assert!(batch.revision > last, "each revision comes once, in order");
        last = batch.revision;
        let mut changed: Vec<_> = batch
            .changes
            .into_iter()
            .map(|change| match change {
                Change::Put(entry) => {
                    assert_eq!(entry.modified, batch.revision);
                    let value = String::from_utf8_lossy(&entry.value).into_owned();
                    (entry.key.last(), value)
                }
                Change::Deleted(key) => (key.last(), "-".to_owned()),
            })
            .collect();
        changed.sort();
        told.push((batch.revision == third, changed));
    }
    let is = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(
        told,
        [
            (false, vec![is("a", "1")]),
            (false, vec![is("a", "2")]),
            (true, vec![is("a", "-"), is("b", "3")]),
            (false, vec![is("b", "4")]),
        ]
    );
}

async fn a_watcher_begins_where_it_stopped(store: &Subject) {
    let key = at("resume", &["n"]);
    let before = now(store).await;
    let mut changes = store.watch(below("resume"), before);
    let mut seen = Vec::new();
    for round in 0..5 {
        for number in 0..10 {
            put(store, &key, &format!("{}", round * 10 + number)).await;
        }
        let mut last = before;
        for _ in 0..7 {
            let batch = next(&mut changes).await;
            last = batch.revision;
            seen.push(batch);
        }
        drop(changes);
        changes = store.watch(below("resume"), last);
    }
    for _ in 0..15 {
        seen.push(next(&mut changes).await);
    }
    let values: Vec<_> = seen
        .iter()
        .flat_map(|batch| &batch.changes)
        .map(|change| match change {
            Change::Put(entry) => String::from_utf8_lossy(&entry.value).into_owned(),
            Change::Deleted(_) => "-".to_owned(),
        })
        .collect();
    let expected: Vec<_> = (0..50).map(|number| number.to_string()).collect();
    assert_eq!(values, expected);
}

async fn what_is_forgotten_is_said_to_be(store: &Subject) {
    let key = at("compact", &["x"]);
    let first = put(store, &key, "1").await;
    for value in ["2", "3", "4"] {
        put(store, &key, value).await;
    }
    let last = put(store, &key, "5").await;
    store.compact(last).await.expect("it forgets");
    store
        .compact(first)
        .await
        .expect("it has forgotten that already");
    let mut changes = store.watch(below("compact"), first);
    let ended = timeout(SOON, changes.next())
        .await
        .expect("soon")
        .expect("it is told");
    let Err(WatchError::Compacted { oldest }) = ended else {
        panic!("{ended:?}");
    };
    assert!(oldest > first);
    let then = Query {
        at: Some(first),
        ..Query::first(below("compact"))
    };
    let refused = store.list(then).await;
    assert!(
        matches!(refused, Err(StoreError::Compacted { .. })),
        "{refused:?}"
    );
    // What stands is there, as of then too, and from then on can be followed.
    assert_eq!(text(store, &key).await.as_deref(), Some("5"));
    let then = Query {
        at: Some(last),
        ..Query::first(below("compact"))
    };
    assert_eq!(store.list(then).await.expect("it is kept").entries.len(), 1);
    let mut changes = store.watch(below("compact"), last);
    put(store, &key, "6").await;
    assert_eq!(next(&mut changes).await.changes.len(), 1);
    let future = Revision(now(store).await.0 + 1_000_000);
    let refused = store.compact(future).await;
    assert!(
        matches!(refused, Err(StoreError::Future { .. })),
        "{refused:?}"
    );
}

async fn a_mirror_goes_on_after_what_was_forgotten(store: &Subject) {
    let key = |name: &str| at("mirror", &[name]);
    for name in ["stays", "goes", "changes"] {
        put(store, &key(name), "1").await;
    }
    let opened = Mirror::open(Arc::clone(store), below("mirror")).await;
    let mut mirror = opened.expect("it lists");
    assert_eq!(mirror.records().len(), 3);
    // It does not look while all this happens and is forgotten.
    put(store, &key("changes"), "2").await;
    put(store, &key("comes"), "1").await;
    let last = store
        .commit(Txn::default().delete(key("goes")))
        .await
        .expect("deleted");
    store.compact(last).await.expect("it forgets");
    let news = timeout(SOON, mirror.next()).await.expect("it catches up");
    let News::CaughtUp(batch) = news else {
        panic!("{news:?}");
    };
    let changed: BTreeSet<_> = batch
        .changes
        .iter()
        .map(|change| change.key().last())
        .collect();
    assert_eq!(
        changed,
        ["changes", "comes", "goes"].map(str::to_owned).into()
    );
    put(store, &key("later"), "1").await;
    let news = timeout(SOON, mirror.next()).await.expect("it follows");
    assert!(matches!(news, News::Changed(_)), "{news:?}");
    let names: Vec<_> = mirror.records().keys().map(Key::last).collect();
    assert_eq!(names, ["changes", "comes", "later", "stays"]);
}

async fn a_lease_takes_its_records_with_it(store: &Subject) {
    let [a, b, free] = ["a", "b", "free"].map(|name| at("lease", &[name]));
    let id = lease(store, MIN_LEASE).await;
    let begun = Instant::now();
    let txn = Txn::default()
        .put_leased(a.clone(), "1", id)
        .put_leased(b.clone(), "2", id)
        .put(free.clone(), "3");
    let written = store.commit(txn).await.expect("the lease is there");
    assert_eq!(get(store, &a).await.and_then(|entry| entry.lease), Some(id));
    let mut changes = store.watch(below("lease"), written);
    gone(store, &a, MIN_LEASE + SOON).await;
    assert!(
        begun.elapsed() >= MIN_LEASE,
        "not before its time: {:?}",
        begun.elapsed()
    );
    gone(store, &b, SOON).await;
    assert_eq!(text(store, &free).await.as_deref(), Some("3"));
    let mut deleted = BTreeSet::new();
    while deleted.len() < 2 {
        for change in next(&mut changes).await.changes {
            assert!(matches!(change, Change::Deleted(_)), "{change:?}");
            deleted.insert(change.key().last());
        }
    }
    assert_eq!(
        store.keep_alive(id).await,
        Err(StoreError::LeaseGone { lease: id })
    );
    let late = store
        .commit(Txn::default().put_leased(a.clone(), "1", id))
        .await;
    assert_eq!(late, Err(StoreError::LeaseGone { lease: id }));
    assert_eq!(get(store, &a).await, None);
}

async fn a_lease_that_is_kept_alive_lasts(store: &Subject) {
    let key = at("alive", &["x"]);
    let id = lease(store, MIN_LEASE).await;
    let txn = Txn::default().put_leased(key.clone(), "1", id);
    store.commit(txn).await.expect("the lease is there");
    let begun = Instant::now();
    while begun.elapsed() < MIN_LEASE * 2 {
        sleep(MIN_LEASE / 4).await;
        let ttl = store.keep_alive(id).await.expect("it is alive");
        assert!(ttl >= MIN_LEASE);
        assert!(
            get(store, &key).await.is_some(),
            "after {:?}",
            begun.elapsed()
        );
    }
    let kept = Instant::now();
    gone(store, &key, MIN_LEASE + SOON).await;
    // The last renewal was answered before this began to count.
    let least = MIN_LEASE * 3 / 4;
    assert!(kept.elapsed() >= least, "{:?}", kept.elapsed());
}

async fn a_revoked_lease_ends_at_once(store: &Subject) {
    let key = at("revoke", &["x"]);
    let id = lease(store, Duration::from_mins(10)).await;
    let txn = Txn::default().put_leased(key.clone(), "1", id);
    store.commit(txn).await.expect("the lease is there");
    store.revoke(id).await.expect("it is revoked");
    assert_eq!(get(store, &key).await, None);
    assert_eq!(
        store.revoke(id).await,
        Err(StoreError::LeaseGone { lease: id })
    );
    assert_eq!(
        store.keep_alive(id).await,
        Err(StoreError::LeaseGone { lease: id })
    );
}

async fn a_record_can_change_its_lease(store: &Subject) {
    let key = at("hang", &["x"]);
    let [first, second] = [
        lease(store, Duration::from_mins(10)).await,
        lease(store, Duration::from_mins(10)).await,
    ];
    let hang = |lease| Txn::default().put_leased(key.clone(), "1", lease);
    store.commit(hang(first)).await.expect("the lease is there");
    store
        .commit(hang(second))
        .await
        .expect("the lease is there");
    store.revoke(first).await.expect("it is revoked");
    assert!(
        get(store, &key).await.is_some(),
        "it hangs on the other one"
    );
    put(store, &key, "free").await;
    store.revoke(second).await.expect("it is revoked");
    assert_eq!(text(store, &key).await.as_deref(), Some("free"));
}

async fn many_writers_lose_nothing(store: &Subject) {
    let key = at("count", &["n"]);
    let add = |store: Subject, key: Key| async move {
        for _ in 0..10 {
            loop {
                let read = get(&store, &key).await;
                let before = read.as_ref().map_or(0, |entry| {
                    let text = String::from_utf8_lossy(&entry.value);
                    text.parse::<u32>().expect("a number")
                });
                let txn = Txn::default()
                    .when(Compare::unchanged(&key, read.as_ref()))
                    .put(key.clone(), (before + 1).to_string());
                match store.commit(txn).await {
                    Ok(_) => break,
                    Err(StoreError::Conflict) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
    };
    let tasks: Vec<_> = (0..16)
        .map(|_| tokio::spawn(add(Arc::clone(store), key.clone())))
        .collect();
    for task in tasks {
        task.await.expect("no writer panics");
    }
    assert_eq!(text(store, &key).await.as_deref(), Some("160"));
}

async fn a_slow_watcher_holds_nobody_up(store: &Subject) {
    let key = at("slow", &["x"]);
    let before = now(store).await;
    let mut slow = store.watch(below("slow"), before);
    put(store, &key, "first").await;
    next(&mut slow).await;
    for number in 0..1_500 {
        put(store, &key, &number.to_string()).await;
    }
    // It either gets everything or is told that it fell behind, and then finds it where it stopped.
    let mut told = 0;
    let mut last = before;
    loop {
        match timeout(SOON, slow.next())
            .await
            .expect("it goes on or ends")
        {
            Some(Ok(batch)) => {
                told += 1;
                last = batch.revision;
            }
            Some(Err(WatchError::Lagged)) | None => slow = store.watch(below("slow"), last),
            Some(Err(error)) => panic!("{error}"),
        }
        if told == 1_500 {
            break;
        }
    }
}
