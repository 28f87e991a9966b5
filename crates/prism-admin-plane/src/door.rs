//! The one door (architecture, laws 1 and 2): every admin operation, from whatever transport, runs through [`Door::call`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use aws_lc_rs::digest;
use prism_core::limits::MAX_IDEMPOTENCY_KEY_BYTES;
use prism_core::nodes::Nodes as _;
use prism_core::permission::{self, Grant, Permission, Reach};
use prism_core::{Error, Kind, Result};
use prism_proto::rules::{AuditClass, Idempotency, MethodRule};
use prism_rpc::Table;
use prism_store::{EntryDraft, IdempotencyKey, OnReadFailure, Remembered, Tx};
use prost::Message as _;

use crate::identity::{Authenticator, Identity};
use crate::op::{Answer, Caller, Done, Op, Place, Services};
use crate::ops::bootstrap::ALARM;
use crate::ops::drain::Unended;
use crate::refused::Suppressed;
use crate::tally::TokenTally;
use crate::to_the_end::ToTheEnd;
use crate::unrecorded::{Unrecorded, cannot_record, is_storage_failure};

/// What a transport knows of a call.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// Request id.
    pub request_id: String,
    /// Address of the caller.
    pub source_address: String,
    /// Values of `x-idempotency-key`; there may be one.
    pub idempotency_keys: Vec<String>,
}

/// Credential, RPC and idempotency key of a call.
pub(crate) type KeyedCall = (String, &'static str, String);

pub(crate) fn keyed_call(key: &IdempotencyKey) -> KeyedCall {
    (key.credential.clone(), key.rpc, key.key.clone())
}

/// The one way in.
pub struct Door {
    /// What operations use.
    pub services: Services,
    /// Finds out who calls.
    pub authenticator: Authenticator,
    /// Calls without a valid credential.
    pub(crate) suppressed: Suppressed,
    /// Calls that were one too many.
    pub(crate) excess: Suppressed,
    /// Calls that failed before it was known what their credential proves.
    pub(crate) failures: Suppressed,
    /// Exchanges of each join token.
    pub(crate) exchanges: TokenTally,
    /// Reads that were carried out while the log could not be written.
    pub(crate) unrecorded: Unrecorded,
    /// Drains that are over and not yet written down as such.
    pub(crate) unended: Unended,
    /// Calls under way, by idempotency key: a twin waits for the first.
    under_way: Mutex<HashMap<KeyedCall, Arc<tokio::sync::Mutex<()>>>>,
}

/// What the door decided before it ran the operation.
pub(crate) struct Admitted {
    pub(crate) rule: Arc<MethodRule>,
    pub(crate) caller: Caller,
    pub(crate) draft: EntryDraft,
    pub(crate) key: Option<IdempotencyKey>,
}

/// How a transaction ended; refusals are committed too, with their entry.
pub(crate) enum Verdict<R> {
    /// Carried out.
    Done(R),
    /// The stored answer of an earlier call.
    Replayed(R),
    /// A rehearsal found nothing against it.
    Rehearsed,
    /// Refused; its entry is written.
    Refused(Error),
}

impl<R> Verdict<R> {
    /// The answer or the refusal.
    pub(crate) fn into_result(self) -> Result<R> {
        match self {
            Self::Done(response) | Self::Replayed(response) => Ok(response),
            Self::Refused(error) => Err(error),
            Self::Rehearsed => Err(Error::internal("a rehearsal where the operation was due")),
        }
    }
}

impl Door {
    /// Puts the door in front of `services`, for whom `authenticator` knows. `on_read_failure` is for reads that cannot be
    /// recorded.
    pub fn new(services: Services, authenticator: Authenticator, on_read_failure: OnReadFailure) -> Self {
        Self {
            unrecorded: Unrecorded::new(on_read_failure, &services.metrics),
            unended: Unended::default(),
            suppressed: Suppressed::credentials(&services.metrics),
            excess: Suppressed::calls(&services.metrics),
            failures: Suppressed::failures(&services.metrics),
            exchanges: TokenTally::default(),
            services,
            authenticator,
            under_way: Mutex::default(),
        }
    }

    /// The table of RPC rules.
    pub fn table(&self) -> &Table {
        &self.services.table
    }

    /// Runs one operation for a caller from outside. It goes on when the caller goes away.
    pub async fn call<O: Op>(
        self: &Arc<Self>,
        identity: Arc<Identity>,
        call: Call,
        request: O::Request,
    ) -> Result<O::Response> {
        self.run::<O, _, _>(identity, call, request, |door, identity, call, request| async move {
            door.call_as::<O>(identity, call, request).await
        })
        .await
    }

    /// As [`Door::call`], for operations that are more than one transaction: `work` carries them out.
    pub(crate) async fn run<O, W, F>(
        self: &Arc<Self>,
        identity: Arc<Identity>,
        call: Call,
        request: O::Request,
        work: W,
    ) -> Result<O::Response>
    where
        O: Op,
        W: FnOnce(Arc<Self>, Arc<Identity>, Call, O::Request) -> F + Send + 'static,
        F: Future<Output = Result<O::Response>> + Send + 'static,
    {
        let started = Instant::now();
        let door = Arc::clone(self);
        let result = ToTheEnd::new(work(door, identity, call, request)).await;
        self.services.metrics.admin(short_name(O::RPC)).record(started.elapsed(), result.is_ok());
        result
    }

    /// Runs one operation for an identity that is established.
    pub async fn call_as<O: Op>(
        &self,
        identity: Arc<Identity>,
        call: Call,
        request: O::Request,
    ) -> Result<O::Response> {
        self.call_with(identity, call, request, O::parse).await
    }

    /// As [`Door::call_as`], where `parse` proves the request, which may be done by now.
    pub(crate) async fn call_with<O: Op>(
        &self,
        identity: Arc<Identity>,
        call: Call,
        request: O::Request,
        parse: impl FnOnce(O::Request, &Services) -> Result<O> + Send,
    ) -> Result<O::Response> {
        let admitted = Arc::new(self.admit::<O>(identity, &call, &request)?);
        let request = Arc::new(request);
        let _turn = self.turn(admitted.key.as_ref()).await;
        // Who may do this nowhere is refused before anything is made of the request.
        let mut parsed = if admitted.caller.reach == Reach::Nowhere {
            Err(Error::aborted(
                "GRANTS_CHANGED",
                "what your credential allows changed while the call was under way; retry",
            ))
        } else {
            parse(O::Request::clone(&request), &self.services)
        };
        if O::PREPARES {
            if parsed.as_ref().is_ok_and(Op::needs_rehearsal) {
                match self.transact(&admitted, &request, parsed.clone(), true).await? {
                    Verdict::Rehearsed => {}
                    Verdict::Refused(error) => return Err(error),
                    Verdict::Done(response) | Verdict::Replayed(response) => return Ok(response),
                }
            }
            let prepared = match &mut parsed {
                Ok(op) => op.prepare_for(&admitted.caller.identity, &self.services).await,
                Err(_) => Ok(()),
            };
            match prepared {
                // What it would have stored is told by what is stored already, if late.
                Err(failed) if self.unrecorded.goes_on(admitted.rule.audit) && is_storage_failure(&failed) => {}
                Err(error) => parsed = Err(error),
                Ok(()) => {}
            }
        }
        match self.transact(&admitted, &request, parsed, false).await? {
            Verdict::Done(mut response) => {
                if admitted.rule.audit == AuditClass::Change {
                    self.services.fleet.caught_up(self.services.snapshot().revision).await;
                }
                O::follow_up(&request, &mut response, &self.services).await;
                Ok(response)
            }
            other => other.into_result(),
        }
    }

    /// Looks the RPC up and gathers what its entry will say.
    pub(crate) fn admit<O: Op>(&self, identity: Arc<Identity>, call: &Call, request: &O::Request) -> Result<Admitted> {
        let rule = self
            .services
            .table
            .rule(&format!("/{}", O::RPC))
            .cloned()
            .ok_or_else(|| Error::internal(format!("no rule for {}", O::RPC)))?;
        let draft = draft_of::<O>(&identity, call, request);
        let grants = self.services.store.standing(&identity.credential).unwrap_or_default();
        let reach = identity.reach(&grants, &rule.permission)?;
        // Strangers would share their keys.
        let keyed =
            rule.idempotency != Idempotency::ReadOnly && !call.idempotency_keys.is_empty() && !identity.is_stranger();
        let key = keyed.then(|| IdempotencyKey {
            credential: identity.credential_id.clone(),
            rpc: O::RPC,
            // Several keys are as wrong as an unreadable one; the check is where the refusal gets its entry.
            key: if let [key] = call.idempotency_keys.as_slice() { key.clone() } else { String::new() },
            fingerprint: fingerprint(&request.encode_to_vec()),
            namespace: None,
        });
        Ok(Admitted { rule, caller: Caller { identity, grants, reach }, draft, key })
    }

    /// Waits for a twin with the same idempotency key.
    pub(crate) async fn turn(&self, key: Option<&IdempotencyKey>) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        let key = key?;
        let lock = {
            let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            under_way.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(under_way.entry(keyed_call(key)).or_default())
        };
        Some(lock.lock_owned().await)
    }

    async fn transact<O: Op>(
        &self,
        admitted: &Arc<Admitted>,
        request: &Arc<O::Request>,
        parsed: Result<O>,
        rehearse: bool,
    ) -> Result<Verdict<O::Response>> {
        let goes_on = self.unrecorded.goes_on(admitted.rule.audit);
        let again = goes_on.then(|| (Arc::clone(request), parsed.clone()));
        let (shared, request) = (Arc::clone(admitted), Arc::clone(request));
        // To rehearse a read would be to carry it out twice.
        let reads = admitted.rule.audit == AuditClass::Read;
        let work = move |tx: &mut Tx<'_>| {
            let (permission, identity) = (&shared.rule.permission, Arc::clone(&shared.caller.identity));
            // What they hold is found out in here.
            let mut caller = Caller { identity, grants: Vec::new(), reach: Reach::Nowhere };
            let (mut key, mut draft) = (shared.key.clone(), shared.draft.clone());
            match gate::<O>(tx, &mut caller, permission, &request, key.as_mut(), &mut draft)? {
                Gate::Open if rehearse && reads && parsed.is_ok() => return Ok(Verdict::Rehearsed),
                Gate::Open => {}
                Gate::Refused(refused) => return Ok(Verdict::Refused(refused)),
                Gate::Answered(response) => return Ok(Verdict::Replayed(response)),
            }
            // Told by this and not by what the error says, which may come from elsewhere.
            let mut rehearsed = false;
            let outcome = parsed.and_then(|op| {
                tx.attempt(|tx| {
                    let done = op.execute(tx, &caller)?;
                    rehearsed = rehearse;
                    if rehearse { Err(Error::internal("a rehearsal is undone")) } else { Ok(done) }
                })
            });
            match outcome {
                Err(_) if rehearsed => Ok(Verdict::Rehearsed),
                outcome => conclude(tx, key.as_ref(), draft, outcome),
            }
        };
        let store = &self.services.store;
        // A rehearsal is there to be undone.
        let unguarded = !rehearse && (reads || O::PROVES_FIRST);
        let written = if unguarded { store.write_unguarded(work).await } else { store.write(work).await };
        match (written, again) {
            (Err(failed), Some(again)) if is_storage_failure(&failed) => {
                if rehearse {
                    Ok(Verdict::Rehearsed)
                } else {
                    self.read_unrecorded(admitted, again, failed).await
                }
            }
            (Err(failed), _) => Err(cannot_record(failed)),
            (Ok(verdict), _) => {
                if self.unrecorded.any() {
                    // Its failure is that of a later call.
                    let _ = self.unrecorded.record(&self.services.store).await;
                }
                Ok(verdict)
            }
        }
    }

    /// Carries a read out without its entry, which `failed` kept from being written; it is counted instead.
    async fn read_unrecorded<O: Op>(
        &self,
        admitted: &Admitted,
        (request, parsed): (Arc<O::Request>, Result<O>),
        failed: Error,
    ) -> Result<Verdict<O::Response>> {
        let store = &self.services.store;
        let mut caller = admitted.caller.clone();
        caller.grants = store.standing(&caller.identity.credential).ok_or_else(credential_invalid)?;
        caller.reach = caller.identity.reach(&caller.grants, &admitted.rule.permission)?;
        let answer = store.read(move |tx| {
            // A refusal names its entry, so without one nobody is refused, but told that there is none.
            if !O::place(&request, tx)?.is_within(&caller.reach) {
                return Err(cannot_record(failed));
            }
            parsed?.execute(tx, &caller).map(|done| done.response)
        });
        let answer = answer.await?;
        self.unrecorded.count(self.services.now());
        Ok(Verdict::Done(answer))
    }
}

/// What the door says before an operation runs.
pub(crate) enum Gate<R> {
    /// Carry it out.
    Open,
    /// It was carried out before; the entry of this call is written.
    Answered(R),
    /// Refused; the entry is written.
    Refused(Error),
}

/// Decides inside the transaction, by the credential, its grants and the place as they are stored now. A call that was carried
/// out before is answered as it was then, even where what it was about is gone since. `key` gets to know the place.
pub(crate) fn gate<O: Op>(
    tx: &mut Tx<'_>,
    caller: &mut Caller,
    permission: &str,
    request: &O::Request,
    mut key: Option<&mut IdempotencyKey>,
    draft: &mut EntryDraft,
) -> Result<Gate<O::Response>> {
    let Some(grants) = tx.standing(&caller.identity.credential)? else {
        let refused = credential_invalid();
        note(draft, &refused);
        tx.append_entry(draft.clone())?;
        return Ok(Gate::Refused(refused));
    };
    caller.reach = caller.identity.reach(&grants, permission)?;
    caller.grants = grants;
    let place = O::place(request, tx)?;
    debug_assert!(O::SCOPE.admits(&place), "{} at {place:?}", O::RPC);
    if let Place::Namespace(name) = &place {
        if draft.namespace.is_empty() {
            draft.namespace.clone_from(name);
        }
        if let Some(key) = &mut key {
            key.namespace = Some(name.clone());
        }
    }
    if caller.reach != Reach::Nowhere
        && let Some(key) = key
        && let Some(earlier) = replay::<O::Response>(tx, key, (&place, &caller.reach), permission, draft)?
    {
        return Ok(earlier.into_result().map_or_else(Gate::Refused, Gate::Answered));
    }
    if place.is_within(&caller.reach) {
        return Ok(Gate::Open);
    }
    deny(tx, permission, draft.clone()).map(Gate::Refused)
}

fn credential_invalid() -> Error {
    Error::unauthenticated("CREDENTIAL_INVALID", "the admin credential is not valid")
}

/// Writes the entry of a denial and makes its error.
fn deny(tx: &mut Tx<'_>, permission: &str, mut draft: EntryDraft) -> Result<Error> {
    let message = format!("this needs the permission {permission}, which your credential does not have here");
    draft.error = Some(message.clone());
    draft.metadata.insert("reason".to_owned(), "PERMISSION_DENIED".to_owned());
    draft.metadata.insert("permission".to_owned(), permission.to_owned());
    let audit_id = tx.append_entry(draft)?;
    Ok(Error::new(Kind::PermissionDenied, "PERMISSION_DENIED", message)
        .with("permission", permission)
        .with("audit_id", audit_id))
}

/// The stored answer of an earlier call with the same key, with an entry of its own; or why there can be none. It is for whom the
/// permission reaches where that call happened; where that is not stored, to the place of this call.
fn replay<R: Answer>(
    tx: &mut Tx<'_>,
    key: &IdempotencyKey,
    (place, reach): (&Place, &Reach),
    permission: &str,
    draft: &mut EntryDraft,
) -> Result<Option<Verdict<R>>> {
    let readable = (1..=MAX_IDEMPOTENCY_KEY_BYTES).contains(&key.key.len()) && key.key.is_ascii();
    let found = if readable {
        tx.remembered(key)
    } else {
        let rule = format!("must be one key of 1 to {MAX_IDEMPOTENCY_KEY_BYTES} ASCII characters");
        Err(Error::invalid("x-idempotency-key", rule))
    };
    let answer = match found {
        Ok(None) => return Ok(None),
        Ok(Some(earlier)) => {
            let within = match &earlier.namespace {
                Some(namespace) => reach.includes(Some(namespace)),
                None => place.is_within(reach),
            };
            if let (Some(namespace), true) = (earlier.namespace, draft.namespace.is_empty()) {
                // What the call was about may be gone, and its namespace is known from here only.
                draft.namespace = namespace;
            }
            if !within {
                return deny(tx, permission, draft.clone()).map(|denied| Some(Verdict::Refused(denied)));
            }
            earlier.answer.and_then(|bytes| R::decode(&bytes))
        }
        Err(error) => Err(error),
    };
    match answer {
        Ok(response) => {
            draft.metadata.insert("replayed".to_owned(), "true".to_owned());
            tx.append_entry(draft.clone())?;
            Ok(Some(Verdict::Replayed(response)))
        }
        Err(error) => {
            note(draft, &error);
            tx.append_entry(draft.clone())?;
            Ok(Some(Verdict::Refused(error)))
        }
    }
}

/// Writes the entry of what happened, and remembers an answer that has a key.
pub(crate) fn conclude<R: Answer>(
    tx: &mut Tx<'_>,
    key: Option<&IdempotencyKey>,
    mut draft: EntryDraft,
    outcome: Result<Done<R>>,
) -> Result<Verdict<R>> {
    match outcome {
        Ok(done) => {
            draft.metadata.extend(done.details);
            if let Some(resource) = done.resource {
                draft.resource = resource;
            }
            tx.append_entry(draft)?;
            if let Some(key) = key {
                match (done.secret_of, done.response.encode()) {
                    (Some(id), _) => tx.remember(key, Remembered::SecretOf(id))?,
                    (None, Some(bytes)) => tx.remember(key, Remembered::Response(bytes))?,
                    (None, None) => {}
                }
            }
            Ok(Verdict::Done(done.response))
        }
        Err(error) => {
            note(&mut draft, &error);
            let audit_id = tx.append_entry(draft)?;
            let denied = error.kind() == Kind::PermissionDenied;
            Ok(Verdict::Refused(if denied { error.with("audit_id", audit_id) } else { error }))
        }
    }
}

/// Has an entry say what went wrong.
pub(crate) fn note(draft: &mut EntryDraft, error: &Error) {
    draft.error = Some(error.message().to_owned());
    for known in ["permission", ALARM] {
        if let Some(value) = error.metadata().get(known) {
            draft.metadata.insert(known.to_owned(), value.clone());
        }
    }
    draft.metadata.insert("reason".to_owned(), error.reason().to_owned());
}

/// What the entry of an operation says before it is known how that ends.
pub(crate) fn draft_of<O: Op>(identity: &Identity, call: &Call, request: &O::Request) -> EntryDraft {
    EntryDraft {
        actor: identity.actor.clone(),
        auth_method: identity.auth_method.to_owned(),
        credential_id: identity.credential_id.clone(),
        metadata: O::told(request),
        ..draft(call, method_name(O::RPC), O::resource_of_call(request, identity), O::namespace(request))
    }
}

pub(crate) fn draft(call: &Call, operation: &str, resource: String, namespace: String) -> EntryDraft {
    EntryDraft {
        operation: operation.to_owned(),
        resource,
        namespace,
        request_id: call.request_id.clone(),
        source_address: call.source_address.clone(),
        ..EntryDraft::default()
    }
}

/// Where `grants` allow `permission`, as the descriptors spell it.
pub(crate) fn reach_of(grants: &[Grant], permission: &str) -> Result<Reach> {
    if permission == "authenticated" {
        return Ok(Reach::Installation);
    }
    Permission::parse(permission)
        .map(|permission| permission::reach(grants, &permission))
        .ok_or_else(|| Error::internal(format!("{permission:?} is not a permission")))
}

fn fingerprint(request: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, request).as_ref());
    out
}

/// `CreateConfig` of `prism.admin.v1.AdminService/CreateConfig`.
pub(crate) fn method_name(rpc: &str) -> &str {
    rpc.rsplit_once('/').map_or(rpc, |(_, method)| method)
}

/// `AdminService/CreateConfig` of `prism.admin.v1.AdminService/CreateConfig`.
fn short_name(rpc: &'static str) -> &'static str {
    let service = rpc.split('/').next().unwrap_or(rpc);
    service.rfind('.').map_or(rpc, |dot| &rpc[dot + 1..])
}
