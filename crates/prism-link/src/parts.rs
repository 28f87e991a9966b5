//! Answers to commands that are more than a frame holds: cut by the node, put together by the controller.

use prism_core::{Error, Kind, Result};
use prism_proto::cluster::v1 as wire;
use prost::Message as _;
use wire::command_answer::Result as Answered;

use crate::bounds::{MAX_ANSWER_BYTES, PART_BYTES};
use crate::convert::{bad, failure_to_wire};

/// What a thing costs in a list or a map beside its own bytes, at most.
const OVERHEAD: usize = 16;

/// An answer in frames that a controller takes.
pub fn cut(answer: wire::CommandAnswer) -> Vec<wire::CommandAnswer> {
    let (id, bytes) = (answer.id, answer.encoded_len());
    if bytes <= PART_BYTES {
        return vec![answer];
    }
    let results = match answer.result {
        Some(_) if bytes > MAX_ANSWER_BYTES => vec![too_large(bytes)],
        Some(Answered::Figures(figures)) => cut_figures(figures),
        Some(Answered::Backends(reports)) => cut_backends(reports),
        _ => vec![too_large(bytes)],
    };
    let last = results.len().saturating_sub(1);
    let part = |(at, result)| wire::CommandAnswer { id, result: Some(result), more: at < last };
    results.into_iter().enumerate().map(part).collect()
}

fn too_large(bytes: usize) -> Answered {
    let message = format!("the answer has {bytes} bytes, more than the {MAX_ANSWER_BYTES} that a controller takes");
    Answered::Failure(failure_to_wire(&Error::new(Kind::ResourceExhausted, "ANSWER_TOO_LARGE", message)))
}

fn cut_figures(figures: wire::NodeFiguresEntry) -> Vec<Answered> {
    let mut parts = vec![wire::NodeFiguresEntry { total: figures.total, ..Default::default() }];
    let mut bytes = 0;
    let mut room_for = |parts: &mut Vec<wire::NodeFiguresEntry>, more: usize| {
        if bytes >= PART_BYTES {
            parts.push(wire::NodeFiguresEntry::default());
            bytes = 0;
        }
        bytes += more + OVERHEAD;
    };
    for (name, of) in figures.namespaces {
        room_for(&mut parts, name.len() + of.encoded_len());
        parts.last_mut().map(|part| part.namespaces.insert(name, of));
    }
    for backend in figures.backends {
        room_for(&mut parts, backend.encoded_len());
        if let Some(part) = parts.last_mut() {
            part.backends.push(backend);
        }
    }
    parts.into_iter().map(Answered::Figures).collect()
}

fn cut_backends(reports: wire::BackendReports) -> Vec<Answered> {
    let mut parts = vec![wire::BackendReports::default()];
    let mut bytes = 0;
    for report in reports.backends {
        if bytes >= PART_BYTES {
            parts.push(wire::BackendReports::default());
            bytes = 0;
        }
        bytes += report.encoded_len() + OVERHEAD;
        if let Some(part) = parts.last_mut() {
            part.backends.push(report);
        }
    }
    parts.into_iter().map(Answered::Backends).collect()
}

/// What came of an answer so far.
#[derive(Debug, Default)]
pub struct Gathered {
    so_far: Option<Answered>,
    bytes: usize,
}

impl Gathered {
    /// Adds a part of `bytes`.
    pub fn add(&mut self, part: Answered, bytes: usize) -> Result<()> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > MAX_ANSWER_BYTES {
            return Err(bad(format_args!("an answer has more than {MAX_ANSWER_BYTES} bytes")));
        }
        self.so_far = Some(match (self.so_far.take(), part) {
            (None, part) => part,
            (Some(Answered::Figures(mut all)), Answered::Figures(part)) => {
                all.namespaces.extend(part.namespaces);
                all.backends.extend(part.backends);
                Answered::Figures(all)
            }
            (Some(Answered::Backends(mut all)), Answered::Backends(part)) => {
                all.backends.extend(part.backends);
                Answered::Backends(all)
            }
            _ => return Err(bad("the parts of an answer do not fit together")),
        });
        Ok(())
    }

    /// The whole, when all parts are there.
    pub fn whole(self) -> Option<Answered> {
        self.so_far
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounds::{MAX_BACKENDS, MAX_GRANTS, MAX_ITEMS, MAX_NODE_FRAME_BYTES};
    use crate::shares::MAX_MILLIS;

    fn put_together(parts: Vec<wire::CommandAnswer>) -> Result<Answered> {
        let mut gathered = Gathered::default();
        for part in parts {
            let bytes = part.encoded_len();
            gathered.add(part.result.unwrap(), bytes)?;
        }
        Ok(gathered.whole().unwrap())
    }

    /// The longest that figures can be.
    fn figures() -> wire::RequestFiguresEntry {
        wire::RequestFiguresEntry {
            requests_total: i64::MAX,
            errors_total: i64::MAX,
            requests_per_second: 1.0,
            latency_p50_ms: 1.0,
            latency_p95_ms: 1.0,
            latency_p99_ms: 1.0,
            active_sessions: i64::MAX,
            active_streams: i64::MAX,
        }
    }

    fn long(number: usize) -> String {
        format!("{number:063}")
    }

    fn arrives_in_parts(result: &Answered) {
        let answer = wire::CommandAnswer { id: 7, result: Some(result.clone()), more: false };
        assert!(answer.encoded_len() > MAX_NODE_FRAME_BYTES, "it is not much: {}", answer.encoded_len());
        let parts = cut(answer);
        assert!(parts.len() > 1);
        for (at, part) in parts.iter().enumerate() {
            assert!(part.id == 7 && part.encoded_len() <= MAX_NODE_FRAME_BYTES, "{}", part.encoded_len());
            assert_eq!(part.more, at + 1 < parts.len());
        }
        assert_eq!(&put_together(parts).unwrap(), result);
    }

    #[test]
    fn the_figures_of_all_namespaces_arrive_in_parts() {
        let backend = |number| wire::BackendFiguresEntry {
            r#type: "postgres".to_owned(),
            instance: long(number),
            figures: Some(figures()),
        };
        arrives_in_parts(&Answered::Figures(wire::NodeFiguresEntry {
            total: Some(figures()),
            namespaces: (0..=MAX_ITEMS).map(|number| (long(number), figures())).collect(),
            backends: (0..MAX_BACKENDS).map(backend).collect(),
        }));
    }

    #[test]
    fn the_reports_of_all_backends_arrive_in_parts() {
        let report = |number| wire::BackendReportEntry {
            instance: long(number),
            message: "m".repeat(crate::bounds::MAX_REPORT_TEXT),
            endpoint: "e".repeat(crate::bounds::MAX_REPORT_TEXT),
            ..Default::default()
        };
        arrives_in_parts(&Answered::Backends(wire::BackendReports {
            backends: (0..MAX_BACKENDS).map(report).collect(),
        }));
    }

    #[test]
    fn what_cannot_be_cut_is_refused_by_the_node_itself() {
        let failure = wire::Failure { message: "x".repeat(PART_BYTES), ..Default::default() };
        let parts = cut(wire::CommandAnswer { id: 1, result: Some(Answered::Failure(failure)), more: false });
        let [wire::CommandAnswer { result: Some(Answered::Failure(failure)), more: false, .. }] = parts.as_slice()
        else {
            panic!("{parts:?}");
        };
        assert_eq!(failure.reason, "ANSWER_TOO_LARGE");
    }

    #[test]
    fn parts_are_bounded_and_of_one_kind() {
        let backends = || Answered::Backends(wire::BackendReports::default());
        let mut gathered = Gathered::default();
        gathered.add(backends(), 10).unwrap();
        assert!(gathered.add(Answered::Figures(wire::NodeFiguresEntry::default()), 10).is_err());
        let mut gathered = Gathered::default();
        gathered.add(backends(), MAX_ANSWER_BYTES).unwrap();
        assert!(gathered.add(backends(), 1).is_err());
    }

    #[test]
    fn a_demand_for_all_namespaces_fits_into_a_frame() {
        let of = |number| wire::NamespaceDemand {
            namespace: long(number),
            wanted_millis: MAX_MILLIS,
            held_millis: MAX_MILLIS,
            alone_millis: MAX_MILLIS,
        };
        let namespaces = (0..MAX_GRANTS).map(of).collect();
        let demand = wire::Demand { sequence: u64::MAX, serves_by: u64::MAX, namespaces };
        let frame = wire::NodeFrame { frame: Some(wire::node_frame::Frame::Demand(demand)) };
        assert!(frame.encoded_len() <= MAX_NODE_FRAME_BYTES, "{}", frame.encoded_len());
    }
}
