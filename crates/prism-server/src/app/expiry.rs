//! When the certificates that the server depends on end: a gauge for machines, and a warning a day for people.

use std::sync::Arc;
use std::time::Duration;

use prism_core::{Clock, UnixMillis};
use prism_rpc::{CertificateAuthority, Metrics, ServerTls, Shutdown};

use super::listeners::Security;
use super::trust::Trust;
use crate::join::identity::NodeFiles;

/// How often the end is told.
const WARN_EVERY: Duration = Duration::from_hours(24);
/// With less than this left of what a person has to renew, it is time to.
const RENEW_BY_HAND: Duration = Duration::from_hours(30 * 24);

/// The certificates that the server depends on.
pub struct Certificates {
    endings: Box<dyn Fn() -> Vec<Ending> + Send + Sync>,
}

/// One of them.
struct Ending {
    /// Name in the gauge.
    name: &'static str,
    at: UnixMillis,
    /// With less than this left it is told.
    told_below: Duration,
}

/// One that a person has to renew.
fn by_hand(name: &'static str, at: Option<UnixMillis>) -> Option<Ending> {
    at.map(|at| Ending { name, at, told_below: RENEW_BY_HAND })
}

fn of_listener(name: &'static str, tls: Option<&ServerTls>) -> Option<Ending> {
    tls.map(|tls| Ending { name, at: tls.expires_at(), told_below: tls.attention_below() })
}

impl Certificates {
    /// Those of `security` and `trust`.
    pub fn new(authority: &CertificateAuthority, security: &Security, trust: &Arc<Trust>) -> Arc<Self> {
        let (authority, trust) = (authority.clone(), trust.clone());
        let [admin, data] =
            [&security.admin, &security.data].map(|plane| plane.as_ref().map(|plane| plane.tls.clone()));
        let endings = move || {
            let all = [
                by_hand("ca", Some(authority.expires_at())),
                of_listener("admin", admin.as_ref()),
                of_listener("data", data.as_ref()),
                by_hand("admin_client_ca", trust.admin_bundle_ends()),
                by_hand("data_client_ca", trust.data_bundle_ends()),
            ];
            all.into_iter().flatten().collect()
        };
        Arc::new(Self { endings: Box::new(endings) })
    }

    /// Those of a data node: the certificate that is its identity, the cluster's CA, and those of `data` and `trust`. Of what it
    /// renews itself (its identity, and a data port's certificate of the cluster's CA: `renewed`), the renewal tells.
    pub fn of_node(files: NodeFiles, data: Option<ServerTls>, renewed: bool, trust: &Arc<Trust>) -> Arc<Self> {
        let trust = trust.clone();
        let endings = move || {
            let quiet = |ending: Ending| Ending { told_below: Duration::ZERO, ..ending };
            let own = |name, at: Option<UnixMillis>| at.map(|at| quiet(Ending { name, at, told_below: RENEW_BY_HAND }));
            let data = of_listener("data", data.as_ref());
            let all = [
                by_hand("ca", files.authorities_end()),
                own("node", files.life().ok().map(|life| life.expires_at)),
                if renewed { data.map(quiet) } else { data },
                by_hand("data_client_ca", trust.data_bundle_ends()),
            ];
            all.into_iter().flatten().collect()
        };
        Arc::new(Self { endings: Box::new(endings) })
    }

    /// Adds the gauge to `metrics`.
    pub fn register(self: &Arc<Self>, metrics: &Metrics) {
        let certificates = self.clone();
        let read = move || {
            let sample = |ending: Ending| (vec![("certificate", ending.name.to_owned())], ending.at.0 as f64 / 1000.0);
            (certificates.endings)().into_iter().map(sample).collect()
        };
        metrics.gauge_fn(
            "prism_certificate_expiry_timestamp_seconds",
            "When a certificate ends, in seconds since 1970; of a bundle, the first.",
            Box::new(read),
        );
    }

    /// Warns now and every day of what ends soon, until the end is announced.
    pub async fn warn(self: Arc<Self>, clock: Clock, until: Shutdown) {
        loop {
            for (name, message) in self.warnings(clock.now()) {
                tracing::warn!(certificate = name, "{message}");
            }
            tokio::select! {
                () = tokio::time::sleep(WARN_EVERY) => {}
                () = until.announced() => return,
            }
        }
    }

    /// What ends soon, by its name.
    fn warnings(&self, now: UnixMillis) -> Vec<(&'static str, String)> {
        let warning = |ending: Ending| {
            let left = ending.at.since(now);
            let days = left.as_secs() / (24 * 3600);
            let message = match days {
                _ if left.is_zero() => "the certificate has ended; what depends on it is refused".to_owned(),
                0 => "the certificate ends today; renew it".to_owned(),
                days => format!("the certificate ends in {days} days; renew it"),
            };
            (left < ending.told_below).then_some((ending.name, message))
        };
        (self.endings)().into_iter().filter_map(warning).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use super::super::listeners::PlaneTls;
    use super::*;
    use crate::settings::ClientCa;

    const DAY: Duration = Duration::from_hours(24);

    /// Writes a self-signed certificate that lasts from `now` for `life`.
    fn write(folder: &Path, name: &str, now: UnixMillis, life: Duration) -> (std::path::PathBuf, std::path::PathBuf) {
        let mut params = CertificateParams::new(vec!["prism.example".to_owned()]).unwrap();
        let at = |at: UnixMillis| {
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(at.0 / 1000).unwrap())
        };
        params.not_before = at(now);
        params.not_after = at(now + life);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let paths = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        std::fs::write(&paths.0, params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(&paths.1, key.serialize_pem()).unwrap();
        paths
    }

    #[test]
    fn every_end_is_a_sample_and_those_that_are_near_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let start = UnixMillis(1_800_000_000_000);
        let clock = Clock::manual(start);
        let authority = CertificateAuthority::load_or_create_at(folder.path(), clock.clone()).unwrap();
        let (cert, key) = write(folder.path(), "server", start, 40 * DAY);
        let (bundle, _) = write(folder.path(), "bundle", start, 50 * DAY);
        let trust = Trust::load("prism-0", authority.trusted(), &ClientCa { admin: Some(bundle), data: None }).unwrap();
        let plane = |tls| PlaneTls { tls, own_authority: true };
        let security = Security {
            data: Some(plane(authority.server_tls(&[]).unwrap())),
            admin: Some(plane(ServerTls::from_files(&cert, &key).unwrap())),
        };
        let certificates = Certificates::new(&authority, &security, &Arc::new(trust));
        let metrics = Metrics::new();
        certificates.register(&metrics);
        let text = metrics.render();
        let sample = |name: &str| {
            let start = format!("prism_certificate_expiry_timestamp_seconds{{certificate=\"{name}\"}} ");
            let line = text.lines().find_map(|line| line.strip_prefix(&start));
            line.map(|value| value.parse::<f64>().unwrap())
        };
        let seconds = |life: Duration| Some(((start + life).0 / 1000) as f64);
        assert_eq!(sample("admin"), seconds(40 * DAY));
        assert_eq!(sample("admin_client_ca"), seconds(50 * DAY));
        assert_eq!(sample("data"), seconds(90 * DAY));
        assert_eq!(sample("ca"), Some((authority.expires_at().0 / 1000) as f64));
        assert_eq!(sample("data_client_ca"), None);

        let told = || certificates.warnings(clock.now());
        assert_eq!(told(), []);
        clock.advance(10 * DAY);
        assert_eq!(told(), [], "thirty days are left");
        clock.advance(DAY);
        assert_eq!(told(), [("admin", "the certificate ends in 29 days; renew it".to_owned())]);
        clock.advance(28 * DAY + DAY / 2);
        let names: Vec<_> = told().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["admin", "admin_client_ca"]);
        assert!(told()[0].1.contains("today"));
        // The certificate of Prism's own CA is renewed when it is asked for.
        clock.advance(100 * DAY);
        assert!(told().iter().all(|(name, message)| *name != "data" && message.contains("has ended")));
        assert_eq!(told().len(), 2);
    }
}
