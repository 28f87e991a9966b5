//! Requests with one wrong field, as tables, and a check that the tables leave no field out.

use std::collections::BTreeSet;

use prost_reflect::{Kind, MessageDescriptor};
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::admin::Headers;
use crate::failure::Failure;
use crate::raw;

/// The wrong values of one RPC's fields.
pub struct Rpc {
    /// Path such as `/prism.admin.v1.AdminService/GetConfig`.
    pub path: String,
    /// A request that is right, in proto3 JSON.
    pub base: Value,
    /// Field to set, what to, and the field that the refusal must name; the same one if it is empty.
    pub bad: Vec<(&'static str, Value, &'static str)>,
}

impl Rpc {
    /// Sends every wrong value. Gives a line for each that was not refused as it should be.
    pub async fn faults(&self, channel: &Channel, headers: &Headers) -> Vec<String> {
        let mut faults = Vec::new();
        for (field, value, named) in &self.bad {
            let named = if named.is_empty() { field } else { named };
            let mut request = self.base.clone();
            set(&mut request, field, value.clone());
            let shown: String = value.to_string().chars().take(60).collect();
            match self.send(channel, headers, &request).await {
                Ok(()) => faults.push(format!("{} took {field} = {shown}", self.path)),
                Err(failure) if failure.code == tonic::Code::InvalidArgument && failure.fields == [*named] => {}
                Err(failure) => faults.push(format!("{} on {field} = {shown}: {failure:?}", self.path)),
            }
        }
        faults
    }

    /// Breaks two fields at a time, each field with its neighbour in the table. Gives a line for each answer that does not
    /// name both.
    pub async fn faults_of_pairs(&self, channel: &Channel, headers: &Headers) -> Vec<String> {
        let mut faults = Vec::new();
        let mut fields: Vec<&(&str, Value, &str)> = Vec::new();
        for case in &self.bad {
            // Nothing can be wrong inside of what is absent.
            if !case.1.is_null() && fields.iter().all(|known| known.0 != case.0) {
                fields.push(case);
            }
        }
        for pair in fields.windows(2) {
            let mut request = self.base.clone();
            let mut expected = BTreeSet::new();
            for (field, value, named) in pair {
                set(&mut request, field, value.clone());
                expected.insert(if named.is_empty() { *field } else { *named }.to_owned());
            }
            let found = match self.send(channel, headers, &request).await {
                Ok(()) => BTreeSet::new(),
                Err(failure) => failure.fields.into_iter().collect(),
            };
            if found != expected {
                faults.push(format!("{} named {found:?} instead of {expected:?}", self.path));
            }
        }
        faults
    }

    /// Sends the request that is right.
    pub async fn send_base(&self, channel: &Channel, headers: &Headers) -> Result<(), Failure> {
        self.send(channel, headers, &self.base).await
    }

    async fn send(&self, channel: &Channel, headers: &Headers, request: &Value) -> Result<(), Failure> {
        let bytes = prism_proto::from_json(self.input().full_name(), request)
            .unwrap_or_else(|error| panic!("{}: {error}", self.path));
        raw::call(channel, headers, &self.path, bytes).await.map(drop).map_err(|status| Failure::from(&status))
    }

    fn input(&self) -> MessageDescriptor {
        let (service, method) = self.path.trim_start_matches('/').split_once('/').expect("a path");
        let service = prism_proto::descriptor_pool().get_service_by_name(service).expect("a service");
        service.methods().find(|found| found.name() == method).expect("a method").input()
    }

    /// Fields of the request that no case breaks and `free` does not name. Truth values cannot be wrong.
    pub fn untested(&self, free: &[&str]) -> Vec<String> {
        let mut tested: BTreeSet<String> = BTreeSet::new();
        for (field, _, named) in &self.bad {
            tested.extend([bare(field), bare(named)]);
        }
        let mut fields = Vec::new();
        leaves(&self.input(), "", 0, &mut fields);
        let known = |field: &str| {
            tested.contains(field) || free.contains(&field) || free.contains(&field.rsplit('.').next().unwrap_or(field))
        };
        fields.into_iter().filter(|field| !known(field)).map(|field| format!("{}: {field}", self.path)).collect()
    }
}

/// `messages.payload` of `messages[3].payload`.
fn bare(path: &str) -> String {
    let mut depth = 0;
    path.chars()
        .filter(|character| {
            depth += i32::from(*character == '[');
            let kept = depth == 0;
            depth -= i32::from(*character == ']');
            kept
        })
        .collect()
}

fn leaves(message: &MessageDescriptor, root: &str, depth: usize, out: &mut Vec<String>) {
    for field in message.fields() {
        let path = if root.is_empty() { field.name().to_owned() } else { format!("{root}.{}", field.name()) };
        match field.kind() {
            Kind::Bool => {}
            // Filters hold filters; one level shows what each field is for.
            Kind::Message(inner) if !field.is_map() && !inner.full_name().starts_with("google.") && depth < 3 => {
                leaves(&inner, &path, depth + 1, out);
            }
            _ => out.push(path),
        }
    }
}

fn set(request: &mut Value, path: &str, value: Value) {
    let mut place = request;
    let mut parts = path.split('.').peekable();
    while let Some(part) = parts.next() {
        if !place.is_object() {
            *place = json!({});
        }
        let object = place.as_object_mut().expect("made above");
        if parts.peek().is_none() {
            if value.is_null() {
                object.remove(part);
            } else {
                object.insert(part.to_owned(), value);
            }
            return;
        }
        place = object.entry(part).or_insert(Value::Null);
    }
}

/// Text of so many bytes.
pub fn long(bytes: usize) -> Value {
    Value::String("x".repeat(bytes))
}

/// A map with so many entries.
pub fn entries(count: usize) -> Value {
    Value::Object((0..count).map(|number| (format!("k{number}"), json!("v"))).collect())
}

/// A map with one entry.
pub fn entry(key: &str, value: impl Into<Value>) -> Value {
    let value: Value = value.into();
    json!({ key: value })
}
