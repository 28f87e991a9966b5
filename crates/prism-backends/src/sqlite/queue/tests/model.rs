use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::{Config as Settings, TestRunner};

use super::*;

/// What may happen to a topic of one partition and its group.
#[derive(Clone, Debug)]
enum Step {
    Publish(usize),
    /// Take what there is.
    Take,
    /// Acknowledge those held whose place in the list, modulo 8, has its bit set.
    Acknowledge(u8),
    /// To this fraction (of 16) of the log.
    Commit(i64),
    Seek(i64),
    Resubscribe,
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1_usize..12).prop_map(Step::Publish),
        4 => Just(Step::Take),
        4 => any::<u8>().prop_map(Step::Acknowledge),
        1 => (0_i64..=16).prop_map(Step::Commit),
        1 => (0_i64..=16).prop_map(Step::Seek),
        1 => Just(Step::Resubscribe),
        1 => Just(Step::Kill),
    ]
}

/// The laws, without any of the machinery: what is published, and what of it is settled.
#[derive(Default)]
struct Model {
    published: i64,
    settled: BTreeSet<i64>,
    held: Vec<Delivery>,
}

impl Model {
    fn unsettled(&self) -> Vec<i64> {
        (0..self.published).filter(|offset| !self.settled.contains(offset)).collect()
    }

    /// Not settled and not held: what must come, in this order.
    fn due(&self) -> Vec<i64> {
        let held: BTreeSet<i64> = self.held.iter().map(|delivery| delivery.offset).collect();
        self.unsettled().into_iter().filter(|offset| !held.contains(offset)).collect()
    }
}

struct Run {
    folder: tempfile::TempDir,
    opened: u32,
    fixture: Fixture,
    /// One at a time: two would share what is due, and each get it in an order of its own.
    consumer: Option<Consumer>,
    model: Model,
}

impl Run {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fixture = open(&folder.path().join("0.db"), &[]);
        let consumer = Some(subscribe(&fixture.queue).await);
        Self { folder, opened: 0, fixture, consumer, model: Model::default() }
    }

    fn consumer(&mut self) -> &mut Consumer {
        self.consumer.as_mut().expect("there is one between two steps")
    }

    /// Takes exactly what is due.
    async fn take(&mut self) {
        let due = self.model.due();
        let taken = self.consumer().take(due.len()).await;
        assert_eq!(offsets(&taken), due);
        self.model.held.extend(taken);
    }

    async fn step(&mut self, step: Step) {
        let queue = Arc::clone(&self.fixture.queue);
        match step {
            Step::Publish(count) => {
                fill(&queue, count).await;
                self.model.published += count as i64;
            }
            Step::Take => self.take().await,
            Step::Acknowledge(bits) => {
                let held = std::mem::take(&mut self.model.held).into_iter().enumerate();
                let (chosen, kept): (Vec<_>, Vec<_>) = held.partition(|(place, _)| bits >> (place % 8) & 1 == 1);
                self.model.held = kept.into_iter().map(|(_, delivery)| delivery).collect();
                let chosen: Vec<_> = chosen.into_iter().map(|(_, delivery)| delivery).collect();
                assert!(queue.acknowledge(self.consumer().session, ids(&chosen)).await.unwrap().is_empty());
                self.model.settled.extend(chosen.iter().map(|delivery| delivery.offset));
            }
            Step::Commit(fraction) => {
                let offset = self.model.published * fraction / 16;
                queue.commit("t", "g", 0, offset).await.unwrap();
                self.model.settled.extend(0..offset);
                self.model.held.retain(|delivery| delivery.offset >= offset);
            }
            Step::Seek(fraction) => {
                let offset = self.model.published * fraction / 16;
                queue.seek("t", "g", vec![(0, offset)]).await.unwrap();
                self.model.settled = (0..offset).collect();
                self.model.held.clear();
            }
            Step::Resubscribe => {
                self.consumer = None;
                self.consumer = Some(subscribe(&queue).await);
                self.model.held.clear();
            }
            Step::Kill => {
                let path = |number: u32| self.folder.path().join(format!("{number}.db"));
                let fixture = open_after_kill(&path(self.opened), &path(self.opened + 1), &[]);
                self.opened += 1;
                self.consumer = Some(subscribe(&fixture.queue).await);
                self.fixture = fixture;
                self.model.held.clear();
            }
        }
        assert_eq!(self.consumer().subscription.in_flight(), self.model.held.len());
    }
}

#[test]
fn whatever_happens_what_is_not_settled_comes_and_nothing_else() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let settings = Settings { cases: 24, failure_persistence: None, ..Settings::default() };
    let steps = proptest::collection::vec(step(), 1..40);
    let result = TestRunner::new(settings).run(&steps, |steps| {
        runtime.block_on(async {
            let mut run = Run::start().await;
            run.fixture.queue.publish("t", message("first")).await.unwrap();
            run.model.published = 1;
            for step in steps {
                run.step(step).await;
            }
            run.take().await;
            assert!(run.consumer().drain().await.is_empty());
        });
        Ok(())
    });
    result.unwrap();
}
