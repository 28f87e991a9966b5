//! Login by device code (RFC 8628): the person opens a page, on any device, and enters a code there.

use std::time::Duration;

use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::issuer::{Answer, Granted, Issuer, Refused};
use crate::{
    error::{Failure, Result},
    exit::Exit,
    output::note,
    secret::Secret,
};

/// Pause between questions if the issuer names none.
const DEFAULT_INTERVAL: u64 = 5;
/// How much longer the pause gets when the issuer asks for it.
const SLOWER_BY: Duration = Duration::from_secs(5);
/// Longest pause, whatever the issuer asks for.
const LONGEST_INTERVAL: Duration = Duration::from_mins(1);
/// Longest life of a code, whatever the issuer says.
const LONGEST_LIFE: Duration = Duration::from_hours(1);

#[derive(Deserialize)]
struct Begun {
    device_code: Secret,
    user_code: String,
    verification_uri: String,
    verification_uri_complete: Option<String>,
    expires_in: u64,
    interval: Option<u64>,
}

/// Has the person log in, and waits until it is done, refused or too late.
pub async fn log_in(issuer: &Issuer) -> Result<Granted> {
    let begun: Begun = issuer.begin_device().await?.map_err(|refused| refused.failure("the login cannot begin"))?;
    let life = Duration::from_secs(begun.expires_in).min(LONGEST_LIFE);
    note("To log in, open this page on any device:");
    note(&format!("  {}", begun.verification_uri));
    note("and enter this code:");
    note(&format!("  {}", begun.user_code));
    if let Some(complete) = &begun.verification_uri_complete {
        note("or open this page, which has the code:");
        note(&format!("  {complete}"));
    }
    note(&format!("Waiting for at most {}; Ctrl-C gives up.", humantime::format_duration(life)));
    let deadline = Instant::now() + life;
    let mut pace = Pace::new(begun.interval);
    let wait = async {
        loop {
            sleep(pace.interval).await;
            if Instant::now() >= deadline {
                return Err(too_late());
            }
            if let Some(granted) = pace.after(issuer.device_code(&begun.device_code).await)? {
                return Ok(granted);
            }
        }
    };
    tokio::select! {
        outcome = wait => outcome,
        _ = tokio::signal::ctrl_c() => Err(Failure::new(Exit::Failed, "given up; nothing was changed")),
    }
}

/// How often the issuer is asked.
struct Pace {
    interval: Duration,
}

impl Pace {
    fn new(interval: Option<u64>) -> Self {
        let seconds = interval.unwrap_or(DEFAULT_INTERVAL).max(1);
        Self { interval: Duration::from_secs(seconds).min(LONGEST_INTERVAL) }
    }

    /// The tokens, or none if the issuer is to be asked again.
    fn after(&mut self, answer: Result<Answer>) -> Result<Option<Granted>> {
        match answer {
            Ok(Answer::Granted(granted)) => Ok(Some(granted)),
            Ok(Answer::Refused(refused)) => self.refused(&refused).map(|()| None),
            // RFC 8628, 3.5: a question that got no answer is put again, less often.
            Err(failure) if failure.exit() == Exit::Unreachable => {
                self.interval = (2 * self.interval).min(LONGEST_INTERVAL);
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }

    fn refused(&mut self, refused: &Refused) -> Result<()> {
        match refused.error.as_str() {
            "authorization_pending" => Ok(()),
            "slow_down" => {
                self.interval = (self.interval + SLOWER_BY).min(LONGEST_INTERVAL);
                Ok(())
            }
            "expired_token" => Err(too_late()),
            "access_denied" => Err(Failure::new(Exit::Refused, "the login was refused at the issuer")),
            _ => Err(refused.failure("the login failed")),
        }
    }
}

fn too_late() -> Failure {
    Failure::new(Exit::Deadline, "the code has expired before it was entered").hint("run the same command again")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(error: &str) -> Answer {
        Answer::Refused(serde_json::from_value(serde_json::json!({ "error": error })).unwrap())
    }

    #[test]
    fn the_pace_is_the_issuers() {
        let mut pace = Pace::new(Some(2));
        assert!(pace.after(Ok(refused("authorization_pending"))).unwrap().is_none());
        assert_eq!(pace.interval, Duration::from_secs(2));
        assert!(pace.after(Ok(refused("slow_down"))).unwrap().is_none());
        assert_eq!(pace.interval, Duration::from_secs(7));
        assert!(pace.after(Err(Failure::new(Exit::Unreachable, "away"))).unwrap().is_none());
        assert_eq!(pace.interval, Duration::from_secs(14));
        assert_eq!(Pace::new(None).interval, Duration::from_secs(5));
        assert_eq!(Pace::new(Some(0)).interval, Duration::from_secs(1));
        assert_eq!(Pace::new(Some(u64::MAX)).interval, LONGEST_INTERVAL);
    }

    #[test]
    fn every_end_has_its_exit() {
        let exit = |error| Pace::new(None).after(Ok(refused(error))).unwrap_err().exit();
        assert_eq!(exit("expired_token"), Exit::Deadline);
        assert_eq!(exit("access_denied"), Exit::Refused);
        assert_eq!(exit("invalid_grant"), Exit::Refused);
        let failure = Pace::new(None).after(Err(Failure::usage("no"))).unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
    }
}
