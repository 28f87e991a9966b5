use super::*;
use crate::driver::PartitionInfo;

const DAY: Duration = Duration::from_hours(24);
/// Seven days.
const WEEK: [(&str, &str); 1] = [("retention_ms", "604800000")];

fn info(earliest_offset: i64, latest_offset: i64) -> PartitionInfo {
    PartitionInfo { partition: 0, earliest_offset, latest_offset, message_count: latest_offset - earliest_offset }
}

async fn described(fixture: &Fixture) -> PartitionInfo {
    fixture.queue.topic("t").await.unwrap().partitions[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_past_its_retention_goes_and_its_storage_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = open(&folder.path().join("q.db"), &WEEK);
    fill(&fixture.queue, 2500).await;
    let headers = BTreeMap::from([("k".to_owned(), "vv".to_owned())]);
    fixture.clock.advance(DAY);
    fixture.queue.publish("t", Publication { headers, ..message("abc") }).await.unwrap();
    assert_eq!(fixture.meter.used(), 2500 * (10 + 64) + (3 + 3 + 64));
    fixture.clock.advance(DAY * 6);
    fixture.coordinator.tidy().await.unwrap();
    assert_eq!(described(&fixture).await, info(0, 2501), "seven days are not over");
    fixture.clock.advance(Duration::from_millis(1));
    fixture.coordinator.tidy().await.unwrap();
    assert_eq!(described(&fixture).await, info(2500, 2501));
    assert_eq!(fixture.meter.used(), 3 + 3 + 64);
    fixture.clock.advance(DAY * 30);
    fixture.coordinator.tidy().await.unwrap();
    assert_eq!((described(&fixture).await, fixture.meter.used()), (info(2501, 2501), 0));
    assert_eq!(fixture.queue.publish("t", message("x")).await.unwrap().offset, 2501, "offsets do not go back");
    assert_eq!(offsets(&subscribe(&fixture.queue).await.rest(1).await), [2501]);
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_skip_what_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.db");
    let fixture = open(&path, &WEEK);
    fill(&fixture.queue, 4).await;
    let mut holder = subscribe(&fixture.queue).await;
    let held = holder.take(4).await;
    assert!(fixture.queue.acknowledge(holder.session, ids(&held[3..])).await.unwrap().is_empty());
    fixture.clock.advance(DAY * 8);
    fill(&fixture.queue, 2).await;
    let new = holder.take(2).await;
    fixture.coordinator.tidy().await.unwrap();
    assert_eq!(described(&fixture).await, info(4, 6));
    assert!(
        fixture.queue.acknowledge(holder.session, ids(&held[..1])).await.unwrap().is_empty(),
        "it held it all the same"
    );
    drop(holder);
    let mut heir = subscribe(&fixture.queue).await;
    let again = heir.rest(2).await;
    assert_eq!(offsets(&again), [4, 5]);
    assert!(fixture.queue.acknowledge(heir.session, ids(&again[1..])).await.unwrap().is_empty());
    assert_eq!(ids(&new), ids(&again));
    fixture.queue.seek("t", "g", vec![(0, 1)]).await.unwrap();
    assert_eq!(offsets(&heir.rest(2).await), [4, 5], "a seek to what is gone goes to the earliest");
    fixture.queue.commit("t", "g", 0, 1).await.unwrap();
    drop((heir, fixture));
    let fixture = open(&path, &WEEK);
    assert_eq!(offsets(&subscribe(&fixture.queue).await.rest(2).await), [4, 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_retention_is_fixed_when_the_topic_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.db");
    let fixture = open(&path, &[]);
    fill(&fixture.queue, 1).await;
    fixture.clock.advance(DAY * 400);
    fixture.coordinator.tidy().await.unwrap();
    assert_eq!(described(&fixture).await, info(0, 1), "without the option everything is kept");
    drop(fixture);
    // Another config, which anyone may bring along, does not take away what this one promised.
    let fixture = open(&path, &[("retention_ms", "1000")]);
    fill(&fixture.queue, 1).await;
    fixture.clock.advance(DAY);
    fixture.coordinator.tidy().await.unwrap();
    assert_eq!(described(&fixture).await, info(0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_past_their_retention_go_by_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.db");
    let fixture = open(&path, &[("retention_ms", "1000")]);
    fill(&fixture.queue, 1).await;
    drop(fixture);
    let fixture = open(&path, &[]);
    fixture.clock.advance(Duration::from_millis(1001));
    fill(&fixture.queue, 1).await;
    let trimmed = async {
        while described(&fixture).await != info(1, 2) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), trimmed).await.expect("it is trimmed in the background");
}
