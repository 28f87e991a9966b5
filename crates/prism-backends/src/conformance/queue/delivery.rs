use super::*;

pub(super) async fn run(subject: &Subject) {
    a_partition_keeps_its_order(subject).await;
    new_messages_arrive_by_themselves(subject).await;
    consumers_of_a_group_share(subject).await;
    groups_are_independent(subject).await;
    what_is_acknowledged_does_not_come_again(subject).await;
    a_lost_consumer_gives_back_at_once(subject).await;
    a_silent_consumer_loses_its_messages(subject).await;
    a_late_acknowledgement_counts_until_someone_else_has_it(subject).await;
    only_the_receiver_acknowledges(subject).await;
    an_acknowledgement_is_for_one_group(subject).await;
    what_is_in_flight_is_bounded(subject).await;
    stopping_lets_what_is_in_flight_land(subject).await;
    stopping_waits_no_longer_than_the_timeout(subject).await;
    large_messages_pass(subject).await;
}

async fn a_partition_keeps_its_order(subject: &Subject) {
    let queue = open(subject, "d-order").await;
    fill(&queue, 600).await;
    let mut consumer = subscribe(&queue, "g").await;
    assert!(consumer.numbers(600).await.into_iter().eq(0..600));
    assert_eq!(consumer.subscription.in_flight(), 600);
    assert!(consumer.is_silent().await);
}

async fn new_messages_arrive_by_themselves(subject: &Subject) {
    let queue = open(subject, "d-live").await;
    let mut consumer = subscribe(&queue, "g").await;
    for round in 0..20 {
        let waiting = tokio::spawn(async move { (consumer.next().await, consumer) });
        let place = queue.publish("t", message(round.to_string())).await.unwrap();
        let delivery;
        (delivery, consumer) = waiting.await.unwrap();
        assert_eq!((delivery.offset, delivery.message_id), (place.offset, place.message_id));
    }
}

async fn consumers_of_a_group_share(subject: &Subject) {
    let queue = open_partitioned(subject, "d-share", "2").await;
    let mut consumers = vec![subscribe(&queue, "g").await, subscribe(&queue, "g").await, subscribe(&queue, "g").await];
    fill(&queue, 90).await;
    let mut all = Vec::new();
    for consumer in &mut consumers {
        let mut mine = Vec::new();
        while let Ok(Some(delivery)) = consumer.next_within(SILENCE).await {
            mine.push(delivery);
        }
        assert!(mine.len() >= 15, "everyone gets a share, one got {}", mine.len());
        assert!(mine.iter().all(|delivery| delivery.attempt == 1));
        for partition in 0..2 {
            let mut offsets =
                mine.iter().filter(|delivery| delivery.partition == partition).map(|delivery| delivery.offset);
            assert!(offsets.by_ref().is_sorted(), "each sees its partitions in order");
        }
        all.extend(mine.iter().map(number));
    }
    all.sort_unstable();
    assert!(all.into_iter().eq(0..90), "each message goes to one consumer");
}

async fn groups_are_independent(subject: &Subject) {
    let queue = open(subject, "d-groups").await;
    fill(&queue, 3).await;
    let (mut one, mut two) = (subscribe(&queue, "one").await, subscribe(&queue, "two").await);
    let mine = one.take(3).await;
    assert!(one.acknowledge(&queue, &mine).await.is_empty());
    assert_eq!(two.numbers(3).await, [0, 1, 2]);
    drop((one, two));
    assert!(subscribe(&queue, "one").await.is_silent().await);
    assert_eq!(subscribe(&queue, "two").await.numbers(3).await, [0, 1, 2]);
}

async fn what_is_acknowledged_does_not_come_again(subject: &Subject) {
    let queue = open(subject, "d-acked").await;
    fill(&queue, 10).await;
    let mut consumer = subscribe(&queue, "g").await;
    let all = consumer.take(10).await;
    let kept: Vec<_> = all.iter().filter(|delivery| [1, 4, 9].contains(&delivery.offset)).cloned().collect();
    let acknowledged: Vec<_> = all.iter().filter(|delivery| ![1, 4, 9].contains(&delivery.offset)).cloned().collect();
    assert!(consumer.acknowledge(&queue, &acknowledged).await.is_empty());
    assert_eq!(consumer.subscription.in_flight(), 3);
    assert_eq!(
        consumer.acknowledge(&queue, &acknowledged[..2]).await,
        ids(&acknowledged[..2]),
        "it holds them no more"
    );
    drop(consumer);
    let mut next = subscribe(&queue, "g").await;
    let again = next.take(3).await;
    assert_eq!((ids(&again), attempts(&again)), (ids(&kept), vec![2; 3]));
    assert!(next.is_silent().await);
    let twice = [again.clone(), again].concat();
    assert!(next.acknowledge(&queue, &twice).await.is_empty(), "an id named twice is settled once");
    drop(next);
    assert!(subscribe(&queue, "g").await.is_silent().await);
}

async fn a_lost_consumer_gives_back_at_once(subject: &Subject) {
    let queue = open(subject, "d-lost").await;
    fill(&queue, 5).await;
    let mut lost = consume(&queue, SessionId::generate(), "g", StartPosition::Committed, 3).await;
    assert_eq!(lost.numbers(3).await, [0, 1, 2]);
    let mut heir = subscribe(&queue, "g").await;
    assert_eq!(heir.numbers(2).await, [3, 4]);
    drop(lost);
    let again = heir.take(3).await;
    assert_eq!(again.iter().map(number).collect::<Vec<_>>(), [0, 1, 2], "lowest offset first");
    assert_eq!(attempts(&again), [2, 2, 2]);
}

async fn a_silent_consumer_loses_its_messages(subject: &Subject) {
    let queue = open_impatient(subject, "d-silent").await;
    fill(&queue, 2).await;
    let mut silent = consume(&queue, SessionId::generate(), "g", StartPosition::Committed, 2).await;
    let first = silent.take(2).await;
    let started = tokio::time::Instant::now();
    let mut other = subscribe(&queue, "g").await;
    let mut again = Vec::new();
    while again.len() < 2 {
        // Either may get them; the silent one stays silent.
        tokio::select! { one = other.next() => again.push(one), one = silent.next() => again.push(one) }
    }
    assert!(started.elapsed() >= SHORT_ACK_TIMEOUT / 2, "not before the time is up");
    // Each may have got one, and nothing says whose is seen first.
    again.sort_by_key(|delivery| delivery.offset);
    assert_eq!((ids(&again), attempts(&again)), (ids(&first), vec![2, 2]));
}

async fn a_late_acknowledgement_counts_until_someone_else_has_it(subject: &Subject) {
    let queue = open_impatient(subject, "d-late").await;
    fill(&queue, 2).await;
    let mut late = consume(&queue, SessionId::generate(), "g", StartPosition::Committed, 2).await;
    let mine = late.take(2).await;
    let session = late.session;
    drop(late);
    tokio::time::sleep(SHORT_ACK_TIMEOUT * 2).await;
    assert!(queue.acknowledge(session, ids(&mine[1..])).await.unwrap().is_empty(), "nobody else has it");
    let mut other = subscribe(&queue, "g").await;
    let again = other.take(1).await;
    assert_eq!((again[0].offset, again[0].attempt), (0, 2));
    assert_eq!(queue.acknowledge(session, ids(&mine)).await.unwrap(), ids(&mine), "one is settled, one is another's");
    assert!(other.acknowledge(&queue, &again).await.is_empty());
    assert!(other.is_silent().await);
}

async fn only_the_receiver_acknowledges(subject: &Subject) {
    let queue = open(subject, "d-receiver").await;
    fill(&queue, 2).await;
    let mut consumer = subscribe(&queue, "g").await;
    let mine = consumer.take(1).await;
    assert_eq!(queue.acknowledge(SessionId::generate(), ids(&mine)).await.unwrap(), ids(&mine));
    for garbage in ["", "x", "0", "9223372036854775807-0-0", "1-0-999", "1-7-0", "-1--1--1", "1-2147483648-0"] {
        let mixed = vec![garbage.to_owned()];
        assert_eq!(queue.acknowledge(consumer.session, mixed.clone()).await.unwrap(), mixed, "{garbage:?}");
    }
    let mixed = vec!["garbage".to_owned(), mine[0].message_id.clone()];
    assert_eq!(queue.acknowledge(consumer.session, mixed).await.unwrap(), ["garbage"]);
    assert!(queue.acknowledge(consumer.session, Vec::new()).await.unwrap().is_empty());

    // The session, not the subscription: another stream of it may have received the message.
    let mut second = consume(&queue, consumer.session, "other-group", StartPosition::Committed, 10).await;
    let both = second.take(2).await;
    assert!(consumer.acknowledge(&queue, &both).await.is_empty());
}

async fn an_acknowledgement_is_for_one_group(subject: &Subject) {
    let queue = open(subject, "d-one-group").await;
    let published = fill(&queue, 3).await;
    let session = SessionId::generate();
    let mut one = consume(&queue, session, "one", StartPosition::Committed, 10).await;
    let in_one = one.take(3).await;
    assert!(in_one.iter().zip(&published).all(|(delivery, place)| delivery.message_id == place.message_id));
    let mut two = consume(&queue, session, "two", StartPosition::Committed, 10).await;
    let in_two = two.take(3).await;
    assert!(ids(&in_one).iter().all(|id| !ids(&in_two).contains(id)), "each delivery has an id of its own");
    assert!(one.acknowledge(&queue, &in_one[..2]).await.is_empty());
    assert!(two.acknowledge(&queue, &in_two[1..2]).await.is_empty());
    assert_eq!((one.subscription.in_flight(), two.subscription.in_flight()), (1, 2));
    // Without its first group too: what is out of it is still known by its id.
    drop(one);
    let mut late = consume(&queue, session, "three", StartPosition::Committed, 10).await;
    let in_three = late.take(3).await;
    assert!(late.acknowledge(&queue, &in_one[2..]).await.is_empty(), "late, and of the first group");
    assert_eq!((two.subscription.in_flight(), late.subscription.in_flight()), (2, 3));
    assert_eq!(late.acknowledge(&queue, &in_one).await, ids(&in_one), "nothing is settled twice");
    let forged = format!("{}-0", in_two[0].message_id);
    assert_eq!(queue.acknowledge(session, vec![forged.clone()]).await.unwrap(), [forged]);
    assert!(late.acknowledge(&queue, &in_three).await.is_empty());
    drop((two, late));
    assert!(subscribe(&queue, "one").await.is_silent().await);
    assert_eq!(subscribe(&queue, "two").await.numbers(2).await, [0, 2]);
    assert!(subscribe(&queue, "three").await.is_silent().await);
}

async fn what_is_in_flight_is_bounded(subject: &Subject) {
    let queue = open(subject, "d-bounded").await;
    fill(&queue, 200).await;
    let mut consumer = consume(&queue, SessionId::generate(), "g", StartPosition::Committed, 2).await;
    let mut numbers = Vec::new();
    let mut held = consumer.take(2).await;
    assert!(consumer.is_silent().await);
    while numbers.len() < 198 {
        let one = held.remove(0);
        assert!(consumer.acknowledge(&queue, std::slice::from_ref(&one)).await.is_empty());
        numbers.push(number(&one));
        held.push(consumer.next().await);
        assert_eq!(consumer.subscription.in_flight(), 2);
    }
    assert!(numbers.into_iter().eq(0..198));
}

async fn stopping_lets_what_is_in_flight_land(subject: &Subject) {
    let queue = open(subject, "d-stop").await;
    fill(&queue, 10).await;
    let mut consumer = consume(&queue, SessionId::generate(), "g", StartPosition::Committed, 5).await;
    let mine = consumer.take(2).await;
    consumer.subscription.stop();
    assert!(consumer.is_silent().await, "nothing new, and not yet the end");
    assert_eq!(consumer.subscription.in_flight(), 2);
    let mut heir = subscribe(&queue, "g").await;
    let rest = heir.take(8).await;
    assert!(
        rest.iter().map(number).eq(2..10) && attempts(&rest) == [1; 8],
        "what it had not taken goes to others as new"
    );
    assert!(consumer.acknowledge(&queue, &mine).await.is_empty());
    assert!(consumer.next_within(ARRIVES_WITHIN).await.expect("the end is due").is_none());
    assert_eq!(consumer.subscription.in_flight(), 0);

    let mut idle = subscribe(&queue, "g").await;
    idle.subscription.stop();
    assert!(idle.next_within(ARRIVES_WITHIN).await.expect("nothing is in flight").is_none());
}

async fn stopping_waits_no_longer_than_the_timeout(subject: &Subject) {
    let queue = open_impatient(subject, "d-stop-late").await;
    fill(&queue, 1).await;
    let mut consumer = subscribe(&queue, "g").await;
    consumer.next().await;
    consumer.subscription.stop();
    assert!(consumer.next_within(SHORT_ACK_TIMEOUT + ARRIVES_WITHIN).await.expect("the time is up").is_none());
    assert_eq!(subscribe(&queue, "g").await.next().await.attempt, 2);
}

async fn large_messages_pass(subject: &Subject) {
    let queue = open(subject, "d-large").await;
    let large = Bytes::from(vec![7; 4 << 20]);
    let messages = (0..4).map(|_| Publication { payload: large.clone(), ..message("") });
    assert!(queue.publish_many("t", messages.collect()).await.unwrap().iter().all(Result::is_ok));
    let mut consumer = subscribe(&queue, "g").await;
    for delivery in consumer.take(4).await {
        assert!(delivery.payload == large);
    }
}
